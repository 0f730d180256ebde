//! The decisions: blocks become jobs, answers become next stages, chunks end (endings.rs). Generic over the [`World`],
//! so that the data plane and the simulator run the same code.
//!
//! A failure stops a whole context (DOCA), so whatever fails is submitted again; who fails alone is to blame
//! (probation.rs). A block that the inflate engine cannot take alone is judged by software: if that can inflate it, the
//! block goes on and the engine was wrong; if not, the stored bytes are proven bad. Host memory that the DMA engine
//! cannot reach alone belongs to a host that is gone: its session ends. What it moved is compared where `--verify-dma`
//! asks for it (verify.rs), and moved again where it differs.

use block::Codec;

use crate::config::VERIFY_TRIES;
use crate::count::counters::add;
use crate::pipeline::chunk::{Direction, FetchVerdict, Phase};
use crate::pipeline::endings::Endings;
use crate::pipeline::follow::Follow;
use crate::pipeline::job::{Done, Failure, Job, Restored, Seat};
use crate::pipeline::probation::{BLAMES_MAX, UNREACHABLE_MIN};
use crate::pipeline::slots::{Moves, SlotState, SlotWork, Ticket};
use crate::pipeline::{Inflated, Launch, Unreached, World};

/// Every decision of the data plane, for every [`World`].
pub trait Scheduler: Endings + Sized {
    /// Starts what can start; `true` if anything did.
    fn schedule(&mut self) -> bool {
        let mut busy = self.go_on_alone();
        for session in self.pipeline().sessions_in_turn() {
            busy |= self.start_chunks(session);
        }
        busy |= self.give_slots(Direction::Fetch);
        busy |= self.give_slots(Direction::Store);
        busy |= self.submit();
        busy
    }

    /// Gives free slots to the blocks of a direction that are next in line.
    fn give_slots(&mut self, direction: Direction) -> bool {
        let mut busy = false;
        while !(direction == Direction::Store && self.pipeline().stores_are_full()) {
            let Some((seat, payer)) = self.pipeline().next_in_line(direction) else { break };
            let chunk = self.pipeline().chunk(seat);
            let block = chunk.block_at(chunk.next);
            chunk.next += 1;
            busy = true;
            if direction == Direction::Fetch && chunk.skips.contains(block) {
                chunk.done += 1;
                self.nudge(seat);
            } else {
                chunk.in_flight += 1;
                self.start_block(direction, (seat, payer), block);
            }
        }
        busy
    }

    /// Starts the first stage of a block. A slot is free.
    fn start_block(&mut self, direction: Direction, (seat, payer): (Seat, usize), block: u16) {
        let pipeline = self.pipeline();
        let slot = pipeline.take_slot(direction, (seat, payer), block);
        self.slot_taken(slot);
        match direction {
            Direction::Fetch => self.give(Job::Read { slot, seat, block }),
            Direction::Store => {
                let pipeline = self.pipeline();
                pipeline.slots.at(slot).from = Restored::Tile;
                pipeline.queue_transfer(slot);
            }
        }
    }

    /// Gives the engines what waits for them; `true` if anything was submitted.
    fn submit(&mut self) -> bool {
        let mut busy = false;
        while let Some(&(_, slot)) = self.pipeline().to_inflate.peek() {
            let by_engine = self.engine_takes(slot);
            if by_engine && !self.inflate_has_room() {
                break;
            }
            self.pipeline().to_inflate.pop();
            busy = true;
            if self.abandoned(slot) {
                continue;
            }
            if !by_engine {
                self.give(Job::Inflate { slot });
            } else if !self.submit_inflate(slot) {
                break;
            }
        }
        while self.transfer_has_room() {
            let Some((_, slot)) = self.pipeline().to_transfer.pop() else { break };
            busy = true;
            if !self.abandoned(slot) && !self.submit_transfer(slot) {
                break;
            }
        }
        busy
    }

    /// Tells whether the engine is to inflate this block: it can, and is not in doubt.
    fn engine_takes(&mut self, slot: Ticket) -> bool {
        let pipeline = self.pipeline();
        let work = pipeline.slots.at(slot);
        let knows = |lz4| match work.facts.codec {
            Codec::Deflate => true,
            Codec::Lz4 => lz4,
            _ => false,
        };
        work.blames < BLAMES_MAX && pipeline.inflater.is_some_and(|inflater| knows(inflater.lz4))
    }

    /// Submits it to the engine; `false`: no room, the ticket waits.
    fn submit_inflate(&mut self, slot: Ticket) -> bool {
        let launch = self.inflate(slot);
        if launch == Launch::Started {
            return true;
        }
        if launch != Launch::NoRoom {
            // The engine will not take it: let software decide.
            self.pipeline().slots.at(slot).blames = BLAMES_MAX;
        }
        self.pipeline().queue_inflate(slot);
        launch != Launch::NoRoom
    }

    /// Submits it to the engine; `false`: no room, the ticket waits.
    fn submit_transfer(&mut self, slot: Ticket) -> bool {
        match self.transfer(slot) {
            Launch::Started => {
                let pipeline = self.pipeline();
                let target = pipeline.slots.at(slot).target;
                pipeline.chunk(target).moving += 1;
            }
            Launch::Nothing => self.block_done(slot),
            Launch::Failed(failure) => self.block_failed(slot, failure),
            Launch::NoRoom => {
                self.pipeline().queue_transfer(slot);
                return false;
            }
        }
        true
    }

    /// Takes a worker's answer. Those about look-ups and prefixes concern no chunk and do not come here.
    fn answered(&mut self, done: Done) {
        match done {
            Done::Looked { .. } | Done::Touched { .. } | Done::Rated { .. } => {
                unreachable!("{done:?} is for the session")
            }
            Done::Opened { seat, blocks: Ok((plan, blocks)) } => {
                let chunk = self.pipeline().chunk(seat);
                chunk.adopt(plan, blocks);
                chunk.become_phase(Phase::Flowing);
                self.tell_plan(seat);
                self.nudge(seat);
            }
            Done::Began { seat, started: Ok(true) } => {
                self.pipeline().chunk(seat).become_phase(Phase::Flowing);
                self.nudge(seat);
            }
            Done::Began { seat, started: Ok(false) } => {
                add(&self.counters().chunks_known, 1);
                self.leave(seat, Ok(()));
            }
            Done::Opened { seat, blocks: Err(failure) } => {
                let chunk = self.pipeline().chunk(seat);
                chunk.fail(failure, None);
                match chunk.verdict(false) {
                    FetchVerdict::Anew => self.open_anew(seat),
                    // Its store knows how to judge what it cannot open, and has done so.
                    FetchVerdict::Over | FetchVerdict::Bad(_) => {
                        let failure = chunk.failure.expect("just set");
                        self.tell_miss(seat, failure);
                        self.leave(seat, Err(failure));
                    }
                }
            }
            Done::Misread { seat, failure } => {
                let chunk = self.pipeline().chunk(seat);
                chunk.become_phase(Phase::Flowing);
                chunk.fail(failure, None);
                self.nudge(seat);
            }
            Done::Began { seat, started: Err(failure) } => self.leave(seat, Err(failure)),
            Done::Read { slot, facts: Ok(facts) } => {
                self.pipeline().slots.at(slot).facts = facts;
                if self.abandoned(slot) {
                    return;
                }
                match facts.codec {
                    Codec::Raw => self.dequantize(slot, true, true),
                    _ => self.queue_inflate(slot),
                }
            }
            Done::Inflated { slot, result: Ok(()) } => {
                add(&self.counters().blocks_in_software, 1);
                self.dequantize(slot, false, false);
            }
            Done::Restored { slot, from: Err(Failure::Corrupt(_)) } if self.engine_takes(slot) => {
                // Inflated by the engine, checked in software: wrong bytes of the store or of the engine? Software
                // decides.
                if !self.abandoned(slot) {
                    self.pipeline().slots.at(slot).blames = BLAMES_MAX;
                    self.queue_inflate(slot);
                }
            }
            Done::Restored { slot, from: Ok(from) } => {
                self.pipeline().slots.at(slot).from = from;
                if !self.abandoned(slot) {
                    let pipeline = self.pipeline();
                    pipeline.slots.set(slot, SlotState::Writing);
                    pipeline.queue_transfer(slot);
                }
            }
            Done::Compared { slot, same } => self.compared(slot, same),
            Done::Encoded { slot, wire_bytes: Ok(bytes) } => {
                let pipeline = self.pipeline();
                let seat = pipeline.slots.at(slot).seat;
                pipeline.chunk(seat).wire_bytes += u64::from(bytes);
                self.block_done(slot);
            }
            Done::Read { slot, facts: Err(failure) }
            | Done::Inflated { slot, result: Err(failure) }
            | Done::Restored { slot, from: Err(failure) }
            | Done::Encoded { slot, wire_bytes: Err(failure) } => self.block_failed(slot, failure),
            Done::Committed { seat, result } => {
                if result.is_ok() {
                    add(&self.counters().chunks_stored, 1);
                }
                self.leave(seat, result);
            }
            Done::Aborted { seat } => {
                let failure = self.pipeline().chunk(seat).failure.unwrap_or(Failure::Gone);
                self.leave(seat, Err(failure));
            }
            Done::Closed { seat } => {
                let chunk = self.pipeline().chunk(seat);
                let failure = chunk.failure;
                if chunk.reopens && !chunk.given_up {
                    self.open_anew(seat);
                } else {
                    self.leave(seat, failure.map_or(Ok(()), Err));
                }
            }
        }
    }

    fn queue_inflate(&mut self, slot: Ticket) {
        let pipeline = self.pipeline();
        pipeline.slots.set(slot, SlotState::Inflating);
        pipeline.queue_inflate(slot);
    }

    /// Goes on after an operation of the inflate engine; the slot has its memory back.
    fn inflated(&mut self, slot: Ticket, outcome: Inflated) {
        match outcome {
            Inflated::Right => {
                let check = !self.pipeline().inflater.is_some_and(|inflater| inflater.crc_trusted);
                return self.dequantize(slot, false, check);
            }
            // Wrong bytes, of the store or of the engine: software decides.
            Inflated::Wrong => self.pipeline().slots.at(slot).blames = BLAMES_MAX,
            Inflated::Failed { to_blame } => {
                self.pipeline().slots.at(slot).blames += u8::from(to_blame);
                add(&self.counters().blocks_resubmitted, 1);
            }
        }
        self.pipeline().queue_inflate(slot);
    }

    /// Starts the next stage of a block whose codes are there (or whose payload is the codes).
    fn dequantize(&mut self, slot: Ticket, from_wire: bool, check: bool) {
        if self.abandoned(slot) {
            return;
        }
        let pipeline = self.pipeline();
        let seat = pipeline.slots.at(slot).seat;
        let order = pipeline.chunk(seat).order;
        pipeline.slots.set(slot, SlotState::Restoring);
        self.give(Job::Restore { slot, order, from_wire, check });
    }

    /// Goes on after an operation of the DMA engine; the slot has its memory back.
    fn transferred(&mut self, slot: Ticket, outcome: Result<(), Unreached>) {
        let pipeline = self.pipeline();
        let target = pipeline.slots.at(slot).target;
        pipeline.chunk(target).moving -= 1;
        self.let_go_of_pages(target);
        let work = self.pipeline().slots.at(slot);
        match outcome {
            Ok(()) if work.moves.more => {
                work.moves = Moves { before: work.moves.before + work.moves.now, now: 0, more: false };
                if !self.abandoned(slot) {
                    self.pipeline().queue_transfer(slot);
                }
            }
            Ok(()) => self.moved(slot),
            Err(Unreached { error, to_blame }) => {
                work.blames += u8::from(to_blame);
                // First in line, so that those that failed are alone while operations run alone (probation.rs): behind
                // others that succeed the culprit would never be found.
                work.turn = 0;
                let blames = work.blames;
                if blames < UNREACHABLE_MIN {
                    add(&self.counters().blocks_resubmitted, 1);
                    self.pipeline().queue_transfer(slot);
                    return;
                }
                let session = self.pipeline().chunk(target).session;
                self.block_failed(slot, Failure::Device(error));
                self.unreachable(session, error);
            }
        }
    }

    /// Goes on with a block whose bytes the DMA engine says it has moved.
    fn moved(&mut self, slot: Ticket) {
        let work = *self.pipeline().slots.at(slot);
        let next = match work.state {
            SlotState::Writing if work.verify => SlotState::Verifying,
            SlotState::Gathering if work.verify => SlotState::Confirming,
            // Nothing is left to do with them: a chunk that failed meanwhile has this in place all the same.
            SlotState::Writing => return self.block_done(slot),
            _ if self.abandoned(slot) => return,
            SlotState::Verifying | SlotState::Confirming => {
                let tokens = self.pipeline().chunk(work.target).tokens;
                let SlotWork { seat, block, from, .. } = work;
                return self.give(Job::Compare { slot, seat, block, from, tokens });
            }
            _ => return self.encode(slot),
        };
        if !self.abandoned(slot) {
            self.go_to(slot, next);
        }
    }

    /// Has all of the block's bytes moved, from the first on.
    fn go_to(&mut self, slot: Ticket, next: SlotState) {
        let pipeline = self.pipeline();
        pipeline.slots.set(slot, next);
        pipeline.slots.at(slot).moves = Moves::NONE;
        pipeline.queue_transfer(slot);
    }

    fn encode(&mut self, slot: Ticket) {
        let pipeline = self.pipeline();
        let (seat, block) = (pipeline.slots.at(slot).seat, pipeline.slots.at(slot).block);
        pipeline.slots.set(slot, SlotState::Encoding);
        self.give(Job::Encode { slot, seat, block });
    }

    /// Takes the result of a comparison. What differs is moved again, `VERIFY_TRIES` times in all.
    fn compared(&mut self, slot: Ticket, same: bool) {
        add(&self.counters().blocks_compared, 1);
        let stores = self.pipeline().slots.at(slot).state.stores();
        if same {
            match stores {
                true if self.abandoned(slot) => {}
                true => self.encode(slot),
                false => self.block_done(slot),
            }
            return;
        }
        add(&self.counters().blocks_differed, 1);
        let pipeline = self.pipeline();
        pipeline.verifier.doubt();
        let work = pipeline.slots.at(slot);
        work.differed += 1;
        let goes_again = work.differed < VERIFY_TRIES;
        self.differed(slot, goes_again);
        if !goes_again {
            self.block_failed(slot, Failure::Unverified);
        } else if !self.abandoned(slot) {
            let next = if stores { SlotState::Gathering } else { SlotState::Writing };
            self.go_to(slot, next);
        }
    }
}

impl<W: World> Scheduler for W {}
