//! Sizing tiers without a card: traces of requests, and what tiers of a size and a policy would have served of them.
//! The policies are the card's own (room `tier`). Bytes are counted, none are moved.

mod best;
mod curve;
mod replay;
mod synthetic;
mod trace;

pub use curve::{Curve, bytes_for};
pub use replay::{PolicyKind, Replayed, Served, TierSize, replay};
pub use synthetic::{Scenario, synthetic};
pub use trace::{Prompt, Trace};
