//! The engine's part of a task: a snapshot of its buffer lists, what chance wants of it, and what it came to.
//!
//! A snapshot holds a reference to each region that it names, so memory maps may come and go meanwhile. It is taken by
//! submit on the application's thread and given up by the engine before the task is posted.

use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use crate::config::{IMM_BYTES_MAX, LIST_MAX, TaskKind};
use crate::core::buf::{Buf, list};
use crate::core::chance::Fate;
use crate::ffi::{Answer, Fault, Handle};
use crate::memory::region::MmapRegion;

/// One element of a snapshot.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) addr: u64,
    pub(crate) len: usize,
    region: *const MmapRegion,
    /// Holds a reference to the region for itself and for those behind it with the same region.
    pub(crate) is_owner: bool,
}

impl Segment {
    pub(crate) fn region(&self) -> &MmapRegion {
        // SAFETY: this segment or an earlier one of the list holds a reference from `load` until `unload`, and only
        // those two ever set or clear segments.
        unsafe { &*self.region }
    }
}

/// The engine's part of a task.
pub(crate) struct EngineJob {
    /// Room for `2 * LIST_MAX` segments in the pool's arena: sources, then destinations.
    segments: NonNull<Segment>,
    sources: usize,
    destinations: usize,
    /// Why the engine will not even try.
    pub(crate) refusal: Option<Fault>,
    pub(crate) fate: Fate,
    /// Debug mode has filled the destination.
    pub(crate) is_poisoned: bool,
    pub(crate) has_block_checksum: bool,
    pub(crate) are_blocks_independent: bool,
    /// Bytes written.
    pub(crate) outcome: Result<usize, Fault>,
    pub(crate) sums: Sums,
    /// Producer of a received message; with it, its immediate data.
    pub(crate) producer: u32,
    pub(crate) imm: [u8; IMM_BYTES_MAX],
    pub(crate) imm_len: usize,
}

/// What a buffer list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Source,
    Destination,
    /// A destination of the other side's choosing: data of a Comch producer.
    Delivery,
}

/// Checksums of the plain bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) crc: u32,
    /// Adler-32 for deflate, xxHash-32 with its bytes swapped for LZ4.
    pub(crate) second: u32,
}

impl EngineJob {
    /// `segments`: room for twice `LIST_MAX`.
    pub(crate) fn vacant(segments: NonNull<Segment>) -> EngineJob {
        EngineJob {
            segments,
            sources: 0,
            destinations: 0,
            refusal: None,
            fate: Fate::default(),
            is_poisoned: false,
            has_block_checksum: false,
            are_blocks_independent: false,
            outcome: Ok(0),
            sums: Sums::default(),
            producer: 0,
            imm: [0; IMM_BYTES_MAX],
            imm_len: 0,
        }
    }

    fn all(&self) -> &[Segment] {
        // SAFETY: the arena has room for both lists, and `load` has written that many; it outlives the task.
        unsafe { slice::from_raw_parts(self.segments.as_ptr(), self.sources + self.destinations) }
    }

    /// Source segments, destination segments.
    pub(crate) fn lists(&self) -> (&[Segment], &[Segment]) {
        self.all().split_at(self.sources)
    }

    fn push(&mut self, segment: Segment) {
        let index = self.sources + self.destinations;
        assert!(index < 2 * LIST_MAX as usize, "both lists were counted before");
        // SAFETY: inside the arena's room for this task, as just checked.
        unsafe { self.segments.add(index).write(segment) };
    }

    /// Takes the snapshot of one list. The references that it takes are given back by `unload`, on errors too.
    pub(crate) fn load_list(&mut self, head: Handle<Buf>, device: u64, what: Use) -> Answer {
        let is_destination = what != Use::Source;
        if head.is_follower() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let mut previous: *const MmapRegion = ptr::null();
        for (index, buf) in list(head).enumerate() {
            if index >= LIST_MAX as usize {
                return Err(Fault::DOCA_ERROR_TOO_BIG);
            }
            let region = buf.region.borrow();
            let region = region.as_ref().ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
            let admitted = match what {
                Use::Delivery => region.admits_delivery(device),
                _ => region.admits(device, is_destination),
            };
            if !admitted {
                return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
            }
            let (addr, len) = if is_destination { buf.vacant_tail() } else { buf.filled() };
            if len == 0 {
                continue;
            }
            let is_owner = previous != Arc::as_ptr(region);
            previous = Arc::as_ptr(region);
            if is_owner {
                // Given back in `unload`.
                let _ = Arc::into_raw(Arc::clone(region));
            }
            self.push(Segment { addr, len, region: previous, is_owner });
            if is_destination { self.destinations += 1 } else { self.sources += 1 }
        }
        Ok(())
    }

    /// Gives up the references to the regions, and with them the lists.
    pub(crate) fn unload(&mut self) {
        for segment in self.all() {
            if segment.is_owner {
                // SAFETY: the reference that `load_list` took for this segment; the lists are emptied below.
                unsafe { Arc::decrement_strong_count(segment.region) };
            }
        }
        self.sources = 0;
        self.destinations = 0;
    }

    /// Checks the one list of a Comch task.
    pub(crate) fn check_bytes(&self, bytes_max: usize) -> Answer {
        let bytes = self.all().iter().map(|segment| segment.len).sum::<usize>();
        if bytes == 0 || bytes > bytes_max { Err(Fault::DOCA_ERROR_INVALID_VALUE) } else { Ok(()) }
    }

    /// Checks both lists of an engine's task; `load_list` has counted up to what any card takes.
    pub(crate) fn check_lengths(&self, list_max: usize) -> Answer {
        if self.sources.max(self.destinations) > list_max { Err(Fault::DOCA_ERROR_TOO_BIG) } else { Ok(()) }
    }

    pub(crate) fn check_sizes(&self, kind: TaskKind, bytes_max: usize) -> Answer {
        let (sources, destinations) = self.lists();
        let sum = |list: &[Segment]| list.iter().map(|segment| segment.len).sum::<usize>();
        let (source, destination) = (sum(sources), sum(destinations));
        let fits = match kind {
            TaskKind::Memcpy => destination >= source,
            _ => destination > 0 && destination <= bytes_max,
        };
        if source == 0 || !fits {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        if source > bytes_max { Err(Fault::DOCA_ERROR_TOO_BIG) } else { Ok(()) }
    }
}
