//! The fixed ring: the memory of all slots.
//!
//! Only the engine thread says what a slot is used for (pipeline/slots.rs); workers and engines borrow its memory for
//! the time of one job, and the slot's table entry is empty meanwhile, so two holders at once are impossible.

use std::fmt;
use std::sync::{Mutex, MutexGuard};

use block::Header;
use doca::{Area, Arena, Device};

use crate::config::{SLOTS_MAX, SlotBytes};
use crate::pipeline::slots::Ticket;
use crate::slots::wire::Wire;

/// The areas of one slot; an empty place means that an engine holds it.
#[derive(Debug)]
pub struct SlotMemory {
    pub wire: Wire,
    pub codes: Option<Area>,
    pub tile: Option<Area>,
    /// Header of the block, once a fetch worker has checked it.
    pub header: Option<Header>,
}

/// The memory of all slots, shared between the engine thread and the workers.
pub struct Ring {
    slots: Vec<Mutex<SlotMemory>>,
    arena: Arena,
    bytes: SlotBytes,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots.len()).field("bytes", &self.bytes).finish()
    }
}

impl Ring {
    /// Allocates and registers the ring. Init only.
    ///
    /// # Errors
    /// Says what the device answered.
    pub fn allocate(device: &Device, slots: usize, bytes: SlotBytes) -> Result<Self, doca::Error> {
        assert!((1..=SLOTS_MAX).contains(&slots), "slots {slots} outside 1..={SLOTS_MAX}: the config checks it");
        let mut arena = Arena::allocate(device, slots * bytes.total())?;
        let slots = (0..slots)
            .map(|_| {
                let mut carve = |bytes| arena.carve(bytes).expect("the arena was sized for all slots");
                let (wire, codes, tile) =
                    (Wire::new(carve(bytes.wire)), Some(carve(bytes.codes)), Some(carve(bytes.tile)));
                Mutex::new(SlotMemory { wire, codes, tile, header: None })
            })
            .collect();
        Ok(Self { slots, arena, bytes })
    }

    /// Borrows the memory of a slot. The state machine gives each slot one holder at a time, so the lock is always
    /// free.
    pub fn memory(&self, ticket: Ticket) -> MutexGuard<'_, SlotMemory> {
        self.slots[usize::from(ticket.index)].try_lock().expect("a slot has one holder at a time")
    }

    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn slot_bytes(&self) -> SlotBytes {
        self.bytes
    }

    /// Counts the bytes of registered memory, page rounding included.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.arena.bytes()
    }
}
