//! The policy that knows the future: the bound for every other.

use std::collections::{BTreeSet, HashMap};

use block::ChunkKey;
use tier::{CandidateChunk, Policy};

use super::trace::{Prompt, Trace};

/// Keeps, of all chunks held or just used, those whose next use is soonest (Belady, IBM Systems Journal 1966). For
/// chunks of one size nobody has more hits; here they differ a little. Of one prompt the tail goes before the head.
#[derive(Debug)]
pub(super) struct Best {
    bytes_max: u64,
    bytes: u64,
    /// The request that uses each chunk next, by request, the last one first.
    next: Vec<Vec<Option<usize>>>,
    held: HashMap<ChunkKey, (Rank, u32)>,
    order: BTreeSet<(Rank, ChunkKey)>,
}

/// Request of the next use, and place in the prompt.
type Rank = (usize, usize);

impl Best {
    /// Makes the policy for one replay of this trace.
    pub(super) fn new(bytes_max: u64, trace: &Trace) -> Self {
        let mut upcoming = HashMap::new();
        let uses = |(index, request): (usize, &Prompt)| {
            request.chunks.iter().map(|chunk| upcoming.insert(*chunk, index)).collect()
        };
        let next = trace.requests.iter().enumerate().rev().map(uses).collect();
        Self { bytes_max, bytes: 0, next, held: HashMap::new(), order: BTreeSet::new() }
    }

    fn drop_chunk(&mut self, key: &ChunkKey) {
        if let Some((rank, bytes)) = self.held.remove(key) {
            self.order.remove(&(rank, *key));
            self.bytes -= u64::from(bytes);
        }
    }
}

impl Policy for Best {
    fn name(&self) -> &'static str {
        "best"
    }

    fn holds(&self, key: &ChunkKey) -> bool {
        self.held.contains_key(key)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn request(&mut self, prompt: &[CandidateChunk], _now_ms: u64) {
        let next = self.next.pop().expect("a request of the trace");
        for (place, (chunk, next)) in prompt.iter().zip(next).enumerate() {
            self.drop_chunk(&chunk.key);
            if let Some(next) = next {
                self.held.insert(chunk.key, ((next, place), chunk.bytes));
                self.order.insert(((next, place), chunk.key));
                self.bytes += u64::from(chunk.bytes);
            }
        }
        while self.bytes > self.bytes_max {
            let (_, key) = *self.order.last().expect("what holds bytes is in order");
            self.drop_chunk(&key);
        }
    }
}
