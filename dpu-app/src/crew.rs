//! The engine thread's side of its workers: who gets the next job, and what came back.

use heapless::spsc::{Consumer, Producer};

use crate::bell::Bell;
use crate::job::{Done, Job};

/// Who does a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrewKind {
    Fetch,
    Dequantize,
    Encode,
}

/// Which of the workers that have so many jobs each gets the next: the simulator asks it, too.
#[must_use]
pub fn least_busy(outstanding: impl Iterator<Item = usize>) -> usize {
    outstanding.enumerate().min_by_key(|&(_, jobs)| jobs).expect("a crew has at least one worker").0
}

/// One worker, as the engine thread sees it.
pub struct Hand<'a> {
    pub jobs: Producer<'a, Job>,
    pub answers: Consumer<'a, Done>,
    pub bell: &'a dyn Bell,
    /// Jobs given and not yet answered.
    pub outstanding: usize,
}

impl std::fmt::Debug for Hand<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hand").field("outstanding", &self.outstanding).finish_non_exhaustive()
    }
}

/// The workers of one kind.
pub struct Crew<'a> {
    hands: Vec<Hand<'a>>,
}

impl std::fmt::Debug for Crew<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outstanding: usize = self.hands.iter().map(|hand| hand.outstanding).sum();
        f.debug_struct("Crew").field("hands", &self.hands.len()).field("outstanding", &outstanding).finish()
    }
}

impl<'a> Crew<'a> {
    #[must_use]
    pub fn new(hands: Vec<Hand<'a>>) -> Self {
        assert!(!hands.is_empty(), "a crew has at least one worker");
        Self { hands }
    }

    /// Gives a job to the worker with the least to do.
    pub fn give(&mut self, job: Job) {
        let next = least_busy(self.hands.iter().map(|hand| hand.outstanding));
        let hand = &mut self.hands[next];
        hand.jobs.enqueue(job).expect("jobs in flight are bounded by slots, seats and sessions, which a queue holds");
        hand.outstanding += 1;
        hand.bell.ring();
    }

    /// The next answer of any worker.
    pub fn collect(&mut self) -> Option<Done> {
        self.hands.iter_mut().find_map(|hand| {
            let done = hand.answers.dequeue()?;
            hand.outstanding -= 1;
            Some(done)
        })
    }

    /// Whether an answer waits.
    #[must_use]
    pub fn answered(&self) -> bool {
        self.hands.iter().any(|hand| hand.answers.ready())
    }
}
