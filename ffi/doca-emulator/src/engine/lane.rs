//! A thread for each exporter whose bytes it carries itself ([`crate::memory::courier`]): it may be slow, or answer
//! never, and then only the tasks that reach into its own memory wait, up to the courier's patience, and fail.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use crate::config::Config;
use crate::core::pool::Fifo;
use crate::engine::queue::Queue;
use crate::engine::threads::{self, Worker};
use crate::memory::region::{MmapRegion, Reach};

/// Lanes in use, by the courier's name.
static LANES: Mutex<Vec<(u64, Weak<ExporterLane>)>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Its thread ends after the last import of its exporter.
pub(crate) struct ExporterLane {
    queue: Arc<Queue>,
}

impl ExporterLane {
    /// The lane of this courier; None where there can be no thread.
    pub(crate) fn of(courier: u64, config: &Config) -> Option<Arc<ExporterLane>> {
        let mut lanes = LANES.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|(_, lane)| lane.strong_count() > 0);
        if let Some(lane) = lanes.iter().find(|(name, _)| *name == courier).and_then(|(_, lane)| lane.upgrade()) {
            return Some(lane);
        }
        let queue = Arc::new(Queue::new(None));
        let (theirs, worker) = (Arc::clone(&queue), Worker::new(false, config, None));
        // On its own: the last import may end on the lane's thread, which cannot wait for itself.
        thread::Builder::new().name("lane".to_owned()).spawn(move || threads::work(&theirs, worker, None)).ok()?;
        let lane = Arc::new(ExporterLane { queue });
        lanes.push((courier, Arc::downgrade(&lane)));
        COUNT.fetch_add(1, Ordering::Relaxed);
        Some(lane)
    }
}

impl Drop for ExporterLane {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
        self.queue.close();
    }
}

/// Whether tasks have to be looked at.
pub(crate) fn are_any() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// Queues tasks that need a lane there, and gives the others back in order.
pub(crate) fn divert(mut tasks: Fifo) -> Fifo {
    let mut others = Fifo::new();
    while let Some(task) = tasks.pop() {
        let lane = {
            // SAFETY: a submitted task that is in no queue, so the job is this thread's until it is queued.
            let (sources, destinations) = unsafe { task.job() }.lists();
            sources.iter().chain(destinations).find_map(|segment| of_region(segment.region()))
        };
        match lane {
            Some(lane) => {
                let mut one = Fifo::new();
                one.push(task);
                lane.queue.add(one);
            }
            None => others.push(task),
        }
    }
    others
}

fn of_region(region: &MmapRegion) -> Option<Arc<ExporterLane>> {
    match &region.reach {
        Reach::Foreign(foreign) => foreign.lane()?.downcast().ok(),
        Reach::Own | Reach::Neighbour(_) => None,
    }
}
