//! Whether a chunk that was judged bad may leave its store. Nothing is proven where something lies between the bytes
//! and us that may change them in the same way each time, so a store decides by what it is:
//!
//! * A directory's files are read from the disk itself: a chunk may go, [`DISCARDS_PER_MINUTE`] of them, so that a disk
//!   that fails throughout, or a bug of ours, never empties a store.
//! * A server is reached over a network and is shared: nothing of it may go on a reader's word.
//!
//! What is withheld stays where it is, is counted, and gives way to the next put of its name.

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use block::ChunkKey;

use crate::POISONED;

/// Chunks that may leave one directory as proven bad in a minute.
pub const DISCARDS_PER_MINUTE: usize = 32;
const MINUTE: Duration = Duration::from_secs(60);

/// Why a chunk is judged bad: twice, by reads that have nothing in common and came to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// The check that failed.
    pub what: &'static str,
    /// The block that failed it; `None`: what is before all blocks.
    pub block: Option<u16>,
}

impl Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.block {
            Some(block) => write!(f, "block {block}: {}", self.what),
            None => f.write_str(self.what),
        }
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct DiscardLimiter {
    state: Mutex<State>,
    withheld: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Times of the last discards, newest last.
    taken: heapless::Deque<Instant, DISCARDS_PER_MINUTE>,
    /// When it was last said that a chunk is withheld.
    said_at: Option<Instant>,
}

impl DiscardLimiter {
    /// Discards that were asked for and not allowed.
    pub(crate) fn withheld(&self) -> u64 {
        self.withheld.load(Relaxed)
    }

    /// Decides whether this chunk of a directory may go now, and says so. `at` is the directory as operators know it.
    pub(crate) fn admits(&self, key: &ChunkKey, why: &Why, at: &dyn Display) -> bool {
        self.admits_at(Instant::now(), key, why, at)
    }

    fn admits_at(&self, now: Instant, key: &ChunkKey, why: &Why, at: &dyn Display) -> bool {
        let mut state = self.state.lock().expect(POISONED);
        while state.taken.front().is_some_and(|at| now - *at >= MINUTE) {
            state.taken.pop_front();
        }
        if state.taken.push_back(now).is_err() {
            self.count_withheld(&mut state, now, key, why, at, "too many were, lately: look at its disk and memory");
            return false;
        }
        log::warn!("store: chunk {key} at {at} is bad ({why}; read twice, and both alike): it is taken out");
        true
    }

    /// Counts a chunk of a shared store that is bad as far as this card can see, and says so. `at` is the server.
    pub(crate) fn withhold(&self, key: &ChunkKey, why: &Why, at: &dyn Display) {
        let mut state = self.state.lock().expect(POISONED);
        let reason = "others share it, and it may be the path: the next store of it replaces it";
        self.count_withheld(&mut state, Instant::now(), key, why, at, reason);
    }

    /// Says it once a minute.
    fn count_withheld(
        &self,
        state: &mut State,
        now: Instant,
        key: &ChunkKey,
        why: &Why,
        at: &dyn Display,
        reason: &str,
    ) {
        let withheld = self.withheld.fetch_add(1, Relaxed) + 1;
        if state.said_at.is_none_or(|at| now - at >= MINUTE) {
            state.said_at = Some(now);
            log::warn!(
                "store: chunk {key} at {at} is bad ({why}; read twice, and both alike) and stays: {reason} \
                 ({withheld} so far)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: Why = Why { what: "crc-32 of its codes", block: Some(3) };

    #[test]
    fn a_minute_has_its_limit_and_what_is_beyond_stays() {
        let (guard, now, key) = (DiscardLimiter::default(), Instant::now(), ChunkKey::new([1; 32]));
        let asks = |at: Duration| guard.admits_at(now + at, &key, &WHY, &"here");
        assert_eq!((0..100).filter(|n| asks(Duration::from_millis(*n))).count(), DISCARDS_PER_MINUTE);
        assert!(!asks(MINUTE - Duration::from_millis(1)));
        assert!(asks(MINUTE));
        assert_eq!(guard.withheld(), 100 - DISCARDS_PER_MINUTE as u64 + 1);
    }
}
