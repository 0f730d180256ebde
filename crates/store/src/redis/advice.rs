//! What an operator can do about what went wrong on the way to a server. Init and the log only: allocates.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use nix::errno::Errno;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::fault::Fault;
use super::greeting::LoginRefusal;
use super::options::{Options, Tls};

/// A lost connection, as the log says it: what to do is thought of only if that is written.
pub(super) struct Lost<'a>(pub(super) &'a io::Error, pub(super) &'a Options);

impl fmt::Display for Lost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&of_loss(self.0, self.1))
    }
}

/// What happened, and what to do.
pub(super) fn of_loss(error: &io::Error, options: &Options) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()).zip(options.tls.as_ref());
    let what = match tls {
        Some((error, tls)) => of_tls(error, tls),
        None => of_socket(error, options.tls.as_ref()).into(),
    };
    format!("{error}: {what}")
}

fn of_tls(error: &TlsError, tls: &Tls) -> String {
    use AlertDescription as Alert;
    let text = match error {
        TlsError::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) if tls.cert.is_none() => {
            "the server asks for a client certificate: give one with cert=PATH&key=PATH (or set tls-auth-clients no \
             there)"
        }
        TlsError::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::UnsupportedCertificate
            | Alert::DecryptError,
        ) => "the server does not take our client certificate: cert= must be signed by an authority that it knows",
        TlsError::InvalidCertificate(error) => return of_certificate(error, tls),
        TlsError::InvalidMessage(_) => "what answers there does not speak TLS: is it redis://, or another port?",
        TlsError::AlertReceived(Alert::ProtocolVersion) | TlsError::PeerIncompatible(_) => {
            "TLS 1.2 or 1.3 is needed: see the server's tls-protocols"
        }
        _ => "see the server's log, and its certificate",
    };
    text.into()
}

fn of_certificate(error: &CertificateError, tls: &Tls) -> String {
    let authority = match &tls.ca {
        Some(path) => format!("those in {}", path.display()),
        None => "this system's".into(),
    };
    match error {
        CertificateError::UnknownIssuer => format!(
            "the server's certificate is signed by no authority of {authority}: give the one that signed it with \
             ca=PATH"
        ),
        CertificateError::Other(inner) if inner.to_string().contains("CaUsedAsEndEntity") => {
            "the server's certificate is an authority itself (self-signed with basicConstraints CA:TRUE, as `openssl \
             req -x509` makes it): sign a certificate for the server with it, or make it again with `-addext \
             basicConstraints=critical,CA:FALSE`, and give that as ca="
                .into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "give a name that is in the certificate as the host, or with server-name=NAME".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired, or this machine's clock is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet, or this machine's clock is wrong".into()
        }
        _ => "see the server's certificate".into(),
    }
}

fn of_socket(error: &io::Error, tls: Option<&Tls>) -> &'static str {
    match (error.raw_os_error().map(Errno::from_raw), error.kind()) {
        (Some(errno @ (Errno::EMFILE | Errno::ENFILE)), _) => crate::open_error::advice(errno).unwrap_or_default(),
        (Some(Errno::ENOBUFS | Errno::ENOMEM), _) => "this machine has no memory left for sockets",
        (_, ErrorKind::ConnectionRefused) => "is it running, and is it what the URL names?",
        (_, ErrorKind::TimedOut) => "is it running, not frozen, and may this machine reach it (firewall)?",
        (_, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => match tls {
            Some(tls) if tls.cert.is_none() => {
                "it hung up: does that port speak TLS, and does it ask for a client certificate (cert=PATH&key=PATH)?"
            }
            _ => "it hung up: does the port ask for TLS (rediss://), or has it too many clients (maxclients)?",
        },
        (_, ErrorKind::InvalidData) => "that is not Redis's protocol: does the port ask for TLS (rediss://)?",
        _ => "may this machine reach it, and is it what the URL names?",
    }
}

/// What to do about a greeting that was refused.
pub(super) fn of_refusal(refusal: &LoginRefusal) -> &'static str {
    let text = refusal.said.as_bytes();
    match (refusal.asked, Fault::read(text)) {
        _ if text.starts_with(b"DENIED") => "protected mode: set a password or `protected-mode no` there",
        (_, Fault::Later) if text.starts_with(b"ERR max") => "raise maxclients there, or use fewer connections=",
        (_, Fault::Later) => "it is starting and passes by itself",
        ("SELECT", Fault::Permission) => "allow it (ACL SETUSER ... +select), or leave the /DATABASE out of the URL",
        ("SELECT", _) => "the server has no such database (a cluster has only 0): see the /DATABASE of the URL",
        (_, Fault::Permission) => "allow it with ACL SETUSER",
        _ => "give user and password in the URL, or the password in password-file=PATH",
    }
}

/// What to do about a command that is refused while all else goes on.
pub(super) fn of_command(fault: Fault, command: &str) -> String {
    match fault {
        Fault::Unknown => format!("{command} is renamed or missing there: give it its name back (rename-command)"),
        _ => format!(
            "allow it: ACL SETUSER ... ~kvlane:* +{} (`host-ctl store-check` tries all)",
            command.to_lowercase()
        ),
    }
}

/// The last cause of an error, where it has several.
pub(super) fn of_resolver(error: &io::Error) -> String {
    let cause = error.source().map_or_else(|| error.to_string(), |source| source.to_string());
    format!("{cause}: can this machine resolve that name (DNS, /etc/hosts)?")
}
