//! What callbacks leave for the channels of one server or client, and the table of the process through which they find
//! it.
//!
//! ```text
//!            peer connects          the peer leaves            the channel is dropped
//!   Free -------------------> Open -----------------> Left ----------------------------> Free
//!                              |  the channel is dropped        the last words are out, or took too long
//!                              '------------------------> Open, dropped ------------------> Free (disconnected)
//! ```
//! No DOCA call is made from here: whoever holds the lock returns soon.

use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use doca_sys as sys;

use super::outbox::{Outbox, Parcel};
use super::{ComchLimits, LAST_WORDS, RECEIVED_MAX, ReceiveError, SENDING_MAX, SendError};

/// Names a desk, or a place at one, to DOCA and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallbackId {
    pub index: u32,
    pub generation: u32,
}

impl CallbackId {
    /// The name of nothing: generations of desks and places begin with 1.
    pub(super) const NONE: Self = Self { index: 0, generation: 0 };

    pub(super) fn word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn of(word: u64) -> Self {
        Self { index: word as u32, generation: (word >> 32) as u32 }
    }
}

/// DOCA's name of a connection: passed back to DOCA by its own thread, never looked behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawConnection(pub *mut sys::doca_comch_connection);

// SAFETY: a name here; only the thread that drives its engine passes it on.
unsafe impl Send for RawConnection {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Open,
    /// The peer is gone, and with it DOCA's connection.
    Left,
}

/// Messages that came, oldest first, in places of fixed size.
#[derive(Debug)]
struct Inbox {
    bytes: Box<[u8]>,
    lengths: [usize; RECEIVED_MAX],
    message_bytes: usize,
    first: usize,
    count: usize,
}

impl Inbox {
    /// Makes an inbox without memory, which its first connection takes.
    fn new(message_bytes: usize) -> Self {
        let bytes = Box::default();
        Self { bytes, lengths: [0; RECEIVED_MAX], message_bytes, first: 0, count: 0 }
    }

    /// Empties the inbox for a connection that begins.
    fn clear(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = vec![0; self.message_bytes * RECEIVED_MAX].into_boxed_slice();
        }
        (self.first, self.count) = (0, 0);
    }

    /// False if there is no room for it.
    fn push(&mut self, message: &[u8]) -> bool {
        if self.count == RECEIVED_MAX || message.len() > self.message_bytes {
            return false;
        }
        let at = (self.first + self.count) % RECEIVED_MAX;
        self.bytes[at * self.message_bytes..][..message.len()].copy_from_slice(message);
        self.lengths[at] = message.len();
        self.count += 1;
        true
    }

    fn pop(&mut self, out: &mut [u8]) -> Option<usize> {
        self.count = self.count.checked_sub(1)?;
        let (at, length) = (self.first, self.lengths[self.first]);
        self.first = (self.first + 1) % RECEIVED_MAX;
        out[..length].copy_from_slice(&self.bytes[at * self.message_bytes..][..length]);
        Some(length)
    }
}

/// One connection.
#[derive(Debug)]
struct PeerState {
    generation: u32,
    state: State,
    connection: RawConnection,
    inbox: Inbox,
    /// The peer does not take what it must, or sends what it must not.
    has_babbled: bool,
    /// A message could not be sent: nothing that follows would be in order.
    is_broken: bool,
    /// When the channel was dropped.
    dropped: Option<Instant>,
}

/// All connections of one server, or the one of a client.
#[derive(Debug)]
pub(super) struct Desk {
    places: Box<[PeerState]>,
    outbox: Outbox,
    message_bytes: usize,
    /// Places whose peers nobody has accepted.
    newcomers: VecDeque<usize>,
    /// Packed, and not with DOCA yet: it had no room. In order.
    waiting: VecDeque<(CallbackId, Parcel, usize)>,
    /// Connections that found no place, to be hung up on.
    surplus: Vec<RawConnection>,
    /// Something changed since it was last asked.
    has_news: bool,
    /// Messages that wait, of all connections.
    unread: usize,
}

/// What is to be done about a connection, by whoever may call DOCA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// It has a channel no more: hang up, then say [`Desk::hung_up`].
    HangUp(CallbackId, RawConnection),
    HangUpSurplus(RawConnection),
}

impl Desk {
    /// `connections_max`: what the device admits, however few places there are.
    pub(super) fn new(limits: ComchLimits, connections_max: usize) -> Self {
        let place = || PeerState {
            generation: 1,
            state: State::Free,
            connection: RawConnection(std::ptr::null_mut()),
            inbox: Inbox::new(limits.message_bytes),
            has_babbled: false,
            is_broken: false,
            dropped: None,
        };
        Self {
            places: (0..limits.connections).map(|_| place()).collect(),
            outbox: Outbox::new(limits.connections * SENDING_MAX, limits.message_bytes),
            message_bytes: limits.message_bytes,
            newcomers: VecDeque::with_capacity(limits.connections),
            waiting: VecDeque::with_capacity(limits.connections * SENDING_MAX),
            surplus: Vec::with_capacity(connections_max),
            has_news: false,
            unread: 0,
        }
    }

    fn place(&mut self, id: CallbackId) -> Option<&mut PeerState> {
        let place = self.places.get_mut(id.index as usize)?;
        (place.generation == id.generation && place.state != State::Free).then_some(place)
    }

    fn parcels(index: u32) -> Range<usize> {
        let first = index as usize * SENDING_MAX;
        first..first + SENDING_MAX
    }

    /// A peer has connected: its id, or `None` if all places are taken.
    pub(super) fn join(&mut self, connection: RawConnection) -> Option<CallbackId> {
        self.has_news = true;
        let outbox = &self.outbox;
        let is_free = |(index, place): &(usize, &mut PeerState)| {
            place.state == State::Free && outbox.sending(Self::parcels(*index as u32)) == 0
        };
        let Some((index, place)) = self.places.iter_mut().enumerate().find(is_free) else {
            debug_assert!(self.surplus.len() < self.surplus.capacity(), "DOCA admits no more connections than it said");
            if self.surplus.len() < self.surplus.capacity() {
                self.surplus.push(connection);
            }
            return None;
        };
        (place.state, place.connection, place.dropped) = (State::Open, connection, None);
        place.inbox.clear();
        (place.has_babbled, place.is_broken) = (false, false);
        self.newcomers.push_back(index);
        Some(CallbackId { index: index as u32, generation: place.generation })
    }

    /// A client learns its connection's handle only once it is connected, and may have heard messages by then.
    pub(super) fn rename(&mut self, id: CallbackId, connection: RawConnection) {
        if let Some(place) = self.place(id) {
            place.connection = connection;
        }
    }

    /// The peer is gone.
    pub(super) fn leave(&mut self, id: CallbackId, connection: RawConnection) {
        self.has_news = true;
        self.surplus.retain(|other| *other != connection);
        if let Some(place) = self.place(id) {
            place.state = State::Left;
        }
    }

    /// Marks all peers as gone, because the context has stopped.
    pub(super) fn leave_all(&mut self) {
        self.has_news = true;
        self.surplus.clear();
        for place in self.places.iter_mut().filter(|place| place.state == State::Open) {
            place.state = State::Left;
        }
    }

    pub(super) fn deliver(&mut self, id: CallbackId, message: &[u8]) {
        // From one that babbles, or whose channel is gone, nothing is news.
        if let Some(place) = self.place(id).filter(|place| place.dropped.is_none() && !place.has_babbled) {
            let fits = place.inbox.push(message);
            place.has_babbled = !fits;
            self.unread += usize::from(fits);
            self.has_news = true;
        }
    }

    /// A send has completed.
    pub(super) fn sent(&mut self, parcel: CallbackId, well: bool) {
        if !self.outbox.release(parcel.index as usize, parcel.generation) {
            return;
        }
        if let Some(place) = self.places.get_mut(parcel.index as usize / SENDING_MAX) {
            // News for a dropped channel only: it may be over now.
            self.has_news |= place.dropped.is_some() || !well;
            place.is_broken |= !well && place.state == State::Open;
        }
    }

    /// The next peer.
    pub(super) fn accept(&mut self) -> Option<CallbackId> {
        let index = self.newcomers.pop_front()?;
        Some(CallbackId { index: index as u32, generation: self.places[index].generation })
    }

    /// Copies a message to where DOCA may read it; it waits behind those before it.
    pub(super) fn pack(&mut self, id: CallbackId, message: &[u8]) -> Result<(), SendError> {
        if message.is_empty() || message.len() > self.message_bytes {
            return Err(SendError::Length);
        }
        if !self.is_up(id) {
            return Err(SendError::Closed);
        }
        let parcel = self.outbox.put(Self::parcels(id.index), message).ok_or(SendError::Full)?;
        self.waiting.push_back((id, parcel, message.len()));
        Ok(())
    }

    /// Whether messages can still be sent there.
    pub(super) fn is_up(&mut self, id: CallbackId) -> bool {
        self.place(id).is_some_and(|place| place.state == State::Open && !place.is_broken)
    }

    /// The message to give to DOCA next: its connection, and its bytes. Those for peers that are gone are dropped.
    pub(super) fn next_parcel(&mut self) -> Option<(RawConnection, Parcel, NonNull<u8>, usize)> {
        while let Some(&(id, parcel, bytes)) = self.waiting.front() {
            if self.is_up(id) {
                let connection = self.place(id)?.connection;
                return Some((connection, parcel, self.outbox.first_of(parcel.index), bytes));
            }
            self.drop_parcel();
        }
        None
    }

    /// DOCA has the next parcel.
    pub(super) fn posted(&mut self) {
        self.waiting.pop_front();
    }

    /// DOCA will not take the next parcel: what would follow it is out of order.
    pub(super) fn refuse_parcel(&mut self) {
        self.has_news = true;
        if let Some(&(id, ..)) = self.waiting.front()
            && let Some(place) = self.place(id)
        {
            place.is_broken = true;
        }
        self.drop_parcel();
    }

    fn drop_parcel(&mut self) {
        if let Some((_, parcel, _)) = self.waiting.pop_front() {
            let known = self.outbox.release(parcel.index, parcel.generation);
            debug_assert!(known, "packed and not with DOCA");
        }
    }

    /// Whether messages wait until DOCA has room.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Nothing goes out any more.
    pub(super) fn give_up(&mut self) {
        while self.is_waiting() {
            self.drop_parcel();
        }
    }

    /// The next message to the front of `out`, which holds any.
    pub(super) fn receive(&mut self, id: CallbackId, out: &mut [u8]) -> Result<Option<usize>, ReceiveError> {
        let place = self.place(id).ok_or(ReceiveError::Closed)?;
        match place.inbox.pop(out) {
            Some(length) => {
                self.unread -= 1;
                Ok(Some(length))
            }
            None if place.has_babbled => Err(ReceiveError::Babble),
            None if place.state == State::Left || place.is_broken => Err(ReceiveError::Closed),
            None => Ok(None),
        }
    }

    pub(super) fn has_message(&mut self, id: CallbackId) -> bool {
        self.place(id).is_none_or(|place| place.inbox.count > 0 || place.has_babbled || place.is_broken)
    }

    /// Messages on their way, on all connections.
    pub(super) fn sending(&self) -> usize {
        self.outbox.sending(0..self.places.len() * SENDING_MAX)
    }

    pub(super) fn has_room(&self, id: CallbackId) -> bool {
        self.outbox.sending(Self::parcels(id.index)) < SENDING_MAX
    }

    /// The channel is dropped.
    pub(super) fn drop_channel(&mut self, id: CallbackId, now: Instant) {
        self.has_news = true;
        if let Some(place) = self.place(id) {
            place.dropped = Some(now);
            let unread = std::mem::take(&mut place.inbox.count);
            self.unread -= unread;
        }
    }

    /// Something to do about a connection, after freeing those whose peers have left.
    pub(super) fn chore(&mut self, now: Instant) -> Option<Chore> {
        if let Some(connection) = self.surplus.pop() {
            return Some(Chore::HangUpSurplus(connection));
        }
        for index in 0..self.places.len() {
            let is_sending = self.outbox.sending(Self::parcels(index as u32)) > 0;
            let place = &mut self.places[index];
            let Some(dropped) = place.dropped else { continue };
            if place.state == State::Left {
                place.free();
            } else if !is_sending || place.is_broken || now.saturating_duration_since(dropped) >= LAST_WORDS {
                let id = CallbackId { index: index as u32, generation: place.generation };
                return Some(Chore::HangUp(id, place.connection));
            }
        }
        None
    }

    /// The connection is no more.
    pub(super) fn hung_up(&mut self, id: CallbackId) {
        if let Some(place) = self.place(id) {
            place.free();
        }
    }

    /// Whether anything came since [`Self::take_news`], or messages still wait, in either direction.
    pub(super) fn has_news(&self) -> bool {
        self.has_news || self.unread > 0 || self.is_waiting()
    }

    pub(super) fn take_news(&mut self) -> bool {
        let had_news = self.has_news();
        self.has_news = false;
        had_news
    }
}

impl PeerState {
    fn free(&mut self) {
        self.state = State::Free;
        self.dropped = None;
        // 0 is no generation: see `CallbackId::NONE`.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
    }
}

/// Desks of this process. An index is used again with the next generation.
static DESKS: Mutex<Vec<(u32, Option<Desk>)>> = Mutex::new(Vec::new());

fn desks() -> MutexGuard<'static, Vec<(u32, Option<Desk>)>> {
    DESKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a desk up; its id.
pub(super) fn put_up(desk: Desk) -> CallbackId {
    let mut desks = desks();
    let index = desks.iter().position(|(_, desk)| desk.is_none()).unwrap_or_else(|| {
        desks.push((0, None));
        desks.len() - 1
    });
    let (generation, place) = &mut desks[index];
    *generation = generation.checked_add(1).unwrap_or(1);
    *place = Some(desk);
    CallbackId { index: index as u32, generation: *generation }
}

/// Takes a desk down, when nobody will call back any more.
pub(super) fn take_down(id: CallbackId) {
    let desk = desks()
        .get_mut(id.index as usize)
        .and_then(|(generation, desk)| if *generation == id.generation { desk.take() } else { None });
    drop(desk);
}

/// Works at a desk; `None` if there is none for this id.
pub(super) fn at<R>(id: CallbackId, work: impl FnOnce(&mut Desk) -> R) -> Option<R> {
    let mut desks = desks();
    let (generation, desk) = desks.get_mut(id.index as usize)?;
    let desk = desk.as_mut().filter(|_| *generation == id.generation)?;
    Some(work(desk))
}
