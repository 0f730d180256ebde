//! The hub's side of the inflate and bulk DMA engines: how operations are submitted and how their completions read.
//! What is submitted and what comes of it is decided in scheduler.rs; a failure stops a whole context (DOCA), so
//! contexts are revived here.

use block::Codec;
use doca::{Completion, Context, OperationOutput, RemoteRun, Source};

use crate::count::counters::add;
use crate::count::trace::TraceStage;
use crate::hub::events::HubEvent;
use crate::hub::session::SessionMemory;
use crate::hub::{Hub, HubError};
use crate::pipeline::chunk::{ChunkInFlight, Direction};
use crate::pipeline::job::{BlockFacts, Failure, Restored};
use crate::pipeline::scheduler::Scheduler;
use crate::pipeline::slots::{SlotState, SlotWork, Ticket};
use crate::pipeline::{Inflated, Launch, Unreached};
use crate::slots::ring::Ring;

/// Most runs of one operation, which its list is sized for. A layout whose blocks need more is refused at attach; a
/// block that was cut for another layout goes in several operations.
pub(crate) const RUNS_MAX: usize = 2048;

/// Encodes a slot as the DOCA user data of its operation.
fn word(ticket: Ticket) -> u64 {
    u64::from(ticket.generation) << 16 | u64::from(ticket.index)
}

/// Decodes the slot that an operation was for.
pub fn ticket(word: u64) -> Ticket {
    Ticket { index: word as u16, generation: (word >> 16) as u32 }
}

fn refusal(error: doca::Error) -> Launch {
    match error.is_back_pressure() {
        true => Launch::NoRoom,
        false => Launch::Failed(Failure::Device(error)),
    }
}

/// Submits wire -> codes of a slot, or says why not; the slot is as before then.
pub fn start_inflate(context: &mut Context, ring: &Ring, slot: Ticket, facts: &BlockFacts) -> Launch {
    let codec =
        if facts.codec == Codec::Lz4 { doca::CompressedFormat::Lz4Block } else { doca::CompressedFormat::Deflate };
    let mut memory = ring.memory(slot);
    let held = "nothing holds a slot that waits for the engine";
    let (wire, codes) = (memory.wire.take().expect(held), memory.codes.take().expect(held));
    let payload = facts.payload_start..facts.payload_start + facts.payload_bytes;
    match context.inflate(word(slot), codec, wire, payload, codes) {
        Ok(()) => Launch::Started,
        Err(refused) => {
            refused.source.into_iter().for_each(|source| memory.wire.put(source));
            memory.codes = refused.destination;
            refusal(refused.error)
        }
    }
}

/// Gives a slot its areas back.
pub fn bring_inflated(ring: &Ring, slot: Ticket, completion: Completion) -> Result<OperationOutput, doca::Error> {
    let mut memory = ring.memory(slot);
    completion.source.into_iter().for_each(|source| memory.wire.put(source));
    memory.codes = completion.destination;
    completion.outcome
}

/// Tells whether a slot's pages are read into its codes area, to be compared.
fn comes_back(state: SlotState) -> bool {
    matches!(state, SlotState::Verifying | SlotState::Confirming)
}

/// Submits the slot's bytes to or from where `memory` has the block's pages, those that are next in `work.moves`; as
/// above.
pub fn start_transfer(
    context: &mut Context,
    ring: &Ring,
    slot: Ticket,
    work: &mut SlotWork,
    chunk: &ChunkInFlight,
    memory: &SessionMemory,
) -> Launch {
    let part = chunk.plan.part(&chunk.geometry, usize::from(work.block)).expect("blocks are counted by the plan");
    let comes_back = comes_back(work.state);
    let shift = match work.from {
        Restored::Wire { start } if !comes_back => start,
        _ => 0,
    };
    let mut runs = heapless::Vec::<RemoteRun<'_>, RUNS_MAX>::new();
    let runs_max = context.runs_max(part.tile_bytes(&chunk.geometry)).min(RUNS_MAX);
    let mut seen = 0;
    let clip = chunk.tokens.start as usize..chunk.tokens.end as usize;
    let laid_out = memory.section(chunk.section).layout.runs(&part, &chunk.pages, clip, |run| {
        let remote = &memory.regions[usize::from(run.region)];
        let run = RemoteRun { remote, offset: run.offset, local: shift + run.tile_offset, bytes: run.bytes };
        if seen >= work.moves.before && runs.len() < runs_max {
            runs.push(run).expect("at most RUNS_MAX");
        }
        seen += 1;
    });
    match laid_out {
        Err(_) => return Launch::Failed(Failure::Malformed),
        Ok(()) if runs.is_empty() => return Launch::Nothing,
        Ok(()) => {}
    }
    work.moves.now = runs.len();
    work.moves.more = seen > work.moves.before + runs.len();
    let mut areas = ring.memory(slot);
    let held = "nothing holds a slot that waits for the engine";
    let submitted = match chunk.direction {
        _ if comes_back => context.read(word(slot), areas.codes.take().expect(held), &runs),
        Direction::Fetch => {
            let source = match work.from {
                Restored::Wire { .. } => areas.wire.take(),
                Restored::Tile => areas.tile.take().map(Source::Own),
            };
            context.write(word(slot), source.expect(held), &runs)
        }
        Direction::Store => context.read(word(slot), areas.tile.take().expect(held), &runs),
    };
    match submitted {
        Ok(()) => Launch::Started,
        Err(refused) => {
            let error = refused.error;
            match work.from {
                _ if comes_back => areas.codes = refused.area(),
                Restored::Wire { .. } => refused.source.into_iter().for_each(|source| areas.wire.put(source)),
                Restored::Tile => areas.tile = refused.area(),
            }
            refusal(error)
        }
    }
}

/// Gives a slot its area back.
pub fn bring_transferred(
    ring: &Ring,
    slot: Ticket,
    (state, from): (SlotState, Restored),
    completion: Completion,
) -> Result<OperationOutput, doca::Error> {
    let outcome = completion.outcome;
    let mut memory = ring.memory(slot);
    match from {
        _ if comes_back(state) => memory.codes = completion.area(),
        Restored::Wire { .. } => completion.source.into_iter().for_each(|source| memory.wire.put(source)),
        Restored::Tile => memory.tile = completion.area(),
    }
    outcome
}

impl Hub<'_, '_> {
    /// Takes all completions of the two engines; `true` if there were any.
    pub(crate) fn progress(&mut self) -> Result<bool, HubError> {
        let mut busy = false;
        let mut restarted = heapless::Vec::<doca::OperationKind, 2>::new();
        while self.engine.progress() {
            busy = true;
            // Between two calls, so that what a host sends fits its places however fast it sends.
            self.attend_progressed();
        }
        let depth = self.shared.config.inflate_depth;
        while let Some(completion) = self.inflate.as_mut().and_then(|engine| engine.poll(depth)) {
            self.take_inflated(completion);
            busy = true;
        }
        while let Some(completion) = self.bulk.poll(self.shared.config.dma_depth) {
            self.take_transferred(completion);
            busy = true;
        }
        for engine in self.inflate.iter_mut().chain([&mut self.bulk]) {
            if engine.revive()? {
                let kind = engine.context.kind();
                restarted.push(kind).expect("two engines");
            }
        }
        restarted.into_iter().for_each(|kind| self.restarted(kind));
        busy |= self.bulk.prove();
        Ok(busy)
    }

    pub(crate) fn restarted(&mut self, kind: doca::OperationKind) {
        add(&self.shared.counters.engine_restarts[kind as usize], 1);
        self.events.add(HubEvent::EngineRestarted(kind), 0);
    }

    pub(super) fn launch_inflate(&mut self, slot: Ticket) -> Launch {
        let facts = self.pipeline.slots.at(slot).facts;
        let engine = self.inflate.as_mut().expect("asked only where there is one");
        let launch = start_inflate(&mut engine.context, &self.shared.ring, slot, &facts);
        if launch == Launch::Started {
            engine.submitted();
            engine.occupancy.observe(engine.context.in_flight(), &self.shared.counters.inflate);
            self.marks.began(slot, self.now);
        }
        launch
    }

    fn take_inflated(&mut self, completion: Completion) {
        let ticket = ticket(completion.ticket);
        let depth = self.shared.config.inflate_depth;
        let engine = self.inflate.as_mut().expect("it completed something");
        let to_blame = engine.ended(completion.outcome.is_ok(), depth);
        engine.occupancy.observe(engine.context.in_flight(), &self.shared.counters.inflate);
        let facts = self.pipeline.slots.at(ticket).facts;
        let outcome = bring_inflated(&self.shared.ring, ticket, completion);
        let outcome = match outcome {
            Ok(outcome) => {
                let crc_right = !self.crc_trusted() || outcome.crc == Some(facts.codes_crc);
                match outcome.bytes == facts.codes_bytes && crc_right {
                    true => {
                        self.shared.counters.inflate.tally(facts.payload_bytes, facts.codes_bytes);
                        Inflated::Right
                    }
                    false => Inflated::Wrong,
                }
            }
            Err(_) => Inflated::Failed { to_blame },
        };
        self.stage_ended(ticket, TraceStage::Inflate, None);
        self.inflated(ticket, outcome);
    }

    pub(super) fn launch_transfer(&mut self, slot: Ticket) -> Launch {
        let mut work = *self.pipeline.slots.at(slot);
        let chunk =
            self.pipeline.chunks[usize::from(work.target.0)].as_ref().expect("a slot in use belongs to a chunk");
        let memory = self.sessions[chunk.session].as_ref().and_then(|session| session.memory.as_ref());
        let memory = memory.expect("a session lives as long as its chunks, and only one with memory has any");
        let launch = start_transfer(&mut self.bulk.context, &self.shared.ring, slot, &mut work, chunk, memory);
        if launch == Launch::Started {
            let stage = match chunk.direction {
                Direction::Fetch => &self.shared.counters.write,
                Direction::Store => &self.shared.counters.gather,
            };
            self.pipeline.slots.at(slot).moves = work.moves;
            self.bulk.submitted();
            self.bulk.occupancy.observe(self.bulk.context.in_flight(), stage);
            self.marks.began(slot, self.now);
        }
        launch
    }

    fn take_transferred(&mut self, completion: Completion) {
        let ticket = ticket(completion.ticket);
        let to_blame = self.bulk.ended(completion.outcome.is_ok(), self.shared.config.dma_depth);
        let work = self.pipeline.slots.at(ticket);
        let (from, state) = (work.from, work.state);
        let stage = match state {
            SlotState::Gathering | SlotState::Confirming => &self.shared.counters.gather,
            _ => &self.shared.counters.write,
        };
        self.bulk.occupancy.observe(self.bulk.context.in_flight(), stage);
        let outcome = bring_transferred(&self.shared.ring, ticket, (state, from), completion);
        if let (Ok(outcome), false) = (outcome, comes_back(state)) {
            stage.tally(outcome.bytes, outcome.bytes);
        }
        let stage = match state {
            SlotState::Gathering => TraceStage::Gather,
            SlotState::Verifying | SlotState::Confirming => TraceStage::Verify,
            _ => TraceStage::Write,
        };
        self.stage_ended(ticket, stage, None);
        self.transferred(ticket, outcome.map(|_| ()).map_err(|error| Unreached { error, to_blame }));
    }
}
