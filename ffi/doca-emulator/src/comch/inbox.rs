//! What a server or a client hears in `doca_pe_progress`, other than completions.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::comch::link::Link;
use crate::core::pe::{Addressee, Port};

/// Events that an inbox has room for from the beginning.
const EVENTS: usize = 64;

/// What a context hears in `doca_pe_progress`, other than completions.
#[derive(Clone)]
pub(crate) enum Event {
    /// The handshake is through.
    Joined(Arc<Link>),
    Left(Arc<Link>),
    /// A client found no server, or one that did not want it.
    Refused,
    Message(Arc<Link>, Vec<u8>),
    Consumer(Arc<Link>, u32),
    Expired(Arc<Link>, u32),
}

/// Where the reactor's thread leaves events for its context. The port of the progress engine keeps their order among
/// all contexts.
#[derive(Clone)]
pub(crate) struct Inbox {
    addressee: Addressee,
    port: Arc<Port>,
    events: Arc<Mutex<VecDeque<Event>>>,
}

impl Inbox {
    pub(crate) fn new(addressee: Addressee, port: Arc<Port>) -> Inbox {
        Inbox { addressee, port, events: Arc::new(Mutex::new(VecDeque::with_capacity(EVENTS))) }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, event: Event) {
        self.lock().push_back(event);
        self.port.tell(self.addressee);
    }

    pub(crate) fn next(&self) -> Option<Event> {
        self.lock().pop_front()
    }
}
