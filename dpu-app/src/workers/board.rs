//! What only the engine thread knows, shown to the metrics thread when that asks: the engine thread never waits for it.
//!
//! ```text
//!   metrics thread                     engine thread
//!   asked = true, bell  ------------>  end of a turn: fills `Shown`
//!   copies `Shown`      <------------  asked = false
//! ```
//! The flag says whose `Shown` is: the engine thread's while it is up, the metrics thread's while it is down, so its lock
//! is always free. One atomic load a turn is the price where nobody asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::hub::session::ANSWER_BYTES;
use crate::hub::status;
use crate::hub::{Hub, HubState};
use crate::slots::ring::SlotState;
use crate::workers::bell::EventBell;
use store::Stats;

/// The engine thread's state at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub state: HubState,
    /// By [`SlotState`].
    pub slots: [usize; SlotState::ALL.len()],
    pub chunks_in_progress: usize,
    pub sessions: usize,
    /// Attaches that were refused since the start.
    pub refused: u64,
    /// Operations in flight on the inflate, the bulk DMA and the mailbox DMA engine.
    pub in_flight: [usize; 3],
    /// Of the engine that has restarted most often since its last success.
    pub restarts_in_a_row: u32,
    /// Since that engine completed anything.
    pub engine_moved_ago: Duration,
    /// Something keeps the store from serving at all.
    pub degraded: bool,
    /// In a row.
    pub store_failures: u32,
    pub store_failed_ago: Duration,
    /// Whose call has lasted for so long that it counts as stuck.
    pub workers_stuck: usize,
    /// What the store has counted.
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
pub struct Face {
    pub shown: Shown,
    status: Box<[u8]>,
    status_bytes: usize,
}

impl Face {
    #[must_use]
    pub fn new() -> Self {
        Self { shown: Shown::new(), status: vec![0; ANSWER_BYTES].into(), status_bytes: 0 }
    }

    /// JSON; empty as long as nothing was shown.
    #[must_use]
    pub fn status(&self) -> &[u8] {
        &self.status[..self.status_bytes]
    }

    /// Makes this one equal to another, in the memory that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.shown = other.shown;
        self.status_bytes = other.status_bytes;
        self.status[..self.status_bytes].copy_from_slice(other.status());
    }
}

impl Default for Face {
    fn default() -> Self {
        Self::new()
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Board {
    asked: AtomicBool,
    face: Mutex<Face>,
}

impl Board {
    /// Asks the engine thread to show itself. One thread asks, and not again before it was answered.
    pub fn ask(&self, bell: &EventBell) {
        // Pairs with the Acquire in `is_asked`: what this thread read before is read before it is written anew.
        self.asked.store(true, Ordering::Release);
        bell.ring();
    }

    /// Whether the engine thread still owes an answer. Its Acquire pairs with the Release in `answer` and in `ask`.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// What was shown last. For the thread that asks, while nothing is owed.
    pub fn face(&self) -> MutexGuard<'_, Face> {
        self.face.try_lock().expect("the flag says whose it is")
    }

    /// The engine thread has written everything.
    fn answer(&self, face: MutexGuard<'_, Face>) {
        drop(face);
        self.asked.store(false, Ordering::Release);
    }
}

impl Hub<'_, '_> {
    /// Shows itself if somebody asks.
    pub(crate) fn show(&self) {
        let board = &self.shared.board;
        if !board.is_asked() {
            return;
        }
        let mut face = board.face();
        let engines = [self.inflate.as_ref(), Some(&self.bulk), Some(&self.mail)];
        let mut degraded = false;
        self.shared.store.trouble(&mut |_| degraded = true);
        let worst = engines.iter().flatten().max_by_key(|engine| engine.restarts).expect("there are two at least");
        face.shown = Shown {
            state: self.state,
            slots: SlotState::ALL.map(|state| self.pipeline.slots.count(state)),
            chunks_in_progress: self.pipeline.order.len(),
            sessions: self.sessions.iter().flatten().count(),
            refused: self.events.refused(),
            in_flight: engines.map(|engine| engine.map_or(0, |engine| engine.context.in_flight())),
            restarts_in_a_row: worst.restarts,
            engine_moved_ago: self.now.saturating_duration_since(worst.last_progress),
            degraded,
            store_failures: self.store_watch.failures(),
            store_failed_ago: self.store_watch.failed_ago(self.now),
            workers_stuck: self.stuck.total(),
            store: self.shared.store.stats(),
        };
        face.status_bytes = status::write(self, &mut face.status);
        board.answer(face);
    }
}
