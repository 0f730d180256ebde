//! Families with a `node` label: one row for each server of the store, as it counts them (`store::NodeFacts`). A store
//! that has no servers (`dir:`) has no series here. The label's values are the store's own list of servers,
//! `host:port`, of a fixed size; [`super::REPLY_BYTES`] holds them all.

use std::fmt;

use store::{NodeFacts, NodeState};

use super::clerk::MetricsView;
use super::family::{MetricFamily, MetricSeries, Seconds, counter, gauge};
use crate::count::facts;

/// Writes the series of a family whose numbers are in the table of facts.
fn of_node(view: &MetricsView<'_, '_>, out: &mut MetricSeries<'_, '_>) -> fmt::Result {
    rows(view, out, |node, out| {
        let mut facts = facts::of_family(facts::NODES, out.family.name, |value| value(node));
        facts.try_for_each(|(_, value)| out.put(&[node.address], value))
    })
}

fn rows(
    view: &MetricsView<'_, '_>,
    out: &mut MetricSeries<'_, '_>,
    mut write: impl FnMut(&NodeFacts<'_>, &mut MetricSeries<'_, '_>) -> fmt::Result,
) -> fmt::Result {
    let mut result = Ok(());
    view.shared.store.nodes(&mut |node| result = result.and_then(|()| write(node, out)));
    result
}

pub(super) const NODE_FAMILIES: &[MetricFamily] = &[
    gauge(
        "kvlane_store_node_usable",
        &["node", "role"],
        "1: requests go to this server; 0: it failed too often of late",
        |view, out| {
            rows(view, out, |node, out| {
                out.put(&[node.address, node.role.name()], u8::from(node.state == NodeState::Closed))
            })
        },
    ),
    gauge("kvlane_store_node_connections", &["node"], "Connections that are up", of_node),
    gauge("kvlane_store_node_in_flight", &["node"], "Requests sent and not yet answered", of_node),
    counter("kvlane_store_node_requests_total", &["node"], "Requests", of_node),
    counter("kvlane_store_node_read_bytes_total", &["node"], "Bytes of blocks received", of_node),
    counter("kvlane_store_node_put_bytes_total", &["node"], "Bytes of blocks sent", of_node),
    counter(
        "kvlane_store_node_errors_total",
        &["node"],
        "Connections that failed or were given up, and replies that were errors",
        of_node,
    ),
    counter("kvlane_store_node_retries_total", &["node"], "Requests that were sent again", of_node),
    counter(
        "kvlane_store_node_reconnects_total",
        &["node"],
        "Connections made after the first of their place",
        of_node,
    ),
    counter("kvlane_store_node_redirects_total", &["node"], "MOVED and ASK", of_node),
    gauge(
        "kvlane_store_node_latency_seconds",
        &["node", "quantile"],
        "From a request's queueing to the end of its reply, quantiles since the start",
        |view, out| {
            rows(view, out, |node, out| {
                let latency = &node.latency;
                let quantiles = [("0.5", latency.p50_us), ("0.9", latency.p90_us), ("0.99", latency.p99_us)];
                quantiles.iter().try_for_each(|(quantile, us)| {
                    out.put(&[node.address, quantile], Seconds(std::time::Duration::from_micros(*us)))
                })
            })
        },
    ),
];
