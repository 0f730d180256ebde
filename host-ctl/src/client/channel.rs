//! The channel beside the page: doorbells and good-byes, and how a session ends without memory freed under a DMA.

use std::time::{Duration, Instant};

use mailbox::PeerError;
use mailbox::attach::{ATTACH_MESSAGE_MAX, Farewell, Message};

use super::Client;
use crate::error::{Error, Gone};

/// How long a session that has nothing in flight waits for the card to let go of the page.
const LEAVE_IDLE: Duration = Duration::from_millis(200);

impl Client {
    /// Waits until the card ends the session, as after a stop. False when it did not in time.
    pub fn wait_end(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        while self.turn().is_ok() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.line.wait(left).is_err() {
                return false;
            }
            self.hear();
        }
        true
    }

    /// Ends the session in order: waits for what is in flight, says good-bye, and waits for the card to let go of the
    /// memory.
    ///
    /// # Errors
    /// Something was in flight and did not end in time; the memory is then leaked rather than freed under a DMA.
    pub fn close(mut self, timeout: Duration) -> Result<(), Error> {
        let until = Instant::now() + timeout;
        while !self.jobs.is_empty() && self.gone.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { what: "close", waited: timeout });
            }
            self.wait_any(left)?;
        }
        Ok(())
    }

    /// Ends the session whatever is in flight, and says whether the card has let go of the memory: only then may its
    /// pages be given to somebody else. Otherwise the export is leaked, as when a client is dropped.
    pub fn leave(mut self, timeout: Duration) -> bool {
        self.timeout = timeout;
        self.let_go()
    }

    /// Reads what came on the channel.
    pub(super) fn hear(&mut self) {
        self.heard = Instant::now();
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        while self.gone.is_none() {
            self.gone = match self.line.receive(&mut bytes) {
                Ok(None) => return,
                Ok(Some(count)) => match Message::decode(&bytes[..count]) {
                    Ok(Message::Bye(farewell)) => Some(Gone::Left(farewell)),
                    // A doorbell says "look", and looking is what comes next; the rest has no meaning any more.
                    Ok(_) => None,
                    Err(error) => Some(Gone::Babbled(error)),
                },
                Err(_) => Some(Gone::Died),
            };
        }
    }

    pub(super) fn lied(&mut self, error: PeerError) {
        if self.gone.is_none() {
            self.gone = Some(Gone::Lied(error));
            self.say_bye(Farewell::PeerError);
        }
    }

    fn say_bye(&mut self, farewell: Farewell) {
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let bytes = Message::Bye(farewell).encode(&mut bytes).expect("a good-bye always fits");
        // A card that cannot be told will notice the closed channel.
        let _ = self.line.send(bytes);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Client {
    /// The card may be writing. It lets go when it has heard the good-bye and ended what was in flight: then its end of
    /// the channel closes, and not before. Once only: the second call, of `drop` after `leave`, has nothing to do.
    fn let_go(&mut self) -> bool {
        if std::mem::replace(&mut self.left, true) {
            return true;
        }
        let in_flight = self.ring.outstanding() > 0;
        if self.gone.is_none() {
            self.say_bye(Farewell::Done);
        }
        let patience = if in_flight { self.timeout } else { LEAVE_IDLE };
        let let_go = self.gone == Some(Gone::Died) || self.await_close(patience);
        if in_flight && !let_go {
            log::warn!("the card did not let go of {} requests: their memory is leaked", self.ring.outstanding());
            std::mem::forget((self.exporter.take(), self.memory.take()));
        }
        let_go || !in_flight
    }

    fn await_close(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        loop {
            match self.line.receive(&mut bytes) {
                Ok(Some(_)) => {}
                Err(_) => return true,
                Ok(None) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() || self.line.wait(left).is_err() {
                        return false;
                    }
                }
            }
        }
    }
}
