//! Several sessions fetch at random what others fetch, over the real scheduler and tables, in a world where anything
//! may fail and anybody may leave at any moment: no page is written after its request was answered, whoever is told
//! that a chunk is there has all of it, everything ends, and where nothing fails a chunk is read once.

use std::collections::{HashMap, HashSet};

use block::{ChunkKey, Codec, ElementType, Geometry, Plan, TileOrder};
use dpu_app::counters::{Counters, get};
use dpu_app::{
    BlockFacts, ChunkInFlight, Config, Direction, Done, Endings, Evidence, Failure, Follow, Inflated, Inflater, Job,
    Launch, Pages, Pipeline, Restored, Scheduler, Seat, SlotState, Ticket, Unreached, Verify, World,
};
use mailbox::Tokens;

const CHUNK_TOKENS: u32 = 64;
const SEEDS: u64 = 3000;

/// A seeded source of numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A session's only request.
struct Request {
    keys: Vec<ChunkKey>,
    /// Tokens wanted, of the whole request.
    tokens: Tokens,
    order: TileOrder,
    next: u32,
    limit: u32,
    active: u32,
    done: HashSet<u32>,
    answered: bool,
}

enum Event {
    Answer(Done),
    Inflated(Ticket),
    Transferred(Ticket),
}

struct Fuzz {
    pipeline: Pipeline,
    counters: Counters,
    random: Random,
    geometry: Geometry,
    plan: Plan,
    requests: Vec<Request>,
    waiting: Vec<Event>,
    /// The store's chunks that are not there, and those that are damaged.
    missing: HashSet<ChunkKey>,
    damaged: HashSet<ChunkKey>,
    /// One operation in so many fails; 0: none.
    fails: usize,
    open: HashMap<u16, ChunkKey>,
    reads: HashMap<(ChunkKey, u16), usize>,
    /// What each session's pages hold, by chunk and block.
    pages: HashMap<(usize, u32, u16), ChunkKey>,
    /// Key of the block in each slot.
    slots: HashMap<u16, (ChunkKey, u16)>,
    unreachable: HashSet<usize>,
    in_flight: usize,
}

fn key(prefix: u8, index: u8) -> ChunkKey {
    let mut bytes = [0; block::KEY_BYTES];
    (bytes[0], bytes[1]) = (prefix, index);
    ChunkKey::new(bytes)
}

impl Fuzz {
    fn new(seed: u64, fails: bool) -> Self {
        let mut random = Random(seed);
        let geometry = Geometry::new(2, 2, 4, CHUNK_TOKENS as usize, ElementType::Bf16).unwrap();
        let plan = Plan { layers_per_block: 1, tokens_per_block: 16 << random.below(3) };
        let verify_dma = if random.one_in(3) { Verify::All } else { Verify::Off };
        let chunks = 1 + random.below(6);
        let mut config = Config { verify_dma, sessions: 10, ..Config::for_cores(2) }.with_slots(2 + random.below(7));
        config.chunks = chunks;
        let sessions = 2 + random.below(8);
        let prefixes = 1 + random.below(2);
        let requests = (0..sessions).map(|_| {
            let prefix = if fails { random.below(prefixes) as u8 } else { 0 };
            let count = if fails { 1 + random.below(6) } else { 6 };
            let end = count as u32 * CHUNK_TOKENS;
            let clip = fails && random.one_in(3);
            let tokens = match clip {
                true => Tokens { start: random.below(40) as u32, end: end - random.below(40).min(20) as u32 },
                false => Tokens { start: 0, end },
            };
            Request {
                keys: (0..count).map(|index| key(prefix, index as u8)).collect(),
                tokens,
                order: if fails && random.one_in(5) {
                    TileOrder::HeadMajor { page_tokens: 16 }
                } else {
                    TileOrder::TokenMajor
                },
                next: 0,
                limit: count as u32,
                active: 0,
                done: HashSet::new(),
                answered: false,
            }
        });
        let requests = requests.collect();
        let pick = |random: &mut Random, chance: usize| {
            let picked = (0..prefixes * 6).filter(|_| fails && random.one_in(chance));
            picked.map(|number| key((number / 6) as u8, (number % 6) as u8)).collect()
        };
        Self {
            pipeline: Pipeline::new(&config, Some(Inflater { lz4: true, crc_trusted: random.one_in(2) })),
            counters: Counters::default(),
            geometry,
            plan,
            requests,
            waiting: Vec::new(),
            missing: pick(&mut random, 20),
            damaged: pick(&mut random, 20),
            fails: if fails { 10 + random.below(200) } else { 0 },
            open: HashMap::new(),
            reads: HashMap::new(),
            pages: HashMap::new(),
            slots: HashMap::new(),
            unreachable: HashSet::new(),
            in_flight: 0,
            random,
        }
    }

    fn fails(&mut self) -> bool {
        self.fails > 0 && self.random.one_in(self.fails)
    }

    fn run(&mut self) {
        for _ in 0..200_000 {
            while self.schedule() {}
            if self.fails > 0 && self.random.one_in(60) {
                self.disturb();
                continue;
            }
            if self.waiting.is_empty() {
                break;
            }
            let event = self.waiting.swap_remove(self.random.below(self.waiting.len()));
            match event {
                Event::Answer(done) => {
                    if let Done::Closed { seat } = done {
                        self.open.remove(&seat.0).expect("what is closed was open");
                    }
                    self.answered(done);
                }
                Event::Inflated(slot) => {
                    let outcome = match self.fails() {
                        true if self.random.one_in(2) => Inflated::Wrong,
                        true => Inflated::Failed { to_blame: self.random.one_in(2) },
                        false => Inflated::Right,
                    };
                    self.inflated(slot, outcome);
                }
                Event::Transferred(slot) => self.end_transfer(slot),
            }
        }
        assert!(self.waiting.is_empty() && self.pipeline.order.is_empty(), "it ends");
        assert_eq!(self.pipeline.slots.free(), self.pipeline.slots.size());
        assert!(self.open.is_empty() && self.pipeline.chunks.iter().all(Option::is_none));
        for (session, request) in self.requests.iter().enumerate() {
            assert!(request.answered, "session {session} waits for an answer");
        }
    }

    fn end_transfer(&mut self, slot: Ticket) {
        self.in_flight -= 1;
        let work = *self.pipeline.slots.at(slot);
        let chunk = self.pipeline.chunks[usize::from(work.target.0)].as_ref().expect("a target is in progress");
        let (session, index) = (chunk.session, chunk.index);
        assert!(!chunk.concluded && chunk.moving > 0, "pages of a request that was answered are written");
        if self.unreachable.contains(&session) || self.fails() {
            let to_blame = self.random.one_in(2) || self.unreachable.contains(&session);
            let error = doca::Error { call: "doca_task", code: doca::Code::IO_FAILED };
            return self.transferred(slot, Err(Unreached { error, to_blame }));
        }
        if work.state == SlotState::Writing {
            let (key, block) = self.slots[&slot.index];
            assert_eq!(block, work.block);
            self.pages.insert((session, index, block), key);
        }
        self.transferred(slot, Ok(()));
    }

    /// A deadline, a cancel, or a host that is gone.
    fn disturb(&mut self) {
        let session = self.random.below(self.requests.len());
        match self.random.below(8) {
            0 => {
                self.unreachable.insert(session);
            }
            1 => self.lose(session),
            2 | 3 if !self.requests[session].answered => {
                let leading = (0..).take_while(|index| self.requests[session].done.contains(index)).count() as u32;
                let request = &mut self.requests[session];
                request.limit = request.limit.min(leading);
                let limit = request.limit;
                self.abort_from(session, 0, limit, Failure::Deadline);
                self.give_up(session, 0);
                self.settle(session);
            }
            _ => {}
        }
    }

    fn lose(&mut self, session: usize) {
        let request = &mut self.requests[session];
        request.limit = request.limit.min(request.next);
        request.answered = true;
        self.abort_session(session);
    }

    fn settle(&mut self, session: usize) {
        let request = &mut self.requests[session];
        if request.active == 0 && request.next >= request.limit {
            request.answered = true;
        }
    }
}

impl World for Fuzz {
    fn pipeline(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn let_go(&mut self, slot: Ticket) {
        self.slots.remove(&slot.index);
    }

    fn give(&mut self, job: Job) {
        let corrupt = |digest| Failure::Corrupt(Evidence { what: "its codes", digest });
        let io = Failure::Store(store::StoreError::Late { call: "read_block" });
        let done = match job {
            Job::Open { seat, .. } => {
                let key = self.pipeline.chunks[usize::from(seat.0)].as_ref().unwrap().key.unwrap();
                if self.missing.contains(&key) {
                    Done::Opened { seat, blocks: Err(Failure::Miss) }
                } else if self.fails() {
                    Done::Opened { seat, blocks: Err(io) }
                } else {
                    assert!(self.open.insert(seat.0, key).is_none(), "{seat:?} is open already");
                    Done::Opened { seat, blocks: Ok((self.plan, self.plan.block_count(&self.geometry) as u16)) }
                }
            }
            Job::Read { slot, seat, block } => {
                let key = self.open[&seat.0];
                *self.reads.entry((key, block)).or_default() += 1;
                self.slots.insert(slot.index, (key, block));
                let raw = self.random.one_in(4);
                let facts = BlockFacts {
                    codec: if raw { Codec::Raw } else { Codec::Deflate },
                    payload_start: 64,
                    payload_bytes: 100,
                    codes_bytes: 200,
                    codes_crc: 0,
                };
                let facts = match self.fails() {
                    true if self.random.one_in(2) => Err(io),
                    true => Err(corrupt(self.random.below(3) as u32)),
                    false => Ok(facts),
                };
                Done::Read { slot, facts }
            }
            Job::Inflate { slot } => Done::Inflated { slot, result: Ok(()) },
            Job::Restore { slot, .. } => {
                let (key, block) = self.slots[&slot.index];
                let from = match self.damaged.contains(&key) && block == 1 {
                    true => Err(corrupt(7)),
                    false => Ok(Restored::Tile),
                };
                Done::Restored { slot, from }
            }
            Job::Compare { slot, .. } => Done::Compared { slot, same: !self.fails() },
            Job::Close { seat, bad } => {
                if bad.is_some() {
                    self.missing.insert(self.open[&seat.0]);
                }
                Done::Closed { seat }
            }
            job => unreachable!("{job:?}"),
        };
        self.waiting.push(Event::Answer(done));
    }

    fn inflate_has_room(&self) -> bool {
        true
    }

    fn inflate(&mut self, slot: Ticket) -> Launch {
        self.waiting.push(Event::Inflated(slot));
        Launch::Started
    }

    fn transfer_has_room(&self) -> bool {
        self.in_flight < 4
    }

    fn transfer(&mut self, slot: Ticket) -> Launch {
        let work = *self.pipeline.slots.at(slot);
        let chunk = self.pipeline.chunks[usize::from(work.target.0)].as_ref().expect("a target is in progress");
        assert!(!chunk.concluded && chunk.failure.is_none(), "pages of a request that was answered are written");
        if self.fails() && self.random.one_in(4) {
            return Launch::Failed(Failure::Malformed);
        }
        self.in_flight += 1;
        self.waiting.push(Event::Transferred(slot));
        Launch::Started
    }

    fn start_chunks(&mut self, session: usize) -> bool {
        let mut busy = false;
        while let Some(request) = self.requests.get(session).filter(|request| request.next < request.limit) {
            let index = request.next;
            let tokens = request.tokens;
            let within = |token: u32| token.saturating_sub(index * CHUNK_TOKENS).min(CHUNK_TOKENS);
            let mut chunk = ChunkInFlight::opening(session, Pages::new(), (self.geometry, request.order, self.plan));
            (chunk.index, chunk.key) = (index, Some(request.keys[index as usize]));
            chunk.tokens = Tokens { start: within(tokens.start), end: within(tokens.end) };
            let leader = self.pipeline.leader_of(&chunk.shared().unwrap());
            let seat = match leader {
                Some(_) if self.pipeline.has_follower_seats(session, 1) => self.pipeline.follower_seat(),
                Some(_) => None,
                None => self.pipeline.free_seat(session, Direction::Fetch),
            };
            let Some(seat) = seat else { return busy };
            let request = &mut self.requests[session];
            request.next += 1;
            request.active += 1;
            busy = true;
            match leader {
                Some((leader, _)) => self.join(seat, leader, chunk),
                None => {
                    self.pipeline.sit(seat, chunk);
                    self.give(Job::Open { seat, anew: false });
                }
            }
        }
        busy
    }

    fn concluded(&mut self, seat: Seat, result: Result<(), Failure>) {
        let chunk = self.pipeline.chunks[usize::from(seat.0)].as_ref().unwrap();
        let (session, index, key, tokens) = (chunk.session, chunk.index, chunk.key.unwrap(), chunk.tokens);
        assert_eq!(chunk.moving, 0, "{seat:?} ends while something moves to its pages");
        let request = &mut self.requests[session];
        request.active -= 1;
        match result {
            Ok(()) => {
                request.done.insert(index);
                for block in 0..self.plan.block_count(&self.geometry) as u16 {
                    let part = self.plan.part(&self.geometry, block.into()).unwrap();
                    let (first, end) = (u32::from(part.first_token), u32::from(part.first_token + part.tokens));
                    let wanted = tokens.start < end && tokens.end > first;
                    let there = self.pages.get(&(session, index, block)) == Some(&key);
                    assert!(
                        there || !wanted,
                        "block {block} of chunk {index} is not in the pages of session {session}"
                    );
                }
            }
            Err(failure) => {
                request.limit = request.limit.min(index);
                let limit = request.limit;
                self.abort_from(session, 0, limit, failure);
            }
        }
        self.settle(session);
    }

    fn differed(&mut self, _: Ticket, _: bool) {}

    fn unreachable(&mut self, session: usize, _: doca::Error) {
        self.lose(session);
    }
}

#[test]
fn whatever_fails_no_page_is_written_after_its_answer_and_everything_ends() {
    let (mut joined, mut shared) = (0, 0);
    for seed in 0..SEEDS {
        let mut fuzz = Fuzz::new(seed, true);
        if std::env::var_os("SHOW_SEEDS").is_some() {
            println!("seed {seed}");
        }
        fuzz.run();
        joined += get(&fuzz.counters.chunks_joined);
        shared += get(&fuzz.counters.blocks_shared);
    }
    println!("{joined} chunks joined, {shared} blocks shared in {SEEDS} runs");
    assert!(joined > SEEDS && shared > SEEDS);
}

#[test]
fn where_nothing_fails_a_block_is_read_once() {
    for seed in 0..300 {
        let mut fuzz = Fuzz::new(seed, false);
        // As many as one read serves, and a store that has room for all of them.
        fuzz.requests.truncate(8);
        fuzz.run();
        assert!(fuzz.requests.iter().all(|request| request.done.len() == request.keys.len()), "seed {seed}");
        let sessions = fuzz.requests.len() as f64;
        let reads: usize = fuzz.reads.values().sum();
        let share = reads as f64 / fuzz.reads.len() as f64;
        // By luck alone: who comes when a chunk is half there reads its first half.
        assert!(share <= 1.0 + 0.5 * (sessions - 1.0), "seed {seed}: each block was read {share:.2} times");
    }
}
