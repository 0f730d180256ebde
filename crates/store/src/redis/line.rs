//! A connection for one caller that waits: puts, the surveyor and tools. It waits in `poll`, never past its `until`,
//! so a server that hangs or trickles costs no more than that.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::greeting::{GREETING_BYTES, Greeting, LoginRefusal};
use super::resp::{self, Garbage, Reply};
use super::socket::Socket;
use super::{Connector, fault::Fault};

/// Why a call gave no reply.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server does not take us.
    Refused(LoginRefusal),
    /// The connection could not be made, or is lost; the next call makes a new one.
    Lost(io::Error),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct BlockingConnection {
    socket: Option<Socket>,
    inbox: Box<[u8]>,
    /// Bytes that have come, and those of them that were handed out already.
    have: usize,
    used: usize,
    outbox: Box<[u8]>,
}

impl BlockingConnection {
    /// Makes a line that understands replies of up to `reply_bytes` bytes.
    pub(super) fn new(reply_bytes: usize) -> Self {
        Self {
            socket: None,
            inbox: vec![0; reply_bytes].into(),
            have: 0,
            used: 0,
            outbox: vec![0; GREETING_BYTES].into(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.socket.is_some()
    }

    pub(super) fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Connects and greets, if that has not been done.
    pub(super) fn dial(&mut self, connector: &Connector, address: SocketAddr, until: Instant) -> Result<(), CallError> {
        if self.is_up() {
            return Ok(());
        }
        (self.have, self.used) = (0, 0);
        let until = until.min(Instant::now() + connector.options.connect);
        let result = self.greet(connector, address, until);
        if result.is_err() {
            self.hang_up();
        }
        result
    }

    fn greet(&mut self, connector: &Connector, address: SocketAddr, until: Instant) -> Result<(), CallError> {
        let socket = self.socket.insert(connector.connect(address)?);
        wait(socket, PollFlags::POLLOUT, until)?;
        socket.connected()?;
        let mut greeting = Greeting::new(connector, false);
        let mut question = [0; GREETING_BYTES];
        while let Some(bytes) = greeting.ask(connector, &mut question) {
            self.send(&question[..bytes], until)?;
            let reply = self.read(until)?;
            greeting.answer(connector, &reply).map_err(CallError::Refused)?;
        }
        Ok(())
    }

    /// Sends a command.
    pub(super) fn write(&mut self, words: &[&[u8]], until: Instant) -> io::Result<()> {
        let mut outbox = std::mem::take(&mut self.outbox);
        let bytes = resp::write_command(&mut outbox, words).expect("a command without a payload fits");
        let result = self.send(&outbox[..bytes], until);
        self.outbox = outbox;
        result
    }

    /// Sends a command whose last word is `payload`, from where it lies.
    pub(super) fn write_with(&mut self, words: &[&[u8]], payload: &[u8], until: Instant) -> io::Result<()> {
        let mut outbox = std::mem::take(&mut self.outbox);
        let bytes = resp::write_command_head(&mut outbox, words, payload.len()).expect("a command's head fits");
        let result = self.send_all([&outbox[..bytes], payload, b"\r\n"], until);
        self.outbox = outbox;
        result
    }

    fn send(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        self.send_all([bytes, b"", b""], until)
    }

    fn send_all(&mut self, mut parts: [&[u8]; 3], until: Instant) -> io::Result<()> {
        let socket = self.socket.as_mut().ok_or(ErrorKind::NotConnected)?;
        while parts.iter().any(|part| !part.is_empty()) {
            match socket.write_vectored(&parts.map(IoSlice::new)) {
                Ok(mut sent) => {
                    for part in &mut parts {
                        let bytes = part.len().min(sent);
                        *part = &part[bytes..];
                        sent -= bytes;
                    }
                }
                // A server that does not read may be waiting for us to read.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let flags =
                        if socket.is_tls() { PollFlags::POLLOUT | PollFlags::POLLIN } else { PollFlags::POLLOUT };
                    wait(socket, flags, until)?;
                    if socket.is_tls() {
                        // Its side of the handshake; no reply is due.
                        match socket.read(&mut []) {
                            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                            _ => {}
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        while socket.wants_write() {
            wait(socket, PollFlags::POLLOUT, until)?;
            socket.push()?;
        }
        Ok(())
    }

    /// Reads the next reply, which is valid until the next call.
    pub(super) fn read(&mut self, until: Instant) -> io::Result<Reply<'_>> {
        self.inbox.copy_within(self.used..self.have, 0);
        (self.have, self.used) = (self.have - self.used, 0);
        let socket = self.socket.as_mut().ok_or(ErrorKind::NotConnected)?;
        loop {
            match resp::parse(&self.inbox[..self.have]) {
                Ok(Some((_, end))) => {
                    self.used = end;
                    break;
                }
                Ok(None) if self.have < self.inbox.len() => {}
                // A bulk string that is longer than anything that was asked for.
                Ok(None) if self.inbox.first() == Some(&b'$') => return Err(ErrorKind::FileTooLarge.into()),
                Ok(None) | Err(Garbage) => return Err(ErrorKind::InvalidData.into()),
            }
            match socket.read(&mut self.inbox[self.have..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => self.have += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait(socket, PollFlags::POLLIN, until)?,
                Err(error) => return Err(error),
            }
        }
        // Parsed a second time for the borrow checker's sake: the reply is small.
        let (reply, _) = resp::parse(&self.inbox[..self.used]).ok().flatten().expect("it was a reply before");
        Ok(reply)
    }

    /// Sends a command and reads its reply. After a failure the line is hung up, since what comes next belongs to
    /// nobody.
    pub(super) fn call(&mut self, words: &[&[u8]], until: Instant) -> io::Result<Reply<'_>> {
        if let Err(error) = self.write(words, until) {
            self.hang_up();
            return Err(error);
        }
        self.read_or_hang_up(until)
    }

    /// The same as [`Self::read`], and the line is hung up if it fails.
    pub(super) fn read_or_hang_up(&mut self, until: Instant) -> io::Result<Reply<'_>> {
        match self.read(until).map(|_| ()) {
            Ok(()) => {
                let (reply, _) = resp::parse(&self.inbox[..self.used]).ok().flatten().expect("it was a reply before");
                Ok(reply)
            }
            Err(error) => {
                self.hang_up();
                Err(error)
            }
        }
    }
}

/// Reads an error reply; `None`: it is none.
pub(super) fn fault_of(reply: &Reply<'_>) -> Option<Fault> {
    match reply {
        Reply::Error(text) => Some(Fault::read(text)),
        _ => None,
    }
}

fn wait(socket: &Socket, flags: PollFlags, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), flags)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
