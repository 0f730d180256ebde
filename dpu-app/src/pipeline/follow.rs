//! One fetch for many: a chunk that several sessions ask for at one time is read, inflated and dequantized once, and
//! its tile is written to the pages of all of them.
//!
//! ```text
//!   leader     Opening -> Flowing -> Closing            reads every block that it wants
//!                            |  slot: tile -> its own pages, then those of each follower that wants the block
//!   followers  Following ----+--> (free)                all there
//!                            \--> Opening               the leader is over, and something is missing
//! ```
//! A follower is a chunk in progress like any other, with a deadline, a request and an end of its own; it only opens
//! nothing. A slot has a **target**, the chunk whose pages the DMA engine moves now: first the leader, then a follower,
//! which has a block in flight for as long, so that nothing of it ends while anything moves to its pages. What fails
//! there is that follower's failure. What fails before is the leader's, and never a follower's: when a leader is over,
//! those that miss something go on by themselves, the first of them as a leader of the others. Only that the store has
//! no such chunk is said once and holds for all.
//!
//! Followers have seats of their own, behind those that the store knows, and are as many as those seats. One that goes
//! on by itself moves to a seat of the store as soon as one is free, ahead of chunks that have not started.

use block::{ChunkKey, Geometry, TileOrder};

use crate::config::TEAM_MAX;
use crate::count::counters::add;
use crate::pipeline::Pipeline;
use crate::pipeline::chunk::{ChunkInFlight, Direction, Phase};
use crate::pipeline::job::{Failure, Job, Seat};
use crate::pipeline::scheduler::Scheduler;
use crate::pipeline::slots::Ticket;

/// What two fetches have in common that can share one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedChunk {
    pub key: ChunkKey,
    pub geometry: Geometry,
    pub order: TileOrder,
}

impl ChunkInFlight {
    /// Tells what it shares, if it may.
    #[must_use]
    pub fn shared(&self) -> Option<SharedChunk> {
        let key = self.key.filter(|_| self.direction == Direction::Fetch)?;
        Some(SharedChunk { key, geometry: self.geometry, order: self.order })
    }

    /// Tells whether a chunk that comes now gets all or some of its blocks from this one.
    fn may_lead(&self, shared: &SharedChunk) -> bool {
        let reads = self.phase == Phase::Opening || self.phase == Phase::Flowing && self.next < self.blocks;
        reads && self.failure.is_none() && !self.concluded && self.shared().as_ref() == Some(shared)
    }
}

impl Pipeline {
    /// Finds a chunk in progress that others can follow, and how many more.
    #[must_use]
    pub fn leader_of(&self, shared: &SharedChunk) -> Option<(Seat, usize)> {
        let openers = self.chunks[..self.openers].iter().enumerate();
        let mut leaders = openers.filter_map(|(place, chunk)| {
            let chunk = chunk.as_ref().filter(|chunk| chunk.may_lead(shared))?;
            let room = (TEAM_MAX - 1).saturating_sub(chunk.followers);
            (room > 0).then_some((Seat(place as u16), room))
        });
        leaders.next()
    }

    /// Tells whether there are seats for so many more chunks that follow one of this session. Some are kept for
    /// sessions of which nothing is in progress, so that those which share much do not have them all.
    #[must_use]
    pub fn has_follower_seats(&self, session: usize, count: usize) -> bool {
        let free = self.chunks[self.openers..].iter().filter(|chunk| chunk.is_none()).count();
        let is_in_progress = self.chunks.iter().flatten().any(|chunk| chunk.session == session);
        let kept = if is_in_progress { (TEAM_MAX - 1).min((self.chunks.len() - self.openers) / 4) } else { 0 };
        free >= count + kept
    }

    /// Finds a seat for a chunk that is to follow another.
    #[must_use]
    pub fn follower_seat(&self) -> Option<Seat> {
        let free = self.chunks[self.openers..].iter().position(Option::is_none)?;
        Some(Seat((self.openers + free) as u16))
    }

    /// Has a chunk follow another.
    fn follow(&mut self, seat: Seat, leader: Seat) {
        let (leads, plan, blocks) = {
            let chunk = self.chunk(leader);
            chunk.followers += 1;
            (chunk.phase == Phase::Flowing, chunk.plan, chunk.blocks)
        };
        let chunk = self.chunk(seat);
        chunk.leader = Some(leader);
        if leads {
            chunk.adopt(plan, blocks);
        }
    }

    /// Ends that a chunk follows another, if it does.
    pub(super) fn leave_leader(&mut self, seat: Seat) {
        if let Some(leader) = self.chunk(seat).leader.take() {
            self.chunk(leader).followers -= 1;
        }
    }

    /// Lists the seats of the chunks that follow one now.
    fn followers_of(&self, leader: Seat) -> impl Iterator<Item = (Seat, &ChunkInFlight)> {
        let seated = self.order.iter().map(|&seat| (seat, self.chunks[usize::from(seat.0)].as_ref()));
        seated.filter_map(move |(seat, chunk)| {
            let chunk = chunk.filter(|chunk| chunk.leader == Some(leader))?;
            Some((seat, chunk))
        })
    }

    /// Finds who gets a block next that its leader has.
    fn next_target(&self, leader: Seat, block: u16) -> Option<Seat> {
        let wants = |chunk: &ChunkInFlight| chunk.failure.is_none() && !chunk.skips.contains(block);
        let mut waiting = self.followers_of(leader).filter(|(_, chunk)| wants(chunk));
        waiting.next().map(|(seat, _)| seat)
    }

    /// Takes a turn of each session that gets a block along with `payer`.
    pub(super) fn charge_others(&mut self, leader: Seat, payer: usize) {
        for place in 0..self.order.len() {
            let seat = self.order[place];
            let chunk = self.chunk(seat);
            let session = chunk.session;
            if (seat == leader || chunk.leader == Some(leader)) && session != payer {
                self.turns.take(session);
            }
        }
    }

    /// Gives a chunk that has followed a seat of the store, if one is free.
    fn reseat(&mut self, seat: Seat) -> Option<Seat> {
        let free = Seat(self.chunks[..self.openers].iter().position(Option::is_none)? as u16);
        self.chunks.swap(seat.0.into(), free.0.into());
        let place = self.order.iter_mut().find(|other| **other == seat).expect("a chunk in progress is in order");
        *place = free;
        Some(free)
    }
}

/// What becomes of chunks that follow others.
pub trait Follow: Scheduler {
    /// Seats a chunk that is to get what the chunk in another seat fetches.
    fn join(&mut self, seat: Seat, leader: Seat, chunk: ChunkInFlight) {
        let pipeline = self.pipeline();
        pipeline.sit(seat, ChunkInFlight { phase: Phase::Following, ..chunk });
        pipeline.follow(seat, leader);
        add(&self.counters().chunks_joined, 1);
        self.nudge(seat);
    }

    /// Has the followers of a chunk that was opened know how it is cut into blocks.
    fn tell_plan(&mut self, leader: Seat) {
        let chunk = self.pipeline().chunk(leader);
        let (plan, blocks) = (chunk.plan, chunk.blocks);
        self.each_follower(leader, |scheduler, seat| {
            scheduler.pipeline().chunk(seat).adopt(plan, blocks);
            scheduler.nudge(seat);
        });
    }

    /// Has the followers of a chunk that the store does not have end like it.
    fn tell_miss(&mut self, leader: Seat, failure: Failure) {
        if matches!(failure, Failure::Miss | Failure::Foreign(_)) {
            self.each_follower(leader, |scheduler, seat| {
                scheduler.pipeline().chunk(seat).fail(failure, None);
                scheduler.nudge(seat);
            });
        }
    }

    /// Has the followers of a chunk that is over go on by themselves.
    fn hand_on(&mut self, leader: Seat) {
        self.each_follower(leader, |scheduler, seat| {
            scheduler.pipeline().leave_leader(seat);
            scheduler.nudge(seat);
        });
    }

    fn each_follower(&mut self, leader: Seat, mut tell: impl FnMut(&mut Self, Seat)) {
        if self.pipeline().chunk(leader).followers == 0 {
            return;
        }
        for place in self.pipeline().openers..self.pipeline().chunks.len() {
            let chunk = self.pipeline().chunks[place].as_ref();
            if chunk.is_some_and(|chunk| chunk.leader == Some(leader)) {
                tell(self, Seat(place as u16));
            }
        }
    }

    /// Ends a chunk that follows another and has nothing left to wait for.
    fn nudge_follower(&mut self, seat: Seat) {
        let chunk = self.pipeline().chunk(seat);
        if chunk.in_flight > 0 {
            return;
        }
        let result = chunk.failure.map_or(Ok(()), Err);
        if result.is_err() || chunk.skips.count() == chunk.blocks {
            self.leave(seat, result);
        }
    }

    /// Goes on with chunks whose leader is over: behind another, or by themselves where there is a seat; `true` if any
    /// did.
    fn go_on_alone(&mut self) -> bool {
        let mut busy = false;
        for place in self.pipeline().openers..self.pipeline().chunks.len() {
            let pipeline = self.pipeline();
            let Some(chunk) = pipeline.chunks[place].as_ref() else { continue };
            if chunk.leader.is_some() || chunk.failure.is_some() || chunk.in_flight > 0 {
                continue;
            }
            let seat = Seat(place as u16);
            let shared = chunk.shared().expect("what follows shares");
            if let Some((leader, _)) = pipeline.leader_of(&shared) {
                pipeline.follow(seat, leader);
                self.nudge(seat);
            } else if let Some(own) = pipeline.reseat(seat) {
                pipeline.chunk(own).become_phase(Phase::Opening);
                self.reseated(seat, own);
                self.give(Job::Open { seat: own, anew: false });
            } else {
                break;
            }
            busy = true;
        }
        busy
    }

    /// Goes on with a slot that is through with its target, well or not: to the next one that wants its block, or out
    /// of the ring.
    fn end_target(&mut self, slot: Ticket) {
        let pipeline = self.pipeline();
        let work = *pipeline.slots.at(slot);
        let is_led = pipeline.chunk(work.seat).followers > 0;
        let next = if is_led { pipeline.next_target(work.seat, work.block) } else { None };
        match next {
            Some(target) => {
                pipeline.chunk(target).in_flight += 1;
                pipeline.slots.aim(slot, target);
                pipeline.queue_transfer(slot);
            }
            None => self.release(slot),
        }
        if work.target != work.seat {
            self.pipeline().chunk(work.target).in_flight -= 1;
        }
        if next.is_some() || work.target != work.seat {
            self.nudge(work.target);
        }
    }
}

impl<S: Scheduler> Follow for S {}
