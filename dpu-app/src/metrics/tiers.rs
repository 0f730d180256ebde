//! Families with a `tier` label: one row for each tier in front of the store (`store::TierFacts`). A store without tiers has
//! no series here.

use std::fmt;

use store::TierFacts;

use super::clerk::View;
use super::families::{Family, Series, counter, gauge};

/// One value for each tier.
fn each(view: &View<'_, '_>, out: &mut Series<'_, '_>, value: impl Fn(&TierFacts) -> u64) -> fmt::Result {
    rows(view, out, |tier, out| out.put(&[tier.name], value(tier)))
}

fn rows(
    view: &View<'_, '_>,
    out: &mut Series<'_, '_>,
    mut write: impl FnMut(&TierFacts, &mut Series<'_, '_>) -> fmt::Result,
) -> fmt::Result {
    let mut result = Ok(());
    view.shared.store.tiers(false, &mut |tier| result = result.and_then(|()| write(tier, out)));
    result
}

pub(super) const TIER_FAMILIES: &[Family] = &[
    gauge("kvlane_tier_chunks", &["tier"], "Chunks in a tier", |view, out| each(view, out, |tier| tier.chunks)),
    gauge("kvlane_tier_bytes", &["tier"], "Their bytes", |view, out| each(view, out, |tier| tier.bytes)),
    gauge("kvlane_tier_limit_bytes", &["tier"], "What these never exceed", |view, out| {
        each(view, out, |tier| tier.bytes_max)
    }),
    gauge(
        "kvlane_tier_namespace_bytes",
        &["tier", "namespace"],
        "Bytes in a tier by namespace: those that have a quota or a pin, and `default`",
        |view, out| {
            let namespaces = &view.shared.config.namespaces;
            rows(view, out, |tier, out| {
                let mut each = namespaces.names().zip(tier.namespaces);
                each.try_for_each(|(name, bytes)| out.put(&[tier.name, name], bytes))
            })
        },
    ),
    counter("kvlane_tier_hits_total", &["tier"], "Chunks opened in a tier", |view, out| {
        each(view, out, |tier| tier.hits)
    }),
    counter("kvlane_tier_read_bytes_total", &["tier"], "Bytes of blocks read from a tier", |view, out| {
        each(view, out, |tier| tier.bytes_read)
    }),
    counter(
        "kvlane_tier_promotions_total",
        &["tier", "result"],
        "Chunks that were used and missing in a tier, by what came of it: promoted, refused (not worth it) or failed",
        |view, out| {
            rows(view, out, |tier, out| {
                let results = [("promoted", tier.promoted), ("refused", tier.refused), ("failed", tier.failed)];
                results.iter().try_for_each(|(result, count)| out.put(&[tier.name, result], count))
            })
        },
    ),
    counter("kvlane_tier_promoted_bytes_total", &["tier"], "Bytes of blocks that were promoted", |view, out| {
        each(view, out, |tier| tier.bytes_promoted)
    }),
    counter("kvlane_tier_evicted_chunks_total", &["tier"], "Chunks that left a tier for others", |view, out| {
        each(view, out, |tier| tier.evicted)
    }),
    counter("kvlane_tier_evicted_bytes_total", &["tier"], "Their bytes", |view, out| {
        each(view, out, |tier| tier.bytes_evicted)
    }),
    counter(
        "kvlane_tier_slow_calls_total",
        &["tier"],
        "Calls of a tier's disk that took 250 ms or more",
        |view, out| each(view, out, |tier| tier.slow),
    ),
    gauge("kvlane_tier_out", &["tier"], "Whether a tier is passed over because it is slow or fails", |view, out| {
        each(view, out, |tier| tier.out.into())
    }),
];
