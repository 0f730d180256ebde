//! Hit rates over sizes, and the size for a hit rate.

use super::replay::{PolicyKind, TierSize, replay};
use super::trace::Trace;

/// Hit rates of one policy at growing sizes of one tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub kind: PolicyKind,
    /// Bytes, and the share of chunks that came from the tier.
    pub points: Vec<(u64, f64)>,
}

impl Curve {
    pub fn of(trace: &Trace, kind: PolicyKind, bytes: &[u64], chunk_bytes: u32) -> Curve {
        let points = bytes.iter().map(|&bytes| (bytes, rate(trace, kind, bytes, chunk_bytes))).collect();
        Curve { kind, points }
    }
}

/// The least bytes with which a policy reaches a hit rate, to 2 %. `None`: not with `most` either.
pub fn bytes_for(trace: &Trace, kind: PolicyKind, wanted: f64, most: u64, chunk_bytes: u32) -> Option<u64> {
    let (mut low, mut high) = (0, most);
    if rate(trace, kind, most, chunk_bytes) < wanted {
        return None;
    }
    while high - low > high / 50 + 1 {
        let middle = low + (high - low) / 2;
        if rate(trace, kind, middle.max(1), chunk_bytes) < wanted { low = middle } else { high = middle }
    }
    Some(high)
}

fn rate(trace: &Trace, kind: PolicyKind, bytes: u64, chunk_bytes: u32) -> f64 {
    replay(trace, &[TierSize { name: String::new(), bytes }], kind, chunk_bytes).hit_rate(0)
}
