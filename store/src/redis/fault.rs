//! What an error reply means to us: the first word says.

use std::net::SocketAddr;

/// An error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The slot lives there now. `None`: at an address that is a name, or unknown; the map has to be asked for.
    Moved {
        slot: u16,
        to: Option<Target>,
    },
    /// This key may live there already: one question to it, after ASKING.
    Ask {
        to: Option<Target>,
    },
    /// A server that is starting, failing over, or moving the keys of one command: the same question later.
    Later,
    /// A write came to a replica: the map is old.
    Replica,
    /// Password, user or permissions.
    Denied,
    /// Full: `maxmemory` with a policy that evicts nothing more.
    Full,
    /// The server does not take writes (its disk fails, too few replicas).
    ReadOnly,
    /// The key holds another type.
    WrongType,
    NoSuchKey,
    /// HELLO, or its version, is not known.
    Unknown,
    Other,
}

/// An address in a redirect; without a host it is that of the server that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
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
            "NOAUTH" | "NOPERM" | "WRONGPASS" => Self::Denied,
            "OOM" => Self::Full,
            "MISCONF" | "NOREPLICAS" => Self::ReadOnly,
            "WRONGTYPE" => Self::WrongType,
            "NOPROTO" => Self::Unknown,
            "ERR" if text.starts_with("ERR unknown command") => Self::Unknown,
            "ERR" if text.starts_with("ERR no such key") => Self::NoSuchKey,
            "ERR" if text.contains("invalid password") || text.contains("AUTH") => Self::Denied,
            _ => Self::Other,
        }
    }
}

fn target(text: &str) -> Option<Target> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match host.trim_matches(['[', ']']) {
        "" => Some(Target::SameHost(port)),
        host => host.parse().ok().map(|ip| Target::Address(SocketAddr::new(ip, port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_servers_has_its_meaning() {
        let at = |text: &str| Some(Target::Address(text.parse().unwrap()));
        for (text, fault) in [
            ("MOVED 3999 127.0.0.1:6381", Fault::Moved { slot: 3999, to: at("127.0.0.1:6381") }),
            ("MOVED 1 :6381", Fault::Moved { slot: 1, to: Some(Target::SameHost(6381)) }),
            ("MOVED 1 ::1:6381", Fault::Moved { slot: 1, to: at("[::1]:6381") }),
            ("MOVED 1 node.example:6381", Fault::Moved { slot: 1, to: None }),
            ("MOVED", Fault::Other),
            ("ASK 3999 127.0.0.1:6381", Fault::Ask { to: at("127.0.0.1:6381") }),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Fault::Later),
            ("CLUSTERDOWN Hash slot not served", Fault::Later),
            ("READONLY You can't write against a read only replica.", Fault::Replica),
            ("WRONGPASS invalid username-password pair or user is disabled.", Fault::Denied),
            ("NOPERM this user has no permissions to run the 'hset' command", Fault::Denied),
            ("ERR AUTH <password> called without any password configured for the default user.", Fault::Denied),
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
}
