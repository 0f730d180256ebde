//! A card in a thread and hosts beside it: what the end-to-end tests of the data plane share.
#![allow(dead_code, unreachable_pub)]

pub mod process;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, RwLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use block::{ChunkKey, ElementType, Geometry, KeyChain, Namespace, Recipe};
use dpu_app::{Config, RunError};
use host_ctl::{Arrangement, CardStatus, Client, Completion, Memory, Options, PageOrder, Route, Transfer};
use mailbox::Status;
use mailbox::channel::HostChannel;
use mailbox::layout::Base;
use nix::sys::eventfd::{EfdFlags, EventFd};
use store::{Direct, Lookup, Opening, Stats, Store, StoreError, Why};

/// Tokens of a chunk in these tests: small, so that many chunks fit a short run.
pub const CHUNK_TOKENS: u16 = 64;
pub const PAGE_TOKENS: u16 = 16;
pub const PAGES_PER_CHUNK: usize = (CHUNK_TOKENS / PAGE_TOKENS) as usize;
/// Nothing in these tests takes this long, however busy the machine is: who waits longer hangs.
pub const WAIT: Duration = Duration::from_secs(30);

pub fn geometry() -> Geometry {
    Geometry::new(4, 2, 32, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap()
}

/// A store in memory that does what a test tells it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    chunks: RwLock<HashMap<ChunkKey, Arc<Chunk>>>,
    open: Mutex<HashMap<usize, Arc<Chunk>>>,
    puts: Mutex<HashMap<usize, Put>>,
    /// Every read sleeps this long, microseconds.
    pub read_delay_us: AtomicU64,
    /// This many of the next reads fail with an I/O error.
    pub reads_to_fail: AtomicU64,
    /// Reads of this chunk's blocks fail with an I/O error.
    pub key_to_fail: Mutex<Option<ChunkKey>>,
    /// Reads of this chunk's blocks take this long.
    pub key_to_delay: Mutex<Option<(ChunkKey, Duration)>>,
    /// Reads of this chunk's blocks do not come back before it is taken out of here, whatever their deadline.
    pub key_to_hang: Mutex<Option<ChunkKey>>,
    pub hanging_ends: Condvar,
    /// Blocks asked for.
    pub reads: AtomicU64,
    /// What the next puts are refused with, and their blocks.
    pub put_error: Mutex<Option<StoreError>>,
    pub put_block_error: Mutex<Option<StoreError>>,
    pub corrupt_noted: AtomicU64,
    /// Whoever asks for its numbers hangs until this is down again.
    pub stats_hang: AtomicBool,
}

/// A chunk being put: its key, and its blocks as they came.
type Put = (ChunkKey, Vec<(usize, Vec<u8>)>);

#[derive(Debug, Default)]
pub struct Chunk {
    pub manifest: Vec<u8>,
    pub blocks: Vec<Vec<u8>>,
}

impl MemoryStore {
    pub fn chunk(&self, key: &ChunkKey) -> Option<Arc<Chunk>> {
        self.chunks.read().unwrap().get(key).cloned()
    }

    pub fn replace(&self, key: ChunkKey, chunk: Chunk) {
        self.chunks.write().unwrap().insert(key, Arc::new(chunk));
    }

    pub fn remove(&self, key: &ChunkKey) -> bool {
        self.chunks.write().unwrap().remove(key).is_some()
    }

    pub fn len(&self) -> usize {
        self.chunks.read().unwrap().len()
    }

    /// Nothing hangs any more.
    pub fn let_go(&self) {
        *self.key_to_hang.lock().unwrap() = None;
        self.hanging_ends.notify_all();
    }

    /// Seats that are taken, for reading and for putting.
    pub fn seats(&self) -> usize {
        self.open.lock().unwrap().len() + self.puts.lock().unwrap().len()
    }
}

impl Direct for MemoryStore {
    fn look(&self, lookup: &mut Lookup, _until: Instant) -> Result<usize, StoreError> {
        let chunks = self.chunks.read().unwrap();
        Ok(lookup.ask(|key| chunks.contains_key(key)))
    }

    fn open(&self, seat: usize, opening: &Opening, manifest: &mut [u8], _until: Instant) -> Result<usize, StoreError> {
        let chunk = self.chunk(&opening.key).ok_or(StoreError::Miss)?;
        manifest[..chunk.manifest.len()].copy_from_slice(&chunk.manifest);
        let bytes = chunk.manifest.len();
        assert!(self.open.lock().unwrap().insert(seat, chunk).is_none(), "seat {seat} is taken");
        Ok(bytes)
    }

    fn read_block(&self, seat: usize, index: usize, into: &mut [u8], until: Instant) -> Result<(), StoreError> {
        self.reads.fetch_add(1, Relaxed);
        let chunk = Arc::clone(self.open.lock().unwrap().get(&seat).expect("an open seat"));
        let is = |key: &ChunkKey| self.chunk(key).is_some_and(|other| Arc::ptr_eq(&other, &chunk));
        let hangs = self.key_to_hang.lock().unwrap();
        drop(self.hanging_ends.wait_while(hangs, |key| key.is_some_and(|key| is(&key))).unwrap());
        let slow = *self.key_to_delay.lock().unwrap();
        let own = slow.filter(|(key, _)| is(key)).map_or(Duration::ZERO, |(_, delay)| delay);
        let delay = own + Duration::from_micros(self.read_delay_us.load(Relaxed));
        if !delay.is_zero() {
            thread::sleep(delay.min(until.saturating_duration_since(Instant::now())));
            if Instant::now() >= until {
                return Err(StoreError::Late { call: "read_block" });
            }
        }
        if self.reads_to_fail.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::Io { call: "read_block", errno: nix::errno::Errno::EIO });
        }
        if self.key_to_fail.lock().unwrap().is_some_and(|key| is(&key)) {
            return Err(StoreError::Io { call: "read_block", errno: nix::errno::Errno::EIO });
        }
        let block = &chunk.blocks[index];
        if into.len() != block.len() {
            return Err(StoreError::Corrupt { what: "block of another length", value: block.len() as u64 });
        }
        into.copy_from_slice(block);
        Ok(())
    }

    fn discard(&self, seat: usize, _why: &Why) {
        self.corrupt_noted.fetch_add(1, Relaxed);
        let chunk = Arc::clone(self.open.lock().unwrap().get(&seat).expect("an open seat"));
        self.chunks.write().unwrap().retain(|_, other| !Arc::ptr_eq(other, &chunk));
    }
}

impl Store for MemoryStore {
    fn close(&self, seat: usize) {
        self.open.lock().unwrap().remove(&seat).expect("an open seat");
    }

    fn peek(&self, key: &ChunkKey, manifest: &mut [u8], _until: Instant) -> Result<usize, StoreError> {
        let chunk = self.chunk(key).ok_or(StoreError::Miss)?;
        manifest[..chunk.manifest.len()].copy_from_slice(&chunk.manifest);
        Ok(chunk.manifest.len())
    }

    fn begin_put(
        &self,
        seat: usize,
        key: &ChunkKey,
        _parent: Option<&ChunkKey>,
        _until: Instant,
    ) -> Result<(), StoreError> {
        if let Some(error) = *self.put_error.lock().unwrap() {
            return Err(error);
        }
        assert!(self.puts.lock().unwrap().insert(seat, (*key, Vec::new())).is_none(), "seat {seat} is taken");
        Ok(())
    }

    fn put_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(error) = *self.put_block_error.lock().unwrap() {
            return Err(error);
        }
        self.puts.lock().unwrap().get_mut(&seat).expect("an open put").1.push((index, bytes.to_vec()));
        Ok(())
    }

    fn commit_put(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError> {
        let (key, mut put) = self.puts.lock().unwrap().remove(&seat).expect("an open put");
        put.sort_by_key(|(index, _)| *index);
        assert_eq!(put.len(), blocks);
        let blocks = put.into_iter().map(|(_, bytes)| bytes).collect();
        self.replace(key, Chunk { manifest: manifest.to_vec(), blocks });
        Ok(())
    }

    fn abort_put(&self, seat: usize) {
        self.puts.lock().unwrap().remove(&seat).expect("an open put");
    }

    fn stats(&self) -> Stats {
        while self.stats_hang.load(Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        Stats { chunks: self.len() as u64, ..Stats::default() }
    }

    fn describe(&self) -> String {
        String::from("memory: for tests")
    }
}

/// A name for Comch that no other test has, in this process or another.
pub fn comch_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

/// A data plane in a thread of this process. Hosts come by Comch where a test does not say otherwise.
pub struct Card {
    pub comch: Route,
    pub socket: Route,
    /// How a test's hosts come that speak the words themselves.
    pub raw: Route,
    pub store: Arc<MemoryStore>,
    /// The memory of the tier T0, where the store has one.
    pub slab: Option<doca::Slab>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
    _home: tempfile::TempDir,
}

/// Small limits, so that rings wrap and queues fill.
pub fn small(home: &Path) -> Config {
    Config {
        comch_name: comch_name(),
        socket: home.join("card.sock"),
        block_bytes: 16 << 10,
        slots: 6,
        store_slots: 3,
        inflate_depth: 6,
        dma_depth: 6,
        chunks: 8,
        fetch_workers: 2,
        dequantize_workers: 2,
        encode_workers: 2,
        ..Config::for_cores(2)
    }
}

impl Card {
    pub fn start() -> Self {
        Self::start_with(doca_emulator::Config::default(), |_| ())
    }

    pub fn start_with(emulator: doca_emulator::Config, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_on(Arc::new(MemoryStore::default()), emulator, change)
    }

    /// A card over a store that outlives it.
    pub fn start_on(
        store: Arc<MemoryStore>,
        emulator: doca_emulator::Config,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let memory = Arc::clone(&store);
        Self::start_any(store, emulator, change, move |config, device, stop, ready| {
            dpu_app::serve(config, device, memory.as_ref(), None, stop, ready)
        })
    }

    /// A card over the store that a URL names; its own memory store stays empty.
    pub fn start_url(url: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_url_with(url, doca_emulator::Config::default(), change)
    }

    pub fn start_url_with(url: &str, emulator: doca_emulator::Config, change: impl FnOnce(&mut Config)) -> Self {
        let url = url.to_owned();
        let (opened, is_opened) = mpsc::channel();
        let mut card = Self::start_any(Arc::default(), emulator, change, move |config, device, stop, ready| {
            let config = Config { store: url.into(), ..config.clone() };
            let (store, slab) = dpu_app::open_store(&config, &device).map_err(RunError::Store)?;
            opened.send(slab.clone()).expect("somebody waits");
            dpu_app::serve(&config, device, store.as_ref(), slab, stop, ready)
        });
        card.slab = is_opened.recv().expect("it opened");
        card
    }

    fn start_any(
        store: Arc<MemoryStore>,
        emulator: doca_emulator::Config,
        change: impl FnOnce(&mut Config),
        serve: impl FnOnce(&Config, doca::Device, &EventFd, &mut dyn FnMut()) -> Result<(), RunError> + Send + 'static,
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut config = small(home.path());
        change(&mut config);
        let stop = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap());
        let (ready, is_ready) = mpsc::channel();
        let comch = Route::Comch { name: config.comch_name.clone() };
        let socket = Route::Socket(config.socket.clone());
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                doca_emulator::configure_thread(emulator);
                config.check().map_err(RunError::Config)?;
                let device = doca::Device::open(&doca::Selector::First).map_err(RunError::Device)?;
                serve(&config, device, &stop, &mut || ready.send(()).unwrap())
            })
        };
        is_ready.recv_timeout(Duration::from_secs(10)).expect("the card starts");
        Self { raw: comch.clone(), comch, socket, store, slab: None, stop, thread: Some(thread), _home: home }
    }

    /// Every way to the card.
    pub fn routes(&self) -> [Route; 2] {
        [self.comch.clone(), self.socket.clone()]
    }

    pub fn options(&self, recipe: &str) -> Options {
        Options {
            route: self.comch.clone(),
            client: String::from("test"),
            recipe: Some(recipe.parse().unwrap()),
            ..Options::default()
        }
    }

    pub fn attach(&self, recipe: &str, memory: Memory) -> Client {
        Client::attach(&self.options(recipe), Some(memory)).unwrap()
    }

    /// A session without memory, for status and control.
    pub fn control(&self) -> Client {
        Client::attach(&Options { recipe: None, ..self.options("q5") }, None).unwrap()
    }

    /// The same by the card's own socket, where the operator is.
    pub fn operator(&self) -> Client {
        let options = Options { route: self.socket.clone(), recipe: None, ..self.options("q5") };
        Client::attach(&options, None).unwrap()
    }

    /// What the card says of itself, by a session of its own.
    pub fn status(&self) -> CardStatus {
        status(&mut self.control())
    }

    /// One of the card's counters.
    pub fn counter(&self, name: &str) -> u64 {
        counter(&self.status(), name)
    }

    /// Waits until all slots and seats are free again and only the asking session is there.
    pub fn await_empty(&self) {
        let until = Instant::now() + WAIT;
        let mut control = self.control();
        loop {
            let status = status(&mut control);
            let slots = status.value()["slots"].as_object().unwrap();
            let taken: u64 = slots.iter().filter(|(name, _)| *name != "free").map(|(_, n)| n.as_u64().unwrap()).sum();
            let sessions = status.value()["sessions"].as_array().unwrap().len();
            if taken == 0 && sessions == 1 && self.store.seats() == 0 {
                return;
            }
            assert!(
                Instant::now() < until,
                "{taken} slots, {sessions} sessions, {} seats: {status:?}",
                self.store.seats()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Rings the bell that signals ring.
    pub fn ring_stop(&self) {
        nix::unistd::write(self.stop.as_fd(), &1_u64.to_ne_bytes()).unwrap();
    }

    /// Rings the bell that signals ring, and waits.
    pub fn stop(&mut self) -> Result<(), RunError> {
        self.ring_stop();
        self.join()
    }

    pub fn join(&mut self) -> Result<(), RunError> {
        let thread = self.thread.take().expect("joined once");
        let until = Instant::now() + WAIT;
        while !thread.is_finished() {
            assert!(Instant::now() < until, "the card does not stop");
            thread::sleep(Duration::from_millis(1));
        }
        thread.join().unwrap()
    }
}

pub fn status(client: &mut Client) -> CardStatus {
    let id = client.post_status().unwrap();
    CardStatus::parse(&client.wait(id, WAIT).unwrap().ok().unwrap().answer).unwrap()
}

pub fn counter(status: &CardStatus, name: &str) -> u64 {
    status.value()["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
}

/// A bare line to a card: for hosts that do not keep to the words.
pub fn line(route: &Route) -> Box<dyn HostChannel> {
    route.open(&doca::Selector::First, WAIT).unwrap().0
}

/// All tokens, the card's deadline.
pub fn transfer<'a>(keys: &'a [ChunkKey], pages: &'a [u32]) -> Transfer<'a> {
    Transfer::new(keys, pages)
}

pub fn fetch(client: &mut Client, keys: &[ChunkKey], pages: &[u32]) -> Completion {
    let id = client.post_fetch(&transfer(keys, pages)).unwrap();
    client.wait(id, WAIT).unwrap()
}

pub fn store(client: &mut Client, keys: &[ChunkKey], pages: &[u32]) -> Completion {
    let id = client.post_store(&transfer(keys, pages)).unwrap();
    client.wait(id, WAIT).unwrap()
}

pub fn lookup(client: &mut Client, keys: &[ChunkKey]) -> Completion {
    let id = client.post_lookup(keys).unwrap();
    client.wait(id, WAIT).unwrap()
}

pub fn linear(chunks: usize) -> Vec<u32> {
    PageOrder::Linear.table((chunks * PAGES_PER_CHUNK) as u32)
}

/// Stores `chunks` chunks of a pattern and returns their keys and what they hold, as [`logical`] orders it.
pub fn stored(card: &Card, recipe: &str, salt: u8, chunks: usize) -> (Vec<ChunkKey>, Vec<u8>) {
    let (keys, pages) = (keys(geometry(), recipe, salt, chunks), linear(chunks));
    let memory = filled(Arrangement::Contiguous, geometry(), chunks, 1 + u64::from(salt));
    let content = logical(&memory, &pages);
    let mut host = card.attach(recipe, memory);
    let stored = store(&mut host, &keys, &pages);
    assert_eq!((stored.status, stored.chunks_done), (Status::Ok, chunks));
    host.close(WAIT).unwrap();
    (keys, content)
}

/// Bytes of one chunk of [`geometry`] in [`logical`]'s order, from memory that holds `chunks` chunks.
pub fn chunk_of(content: &[u8], geometry: Geometry, chunks: usize, index: usize) -> Vec<u8> {
    let bytes = usize::from(geometry.chunk_tokens) * geometry.row_bytes();
    content.chunks(bytes).skip(index).step_by(chunks).flatten().copied().collect()
}

/// A seeded source of numbers.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if self.thread.is_some() && !thread::panicking() {
            self.stop().unwrap();
        }
    }
}

/// Keys of `chunks` chunks of a prefix that `salt` makes different from others.
pub fn keys(geometry: Geometry, recipe: &str, salt: u8, chunks: usize) -> Vec<ChunkKey> {
    let recipe: Recipe = recipe.parse().unwrap();
    let salt = [salt];
    let mut chain = KeyChain::new(&Namespace { model: "test", geometry, recipe, salt: &salt, rank: 0, ranks: 1 });
    let tokens: Vec<u32> = (0..u32::from(geometry.chunk_tokens)).collect();
    (0..chunks).map(|_| chain.push(&tokens)).collect()
}

/// A KV-like bf16 pattern: Deflate has something to do, and every element differs from its neighbours.
pub fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let value = |random: u64| {
        let spread = ((random & 0xff) as f32 + (random >> 8 & 0xff) as f32) / 255.0 - 1.0;
        (spread.to_bits() >> 16) as u16
    };
    (0..bytes / 2).flat_map(|_| value(next()).to_le_bytes()).collect()
}

/// Memory of one arrangement, filled with a pattern.
pub fn filled(arrangement: Arrangement, geometry: Geometry, chunks: usize, seed: u64) -> Memory {
    let memory = empty(arrangement, geometry, chunks);
    for (index, region) in memory.regions.iter().enumerate() {
        region.mapping.write(0, &pattern(region.mapping.bytes(), seed + index as u64));
    }
    memory
}

pub fn empty(arrangement: Arrangement, geometry: Geometry, chunks: usize) -> Memory {
    let pages = (chunks * usize::from(geometry.chunk_tokens / PAGE_TOKENS)) as u32;
    arrangement.allocate(geometry, PAGE_TOKENS, pages).unwrap()
}

/// All bytes of a memory, region after region.
pub fn bytes_of(memory: &Memory) -> Vec<u8> {
    let mut all = Vec::new();
    for region in &memory.regions {
        let mut bytes = vec![0; region.mapping.bytes()];
        region.mapping.read(0, &mut bytes);
        all.extend(bytes);
    }
    all
}

/// Element bytes of one token of one head, where the layout puts them: the oracle for every arrangement.
pub fn element_bytes(memory: &Memory, layer: usize, kind: usize, page: u32, token: usize, head: usize) -> Vec<u8> {
    bytes_at(memory, &memory.bases[2 * layer + kind], page, token, head)
}

fn bytes_at(memory: &Memory, base: &Base, page: u32, token: usize, head: usize) -> Vec<u8> {
    let form = &memory.form;
    let offset = base.offset
        + u64::from(page) * form.page_stride
        + token as u64 * form.token_stride
        + head as u64 * form.head_stride;
    let mut bytes = vec![0; usize::from(memory.geometry.head_size) * memory.geometry.element.bytes()];
    memory.regions[usize::from(base.region)].mapping.read(offset as usize, &mut bytes);
    bytes
}

/// Everything in logical order `[plane][token][head][element]`, whatever the arrangement.
pub fn logical(memory: &Memory, pages: &[u32]) -> Vec<u8> {
    let geometry = memory.geometry;
    let page_tokens = usize::from(memory.form.page_tokens);
    let mut all = Vec::new();
    for base in &memory.bases {
        for &page in pages {
            for token in 0..page_tokens {
                for head in 0..usize::from(geometry.heads) {
                    all.extend(bytes_at(memory, base, page, token, head));
                }
            }
        }
    }
    all
}
