//! The card's side: peers come from one host function and are told apart.

use std::fmt;
use std::rc::Rc;
use std::time::Instant;

use super::desk::{CallbackId, Chore};
use super::endpoint::Endpoint;
use super::{ComchLimits, Error, ReceiveError, SendError};
use crate::context::ContextState;
use crate::engine::ProgressEngine;
use crate::error::Code;
use crate::representor::{Representor, RepresentorInfo};

/// Serves one name to one function of the host. Peers and their messages come in the progress of the engine that it was
/// started on.
pub struct Server {
    endpoint: Rc<Endpoint>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("representor", self.representor())
            .field("state", &self.endpoint.state())
            .finish()
    }
}

impl Server {
    /// # Errors
    /// See [`Error`]: the device is no card's, takes less than `limits`, or the name is taken.
    pub fn start(
        engine: &ProgressEngine,
        representor: Representor,
        name: &str,
        limits: ComchLimits,
    ) -> Result<Self, Error> {
        let function = representor.info().pci_address.clone();
        let endpoint = Endpoint::server(engine, representor, name, limits)?;
        endpoint.start().map_err(|error| match error.code {
            Code::ALREADY_EXIST | Code::IN_USE => Error::NameTaken { name: name.to_owned(), function },
            _ => Error::Device(error),
        })?;
        Ok(Self { endpoint: Rc::new(endpoint) })
    }

    /// The function of the host that it serves.
    #[must_use]
    pub fn representor(&self) -> &RepresentorInfo {
        self.endpoint.representor().expect("a server has one").info()
    }

    /// Whether peers or messages came since this was last asked, or messages still wait: then look at all channels.
    #[must_use]
    pub fn take_news(&self) -> bool {
        self.endpoint.at_desk(super::desk::Desk::take_news)
    }

    /// Whether [`Self::take_news`] would answer true; takes nothing.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.endpoint.at_desk(|desk| desk.has_news())
    }

    /// The next peer. Also hangs up on peers whose channel was dropped, after its last words.
    pub fn accept(&mut self) -> Option<Connection> {
        self.revive();
        self.endpoint.flush();
        self.tidy();
        let place = self.endpoint.at_desk(super::desk::Desk::accept)?;
        Some(Connection { endpoint: Rc::clone(&self.endpoint), place })
    }

    fn tidy(&self) {
        let now = Instant::now();
        while let Some(chore) = self.endpoint.at_desk(|desk| desk.chore(now)) {
            let connection = match chore {
                Chore::HangUp(_, connection) | Chore::HangUpSurplus(connection) => connection,
            };
            match self.endpoint.hang_up(connection).map_err(|error| error.code) {
                // Left already: the event is on its way and finds nobody.
                Ok(()) | Err(Code::NOT_CONNECTED) => {}
                Err(code) => log::warn!("comch: doca_comch_server_disconnect answered {code}"),
            }
            if let Chore::HangUp(place, _) = chore {
                self.endpoint.at_desk(|desk| desk.hung_up(place));
            }
        }
    }

    /// A failed task stops its context, and with it all connections: that ends those sessions, not the service.
    fn revive(&self) {
        let state = self.endpoint.state();
        if state == ContextState::Running {
            return;
        }
        self.endpoint.at_desk(super::desk::Desk::leave_all);
        if state == ContextState::Idle {
            log::warn!("comch: the server for {} had stopped and starts again", self.representor());
            if let Err(error) = self.endpoint.start() {
                log::error!("comch: {error}");
            }
        }
    }

    /// Stops the context as a failed task would.
    #[cfg(test)]
    pub(super) fn break_down(&self) {
        self.endpoint.stop();
    }
}

/// One peer. Dropped, the server hangs up once its last words are out.
pub struct Connection {
    endpoint: Rc<Endpoint>,
    place: CallbackId,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("place", &self.place).finish()
    }
}

impl Connection {
    /// # Errors
    /// See [`SendError`]; nothing was sent.
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.endpoint.send(self.place, message)
    }

    /// The next message to the front of `out`, which holds any; `None` if there is none yet.
    ///
    /// # Errors
    /// Returned when no more messages will come.
    pub fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, ReceiveError> {
        self.endpoint.at_desk(|desk| desk.receive(self.place, out))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.endpoint.at_desk(|desk| desk.drop_channel(self.place, Instant::now()));
    }
}

impl Drop for Server {
    /// Gives last words a moment: a good-bye is worth it.
    fn drop(&mut self) {
        self.endpoint.finish(super::LAST_WORDS);
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use std::time::Duration;

    use super::super::Client;
    use super::*;
    use crate::device::{Device, Selector};

    #[test]
    fn a_server_that_a_failed_task_stopped_starts_again() {
        let name = format!("revived-{}", std::process::id());
        let (engine, device) = (ProgressEngine::new().unwrap(), Device::open(&Selector::First).unwrap());
        let info = &Representor::list(&device).unwrap()[0];
        let representor = Representor::open(&device, info).unwrap();
        let limits = ComchLimits { connections: 2, message_bytes: 100 };
        let mut server = Server::start(&engine, representor, &name, limits).unwrap();
        for round in 0..3 {
            let mut client = Client::connect(&device, &name, 100, Duration::from_secs(10)).unwrap();
            let mut peer = loop {
                let _ = engine.progress();
                if let Some(peer) = server.accept() {
                    break peer;
                }
            };
            client.send(b"hello").unwrap();
            let mut out = [0; 100];
            while peer.receive(&mut out).unwrap().is_none() {
                let _ = engine.progress();
            }
            server.break_down();
            while engine.progress() {}
            assert!(server.accept().is_none(), "round {round}");
            assert_eq!(peer.receive(&mut out), Err(ReceiveError::Closed), "its sessions end, the service goes on");
            while client.receive(&mut out) != Err(ReceiveError::Closed) {}
        }
    }
}
