//! Tells systemd how the engine thread is: one datagram of text to the socket that the environment names, as
//! sd_notify(3) says. `READY=1` once hosts can attach, `WATCHDOG=1` from its turns, `STOPPING=1` when it drains to
//! leave.
//!
//! Nobody else pings: an engine thread that stands still is silent, and systemd starts a new process. It never blocks
//! and never fails the data plane: without a supervisor nobody listens, and that is fine.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::config::Watchdog;

/// Pings per watchdog interval: two may be lost.
const PINGS: u32 = 3;

/// The engine thread's connection to its supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    line: Option<(UnixDatagram, Watchdog)>,
    last_ping: Option<Instant>,
}

impl Supervisor {
    pub(crate) fn new(target: Option<&Watchdog>) -> io::Result<Self> {
        let line = target.map(|target| -> io::Result<_> {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok((socket, target.clone()))
        });
        Ok(Self { line: line.transpose()?, last_ping: None })
    }

    pub(crate) fn ready(&self) {
        self.say("READY=1\nSTATUS=hosts can attach");
    }

    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=draining");
    }

    /// Pings if it is time. Called in every turn.
    pub(crate) fn alive(&mut self, now: Instant) {
        let Some(every) = self.every() else { return };
        if self.last_ping.is_none_or(|last| now.saturating_duration_since(last) >= every) {
            self.say("WATCHDOG=1");
            self.last_ping = Some(now);
        }
    }

    /// Returns when the engine thread has to be awake for the next ping.
    pub(crate) fn next_ping(&self) -> Option<Instant> {
        Some(self.last_ping? + self.every()?)
    }

    fn every(&self) -> Option<Duration> {
        self.line.as_ref()?.1.interval.map(|limit| limit / PINGS)
    }

    fn say(&self, what: &str) {
        let Some((socket, target)) = &self.line else { return };
        if let Err(error) = socket.send_to_addr(what.as_bytes(), &target.address) {
            // The supervisor will say what it missed, and the next ping tries again.
            log::debug!("supervisor: {what:?}: {error}");
        }
    }
}
