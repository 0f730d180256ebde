//! Stages of a fetch alone, one after the other, or together: the real scheduler over the real tables, workers, engines
//! and ring of a config, without mailbox and sessions. For benchmarks; it allocates, and is no data plane.
//!
//! ```text
//!   Together   as the hub runs them
//!   InTurns    no overlap: all blocks of the ring are fetched, then all inflated, then dequantized, then written
//!   Alone      one stage works on what the fetch before left in the slots; the others are over at once
//! ```
//!
//! What lies in a slot after [`Trial::fetch`] `Alone` is no answer to anything: the bytes are those of some block.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use block::{ChunkKey, Geometry};
use doca::{CompressedFormat, Context, Device, ProgressEngine, Remote};
use mailbox::Tokens;
use mailbox::layout::Layout;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd;

use dpu_app::counters::Counters;
use dpu_app::{
    BlockFacts, ChunkInFlight, Config, CrewKind, Crews, Direction, Done, Failure, Fit, Inflated, Inflater, Job, Launch,
    Leaving, Lines, MODERATED_DEPTH, Pages, Pipeline, Restored, RunError, Scheduler, Seat, SectionMemory,
    SessionMemory, Shared, Ticket, World, bring_inflated, bring_transferred, open_store, start_inflate, start_transfer,
    ticket,
};

/// Longer than any fetch of a trial.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a block goes through, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Fetch,
    Inflate,
    Dequantize,
    Write,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Fetch, Self::Inflate, Self::Dequantize, Self::Write];

    #[must_use]
    pub fn name(self) -> &'static str {
        ["fetch", "inflate", "dequantize", "write"][self as usize]
    }
}

/// Which stages work, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Together,
    InTurns,
    Alone(Stage),
}

/// What is fetched, and where to.
#[derive(Debug)]
pub struct TrialFetch {
    pub keys: Vec<ChunkKey>,
    pub layout: Layout,
    /// Exported memory, by region of the layout.
    pub blobs: Vec<Vec<u8>>,
    /// Page numbers, chunk after chunk.
    pub pages: Vec<u32>,
}

/// See the module's head.
pub struct Trial<'a, 's> {
    shared: &'a Shared<'s>,
    crews: Crews<'a>,
    engine: ProgressEngine,
    inflate: Context,
    bulk: Context,
    pipeline: Pipeline,
    memory: SessionMemory,
    keys: &'a [ChunkKey],
    pages: &'a [u32],
    way: Way,
    /// The stage that may start now, with [`Way::InTurns`].
    turn: Stage,
    /// Operations of each stage that have started and not ended.
    running: [usize; Stage::ALL.len()],
    /// Jobs that wait for their stage's turn.
    held: VecDeque<Job>,
    /// Answers that stages that are left out would have given.
    answers: VecDeque<Done>,
    /// Slots that an engine which is left out would be done with.
    skipped: VecDeque<(Stage, Ticket)>,
    /// Facts of the block that lies in each slot.
    blocks: Vec<Option<(BlockFacts, Restored)>>,
    /// Blocks of a chunk, as a manifest said.
    plan: Option<(block::Plan, u16)>,
    started: usize,
    ended: usize,
}

impl std::fmt::Debug for Trial<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("way", &self.way).field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// Opens device and store, starts the crews of `config`, fetches once, and lets `work` measure.
///
/// # Errors
/// Those of [`dpu_app::run()`]; the device must have an inflate engine.
///
/// # Panics
/// If the store does not have all of it, or a stage fails: there is nothing to measure then.
pub fn run<R>(config: &Config, order: &TrialFetch, work: impl FnOnce(&mut Trial<'_, '_>) -> R) -> Result<R, RunError> {
    config.check().map_err(RunError::Config)?;
    let device = Device::open(&config.device).map_err(RunError::Device)?;
    let (store, slab) = open_store(config, &device).map_err(RunError::Store)?;
    let stop = EventFd::new().map_err(|errno: Errno| RunError::System(errno.into()))?;
    let shared = Shared::allocate(config, &device, store.as_ref(), slab, &stop)?;
    let mut lines = Lines::new(config)?;
    thread::scope(|scope| {
        let mut leaving = Leaving::of(&shared);
        let crews = lines.staff(scope, &shared, &mut leaving)?;
        let mut trial = Trial::new(&shared, &device, crews, order)?;
        trial.fetch(Way::Together);
        Ok(work(&mut trial))
    })
}

impl<'a, 's> Trial<'a, 's> {
    fn new(shared: &'a Shared<'s>, device: &Device, crews: Crews<'a>, order: &'a TrialFetch) -> Result<Self, RunError> {
        let config = shared.config;
        let fit = Fit::of(device, config).map_err(RunError::Unfit)?;
        let inflate = fit.inflate.expect("a trial needs an inflate engine");
        let codecs: &[CompressedFormat] = if inflate.lz4 {
            &[CompressedFormat::Deflate, CompressedFormat::Lz4Block]
        } else {
            &[CompressedFormat::Deflate]
        };
        let geometry: Geometry = *order.layout.geometry();
        let import = |blob: &Vec<u8>| Remote::import(device, blob).map_err(RunError::Device);
        let section = SectionMemory {
            geometry,
            order: order.layout.tile_order(),
            plan: block::Plan::choose(&geometry, config.block_bytes / geometry.element.bytes()).expect("a plan"),
            layout: order.layout.clone(),
        };
        let regions = order.blobs.iter().map(import).collect::<Result<_, _>>()?;
        let memory = SessionMemory { sections: vec![section], regions, writable: true };
        let engine = ProgressEngine::new().map_err(RunError::Device)?;
        Ok(Self {
            inflate: Context::decompress(&engine, device, codecs, inflate.depth).map_err(RunError::Device)?,
            bulk: Context::dma(&engine, device, fit.bulk).map_err(RunError::Device)?,
            pipeline: Pipeline::new(config, Some(Inflater { lz4: inflate.lz4, crc_trusted: true })),
            blocks: vec![None; config.slots],
            shared,
            crews,
            engine,
            memory,
            keys: &order.keys,
            pages: &order.pages,
            way: Way::Together,
            turn: Stage::Fetch,
            running: [0; Stage::ALL.len()],
            held: VecDeque::new(),
            answers: VecDeque::new(),
            skipped: VecDeque::new(),
            plan: None,
            started: 0,
            ended: 0,
        })
    }

    /// Fetches all of it once.
    pub fn fetch(&mut self, way: Way) -> Duration {
        (self.way, self.turn, self.started, self.ended) = (way, Stage::Fetch, 0, 0);
        let since = Instant::now();
        while self.ended < self.keys.len() || !self.pipeline.order.is_empty() {
            if !self.go_on() {
                self.sleep();
            }
        }
        since.elapsed()
    }

    /// Bytes of elements that one fetch restores.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.keys.len() * self.memory.section(0).geometry.chunk_bytes()
    }

    /// `true` if anything happened.
    fn go_on(&mut self) -> bool {
        let mut busy = false;
        while self.engine.progress() {
            busy = true;
        }
        while let Some(completion) = self.inflate.poll() {
            let slot = ticket(completion.ticket);
            let facts = self.pipeline.slots.at(slot).facts;
            let outcome = bring_inflated(&self.shared.ring, slot, completion).expect("the engine inflates it");
            assert_eq!((outcome.bytes, outcome.crc), (facts.codes_bytes, Some(facts.codes_crc)), "of {slot:?}");
            self.ended(Stage::Inflate);
            self.inflated(slot, Inflated::Right);
            busy = true;
        }
        while let Some(completion) = self.bulk.poll() {
            let slot = ticket(completion.ticket);
            let from = self.pipeline.slots.at(slot).from;
            let state = self.pipeline.slots.at(slot).state;
            bring_transferred(&self.shared.ring, slot, (state, from), completion).expect("the pages are there");
            self.ended(Stage::Write);
            self.transferred(slot, Ok(()));
            busy = true;
        }
        while let Some((done, _)) = self.crews.fetchers.collect().or_else(|| self.crews.dequantizers.collect()) {
            self.heard(done);
            busy = true;
        }
        while let Some(done) = self.answers.pop_front() {
            self.answered(done);
            busy = true;
        }
        while let Some((stage, slot)) = self.skipped.pop_front() {
            match stage {
                Stage::Inflate => self.inflated(slot, Inflated::Right),
                _ => self.transferred(slot, Ok(())),
            }
            busy = true;
        }
        busy |= self.schedule();
        busy | self.pass_turn()
    }

    /// A worker's answer.
    fn heard(&mut self, done: Done) {
        match done {
            Done::Opened { blocks, .. } => self.plan = blocks.ok(),
            Done::Read { slot, facts } => {
                self.ended(Stage::Fetch);
                let facts = facts.expect("the store has the block");
                self.blocks[usize::from(slot.index)] = Some((facts, Restored::Tile));
            }
            Done::Restored { slot, from } => {
                self.ended(Stage::Dequantize);
                let from = from.expect("the block is whole");
                self.blocks[usize::from(slot.index)].as_mut().expect("it was read").1 = from;
            }
            _ => {}
        }
        self.answered(done);
    }

    fn began(&mut self, stage: Stage) {
        self.running[stage as usize] += 1;
    }

    fn ended(&mut self, stage: Stage) {
        self.running[stage as usize] -= 1;
    }

    fn skips(&self, stage: Stage) -> bool {
        matches!(self.way, Way::Alone(only) if only != stage)
    }

    fn may_start(&self, stage: Stage) -> bool {
        self.way != Way::InTurns || self.turn == stage
    }

    fn waiting(&self, stage: Stage) -> usize {
        match stage {
            Stage::Inflate => self.pipeline.to_inflate.len(),
            Stage::Write => self.pipeline.to_transfer.len(),
            stage => self.held.iter().filter(|job| stage_of(job) == Some(stage)).count(),
        }
    }

    /// The next stage that has something to do, once this one has not; `true` if the turn was passed on.
    fn pass_turn(&mut self) -> bool {
        let turn = self.turn;
        let over = self.running[turn as usize] == 0 && self.waiting(turn) == 0;
        if self.way != Way::InTurns || !over {
            return false;
        }
        let after = (1..Stage::ALL.len()).map(|step| Stage::ALL[(turn as usize + step) % Stage::ALL.len()]);
        let Some(next) = after.into_iter().find(|&stage| self.waiting(stage) > 0) else { return false };
        self.turn = next;
        for _ in 0..self.held.len() {
            let job = self.held.pop_front().expect("counted");
            self.give(job);
        }
        true
    }

    /// Sleeps as the hub does, but for hosts.
    fn sleep(&mut self) {
        let moderation = self.shared.config.moderation;
        let deep = self.inflate.in_flight().max(self.bulk.in_flight()) >= MODERATED_DEPTH;
        if deep && !moderation.is_zero() {
            return thread::sleep(moderation);
        }
        let bell = &self.shared.engine_bell;
        bell.going_to_sleep();
        if !self.crews.fetchers.answered() && !self.crews.dequantizers.answered() {
            self.engine.arm().expect("the device arms");
            let mut fds = [self.engine.fd(), bell.as_fd()].map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::from(1000_u16)).expect("poll");
            self.engine.disarm().expect("the device disarms");
        }
        bell.awake();
    }
}

/// The stage that a job belongs to, if it moves bytes of a block.
fn stage_of(job: &Job) -> Option<Stage> {
    match job {
        Job::Read { .. } => Some(Stage::Fetch),
        Job::Restore { .. } => Some(Stage::Dequantize),
        _ => None,
    }
}

impl World for Trial<'_, '_> {
    fn pipeline(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn let_go(&mut self, slot: Ticket) {
        self.shared.ring.memory(slot).wire.settle();
    }

    fn give(&mut self, job: Job) {
        let lies = |slot: Ticket| self.blocks[usize::from(slot.index)].expect("the first fetch went through all slots");
        let answer = match job {
            Job::Read { slot, .. } if self.skips(Stage::Fetch) => Done::Read { slot, facts: Ok(lies(slot).0) },
            Job::Restore { slot, .. } if self.skips(Stage::Dequantize) => {
                Done::Restored { slot, from: Ok(lies(slot).1) }
            }
            Job::Open { seat, .. } if self.skips(Stage::Fetch) => {
                Done::Opened { seat, blocks: Ok(self.plan.expect("the first fetch opened a chunk")) }
            }
            Job::Close { seat, .. } if self.skips(Stage::Fetch) => Done::Closed { seat },
            job => {
                let stage = stage_of(&job);
                if stage.is_some_and(|stage| !self.may_start(stage)) {
                    return self.held.push_back(job);
                }
                if let Some(stage) = stage {
                    self.began(stage);
                }
                let crew = match job.crew() {
                    CrewKind::Dequantize => &mut self.crews.dequantizers,
                    _ => &mut self.crews.fetchers,
                };
                return crew.give(job);
            }
        };
        self.answers.push_back(answer);
    }

    fn inflate_has_room(&self) -> bool {
        self.may_start(Stage::Inflate) && self.inflate.has_room()
    }

    fn inflate(&mut self, slot: Ticket) -> Launch {
        if self.skips(Stage::Inflate) {
            self.skipped.push_back((Stage::Inflate, slot));
            return Launch::Started;
        }
        let facts = self.pipeline.slots.at(slot).facts;
        let launch = start_inflate(&mut self.inflate, &self.shared.ring, slot, &facts);
        if launch == Launch::Started {
            self.began(Stage::Inflate);
        }
        launch
    }

    fn transfer_has_room(&self) -> bool {
        self.may_start(Stage::Write) && self.bulk.has_room()
    }

    fn transfer(&mut self, slot: Ticket) -> Launch {
        if self.skips(Stage::Write) {
            self.skipped.push_back((Stage::Write, slot));
            return Launch::Started;
        }
        let mut work = *self.pipeline.slots.at(slot);
        let flow = self.pipeline.chunks[usize::from(work.seat.0)].as_ref().expect("a slot in use belongs to a chunk");
        let launch = start_transfer(&mut self.bulk, &self.shared.ring, slot, &mut work, flow, &self.memory);
        if launch == Launch::Started {
            self.pipeline.slots.at(slot).moves = work.moves;
            self.began(Stage::Write);
        }
        launch
    }

    fn start_chunks(&mut self, session: usize) -> bool {
        if session > 0 || self.started == self.keys.len() {
            return false;
        }
        let Some(seat) = self.pipeline.free_seat(session, Direction::Fetch) else { return false };
        let SectionMemory { geometry, order, plan, ref layout } = *self.memory.section(0);
        let pages = layout.pages_per_chunk();
        let pages = Pages::from_slice(&self.pages[self.started * pages..][..pages]).expect("a chunk's pages fit");
        let mut flow = ChunkInFlight::opening(session, pages, (geometry, order, plan));
        flow.index = self.started as u32;
        flow.tokens = Tokens { start: 0, end: u32::from(geometry.chunk_tokens) };
        {
            let mut chunk = self.shared.chunks.at(seat);
            (chunk.key, chunk.geometry, chunk.order) = (self.keys[self.started], geometry, order);
            (chunk.plan, chunk.blocks) = (plan, usize::from(flow.blocks));
            chunk.until = Instant::now() + PATIENCE;
        }
        self.started += 1;
        self.pipeline.sit(seat, flow);
        self.give(Job::Open { seat, anew: false });
        true
    }

    fn concluded(&mut self, _: Seat, result: Result<(), Failure>) {
        assert_eq!(result, Ok(()), "a trial has nothing to measure where a fetch fails");
        self.ended += 1;
    }

    fn differed(&mut self, slot: Ticket, _: bool) {
        panic!("the pages of {slot:?} hold other bytes than were written");
    }

    fn unreachable(&mut self, _: usize, error: doca::Error) {
        panic!("the pages cannot be reached: {error}");
    }
}
