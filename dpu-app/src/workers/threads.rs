//! Starts the worker threads, each on its core, and sends them home.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::thread;

use block::codec::{CodecError, Compressor, Decompressor};

use crate::config::Config;
use crate::pipeline::job::CrewKind;
use crate::workers::affinity;
use crate::workers::bell::{Bell, EventBell, WorkerBell};
use crate::workers::compute::ComputeWorker;
use crate::workers::crew::{Crew, Crews};
use crate::workers::fetch::Fetcher;
use crate::workers::line::{BLOCK_QUEUE, QUEUE, WorkerLine};
use crate::workers::shared::Shared;

/// Reason for which the workers, or what they share, could not be had.
#[derive(Debug)]
pub enum StartError {
    System(io::Error),
    Device(doca::Error),
    Encoder(CodecError),
}

/// Runs a worker thread on its core.
fn on_core(cpus: &[usize], index: usize, work: impl FnOnce()) {
    if let Err(errno) = affinity::pin(cpus, index) {
        log::warn!("worker {index} stays on no core of its own: {}", errno.desc());
    }
    work();
}

/// Lines and bells of all crews.
#[derive(Debug)]
pub struct Lines {
    ask: Vec<(WorkerLine<QUEUE>, EventBell)>,
    fetch: Vec<(WorkerLine<BLOCK_QUEUE>, EventBell)>,
    dequantize: Vec<(WorkerLine<BLOCK_QUEUE>, WorkerBell)>,
    encode: Vec<(WorkerLine<BLOCK_QUEUE>, WorkerBell)>,
}

/// Makes the lines of workers that read from the store.
fn readers<const N: usize>(count: usize) -> Result<Vec<(WorkerLine<N>, EventBell)>, StartError> {
    let line = |_| EventBell::new().map(|bell| (WorkerLine::default(), bell));
    (0..count).map(line).collect::<Result<_, _>>().map_err(StartError::System)
}

impl Lines {
    pub fn new(config: &Config) -> Result<Self, StartError> {
        let lines = |count: usize| (0..count).map(|_| Default::default()).collect();
        Ok(Self {
            ask: readers(1)?,
            fetch: readers(config.fetch_workers)?,
            dequantize: lines(config.dequantize_workers),
            encode: lines(config.encode_workers),
        })
    }

    /// Starts the threads of all crews.
    pub fn staff<'scope, 'env, 's: 'env>(
        &'env mut self,
        scope: &'scope thread::Scope<'scope, 'env>,
        shared: &'env Shared<'s>,
        leaving: &mut Leaving<'env, 's>,
    ) -> Result<Crews<'env>, StartError> {
        Ok(Crews {
            askers: start_readers(scope, shared, CrewKind::Ask, &mut self.ask, leaving)?,
            fetchers: start_readers(scope, shared, CrewKind::Fetch, &mut self.fetch, leaving)?,
            dequantizers: start_crew(scope, shared, "dequantize", &mut self.dequantize, leaving)?,
            encoders: start_crew(scope, shared, "encode", &mut self.encode, leaving)?,
        })
    }
}

/// Ends all workers when the engine thread is done, however that came about.
pub struct Leaving<'a, 's> {
    shared: &'a Shared<'s>,
    bells: Vec<&'a dyn Bell>,
}

impl<'a, 's> Leaving<'a, 's> {
    pub fn of(shared: &'a Shared<'s>) -> Self {
        Self { shared, bells: Vec::new() }
    }
}

impl fmt::Debug for Leaving<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving").field("bells", &self.bells.len()).finish_non_exhaustive()
    }
}

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::Release);
        self.bells.iter().for_each(|bell| bell.ring());
    }
}

fn start_readers<'scope, 'env, 's: 'env, const N: usize>(
    scope: &'scope thread::Scope<'scope, 'env>,
    shared: &'env Shared<'s>,
    kind: CrewKind,
    lines: &'env mut [(WorkerLine<N>, EventBell)],
    leaving: &mut Leaving<'env, 's>,
) -> Result<Crew<'env>, StartError> {
    let mut hands = Vec::with_capacity(lines.len());
    for (index, (line, bell)) in lines.iter_mut().enumerate() {
        let bell = &*bell;
        let (hand, duties) = line.ends(bell);
        let mut reader = shared.store.reader(bell.as_fd()).map_err(StartError::System)?;
        if kind == CrewKind::Ask {
            reader.keep_off_disks();
        }
        let fetcher = Fetcher::new(shared, bell, duties, reader);
        let name = format!("{}-{index}", kind.name());
        let body = move || on_core(&shared.config.fetch_cpus, index, || fetcher.run());
        thread::Builder::new().name(name).spawn_scoped(scope, body).map_err(StartError::System)?;
        leaving.bells.push(bell);
        hands.push(hand);
    }
    Ok(Crew::new(hands))
}

fn start_crew<'scope, 'env, 's: 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    shared: &'env Shared<'s>,
    kind: &'static str,
    lines: &'env mut [(WorkerLine<BLOCK_QUEUE>, WorkerBell)],
    leaving: &mut Leaving<'env, 's>,
) -> Result<Crew<'env>, StartError> {
    let config = shared.config;
    let mut hands = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter_mut().enumerate() {
        let (line, bell) = line;
        let bell = &*bell;
        let (hand, duties) = line.ends(bell);
        let compressor = match kind {
            "encode" => Some(Compressor::new(config.deflate_level, config.block_bytes).map_err(StartError::Encoder)?),
            _ => None,
        };
        let manifest = vec![0; block::MANIFEST_BYTES_MAX];
        let worker = ComputeWorker { shared, bell, duties, compressor, decompressor: Decompressor::new(), manifest };
        let name = format!("{kind}-{index}");
        let cpus = if kind == "encode" { &config.encode_cpus } else { &config.dequantize_cpus };
        let body = move || on_core(cpus, index, || worker.run());
        thread::Builder::new().name(name).spawn_scoped(scope, body).map_err(StartError::System)?;
        leaving.bells.push(bell);
        hands.push(hand);
    }
    Ok(Crew::new(hands))
}
