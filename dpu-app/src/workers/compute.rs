//! Workers: each takes jobs from its own queue, works on slot memory, and answers into its own queue. Those that read
//! from the store are in fetch.rs.
//!
//! One producer and one consumer on each queue (heapless spsc), so nothing is locked but the slot itself. A worker that
//! finds its queue empty parks; after an answer it rings the engine thread if that sleeps.

use std::time::Instant;

use block::codec::{Compressor, Decompressor};
use block::{ChunkKey, Header, Manifest, TileOrder, Transform};
use mailbox::Tokens;
use std::sync::atomic::Ordering;

use crate::pipeline::job::{Done, Evidence, Failure, Job, Restored, Seat};
use crate::pipeline::slots::Ticket;
use crate::pipeline::verify::covered;
use crate::workers::bell::WorkerBell;
use crate::workers::line::Duties;
use crate::workers::shared::Shared;
use store::{StoreError, retry};

/// Answers that a worker with more jobs may keep before it wakes the engine thread. Small beside the slots of a ring,
/// so that engines behind it do not run dry.
const ANSWERS_UNHEARD: usize = 3;

/// Blames the codes of a block whose header is good; the block may be shorter than the area that it is in.
fn bad_codes(header: &Header, wire: &[u8]) -> Failure {
    Failure::Corrupt(Evidence::of("its codes", &wire[..header.wire_bytes()]))
}

/// One worker's ends of its queues.
pub(crate) struct ComputeWorker<'a, 's> {
    pub shared: &'a Shared<'s>,
    pub bell: &'a WorkerBell,
    pub duties: Duties<'a>,
    pub compressor: Option<Compressor>,
    pub decompressor: Decompressor,
    /// Buffer for manifests, which are read and written whole.
    pub manifest: Vec<u8>,
}

impl std::fmt::Debug for ComputeWorker<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComputeWorker").field("encodes", &self.compressor.is_some()).finish_non_exhaustive()
    }
}

impl ComputeWorker<'_, '_> {
    /// Runs the thread.
    pub(crate) fn run(mut self) {
        self.bell.belongs_here();
        let mut unheard = 0;
        let mut next = None;
        loop {
            let Some(job) = next.take().or_else(|| self.duties.claim()) else {
                if self.shared.leave.load(Ordering::Acquire) {
                    return;
                }
                self.duties.rest();
                self.bell.sleep_unless(|| self.duties.wait() || self.shared.leave.load(Ordering::Acquire));
                continue;
            };
            let done = self.work(job);
            self.duties.answer(done);
            unheard += 1;
            // With more to do here, the engine thread need not wake for every answer: a wake-up costs more than a turn.
            // Only ahead of a job that cannot hang, though: a store may take until the deadline.
            next = self.duties.claim();
            let soon = matches!(next, Some(Job::Restore { .. } | Job::Inflate { .. } | Job::Compare { .. }));
            if unheard >= ANSWERS_UNHEARD || !soon {
                self.shared.engine_bell.ring();
                unheard = 0;
            }
        }
    }

    fn work(&mut self, job: Job) -> Done {
        match job {
            Job::Inflate { slot } => Done::Inflated { slot, result: self.inflate(slot) },
            Job::Restore { slot, order, from_wire, check } => {
                Done::Restored { slot, from: self.restore(slot, order, from_wire, check) }
            }
            Job::Compare { slot, seat, block, from, tokens } => {
                Done::Compared { slot, same: self.compare(slot, seat, block, from, tokens) }
            }
            Job::Begin { seat } => Done::Began { seat, started: self.begin(seat) },
            Job::Encode { slot, seat, block } => Done::Encoded { slot, wire_bytes: self.encode(slot, seat, block) },
            Job::Commit { seat } => Done::Committed { seat, result: self.commit(seat) },
            Job::Abort { seat } => {
                self.shared.store.abort_put(usize::from(seat.0));
                Done::Aborted { seat }
            }
            Job::Lookup { .. }
            | Job::Touch { .. }
            | Job::Rate { .. }
            | Job::Open { .. }
            | Job::Read { .. }
            | Job::Close { .. } => {
                unreachable!("{job:?} is for fetch workers")
            }
        }
    }

    /// Inflates in software what the engine cannot, or what it failed at, to learn whose fault that is.
    fn inflate(&mut self, slot: Ticket) -> Result<(), Failure> {
        let mut memory = self.shared.ring.memory(slot);
        let memory = &mut *memory;
        let held = "no engine holds a slot in Inflating here";
        let (wire, codes) = (memory.wire.block().expect(held), memory.codes.as_mut().expect(held));
        let header = memory.header.as_ref().expect("read before it is inflated");
        let codes = &mut codes[..header.codes_bytes as usize];
        self.decompressor.codes(header, wire, codes).map_err(|_| bad_codes(header, wire))
    }

    fn restore(&mut self, slot: Ticket, order: TileOrder, from_wire: bool, check: bool) -> Result<Restored, Failure> {
        let since = Instant::now();
        let mut memory = self.shared.ring.memory(slot);
        let memory = &mut *memory;
        let header = memory.header.as_ref().expect("read before it is restored");
        let wire = memory.wire.block().expect("no engine holds a slot in Restoring");
        let codes_bytes = header.codes_bytes as usize;
        let payload = header.payload_range();
        let codes = match from_wire {
            true => &wire[payload.clone()],
            false => &memory.codes.as_ref().expect("no engine holds a slot in Restoring")[..codes_bytes],
        };
        if from_wire && header.transform == Transform::None && order == TileOrder::TokenMajor {
            let right = crc32fast::hash(codes) == header.codes_crc;
            self.shared.counters.dequantize.count(since, codes_bytes, 0);
            return right.then_some(Restored::Wire { start: payload.start }).ok_or_else(|| bad_codes(header, wire));
        }
        let tile_bytes = header.part.tile_bytes(&header.geometry);
        let tile = &mut memory.tile.as_mut().expect("no engine holds a slot in Restoring")[..tile_bytes];
        let scales = &wire[header.scales_range()];
        let restored = match check || from_wire {
            true => block::restore_checked(header, scales, codes, order, tile),
            false => block::restore(header, scales, codes, order, tile),
        };
        self.shared.counters.dequantize.count(since, codes_bytes, tile_bytes);
        restored.map(|()| Restored::Tile).map_err(|_| bad_codes(header, wire))
    }

    fn compare(&self, slot: Ticket, seat: Seat, block: u16, from: Restored, tokens: Tokens) -> bool {
        let (geometry, order, part) = {
            let chunk = self.shared.chunks.at(seat);
            (chunk.geometry, chunk.order, chunk.part(block))
        };
        let memory = self.shared.ring.memory(slot);
        let held = "no engine holds a slot whose pages came back";
        let given = match from {
            Restored::Wire { start } => &memory.wire.block().expect(held)[start..],
            Restored::Tile => &memory.tile.as_ref().expect(held)[..],
        };
        let found = memory.codes.as_ref().expect(held);
        let mut same = true;
        covered(&geometry, &part, order, tokens, |range| same &= given[range.clone()] == found[range]);
        same
    }

    fn begin(&mut self, seat: Seat) -> Result<bool, Failure> {
        let (key, parent, again, until) = {
            let chunk = self.shared.chunks.at(seat);
            (chunk.key, chunk.position.parent, chunk.again, chunk.until)
        };
        if !again && !self.shared.unreadable.has(&key, Instant::now()) && self.is_readable(seat, &key, until)? {
            return Ok(false);
        }
        retry(|| self.shared.store.begin_put(usize::from(seat.0), &key, parent.as_ref(), until))?;
        Ok(true)
    }

    /// Tells whether the store has the chunk in a form that this card can read. What it cannot read is replaced.
    fn is_readable(&mut self, seat: Seat, key: &ChunkKey, until: Instant) -> Result<bool, Failure> {
        match retry(|| self.shared.store.peek(key, &mut self.manifest, until)) {
            Ok(bytes) => {
                let sizes = self.shared.ring.slot_bytes();
                let chunk = self.shared.chunks.at(seat);
                Ok(chunk.understand(&self.manifest[..bytes], sizes.wire, sizes.tile).is_ok())
            }
            Err(StoreError::Miss | StoreError::Corrupt { .. } | StoreError::Foreign { .. }) => Ok(false),
            Err(StoreError::Large { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn encode(&mut self, slot: Ticket, seat: Seat, block: u16) -> Result<u32, Failure> {
        let (key, geometry, recipe, order, part) = {
            let chunk = self.shared.chunks.at(seat);
            (chunk.key, chunk.geometry, chunk.recipe, chunk.order, chunk.part(block))
        };
        let since = Instant::now();
        let mut memory = self.shared.ring.memory(slot);
        let memory = &mut *memory;
        let held = "no engine holds a slot in Encoding";
        let tile_bytes = part.tile_bytes(&geometry);
        let tile = &memory.tile.as_ref().expect(held)[..tile_bytes];
        let (codes, wire) = (memory.codes.as_mut().expect(held), memory.wire.area_mut().expect(held));
        let compressor = self.compressor.as_mut().expect("encode jobs go to encode workers");
        let index = usize::from(block);
        let bytes = block::encode_tile(recipe, &geometry, &key, index, &part, order, tile, codes, wire, compressor)
            .map_err(|_| Failure::Malformed)?;
        self.shared.counters.encode.count(since, tile_bytes, bytes);
        let since = Instant::now();
        self.shared.store.put_block(usize::from(seat.0), index, &wire[..bytes])?;
        self.shared.counters.put.count(since, bytes, bytes);
        self.shared.chunks.at(seat).lengths[index] = bytes as u32;
        Ok(bytes as u32)
    }

    fn commit(&mut self, seat: Seat) -> Result<(), Failure> {
        let (key, bytes, blocks) = {
            let chunk = self.shared.chunks.at(seat);
            let manifest = Manifest::new(chunk.key, chunk.geometry, chunk.plan, &chunk.lengths[..chunk.blocks]);
            let manifest = manifest.expect("lengths as they were encoded").with_importance(chunk.importance);
            (chunk.key, manifest.encode(&mut self.manifest), chunk.blocks)
        };
        self.shared.store.commit_put(usize::from(seat.0), blocks, &self.manifest[..bytes])?;
        self.shared.unreadable.remove(&key);
        Ok(())
    }
}
