//! Studies of KV without a card: what is made, compared and replayed to learn from. No KV byte moves through a card here.
//!
//! ```text
//! generate   large synthetic KV files from small real ones            for benchmarks
//! compare    an original and what was restored of it, to the bound    for tests and people
//! tiers      traces of requests, and what tiers would have served     for sizing a card
//! ```
//! `kvlane-plan` has the commands.
#![forbid(unsafe_code)]

mod compare;
mod generate;
pub mod tiers;

pub use compare::{Comparison, KindErrors, compare};
pub use generate::{Synthetic, generate};
