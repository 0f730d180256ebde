//! The timing model of an engine: how long a card would have taken.
//!
//! ```text
//!   occupancy = task_ns + bytes made / bandwidth        the engine takes the next task after this
//!   latency   = depth * occupancy                       the task completes after this
//! ```
//! So a deep queue runs at one task per occupancy and a queue of one at one per latency. The defaults reproduce what
//! was measured on a BlueField-3's inflate within a tenth: 0.8 GB/s for 4 KiB blocks, 9.4 for 64 KiB, 17.7 for 256 KiB,
//! 22.5 for 1 MiB, 23.5 for 2 MiB, and an eighth of that with one task at a time.
//!
//! The work itself is done in software first. A task whose time has not come waits here; one that software was too slow
//! for completes at once. The model only ever delays.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::core::task::Task;
use crate::ffi::Handle;

/// Precision of sleep on a common kernel; the rest of a wait is spent yielding.
const GRAIN: Duration = Duration::from_micros(60);

/// The figures of the model.
#[derive(Clone, Copy, Debug)]
struct Model {
    task: Duration,
    bytes_per_us: f64,
    depth: u32,
}

impl Model {
    fn occupancy(&self, bytes: usize) -> Duration {
        self.task + Duration::from_nanos((bytes as f64 * 1000.0 / self.bytes_per_us) as u64)
    }
}

/// Completions in the order of their times.
struct Due {
    at: Reverse<(Instant, u64)>,
    task: Handle<Task>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

// SAFETY: a finished task belongs to whoever holds its queue, and this one is under a lock.
unsafe impl Send for Due {}

struct Waiting {
    due: BinaryHeap<Due>,
    /// When the engine takes its next task.
    free_at: Instant,
    count: u64,
    is_closing: bool,
}

struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// The clock of one engine.
pub(crate) struct Clock {
    model: Model,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Clock {
    /// None unless the model is switched on.
    pub(crate) fn new(config: &Config) -> Option<Arc<Clock>> {
        if !config.timing {
            return None;
        }
        let model = Model {
            task: Duration::from_nanos(config.task_ns.into()),
            // a gigabyte a second is a thousand bytes a microsecond
            bytes_per_us: config.gigabytes_per_s * 1000.0,
            depth: config.depth,
        };
        let waiting = Waiting { due: BinaryHeap::new(), free_at: Instant::now(), count: 0, is_closing: false };
        let shared = Arc::new(Shared { waiting: Mutex::new(waiting), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("engine-clock".to_owned()).spawn(move || run(&theirs)).ok();
        Some(Arc::new(Clock { model, shared, thread: Mutex::new(thread) }))
    }

    /// Completes a task that the engine took at `taken` and that made `bytes`, when the card would have.
    pub(crate) fn complete(&self, task: Handle<Task>, taken: Instant, bytes: usize) {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let occupancy = self.model.occupancy(bytes);
        let start = taken.max(waiting.free_at);
        waiting.free_at = start + occupancy;
        waiting.count += 1;
        let at = Reverse((start + occupancy * self.model.depth, waiting.count));
        waiting.due.push(Due { at, task });
        self.shared.changed.notify_one();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    let _guard = crate::tools::abort::AbortOnPanic;
    let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let now = Instant::now();
        let next = waiting.due.peek().map(|due| due.at.0.0);
        waiting = match next {
            Some(at) if at <= now => {
                let due = waiting.due.pop();
                drop(waiting);
                if let Some(Due { task, .. }) = due {
                    let port = Arc::clone(&task.run.port);
                    port.post(task);
                }
                shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
            }
            Some(at) if at - now > GRAIN => {
                let pause = at - now - GRAIN;
                shared.changed.wait_timeout(waiting, pause).unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                drop(waiting);
                thread::yield_now();
                shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
            }
            None if waiting.is_closing => return,
            None => shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_model_gives_the_measured_rates_within_a_tenth() {
        let config = Config::default();
        let model = Model {
            task: Duration::from_nanos(config.task_ns.into()),
            bytes_per_us: config.gigabytes_per_s * 1000.0,
            depth: config.depth,
        };
        for (kib, measured) in [(4, 0.8), (64, 9.4), (256, 17.7), (1024, 22.5), (2048, 23.5)] {
            let rate = (kib * 1024) as f64 / model.occupancy(kib * 1024).as_nanos() as f64;
            assert!((rate / measured - 1.0).abs() < 0.1, "{kib} KiB: {rate} for {measured}");
        }
    }
}
