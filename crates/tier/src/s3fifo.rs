//! S3-FIFO (Yang et al., SOSP 2023), to compare with: a small queue for newcomers, a main one for what was used
//! again, and the names of those that left the small one. Of one prompt the last chunk counts as used first.

use std::collections::{HashMap, HashSet, VecDeque};

use block::ChunkKey;

use crate::{CandidateChunk, Policy};

/// One part in so many of the bytes is the small queue's.
const SMALL_SHARE: u64 = 10;
/// Uses of one chunk that are counted.
const USES_MAX: u8 = 3;

/// See the module's head.
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

    fn request(&mut self, prompt: &[CandidateChunk], _now_ms: u64) {
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
