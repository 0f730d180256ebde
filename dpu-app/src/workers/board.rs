//! State that only the engine thread knows, shown to the metrics thread on request; the engine thread never waits for
//! it.
//!
//! ```text
//!   metrics thread                     engine thread
//!   asked = true, bell  ------------>  end of a turn: fills `Shown`
//!   copies `Shown`      <------------  asked = false
//! ```
//! The flag says whose `Shown` is: the engine thread's while it is up, the metrics thread's while it is down, so its
//! lock is always free. One atomic load a turn is the price where nobody asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::config::ANSWER_BYTES;
use crate::pipeline::slots::SlotState;
use crate::workers::bell::EventBell;
use store::Stats;

/// The data plane's own lifecycle: Init -> Steady <-> Draining, and from Draining out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HubState {
    Init,
    Steady,
    /// Finishes what runs and takes nothing new; `leave` says whether it exits then, and there is no way back.
    Draining {
        leave: bool,
    },
}

impl HubState {
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Init, Self::Steady)
                | (Self::Steady, Self::Draining { .. })
                | (Self::Draining { leave: false }, Self::Draining { leave: true } | Self::Steady)
        )
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Steady => "steady",
            Self::Draining { .. } => "draining",
        }
    }
}

/// The engine thread's state at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub state: HubState,
    /// Slots by [`SlotState`].
    pub slots: [usize; SlotState::ALL.len()],
    pub chunks_in_progress: usize,
    pub sessions: usize,
    /// Attaches that were refused since the start.
    pub refused: u64,
    /// Operations in flight on the inflate, the bulk DMA and the mailbox DMA engine.
    pub in_flight: [usize; 3],
    /// Restarts of the engine that has restarted most often since its last success.
    pub restarts_in_a_row: u32,
    /// Time since that engine completed anything.
    pub engine_moved_ago: Duration,
    /// Whether something keeps the store from serving at all.
    pub degraded: bool,
    /// Calls of the store that failed in a row.
    pub store_failures: u32,
    pub store_failed_ago: Duration,
    /// Workers whose call has lasted for so long that they count as stuck.
    pub workers_stuck: usize,
    /// Counts of the store.
    pub store: Stats,
}

impl Shown {
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: HubState::Init,
            slots: [0; SlotState::ALL.len()],
            chunks_in_progress: 0,
            sessions: 0,
            refused: 0,
            in_flight: [0; 3],
            restarts_in_a_row: 0,
            engine_moved_ago: Duration::MAX,
            degraded: false,
            store_failures: 0,
            store_failed_ago: Duration::MAX,
            workers_stuck: 0,
            store: Stats::default(),
        }
    }
}

impl Default for Shown {
    fn default() -> Self {
        Self::new()
    }
}

/// A [`Shown`] and the text of `host-ctl status` at the same moment.
#[derive(Debug)]
pub struct Snapshot {
    pub shown: Shown,
    status: Box<[u8]>,
    status_bytes: usize,
}

impl Snapshot {
    #[must_use]
    pub fn new() -> Self {
        Self { shown: Shown::new(), status: vec![0; ANSWER_BYTES].into(), status_bytes: 0 }
    }

    /// Returns the JSON; empty as long as nothing was shown.
    #[must_use]
    pub fn status(&self) -> &[u8] {
        &self.status[..self.status_bytes]
    }

    /// Shows the status that `write` writes, whose length it returns.
    pub(crate) fn write_status(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.status_bytes = write(&mut self.status);
    }

    /// Makes this one equal to another, in the memory that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.shown = other.shown;
        self.status_bytes = other.status_bytes;
        self.status[..self.status_bytes].copy_from_slice(other.status());
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

/// The flag, and what it guards.
#[derive(Debug, Default)]
pub struct Board {
    asked: AtomicBool,
    face: Mutex<Snapshot>,
}

impl Board {
    /// Asks the engine thread to show itself. One thread asks, and not again before it was answered.
    pub fn ask(&self, bell: &EventBell) {
        // Pairs with the Acquire in `is_asked`: what this thread read before is read before it is written anew.
        self.asked.store(true, Ordering::Release);
        bell.ring();
    }

    /// Tells whether the engine thread still owes an answer. Its Acquire pairs with the Release in `answer` and in
    /// `ask`.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Returns what was shown last. For the thread that asks, while nothing is owed.
    pub fn face(&self) -> MutexGuard<'_, Snapshot> {
        self.face.try_lock().expect("the flag says whose it is")
    }

    /// Answers: the engine thread has written everything.
    pub(crate) fn answer(&self, face: MutexGuard<'_, Snapshot>) {
        drop(face);
        self.asked.store(false, Ordering::Release);
    }
}
