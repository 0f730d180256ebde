//! Visitors: hosts that have connected and not yet finished their attach.
//!
//! A visitor has `attach_timeout` for that; a silent or babbling one is dropped. A refused visitor stays for a moment:
//! cut off in the middle of its attach, it might never read why.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mailbox::attach::{AttachError, Attachment, Intake, Message, PAGE_REGION, Reason, Refuse};
use mailbox::channel::{Channel, ChannelError};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::hub::attend::{MESSAGES_MAX, say};
use crate::hub::events::HubEvent;
use crate::hub::importer::{Imported, Importing};
use crate::hub::{Hub, tag};
use crate::workers::board::HubState;

/// Time for a refused visitor to read why.
const REFUSED_LINGER: Duration = Duration::from_secs(1);
/// Refused visitors that linger; a further one takes the place of the oldest.
pub(crate) const REFUSED_MAX: usize = 8;
/// Messages that a refused visitor may have sent before it reads why: more than the longest attach.
const REFUSED_MESSAGES_MAX: usize = 512;

/// Local visitors beyond those that there are places for: one of them may be the operator.
pub(crate) const OPERATORS_MAX: usize = 4;

/// A host in the middle of its attach.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(super) channel: Box<dyn Channel>,
    intake: Intake,
    pub(crate) until: Instant,
    /// Its name in epoll's user data.
    pub(super) number: u64,
    /// Import of its exports, once it has said everything; what it says meanwhile waits.
    importing: Option<Importing>,
    /// Count of the messages that it sent, and that were dropped, since it was told why it is not let in.
    refused: Option<usize>,
    /// Its imported memory, while it waits for the operator's place.
    pub(super) ready: Option<Box<Imported>>,
}

impl Visitor {
    /// Tells whether it came by the card's own socket, so that the kernel knows its process.
    pub(super) fn is_local(&self) -> bool {
        self.channel.peer().is_some()
    }
}

impl Hub<'_, '_> {
    pub(super) fn welcome_visitors(&mut self, listener: usize) {
        loop {
            let channel = match self.listeners[listener].accept() {
                Ok(Some(channel)) => channel,
                Ok(None) => return,
                Err(error) => return self.rest(listener, &error),
            };
            let config = self.shared.config;
            let visitors = self.visitors.iter().filter(|visitor| visitor.refused.is_none()).count();
            let taken = self.sessions.iter().flatten().count() + visitors;
            let refusal = if self.state != HubState::Steady
                && !matches!(self.state, HubState::Draining { leave: false })
            {
                Some(Refuse::new(Reason::Draining, 0, 0))
            } else if taken >= if channel.peer().is_some() { config.places() + OPERATORS_MAX } else { config.sessions }
            {
                Some(Refuse::new(Reason::Sessions, config.sessions as u64, taken as u64))
            } else {
                None
            };
            self.sessions_seen = self.sessions_seen.wrapping_add(1);
            let number = u64::from(self.sessions_seen);
            self.watch(channel.fd(), tag::VISITOR | number);
            let until = self.now + config.attach_timeout.get();
            let (intake, importing) = (Intake::new(), None);
            let visitor = Visitor { channel, intake, until, number, importing, refused: None, ready: None };
            match refusal {
                Some(refusal) => self.refuse(visitor, refusal),
                None => self.visitors.push(visitor),
            }
        }
    }

    /// Tells a visitor why it is not let in, and lets it linger.
    pub(super) fn refuse(&mut self, mut visitor: Visitor, refusal: Refuse) {
        self.events.add(HubEvent::Refused, u64::from(refusal.reason));
        if !say(visitor.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer) {
            return;
        }
        let is_refused = |visitor: &Visitor| visitor.refused.is_some();
        if self.visitors.iter().filter(|visitor| is_refused(visitor)).count() >= REFUSED_MAX {
            let lingering = self.visitors.iter().enumerate().filter(|(_, visitor)| is_refused(visitor));
            let oldest = lingering.min_by_key(|(_, visitor)| visitor.until).map(|(place, _)| place);
            self.visitors.swap_remove(oldest.expect("just counted"));
        }
        visitor.refused = Some(0);
        visitor.until = self.now + REFUSED_LINGER;
        self.visitors.push(visitor);
    }

    pub(super) fn hear_visitor(&mut self, number: u64) {
        let Some(place) = self.visitors.iter().position(|visitor| visitor.number == number) else { return };
        if let Some(importing) = &self.visitors[place].importing {
            let Some(imported) = importing.take() else { return };
            let visitor = self.visitors.swap_remove(place);
            return self.end_import(imported, visitor);
        }
        for _ in 0..MESSAGES_MAX {
            let visitor = &mut self.visitors[place];
            let refusal = match (visitor.channel.receive(&mut self.attach_buffer), visitor.refused.as_mut()) {
                (Ok(None), _) => return,
                (Ok(Some(_)), Some(dropped)) if *dropped < REFUSED_MESSAGES_MAX => {
                    *dropped += 1;
                    continue;
                }
                (Err(ChannelError::Closed), _) | (_, Some(_)) => {
                    self.visitors.swap_remove(place);
                    return;
                }
                (Err(error), None) => {
                    log::warn!("visitor: {error}");
                    Refuse::new(Reason::Malformed, 0, 0)
                }
                (Ok(Some(bytes)), None) => match Message::decode(&self.attach_buffer[..bytes]) {
                    Err(AttachError::Version { theirs, .. }) => Refuse::version(theirs),
                    Err(error) => {
                        log::warn!("visitor: {error}");
                        Refuse::new(Reason::Malformed, 0, 0)
                    }
                    Ok(message) => match visitor.intake.take(&message) {
                        Ok(None) => continue,
                        Ok(Some(attachment)) => return self.begin_import(place, attachment),
                        Err(refusal) => refusal,
                    },
                },
            };
            let visitor = self.visitors.swap_remove(place);
            log::warn!("visitor refused: {refusal}");
            return self.refuse(visitor, refusal);
        }
    }

    pub(crate) fn expire_visitors(&mut self) {
        let now = self.now;
        self.visitors.retain(|visitor| {
            let late = visitor.until <= now;
            if late && visitor.refused.is_none() {
                log::warn!("a visitor did not finish its attach in time: dropped");
            }
            !late
        });
    }

    /// Starts to import what a visitor has exported, which has said everything, on a thread that waits for that alone.
    fn begin_import(&mut self, place: usize, attachment: Attachment) {
        let visitor = &mut self.visitors[place];
        match Importing::begin(&self.device, attachment, visitor.until) {
            Ok(importing) => {
                // A socket that has more to say, or hangs up, would be readable all the time.
                let _ = visitor.channel.fd().map(|fd| self.epoll.delete(fd));
                let (number, importing) = (visitor.number, visitor.importing.insert(importing));
                let event = EpollEvent::new(EpollFlags::EPOLLIN, tag::VISITOR | number);
                if let Err(errno) = self.epoll.add(importing.as_fd(), event) {
                    log::error!("epoll_ctl: {}: a visitor will not be heard", errno.desc());
                }
            }
            Err(error) => {
                log::error!("visitor: its memory cannot be imported: {error}");
                let visitor = self.visitors.swap_remove(place);
                self.refuse(visitor, Refuse::new(Reason::Region, 0, PAGE_REGION.into()));
            }
        }
    }

    /// Takes the import from its thread; the visitor's own channel is heard again.
    fn end_import(&mut self, imported: Imported, mut visitor: Visitor) {
        if let Some(importing) = visitor.importing.take() {
            let _ = self.epoll.delete(importing.as_fd());
        }
        self.watch(visitor.channel.fd(), tag::VISITOR | visitor.number);
        self.admit(imported, visitor);
    }
}
