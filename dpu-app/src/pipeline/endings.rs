//! Endings: of blocks, which give their slots back, of chunks, for their requests and for the store, and of requests
//! and sessions that nobody waits for any more. Generic over the [`World`], as the scheduler is.

use crate::count::counters::add;
use crate::pipeline::World;
use crate::pipeline::chunk::{Direction, FetchVerdict, Phase};
use crate::pipeline::follow::Follow;
use crate::pipeline::job::{Failure, Job, Seat};
use crate::pipeline::slots::Ticket;

/// How blocks and chunks end, for every [`World`].
pub trait Endings: World + Sized {
    /// Takes a block on whose target has failed meanwhile: its slot back, or on to the next target; `true` if it did.
    fn abandoned(&mut self, slot: Ticket) -> bool {
        let pipeline = self.pipeline();
        let (seat, target) = (pipeline.slots.at(slot).seat, pipeline.slots.at(slot).target);
        let failed = pipeline.chunk(target).failure.is_some();
        match failed {
            true if target == seat => self.release(slot),
            true => self.end_target(slot),
            false => {}
        }
        failed
    }

    /// Ends a block that has passed all its stages, for its target.
    fn block_done(&mut self, slot: Ticket) {
        let pipeline = self.pipeline();
        let work = *pipeline.slots.at(slot);
        let chunk = pipeline.chunk(work.target);
        if work.target == work.seat {
            chunk.done += 1;
            if chunk.direction == Direction::Fetch {
                chunk.wire_bytes += (work.facts.payload_start + work.facts.payload_bytes) as u64;
            }
        } else {
            chunk.skips.insert(work.block);
            add(&self.counters().blocks_shared, 1);
        }
        self.end_target(slot);
    }

    /// Fails a block that cannot go on; its chunk ends when its neighbours have left their slots.
    fn block_failed(&mut self, slot: Ticket, failure: Failure) {
        if matches!(failure, Failure::Corrupt(_)) {
            add(&self.counters().blocks_corrupt, 1);
        }
        let pipeline = self.pipeline();
        let work = *pipeline.slots.at(slot);
        pipeline.chunk(work.target).fail(failure, Some(work.block));
        match work.target == work.seat {
            true => self.release(slot),
            false => self.end_target(slot),
        }
    }

    fn release(&mut self, slot: Ticket) {
        self.let_go(slot);
        let pipeline = self.pipeline();
        let seat = pipeline.slots.at(slot).seat;
        pipeline.free_slot(slot);
        pipeline.chunk(seat).in_flight -= 1;
        self.nudge(seat);
    }

    /// Ends a chunk that has nothing left to do.
    fn nudge(&mut self, seat: Seat) {
        let chunk = self.pipeline().chunk(seat);
        if chunk.phase == Phase::Following {
            return self.nudge_follower(seat);
        }
        if chunk.drained() {
            self.close(seat);
        } else if chunk.is_in_place() {
            self.conclude(seat, Ok(()));
        }
        if !self.pipeline().chunk(seat).leads() {
            self.hand_on(seat);
        }
    }

    /// Ends a chunk of which nothing is in flight.
    fn close(&mut self, seat: Seat) {
        let chunk = self.pipeline().chunk(seat);
        chunk.become_phase(Phase::Closing);
        match (chunk.direction, chunk.failure) {
            (Direction::Fetch, None) => {
                self.give(Job::Close { seat, bad: None });
                // The data is in place: no need to wait for the seat.
                self.conclude(seat, Ok(()));
            }
            (Direction::Fetch, Some(_)) => match chunk.verdict(true) {
                FetchVerdict::Over => {
                    let failure = chunk.failure.expect("a verdict changes it and takes it not away");
                    self.give(Job::Close { seat, bad: None });
                    self.conclude(seat, Err(failure));
                }
                FetchVerdict::Anew => {
                    chunk.reopens = true;
                    self.give(Job::Close { seat, bad: None });
                }
                // A host that is told of a bad chunk may store it again at once: by then the store has to know.
                FetchVerdict::Bad(why) => self.give(Job::Close { seat, bad: Some(why) }),
            },
            (Direction::Store, None) => self.give(Job::Commit { seat }),
            (Direction::Store, Some(_)) => self.give(Job::Abort { seat }),
        }
    }

    /// Fetches a chunk once more, by another way.
    fn open_anew(&mut self, seat: Seat) {
        self.pipeline().chunk(seat).start_over();
        add(&self.counters().chunks_reread, 1);
        self.give(Job::Open { seat, anew: true });
    }

    /// Tells the request, once, how its chunk ended.
    fn conclude(&mut self, seat: Seat, result: Result<(), Failure>) {
        if !std::mem::replace(&mut self.pipeline().chunk(seat).concluded, true) {
            self.concluded(seat, result);
        }
    }

    /// Ends a chunk, for its request and for the store.
    fn leave(&mut self, seat: Seat, result: Result<(), Failure>) {
        self.conclude(seat, result);
        self.hand_on(seat);
        self.pipeline().vacate(seat);
    }

    /// Aborts the chunks of a request from `limit` on.
    fn abort_from(&mut self, session: usize, request: usize, limit: u32, failure: Failure) {
        for place in 0..self.pipeline().chunks.len() {
            let Some(chunk) = self.pipeline().chunks[place].as_mut() else { continue };
            let concerned = chunk.session == session && chunk.request == request && !chunk.concluded;
            if concerned && chunk.index >= limit {
                chunk.cut_off(failure);
                let seat = Seat(place as u16);
                self.let_go_of_pages(seat);
                self.nudge(seat);
            }
        }
    }

    /// Frees a request from all its chunks, even those about to leave the store.
    fn give_up(&mut self, session: usize, request: usize) {
        for place in 0..self.pipeline().chunks.len() {
            let Some(chunk) = self.pipeline().chunks[place].as_mut() else { continue };
            if chunk.session == session && chunk.request == request && !chunk.concluded && chunk.failure.is_some() {
                if chunk.is_condemned() {
                    chunk.given_up = true;
                } else {
                    chunk.cut_off(Failure::Deadline);
                }
                let seat = Seat(place as u16);
                self.let_go_of_pages(seat);
                self.nudge(seat);
            }
        }
    }

    /// Ends a chunk that nobody waits for any more, for its request, as soon as nothing moves from or to its pages: not
    /// when the store, or a worker that hangs in it, has answered what is still asked of it.
    fn let_go_of_pages(&mut self, seat: Seat) {
        let chunk = self.pipeline().chunk(seat);
        if let Some(failure) = chunk.failure.filter(|_| chunk.given_up && chunk.moving == 0) {
            self.conclude(seat, Err(failure));
        }
    }

    /// Aborts the chunks of a session that has ended.
    fn abort_session(&mut self, session: usize) {
        for place in 0..self.pipeline().chunks.len() {
            let Some(chunk) = self.pipeline().chunks[place].as_mut() else { continue };
            if chunk.session == session && !chunk.concluded {
                chunk.cut_off(Failure::Gone);
                let seat = Seat(place as u16);
                self.let_go_of_pages(seat);
                self.nudge(seat);
            }
        }
    }
}

impl<W: World> Endings for W {}
