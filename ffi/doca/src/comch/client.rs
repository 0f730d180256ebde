//! The host's side: one connection to the card that this machine's device belongs to.

use std::fmt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::desk::{CallbackId, RawConnection};
use super::endpoint::Endpoint;
use super::{ComchLimits, Error, ReceiveError, SendError};
use crate::context::ContextState;
use crate::device::Device;
use crate::engine::ProgressEngine;
use crate::error::Code;

/// A client's one connection.
pub(super) const PLACE: CallbackId = CallbackId { index: 0, generation: 1 };

/// Longest time that last words may take.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Times that a device without room for a message is asked again at once.
const TRIES: usize = 100;

/// A connection, on a progress engine of its own.
pub struct Client {
    endpoint: Endpoint,
}

// SAFETY: DOCA locks nothing and has no thread affinity: what is used by one thread at a time may move between threads.
// The engine was made here and no clone of it (an Rc) leaves the endpoint, so whoever has the client has all of it;
// desks are behind a lock.
unsafe impl Send for Client {}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("device", self.endpoint.device()).field("state", &self.endpoint.state()).finish()
    }
}

impl Client {
    /// Connects to whoever serves `name` to this device's function.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn connect(device: &Device, name: &str, message_bytes: usize, timeout: Duration) -> Result<Self, Error> {
        let until = Instant::now() + timeout;
        let engine = ProgressEngine::new()?;
        let limits = ComchLimits { connections: 1, message_bytes };
        let client = Self { endpoint: Endpoint::client(&engine, device, name, limits)? };
        drop(engine);
        // Messages may come before we know how DOCA calls the connection.
        let place = client.endpoint.at_desk(|desk| desk.join(RawConnection(std::ptr::null_mut())));
        debug_assert_eq!(place, Some(PLACE), "a fresh desk");
        match client.endpoint.start().map_err(|error| (error.code, error)) {
            Ok(()) | Err((Code::IN_PROGRESS, _)) => {}
            Err((_, error)) => return Err(error.into()),
        }
        let nobody = || Error::NobodyThere { name: name.to_owned(), function: device.info().pci_address.clone() };
        loop {
            while client.endpoint.engine().progress() {}
            match client.endpoint.state() {
                ContextState::Running => break,
                ContextState::Starting => {}
                ContextState::Stopping | ContextState::Idle => return Err(nobody()),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { name: name.to_owned(), waited: timeout });
            }
            client.sleep(left)?;
        }
        let connection = client.endpoint.connection()?;
        client.endpoint.at_desk(|desk| desk.rename(PLACE, connection));
        Ok(client)
    }

    /// # Errors
    /// See [`SendError`]; nothing was sent.
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let sent = match self.endpoint.send(PLACE, message) {
            // Completions that nobody has looked for may have made room.
            Err(SendError::Full) => {
                while self.endpoint.engine().progress() {}
                self.endpoint.send(PLACE, message)
            }
            sent => sent,
        };
        // A device without room is asked again by the next call of anything; who calls nothing meanwhile may wait for
        // the answer to this very message.
        for _ in 0..TRIES {
            if !self.endpoint.at_desk(|desk| desk.is_waiting()) {
                break;
            }
            while self.endpoint.engine().progress() {}
            self.endpoint.flush();
        }
        sent
    }

    /// The next message to the front of `out`, which holds any; `None` if there is none yet.
    ///
    /// # Errors
    /// Returned when no more messages will come.
    pub fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, ReceiveError> {
        // The inbox is as long as the receive queue: one call brings no more than it holds, so look between two.
        self.endpoint.flush();
        loop {
            match self.endpoint.at_desk(|desk| desk.receive(PLACE, out)) {
                Ok(None) if self.endpoint.engine().progress() => {}
                Ok(None) if self.endpoint.state() != ContextState::Running => return Err(ReceiveError::Closed),
                received => return received,
            }
        }
    }

    /// Waits until a message or the end of the connection has come; false when time ran out first. May be early.
    ///
    /// # Errors
    /// What the DOCA calls or the system answered.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, crate::Error> {
        self.wait_for(timeout, |endpoint| endpoint.at_desk(|desk| desk.has_message(PLACE)))
    }

    /// Waits as [`Self::wait`] does, and for room for a message, too.
    ///
    /// # Errors
    /// Those of [`Self::wait`].
    pub fn wait_for_room(&mut self, timeout: Duration) -> Result<bool, crate::Error> {
        self.wait_for(timeout, |endpoint| endpoint.at_desk(|desk| desk.has_room(PLACE)))
    }

    fn wait_for(&mut self, timeout: Duration, is_there: impl Fn(&Endpoint) -> bool) -> Result<bool, crate::Error> {
        let until = Instant::now() + timeout;
        loop {
            while !is_there(&self.endpoint) && self.endpoint.engine().progress() {}
            self.endpoint.flush();
            if is_there(&self.endpoint) || self.endpoint.state() != ContextState::Running {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // No completion has to come before the device takes what waits.
            let waits = self.endpoint.at_desk(|desk| desk.is_waiting());
            self.sleep(if waits { left.min(Duration::from_millis(1)) } else { left })?;
        }
    }

    /// Sleeps until there is something to progress. It was progressed until nothing happened: what has come since then
    /// makes the descriptor readable once it is armed (DOCA Core guide, notification-driven waiting).
    fn sleep(&self, timeout: Duration) -> Result<(), crate::Error> {
        let engine = self.endpoint.engine();
        engine.arm()?;
        // Rounded up: a wait of 0 ms in a loop is a spin.
        let ms = timeout.as_nanos().div_ceil(1_000_000).min(60_000) as u16;
        let polled = poll(&mut [PollFd::new(engine.fd(), PollFlags::POLLIN)], PollTimeout::from(ms));
        engine.disarm()?;
        match polled {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(_) => Err(crate::Error::new("poll", Code::IO_FAILED)),
        }
    }
}

impl Drop for Client {
    /// Last words first: stopping flushes what is not out yet.
    fn drop(&mut self) {
        self.endpoint.finish(LAST_WORDS);
    }
}
