//! Since when each seat and each slot is in the stage that it is in: what spans (trace.rs) are made of.
//!
//! A stage begins where the one before it ended, with the clock of the engine thread's turn. Beside a session's place,
//! which is another session's one day, a mark has the ids that people know.

use std::time::{Duration, Instant};

use crate::config::{Config, follower_seats};
use crate::count::trace::{Asker, RequestPart, TraceSpan, TraceStage, slower};
use crate::hub::Hub;
use crate::hub::session::Whose;
use crate::pipeline::chunk::{Direction, Phase};
use crate::pipeline::job::{Done, Seat};
use crate::pipeline::slots::{SlotState, Ticket};

/// Marks of a chunk in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeatMark {
    pub(crate) asker: Asker,
    /// Place of its session.
    pub(crate) index: usize,
    pub(crate) whose: Whose,
    pub(crate) chunk: u32,
    pub(crate) since: Instant,
}

/// Marks of a block in progress.
#[derive(Clone, Copy, Debug)]
struct SlotMark {
    since: Instant,
    /// Time at which an engine took it.
    began: Option<Instant>,
}

/// Marks by seat and by slot.
#[derive(Debug)]
pub(crate) struct Marks {
    seats: Vec<SeatMark>,
    slots: Vec<SlotMark>,
}

impl Marks {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        let (asker, whose) = (Asker { session: 0, request: 0 }, Whose { place: 0, serial: 0 });
        let seat = SeatMark { asker, index: 0, whose, chunk: 0, since: now };
        let seats = config.chunks + follower_seats(config);
        Self { seats: vec![seat; seats], slots: vec![SlotMark { since: now, began: None }; config.slots] }
    }

    fn seat(&mut self, seat: Seat) -> &mut SeatMark {
        &mut self.seats[usize::from(seat.0)]
    }

    pub(crate) fn asker(&self, seat: Seat) -> Asker {
        self.seats[usize::from(seat.0)].asker
    }

    /// Marks that a chunk has its seat.
    pub(crate) fn sat(&mut self, seat: Seat, mark: SeatMark) {
        *self.seat(seat) = mark;
    }

    /// Marks that a chunk has another seat.
    pub(crate) fn reseated(&mut self, from: Seat, to: Seat) {
        *self.seat(to) = *self.seat(from);
    }

    /// Marks that an engine has taken the slot's block.
    pub(crate) fn began(&mut self, slot: Ticket, now: Instant) {
        self.slots[usize::from(slot.index)].began = Some(now);
    }
}

/// Splits the time from `since` to `now`, of which `worked` was work, into waiting and work.
fn parts(since: Instant, now: Instant, worked: Duration) -> (Duration, Duration) {
    let took = now.saturating_duration_since(since);
    let worked = worked.min(took);
    (took - worked, worked)
}

impl Hub<'_, '_> {
    /// Keeps a stage of a chunk or block that has ended, in its request too if none was slower.
    pub(crate) fn note(&mut self, seat: Seat, block: Option<u16>, stage: TraceStage, parts: (Duration, Duration)) {
        let SeatMark { asker, index, whose, chunk, .. } = *self.marks.seat(seat);
        let span = self.trace.add(self.now, asker, RequestPart { chunk: Some(chunk), block }, stage, parts);
        // A chunk that is over for its request may outlive its session.
        let Some(request) = self.sessions[index].as_mut().and_then(|session| session.request_of(whose)) else { return };
        if request.slowest.is_some_and(|slowest| slowest.took() >= span.took()) {
            return;
        }
        // A wait for a place behind itself is a wait for what those are at.
        let (seats, slots) = self.holds(index, whose, seat);
        let behind_itself = stage == TraceStage::Seat && seats > 0 || stage == TraceStage::Slot && slots > 1;
        let request = self.sessions[index].as_mut().and_then(|session| session.request_of(whose));
        if let Some(request) = request.filter(|_| !behind_itself) {
            request.slowest = Some(span);
        }
    }

    /// Counts the seats that a request has, beside `but`, and all its slots.
    fn holds(&self, index: usize, whose: Whose, but: Seat) -> (usize, usize) {
        let (mut seats, mut slots) = (0, 0);
        for &seat in &self.pipeline.order {
            let mark = &self.marks.seats[usize::from(seat.0)];
            if mark.index == index && mark.whose == whose {
                let chunk = self.pipeline.chunks[usize::from(seat.0)].as_ref();
                seats += usize::from(seat != but);
                slots += chunk.map_or(0, |chunk| usize::from(chunk.in_flight));
            }
        }
        (seats, slots)
    }

    /// Notes how long a chunk has waited for the slot that its block has now.
    pub(crate) fn waited_for_slot(&mut self, slot: Ticket) {
        let work = self.pipeline.slots.at(slot);
        let (seat, block, now) = (work.seat, work.block, self.now);
        let since = std::mem::replace(&mut self.marks.seat(seat).since, now);
        self.marks.slots[usize::from(slot.index)] = SlotMark { since: now, began: None };
        self.note(seat, Some(block), TraceStage::Slot, (now.saturating_duration_since(since), Duration::ZERO));
    }

    /// Notes that a stage of a slot's block has ended, and the next begins. `worked` is the worker's own time.
    pub(crate) fn stage_ended(&mut self, slot: Ticket, stage: TraceStage, worked: Option<Duration>) {
        let work = self.pipeline.slots.at(slot);
        let (seat, block, now) = (work.target, work.block, self.now);
        let mark = &mut self.marks.slots[usize::from(slot.index)];
        let since = std::mem::replace(&mut mark.since, now);
        let by_engine = mark.began.take().map(|began| now.saturating_duration_since(began));
        let worked = worked.or(by_engine).unwrap_or_default();
        self.note(seat, Some(block), stage, parts(since, now, worked));
    }

    /// Notes that a worker has answered.
    pub(crate) fn job_ended(&mut self, done: &Done, worked: Duration) {
        match *done {
            Done::Read { slot, .. } => self.stage_ended(slot, TraceStage::Fetch, Some(worked)),
            Done::Inflated { slot, .. } => self.stage_ended(slot, TraceStage::Inflate, Some(worked)),
            Done::Compared { slot, .. } => self.stage_ended(slot, TraceStage::Verify, Some(worked)),
            Done::Restored { slot, .. } => self.stage_ended(slot, TraceStage::Dequantize, Some(worked)),
            Done::Encoded { slot, .. } => self.stage_ended(slot, TraceStage::Encode, Some(worked)),
            Done::Opened { seat, .. } | Done::Misread { seat, .. } => {
                self.seat_stage_ended(seat, TraceStage::Open, worked)
            }
            Done::Began { seat, .. } => self.seat_stage_ended(seat, TraceStage::Begin, worked),
            Done::Committed { seat, .. } => self.seat_stage_ended(seat, TraceStage::Commit, worked),
            Done::Looked { session, .. } => self.looked_up(usize::from(session), worked),
            Done::Rated { .. } | Done::Touched { .. } | Done::Closed { .. } | Done::Aborted { .. } => {}
        }
    }

    fn seat_stage_ended(&mut self, seat: Seat, stage: TraceStage, worked: Duration) {
        let since = std::mem::replace(&mut self.marks.seat(seat).since, self.now);
        self.note(seat, None, stage, parts(since, self.now, worked));
    }

    fn looked_up(&mut self, index: usize, worked: Duration) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let (id, whose) = (session.id, session.looking);
        let Some(request) = whose.and_then(|whose| session.request_of(whose)) else { return };
        let asker = Asker { session: id, request: request.command.request };
        let span = self.trace.add(
            self.now,
            asker,
            RequestPart::ALL,
            TraceStage::Lookup,
            parts(request.moved, self.now, worked),
        );
        request.slowest = slower(request.slowest, span);
    }

    /// Notes what a request that its deadline is about to cut waits for, as far as that has come.
    pub(crate) fn note_unfinished(&mut self, index: usize, place: usize) {
        let now = self.now;
        let Some(session) = self.sessions[index].as_ref() else { return };
        let Some(request) = session.requests[place].as_ref() else { return };
        let whose = Whose { place, serial: request.serial };
        let asker = Asker { session: session.id, request: request.command.request };
        let mut slowest = request.slowest;
        let mut consider = |piece, stage, since: Instant, began: Option<Instant>| {
            let worked = began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
            let (queued, worked) = parts(since, now, worked);
            let span = TraceSpan { at_ms: 0, asker, piece, stage, queued, worked, unfinished: true };
            slowest = slower(slowest, span);
        };
        // Who waits for a place behind itself waits for what those are at.
        let nobody = Seat(u16::MAX);
        let (seats, slots) = self.holds(index, whose, nobody);
        if request.asked {
            consider(RequestPart::ALL, TraceStage::Lookup, request.moved, None);
        } else if request.wants_more() && seats == 0 {
            consider(RequestPart::chunk(request.next), TraceStage::Seat, request.moved, None);
        }
        for &seat in &self.pipeline.order {
            let mark = self.marks.seats[usize::from(seat.0)];
            let chunk = self.pipeline.chunks[usize::from(seat.0)].as_ref().expect("a seat in order is taken");
            if mark.index == index && mark.whose == whose && !chunk.concluded {
                let stage = match (chunk.phase, chunk.direction) {
                    (Phase::Opening, Direction::Fetch) => Some(TraceStage::Open),
                    (Phase::Opening, Direction::Store) => Some(TraceStage::Begin),
                    (Phase::Closing, Direction::Store) => Some(TraceStage::Commit),
                    (Phase::Following, _) => Some(TraceStage::Follow),
                    (Phase::Flowing, _) if chunk.wants_slot() && slots == 0 => Some(TraceStage::Slot),
                    _ => None,
                };
                stage.into_iter().for_each(|stage| consider(RequestPart::chunk(mark.chunk), stage, mark.since, None));
            }
        }
        for (number, work) in self.pipeline.slots.taken() {
            let seat = self.marks.seats[usize::from(work.target.0)];
            if seat.index == index && seat.whose == whose {
                let stage = match work.state {
                    SlotState::Free => continue,
                    SlotState::Fetching => TraceStage::Fetch,
                    SlotState::Inflating => TraceStage::Inflate,
                    SlotState::Restoring => TraceStage::Dequantize,
                    SlotState::Writing => TraceStage::Write,
                    SlotState::Verifying | SlotState::Confirming => TraceStage::Verify,
                    SlotState::Gathering => TraceStage::Gather,
                    SlotState::Encoding => TraceStage::Encode,
                };
                let mark = self.marks.slots[number];
                consider(RequestPart::block(seat.chunk, work.block), stage, mark.since, mark.began);
            }
        }
        if let Some(request) = self.sessions[index].as_mut().and_then(|session| session.request_of(whose)) {
            request.slowest = slowest;
        }
    }
}
