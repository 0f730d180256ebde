//! What lies between the engine thread and one worker: a queue of jobs, one of answers, and two words that let the
//! engine thread see that a worker hangs in a call, and take back what waits behind it.
//!
//! ```text
//!   engine thread   give: number and job ->  jobs     ->  claim the number, work   worker
//!                   collect              <-  answers  <-
//!                   watch                <-  pulse        beat ... beat ... rest
//!                   take_back             -> claims       what is taken back is passed over
//! ```
//! A call of a store may hang for as long as a disk does, and no thread can end another's call. Its own job waits with
//! it; the jobs behind it need not: each has a number, and belongs to whoever moves `claims` past that number first.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use heapless::spsc::{Consumer, Producer, Queue};

use crate::config::{CHUNKS_ACTIVE_MAX, SESSIONS_MAX, SLOTS_MAX};
use crate::pipeline::job::{Done, Job};
use crate::workers::bell::Bell;
use crate::workers::crew::Hand;

/// Places of a queue between the engine thread and one worker. A worker never has more jobs than there are slots,
/// seats and sessions together.
pub(crate) const QUEUE: usize = (SLOTS_MAX + CHUNKS_ACTIVE_MAX + SESSIONS_MAX + 1).next_power_of_two();
/// Places of a queue for a worker whose jobs are never a session's: a block of each slot, and each chunk in progress.
pub(crate) const BLOCK_QUEUE: usize = SLOTS_MAX + CHUNKS_ACTIVE_MAX + 1;

/// A job and its number: how many the worker was given before it, mod 2^32.
pub(crate) type Numbered = (u32, Job);
/// An answer, and the time that its worker took.
pub(crate) type Worked = (Done, Duration);

/// Claims of the worker and of the engine thread to jobs. They order no memory: a job's content comes with the queue.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// The first number that nobody has claimed.
    next: AtomicU32,
    /// The last number that the worker has claimed.
    last: AtomicU32,
}

impl Claims {
    /// Claims a job for the worker that has dequeued it; `false`: it was taken back.
    #[must_use]
    pub(crate) fn claim(&self, number: u32) -> bool {
        let claimed = self.next.compare_exchange(number, number.wrapping_add(1), Relaxed, Relaxed).is_ok();
        if claimed {
            self.last.store(number, Relaxed);
        }
        claimed
    }

    /// The number of the job that the worker claimed last, if it has claimed any.
    #[must_use]
    pub(crate) fn last(&self) -> u32 {
        self.last.load(Relaxed)
    }

    /// Takes back all jobs that the worker has not claimed of those below `given`; the first of them. `None` if it
    /// moves.
    #[must_use]
    pub(crate) fn take_back(&self, given: u32) -> Option<u32> {
        let first = self.next.load(Relaxed);
        self.next.compare_exchange(first, given, Relaxed, Relaxed).ok()
    }
}

/// Number of the call that a worker is in: odd during a call, another for each call.
#[derive(Debug, Default)]
pub(crate) struct Pulse(AtomicU32);

impl Pulse {
    /// Begins a call.
    pub(crate) fn beat(&self) {
        self.0.store((self.0.load(Relaxed) | 1).wrapping_add(2), Relaxed);
    }

    /// Ends a call.
    pub(crate) fn rest(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1) & !1, Relaxed);
    }

    /// Returns the call that it is in, if it is in one.
    #[must_use]
    pub(crate) fn call(&self) -> Option<u32> {
        let beat = self.0.load(Relaxed);
        (beat & 1 == 1).then_some(beat)
    }
}

/// Two queues, the claims and the pulse of one worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerLine<const N: usize> {
    jobs: Queue<Numbered, N>,
    answers: Queue<Worked, N>,
    claims: Claims,
    pulse: Pulse,
}

impl<const N: usize> WorkerLine<N> {
    /// Splits it into its two ends, one for each thread.
    pub(crate) fn ends<'a>(&'a mut self, bell: &'a dyn Bell) -> (Hand<'a>, Duties<'a>) {
        let (given, jobs) = self.jobs.split();
        let (answers, answered) = self.answers.split();
        let hand = Hand::new(given, answered, bell, &self.claims, &self.pulse, N);
        (hand, Duties { jobs, answers, claims: &self.claims, pulse: &self.pulse, began: Instant::now() })
    }
}

/// A worker's end.
pub(crate) struct Duties<'a> {
    jobs: Consumer<'a, Numbered>,
    answers: Producer<'a, Worked>,
    claims: &'a Claims,
    pulse: &'a Pulse,
    /// Time at which the last job was claimed.
    began: Instant,
}

impl std::fmt::Debug for Duties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Duties").field("pulse", &self.pulse).finish_non_exhaustive()
    }
}

impl Duties<'_> {
    /// Takes the next job, which is this worker's from now on. Begins a call.
    pub(crate) fn claim(&mut self) -> Option<Job> {
        loop {
            let (number, job) = self.jobs.dequeue()?;
            if self.claims.claim(number) {
                self.pulse.beat();
                self.began = Instant::now();
                return Some(job);
            }
        }
    }

    /// Tells whether the queue holds anything, even if it was taken back. Of heapless' `peek` and `ready` only the
    /// latter may be used by one end while the other works: they load the tail Relaxed, so they know that there is an
    /// element but not what it is.
    #[must_use]
    pub(crate) fn wait(&self) -> bool {
        self.jobs.ready()
    }

    /// Answers the job that was claimed last.
    pub(crate) fn answer(&mut self, done: Done) {
        self.answer_since(self.began, done);
    }

    /// Answers a job that was begun then.
    pub(crate) fn answer_since(&mut self, began: Instant, done: Done) {
        let worked = (done, began.elapsed());
        self.answers.enqueue(worked).expect("answers never outnumber the jobs, and the queues are of one size");
    }

    /// Returns when the last job was claimed.
    #[must_use]
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Begins a call of the store that no job began.
    pub(crate) fn beat(&self) {
        self.pulse.beat();
    }

    /// Ends the call: the worker is about to sleep.
    pub(crate) fn rest(&self) {
        self.pulse.rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_claimed_or_taken_back_and_never_both() {
        let claims = Claims { next: AtomicU32::new(u32::MAX), ..Claims::default() };
        assert!(claims.claim(u32::MAX) && claims.claim(0), "numbers wrap");
        assert_eq!(claims.take_back(4), Some(1));
        assert!(!claims.claim(1) && !claims.claim(3), "they are somebody else's now");
        assert!(claims.claim(4));
        assert_eq!((claims.take_back(5), claims.last()), (Some(5), 4), "nothing was left");
    }

    #[test]
    fn a_pulse_tells_one_call_from_the_next_and_from_none() {
        let pulse = Pulse::default();
        assert_eq!(pulse.call(), None);
        pulse.beat();
        let first = pulse.call();
        pulse.beat();
        assert!(first.is_some() && pulse.call().is_some() && pulse.call() != first);
        pulse.rest();
        assert_eq!(pulse.call(), None);
        pulse.rest();
        assert_eq!(pulse.call(), None);
    }

    /// Two threads, and what is taken back is done by the one that took it: each job exactly once.
    #[test]
    fn every_job_is_done_once_whoever_does_it() {
        const JOBS: u32 = 100_000;
        let mut queue = Queue::<u32, 256>::new();
        let (mut given, mut taken) = queue.split();
        let claims = Claims::default();
        let own = std::thread::scope(|scope| {
            let claims = &claims;
            let worker = scope.spawn(move || {
                let mut own = 0_u64;
                loop {
                    match taken.dequeue() {
                        Some(u32::MAX) => return own,
                        Some(number) => own += if claims.claim(number) { u64::from(number) } else { 0 },
                        None => std::thread::yield_now(),
                    }
                }
            });
            let mut back = 0_u64;
            for number in 0..JOBS {
                while given.enqueue(number).is_err() {
                    std::thread::yield_now();
                }
                if number % 7 == 0
                    && let Some(first) = claims.take_back(number + 1)
                {
                    back += (first..=number).map(u64::from).sum::<u64>();
                }
            }
            while given.enqueue(u32::MAX).is_err() {
                std::thread::yield_now();
            }
            back + worker.join().unwrap()
        });
        assert_eq!(own, (0..u64::from(JOBS)).sum::<u64>());
    }
}
