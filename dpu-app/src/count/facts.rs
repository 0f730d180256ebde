//! The one table of what is counted: each number with its key in the status (JSON) and its family in the metrics
//! (Prometheus).
//!
//! A new counter is a field of [`Counters`], a row here, and a family with its meaning in metrics/families.rs, from
//! which the table of docs/metrics.md is made. Rows stand in the order of the status; a family's series in the order of
//! its rows.

use store::{NodeFacts, Stats, TierFacts};

use crate::count::counters::{Counters, get};
use mailbox::Status;

/// One number. Rows with the same key are one number of the status, their sum, and one series each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fact<F> {
    /// Its key in the status; `None`: not there, or rendered in another way.
    pub key: Option<&'static str>,
    /// The metric that it is a series of; `None`: of none.
    pub family: Option<&'static str>,
    /// The value of the family's own label, if it has one.
    pub label: Option<&'static str>,
    pub value: F,
}

/// Places where the facts of the data plane are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources<'a> {
    pub counters: &'a Counters,
    /// Attaches that were refused since the start.
    pub refused: u64,
    pub store: &'a Stats,
}

type OfCard = fn(&Sources<'_>) -> u64;
type OfNode = fn(&NodeFacts<'_>) -> u64;
type OfTier = fn(&TierFacts) -> u64;

const fn both<F>(key: &'static str, family: &'static str, value: F) -> Fact<F> {
    Fact { key: Some(key), family: Some(family), label: None, value }
}

const fn labelled<F>(key: &'static str, family: &'static str, label: &'static str, value: F) -> Fact<F> {
    Fact { key: Some(key), family: Some(family), label: Some(label), value }
}

const fn status_only<F>(key: &'static str, value: F) -> Fact<F> {
    Fact { key: Some(key), family: None, label: None, value }
}

/// Numbers of the object `counters` in the status.
pub(crate) const COUNTERS: &[Fact<OfCard>] = &[
    both("requests", "kvlane_commands_total", |of| get(&of.counters.requests)),
    labelled("chunks_fetched", "kvlane_chunks_total", "fetched", |of| get(&of.counters.chunks_fetched)),
    labelled("chunks_missed", "kvlane_chunks_total", "missed", |of| get(&of.counters.chunks_missed)),
    labelled("chunks_stored", "kvlane_chunks_total", "stored", |of| get(&of.counters.chunks_stored)),
    labelled("chunks_known", "kvlane_chunks_total", "known", |of| get(&of.counters.chunks_known)),
    labelled("chunks_failed", "kvlane_chunks_total", "failed", |of| get(&of.counters.chunks_failed)),
    both("chunks_foreign", "kvlane_foreign_chunks_total", |of| get(&of.counters.chunks_foreign)),
    both("chunks_reread", "kvlane_reread_chunks_total", |of| get(&of.counters.chunks_reread)),
    both("chunks_joined", "kvlane_joined_chunks_total", |of| get(&of.counters.chunks_joined)),
    both("blocks_shared", "kvlane_shared_blocks_total", |of| get(&of.counters.blocks_shared)),
    both("blocks_corrupt", "kvlane_corrupt_blocks_total", |of| get(&of.counters.blocks_corrupt)),
    both("blocks_in_software", "kvlane_software_inflated_blocks_total", |of| get(&of.counters.blocks_in_software)),
    both("blocks_resubmitted", "kvlane_resubmitted_blocks_total", |of| get(&of.counters.blocks_resubmitted)),
    both("blocks_compared", "kvlane_compared_blocks_total", |of| get(&of.counters.blocks_compared)),
    both("blocks_differed", "kvlane_differing_blocks_total", |of| get(&of.counters.blocks_differed)),
    both("sessions_opened", "kvlane_sessions_attached_total", |of| get(&of.counters.sessions_opened)),
    both("sessions_lost", "kvlane_sessions_lost_total", |of| get(&of.counters.sessions_lost)),
    labelled("doorbells_rung", "kvlane_doorbells_total", "rung", |of| get(&of.counters.doorbells_rung)),
    labelled("doorbells_heard", "kvlane_doorbells_total", "heard", |of| get(&of.counters.doorbells_heard)),
    both("sleeps", "kvlane_sleeps_total", |of| get(&of.counters.sleeps)),
    labelled("engine_restarts", "kvlane_engine_restarts_total", "inflate", |of| get(&of.counters.engine_restarts[0])),
    labelled("engine_restarts", "kvlane_engine_restarts_total", "dma", |of| get(&of.counters.engine_restarts[1])),
    labelled("restored_bytes", "kvlane_restored_bytes_total", "fetch", |of| get(&of.counters.restored_bytes[0])),
    labelled("restored_bytes", "kvlane_restored_bytes_total", "store", |of| get(&of.counters.restored_bytes[1])),
    labelled("wire_bytes", "kvlane_wire_bytes_total", "fetch", |of| get(&of.counters.wire_bytes[0])),
    labelled("wire_bytes", "kvlane_wire_bytes_total", "store", |of| get(&of.counters.wire_bytes[1])),
    status_only("deadlines_missed", |of| of.counters.answers.total(Status::DeadlineExceeded)),
    both("sessions_refused", "kvlane_sessions_refused_total", |of| of.refused),
];

/// Numbers of the object `store` in the status; `read_only` is rendered apart.
pub(crate) const STORE: &[Fact<OfCard>] = &[
    both("chunks", "kvlane_store_chunks", |of| of.store.chunks),
    both("bytes", "kvlane_store_bytes", |of| of.store.bytes),
    both("bytes_max", "kvlane_store_limit_bytes", |of| of.store.bytes_max),
    both("hits", "kvlane_store_hits_total", |of| of.store.hits),
    both("misses", "kvlane_store_misses_total", |of| of.store.misses),
    both("bytes_read", "kvlane_store_read_bytes_total", |of| of.store.bytes_read),
    both("bytes_put", "kvlane_store_put_bytes_total", |of| of.store.bytes_put),
    labelled("puts", "kvlane_store_puts_total", "committed", |of| of.store.puts),
    labelled("puts_failed", "kvlane_store_puts_total", "failed", |of| of.store.puts_failed),
    both("evicted", "kvlane_store_evicted_chunks_total", |of| of.store.evicted),
    both("bytes_evicted", "kvlane_store_evicted_bytes_total", |of| of.store.bytes_evicted),
    both("corrupt", "kvlane_store_corrupt_chunks_total", |of| of.store.corrupt),
    both("withheld", "kvlane_store_withheld_chunks_total", |of| of.store.withheld),
    both("io_errors", "kvlane_store_errors_total", |of| of.store.io_errors),
    status_only("bytes_copied", |of| of.store.bytes_copied),
];

/// Numbers of each server in `nodes`; its address, role, state and latency are rendered apart.
pub(crate) const NODES: &[Fact<OfNode>] = &[
    both("connections", "kvlane_store_node_connections", |node| node.connections),
    both("in_flight", "kvlane_store_node_in_flight", |node| node.in_flight),
    both("requests", "kvlane_store_node_requests_total", |node| node.requests),
    both("bytes_read", "kvlane_store_node_read_bytes_total", |node| node.bytes_read),
    both("bytes_put", "kvlane_store_node_put_bytes_total", |node| node.bytes_put),
    both("errors", "kvlane_store_node_errors_total", |node| node.errors),
    both("retries", "kvlane_store_node_retries_total", |node| node.retries),
    both("reconnects", "kvlane_store_node_reconnects_total", |node| node.reconnects),
    both("redirects", "kvlane_store_node_redirects_total", |node| node.redirects),
];

/// Numbers of each tier in `tiers`; its name, `out`, `scores` and `namespaces` are rendered apart.
pub(crate) const TIERS: &[Fact<OfTier>] = &[
    both("chunks", "kvlane_tier_chunks", |tier| tier.chunks),
    both("bytes", "kvlane_tier_bytes", |tier| tier.bytes),
    both("bytes_max", "kvlane_tier_limit_bytes", |tier| tier.bytes_max),
    both("hits", "kvlane_tier_hits_total", |tier| tier.hits),
    both("bytes_read", "kvlane_tier_read_bytes_total", |tier| tier.bytes_read),
    labelled("promoted", "kvlane_tier_promotions_total", "promoted", |tier| tier.promoted),
    labelled("refused", "kvlane_tier_promotions_total", "refused", |tier| tier.refused),
    labelled("failed", "kvlane_tier_promotions_total", "failed", |tier| tier.failed),
    both("bytes_promoted", "kvlane_tier_promoted_bytes_total", |tier| tier.bytes_promoted),
    both("evicted", "kvlane_tier_evicted_chunks_total", |tier| tier.evicted),
    both("bytes_evicted", "kvlane_tier_evicted_bytes_total", |tier| tier.bytes_evicted),
    both("slow", "kvlane_tier_slow_calls_total", |tier| tier.slow),
];

/// Lists the numbers of the status in order, `(key, value)`, rows of one key added up. `read` reads one.
pub(crate) fn of_status<F: Copy>(
    facts: &'static [Fact<F>],
    read: impl Fn(F) -> u64,
) -> impl Iterator<Item = (&'static str, u64)> {
    facts.chunk_by(|one, next| one.key == next.key).filter_map(move |rows| {
        let sum = rows.iter().map(|fact| read(fact.value)).sum();
        Some((rows[0].key?, sum))
    })
}

/// Lists the series of a family, `(its own label's value, value)`. `read` reads one.
pub(crate) fn of_family<F: Copy>(
    facts: &'static [Fact<F>],
    family: &'static str,
    read: impl Fn(F) -> u64,
) -> impl Iterator<Item = (Option<&'static str>, u64)> {
    let rows = facts.iter().filter(move |fact| fact.family == Some(family));
    rows.map(move |fact| (fact.label, read(fact.value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_key_are_one_number_of_the_status_and_a_series_each() {
        let (counters, store) = (Counters::default(), Stats::default());
        crate::count::counters::add(&counters.wire_bytes[0], 3);
        crate::count::counters::add(&counters.wire_bytes[1], 4);
        let of = Sources { counters: &counters, refused: 5, store: &store };
        let status: Vec<_> = of_status(COUNTERS, |value| value(&of)).collect();
        assert!(status.contains(&("wire_bytes", 7)) && status.contains(&("sessions_refused", 5)));
        let keys: Vec<_> = status.iter().map(|(key, _)| key).collect();
        assert!(keys.iter().enumerate().all(|(place, key)| !keys[..place].contains(key)), "a key is there twice");
        let series: Vec<_> = of_family(COUNTERS, "kvlane_wire_bytes_total", |value| value(&of)).collect();
        assert_eq!(series, [(Some("fetch"), 3), (Some("store"), 4)]);
    }
}
