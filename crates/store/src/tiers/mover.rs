//! The mover: brings chunks that were used into T0 and T1, one at a time, with a reader of its own. It stands back
//! while fetches read from T2, and moves no more than [`BYTES_PER_S`]. A chunk that T0 has by then, because it came in
//! with the fetch that used it (arrivals.rs), goes to T1 from there; others are read from T2 a second time.
//!
//! `touch` asks it, without waiting: a wish is a chunk and its parent in a ring of fixed size. When that is full the
//! wish is lost, and the next use of the chunk makes another.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use block::{ChunkKey, Manifest};
use nix::sys::eventfd::EventFd;

use super::breaker::MOVER_LANE;
use super::{Tier, Tiers, chunk};
use tier::Policy;

use crate::{Answer, Ask, Direct, Opening, Outcome, POISONED, Reader, Store, StoreError};

/// Most bytes that it moves in a second.
pub(super) const BYTES_PER_S: u64 = 256 << 20;
/// Most wishes that wait.
const WISHES_MAX: usize = 4096;
/// How long it stands back for fetches before it moves one chunk all the same, and how often it looks: so long as the
/// chunk before would take at this many bytes a second, that small chunks do not starve where fetches never pause.
const STAND_BACK_MAX: Duration = Duration::from_millis(200);
const BYTES_PER_S_LEAST: u64 = 16 << 20;
const LOOK: Duration = Duration::from_millis(2);
/// Longest time of one call.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for which a tier or T2 that failed is left alone.
const PAUSE: Duration = Duration::from_secs(5);

/// A chunk that was used, the one before it, and the namespace that used it.
#[derive(Clone, Copy, Debug)]
struct Wish {
    key: ChunkKey,
    parent: Option<ChunkKey>,
    namespace: u8,
}

#[derive(Debug)]
struct Waiting {
    wishes: VecDeque<Wish>,
    /// Chunks that are being put, by seat, so that nobody promotes them meanwhile.
    puts: Vec<Option<ChunkKey>>,
    /// Chunk that the mover has on its way, and whether a put has made that worthless.
    moving: Option<ChunkKey>,
    spoilt: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Wishes {
    waiting: Mutex<Waiting>,
    rung: Condvar,
    stop: AtomicBool,
}

impl Wishes {
    pub(super) fn new(puts_max: usize) -> Self {
        let waiting = Waiting {
            wishes: VecDeque::with_capacity(WISHES_MAX),
            puts: vec![None; puts_max],
            moving: None,
            spoilt: false,
        };
        Self { waiting: Mutex::new(waiting), rung: Condvar::new(), stop: false.into() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect(POISONED)
    }

    /// The leading chunks of one prompt were used; those that `wanted` says are missing somewhere.
    pub(super) fn add(&self, namespace: u8, keys: &[ChunkKey], wanted: impl Fn(&ChunkKey) -> bool) {
        let mut waiting = self.waiting();
        let mut parent = None;
        for key in keys {
            if waiting.wishes.len() == WISHES_MAX {
                break;
            }
            if wanted(key) {
                waiting.wishes.push_back(Wish { key: *key, parent, namespace });
            }
            parent = Some(*key);
        }
        drop(waiting);
        self.rung.notify_one();
    }

    /// A put of this chunk began.
    pub(super) fn forget(&self, key: &ChunkKey, seat: usize) {
        let mut waiting = self.waiting();
        waiting.spoilt |= waiting.moving.as_ref() == Some(key);
        waiting.puts[seat] = Some(*key);
    }

    /// The put in this seat ended: what it was of. Whoever promoted it meanwhile has the old bytes.
    pub(super) fn forgotten(&self, seat: usize) -> Option<ChunkKey> {
        let mut waiting = self.waiting();
        let key = waiting.puts[seat].take();
        waiting.spoilt |= key.is_some() && waiting.moving == key;
        key
    }

    pub(super) fn stop(&self) {
        // Under the lock, so that it comes before or after the mover's look, and not between that and its sleep.
        let waiting = self.waiting();
        self.stop.store(true, Relaxed);
        drop(waiting);
        self.rung.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Waits for the next wish; `None`: stop.
    fn next(&self) -> Option<Wish> {
        let mut waiting = self.waiting();
        loop {
            if self.stopped() {
                return None;
            }
            if let Some(wish) = waiting.wishes.pop_front() {
                if !waiting.puts.contains(&Some(wish.key)) {
                    (waiting.moving, waiting.spoilt) = (Some(wish.key), false);
                    return Some(wish);
                }
                continue;
            }
            waiting = self.rung.wait(waiting).expect(POISONED);
        }
    }

    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut waiting = self.waiting();
        while !self.stopped()
            && let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            waiting = self.rung.wait_timeout(waiting, left).expect(POISONED).0;
        }
    }
}

/// Init: allocates all that the mover needs and starts it.
pub(super) fn start(tiers: Arc<Tiers>) -> std::io::Result<JoinHandle<()>> {
    let bell = EventFd::new()?;
    let (sender, ready) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        let reader = match tiers.bottom.readable().reader(bell.as_fd()) {
            Ok(reader) => reader,
            Err(error) => return drop(sender.send(Err(error))),
        };
        let manifest = vec![0; tiers.limits.manifest_bytes_max];
        let memory = Some(vec![0; tiers.limits.block_bytes_max]);
        let seat = tiers.limits.chunks_open_max;
        // Address space; what of it is ever touched is what one chunk ever pushed out.
        let leaving = Vec::with_capacity(if tiers.disk.is_some() { tiers.limits.chunks_max } else { 0 });
        let mut mover = Mover { tiers: &tiers, reader, manifest, memory, seat, leaving, in_service: true, moved: 0 };
        let _ = sender.send(Ok(()));
        mover.run();
    };
    let thread = thread::Builder::new().name("tier-mover".into()).spawn(body)?;
    match ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::Error::other("it ended at once")),
    }
}

struct Mover<'a> {
    tiers: &'a Tiers,
    reader: Box<dyn Reader<Vec<u8>> + 'a>,
    manifest: Vec<u8>,
    /// One block.
    memory: Option<Vec<u8>>,
    seat: usize,
    /// What leaves T1 for the chunk that comes.
    leaving: Vec<ChunkKey>,
    /// Whether T1 was when it was looked at last.
    in_service: bool,
    /// Bytes of the chunk that was moved last.
    moved: u64,
}

impl Mover<'_> {
    fn run(&mut self) {
        while let Some(wish) = self.tiers.wishes.next() {
            self.report();
            let started = Instant::now();
            let moved = self.serve(&wish);
            self.tiers.wishes.waiting().moving = None;
            if let Some(disk) = &self.tiers.disk {
                *disk.coming.lock().expect(POISONED) = None;
            }
            match moved {
                Ok(0) => {}
                Ok(bytes) => {
                    self.moved = bytes;
                    let least = Duration::from_secs_f64(bytes as f64 / BYTES_PER_S as f64);
                    self.tiers.wishes.sleep(least.saturating_sub(started.elapsed()));
                }
                Err(StoreError::Miss | StoreError::Corrupt { .. } | StoreError::Foreign { .. }) => {}
                Err(_) => self.tiers.wishes.sleep(PAUSE),
            }
        }
    }

    /// Says once that T1 goes out of service, and that it is back.
    fn report(&mut self) {
        let Some(disk) = &self.tiers.disk else { return };
        let in_service = disk.reads.serves() && disk.writes.serves();
        match (self.in_service, in_service) {
            (true, false) => log::error!(
                "store: {} is slow or fails and is left alone: look at that disk; the other tiers serve",
                disk.store.path().display()
            ),
            (false, true) => log::info!("store: {} is in service again, or tried", disk.store.path().display()),
            _ => {}
        }
        self.in_service = in_service;
    }

    /// Serves a wish; returns the bytes that were moved.
    fn serve(&mut self, wish: &Wish) -> Result<u64, StoreError> {
        let tiers = self.tiers;
        let on_disk = tiers.disk.as_ref().is_some_and(|disk| disk.store.holds(&wish.key));
        // Where the chunk before it is not, it is worth nothing: known before T2 is asked for it.
        let follows = |holds: &dyn Fn(&ChunkKey) -> bool| wish.parent.as_ref().is_none_or(holds);
        let wants_dram = tiers.dram.as_ref().is_some_and(|dram| !dram.expects(&wish.key))
            && follows(&|parent| tiers.dram().expects(parent));
        let wants_disk = !on_disk
            && tiers.disk.as_ref().is_some_and(|disk| disk.writes.serves())
            && follows(&|parent| tiers.disk().policy.lock().expect(POISONED).holds(parent));
        if !wants_dram && !wants_disk {
            return Ok(0);
        }
        self.stand_back();
        let in_dram = tiers.dram.as_ref().is_some_and(|dram| dram.holds(&wish.key));
        let mut source = match (in_dram, on_disk) {
            (true, _) => Tier::Dram,
            (false, true) => Tier::Disk,
            (false, false) => Tier::Bottom,
        };
        let mut opened = self.open(source, &wish.key);
        if opened.is_err() && source != Tier::Bottom {
            source = Tier::Bottom;
            opened = self.open(source, &wish.key);
        }
        let manifest_bytes = opened?;
        let moved = match Manifest::parse(&self.manifest[..manifest_bytes]) {
            Ok(manifest) => {
                // Here and, by the copy in T1, after a restart.
                let manifest = tiers.rated(&wish.key, manifest);
                manifest.encode(&mut self.manifest);
                self.copy(wish, source, &manifest, manifest_bytes, wants_dram, wants_disk)
            }
            // None of ours to understand: served from T2.
            Err(_) => Ok(0),
        };
        match source {
            Tier::Dram => tiers.dram().close(self.seat),
            Tier::Disk => tiers.disk().store.close(self.seat),
            Tier::Bottom => tiers.bottom.store().close(self.seat),
        }
        moved
    }

    /// Waits while fetches read from T2: they go first.
    fn stand_back(&self) {
        let patience = Duration::from_secs_f64(self.moved as f64 / BYTES_PER_S_LEAST as f64).min(STAND_BACK_MAX);
        let end = Instant::now() + patience;
        while self.tiers.fetching.load(Relaxed) > 0 && Instant::now() < end && !self.tiers.wishes.stopped() {
            thread::sleep(LOOK);
        }
    }

    fn copy(
        &mut self,
        wish: &Wish,
        source: Tier,
        manifest: &Manifest,
        manifest_bytes: usize,
        wants_dram: bool,
        wants_disk: bool,
    ) -> Result<u64, StoreError> {
        let tiers = self.tiers;
        let now_ms = tiers.now_ms();
        let blocks: u64 = manifest.lengths().iter().map(|&bytes| u64::from(bytes)).sum();
        let head = 8 + 4 * manifest.block_count();
        let bytes = head as u64 + manifest_bytes as u64 + blocks;
        let Ok(bytes) = u32::try_from(bytes) else { return Ok(0) };
        let [to_dram, to_disk] = &tiers.moves;
        let offered = |cost| chunk(&wish.key, bytes, wish.namespace, manifest.importance(), cost);
        let put = tiers.limits.puts_max;
        let mut disk = wants_disk && to_disk.admitted(self.admit(&offered(1.0), wish.parent.as_ref(), now_ms));
        if disk {
            disk =
                self.on_disk(|disk| disk.begin_put(put, &wish.key, None, Instant::now() + PATIENCE), &wish.key, false);
        }
        // What T0 gives up comes back from T1, if that has it.
        let cost = if disk || source == Tier::Disk { tiers.fetch_cost.disk() } else { 1.0 };
        let parts = (&self.manifest[..manifest_bytes], manifest.lengths());
        let dram = tiers.dram.as_ref().filter(|dram| {
            wants_dram && to_dram.admitted(dram.begin(self.seat, &offered(cost), wish.parent.as_ref(), now_ms, parts))
        });
        if dram.is_none() && !disk {
            return Ok(0);
        }
        let mut failed = None;
        let mut reading = Duration::ZERO;
        for (index, &length) in manifest.lengths().iter().enumerate() {
            let since = Instant::now();
            if let Err(error) = self.read(source, index, length as usize) {
                failed = Some(error);
                break;
            }
            reading += since.elapsed();
            let block = &self.memory.as_ref().expect("it came back")[..length as usize];
            if let Some(dram) = dram {
                dram.write_block(self.seat, index, block);
            }
            disk = disk && self.on_disk(|disk| disk.put_block(put, index, block), &wish.key, true);
            if tiers.wishes.stopped() {
                failed = Some(StoreError::Miss);
                break;
            }
        }
        self.end(wish, disk, manifest, manifest_bytes, failed)?;
        tiers.fetch_cost.saw(source, blocks, reading);
        Ok(u64::from(bytes))
    }

    /// Publishes the copies, or gives them up.
    fn end(
        &self,
        wish: &Wish,
        disk: bool,
        manifest: &Manifest,
        manifest_bytes: usize,
        failed: Option<StoreError>,
    ) -> Result<(), StoreError> {
        let tiers = self.tiers;
        let put = tiers.limits.puts_max;
        let to_disk = &tiers.moves[1];
        let bytes = manifest.lengths().iter().map(|&length| u64::from(length)).sum();
        if disk {
            if failed.is_some() {
                tiers.disk().store.abort_put(put);
                tiers.disk().remove(&wish.key);
                to_disk.failed.fetch_add(1, Relaxed);
            } else {
                let commit = |disk: &crate::dir::DirStore| {
                    disk.commit_put(put, manifest.block_count(), &self.manifest[..manifest_bytes])
                };
                if self.on_disk(commit, &wish.key, false) {
                    to_disk.promoted.fetch_add(1, Relaxed);
                    to_disk.bytes_promoted.fetch_add(bytes, Relaxed);
                }
            }
        }
        tiers.end_arrival(self.seat, failed.is_none());
        // A put of this chunk began or ended while its bytes were read: nobody knows which they are.
        if tiers.wishes.waiting().spoilt {
            tiers.remove(&wish.key);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether T1 should have it; what leaves for it goes from the disk, after the policy is free for others again.
    fn admit(&mut self, offered: &tier::CandidateChunk, parent: Option<&ChunkKey>, now_ms: u64) -> bool {
        let disk = self.tiers.disk();
        let leaving = &mut self.leaving;
        let leaves = &mut |key: &ChunkKey, _| leaving.push(*key);
        let mut policy = disk.policy.lock().expect(POISONED);
        *disk.coming.lock().expect(POISONED) = Some(offered.key);
        let admitted = policy.offer(offered, parent, now_ms, leaves);
        drop(policy);
        for key in leaving.drain(..) {
            // One that cannot be removed is evicted by the directory's own LRU when it needs the room.
            let _ = disk.store.evict_chunk(&key);
        }
        admitted.is_ok()
    }

    /// A call of the put into T1; where it fails the put is over and T1 goes without.
    fn on_disk(
        &self,
        call: impl FnOnce(&crate::dir::DirStore) -> Result<(), StoreError>,
        key: &ChunkKey,
        abort: bool,
    ) -> bool {
        let disk = self.tiers.disk();
        if disk.writes.watch(MOVER_LANE, || call(&disk.store)).is_ok() {
            return true;
        }
        if abort {
            disk.store.abort_put(self.tiers.limits.puts_max);
        }
        disk.remove(key);
        self.tiers.moves[1].failed.fetch_add(1, Relaxed);
        false
    }

    /// Bytes of the manifest.
    fn open(&mut self, source: Tier, key: &ChunkKey) -> Result<usize, StoreError> {
        let until = Instant::now() + PATIENCE;
        match source {
            Tier::Dram => {
                return self.tiers.dram().open(self.seat, key, &mut self.manifest).unwrap_or(Err(StoreError::Miss));
            }
            Tier::Disk => {
                let disk = self.tiers.disk();
                return disk
                    .reads
                    .watch(MOVER_LANE, || disk.store.open(self.seat, &Opening::of(key), &mut self.manifest, until));
            }
            Tier::Bottom => {}
        }
        match self.ask(Ask::Open { seat: self.seat, key: *key, position: None, anew: false, until }) {
            Outcome::Opened(result) => result,
            other => unreachable!("an open is answered by {other:?}"),
        }
    }

    fn read(&mut self, source: Tier, index: usize, bytes: usize) -> Result<(), StoreError> {
        let until = Instant::now() + PATIENCE;
        let mut memory = self.memory.take().expect("it came back");
        let max = memory.len();
        if bytes > max {
            self.memory = Some(memory);
            return Err(StoreError::Large { what: "bytes of a block", value: bytes, max });
        }
        if source != Tier::Bottom {
            let into = &mut memory[..bytes];
            let result = if source == Tier::Dram {
                self.tiers.dram().copy_block(self.seat, index, into)
            } else {
                let disk = self.tiers.disk();
                disk.reads.watch(MOVER_LANE, || disk.store.read_block(self.seat, index, into, until))
            };
            self.memory = Some(memory);
            return result;
        }
        match self.ask(Ask::Read { seat: self.seat, index, bytes, memory, until }) {
            Outcome::Read { memory, result } => {
                self.memory = Some(memory);
                result
            }
            other => unreachable!("a read is answered by {other:?}"),
        }
    }

    fn ask(&mut self, ask: Ask<Vec<u8>>) -> Outcome<Vec<u8>> {
        self.reader.begin(0, ask);
        loop {
            if let Some(Answer { outcome, .. }) = self.reader.poll(&mut self.manifest) {
                return outcome;
            }
            self.reader.sleep();
        }
    }
}
