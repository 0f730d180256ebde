//! The pipeline in virtual time: the real [`Scheduler`] over the real tables, in a [`World`] of queues instead of
//! threads and engines. Discrete events; the same parameters give the same answer. It allocates: it is no data plane.
//!
//! What is modelled: a link (rate, latency, cost of a request), workers (each a queue, chosen by the crew's own rule)
//! that need one of the machine's cores and a share of its memory, the inflate and DMA engines (the emulator's timing
//! model: occupancy and depth, docs/emulator.md; and the threads of an engine made of software), and the engine thread:
//! its time for each event, its moderated sleep. Not modelled: the store path, failures, the mailbox, caches. Memory
//! serves in the order in which it is asked, cores too; every block has the average ratio.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use block::{Codec, Geometry, Plan, TileOrder};

use dpu_app::counters::Counters;
use dpu_app::{
    BlockFacts, ChunkInFlight, Config, Direction, Done, Failure, Inflated, Inflater, Job, Launch, MODERATED_DEPTH,
    Pages, Pipeline, Restored, Scheduler, Seat, SlotState, Ticket, World, least_busy,
};

/// An engine of the emulator's timing model.
#[derive(Clone, Copy, Debug)]
pub struct EngineModel {
    pub task_ns: f64,
    pub ns_per_byte: f64,
    /// Operations under way at once inside the engine.
    pub depth: f64,
    /// Time of a core for each byte, where software is the engine (the emulator), and its threads. No threads:
    /// hardware.
    pub software_ns_per_byte: f64,
    pub threads: usize,
}

/// The machine and the data.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub link_ns_per_byte: f64,
    pub link_latency_ns: f64,
    /// What the link or the server behind it needs for each request, whatever its size.
    pub link_request_ns: f64,
    /// Time of a fetch worker per stored byte, of a dequantize worker per restored byte.
    pub fetch_ns_per_byte: f64,
    pub dequantize_ns_per_byte: f64,
    pub inflate: EngineModel,
    pub dma: EngineModel,
    /// Time of the memory that all stages share, per byte read or written.
    pub memory_ns_per_byte: f64,
    /// Time of the engine thread for each answer and completion.
    pub event_ns: f64,
    /// Cores that workers, software engines and the engine thread share.
    pub cores: usize,
    pub geometry: Geometry,
    /// Restored bytes per stored byte, and restored bytes per byte of codes.
    pub ratio: f64,
    pub tile_per_codes: f64,
}

impl Model {
    /// Bytes that fetch, inflate, dequantize and DMA read and write of the shared memory for each restored byte: the
    /// network writes what comes and the kernel's copy reads and writes it; each stage then reads what the one before
    /// made. What the DMA engine writes is the host's memory.
    #[must_use]
    pub fn traffic(&self) -> [f64; 4] {
        let (wire, codes) = (1.0 / self.ratio, 1.0 / self.tile_per_codes);
        [3.0 * wire, wire + codes, codes + 1.0, 1.0]
    }
}

/// What one request of `chunks` chunks came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prediction {
    pub ns: f64,
    pub restored_bytes: f64,
}

impl Prediction {
    #[must_use]
    pub fn gb_per_s(&self) -> f64 {
        self.restored_bytes / self.ns
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Answer(Done),
    Inflated(Ticket),
    Transferred(Ticket),
    /// Bytes have come over the link: a fetch worker looks at them.
    Arrived(Work),
    /// A worker of a station is through with this.
    Worked(Station, usize, Work),
}

impl Event {
    /// Whether the engine thread is the one to hear.
    fn is_for_engine_thread(&self) -> bool {
        matches!(self, Self::Answer(_) | Self::Inflated(_) | Self::Transferred(_))
    }
}

/// A kind of worker that needs a core.
#[derive(Clone, Copy, Debug)]
enum Station {
    Fetch,
    Dequantize,
    SoftwareInflate,
    SoftwareDma,
}

/// Something that a worker does.
#[derive(Clone, Copy, Debug)]
struct Work {
    core_ns: f64,
    memory_bytes: f64,
    /// The card would not have been done with it before.
    not_before: f64,
    then: Outcome,
}

/// What the engine thread hears of it.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Answer(Done),
    Inflated(Ticket),
    Transferred(Ticket),
}

impl From<Outcome> for Event {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Answer(done) => Self::Answer(done),
            Outcome::Inflated(slot) => Self::Inflated(slot),
            Outcome::Transferred(slot) => Self::Transferred(slot),
        }
    }
}

/// Something that does one thing after the other.
#[derive(Clone, Copy, Default, Debug)]
struct Server {
    free_at: f64,
}

impl Server {
    /// When work that arrives at `now` is over.
    fn serve(&mut self, now: f64, ns: f64) -> f64 {
        self.free_at = self.free_at.max(now) + ns;
        self.free_at
    }
}

fn serve_earliest(servers: &mut [Server], now: f64, ns: f64) -> f64 {
    let earliest = servers.iter_mut().min_by(|a, b| a.free_at.total_cmp(&b.free_at)).expect("one at least");
    earliest.serve(now, ns)
}

struct Simulation<'a> {
    model: &'a Model,
    pipeline: Pipeline,
    counters: Counters,
    plan: Plan,
    now: f64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: Vec<Event>,
    link: Server,
    memory: Server,
    cores: Vec<Server>,
    /// Queues of the workers, by [`Station`]; the first of each is what it does now.
    stations: [Vec<VecDeque<Work>>; 4],
    /// When the engine thread hears the next event, and how long it sleeps while the engines have enough.
    listens_at: f64,
    moderation_ns: f64,
    engines: [Server; 2],
    in_flight: [usize; 2],
    depths: [usize; 2],
    chunks: u32,
    started: u32,
    ended: u32,
    restored_bytes: f64,
}

/// Fetches one prefix of `chunks` chunks.
///
/// # Errors
/// The geometry has no plan for the config's block size.
pub fn fetch(model: &Model, config: &Config, chunks: u32) -> Result<Prediction, block::PlanError> {
    let elements = config.block_bytes / model.geometry.element.bytes();
    let mut simulation = Simulation {
        model,
        pipeline: Pipeline::new(config, Some(Inflater { lz4: true, crc_trusted: true })),
        counters: Counters::default(),
        plan: Plan::choose(&model.geometry, elements)?,
        now: 0.0,
        events: BinaryHeap::new(),
        waiting: Vec::new(),
        link: Server::default(),
        memory: Server::default(),
        cores: vec![Server::default(); model.cores.max(1)],
        stations: [config.fetch_workers, config.dequantize_workers, model.inflate.threads, model.dma.threads]
            .map(|workers| vec![VecDeque::new(); workers]),
        listens_at: 0.0,
        moderation_ns: config.moderation.as_nanos() as f64,
        engines: [Server::default(); 2],
        in_flight: [0; 2],
        depths: [config.inflate_depth, config.dma_depth],
        chunks,
        started: 0,
        ended: 0,
        restored_bytes: 0.0,
    };
    simulation.run();
    Ok(Prediction { ns: simulation.now, restored_bytes: simulation.restored_bytes })
}

impl Simulation<'_> {
    fn run(&mut self) {
        while self.ended < self.chunks {
            while self.schedule() {}
            let Reverse((at, index)) = self.events.pop().expect("chunks in progress have something under way");
            let event = self.waiting[index as usize];
            self.now = at as f64;
            if event.is_for_engine_thread() {
                if self.now < self.listens_at {
                    self.events.push(Reverse((self.listens_at.ceil() as u64, index)));
                    continue;
                }
                self.listens_at = serve_earliest(&mut self.cores, self.now, self.model.event_ns);
            }
            match event {
                Event::Answer(done) => self.answered(done),
                Event::Inflated(slot) => {
                    self.in_flight[0] -= 1;
                    self.inflated(slot, Inflated::Right);
                }
                Event::Transferred(slot) => {
                    self.in_flight[1] -= 1;
                    // What is read back to be compared was counted when it was written.
                    if self.pipeline.slots.at(slot).state == SlotState::Writing {
                        self.restored_bytes += self.tile_bytes(slot);
                    }
                    self.transferred(slot, Ok(()));
                }
                Event::Arrived(work) => self.hand(Station::Fetch, work),
                Event::Worked(station, worker, work) => self.worked(station, worker, work),
            }
            let is_deep = self.in_flight.iter().any(|&tasks| tasks >= MODERATED_DEPTH);
            if event.is_for_engine_thread() && is_deep && self.has_heard_all() {
                self.listens_at += self.moderation_ns;
            }
        }
    }

    /// Nothing waits for the engine thread: it sleeps.
    fn has_heard_all(&self) -> bool {
        self.events.peek().is_none_or(|Reverse((at, _))| *at as f64 > self.listens_at)
    }

    fn at(&mut self, at: f64, event: Event) {
        self.events.push(Reverse((at.max(self.now).ceil() as u64, self.waiting.len() as u64)));
        self.waiting.push(event);
    }

    /// Gives work to the worker with the least to do, as a crew does.
    fn hand(&mut self, station: Station, work: Work) {
        let workers = &mut self.stations[station as usize];
        let worker = least_busy(workers.iter().map(VecDeque::len));
        workers[worker].push_back(work);
        if workers[worker].len() == 1 {
            self.begin(station, worker, work);
        }
    }

    fn begin(&mut self, station: Station, worker: usize, work: Work) {
        let core = serve_earliest(&mut self.cores, self.now, work.core_ns);
        let memory = self.memory.serve(self.now, work.memory_bytes * self.model.memory_ns_per_byte);
        self.at(core.max(memory), Event::Worked(station, worker, work));
    }

    fn worked(&mut self, station: Station, worker: usize, work: Work) {
        self.at(work.not_before, work.then.into());
        let queue = &mut self.stations[station as usize][worker];
        queue.pop_front();
        if let Some(&next) = queue.front() {
            self.begin(station, worker, next);
        }
    }

    fn tile_bytes(&mut self, slot: Ticket) -> f64 {
        let block = self.pipeline.slots.at(slot).block;
        let part = self.plan.part(&self.model.geometry, usize::from(block)).expect("a block of the plan");
        part.tile_bytes(&self.model.geometry) as f64
    }

    /// `written` bytes come out of an engine; `memory_bytes` go over the memory bus.
    fn submit_to(&mut self, engine: usize, written: f64, memory_bytes: f64, then: Outcome) -> Launch {
        let model = [self.model.inflate, self.model.dma][engine];
        let occupancy = model.task_ns + written * model.ns_per_byte;
        self.in_flight[engine] += 1;
        let not_before = self.engines[engine].serve(self.now, occupancy) + occupancy * (model.depth - 1.0);
        if model.threads > 0 {
            let station = [Station::SoftwareInflate, Station::SoftwareDma][engine];
            let core_ns = written * model.software_ns_per_byte;
            self.hand(station, Work { core_ns, memory_bytes, not_before, then });
        } else {
            let memory = self.memory.serve(self.now, memory_bytes * self.model.memory_ns_per_byte);
            self.at(memory.max(not_before), then.into());
        }
        Launch::Started
    }
}

impl World for Simulation<'_> {
    fn pipeline(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn let_go(&mut self, _slot: Ticket) {}

    fn give(&mut self, job: Job) {
        let model = self.model;
        match job {
            Job::Open { seat, .. } => {
                let blocks = self.plan.block_count(&model.geometry) as u16;
                let done = Done::Opened { seat, blocks: Ok((self.plan, blocks)) };
                self.at(self.now + model.link_latency_ns, Event::Answer(done));
            }
            Job::Read { slot, .. } => {
                let tile = self.tile_bytes(slot);
                let (wire, codes) = (tile / model.ratio, tile / model.tile_per_codes);
                let facts = BlockFacts {
                    codec: Codec::Deflate,
                    payload_start: 0,
                    payload_bytes: wire as usize,
                    codes_bytes: codes as usize,
                    codes_crc: 0,
                };
                let work = Work {
                    core_ns: wire * model.fetch_ns_per_byte,
                    memory_bytes: tile * model.traffic()[0],
                    not_before: 0.0,
                    then: Outcome::Answer(Done::Read { slot, facts: Ok(facts) }),
                };
                let sent = self.link.serve(self.now, model.link_request_ns + wire * model.link_ns_per_byte);
                self.at(sent + model.link_latency_ns, Event::Arrived(work));
            }
            Job::Restore { slot, .. } => {
                let tile = self.tile_bytes(slot);
                let work = Work {
                    core_ns: tile * model.dequantize_ns_per_byte,
                    memory_bytes: tile * model.traffic()[2],
                    not_before: 0.0,
                    then: Outcome::Answer(Done::Restored { slot, from: Ok(Restored::Tile) }),
                };
                self.hand(Station::Dequantize, work);
            }
            Job::Compare { slot, .. } => {
                let tile = self.tile_bytes(slot);
                // Both sides are read once: bound by memory.
                let then = Outcome::Answer(Done::Compared { slot, same: true });
                self.hand(Station::Dequantize, Work { core_ns: 0.0, memory_bytes: 2.0 * tile, not_before: 0.0, then });
            }
            Job::Close { seat, .. } => self.at(self.now, Event::Answer(Done::Closed { seat })),
            job => unreachable!("{job:?}: only fetches without failures are simulated"),
        }
    }

    fn inflate_has_room(&self) -> bool {
        self.in_flight[0] < self.depths[0]
    }

    fn inflate(&mut self, slot: Ticket) -> Launch {
        let tile = self.tile_bytes(slot);
        let codes = tile / self.model.tile_per_codes;
        self.submit_to(0, codes, tile * self.model.traffic()[1], Outcome::Inflated(slot))
    }

    fn transfer_has_room(&self) -> bool {
        self.in_flight[1] < self.depths[1]
    }

    fn transfer(&mut self, slot: Ticket) -> Launch {
        let tile = self.tile_bytes(slot);
        self.submit_to(1, tile, tile * self.model.traffic()[3], Outcome::Transferred(slot))
    }

    fn start_chunks(&mut self, session: usize) -> bool {
        if session > 0 || self.started == self.chunks {
            return false;
        }
        let Some(seat) = self.pipeline.free_seat(session, Direction::Fetch) else { return false };
        let mut flow =
            ChunkInFlight::opening(session, Pages::new(), (self.model.geometry, TileOrder::TokenMajor, self.plan));
        flow.index = self.started;
        self.started += 1;
        self.pipeline.sit(seat, flow);
        self.give(Job::Open { seat, anew: false });
        true
    }

    fn concluded(&mut self, _: Seat, result: Result<(), Failure>) {
        assert_eq!(result, Ok(()), "nothing fails here");
        self.ended += 1;
    }

    fn differed(&mut self, _: Ticket, _: bool) {
        unreachable!("nothing fails here: what comes back is the same");
    }

    fn unreachable(&mut self, _: usize, error: doca::Error) {
        unreachable!("nothing fails here: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 layers x 8 heads x 128, q5; every resource as fast as can be but the one that a test slows.
    fn fast() -> Model {
        let engine =
            EngineModel { task_ns: 0.0, ns_per_byte: 0.001, depth: 8.0, software_ns_per_byte: 0.0, threads: 0 };
        Model {
            link_ns_per_byte: 0.001,
            link_latency_ns: 1000.0,
            link_request_ns: 0.0,
            event_ns: 0.0,
            cores: 16,
            fetch_ns_per_byte: 0.001,
            dequantize_ns_per_byte: 0.001,
            inflate: engine,
            dma: engine,
            memory_ns_per_byte: 0.0,
            geometry: Geometry::new(8, 8, 128, 256, block::ElementType::Bf16).unwrap(),
            ratio: 4.0,
            tile_per_codes: 2.0,
        }
    }

    /// Restored bytes a ns, and whether all of them came.
    fn speed(model: &Model, config: &Config) -> f64 {
        let prediction = fetch(model, config, 32).unwrap();
        assert_eq!(prediction.restored_bytes, 32.0 * 8.0 * 2.0 * 8.0 * 128.0 * 256.0 * 2.0, "every byte, once");
        prediction.gb_per_s()
    }

    #[test]
    fn the_slowest_resource_sets_the_pace() {
        let config = Config::for_cores(16);
        let near = |got: f64, bound: f64| assert!((0.95 * bound..=1.001 * bound).contains(&got), "{got} of {bound}");
        near(speed(&Model { link_ns_per_byte: 1.6, ..fast() }, &config), 4.0 / 1.6);
        let dequantize = Model { dequantize_ns_per_byte: 2.0, ..fast() };
        near(speed(&dequantize, &config), config.dequantize_workers as f64 / 2.0);
        let inflate = EngineModel { ns_per_byte: 0.5, ..fast().inflate };
        near(speed(&Model { inflate, ..fast() }, &config), 2.0 / 0.5);
        // Per restored byte: 3/4 in, 1/4 + 1/2 inflated, 1/2 + 1 dequantized, 1 out.
        near(speed(&Model { memory_ns_per_byte: 0.1, ..fast() }, &config), 10.0 / 4.0);
    }

    #[test]
    fn workers_wait_for_cores_and_the_engine_thread_is_one_of_a_kind() {
        let config = Config::for_cores(16);
        let busy = Model { dequantize_ns_per_byte: 2.0, cores: 2, ..fast() };
        assert!((0.9..1.01).contains(&speed(&busy, &config)), "two cores for {} workers", config.dequantize_workers);
        let slow = speed(&Model { event_ns: 500_000.0, ..fast() }, &config);
        // Four events for each block of 512 KiB.
        let bound = f64::from(512 << 10) / 2e6;
        assert!((0.9 * bound..1.05 * bound).contains(&slow), "{slow} of {bound}");
    }

    #[test]
    fn an_engine_wants_as_many_tasks_as_it_has_under_way() {
        let inflate = EngineModel { ns_per_byte: 0.5, ..fast().inflate };
        let model = Model { inflate, ..fast() };
        let deep = Config::for_cores(16);
        let shallow = Config { inflate_depth: 1, ..deep.clone() };
        let gain = speed(&model, &deep) / speed(&model, &shallow);
        assert!((7.5..8.5).contains(&gain), "{gain}");
    }
}
