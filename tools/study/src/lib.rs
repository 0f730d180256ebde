//! Studies of KV without a card: what is made and replayed to learn from. No KV byte moves through a card here.
//!
//! ```text
//! generate   large synthetic KV files from small real ones            for benchmarks
//! tiers      traces of requests, and what tiers would have served     for sizing a card
//! ```
//! `kvlane-plan` has the commands.
#![forbid(unsafe_code)]

mod generate;
pub mod tiers;

pub use generate::{Synthetic, generate};
