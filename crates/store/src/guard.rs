//! Whether a chunk that was judged bad may leave its store. Each is counted and said; both have limits, so that a path
//! that changes what it carries, or a bug of ours, never empties a store:
//!
//! * [`DISCARDS_PER_MINUTE`] from one store;
//! * after [`IN_A_ROW_MAX`] from one node, without a chunk of that node between them that was good, none of that node for
//!   [`REST`]: it is more likely the path than the chunks.
//!
//! What is withheld stays where it is, and a put may still take its place.

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use block::ChunkKey;

use crate::POISONED;

/// Chunks that may leave one store as proven bad in a minute.
pub const DISCARDS_PER_MINUTE: usize = 32;
/// Chunks in a row of one node that may be bad before it is the node that is doubted.
pub const IN_A_ROW_MAX: u32 = 8;
/// How long nothing of a doubted node is taken out.
pub const REST: Duration = Duration::from_secs(60);
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
#[derive(Debug)]
pub(crate) struct Guard {
    /// By node: bad chunks in a row.
    rows: Box<[AtomicU32]>,
    state: Mutex<State>,
    withheld: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// The last discards, newest last.
    taken: heapless::Deque<Instant, DISCARDS_PER_MINUTE>,
    /// By node: until when nothing of it is taken out.
    rests: Box<[Option<Instant>]>,
    /// When it was last said that something is withheld.
    said_at: Option<Instant>,
}

impl Guard {
    pub(crate) fn new(nodes: usize) -> Self {
        let rests = vec![None; nodes].into();
        Self {
            rows: (0..nodes).map(|_| AtomicU32::new(0)).collect(),
            state: Mutex::new(State { taken: heapless::Deque::new(), rests, said_at: None }),
            withheld: 0.into(),
        }
    }

    /// Discards that were asked for and not allowed.
    pub(crate) fn withheld(&self) -> u64 {
        self.withheld.load(Relaxed)
    }

    /// A chunk of this node was good.
    pub(crate) fn good(&self, node: usize) {
        self.rows[node].store(0, Relaxed);
    }

    /// Whether this chunk may go now; says so. `at` is the node as operators know it.
    pub(crate) fn admits(&self, key: &ChunkKey, why: &Why, node: usize, at: &dyn Display) -> bool {
        self.admits_at(Instant::now(), key, why, node, at)
    }

    fn admits_at(&self, now: Instant, key: &ChunkKey, why: &Why, node: usize, at: &dyn Display) -> bool {
        let mut state = self.state.lock().expect(POISONED);
        while state.taken.front().is_some_and(|at| now - *at >= MINUTE) {
            state.taken.pop_front();
        }
        let rests = state.rests[node].is_some_and(|until| now < until);
        let row = if rests { 0 } else { self.rows[node].fetch_add(1, Relaxed) + 1 };
        if row > IN_A_ROW_MAX {
            self.rows[node].store(0, Relaxed);
            state.rests[node] = Some(now + REST);
            log::error!(
                "store: {IN_A_ROW_MAX} chunks in a row from {at} were bad: nothing more of it is taken out for {} s: \
                 look at its disk, its memory and the network to it",
                REST.as_secs()
            );
        }
        if rests || row > IN_A_ROW_MAX || state.taken.is_full() {
            self.withheld.fetch_add(1, Relaxed);
            if state.said_at.is_none_or(|at| now - at >= MINUTE) {
                state.said_at = Some(now);
                log::warn!("store: chunk {key} at {at} is bad ({why}) and stays: too many were, lately (and others)");
            }
            return false;
        }
        state.taken.push_back(now).expect("there is room");
        log::warn!("store: chunk {key} at {at} is bad ({why}; read twice, and both alike): it is taken out");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: Why = Why { what: "crc-32 of its codes", block: Some(3) };

    fn key(n: usize) -> ChunkKey {
        ChunkKey::new([n as u8; 32])
    }

    #[test]
    fn many_bad_chunks_in_a_row_are_the_nodes_fault_and_stay() {
        let guard = Guard::new(2);
        let now = Instant::now();
        let asks = |n: usize, at: Duration| guard.admits_at(now + at, &key(n), &WHY, 0, &"here");
        let row = IN_A_ROW_MAX as usize;
        assert_eq!((0..3 * row).filter(|n| asks(*n, Duration::ZERO)).count(), row);
        assert!(guard.admits_at(now, &key(0), &WHY, 1, &"there"), "another node");
        guard.good(0);
        assert!(!asks(0, REST / 2), "it rests");
        assert!(asks(0, REST));
        assert_eq!(guard.withheld(), 2 * row as u64 + 1);
    }

    #[test]
    fn a_minute_has_its_limit_even_with_good_chunks_between() {
        let guard = Guard::new(1);
        let now = Instant::now();
        let asks = |at: Duration| {
            guard.good(0);
            guard.admits_at(now + at, &key(1), &WHY, 0, &"here")
        };
        assert_eq!((0..100).filter(|n| asks(Duration::from_millis(*n))).count(), DISCARDS_PER_MINUTE);
        assert!(!asks(MINUTE - Duration::from_millis(1)));
        assert!(asks(MINUTE));
    }
}
