//! Memory for messages on their way: fixed places that DOCA reads until a send has completed.

use std::ptr::{self, NonNull};

/// Places for messages of at most `message_bytes` each.
///
/// The bytes lie behind a raw pointer, not in a box: no reference to them exists while the device reads, whatever is
/// done with the rest of the desk meanwhile.
#[derive(Debug)]
pub(super) struct Outbox {
    first: NonNull<u8>,
    bytes: usize,
    message_bytes: usize,
    places: Box<[ParcelState]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct ParcelState {
    generation: u32,
    is_sending: bool,
}

// SAFETY: the memory is owned, and written through `&mut self` only, to places that are not sending.
unsafe impl Send for Outbox {}

/// A place taken for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    pub index: usize,
    pub generation: u32,
}

impl Outbox {
    pub(super) fn new(places: usize, message_bytes: usize) -> Self {
        let memory: &'static mut [u8] = Box::leak(vec![0; places * message_bytes].into_boxed_slice());
        let bytes = memory.len();
        let first = NonNull::from(memory).cast();
        Self { first, bytes, message_bytes, places: vec![ParcelState::default(); places].into_boxed_slice() }
    }

    /// Copies a message to a free one of the places `among`. `None`: all are sending.
    pub(super) fn put(&mut self, among: std::ops::Range<usize>, message: &[u8]) -> Option<Parcel> {
        assert!(message.len() <= self.message_bytes, "the caller checked");
        let index = among.into_iter().find(|index| !self.places[*index].is_sending)?;
        let first = self.first_of(index);
        // SAFETY: the place is ours (not sending), its bytes are initialised, and no other reference to them exists;
        // the message is somebody else's memory.
        unsafe { first.copy_from_nonoverlapping(NonNull::from(message).cast(), message.len()) };
        let place = &mut self.places[index];
        place.is_sending = true;
        Some(Parcel { index, generation: place.generation })
    }

    /// Start of a place: valid for reads of its message until the place is released.
    pub(super) fn first_of(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.places.len());
        // SAFETY: inside the allocation, since `index` is below the number of places.
        unsafe { self.first.add(index * self.message_bytes) }
    }

    /// The message is out, or will not go. False if the id is not of this message.
    pub(super) fn release(&mut self, index: usize, generation: u32) -> bool {
        match self.places.get_mut(index).filter(|place| place.is_sending && place.generation == generation) {
            Some(place) => {
                *place = ParcelState { generation: generation.wrapping_add(1), is_sending: false };
                true
            }
            None => false,
        }
    }

    pub(super) fn sending(&self, among: std::ops::Range<usize>) -> usize {
        self.places[among].iter().filter(|place| place.is_sending).count()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if self.places.iter().any(|place| place.is_sending) {
            log::warn!("comch: messages on their way are leaked");
            return;
        }
        // SAFETY: leaked from a box of this length in `new`, and nobody reads it any more.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.bytes)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_until_its_own_message_is_released() {
        let mut outbox = Outbox::new(4, 16);
        let first = outbox.put(0..2, b"one").expect("room");
        let second = outbox.put(0..2, b"two").expect("room");
        assert_eq!(outbox.put(0..2, b"three"), None, "others' places are not taken");
        assert_ne!(first.index, second.index);
        assert!(!outbox.release(first.index, first.generation + 1), "a stale id is harmless");
        assert!(outbox.release(first.index, first.generation));
        assert!(!outbox.release(first.index, first.generation), "released once");
        assert_eq!(outbox.sending(0..2), 1);
        let third = outbox.put(0..2, b"three").expect("room again");
        assert_eq!((third.index, third.generation), (first.index, first.generation + 1));
        // SAFETY: the place was just written and is not released.
        assert_eq!(unsafe { std::slice::from_raw_parts(outbox.first_of(third.index).as_ptr(), 5) }, b"three");
        assert!(outbox.release(third.index, third.generation) && outbox.release(second.index, second.generation));
    }
}
