//! Policies to compare with. Each is given the same chance with prefixes that a directory store's LRU has: of one prompt
//! the last chunk counts as used first, so that of equals the tail goes before the head.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use block::ChunkKey;

use crate::{Chunk, Policy};

/// The least recently used leaves.
#[derive(Debug)]
pub struct Lru(Ranked);

/// The least frequently used leaves, of equals the least recently used; counted while it is held.
#[derive(Debug)]
pub struct Lfu(Ranked);

/// Chunks by (uses that matter, time of the last one).
#[derive(Debug)]
struct Ranked {
    bytes_max: u64,
    bytes: u64,
    clock: u64,
    counts: bool,
    held: HashMap<ChunkKey, (u64, u64, u32)>,
    order: BTreeSet<(u64, u64, ChunkKey)>,
}

impl Ranked {
    fn new(bytes_max: u64, counts: bool) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, counts, held: HashMap::new(), order: BTreeSet::new() }
    }

    fn request(&mut self, prompt: &[Chunk]) {
        for chunk in prompt.iter().rev() {
            self.clock += 1;
            let old = self.held.get(&chunk.key).copied();
            if let Some((uses, at, bytes)) = old {
                self.order.remove(&(uses, at, chunk.key));
                self.bytes -= u64::from(bytes);
            } else if u64::from(chunk.bytes) > self.bytes_max {
                continue;
            }
            let uses = if self.counts { old.map_or(0, |(uses, ..)| uses) + 1 } else { 0 };
            while self.bytes + u64::from(chunk.bytes) > self.bytes_max {
                let (_, _, key) = self.order.pop_first().expect("what holds bytes is in order");
                let (_, _, bytes) = self.held.remove(&key).expect("it was in order");
                self.bytes -= u64::from(bytes);
            }
            self.bytes += u64::from(chunk.bytes);
            self.held.insert(chunk.key, (uses, self.clock, chunk.bytes));
            self.order.insert((uses, self.clock, chunk.key));
        }
    }
}

macro_rules! ranked {
    ($policy:ident, $name:literal, $counts:literal) => {
        impl $policy {
            pub fn new(bytes_max: u64) -> Self {
                Self(Ranked::new(bytes_max, $counts))
            }
        }

        impl Policy for $policy {
            fn name(&self) -> &'static str {
                $name
            }

            fn holds(&self, key: &ChunkKey) -> bool {
                self.0.held.contains_key(key)
            }

            fn bytes(&self) -> u64 {
                self.0.bytes
            }

            fn request(&mut self, prompt: &[Chunk], _now_ms: u64) {
                self.0.request(prompt);
            }
        }
    };
}

ranked!(Lru, "lru", false);
ranked!(Lfu, "lfu", true);

/// Of the bytes, what the small queue has.
const SMALL_SHARE: u64 = 10;
/// Uses that are remembered.
const USES_MAX: u8 = 3;

/// S3-FIFO (Yang et al., SOSP 2023): a small queue for newcomers, a main one for what was used again, and the names of
/// those that left the small one.
#[derive(Debug)]
pub struct S3Fifo {
    bytes_max: u64,
    small: VecDeque<ChunkKey>,
    main: VecDeque<ChunkKey>,
    small_bytes: u64,
    main_bytes: u64,
    held: HashMap<ChunkKey, (u8, u32)>,
    ghost: VecDeque<ChunkKey>,
    ghosts: HashSet<ChunkKey>,
}

impl S3Fifo {
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            held: HashMap::new(),
            ghost: VecDeque::new(),
            ghosts: HashSet::new(),
        }
    }

    fn make_room(&mut self, bytes: u64) {
        while self.small_bytes + self.main_bytes + bytes > self.bytes_max {
            if self.small_bytes >= self.bytes_max / SMALL_SHARE || self.main.is_empty() {
                self.shrink_small();
            } else {
                self.shrink_main();
            }
        }
    }

    fn shrink_small(&mut self) {
        let Some(key) = self.small.pop_front() else { return self.shrink_main() };
        let (uses, bytes) = self.held[&key];
        self.small_bytes -= u64::from(bytes);
        if uses > 0 {
            self.held.insert(key, (0, bytes));
            self.main.push_back(key);
            self.main_bytes += u64::from(bytes);
            return;
        }
        self.held.remove(&key);
        if self.ghosts.insert(key) {
            self.ghost.push_back(key);
        }
        while self.ghost.len() > self.main.len().max(16) {
            let oldest = self.ghost.pop_front().expect("it is not empty");
            self.ghosts.remove(&oldest);
        }
    }

    fn shrink_main(&mut self) {
        while let Some(key) = self.main.pop_front() {
            let (uses, bytes) = self.held[&key];
            if uses == 0 {
                self.main_bytes -= u64::from(bytes);
                self.held.remove(&key);
                return;
            }
            self.held.insert(key, (uses - 1, bytes));
            self.main.push_back(key);
        }
    }
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3fifo"
    }

    fn holds(&self, key: &ChunkKey) -> bool {
        self.held.contains_key(key)
    }

    fn bytes(&self) -> u64 {
        self.small_bytes + self.main_bytes
    }

    fn request(&mut self, prompt: &[Chunk], _now_ms: u64) {
        for chunk in prompt.iter().rev() {
            if let Some((uses, _)) = self.held.get_mut(&chunk.key) {
                *uses = (*uses + 1).min(USES_MAX);
                continue;
            }
            let bytes = u64::from(chunk.bytes);
            if bytes > self.bytes_max / SMALL_SHARE {
                continue;
            }
            self.make_room(bytes);
            self.held.insert(chunk.key, (0, chunk.bytes));
            if self.ghosts.remove(&chunk.key) {
                self.ghost.retain(|key| *key != chunk.key);
                self.main.push_back(chunk.key);
                self.main_bytes += bytes;
            } else {
                self.small.push_back(chunk.key);
                self.small_bytes += bytes;
            }
        }
    }
}
