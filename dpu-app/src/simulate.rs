//! The pipeline in virtual time: the real [`Scheduler`] over the real tables, in a [`World`] of queues instead of threads
//! and engines. Discrete events; the same parameters give the same answer. It allocates: it is no data plane.
//!
//! What is modelled: a link (rate, latency), fetch and dequantize workers (time per byte), the inflate and DMA engines
//! (the emulator's timing model: occupancy and depth, docs/emulator.md), and a memory budget that all stages share in the
//! order in which they ask. Not modelled: the store path, failures, the mailbox, the engine thread's own time, caches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use block::{Codec, Geometry, Plan, TileOrder};
use mailbox::Tokens;

use crate::config::Config;
use crate::counters::Counters;
use crate::flow::{Direction, Flow, Pages, Phase};
use crate::job::{BlockFacts, Done, Failure, Job, Restored, Seat};
use crate::pipeline::{Inflated, Inflater, Launch, Pipeline, World};
use crate::scheduler::Scheduler;
use crate::slot::Ticket;

/// An engine of the emulator's timing model.
#[derive(Clone, Copy, Debug)]
pub struct EngineModel {
    pub task_ns: f64,
    pub ns_per_byte: f64,
    /// Operations under way at once inside the engine.
    pub depth: f64,
}

/// The machine and the data.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub link_ns_per_byte: f64,
    pub link_latency_ns: f64,
    /// A fetch worker's time per stored byte, a dequantize worker's per restored byte.
    pub fetch_ns_per_byte: f64,
    pub dequantize_ns_per_byte: f64,
    pub inflate: EngineModel,
    pub dma: EngineModel,
    /// Of the memory that all stages share, per byte read or written.
    pub memory_ns_per_byte: f64,
    pub geometry: Geometry,
    /// Restored bytes per stored byte, and restored bytes per byte of codes.
    pub ratio: f64,
    pub tile_per_codes: f64,
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
    fetchers: Vec<Server>,
    dequantizers: Vec<Server>,
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
        fetchers: vec![Server::default(); config.fetch_workers],
        dequantizers: vec![Server::default(); config.dequantize_workers],
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
            self.now = at as f64;
            match self.waiting[index as usize] {
                Event::Answer(done) => self.answered(done),
                Event::Inflated(slot) => {
                    self.in_flight[0] -= 1;
                    self.inflated(slot, Inflated::Right);
                }
                Event::Transferred(slot) => {
                    self.in_flight[1] -= 1;
                    self.restored_bytes += self.tile_bytes(slot);
                    self.transferred(slot, Ok(()));
                }
            }
        }
    }

    /// `event` comes when its stage is through at `at`, and `bytes` have gone over the memory bus.
    fn expect(&mut self, at: f64, bytes: f64, event: Event) {
        let at = self.memory.serve(self.now, bytes * self.model.memory_ns_per_byte).max(at);
        self.events.push(Reverse((at.ceil() as u64, self.waiting.len() as u64)));
        self.waiting.push(event);
    }

    fn tile_bytes(&mut self, slot: Ticket) -> f64 {
        let block = self.pipeline.slots.at(slot).block;
        let part = self.plan.part(&self.model.geometry, usize::from(block)).expect("a block of the plan");
        part.tile_bytes(&self.model.geometry) as f64
    }

    fn submit_to(&mut self, engine: usize, bytes: f64) -> f64 {
        let EngineModel { task_ns, ns_per_byte, depth } = [self.model.inflate, self.model.dma][engine];
        let occupancy = task_ns + bytes * ns_per_byte;
        self.in_flight[engine] += 1;
        let taken_next = self.engines[engine].serve(self.now, occupancy);
        taken_next + occupancy * (depth - 1.0)
    }
}

impl World for Simulation<'_> {
    fn pipeline(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn give(&mut self, job: Job) {
        let model = self.model;
        match job {
            Job::Open { seat } => {
                let blocks = self.plan.block_count(&model.geometry) as u16;
                let done = Done::Opened { seat, blocks: Ok((self.plan, blocks)) };
                self.expect(self.now + model.link_latency_ns, 0.0, Event::Answer(done));
            }
            Job::Read { slot, .. } => {
                let tile = self.tile_bytes(slot);
                let (wire, codes) = (tile / model.ratio, tile / model.tile_per_codes);
                let here = self.link.serve(self.now, wire * model.link_ns_per_byte) + model.link_latency_ns;
                let at = serve_earliest(&mut self.fetchers, here, wire * model.fetch_ns_per_byte);
                let facts = BlockFacts {
                    codec: Codec::Deflate,
                    payload_start: 0,
                    payload_bytes: wire as usize,
                    codes_bytes: codes as usize,
                    codes_crc: 0,
                };
                // The card's network writes it, the kernel's copy reads and writes it.
                self.expect(at, 3.0 * wire, Event::Answer(Done::Read { slot, facts: Ok(facts) }));
            }
            Job::Restore { slot, .. } => {
                let tile = self.tile_bytes(slot);
                let at = serve_earliest(&mut self.dequantizers, self.now, tile * model.dequantize_ns_per_byte);
                let done = Done::Restored { slot, from: Ok(Restored::Tile) };
                self.expect(at, tile / model.tile_per_codes + tile, Event::Answer(done));
            }
            Job::Close { seat, .. } => self.expect(self.now, 0.0, Event::Answer(Done::Closed { seat })),
            job => unreachable!("{job:?}: only fetches without failures are simulated"),
        }
    }

    fn inflate_has_room(&self) -> bool {
        self.in_flight[0] < self.depths[0]
    }

    fn inflate(&mut self, slot: Ticket) -> Launch {
        let tile = self.tile_bytes(slot);
        let codes = tile / self.model.tile_per_codes;
        let at = self.submit_to(0, codes);
        self.expect(at, tile / self.model.ratio + codes, Event::Inflated(slot));
        Launch::Started
    }

    fn transfer_has_room(&self) -> bool {
        self.in_flight[1] < self.depths[1]
    }

    fn transfer(&mut self, slot: Ticket) -> Launch {
        let tile = self.tile_bytes(slot);
        let at = self.submit_to(1, tile);
        // The write is to the host's memory.
        self.expect(at, tile, Event::Transferred(slot));
        Launch::Started
    }

    fn start_chunks(&mut self, session: usize) -> bool {
        if session > 0 || self.started == self.chunks {
            return false;
        }
        let Some(seat) = self.pipeline.free_seat(Direction::Fetch) else { return false };
        let flow = Flow {
            session,
            request: 0,
            index: self.started,
            direction: Direction::Fetch,
            pages: Pages::new(),
            tokens: Tokens::ALL,
            geometry: self.model.geometry,
            order: TileOrder::TokenMajor,
            phase: Phase::Opening,
            plan: self.plan,
            blocks: self.plan.block_count(&self.model.geometry) as u16,
            next: 0,
            in_flight: 0,
            done: 0,
            failure: None,
            wire_bytes: 0,
            concluded: false,
        };
        self.started += 1;
        self.pipeline.sit(seat, flow);
        self.give(Job::Open { seat });
        true
    }

    fn concluded(&mut self, _: Seat, result: Result<(), Failure>) {
        assert_eq!(result, Ok(()), "nothing fails here");
        self.ended += 1;
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
        let engine = EngineModel { task_ns: 0.0, ns_per_byte: 0.001, depth: 8.0 };
        Model {
            link_ns_per_byte: 0.001,
            link_latency_ns: 1000.0,
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
        let inflate = EngineModel { task_ns: 0.0, ns_per_byte: 0.5, depth: 8.0 };
        near(speed(&Model { inflate, ..fast() }, &config), 2.0 / 0.5);
        // Per restored byte: 3/4 in, 1/4 + 1/2 inflated, 1/2 + 1 dequantized, 1 out.
        near(speed(&Model { memory_ns_per_byte: 0.1, ..fast() }, &config), 10.0 / 4.0);
    }

    #[test]
    fn an_engine_wants_as_many_tasks_as_it_has_under_way() {
        let inflate = EngineModel { task_ns: 0.0, ns_per_byte: 0.5, depth: 8.0 };
        let model = Model { inflate, ..fast() };
        let deep = Config::for_cores(16);
        let shallow = Config { inflate_depth: 1, ..deep.clone() };
        let gain = speed(&model, &deep) / speed(&model, &shallow);
        assert!((7.5..8.5).contains(&gain), "{gain}");
    }
}
