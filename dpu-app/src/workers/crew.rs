//! The engine thread's side of its workers: who gets the next job, what came back, and who hangs.
//!
//! A worker that is in one call for [`PASSED_OVER`] gets no more jobs, and what waits behind that call goes to the
//! others (line.rs). Where all of them hang, jobs wait here until one comes back, or somebody else takes them.

use std::time::{Duration, Instant};

use heapless::Deque;
use heapless::spsc::{Consumer, Producer};

use crate::pipeline::job::Job;
use crate::workers::bell::Bell;
use crate::workers::line::{Claims, Numbered, Pulse, QUEUE, Worked};

/// Time in one call after which a worker's other jobs go to others: several times what a spinning disk needs.
pub(crate) const PASSED_OVER: Duration = Duration::from_millis(100);

/// Chooses the worker for the next job from the jobs that each has. The simulator asks it, too.
#[must_use]
pub fn least_busy(outstanding: impl Iterator<Item = usize>) -> usize {
    outstanding.enumerate().min_by_key(|&(_, jobs)| jobs).expect("a crew has at least one worker").0
}

/// One worker, as the engine thread sees it.
pub struct Hand<'a> {
    jobs: Producer<'a, Numbered>,
    answers: Consumer<'a, Worked>,
    bell: &'a dyn Bell,
    claims: &'a Claims,
    pulse: &'a Pulse,
    /// Jobs given and neither answered nor taken back.
    outstanding: usize,
    /// Number of the next job.
    given: u32,
    /// The jobs given last, by number.
    recent: Box<[Option<Job>]>,
    /// Call that it was in at the last look, and when that was seen first.
    call: Option<(u32, Instant)>,
    hangs: bool,
}

impl std::fmt::Debug for Hand<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hand")
            .field("outstanding", &self.outstanding)
            .field("hangs", &self.hangs)
            .finish_non_exhaustive()
    }
}

impl<'a> Hand<'a> {
    pub(crate) fn new(
        jobs: Producer<'a, Numbered>,
        answers: Consumer<'a, Worked>,
        bell: &'a dyn Bell,
        claims: &'a Claims,
        pulse: &'a Pulse,
        places: usize,
    ) -> Self {
        // A power of two, so that numbers wrap in step with it.
        let recent = vec![None; places.next_power_of_two()].into();
        Self { jobs, answers, bell, claims, pulse, outstanding: 0, given: 0, recent, call: None, hangs: false }
    }

    /// Gives it a job; `false`: its queue is full, of jobs that were taken back.
    fn take(&mut self, job: Job) -> bool {
        if self.jobs.enqueue((self.given, job)).is_err() {
            return false;
        }
        let place = self.given as usize % self.recent.len();
        self.recent[place] = Some(job);
        self.given = self.given.wrapping_add(1);
        self.outstanding += 1;
        self.bell.ring();
        true
    }

    /// Returns the job that it claimed last, whose call it is in if it is in one.
    fn claimed(&self) -> Option<Job> {
        self.recent[self.claims.last() as usize % self.recent.len()]
    }

    /// Returns how long it has been in its present call.
    fn in_call_for(&mut self, now: Instant) -> Duration {
        self.call = match (self.pulse.call(), self.call) {
            (Some(call), Some(seen)) if call == seen.0 => Some(seen),
            (call, _) => call.map(|call| (call, now)),
        };
        self.call.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since))
    }
}

/// Findings of a look at a crew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sight {
    /// Time of the longest call.
    pub longest: Duration,
    /// Job that the longest call is for.
    pub call: Option<Job>,
    /// Workers whose call has taken as long as the look asked about.
    pub stuck: usize,
    /// Jobs that went from them to others.
    pub passed_on: usize,
}

/// All workers, by what they do.
#[derive(Debug)]
pub struct Crews<'a> {
    pub askers: Crew<'a>,
    pub fetchers: Crew<'a>,
    pub dequantizers: Crew<'a>,
    pub encoders: Crew<'a>,
}

/// The workers of one kind.
pub struct Crew<'a> {
    hands: Vec<Hand<'a>>,
    /// Jobs that wait because all workers hang.
    waiting: Deque<Job, QUEUE>,
}

impl std::fmt::Debug for Crew<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("hands", &self.hands.len()).field("outstanding", &self.outstanding()).finish()
    }
}

impl<'a> Crew<'a> {
    #[must_use]
    pub fn new(hands: Vec<Hand<'a>>) -> Self {
        assert!(!hands.is_empty(), "a crew has at least one worker");
        Self { hands, waiting: Deque::new() }
    }

    /// Counts the jobs that are not answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.hands.iter().map(|hand| hand.outstanding).sum::<usize>() + self.waiting.len()
    }

    /// Gives a job to the worker with the least to do of those that do not hang.
    pub fn give(&mut self, job: Job) {
        let busy = |hand: &Hand<'_>| if hand.hangs { usize::MAX } else { hand.outstanding };
        let next = least_busy(self.hands.iter().map(busy));
        let hand = &mut self.hands[next];
        if hand.hangs || !hand.take(job) {
            let bounded = "jobs in flight are bounded by slots, seats and sessions, which a queue holds";
            self.waiting.push_back(job).expect(bounded);
        }
    }

    /// Takes the next answer of any worker.
    pub fn collect(&mut self) -> Option<Worked> {
        let (place, done) = self.hands.iter_mut().enumerate().find_map(|(place, hand)| {
            let done = hand.answers.dequeue()?;
            hand.outstanding -= 1;
            Some((place, done))
        })?;
        if std::mem::take(&mut self.hands[place].hangs) {
            self.give_waiting();
        }
        Some(done)
    }

    fn give_waiting(&mut self) {
        for _ in 0..self.waiting.len() {
            let job = self.waiting.pop_front().expect("counted");
            self.give(job);
        }
    }

    /// Takes away those of the jobs that wait for the first worker that comes back.
    pub fn take_waiting(&mut self, wanted: impl Fn(&Job) -> bool, mut each: impl FnMut(Job)) {
        for _ in 0..self.waiting.len() {
            let job = self.waiting.pop_front().expect("counted");
            match wanted(&job) {
                true => each(job),
                false => self.waiting.push_back(job).expect("it was there"),
            }
        }
    }

    /// Tells whether an answer waits.
    #[must_use]
    pub fn answered(&self) -> bool {
        self.hands.iter().any(|hand| hand.answers.ready())
    }

    /// Looks after all workers: jobs behind a call that hangs go to others. `stuck`: time from which on a call counts.
    pub fn watch(&mut self, now: Instant, stuck: Duration) -> Sight {
        let mut sight = Sight::default();
        for hand in &mut self.hands {
            let lasts = hand.in_call_for(now);
            hand.hangs = lasts >= PASSED_OVER;
            if lasts > sight.longest {
                (sight.longest, sight.call) = (lasts, hand.claimed());
            }
            sight.stuck += usize::from(lasts >= stuck);
            if let Some(first) = hand.hangs.then(|| hand.claims.take_back(hand.given)).flatten() {
                let count = hand.given.wrapping_sub(first);
                for number in (0..count).map(|step| first.wrapping_add(step)) {
                    let job = hand.recent[number as usize % hand.recent.len()].expect("given");
                    self.waiting.push_back(job).expect("as in give");
                }
                hand.outstanding -= count as usize;
                sight.passed_on += count as usize;
            }
        }
        self.give_waiting();
        sight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::job::{Done, Seat};
    use crate::workers::bell::WorkerBell;
    use crate::workers::line::WorkerLine;

    const STUCK: Duration = Duration::from_secs(1);

    fn job(seat: u16) -> Job {
        Job::Open { seat: Seat(seat), anew: false }
    }

    fn seat(job: Job) -> u16 {
        let Job::Open { seat, .. } = job else { unreachable!("{job:?}") };
        seat.0
    }

    #[test]
    fn what_waits_behind_a_call_that_hangs_goes_to_others_and_comes_back_to_nobody() {
        let (mut lines, bell) = ([WorkerLine::<16>::default(), WorkerLine::default()], WorkerBell::default());
        let [one, other] = &mut lines;
        let ((first, mut hanging), (second, mut working)) = (one.ends(&bell), other.ends(&bell));
        let mut crew = Crew::new(vec![first, second]);
        let now = Instant::now();
        (0..6).for_each(|seat| crew.give(job(seat)));
        assert_eq!(hanging.claim().map(seat), Some(0));
        assert_eq!(crew.watch(now, STUCK), Sight::default());
        assert_eq!(crew.watch(now + PASSED_OVER / 2, STUCK).passed_on, 0, "it may just be slow");
        let sight = crew.watch(now + PASSED_OVER, STUCK);
        assert_eq!(sight, Sight { longest: PASSED_OVER, call: Some(job(0)), stuck: 0, passed_on: 2 });
        crew.give(job(6));
        let seats: Vec<u16> = std::iter::from_fn(|| working.claim().map(seat)).collect();
        assert_eq!(seats, [1, 3, 5, 2, 4, 6]);
        assert_eq!(crew.watch(now + STUCK, STUCK).stuck, 1);
        // The call comes back: what was taken back is not done again, and it gets jobs as before.
        hanging.answer(Done::Closed { seat: Seat(0) });
        assert!(crew.collect().is_some());
        crew.give(job(7));
        assert_eq!(hanging.claim().map(seat), Some(7));
        assert_eq!(crew.outstanding(), 7);
    }

    #[test]
    fn where_everybody_hangs_jobs_wait_for_the_first_that_comes_back() {
        let (mut line, bell) = (WorkerLine::<16>::default(), WorkerBell::default());
        let (hand, mut duties) = line.ends(&bell);
        let mut crew = Crew::new(vec![hand]);
        let now = Instant::now();
        (0..3).for_each(|seat| crew.give(job(seat)));
        duties.claim();
        crew.watch(now, STUCK);
        crew.watch(now + PASSED_OVER, STUCK);
        crew.give(job(3));
        assert_eq!((crew.outstanding(), duties.wait()), (4, true), "what is in the queue is nobody's");
        duties.answer(Done::Closed { seat: Seat(0) });
        assert!(crew.collect().is_some());
        let seats: Vec<u16> = std::iter::from_fn(|| duties.claim().map(seat)).collect();
        assert_eq!(seats, [1, 2, 3]);
    }
}
