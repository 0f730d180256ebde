//! Hosts that come, ring and leave: who of them has something to say, and who hears it.
//!
//! Visitors (visitors.rs) become sessions (admission.rs), which last until their hosts leave (attached.rs).
//!
//! Unix channels have descriptors, which epoll watches (`Hub::attend`). Comch channels have none: what they bring comes
//! in the engines' progress, and their listener says that there is something (`Hub::attend_progressed`).

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use mailbox::attach::Message;
use mailbox::channel::{Channel, ChannelError};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use crate::hub::{Hub, HubError, tag};

/// Most sockets that one look handles.
const EVENTS_MAX: usize = 16;
/// Messages taken from one socket at a time, so that a babbler cannot hold the others up.
pub(super) const MESSAGES_MAX: usize = 64;

/// Rest of a listener after `accept` failed.
const ACCEPT_REST: Duration = Duration::from_secs(1);

impl Hub<'_, '_> {
    /// Waits up to `timeout` for sockets, engines or workers, and handles the sockets; `true` if there was anything.
    pub(crate) fn attend(&mut self, timeout: EpollTimeout) -> Result<bool, HubError> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(HubError::System { call: "epoll_wait", errno }),
        };
        self.now = Instant::now();
        self.last_attend = self.now;
        for event in &events[..count] {
            let place = event.data() & tag::PLACE;
            match event.data() & !tag::PLACE {
                tag::LISTENER => self.welcome_visitors(place as usize),
                tag::VISITOR => self.hear_visitor(place),
                tag::SESSION => self.hear_session(place as usize),
                tag::STOP => {
                    let _ = self.shared.stop.read();
                    self.drain(true);
                }
                tag::ENGINE => {
                    self.engine.disarm()?;
                    self.armed = false;
                }
                // The bell: the turn looks after the workers.
                _ => {}
            }
        }
        Ok(count > 0)
    }

    /// Handles hosts without descriptors, if the engines' progress brought anything from them; `true` if it did.
    pub(crate) fn attend_progressed(&mut self) -> bool {
        let mut came = false;
        for listener in 0..self.listeners.len() {
            if self.listeners[listener].take_news() {
                came = true;
                self.welcome_visitors(listener);
            }
        }
        if !came {
            return false;
        }
        let mut place = 0;
        while let Some(visitor) = self.visitors.get(place) {
            let (number, has_fd) = (visitor.number, visitor.channel.fd().is_some());
            if !has_fd {
                self.hear_visitor(number);
            }
            // Who is let in or goes makes room for the last one.
            place += usize::from(self.visitors.get(place).is_some_and(|visitor| visitor.number == number));
        }
        for index in 0..self.sessions.len() {
            if self.sessions[index].as_ref().is_some_and(|session| session.channel.fd().is_none()) {
                self.hear_session(index);
            }
        }
        true
    }

    pub(super) fn watch(&self, fd: Option<BorrowedFd<'_>>, tag: u64) {
        let Some(fd) = fd else { return };
        if let Err(errno) = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, tag)) {
            log::error!("epoll_ctl: {}: a visitor will not be heard", errno.desc());
        }
    }

    /// Leaves a listener alone for a while: a host that waits there would be found again at once, and again get no
    /// descriptor.
    pub(super) fn rest(&mut self, listener: usize, error: &ChannelError) {
        log::warn!(
            "{error}: no visitor is let in for {} s: raise the unit's LimitNOFILE (ulimit -n) if it is out of descriptors",
            ACCEPT_REST.as_secs()
        );
        if let Some(fd) = self.listeners[listener].fd() {
            // Not watched any more, or it was not watched before.
            let _ = self.epoll.delete(fd);
            self.rests[listener] = Some(self.now + ACCEPT_REST);
        }
    }

    /// Hears listeners again whose rest is over.
    pub(crate) fn end_rests(&mut self) {
        for listener in 0..self.listeners.len() {
            if self.rests[listener].take_if(|until| *until <= self.now).is_some() {
                self.watch(self.listeners[listener].fd(), tag::LISTENER | listener as u64);
            }
        }
    }
}

/// Sends a message; `false`: the host cannot be told.
pub(super) fn say(channel: &mut dyn Channel, message: &Message<'_>, buffer: &mut [u8]) -> bool {
    let sent = message.encode(buffer).map(|bytes| channel.send(bytes));
    match sent {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            log::debug!("{error}");
            false
        }
        Err(error) => {
            log::error!("{error}");
            false
        }
    }
}
