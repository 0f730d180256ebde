//! Submissions to the inflate and bulk DMA engines, and what comes of them.
//!
//! A failure stops a whole context (DOCA), so whatever fails is submitted again; who fails alone is to blame
//! (probation.rs). A block that the inflate engine cannot take alone is judged by software: if that can inflate it, the
//! block goes on and the engine was wrong; if not, the stored bytes are proven bad. Host memory that the DMA engine
//! cannot reach alone belongs to a host that is gone: its session ends.

use block::Codec;
use doca::{Completion, RemoteRun};
use mailbox::attach::Farewell;

use crate::counters::add;
use crate::events::Event;
use crate::flow::Direction;
use crate::hub::{Engine, Hub, HubError};
use crate::job::{Failure, Job, Restored};
use crate::probation::{BLAMES_MAX, UNREACHABLE_MIN};
use crate::slot::{SlotState, Ticket};

/// Runs of one block at most: what a transfer's list is sized for. A layout that needs more is refused at attach.
pub(crate) const RUNS_MAX: usize = 2048;

/// What became of a transfer that was to start.
enum Launch {
    Started,
    /// All of the block's tokens are clipped away.
    Nothing,
    NoRoom,
    Failed(Failure),
}

/// DOCA user data of a slot's operation.
fn word(ticket: Ticket) -> u64 {
    u64::from(ticket.generation) << 16 | u64::from(ticket.index)
}

fn ticket(word: u64) -> Ticket {
    Ticket { index: word as u16, generation: (word >> 16) as u32 }
}

impl Hub<'_, '_> {
    /// Takes all completions of the two engines; `true` if there were any.
    pub(crate) fn progress(&mut self) -> Result<bool, HubError> {
        let mut busy = false;
        let mut restarted = heapless::Vec::<doca::Kind, 2>::new();
        while self.engine.progress() {
            busy = true;
            // Between two calls, so that what a host sends fits its places however fast it sends.
            self.attend_progressed();
        }
        while let Some(completion) = self.inflate.as_mut().and_then(|engine| engine.context.poll()) {
            self.inflated(completion);
            busy = true;
        }
        while let Some(completion) = self.bulk.context.poll() {
            self.transferred(completion);
            busy = true;
        }
        for engine in self.inflate.iter_mut().chain([&mut self.bulk]) {
            if engine.revive()? {
                let kind = engine.context.kind();
                restarted.push(kind).expect("two engines");
            }
        }
        restarted.into_iter().for_each(|kind| self.restarted(kind));
        Ok(busy)
    }

    pub(crate) fn restarted(&mut self, kind: doca::Kind) {
        add(&self.shared.counters.engine_restarts[kind as usize], 1);
        self.events.add(Event::EngineRestarted(kind), 0);
    }

    /// Gives the engines what waits for them; `true` if anything was submitted.
    pub(crate) fn submit(&mut self) -> bool {
        let mut busy = false;
        while let Some(ticket) = self.to_inflate.pop_front() {
            if self.engine_takes(ticket) && !self.inflate.as_ref().is_some_and(Engine::admits) {
                self.to_inflate.push_front(ticket).expect("just popped");
                break;
            }
            busy = true;
            if self.abandoned(ticket) {
                continue;
            }
            if self.engine_takes(ticket) {
                if !self.submit_inflate(ticket) {
                    break;
                }
            } else {
                self.dequantizers.give(Job::Inflate { slot: ticket });
            }
        }
        while self.bulk.admits() {
            let Some(ticket) = self.to_transfer.pop_front() else { break };
            busy = true;
            if !self.abandoned(ticket) && !self.submit_transfer(ticket) {
                break;
            }
        }
        busy
    }

    /// A block whose chunk has failed meanwhile gives its slot back instead of going on.
    pub(crate) fn abandoned(&mut self, ticket: Ticket) -> bool {
        let seat = self.slots.at(ticket).seat;
        let failed = self.flow(seat).failure.is_some();
        if failed {
            self.release(ticket);
        }
        failed
    }

    /// Whether the engine is the one to inflate this block: it can, and is not in doubt.
    pub(crate) fn engine_takes(&mut self, ticket: Ticket) -> bool {
        let work = self.slots.at(ticket);
        let blamed = work.blames >= BLAMES_MAX;
        let known = match work.facts.codec {
            Codec::Deflate => true,
            Codec::Lz4 => self.lz4_supported,
            Codec::Raw => false,
        };
        self.inflate.is_some() && !blamed && known
    }

    /// `false`: no room, the ticket waits in front.
    fn submit_inflate(&mut self, ticket: Ticket) -> bool {
        let facts = self.slots.at(ticket).facts;
        let codec = if facts.codec == Codec::Lz4 { doca::Codec::Lz4Block } else { doca::Codec::Deflate };
        let engine = self.inflate.as_mut().expect("engine_takes looked");
        let mut memory = self.shared.ring.memory(ticket);
        let held = "no one holds a slot that waits for the engine";
        let (wire, codes) = (memory.wire.take().expect(held), memory.codes.take().expect(held));
        let payload = facts.payload_start..facts.payload_start + facts.payload_bytes;
        match engine.context.inflate(word(ticket), codec, wire, payload, codes) {
            Ok(()) => {
                engine.submitted();
                engine.occupancy.observe(engine.context.in_flight(), &self.shared.counters.inflate);
                true
            }
            Err(refused) => {
                (memory.wire, memory.codes) = (refused.source, refused.destination);
                drop(memory);
                if !refused.error.is_back_pressure() {
                    // The engine will not take it: let software decide.
                    self.slots.at(ticket).blames = BLAMES_MAX;
                }
                self.to_inflate.push_front(ticket).expect("just popped");
                !refused.error.is_back_pressure()
            }
        }
    }

    fn inflated(&mut self, completion: Completion) {
        let ticket = ticket(completion.ticket);
        let depth = self.shared.config.inflate_depth;
        let engine = self.inflate.as_mut().expect("it completed something");
        let to_blame = engine.ended(completion.outcome.is_ok(), depth);
        engine.occupancy.observe(engine.context.in_flight(), &self.shared.counters.inflate);
        {
            let mut memory = self.shared.ring.memory(ticket);
            (memory.wire, memory.codes) = (completion.source, completion.destination);
        }
        let work = self.slots.at(ticket);
        let facts = work.facts;
        match completion.outcome {
            Ok(outcome) => {
                let right =
                    outcome.bytes == facts.codes_bytes && (!self.crc_trusted || outcome.crc == Some(facts.codes_crc));
                if right {
                    self.shared.counters.inflate.tally(facts.payload_bytes, facts.codes_bytes);
                    self.dequantize(ticket, false, !self.crc_trusted);
                } else {
                    // Wrong bytes, of the store or of the engine: software decides.
                    work.blames = BLAMES_MAX;
                    self.to_inflate.push_front(ticket).expect("a place per slot");
                }
            }
            Err(_) => {
                work.blames += u8::from(to_blame);
                add(&self.shared.counters.blocks_resubmitted, 1);
                self.to_inflate.push_front(ticket).expect("a place per slot");
            }
        }
    }

    /// Next stage of a block whose codes are there (or whose payload is the codes).
    pub(crate) fn dequantize(&mut self, ticket: Ticket, from_wire: bool, check: bool) {
        if self.abandoned(ticket) {
            return;
        }
        let seat = self.slots.at(ticket).seat;
        let order = self.flow(seat).order;
        self.slots.set(ticket, SlotState::Restoring);
        self.dequantizers.give(Job::Restore { slot: ticket, order, from_wire, check });
    }

    /// `false`: no room, the ticket waits in front.
    fn submit_transfer(&mut self, ticket: Ticket) -> bool {
        match self.launch_transfer(ticket) {
            Launch::Started => {}
            Launch::Nothing => self.block_done(ticket),
            Launch::Failed(failure) => self.block_failed(ticket, failure),
            Launch::NoRoom => {
                self.to_transfer.push_front(ticket).expect("just popped");
                return false;
            }
        }
        true
    }

    fn launch_transfer(&mut self, ticket: Ticket) -> Launch {
        let work = *self.slots.at(ticket);
        let flow = self.flows[usize::from(work.seat.0)].as_ref().expect("a slot in use belongs to a chunk");
        let memory = self.sessions[flow.session].as_ref().and_then(|session| session.memory.as_ref());
        let memory = memory.expect("a session lives as long as its chunks, and only one with memory has any");
        let part = flow.plan.part(&memory.geometry, usize::from(work.block)).expect("blocks are counted by the plan");
        let shift = if let Restored::Wire { start } = work.from { start } else { 0 };
        let mut runs = heapless::Vec::<RemoteRun<'_>, RUNS_MAX>::new();
        let mut too_many = false;
        let clip = flow.tokens.start as usize..flow.tokens.end as usize;
        let laid_out = memory.layout.runs(&part, &flow.pages, clip, |run| {
            let remote = &memory.regions[usize::from(run.region)];
            let run = RemoteRun { remote, offset: run.offset, local: shift + run.tile_offset, bytes: run.bytes };
            too_many |= runs.push(run).is_err();
        });
        match laid_out {
            Err(_) => return Launch::Failed(Failure::Malformed),
            Ok(()) if too_many => return Launch::Failed(Failure::Foreign),
            Ok(()) if runs.is_empty() => return Launch::Nothing,
            Ok(()) => {}
        }
        let context = &mut self.bulk.context;
        let mut slot = self.shared.ring.memory(ticket);
        let held = "no one holds a slot that waits for the engine";
        let mut take = || match work.from {
            Restored::Wire { .. } => slot.wire.take().expect(held),
            Restored::Tile => slot.tile.take().expect(held),
        };
        let (submitted, stage) = match flow.direction {
            Direction::Fetch => (context.write(word(ticket), take(), &runs), &self.shared.counters.write),
            Direction::Store => (context.read(word(ticket), take(), &runs), &self.shared.counters.gather),
        };
        match submitted {
            Ok(()) => {
                self.bulk.submitted();
                self.bulk.occupancy.observe(self.bulk.context.in_flight(), stage);
                Launch::Started
            }
            Err(refused) => {
                let area = refused.source.or(refused.destination);
                match work.from {
                    Restored::Wire { .. } => slot.wire = area,
                    Restored::Tile => slot.tile = area,
                }
                match refused.error.is_back_pressure() {
                    true => Launch::NoRoom,
                    false => Launch::Failed(Failure::Device(refused.error)),
                }
            }
        }
    }

    fn transferred(&mut self, completion: Completion) {
        let ticket = ticket(completion.ticket);
        let to_blame = self.bulk.ended(completion.outcome.is_ok(), self.shared.config.dma_depth);
        let work = self.slots.at(ticket);
        let (seat, from, state) = (work.seat, work.from, work.state);
        let stage = match state {
            SlotState::Gathering => &self.shared.counters.gather,
            _ => &self.shared.counters.write,
        };
        self.bulk.occupancy.observe(self.bulk.context.in_flight(), stage);
        {
            let area = completion.source.or(completion.destination);
            let mut memory = self.shared.ring.memory(ticket);
            match from {
                Restored::Wire { .. } => memory.wire = area,
                Restored::Tile => memory.tile = area,
            }
        }
        match completion.outcome {
            Ok(outcome) => {
                stage.tally(outcome.bytes, outcome.bytes);
                match state {
                    SlotState::Gathering => {
                        if !self.abandoned(ticket) {
                            self.slots.set(ticket, SlotState::Encoding);
                            let block = self.slots.at(ticket).block;
                            self.encoders.give(Job::Encode { slot: ticket, seat, block });
                        }
                    }
                    _ => self.block_done(ticket),
                }
            }
            Err(error) => {
                work.blames += u8::from(to_blame);
                if work.blames < UNREACHABLE_MIN {
                    add(&self.shared.counters.blocks_resubmitted, 1);
                    self.to_transfer.push_front(ticket).expect("a place per slot");
                    return;
                }
                let session = self.flow(seat).session;
                self.block_failed(ticket, Failure::Device(error));
                log::warn!("session {session}: host memory cannot be reached ({error}): the session ends");
                self.lose(session, Farewell::DeviceError);
            }
        }
    }
}
