//! `redis://[user:password@]host[:port][,host[:port]...][/db][?option=value&...]`, and `rediss://` for TLS.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::open_error::OpenError;
use crate::secret::Secret;
use crate::size::bytes;

/// Message for an unknown option.
const OPTIONS: &str = "options are connections, window, ttl-s, read, protocol, nodes, name, password-file, connect-ms, \
    stall-ms, put-ms, keepalive-s, user-timeout-ms, rcvbuf, sndbuf, seed; with rediss:// also ca, cert, key and \
    server-name";
const PORT: u16 = 6379;
/// Connections for blocks from one reader to one node.
pub(super) const CONNECTIONS_MAX: usize = 16;
/// Nodes of a cluster that a store can know.
pub(super) const NODES_MAX: usize = 256;

/// Nodes that blocks are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFrom {
    Master,
    /// Whichever of a shard's nodes has least to do.
    Any,
}

/// TLS, and which certificates to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// PEM file of authorities; without it the system's.
    pub(super) ca: Option<PathBuf>,
    /// The name that certificates must carry; without it the host's.
    pub(super) server_name: Option<String>,
    /// PEM files of our own certificate and its key, for servers that ask for one. Both or none.
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// User and password: the only parts of the URL that may change while the store is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

/// What the URL says, with defaults for what it does not.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// Hosts and ports, at least one.
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) login: Login,
    pub(super) database: u32,
    pub(super) tls: Option<Tls>,
    /// Connections for blocks, from each reader to each node.
    pub(super) connections: usize,
    /// Bytes of blocks in flight on one of them. Half a window fills a link of 10 Gbit/s at 1.6 ms round trip.
    pub(super) window: usize,
    /// Chunks expire this long after their last use.
    pub(super) ttl: Option<Duration>,
    pub(super) read: ReadFrom,
    /// RESP3 where the server has it, or RESP2 always.
    pub(super) resp3: bool,
    /// Places for nodes of a cluster; `None`: twice as many as at start, at least 16.
    pub(super) nodes_max: Option<usize>,
    /// Name that CLIENT LIST shows.
    pub(super) name: String,
    /// Longest time to connect and greet.
    pub(super) connect: Duration,
    /// A server that owes a reply and sends less than 64 KiB of it in this time is stuck.
    pub(super) stall: Duration,
    /// Longest time of one call of a put.
    pub(super) put: Duration,
    pub(super) keepalive: Duration,
    pub(super) user_timeout: Duration,
    /// Socket buffers; `None`: the kernel adapts them, which is what a long fat link wants.
    pub(super) rcvbuf: Option<usize>,
    pub(super) sndbuf: Option<usize>,
    /// Seed of the jitter of retries, for tests.
    pub(super) seed: Option<u64>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("hosts", &self.hosts).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Options {
    /// The URL without the login and the options.
    pub(super) fn shown(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        let hosts: Vec<_> = self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        format!("{scheme}://{}", hosts.join(","))
    }

    /// `Err`: what is wrong and where; nothing of what stands there, which may be a part of a password.
    pub(super) fn parse(url: &str) -> Result<Self, OpenError> {
        let bad = |what: String| OpenError::Option { url: url.into(), what };
        let (scheme, rest) = url.split_once("://").ok_or(bad("write redis://HOST".into()))?;
        let tls = (scheme == "rediss").then(Tls::default);
        // An at sign in a password may be written as it is: the last one counts.
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        if login.is_some_and(|login| login.contains('?')) {
            let what =
                "a ? stands before the last @: in a user or password write %3F for it, in an option %40 for the @";
            return Err(bad(what.into()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => 0,
            digits => digits.parse().map_err(|_| bad("the database behind the / is not a number".into()))?,
        };
        let hosts: Result<Vec<_>, _> =
            hosts.split(',').enumerate().map(|(index, host)| host_of(index + 1, host).map_err(bad)).collect();
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => (None, None),
            Some((user, password)) => {
                let text = |text| decode(text).ok_or(bad("user or password is not UTF-8 when % is undone".into()));
                (
                    Some(text(user)?).filter(|user| !user.is_empty()),
                    Some(text(password)?).filter(|text| !text.is_empty()),
                )
            }
        };
        let mut options = Self {
            hosts: hosts?,
            login: Login { user, password: password.map(Secret::new) },
            database,
            tls,
            connections: 2,
            window: 4 << 20,
            ttl: None,
            read: ReadFrom::Master,
            resp3: true,
            nodes_max: None,
            name: format!("kvlane-dpu-{}", host_name()),
            connect: Duration::from_secs(1),
            stall: Duration::from_secs(2),
            put: Duration::from_secs(5),
            keepalive: Duration::from_secs(30),
            user_timeout: Duration::from_secs(20),
            rcvbuf: None,
            sndbuf: None,
            seed: None,
        };
        for (name, value) in
            query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
        {
            options.set(name, value).map_err(bad)?;
        }
        if options.tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
            return Err(bad("cert=PATH and key=PATH go together: our certificate and its key".into()));
        }
        if options.login.user.is_some() && options.login.password.is_none() {
            return Err(bad(
                "a user without a password: write user:password@, or :password@ for the default user".into()
            ));
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |least: u64, most: u64| {
            let number = value.parse().ok().filter(|n| (least..=most).contains(n));
            number.ok_or(format!("{name} is not a number from {least} to {most}"))
        };
        let size = |least: u64, most: u64| {
            let size = bytes(value).filter(|n| (least..=most).contains(n));
            size.map(|n| n as usize).ok_or(format!("{name} is not a size from {least} to {most} bytes, such as 4M"))
        };
        let millis = || number(1, 3_600_000).map(Duration::from_millis);
        let text = || decode(value).filter(|text| !text.is_empty()).ok_or(format!("{name} has no value"));
        match (name, &mut self.tls) {
            ("connections", _) => self.connections = number(1, CONNECTIONS_MAX as u64)? as usize,
            ("window", _) => self.window = size(64 << 10, 1 << 30)?,
            ("ttl-s", _) => self.ttl = Some(Duration::from_secs(number(1, 10 * 365 * 86_400)?)),
            ("read", _) if value == "master" => self.read = ReadFrom::Master,
            ("read", _) if value == "any" => self.read = ReadFrom::Any,
            ("read", _) => return Err("read is not one of master, any".into()),
            ("protocol", _) => self.resp3 = number(2, 3)? == 3,
            ("nodes", _) => self.nodes_max = Some(number(1, NODES_MAX as u64)? as usize),
            ("name", _) => {
                self.name = text()?;
                if self.name.bytes().any(|b| !b.is_ascii_graphic()) || self.name.len() > 100 {
                    return Err("name is up to 100 printable characters without spaces".into());
                }
            }
            ("password-file", _) => {
                // Not repeated, in case it is the password itself.
                let password =
                    std::fs::read_to_string(text()?).map_err(|error| format!("password-file=PATH: {error}"))?;
                self.login.password = Some(Secret::new(password.trim_end_matches(['\r', '\n']).to_owned()));
            }
            ("connect-ms", _) => self.connect = millis()?,
            ("stall-ms", _) => self.stall = millis()?,
            ("put-ms", _) => self.put = millis()?,
            ("user-timeout-ms", _) => self.user_timeout = millis()?,
            ("keepalive-s", _) => self.keepalive = Duration::from_secs(number(1, 86_400)?),
            ("rcvbuf", _) => self.rcvbuf = Some(size(4 << 10, 1 << 30)?),
            ("sndbuf", _) => self.sndbuf = Some(size(4 << 10, 1 << 30)?),
            ("seed", _) => self.seed = Some(number(0, u64::MAX)?),
            ("ca", Some(tls)) => tls.ca = Some(text()?.into()),
            ("cert", Some(tls)) => tls.cert = Some(text()?.into()),
            ("key", Some(tls)) => tls.key = Some(text()?.into()),
            ("server-name", Some(tls)) => tls.server_name = Some(text()?),
            ("ca" | "cert" | "key" | "server-name", None) => return Err(format!("{name} is for rediss:// only")),
            _ => return Err(OPTIONS.into()),
        }
        Ok(())
    }

    /// The name and addresses of each host, in the order of the URL. Resolves, so Init and the surveyor only.
    pub(super) fn resolve(&self) -> impl Iterator<Item = (String, std::io::Result<Vec<SocketAddr>>)> {
        self.hosts.iter().map(|(host, port)| {
            let found = (host.trim_matches(['[', ']']), *port).to_socket_addrs().map(Iterator::collect);
            (format!("{host}:{port}"), found)
        })
    }
}

/// `HOST[:PORT]`, the `number`th of them. Letters, digits and what else names and addresses have: a piece of a password
/// that ended up here is not taken for a host easily.
fn host_of(number: usize, text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| format!("the port of host {number} is not a number from 0 to 65535"))?)
        }
        _ => (text, PORT),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let known = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || bracketed && ":[]%".contains(c);
    if host.is_empty() || !host.chars().all(known) {
        return Err(format!("host {number} is not HOST or HOST:PORT; an IPv6 address stands in brackets"));
    }
    Ok((host.to_owned(), port))
}

/// Undoes percent encoding: `%` and two hexadecimal digits, anything else stands for itself. `None` where it is not
/// UTF-8.
fn decode(text: &str) -> Option<String> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let pair = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        bytes.push(pair.map_or(*first, |(high, low)| high << 4 | low));
        rest = if pair.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).take(64).collect();
    if name.is_empty() { "unnamed".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_url_is_read() {
        let url = "rediss://kv:p%40ss:w@rd@a,b:7000,[::1]:7001/3?connections=4&window=1M&ttl-s=60&read=any&protocol=2\
                   &ca=/x.pem";
        let options = Options::parse(url).unwrap();
        let hosts = [("a", 6379), ("b", 7000), ("[::1]", 7001)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(options.hosts, hosts);
        let password = options.login.password.as_ref().map(Secret::reveal);
        assert_eq!((options.login.user.as_deref(), password), (Some("kv"), Some("p@ss:w@rd")));
        assert_eq!((options.database, options.connections, options.window), (3, 4, 1 << 20));
        assert_eq!((options.ttl, options.read, options.resp3), (Some(Duration::from_secs(60)), ReadFrom::Any, false));
        assert_eq!(options.tls.unwrap().ca, Some("/x.pem".into()));
        let plain = Options::parse("redis://:secret@localhost").unwrap();
        assert_eq!(plain.login, Login { user: None, password: Some(Secret::new("secret".into())) });
    }

    #[test]
    fn what_is_wrong_is_named_and_passwords_are_not_shown() {
        for (url, what) in [
            ("redis://", "is not HOST"),
            ("redis://a:port", "port"),
            ("redis://::1", "brackets"),
            ("redis://a/b", "database"),
            ("redis://u@a", "without a password"),
            ("redis://a?windows=1", "options are"),
            ("redis://a?window=1", "window is not a size"),
            ("redis://a?connections=0", "from 1 to 16"),
            ("redis://a?ca=/x", "rediss:// only"),
            ("rediss://a?cert=/x", "go together"),
            ("redis://u:topsecret?x@a", "write %3F"),
            ("redis://:%ff@a", "not UTF-8"),
            ("redis://a?password-file=/nonexistent", "password-file"),
            ("redis://u:topsecret@a?read=none", "master, any"),
        ] {
            let error = Options::parse(url).unwrap_err().to_string();
            assert!(error.contains(what) && !error.contains("topsecret"), "{url}: {error}");
        }
    }

    #[test]
    fn only_two_hexadecimal_digits_are_an_escape() {
        for (text, right) in
            [("50%+1off", "50%+1off"), ("100%", "100%"), ("%4", "%4"), ("%zz", "%zz"), ("%40%2f", "@/")]
        {
            assert_eq!(decode(text).as_deref(), Some(right), "{text}");
        }
        assert_eq!(decode("%ff"), None);
    }
}
