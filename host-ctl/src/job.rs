//! One request of a caller and the page requests ("parts") that it is cut into.
//!
//! ```text
//! chunks   [ part 0 ][ part 1 ][ part 2 ][ ...        at most PARTS_MAX in flight, completions in any order
//! done      ======== ==|                              counted from the front, up to the first short part
//! ```
//! After a short part nothing more is posted and what is in flight behind it is cancelled: its chunks cannot count. The
//! job ends when its last part has, so that nobody writes to the caller's pages any more. Pure: no ring, no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use block::{ChunkKey, Importance};
use mailbox::{Operation, Status, Tokens};

/// Parts of one job in flight: enough to hide the turn-around, few enough to share the ring.
pub(crate) const PARTS_MAX: usize = 4;

/// What to post next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobPart {
    /// First chunk of the job, and how many.
    pub(crate) first: usize,
    pub(crate) chunks: usize,
    pub(crate) tokens: Tokens,
    pub(crate) deadline_us: u32,
}

/// How a part ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartOutcome {
    pub(crate) status: Status,
    pub(crate) done: u32,
    pub(crate) wire_bytes: u64,
    pub(crate) restored_bytes: u64,
    pub(crate) elapsed_us: u32,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    request: u64,
    first: usize,
    chunks: usize,
    outcome: Option<PartOutcome>,
    cancelled: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ClientJob {
    pub(crate) id: u64,
    pub(crate) operation: Operation,
    pub(crate) keys: Box<[ChunkKey]>,
    /// Page numbers of all chunks, equally many each.
    pub(crate) pages: Box<[u32]>,
    /// One for each chunk, or none at all.
    pub(crate) importances: Box<[Importance]>,
    pub(crate) target: u64,
    pub(crate) again: bool,
    pub(crate) section: u16,
    pub(crate) since: Instant,
    window: Option<Window>,
    tokens: Tokens,
    chunk_tokens: u32,
    part_chunks: usize,
    deadline: Option<Instant>,
    /// Chunks that parts were made of.
    posted: usize,
    began: bool,
    flights: VecDeque<Flight>,
    /// Leading chunks, up to the first short part.
    pub(crate) done: usize,
    /// Status of the first short part: what the job ended with.
    short: Option<Status>,
    /// Why nothing more is posted.
    stopped: Option<Status>,
    pub(crate) wire_bytes: u64,
    pub(crate) restored_bytes: u64,
    pub(crate) card_us: u64,
    pub(crate) answer: String,
}

/// A look-up for the trailing chunks of a hit. Its parts go one by one, from the end of the keys to their start: the
/// first in which a hit ends is the answer.
#[derive(Clone, Copy, Debug)]
struct Window {
    trailing: usize,
    /// No hit ends behind this chunk.
    end: usize,
}

/// What a caller asks, checked by the client.
#[derive(Debug)]
pub(crate) struct JobSpec {
    pub(crate) operation: Operation,
    pub(crate) keys: Box<[ChunkKey]>,
    pub(crate) pages: Box<[u32]>,
    pub(crate) importances: Box<[Importance]>,
    pub(crate) tokens: Tokens,
    pub(crate) target: u64,
    pub(crate) deadline: Option<Duration>,
    pub(crate) again: bool,
    pub(crate) section: u16,
    /// Chunks before its end that a hit of a look-up needs, fewer than those of a part; 0: all.
    pub(crate) trailing: usize,
    pub(crate) chunk_tokens: u32,
    pub(crate) part_chunks: usize,
}

impl ClientJob {
    pub(crate) fn new(id: u64, ask: JobSpec, now: Instant) -> ClientJob {
        assert!(ask.part_chunks > 0);
        let window = (ask.trailing > 0).then_some(Window { trailing: ask.trailing, end: ask.keys.len() });
        ClientJob {
            id,
            operation: ask.operation,
            keys: ask.keys,
            pages: ask.pages,
            importances: ask.importances,
            target: ask.target,
            again: ask.again,
            section: ask.section,
            since: now,
            window,
            tokens: ask.tokens,
            chunk_tokens: ask.chunk_tokens,
            part_chunks: ask.part_chunks,
            deadline: ask.deadline.map(|deadline| now + deadline),
            posted: 0,
            began: false,
            flights: VecDeque::new(),
            done: 0,
            short: None,
            stopped: None,
            wire_bytes: 0,
            restored_bytes: 0,
            card_us: 0,
            answer: String::new(),
        }
    }

    /// Parts on the page.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.iter().filter(|flight| flight.outcome.is_none()).count()
    }

    pub(crate) fn owns(&self, request: u64) -> bool {
        self.flights.iter().any(|flight| flight.request == request)
    }

    /// When the job ends by itself, if it still waits to be posted.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.deadline.filter(|_| self.stopped.is_none() && !self.is_posted())
    }

    fn is_posted(&self) -> bool {
        self.began && self.posted == self.keys.len()
    }

    /// Ends a job whose deadline has passed, as far as it is not on the page: there the card has the deadline.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires().is_some_and(|deadline| deadline <= now) {
            self.stopped = Some(Status::DeadlineExceeded);
        }
    }

    /// The part to post next, if there is one and it may go.
    pub(crate) fn next(&self, now: Instant) -> Option<JobPart> {
        if self.stopped.is_some() || self.is_posted() || self.in_flight() >= PARTS_MAX {
            return None;
        }
        let (first, chunks) = match self.window {
            Some(_) if self.in_flight() > 0 => return None,
            Some(Window { end, .. }) => (end - self.part_chunks.min(end), self.part_chunks.min(end)),
            None => (self.posted, self.part_chunks.min(self.keys.len() - self.posted)),
        };
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        // Never 0, which would leave the deadline to the card.
        let deadline_us = left.map_or(0, |left| left.as_micros().clamp(1, u128::from(u32::MAX)) as u32);
        Some(JobPart { first, chunks, tokens: self.clip(first, chunks), deadline_us })
    }

    /// The job's tokens, counted from the part's first.
    fn clip(&self, first: usize, chunks: usize) -> Tokens {
        if self.tokens == Tokens::ALL {
            return Tokens::ALL;
        }
        let before = (first as u64 * u64::from(self.chunk_tokens)) as u32;
        let last = first + chunks == self.keys.len();
        let end = if last && self.tokens.end != u32::MAX { self.tokens.end - before } else { u32::MAX };
        Tokens { start: self.tokens.start.saturating_sub(before), end }
    }

    /// The part that [`ClientJob::next`] gave is on the page under this number.
    pub(crate) fn posted(&mut self, part: &JobPart, request: u64) {
        assert!(self.window.is_some() || part.first == self.posted, "parts go in order");
        self.began = true;
        self.posted = if self.window.is_some() { 0 } else { self.posted + part.chunks };
        let JobPart { first, chunks, .. } = *part;
        self.flights.push_back(Flight { request, first, chunks, outcome: None, cancelled: false });
    }

    /// A part has ended.
    pub(crate) fn ended(&mut self, request: u64, outcome: PartOutcome) {
        let flight = self.flights.iter_mut().find(|flight| flight.request == request).expect("asked with owns");
        flight.outcome = Some(outcome);
        self.wire_bytes += outcome.wire_bytes;
        self.restored_bytes += outcome.restored_bytes;
        self.card_us += u64::from(outcome.elapsed_us);
        if let Some(window) = self.window {
            return self.looked(window, &outcome);
        }
        while let Some(&Flight { outcome: Some(outcome), chunks, .. }) = self.flights.front() {
            self.flights.pop_front();
            if self.short.is_some() {
                continue;
            }
            self.done += outcome.done as usize;
            if is_short(&outcome, chunks) {
                self.short = Some(outcome.status);
                self.stopped.get_or_insert(outcome.status);
            }
        }
        // Behind the front, but nothing after it can count: stop posting.
        let ended = self.flights.iter().filter_map(|flight| Some((flight.outcome?, flight.chunks)));
        if let Some((outcome, _)) = ended.into_iter().find(|(outcome, chunks)| is_short(outcome, *chunks)) {
            self.stopped.get_or_insert(outcome.status);
        }
    }

    /// The one part of a window that was on the page has ended.
    fn looked(&mut self, Window { trailing, .. }: Window, outcome: &PartOutcome) {
        let Flight { first, .. } = self.flights.pop_front().expect("it was on the page");
        let found = outcome.done as usize;
        if outcome.status == Status::Ok && found < trailing && first > 0 {
            // The hit that would end here needs chunks before this part: those of the next end further to the front.
            self.window = Some(Window { trailing, end: first + trailing - 1 });
            return;
        }
        self.posted = self.keys.len();
        // A part that ends in another way says nothing of those before it.
        self.done = if outcome.status == Status::Ok { first + found } else { 0 };
        if self.done < self.keys.len() {
            self.short = Some(outcome.status);
            self.stopped.get_or_insert(outcome.status);
        }
    }

    /// Chunks that a hit needs, as a request says it.
    pub(crate) fn trailing(&self) -> u32 {
        self.window.map_or(0, |window| window.trailing as u32)
    }

    /// Gives the job up.
    pub(crate) fn stop(&mut self, why: Status) {
        self.stopped.get_or_insert(why);
    }

    /// Page requests to cancel now, each once: all of a stopped job that may not count any more.
    pub(crate) fn cancel_rest(&mut self, mut cancel: impl FnMut(u64)) {
        let Some(why) = self.stopped else { return };
        // Parts before the one that stopped the job still count, unless the caller wants none of it.
        let mut after = self.short.is_some() || matches!(why, Status::Cancelled | Status::DeadlineExceeded);
        for flight in &mut self.flights {
            match flight.outcome {
                Some(outcome) => after |= is_short(&outcome, flight.chunks),
                None if after && !flight.cancelled => {
                    flight.cancelled = true;
                    cancel(flight.request);
                }
                None => {}
            }
        }
    }

    /// The end, when nothing is in flight and nothing more will be posted.
    pub(crate) fn finished(&self) -> Option<Status> {
        let over = self.stopped.is_some() || self.is_posted();
        if !over || self.in_flight() > 0 {
            return None;
        }
        let whole = self.began && self.done == self.keys.len() && self.short.is_none();
        Some(if whole { Status::Ok } else { self.short.or(self.stopped).unwrap_or(Status::Ok) })
    }
}

/// Whether what lies behind this part cannot count.
fn is_short(outcome: &PartOutcome, chunks: usize) -> bool {
    outcome.status != Status::Ok || (outcome.done as usize) < chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(chunks: usize, part_chunks: usize) -> ClientJob {
        let ask = JobSpec {
            operation: Operation::Fetch,
            keys: (0..chunks).map(|index| ChunkKey::new([index as u8; 32])).collect(),
            pages: Box::new([]),
            importances: Box::new([]),
            tokens: Tokens::ALL,
            target: 0,
            deadline: None,
            again: false,
            section: 0,
            trailing: 0,
            chunk_tokens: 16,
            part_chunks,
        };
        ClientJob::new(1, ask, Instant::now())
    }

    fn window(chunks: usize, part_chunks: usize, trailing: usize) -> ClientJob {
        ClientJob { window: Some(Window { trailing, end: chunks }), ..job(chunks, part_chunks) }
    }

    #[test]
    fn a_window_is_looked_for_part_by_part_from_the_end() {
        let mut job = window(20, 8, 3);
        let now = Instant::now();
        let mut seen = Vec::new();
        for (request, found) in [(1, 2), (2, 0), (3, 5)] {
            let part = job.next(now).unwrap();
            assert_eq!((job.trailing(), job.finished()), (3, None));
            seen.push((part.first, part.chunks));
            job.posted(&part, request);
            assert_eq!(job.next(now), None, "one at a time");
            job.ended(request, outcome(Status::Ok, found));
        }
        // A hit that ends at 13 or 14 would need 11, and so on.
        assert_eq!(seen, [(12, 8), (6, 8), (0, 8)]);
        assert_eq!((job.done, job.finished()), (5, Some(Status::Ok)));
        let mut job = window(20, 8, 3);
        let part = job.next(now).unwrap();
        job.posted(&part, 1);
        job.ended(1, outcome(Status::StoreDown, 4));
        assert_eq!((job.done, job.finished()), (0, Some(Status::StoreDown)));
    }

    fn outcome(status: Status, done: usize) -> PartOutcome {
        PartOutcome { status, done: done as u32, wire_bytes: 1, restored_bytes: 2, elapsed_us: 3 }
    }

    #[test]
    fn parts_cover_the_chunks_once_and_in_order() {
        let mut job = job(10, 4);
        let now = Instant::now();
        let mut seen = Vec::new();
        while let Some(part) = job.next(now) {
            job.posted(&part, 100 + part.first as u64);
            seen.push((part.first, part.chunks));
        }
        assert_eq!(seen, [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(job.finished(), None);
        for (request, done) in [(108, 2), (100, 4), (104, 4)] {
            job.ended(request, outcome(Status::Ok, done));
        }
        assert_eq!((job.finished(), job.done, job.wire_bytes), (Some(Status::Ok), 10, 3));
    }

    #[test]
    fn a_hit_behind_a_short_part_does_not_count() {
        let mut job = job(10, 4);
        let now = Instant::now();
        for request in 1..=3 {
            let part = job.next(now).unwrap();
            job.posted(&part, request);
        }
        job.ended(3, outcome(Status::Ok, 2));
        job.ended(2, outcome(Status::Ok, 1));
        assert_eq!((job.done, job.finished()), (0, None));
        job.ended(1, outcome(Status::Ok, 4));
        assert_eq!((job.done, job.finished()), (5, Some(Status::Ok)));
    }

    #[test]
    fn a_failed_part_cancels_what_is_behind_it_and_nothing_before() {
        let mut job = job(16, 4);
        let now = Instant::now();
        for request in 1..=4 {
            let part = job.next(now).unwrap();
            job.posted(&part, request);
        }
        job.ended(2, outcome(Status::Corrupt, 1));
        let mut cancelled = Vec::new();
        job.cancel_rest(|request| cancelled.push(request));
        job.cancel_rest(|request| cancelled.push(request));
        assert_eq!(cancelled, [3, 4]);
        job.ended(3, outcome(Status::Cancelled, 0));
        job.ended(4, outcome(Status::Cancelled, 0));
        assert_eq!(job.finished(), None, "part 1 still writes");
        job.ended(1, outcome(Status::Ok, 4));
        assert_eq!((job.done, job.finished()), (5, Some(Status::Corrupt)));
    }

    #[test]
    fn a_deadline_that_has_passed_posts_nothing() {
        let mut job = job(8, 4);
        job.deadline = Some(Instant::now());
        job.expire(Instant::now());
        assert_eq!(job.next(Instant::now()), None);
        assert_eq!((job.finished(), job.done), (Some(Status::DeadlineExceeded), 0));
    }

    #[test]
    fn a_clip_is_told_to_the_first_and_the_last_part() {
        let mut job = job(10, 4);
        job.tokens = Tokens { start: 5, end: 150 };
        let now = Instant::now();
        let mut clips = Vec::new();
        while let Some(part) = job.next(now) {
            job.posted(&part, 1 + part.first as u64);
            clips.push((part.tokens.start, part.tokens.end));
        }
        assert_eq!(clips, [(5, u32::MAX), (0, u32::MAX), (0, 150 - 128)]);
    }

    proptest! {
        /// Whatever the parts answer and in whatever order: done is the leading count, and the job ends once.
        #[test]
        fn done_is_the_leading_count(
            chunks in 1_usize..40,
            part_chunks in 1_usize..9,
            stored in 0_usize..45,
            picks in proptest::collection::vec(0_usize..PARTS_MAX, 0..200),
        ) {
            let mut job = job(chunks, part_chunks);
            let now = Instant::now();
            let mut live: Vec<(u64, JobPart)> = Vec::new();
            let mut request = 0;
            let mut picks = picks.into_iter();
            while job.finished().is_none() {
                while let Some(part) = job.next(now) {
                    request += 1;
                    job.posted(&part, request);
                    live.push((request, part));
                }
                prop_assert!(!live.is_empty() && live.len() <= PARTS_MAX);
                let (request, part) = live.remove(picks.next().unwrap_or(0) % live.len());
                job.ended(request, outcome(Status::Ok, stored.saturating_sub(part.first).min(part.chunks)));
            }
            prop_assert!(live.is_empty());
            prop_assert_eq!(job.done, stored.min(chunks));
        }

        /// A window is found in parts as it is in one piece.
        #[test]
        fn a_window_in_parts_is_the_window(
            there in proptest::collection::vec(proptest::bool::weighted(0.7), 1..40),
            part_chunks in 2_usize..9,
            trailing in 1_usize..8,
        ) {
            let trailing = trailing.min(part_chunks - 1);
            let longest = |there: &[bool]| {
                (0..=there.len()).rev().find(|&n| there[n - trailing.min(n)..n].iter().all(|there| *there)).unwrap()
            };
            let mut job = window(there.len(), part_chunks, trailing);
            let (now, mut request) = (Instant::now(), 0);
            while let Some(part) = job.next(now) {
                request += 1;
                job.posted(&part, request);
                job.ended(request, outcome(Status::Ok, longest(&there[part.first..part.first + part.chunks])));
            }
            prop_assert_eq!((job.finished(), job.done), (Some(Status::Ok), longest(&there)));
        }
    }
}
