//! What LRU and LFU share: an order of all chunks that are held. Each is given the same chance with prefixes that a
//! directory store's LRU has: of one prompt the last chunk counts as used first, so that of equals the tail goes before
//! the head.

use std::collections::{BTreeSet, HashMap};

use block::ChunkKey;

use crate::CandidateChunk;

/// Chunks by (uses that count, time of the last one); the first leaves.
#[derive(Debug)]
pub(crate) struct Ranked {
    bytes_max: u64,
    pub(crate) bytes: u64,
    clock: u64,
    counts: bool,
    pub(crate) held: HashMap<ChunkKey, (u64, u64, u32)>,
    order: BTreeSet<(u64, u64, ChunkKey)>,
}

impl Ranked {
    pub(crate) fn new(bytes_max: u64, counts: bool) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, counts, held: HashMap::new(), order: BTreeSet::new() }
    }

    pub(crate) fn request(&mut self, prompt: &[CandidateChunk]) {
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

/// Makes a policy of an order.
macro_rules! ranked {
    ($policy:ident, $name:literal, $counts:literal) => {
        impl $policy {
            pub fn new(bytes_max: u64) -> Self {
                Self(crate::ranked::Ranked::new(bytes_max, $counts))
            }
        }

        impl crate::Policy for $policy {
            fn name(&self) -> &'static str {
                $name
            }

            fn holds(&self, key: &block::ChunkKey) -> bool {
                self.0.held.contains_key(key)
            }

            fn bytes(&self) -> u64 {
                self.0.bytes
            }

            fn request(&mut self, prompt: &[crate::CandidateChunk], _now_ms: u64) {
                self.0.request(prompt);
            }
        }
    };
}

pub(crate) use ranked;
