//! Counters of the data plane: plain atomics, written by the thread that does the work, read by the status and the
//! metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::count::answers::Answers;

/// What one stage has done. Busy time is summed over its workers.
#[derive(Debug, Default)]
pub struct StageCounter {
    jobs: AtomicU64,
    busy_ns: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl StageCounter {
    /// Counts one job that began at `since` and ends now.
    pub fn count(&self, since: Instant, bytes_in: usize, bytes_out: usize) {
        self.jobs.fetch_add(1, Relaxed);
        self.busy_ns.fetch_add(since.elapsed().as_nanos() as u64, Relaxed);
        self.bytes_in.fetch_add(bytes_in as u64, Relaxed);
        self.bytes_out.fetch_add(bytes_out as u64, Relaxed);
    }

    /// Counts one job of an engine, whose busy time [`Occupancy`] measures.
    pub fn tally(&self, bytes_in: usize, bytes_out: usize) {
        self.jobs.fetch_add(1, Relaxed);
        self.bytes_in.fetch_add(bytes_in as u64, Relaxed);
        self.bytes_out.fetch_add(bytes_out as u64, Relaxed);
    }

    /// Reads `(jobs, busy_ns, bytes_in, bytes_out)`.
    #[must_use]
    pub fn read(&self) -> (u64, u64, u64, u64) {
        let [jobs, busy, bytes_in, bytes_out] =
            [&self.jobs, &self.busy_ns, &self.bytes_in, &self.bytes_out].map(|counter| counter.load(Relaxed));
        (jobs, busy, bytes_in, bytes_out)
    }
}

/// Measures the time during which an engine has at least one operation in flight.
#[derive(Debug, Default)]
pub struct Occupancy {
    since: Option<Instant>,
}

impl Occupancy {
    /// Takes note of the number in flight; to be called whenever that has changed.
    pub fn observe(&mut self, in_flight: usize, stage: &StageCounter) {
        match (self.since, in_flight) {
            (None, 1..) => self.since = Some(Instant::now()),
            (Some(since), 0) => {
                stage.busy_ns.fetch_add(since.elapsed().as_nanos() as u64, Relaxed);
                self.since = None;
            }
            _ => {}
        }
    }
}

/// All counters, by name.
#[derive(Debug, Default)]
pub struct Counters {
    /// Store -> wire.
    pub fetch: StageCounter,
    /// Wire -> codes, on the engine; busy is the time with work in flight.
    pub inflate: StageCounter,
    /// Codes -> tile.
    pub dequantize: StageCounter,
    /// Tile -> host pages, on the engine; busy is the time with work in flight.
    pub write: StageCounter,
    /// Host pages -> tile, on the engine.
    pub gather: StageCounter,
    /// Tile -> codes -> wire, without the store.
    pub encode: StageCounter,
    /// Wire -> store.
    pub put: StageCounter,
    pub requests: AtomicU64,
    pub answers: Answers,
    pub chunks_fetched: AtomicU64,
    pub chunks_missed: AtomicU64,
    pub chunks_stored: AtomicU64,
    pub chunks_known: AtomicU64,
    pub chunks_failed: AtomicU64,
    /// Undamaged chunks that this card cannot read.
    pub chunks_foreign: AtomicU64,
    /// Chunks fetched once more because what was read was damaged or gone.
    pub chunks_reread: AtomicU64,
    /// Chunks that began as followers of another session's fetch, and blocks that were written to their pages.
    pub chunks_joined: AtomicU64,
    pub blocks_shared: AtomicU64,
    pub blocks_corrupt: AtomicU64,
    pub blocks_in_software: AtomicU64,
    /// Bytes of elements in host memory: of fetches, of stores.
    pub restored_bytes: [AtomicU64; 2],
    /// Bytes in their stored form: of fetches, of stores.
    pub wire_bytes: [AtomicU64; 2],
    /// Restarts of the engines, by `doca::OperationKind`: inflate, DMA.
    pub engine_restarts: [AtomicU64; 2],
    pub blocks_resubmitted: AtomicU64,
    /// Comparisons of what the DMA engine moved, and those of them that found a difference.
    pub blocks_compared: AtomicU64,
    pub blocks_differed: AtomicU64,
    pub sessions_opened: AtomicU64,
    pub sessions_lost: AtomicU64,
    pub doorbells_rung: AtomicU64,
    pub doorbells_heard: AtomicU64,
    pub sleeps: AtomicU64,
}

impl Counters {
    /// Lists the stages by name, in the order of the pipeline.
    #[must_use]
    pub fn stages(&self) -> [(&'static str, &StageCounter); 7] {
        [
            ("fetch", &self.fetch),
            ("inflate", &self.inflate),
            ("dequantize", &self.dequantize),
            ("write", &self.write),
            ("gather", &self.gather),
            ("encode", &self.encode),
            ("put", &self.put),
        ]
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Relaxed);
}

/// Reads a counter.
#[must_use]
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

/// Reads counters and adds them up.
#[must_use]
pub fn total(counters: &[AtomicU64]) -> u64 {
    counters.iter().map(get).sum()
}
