//! The fixed ring: slots, their memory, and the states that they go through.
//!
//! ```text
//!           fetch                                     store
//!   Free -> Fetching -> Inflating -> Restoring -> Writing -> Free
//!                 \______raw______/               |    ^
//!                                                 v    |
//!                                               Verifying -> Free
//!   Free -> Gathering -> Encoding -> Free
//!            |    ^         ^
//!            v    |         |
//!           Confirming -----'
//! ```
//!
//! Verifying and Confirming: with `--verify-dma` only (verify.rs).
//! A block whose codes fail their check goes back from Restoring to Inflating once: software then says whose fault it is.
//! Any state may also go back to Free: that is what happens to a block that failed. Only the engine thread changes
//! states; workers and engines borrow the memory of a slot for the time of one job, and the slot's table entry is empty
//! meanwhile, so two holders at once are impossible.

use std::fmt;
use std::sync::{Mutex, MutexGuard};

use block::Header;
use doca::{Area, Device, Region};

use crate::slots::wire::Wire;

/// Largest ring that a config may ask for: tickets and queues are sized for it.
pub const SLOTS_MAX: usize = 64;

/// A slot and its generation: the only thing that travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Ticket {
    pub index: u16,
    pub generation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    Free,
    /// A fetch worker reads the block from the store into `wire`, or borrows it where the card's tier has it.
    Fetching,
    /// Waits for the decompress engine, or is in it: `wire` -> `codes`.
    Inflating,
    /// A dequantize worker writes `tile` from `codes` (or from a raw `wire`).
    Restoring,
    /// Waits for the DMA engine, or is in it: `tile` -> host pages.
    Writing,
    /// Waits for the DMA engine, or is in it: host pages -> `tile`.
    Gathering,
    /// The pages that were written come back into `codes`, and a dequantize worker compares them with `tile`.
    Verifying,
    /// The pages that were gathered come again, into `codes`, and a dequantize worker compares them with `tile`.
    Confirming,
    /// An encode worker goes `tile` -> `codes` -> `wire` -> store.
    Encoding,
}

impl SlotState {
    pub const ALL: [Self; 9] = [
        Self::Free,
        Self::Fetching,
        Self::Inflating,
        Self::Restoring,
        Self::Writing,
        Self::Verifying,
        Self::Gathering,
        Self::Confirming,
        Self::Encoding,
    ];

    /// Whether a block on its way into the store holds the slot.
    #[must_use]
    pub fn stores(self) -> bool {
        matches!(self, Self::Gathering | Self::Confirming | Self::Encoding)
    }

    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use SlotState::{Confirming, Encoding, Fetching, Free, Gathering, Inflating, Restoring, Verifying, Writing};
        match (self, next) {
            (Free, to) => matches!(to, Fetching | Gathering),
            (_, Free) => true,
            (from, to) => matches!(
                (from, to),
                (Fetching, Inflating | Restoring)
                    | (Inflating, Restoring)
                    | (Restoring, Writing | Inflating)
                    | (Writing, Verifying)
                    | (Verifying, Writing)
                    | (Gathering, Confirming | Encoding)
                    | (Confirming, Gathering | Encoding)
            ),
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Fetching => "fetching",
            Self::Inflating => "inflating",
            Self::Restoring => "restoring",
            Self::Writing => "writing",
            Self::Verifying => "verifying",
            Self::Gathering => "gathering",
            Self::Confirming => "confirming",
            Self::Encoding => "encoding",
        }
    }
}

/// Sizes of one slot's areas, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotBytes {
    /// Header, scales and payload as stored.
    pub wire: usize,
    /// One byte per code, or byte planes.
    pub codes: usize,
    /// Elements in the order of the host's pages.
    pub tile: usize,
}

impl SlotBytes {
    /// Areas for blocks of at most `block_bytes` bytes of elements. Codes are never longer than the elements, a payload
    /// never longer than the codes; an eighth on top of that is for header and scales.
    #[must_use]
    pub fn for_blocks(block_bytes: usize) -> Self {
        Self { wire: block_bytes + block_bytes / 8, codes: block_bytes, tile: block_bytes }
    }

    #[must_use]
    pub fn total(self) -> usize {
        [self.wire, self.codes, self.tile].iter().map(|bytes| bytes.next_multiple_of(doca::AREA_ALIGNMENT)).sum()
    }
}

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
    region: Region,
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
    /// What the device answered.
    pub fn allocate(device: &Device, slots: usize, bytes: SlotBytes) -> Result<Self, doca::Error> {
        assert!((1..=SLOTS_MAX).contains(&slots), "slots {slots} outside 1..={SLOTS_MAX}: the config checks it");
        let mut region = Region::allocate(device, slots * bytes.total())?;
        let slots = (0..slots)
            .map(|_| {
                let mut carve = |bytes| region.carve(bytes).expect("the region was sized for all slots");
                let (wire, codes, tile) =
                    (Wire::new(carve(bytes.wire)), Some(carve(bytes.codes)), Some(carve(bytes.tile)));
                Mutex::new(SlotMemory { wire, codes, tile, header: None })
            })
            .collect();
        Ok(Self { slots, region, bytes })
    }

    /// The memory of a slot. The state machine gives each slot one holder at a time, so the lock is always free.
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

    /// Bytes of registered memory, page rounding included.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.region.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_fail_back_to_free_and_none_skips_its_checks() {
        for from in SlotState::ALL {
            assert_eq!(from.may_become(SlotState::Free), from != SlotState::Free, "{from:?}");
            assert!(!from.may_become(from), "{from:?}");
        }
        assert!(!SlotState::Fetching.may_become(SlotState::Writing), "unchecked bytes must not reach the host");
        assert!(!SlotState::Inflating.may_become(SlotState::Writing));
        assert!(!SlotState::Gathering.may_become(SlotState::Writing));
    }

    #[test]
    fn a_slot_is_the_sum_of_its_areas() {
        let bytes = SlotBytes::for_blocks(512 << 10);
        assert_eq!(bytes.total(), (512 + 64 + 512 + 512) << 10);
    }
}
