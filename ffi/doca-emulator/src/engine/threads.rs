//! Engines: threads of a device that take tasks from one queue per engine kind, run them and post them to the port of
//! their progress engine.
//!
//! Threads start with the first context that needs them and end with the device. All that they need is allocated before
//! they take their first task: codec state, iovec lists, and for each thread two staging areas of the card's largest
//! buffer (a source that is a list or in another process is gathered into one; an output for a list or for another
//! process is made in the other and copied out from there). The areas are zero pages until used.
//!
//! An idle engine sleeps. A submit wakes one thread, and none if all are busy: they look at the queue before sleeping.
//!
//! Copies of a few bytes are made by submit itself (`inline_bytes`): a card is done with them before a thread could
//! have been woken. Their callbacks run in progress like all others.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::{Config, LIST_MAX, TaskKind, buf_bytes_max};
use crate::core::chance::Chance;
use crate::core::job::{EngineJob, Sums};
use crate::core::passage::{Passage, pieces};
use crate::core::poison::inspect;
use crate::core::pool::Fifo;
use crate::core::task::{ContextRun, Task};
use crate::engine::clock::Clock;
use crate::engine::codec::{self, DeflateState, Unusable};
use crate::engine::lane;
use crate::engine::memo::{Key, Memo};
use crate::engine::queue::Queue;
use crate::ffi::{Answer, FLUSHED, Fault, Handle};
use crate::memory::copy::{self, Copier, Piece};
use crate::tools::abort::AbortOnPanic;
use crate::tools::debug;

pub(crate) struct Engine {
    name: &'static str,
    width: u32,
    queue: Arc<Queue>,
    clock: Mutex<Option<Arc<Clock>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Tools of whoever submits a small copy. None: everything goes through the queue.
    inline: Mutex<Option<Inline>>,
}

struct Inline {
    worker: Worker,
    bytes_max: usize,
}

impl Engine {
    pub(crate) fn new(name: &'static str, width: u32, reorder: bool, seed: u64) -> Engine {
        let queue = Queue::new(reorder.then(|| Chance::new(seed)));
        Engine {
            name,
            width,
            queue: Arc::new(queue),
            clock: Mutex::new(None),
            threads: Mutex::new(Vec::new()),
            inline: Mutex::new(None),
        }
    }

    /// Starts the threads if they do not run yet.
    pub(crate) fn start(&self, config: &Config) -> Answer {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.is_empty() {
            *clock = Clock::new(config);
        }
        let is_compress = self.name == "compress";
        let memo = if is_compress && threads.is_empty() { Memo::new(config.remember) } else { None };
        while threads.len() < self.width as usize {
            let queue = Arc::clone(&self.queue);
            let clock = clock.clone();
            let worker = Worker::new(is_compress, config, memo.clone());
            let thread = thread::Builder::new().name(format!("{}-{}", self.name, threads.len()));
            let thread = thread
                .spawn(move || work(&queue, worker, clock.as_deref()))
                .map_err(|_| Fault::DOCA_ERROR_INITIALIZATION)?;
            threads.push(thread);
        }
        let bytes_max = config.inline_bytes_max();
        if self.name == "dma" && bytes_max > 0 {
            let mut inline = self.inline.lock().unwrap_or_else(PoisonError::into_inner);
            inline.get_or_insert_with(|| Inline { worker: Worker::new(false, config, None), bytes_max });
        }
        Ok(())
    }

    /// Makes small copies at once and queues the other tasks, in order. What an exporter has to carry goes to that
    /// one's own lane: whoever does not answer holds up nobody else.
    pub(crate) fn take_in(&self, tasks: Fifo) {
        let tasks = if self.name == "dma" && lane::are_any() { lane::divert(tasks) } else { tasks };
        let tasks = self.run_inline(tasks);
        self.queue.add(tasks);
    }
}

impl Engine {
    /// Gives back what is not to be done here.
    fn run_inline(&self, mut tasks: Fifo) -> Fifo {
        // Taken by another thread that submits: the engine's own threads are there, too.
        let Ok(mut inline) = self.inline.try_lock() else { return tasks };
        let Some(Inline { worker, bytes_max }) = &mut *inline else { return tasks };
        let mut queued = Fifo::new();
        while let Some(task) = tasks.pop() {
            // SAFETY: a submitted task that is in no queue, so the job is this thread's until `finish`.
            let job = unsafe { task.job() };
            if job.lists().0.iter().map(|source| source.len).sum::<usize>() > *bytes_max {
                queued.push(task);
            } else {
                let _guard = AbortOnPanic;
                run(worker, task);
                finish(task);
            }
        }
        queued
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A panic would have ended the process.
            let _ = thread.join();
        }
    }
}

pub(crate) fn work(queue: &Queue, mut worker: Worker, clock: Option<&Clock>) {
    let _guard = AbortOnPanic;
    while let Some(task) = queue.next() {
        let taken = Instant::now();
        let made = run(&mut worker, task);
        match (clock, made) {
            (Some(clock), Some(bytes)) => clock.complete(task, taken, bytes),
            _ => finish(task),
        }
    }
}

/// Does a task that is in no queue any more; how many bytes it made, or None if it failed.
fn run(worker: &mut Worker, task: Handle<Task>) -> Option<usize> {
    // SAFETY: the task came out of a queue, so the job is this thread's until `finish`.
    let job = unsafe { task.job() };
    let done = worker.run(task.kind, job, &task.run);
    job.unload();
    job.outcome = done.map(|made| made.bytes);
    job.sums = done.map_or(Sums::default(), |made| made.sums);
    if job.outcome.is_err() {
        // Read by tasks that start later; those already running finish.
        task.run.broken.store(true, Ordering::Release);
    }
    job.outcome.ok()
}

/// Posts the task. From then on the application may free it and everything that depends on it.
fn finish(task: Handle<Task>) {
    let port = Arc::clone(&task.run.port);
    port.post(task);
}

/// What a task came to.
#[derive(Clone, Copy)]
struct Made {
    bytes: usize,
    sums: Sums,
}

/// One engine thread's tools.
pub(crate) struct Worker {
    codec: Option<DeflateState>,
    memo: Option<Arc<Memo>>,
    copier: Copier,
    sources: Vec<Piece>,
    destinations: Vec<Piece>,
    /// Gathered input.
    input: Vec<u8>,
    /// Output on its way elsewhere; for the copy engine, what goes from one process to another.
    output: Vec<u8>,
}

// SAFETY: the piece lists are empty between tasks, so no pointer moves to the thread with them.
unsafe impl Send for Worker {}

impl Worker {
    pub(crate) fn new(is_compress: bool, config: &Config, memo: Option<Arc<Memo>>) -> Worker {
        let room = |kind: TaskKind| buf_bytes_max(config, kind).unwrap_or(0) as usize;
        let deflates = room(TaskKind::Deflate) > 0;
        let staging = if is_compress { room(TaskKind::Inflate) } else { room(TaskKind::Memcpy) };
        Worker {
            codec: is_compress.then(|| DeflateState::new(deflates)),
            memo,
            copier: Copier::new(),
            sources: Vec::with_capacity(LIST_MAX as usize),
            destinations: Vec::with_capacity(LIST_MAX as usize),
            input: vec![0; if is_compress { staging } else { 0 }],
            output: vec![0; staging],
        }
    }

    fn run(&mut self, kind: TaskKind, job: &EngineJob, run: &ContextRun) -> Result<Made, Fault> {
        if let Some(refusal) = job.refusal {
            return Err(refusal);
        }
        if run.broken.load(Ordering::Acquire) {
            return Err(FLUSHED);
        }
        if job.fate.delay_us > 0 {
            thread::sleep(Duration::from_micros(u64::from(job.fate.delay_us)));
        }
        if job.fate.fail {
            return Err(Fault::DOCA_ERROR_IO_FAILED);
        }
        let (sources, destinations) = job.lists();
        if job.fate.exporter_gone {
            let imports = sources.iter().chain(destinations).filter(|segment| !segment.region().is_own());
            imports.for_each(|segment| segment.region().is_gone.store(true, Ordering::Relaxed));
        }
        if debug::is_on() {
            inspect(sources, destinations, job.is_poisoned)?;
        }
        let passages = (Passage::open(sources)?, Passage::open(destinations)?);
        // SAFETY: the passages keep the regions reachable until the end of this function.
        unsafe {
            pieces(&mut self.sources, sources);
            pieces(&mut self.destinations, destinations);
        }
        let made = match kind {
            TaskKind::Memcpy => self.copy(job.fate.flip),
            _ => self.transform(kind, job),
        };
        self.sources.clear();
        self.destinations.clear();
        drop(passages);
        made
    }

    /// `flip`: the bit of what is written that chance changes.
    fn copy(&mut self, flip: Option<u64>) -> Result<Made, Fault> {
        let bytes = copy::total(&self.sources);
        // SAFETY: `run` keeps the pieces reachable.
        unsafe { self.copier.copy(&self.sources, &self.destinations, bytes, &mut self.output) }?;
        if let Some(bit) = flip.filter(|_| bytes > 0) {
            let bit = (bit % (bytes as u64 * 8)) as usize;
            let mut byte = [0];
            let (from, to) = (copy::byte_at(&self.sources, bit / 8), copy::byte_at(&self.destinations, bit / 8));
            let (Some(from), Some(to)) = (from, to) else { return Err(Fault::DOCA_ERROR_UNEXPECTED) };
            // SAFETY: parts of pieces that `run` keeps reachable, and a byte of our own.
            unsafe { self.copier.copy(&[from], &[Piece::here(&mut byte)], 1, &mut []) }?;
            byte[0] ^= 1 << (bit % 8);
            // SAFETY: as above.
            unsafe { self.copier.copy(&[Piece::here(&mut byte)], &[to], 1, &mut []) }?;
        }
        Ok(Made { bytes, sums: Sums::default() })
    }

    fn transform(&mut self, kind: TaskKind, job: &EngineJob) -> Result<Made, Fault> {
        let Worker { codec, memo, copier, sources, destinations, input, output } = self;
        let codec = codec.as_mut().ok_or(Fault::DOCA_ERROR_UNEXPECTED)?;
        let overlap = sources.iter().any(|s| destinations.iter().any(|d| s.overlaps(d)));

        let in_place = match &sources[..] {
            // SAFETY: `run` keeps it reachable, nothing overlaps it, and the application leaves a task's source alone.
            [one] if !overlap => unsafe { one.bytes() },
            _ => None,
        };
        let source: &[u8] = match in_place {
            Some(bytes) => bytes,
            None => {
                let bytes = copy::total(sources);
                let gathered = input.get_mut(..bytes).ok_or(Fault::DOCA_ERROR_TOO_BIG)?;
                // SAFETY: `run` keeps the pieces reachable; `output` is not in use yet.
                unsafe { copier.copy(sources, &[Piece::here(gathered)], bytes, output) }?;
                gathered
            }
        };

        let room = copy::total(destinations);
        let direct = match &destinations[..] {
            // SAFETY: as for the source; the application leaves a task's destination alone.
            [one] => unsafe { one.bytes_mut() },
            _ => None,
        };
        let is_direct = direct.is_some();
        let made: &mut [u8] = match direct {
            Some(bytes) => bytes,
            None => output.get_mut(..room).ok_or(Fault::DOCA_ERROR_TOO_BIG)?,
        };

        let key = memo
            .as_ref()
            .filter(|_| kind != TaskKind::Deflate)
            .map(|memo| (memo, Key::of(kind, [job.has_block_checksum, job.are_blocks_independent], source)));
        let recalled = key.as_ref().and_then(|(memo, key)| memo.recall(key, made));
        let (produced, sums) = match recalled {
            Some(recalled) if job.fate.corrupt.is_none() => recalled,
            _ => {
                let (produced, sums) = decode(codec, kind, job, source, made)?;
                if let (Some((memo, key)), None) = (key, job.fate.corrupt) {
                    memo.remember(key, &made[..produced], sums);
                }
                (produced, sums)
            }
        };
        let made = &mut made[..produced];
        if !is_direct {
            let made = [Piece::here(made)];
            // SAFETY: `run` keeps the pieces reachable. `made` lives in `output`, so there is no bounce area, and none
            // is needed: the source is here.
            unsafe { copier.copy(&made, destinations, produced, &mut []) }?;
        }
        Ok(Made { bytes: produced, sums })
    }
}

/// Makes one output, with its checksums; chance may flip a bit of it first.
fn decode(
    codec: &mut DeflateState,
    kind: TaskKind,
    job: &EngineJob,
    source: &[u8],
    made: &mut [u8],
) -> Result<(usize, Sums), Fault> {
    let produced = match kind {
        TaskKind::Inflate => codec.inflate(source, made),
        TaskKind::Deflate => codec.deflate(source, made),
        TaskKind::Lz4Block => codec::lz4_block(source, made),
        TaskKind::Lz4Stream => codec::lz4_stream(source, made, job.has_block_checksum, job.are_blocks_independent),
        TaskKind::Memcpy | TaskKind::MessageSend | TaskKind::DataSend | TaskKind::PostReceive => Err(Unusable),
    };
    let produced = produced.map_err(|Unusable| Fault::DOCA_ERROR_IO_FAILED)?;
    let made = &mut made[..produced];
    if let (Some(bit), false) = (job.fate.corrupt, made.is_empty()) {
        let bit = (bit % (made.len() as u64 * 8)) as usize;
        made[bit / 8] ^= 1 << (bit % 8);
    }
    let plain: &[u8] = if kind == TaskKind::Deflate { source } else { made };
    let second = match kind {
        TaskKind::Inflate | TaskKind::Deflate => codec::adler32(plain),
        _ => codec::xxh32(plain).swap_bytes(),
    };
    Ok((produced, Sums { crc: crc32fast::hash(plain), second }))
}
