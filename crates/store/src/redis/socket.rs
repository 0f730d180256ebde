//! One connection to a server: TCP, with TLS around it for `rediss://`. Never blocks.
//!
//! Plain connections scatter straight from the kernel into the caller's memory. TLS decrypts into buffers of its own
//! and copies from there: that copy, and what rustls allocates, is the price of encryption.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::options::{Options, Tls};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    tls: Option<Box<rustls::ClientConnection>>,
}

impl Socket {
    /// Starts to connect; the socket is writable when that is done or has failed.
    pub(super) fn connect(
        address: SocketAddr,
        options: &Options,
        tls: Option<rustls::ClientConnection>,
    ) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Stream, flags, None)?;
        // Before the connection, since the window that is offered follows from them.
        if let Some(bytes) = options.rcvbuf {
            setsockopt(&fd, sockopt::RcvBuf, &bytes)?;
        }
        if let Some(bytes) = options.sndbuf {
            setsockopt(&fd, sockopt::SndBuf, &bytes)?;
        }
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        setsockopt(&fd, sockopt::KeepAlive, &true)?;
        let seconds = options.keepalive.as_secs() as u32;
        setsockopt(&fd, sockopt::TcpKeepIdle, &seconds)?;
        setsockopt(&fd, sockopt::TcpKeepInterval, &seconds.div_ceil(3))?;
        setsockopt(&fd, sockopt::TcpUserTimeout, &(options.user_timeout.as_millis() as u32))?;
        match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self { stream: fd.into(), tls: tls.map(Box::new) })
    }

    /// Tells whether it is connected, when it is writable for the first time.
    pub(super) fn connected(&self) -> io::Result<()> {
        match self.stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether TLS has yet to agree on its keys: nothing of ours can be sent before.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether [`Self::push`] has something to do when the socket is writable.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Sends what TLS has ready.
    pub(super) fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(out)])
    }

    /// 0: the other side has closed.
    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.stream.read_vectored(slices);
        }
        loop {
            let tls = self.tls.as_mut().expect("looked above");
            let bytes = decrypted(tls, slices)?;
            if bytes > 0 {
                return Ok(bytes);
            }
            let closed = tls.read_tls(&mut self.stream)? == 0;
            tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            // Its part of the handshake.
            self.push()?;
            if closed {
                return Ok(0);
            }
        }
    }
}

/// Copies what was decrypted already; 0 where there is nothing yet.
fn decrypted(tls: &mut rustls::ClientConnection, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let mut total = 0;
    for slice in slices {
        let mut filled = 0;
        while filled < slice.len() {
            match tls.reader().read(&mut slice[filled..]) {
                Ok(0) => return Ok(total),
                Ok(bytes) => (filled, total) = (filled + bytes, total + bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(total),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(total)
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.write_vectored(slices) };
        // Takes no more before what it has is on its way, so that it does not grow.
        if tls.wants_write() {
            self.push()?;
        }
        let tls = self.tls.as_mut().expect("looked above");
        if tls.wants_write() || tls.is_handshaking() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let bytes = tls.writer().write_vectored(slices)?;
        self.push()?;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How TLS sessions are made.
#[derive(Debug)]
pub(super) struct TlsConnector {
    config: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
}

impl TlsConnector {
    /// Init: reads the authorities. `Err`: what the operator has to mend.
    pub(super) fn new(tls: &Tls, hosts: &[(String, u16)]) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        match &tls.ca {
            Some(path) => {
                let bad = |error: &dyn std::fmt::Display| format!("ca {}: {error}", path.display());
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
                    let certificate = certificate.map_err(|error| bad(&error))?;
                    roots.add(certificate).map_err(|error| bad(&error))?;
                }
                if roots.is_empty() {
                    return Err(bad(&"no certificate in it: a PEM file of authorities is needed"));
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err(
                        "this system has no certificate authorities: install ca-certificates or give ca=PATH".into()
                    );
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(roots);
        let config = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                let bad = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
                let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert)
                    .and_then(Iterator::collect)
                    .map_err(|error| format!("cert {}", bad(cert, &error)));
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("key {}", bad(key, &error)))?;
                config
                    .with_client_auth_cert(chain?, private)
                    .map_err(|error| format!("cert {}", bad(cert, &format!("{error}: does key= belong to it?"))))?
            }
            _ => config.with_no_client_auth(),
        };
        // Nodes of a cluster are known by address only, so one name stands for all of them.
        let name = tls.server_name.as_deref().unwrap_or(hosts[0].0.trim_matches(['[', ']']));
        let name = ServerName::try_from(name.to_owned()).map_err(|_| "server-name is neither a name nor an address")?;
        Ok(Self { config: Arc::new(config), name })
    }

    pub(super) fn session(&self) -> io::Result<rustls::ClientConnection> {
        rustls::ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(io::Error::other)
    }
}
