//! Which chunks a tier of fixed size keeps. A tier is a part of a store that does not hold everything: the card's
//! memory or its disk in front of a remote store. This room decides; whoever asks moves the bytes.
//!
//! ```text
//!   used(prefix)  a prompt used these leading chunks                              worth.rs
//!                   how soon chunks come back is learned from that                worth/returns.rs
//!                   also from those that are not held any more                    worth/remembered.rs
//!   offer(chunk)  may it come in?  -> who leaves for it, or why not               worth.rs
//!                   who leaves is the least of some leaves                        worth/held.rs, worth/sets.rs
//! ```
//!
//! * **Pure.** No I/O, no clock (time is an argument, in milliseconds, and never goes back), no allocation after `new`.
//! * **Prefixes.** A chunk is worth nothing without its parents, so a chunk comes in after its parent and leaves
//!   before it.
//! * **Comparison.** [`Lru`], [`Lfu`] and [`S3Fifo`] answer the same [`Policy`]; they are for simulations and
//!   allocate as they please.
//!
//! What it refuses: to believe in a size, an importance or a cost that is not a positive number.
#![forbid(unsafe_code)]

use block::ChunkKey;

mod lfu;
mod lru;
mod ranked;
mod s3fifo;
mod worth;

pub use lfu::Lfu;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use worth::{HeldView, Quota, Refusal, Sizes, Worth};

/// Namespaces of one tier.
pub const NAMESPACES_MAX: usize = 32;

/// What a tier knows of a chunk before it holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CandidateChunk {
    pub key: ChunkKey,
    /// Bytes in its stored form.
    pub bytes: u32,
    /// Owner, for quotas: below [`NAMESPACES_MAX`].
    pub namespace: u8,
    /// Weight that the host gives it, for instance its tokens' share of the attention; 1 is neutral.
    pub importance: f32,
    /// Cost of getting it back from where it comes from, or of computing it again, in microseconds.
    pub cost_us: f32,
}

impl CandidateChunk {
    /// Whether a score can be computed of its numbers.
    fn is_sound(&self) -> bool {
        let positive = |number: f32| number.is_finite() && number > 0.0;
        self.bytes > 0 && positive(self.importance) && positive(self.cost_us)
    }
}

/// Interface of every policy, so that they can be compared on one trace.
pub trait Policy {
    fn name(&self) -> &'static str;

    fn holds(&self, key: &ChunkKey) -> bool;

    /// Returns the bytes held now.
    fn bytes(&self) -> u64;

    /// Counts that a prompt of these chunks, in prefix order, was served: those that are not held may come in.
    fn request(&mut self, prompt: &[CandidateChunk], now_ms: u64);
}
