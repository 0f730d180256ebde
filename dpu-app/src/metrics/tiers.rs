//! Families with a `tier` label: one row for each tier in front of the store (`store::TierFacts`). A store without
//! tiers has no series here.

use std::fmt;

use store::TierFacts;

use super::clerk::MetricsView;
use super::family::{MetricFamily, MetricSeries, counter, gauge};
use crate::count::facts;

/// Writes the series of a family whose numbers are in the table of facts.
fn of_tier(view: &MetricsView<'_, '_>, out: &mut MetricSeries<'_, '_>) -> fmt::Result {
    rows(view, out, |tier, out| {
        let mut facts = facts::of_family(facts::TIERS, out.family.name, |value| value(tier));
        facts.try_for_each(|(label, value)| match label {
            Some(label) => out.put(&[tier.name, label], value),
            None => out.put(&[tier.name], value),
        })
    })
}

fn rows(
    view: &MetricsView<'_, '_>,
    out: &mut MetricSeries<'_, '_>,
    mut write: impl FnMut(&TierFacts, &mut MetricSeries<'_, '_>) -> fmt::Result,
) -> fmt::Result {
    let mut result = Ok(());
    view.shared.store.tiers(false, &mut |tier| result = result.and_then(|()| write(tier, out)));
    result
}

pub(super) const TIER_FAMILIES: &[MetricFamily] = &[
    gauge("kvlane_tier_chunks", &["tier"], "Chunks in a tier", of_tier),
    gauge("kvlane_tier_bytes", &["tier"], "Their bytes", of_tier),
    gauge("kvlane_tier_limit_bytes", &["tier"], "What these never exceed", of_tier),
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
    counter("kvlane_tier_hits_total", &["tier"], "Chunks opened in a tier", of_tier),
    counter("kvlane_tier_read_bytes_total", &["tier"], "Bytes of blocks read from a tier", of_tier),
    counter(
        "kvlane_tier_promotions_total",
        &["tier", "result"],
        "Chunks that were used and missing in a tier, by what came of it: promoted, refused (not worth it) or failed",
        of_tier,
    ),
    counter("kvlane_tier_promoted_bytes_total", &["tier"], "Bytes of blocks that were promoted", of_tier),
    counter("kvlane_tier_evicted_chunks_total", &["tier"], "Chunks that left a tier for others", of_tier),
    counter("kvlane_tier_evicted_bytes_total", &["tier"], "Their bytes", of_tier),
    counter("kvlane_tier_slow_calls_total", &["tier"], "Calls of a tier's disk that took 250 ms or more", of_tier),
    gauge("kvlane_tier_out", &["tier"], "Whether a tier is passed over because it is slow or fails", |view, out| {
        rows(view, out, |tier, out| out.put(&[tier.name], u8::from(tier.out)))
    }),
];
