//! What an error reply means to us: the first word says.

use std::net::SocketAddr;

use super::options::Login;

/// What a server said, as far as it is worth repeating. Short, since it travels in errors without an allocation.
pub(super) type Said = heapless::String<80>;

/// An error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The slot lives there now. `None`: at an address that is a name, or unknown; the map has to be asked for.
    Moved {
        slot: u16,
        to: Option<Redirect>,
    },
    /// This key may live there already: one question to it, after ASKING.
    Ask {
        to: Option<Redirect>,
    },
    /// A server that is starting, failing over, or moving the keys of one command: the same question later.
    Later,
    /// A write came to a replica: the map is old.
    Replica,
    /// Password or user: the connection is of no use.
    Login,
    /// This user may not do this.
    Permission,
    /// Full: `maxmemory` with a policy that evicts nothing more.
    Full,
    /// The server does not take writes (its disk fails, too few replicas).
    ReadOnly,
    /// The key holds another type.
    WrongType,
    NoSuchKey,
    /// The command, or the version that HELLO asks for, is not known.
    Unknown,
    Other,
}

/// An address in a redirect; without a host it is that of the server that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    Address(SocketAddr),
    SameHost(u16),
}

impl Fault {
    pub(super) fn read(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).unwrap_or_default();
        let mut words = text.split(' ');
        match words.next().unwrap_or_default() {
            "MOVED" => match words.next().and_then(|slot| slot.parse().ok()) {
                Some(slot) => Self::Moved { slot, to: words.next().and_then(target) },
                None => Self::Other,
            },
            "ASK" => Self::Ask { to: words.nth(1).and_then(target) },
            "TRYAGAIN" | "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "BUSY" => Self::Later,
            "READONLY" => Self::Replica,
            "NOAUTH" | "WRONGPASS" | "DENIED" => Self::Login,
            "NOPERM" => Self::Permission,
            "OOM" => Self::Full,
            "MISCONF" | "NOREPLICAS" => Self::ReadOnly,
            "WRONGTYPE" => Self::WrongType,
            "NOPROTO" => Self::Unknown,
            "ERR" if text.starts_with("ERR unknown command") => Self::Unknown,
            "ERR" if text.starts_with("ERR no such key") => Self::NoSuchKey,
            "ERR" if text.starts_with("ERR max number of clients") => Self::Later,
            "ERR" if text.contains("invalid password") || text.contains("AUTH") => Self::Login,
            _ => Self::Other,
        }
    }
}

/// An error reply, to be repeated to operators: printable, and without the password. Servers before Redis 6 answer
/// HELLO with all that it was asked with.
pub(super) fn said(text: &[u8], login: &Login) -> Said {
    let text = std::str::from_utf8(text).unwrap_or("an answer that is not text");
    let text = text.split(", with args").next().unwrap_or_default();
    let mut said = Said::new();
    if login.password.as_ref().is_some_and(|password| text.contains(password.reveal())) {
        let _ = said.push_str("an answer that repeats the password");
        return said;
    }
    for c in text.chars() {
        if said.push(if c.is_ascii_graphic() { c } else { ' ' }).is_err() {
            break;
        }
    }
    said
}

fn target(text: &str) -> Option<Redirect> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match host.trim_matches(['[', ']']) {
        "" => Some(Redirect::SameHost(port)),
        host => host.parse().ok().map(|ip| Redirect::Address(SocketAddr::new(ip, port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_servers_has_its_meaning() {
        let at = |text: &str| Some(Redirect::Address(text.parse().unwrap()));
        for (text, fault) in [
            ("MOVED 3999 127.0.0.1:6381", Fault::Moved { slot: 3999, to: at("127.0.0.1:6381") }),
            ("MOVED 1 :6381", Fault::Moved { slot: 1, to: Some(Redirect::SameHost(6381)) }),
            ("MOVED 1 ::1:6381", Fault::Moved { slot: 1, to: at("[::1]:6381") }),
            ("MOVED 1 node.example:6381", Fault::Moved { slot: 1, to: None }),
            ("MOVED", Fault::Other),
            ("ASK 3999 127.0.0.1:6381", Fault::Ask { to: at("127.0.0.1:6381") }),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Fault::Later),
            ("CLUSTERDOWN Hash slot not served", Fault::Later),
            ("READONLY You can't write against a read only replica.", Fault::Replica),
            ("WRONGPASS invalid username-password pair or user is disabled.", Fault::Login),
            ("NOAUTH Authentication required.", Fault::Login),
            ("DENIED Redis is running in protected mode", Fault::Login),
            ("NOPERM this user has no permissions to run the 'hset' command", Fault::Permission),
            ("ERR AUTH <password> called without any password configured for the default user.", Fault::Login),
            ("ERR max number of clients reached", Fault::Later),
            ("ERR unknown command 'RENAME', with args beginning with:", Fault::Unknown),
            ("OOM command not allowed when used memory > 'maxmemory'.", Fault::Full),
            ("MISCONF Redis is configured to save RDB snapshots", Fault::ReadOnly),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Fault::WrongType),
            ("ERR no such key", Fault::NoSuchKey),
            ("ERR unknown command 'HELLO', with args beginning with:", Fault::Unknown),
            ("NOPROTO unsupported protocol version", Fault::Unknown),
            ("", Fault::Other),
        ] {
            assert_eq!(Fault::read(text.as_bytes()), fault, "{text}");
        }
    }

    #[test]
    fn what_a_server_said_is_repeated_without_the_password() {
        let login = super::super::options::Options::parse("redis://:hunter22@h").expect("a URL").login;
        let old = b"ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hunter22`, ";
        assert_eq!(said(old, &login), "ERR unknown command `HELLO`");
        assert_eq!(said(b"ERR hunter22 is wrong", &login), "an answer that repeats the password");
        assert_eq!(said(b"ERR a\x1b[2J\nb", &login), "ERR a [2J b");
        assert_eq!(said(&[b'x'; 500], &login).len(), 80);
    }
}
