//! Decides when T1 is passed over because its disk is slow or fails: all is served then as if T1 were not there.
//!
//! ```text
//!   in service --[STRIKES_MAX slow or failed calls, each within MEMORY of the one before]--> out for PAUSE
//!   out        --[PAUSE is over: one call tries; the others pass T1 over meanwhile]--> in service, or out for PAUSE
//!   a call that has not come back for SLOW: out for as long as it lasts
//! ```
//!
//! What it cannot do: end a call that the kernel does not end. The thread that made it waits with it; a disk that hangs
//! all at once holds every thread that reads from it in the first [`SLOW`], and after that only the one that tries.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::StoreError;

/// Time from which a call is slow: a block of 2 MiB at 8 MB/s, or dozens of seeks of a disk that turns.
pub(super) const SLOW: Duration = Duration::from_millis(250);
/// Slow or failed calls that take T1 out of service.
pub(super) const STRIKES_MAX: u32 = 4;
/// Time for which a slow or failed call counts if no other follows.
const MEMORY: Duration = Duration::from_secs(60);
/// Time that T1 stays out before one call tries it.
pub(super) const PAUSE: Duration = Duration::from_secs(30);
/// Threads that are told apart; two that share a lane are seen as one.
const LANES: usize = 64;
/// The mover's lane; fetch workers have the others.
pub(super) const MOVER_LANE: usize = 0;

/// Calls of one kind: reads or writes. All of it is a judgement, so nothing is ordered.
#[derive(Debug)]
pub(super) struct Breaker {
    opened: Instant,
    /// Start of the call that is under way in each lane, in ms since `opened` plus one; 0: none.
    calls: [AtomicU64; LANES],
    strikes: AtomicU32,
    /// Time of the last strike or trial, in ms since `opened`.
    struck_ms: AtomicU64,
    /// Calls that were slow.
    pub(super) slow: AtomicU64,
}

/// What a call may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Go,
    /// Whatever comes of this one decides.
    Try,
    PassOver,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            calls: [const { AtomicU64::new(0) }; LANES],
            strikes: 0.into(),
            struck_ms: 0.into(),
            slow: 0.into(),
        }
    }

    /// The lane of the n-th fetch worker.
    pub(super) fn lane(n: usize) -> usize {
        MOVER_LANE + 1 + n % (LANES - 1)
    }

    fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// Whether T1 is in service, or may be tried.
    pub(super) fn serves(&self) -> bool {
        let now_ms = self.now_ms();
        !self.hangs(now_ms) && (!self.is_out() || self.pause_is_over(now_ms))
    }

    fn is_out(&self) -> bool {
        self.strikes.load(Relaxed) >= STRIKES_MAX
    }

    fn pause_is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.struck_ms.load(Relaxed)) >= PAUSE.as_millis() as u64
    }

    fn hangs(&self, now_ms: u64) -> bool {
        let since = |lane: &AtomicU64| lane.load(Relaxed).checked_sub(1);
        let hangs = |since_ms: u64| now_ms.saturating_sub(since_ms) >= SLOW.as_millis() as u64;
        self.calls.iter().filter_map(since).any(hangs)
    }

    /// Makes a call and judges it. Where T1 is out of service it is not made, and the chunk is a miss.
    pub(super) fn watch<T>(&self, lane: usize, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let began_ms = self.now_ms();
        let leave = self.leave(began_ms);
        if leave == Leave::PassOver {
            return Err(StoreError::Miss);
        }
        self.calls[lane].store(began_ms + 1, Relaxed);
        let result = call();
        self.calls[lane].store(0, Relaxed);
        let now_ms = self.now_ms();
        let slow = now_ms - began_ms >= SLOW.as_millis() as u64;
        if slow {
            self.slow.fetch_add(1, Relaxed);
        }
        if slow || result.as_ref().is_err_and(failed) {
            self.strike(now_ms);
        } else if leave == Leave::Try {
            self.strikes.store(0, Relaxed);
        }
        result
    }

    fn leave(&self, now_ms: u64) -> Leave {
        if self.hangs(now_ms) {
            return Leave::PassOver;
        }
        if !self.is_out() {
            return Leave::Go;
        }
        // Of all who find the pause over one gets to try; to the others it has begun again.
        let struck_ms = self.struck_ms.load(Relaxed);
        let tries =
            self.pause_is_over(now_ms) && self.struck_ms.compare_exchange(struck_ms, now_ms, Relaxed, Relaxed).is_ok();
        if tries { Leave::Try } else { Leave::PassOver }
    }

    fn strike(&self, now_ms: u64) {
        let before_ms = self.struck_ms.swap(now_ms, Relaxed);
        if !self.is_out() && now_ms.saturating_sub(before_ms) >= MEMORY.as_millis() as u64 {
            self.strikes.store(1, Relaxed);
        } else {
            self.strikes.fetch_add(1, Relaxed);
        }
    }
}

/// Errors that say something of the disk, not of the chunk.
fn failed(error: &StoreError) -> bool {
    match error {
        StoreError::Io { .. } | StoreError::Down { .. } | StoreError::ReadOnly | StoreError::Full { .. } => true,
        StoreError::Denied { .. } => true,
        StoreError::Miss | StoreError::Corrupt { .. } | StoreError::Foreign { .. } => false,
        StoreError::Large { .. } | StoreError::Late { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    const EIO: StoreError = StoreError::Io { call: "pread", errno: Errno::EIO };

    /// One whose clock is `past` ahead.
    fn later(breaker: Breaker, past: Duration) -> Breaker {
        Breaker { opened: breaker.opened.checked_sub(past).expect("the machine has been up so long"), ..breaker }
    }

    fn fail(breaker: &Breaker, times: u32) {
        (0..times).for_each(|_| assert_eq!(breaker.watch(1, || Err::<(), _>(EIO)), Err(EIO)));
    }

    fn passed_over(breaker: &Breaker) -> bool {
        breaker.watch(1, || Ok(())) == Err(StoreError::Miss)
    }

    #[test]
    fn failures_take_it_out_and_misses_do_not() {
        let breaker = Breaker::new();
        for error in [StoreError::Miss, StoreError::Corrupt { what: "x", value: 0 }, StoreError::Late { call: "x" }] {
            (0..10).for_each(|_| assert_eq!(breaker.watch(1, || Err::<(), _>(error)), Err(error)));
        }
        fail(&breaker, STRIKES_MAX - 1);
        assert!(breaker.serves() && !passed_over(&breaker), "one less than it takes");
        fail(&breaker, 1);
        assert!(!breaker.serves() && passed_over(&breaker));
    }

    #[test]
    fn one_call_tries_after_the_pause_and_decides() {
        let breaker = Breaker::new();
        fail(&breaker, STRIKES_MAX);
        let breaker = later(breaker, PAUSE);
        assert!(breaker.serves());
        // Who comes while it is tried passes it over.
        assert_eq!(
            breaker.watch(1, || Err::<(), _>(if passed_over(&breaker) { EIO } else { StoreError::Miss })),
            Err(EIO)
        );
        assert!(!breaker.serves(), "it failed: out again");
        let breaker = later(breaker, PAUSE);
        assert_eq!(breaker.watch(1, || Ok(7)), Ok(7));
        assert!(!passed_over(&breaker) && breaker.serves());
        fail(&breaker, STRIKES_MAX - 1);
        assert!(breaker.serves(), "it starts again from none");
    }

    #[test]
    fn strikes_far_apart_are_no_pattern() {
        let mut breaker = Breaker::new();
        for _ in 0..3 * STRIKES_MAX {
            fail(&breaker, 1);
            breaker = later(breaker, MEMORY);
        }
        assert!(breaker.serves());
    }

    #[test]
    fn a_call_that_hangs_is_seen_by_the_others_while_it_hangs() {
        let breaker = Breaker::new();
        let (hangs, release) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let breaker = &breaker;
            let hanging = scope.spawn(move || breaker.watch(1, || release.recv().map_err(|_| EIO)));
            let end = Instant::now() + Duration::from_secs(20);
            while breaker.serves() {
                assert!(Instant::now() < end, "nobody saw it");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(breaker.watch(2, || Ok(())), Err(StoreError::Miss));
            hangs.send(()).expect("it waits");
            assert_eq!(hanging.join().expect("no panic"), Ok(()));
        });
        assert!(breaker.serves(), "one slow call is one strike");
        assert_eq!(breaker.slow.load(Relaxed), 1);
    }
}
