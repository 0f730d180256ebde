//! `--metrics ADDR:PORT`: a small HTTP server for the operator's monitoring, in a thread of its own that asks for
//! little.
//!
//! ```text
//!   /metrics      Prometheus text, version 0.0.4                    families.rs, docs/metrics.md
//!   /healthcheck  200, or 503 and why this card should get no work  health.rs
//!   /status       the JSON of `host-ctl status --json`              status.rs
//!   /config       what start-up prints, as JSON
//! ```
//! It reads counters, takes no lock that a worker may want, and asks the engine thread to show itself (board.rs) at
//! most every 100 ms; an engine thread that does not answer costs it a quarter of a second, once. All memory is taken
//! at start: a fixed table of connections with fixed buffers, none of which may stay longer than two seconds, whatever
//! its client does. When the table is full the oldest makes room for the newest.
//!
//! It refuses: methods other than GET and HEAD, request heads over 4 KiB, and to keep a connection open after its
//! answer. Nothing can be changed through it. It knows no passwords and no TLS: on another address than loopback
//! whoever can reach it can read it.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::count::json::Quoted;
use crate::workers::shared::Shared;

mod clerk;
mod connection;
mod families;
mod family;
mod health;
mod nodes;
mod process;
mod tiers;

use clerk::Clerk;
use connection::HttpConnection;
pub use families::all as families;
pub use family::MetricKind;

/// Connections at the same time.
pub const CONNECTIONS_MAX: usize = 8;
/// Bytes of the longest request head.
pub const REQUEST_BYTES: usize = 4 << 10;
/// Bytes of the longest answer: 18 KiB now, and room for families with a `node` label.
pub const REPLY_BYTES: usize = 64 << 10;
/// Longest life of a connection, from being accepted to being closed.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Rest after `accept` failed: it is out of descriptors, and would fail again at once.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// `nice` of the thread: everything else goes first, and on a card that is busy it still gets a tenth of a core.
const NICE: i32 = 10;

/// Counts the bytes of all connections.
#[must_use]
pub(crate) fn memory_bytes() -> usize {
    CONNECTIONS_MAX * (REQUEST_BYTES + connection::HEAD_BYTES + REPLY_BYTES)
}

/// Parses `ADDR:PORT`, or a port alone, which means loopback.
///
/// # Errors
/// It is neither.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let port = text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text);
    port.parse().map(loopback).or_else(|_| text.parse()).map_err(|_| {
        format!("`{text}` is no ADDR:PORT: give an IP address and a port, e.g. 127.0.0.1:9400, or [::1]:9400, or a port alone")
    })
}

/// A socket that listens, before anything else of the data plane is there.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
    leave: EventFd,
}

impl MetricsServer {
    /// # Errors
    /// The address cannot be had.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            log::warn!("metrics on {address}: whoever can reach this address can read them, without a password");
        }
        let leave = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { listener, address, leave })
    }

    /// Starts the thread. It leaves when what this returns is dropped.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start<'scope, 'env, 's: 'env>(
        &'env self,
        scope: &'scope thread::Scope<'scope, 'env>,
        shared: &'env Shared<'s>,
        device: &str,
        settings: &[(&str, String)],
    ) -> io::Result<ServerGuard<'env>> {
        let clerk = Clerk::new(shared, config_text(shared, device, settings, self.address));
        let table = (0..CONNECTIONS_MAX).map(|_| HttpConnection::new()).collect();
        let body = move || {
            // Refused where a seccomp filter says so: then it is a thread like the others.
            let _ = rustix::process::nice(NICE);
            Desk { server: self, table, clerk }.run();
        };
        thread::Builder::new().name(String::from("metrics")).spawn_scoped(scope, body)?;
        log::info!("metrics on http://{}/metrics", self.address);
        Ok(ServerGuard(&self.leave))
    }
}

/// Ends the metrics thread when it is dropped.
#[derive(Debug)]
pub(crate) struct ServerGuard<'a>(&'a EventFd);

impl Drop for ServerGuard<'_> {
    fn drop(&mut self) {
        // Fails only if the counter is at its maximum, and then it is readable anyway.
        let _ = self.0.write(1);
    }
}

/// Writes the answer of `/config`: every value that start-up prints.
fn config_text(shared: &Shared<'_>, device: &str, settings: &[(&str, String)], address: SocketAddr) -> String {
    let mut text = String::new();
    let (version, flavour) = (Quoted(env!("CARGO_PKG_VERSION")), Quoted(doca::FLAVOUR));
    let _ = write!(text, "{{\"version\":{version},\"flavour\":{flavour},\"device\":{}", Quoted(device));
    let _ = write!(text, ",\"store\":{},\"metrics\":\"{address}\"", Quoted(&shared.store.describe()));
    let _ = write!(text, ",\"socket\":{}", Quoted(&shared.config.socket.display().to_string()));
    for (index, (name, value)) in settings.iter().enumerate() {
        let before = if index == 0 { ",\"limits\":{" } else { "," };
        let _ = write!(text, "{before}{}:{}", Quoted(name), Quoted(value));
    }
    text.push_str("}}\n");
    text
}

/// The thread's connections, and who answers them.
struct Desk<'a, 's> {
    server: &'a MetricsServer,
    table: Vec<HttpConnection>,
    clerk: Clerk<'a, 's>,
}

impl Desk<'_, '_> {
    fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => return log::error!("metrics: {error}: no metrics any more"),
            };
            if ready.leave {
                return;
            }
            let now = Instant::now();
            for (place, connection) in self.table.iter_mut().enumerate() {
                if ready.connections & 1 << place != 0 {
                    connection.advance(&mut self.clerk);
                }
                connection.expire(now);
            }
            if ready.listener {
                self.accept(now);
            }
        }
    }

    /// Sleeps until a socket is ready or a connection has been there for too long.
    fn wait(&self) -> Result<Ready, nix::Error> {
        let mut fds = heapless::Vec::<PollFd<'_>, { CONNECTIONS_MAX + 2 }>::new();
        let mut places = heapless::Vec::<usize, CONNECTIONS_MAX>::new();
        let mut add = |fd, flags| fds.push(PollFd::new(fd, flags)).expect("a place for each");
        add(self.server.leave.as_fd(), PollFlags::POLLIN);
        add(self.server.listener.as_fd(), PollFlags::POLLIN);
        for (place, connection) in self.table.iter().enumerate() {
            if let Some((socket, flags)) = connection.waits_for() {
                add(socket, flags);
                places.push(place).expect("a place for each");
            }
        }
        let next = self.table.iter().filter_map(HttpConnection::until).min();
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).expect("a connection has seconds, not weeks")
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let connections =
            places.iter().zip(&fds[2..]).filter(|(_, fd)| is_ready(fd)).fold(0, |set, (place, _)| set | 1 << place);
        Ok(Ready { leave: is_ready(&fds[0]), listener: is_ready(&fds[1]), connections })
    }

    /// Takes one visitor; the next is found by the next look, after those that are there had their turn.
    fn accept(&mut self, now: Instant) {
        let socket = match self.server.listener.accept() {
            Ok((socket, _)) => socket,
            // Gone before we looked: nobody to serve.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                return;
            }
            Err(error) => {
                log::debug!("metrics: accept: {error}");
                return thread::sleep(ACCEPT_REST);
            }
        };
        let oldest = self.table.iter_mut().min_by_key(|connection| connection.until()).expect("the table has places");
        oldest.open(socket, now + CONNECTION_TIMEOUT);
    }
}

/// What [`Desk::wait`] found.
struct Ready {
    leave: bool,
    listener: bool,
    /// Connections that are ready, a bit for each place.
    connections: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_loopback_unless_it_says_otherwise() {
        for text in ["9400", ":9400", "localhost:9400", "127.0.0.1:9400"] {
            assert_eq!(address(text).unwrap().to_string(), "127.0.0.1:9400", "{text}");
        }
        assert_eq!(address("[::1]:9400").unwrap().to_string(), "[::1]:9400");
        assert_eq!(address("0.0.0.0:0").unwrap().to_string(), "0.0.0.0:0");
        for text in ["", "card:9400", "127.0.0.1", "70000", "::1:9400:x"] {
            assert!(address(text).unwrap_err().contains("ADDR:PORT"), "{text}");
        }
    }
}
