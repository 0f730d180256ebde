//! Every metric: its name, what it means, and where its numbers come from. docs/metrics.md is made of this table.
//!
//! Units stand last in a name, `_total` on counters only. Labels take their values from enums of this program, so their
//! number is bounded; all series are there from the start, at 0, so that a rate sees the first event.

use std::fmt::{self, Display, Write as _};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::clerk::MetricsView;
use super::family::{MetricFamily, MetricKind, MetricSeries, Seconds, counter, gauge};
use super::nodes::NODE_FAMILIES;
use super::tiers::TIER_FAMILIES;
use crate::count::answers::Asked;
use crate::count::counters::get;
use crate::count::facts::{self, Sources};
use crate::count::json::BoundedText;
use crate::pipeline::slots::SlotState;
use crate::workers::board::HubState;

/// Lists all families in the order in which they are written.
pub fn all() -> impl Iterator<Item = &'static MetricFamily> {
    FAMILIES.iter().chain(NODE_FAMILIES).chain(TIER_FAMILIES)
}

const FAMILIES: &[MetricFamily] = &[
    // What runs, and whether it is well.
    gauge("kvlane_build_info", &["version", "flavour"], "1, with what this program is in its labels", |_, out| {
        out.put(&[env!("CARGO_PKG_VERSION"), doca::FLAVOUR], 1)
    }),
    gauge("kvlane_uptime_seconds", &[], "Time since the start", |view, out| out.put(&[], Seconds(view.uptime))),
    gauge("kvlane_state", &["state"], "1 for the state that the data plane is in, else 0", |view, out| {
        let states = [HubState::Init, HubState::Steady, HubState::Draining { leave: false }];
        let now = view.face.shown.state.name();
        states.iter().try_for_each(|state| out.put(&[state.name()], u8::from(state.name() == now)))
    }),
    gauge("kvlane_unwell", &["reason"], "1 for each reason for which /healthcheck answers 503, else 0", |view, out| {
        view.unwell.iter().try_for_each(|(unwell, so)| out.put(&[unwell.name()], u8::from(*so)))
    }),
    gauge("kvlane_process_resident_bytes", &[], "Memory of the process that is resident", |view, out| {
        out.put(&[], view.process.resident_bytes)
    }),
    counter("kvlane_process_cpu_seconds_total", &[], "Processor time of all threads, user and system", |view, out| {
        out.put(&[], Seconds(view.process.cpu))
    }),
    // Requests.
    counter("kvlane_commands_total", &[], "Commands taken from mailboxes", of_card),
    counter(
        "kvlane_requests_total",
        &["operation", "status"],
        "Commands answered; `control` is everything that names no chunks. A miss is `ok` with fewer chunks",
        |view, out| {
            let answers = &view.shared.counters.answers;
            let each = |asked: Asked, status: mailbox::Status| (asked, status, get(answers.status(asked, status)));
            let all = Asked::ALL.iter().flat_map(|&asked| mailbox::Status::ALL.map(|status| each(asked, status)));
            all.into_iter().try_for_each(|(asked, status, count)| out.put(&[asked.name(), status.name()], count))
        },
    ),
    MetricFamily {
        name: "kvlane_request_duration_seconds",
        kind: MetricKind::Histogram,
        labels: &["operation"],
        help: "Time from the arrival of a command that names chunks to its answer",
        series: |view, out| {
            let took = |asked| view.shared.counters.answers.took(asked).read();
            Asked::CHUNKS.iter().try_for_each(|&asked| out.put_histogram(&[asked.name()], &took(asked)))
        },
    },
    // Prefixes: what `vllm:external_prefix_cache_queries` and `..._hits` count, by operation.
    counter(
        "kvlane_prefix_queried_chunks_total",
        &["operation"],
        "Chunks of the prefixes that answered look-ups and fetches asked for",
        |view, out| prefixes(view, out, |prefixes| &prefixes.queried_chunks),
    ),
    counter(
        "kvlane_prefix_hit_chunks_total",
        &["operation"],
        "Leading chunks of these that were found (lookup) or put in place (fetch)",
        |view, out| prefixes(view, out, |prefixes| &prefixes.hit_chunks),
    ),
    counter(
        "kvlane_prefix_queried_tokens_total",
        &["operation"],
        "The same in tokens, of sessions that registered memory: others do not say how many a chunk has",
        |view, out| prefixes(view, out, |prefixes| &prefixes.queried_tokens),
    ),
    counter(
        "kvlane_prefix_hit_tokens_total",
        &["operation"],
        "Tokens of the leading chunks that were found or put in place",
        |view, out| prefixes(view, out, |prefixes| &prefixes.hit_tokens),
    ),
    counter(
        "kvlane_chunks_total",
        &["result"],
        "Chunks by how they ended: fetched, missed, stored, known (stored already) or failed",
        of_card,
    ),
    counter(
        "kvlane_restored_bytes_total",
        &["operation"],
        "Bytes of elements of whole chunks, as they lie in host memory",
        of_card,
    ),
    counter("kvlane_wire_bytes_total", &["operation"], "The same chunks in their stored form", of_card),
    // The pipeline.
    counter("kvlane_stage_operations_total", &["stage"], "Blocks that went through a stage", |view, out| {
        stages(view, out, |(jobs, ..)| jobs)
    }),
    counter(
        "kvlane_stage_busy_seconds_total",
        &["stage"],
        "Time that workers spent in a stage, summed over them; of the engines (inflate, write, gather) the time with work in flight",
        |view, out| stages(view, out, |(_, ns, ..)| Seconds(Duration::from_nanos(ns))),
    ),
    counter("kvlane_stage_input_bytes_total", &["stage"], "Bytes that a stage took", |view, out| {
        stages(view, out, |(_, _, bytes, _)| bytes)
    }),
    counter("kvlane_stage_output_bytes_total", &["stage"], "Bytes that a stage made", |view, out| {
        stages(view, out, |(.., bytes)| bytes)
    }),
    counter(
        "kvlane_joined_chunks_total",
        &[],
        "Chunks that began as followers of a fetch of another session: read once, written to both",
        of_card,
    ),
    counter(
        "kvlane_shared_blocks_total",
        &[],
        "Blocks written to pages of a session that had not to be read for it",
        of_card,
    ),
    counter("kvlane_corrupt_blocks_total", &[], "Blocks that failed a check, each time that one was read", of_card),
    counter(
        "kvlane_foreign_chunks_total",
        &[],
        "Good chunks of the store that this card cannot read: kept, and misses",
        of_card,
    ),
    counter(
        "kvlane_reread_chunks_total",
        &[],
        "Chunks fetched anew, by another way, after what came was bad or gone",
        of_card,
    ),
    counter(
        "kvlane_software_inflated_blocks_total",
        &[],
        "Blocks that software inflated because the engine could not, or had to be judged",
        of_card,
    ),
    counter(
        "kvlane_resubmitted_blocks_total",
        &[],
        "Operations given to an engine again after a failure, theirs or a neighbour's",
        of_card,
    ),
    counter(
        "kvlane_compared_blocks_total",
        &[],
        "Blocks whose pages were read again and compared (--verify-dma)",
        of_card,
    ),
    counter(
        "kvlane_differing_blocks_total",
        &[],
        "Comparisons that found other bytes in the host's pages than the DMA engine was given",
        of_card,
    ),
    counter("kvlane_engine_restarts_total", &["engine"], "Restarts of an engine's context after a failure", of_card),
    gauge("kvlane_engine_in_flight", &["engine"], "Operations that an engine has now", |view, out| {
        let engines = ["inflate", "dma", "mailbox"].into_iter().zip(view.face.shown.in_flight);
        engines.into_iter().try_for_each(|(engine, count)| out.put(&[engine], count))
    }),
    gauge("kvlane_slots", &["state"], "Slots of the ring by state", |view, out| {
        let slots = SlotState::ALL.iter().zip(view.face.shown.slots);
        slots.into_iter().try_for_each(|(state, count)| out.put(&[state.name()], count))
    }),
    gauge("kvlane_ring_bytes", &[], "Registered memory of the ring", |view, out| {
        out.put(&[], view.shared.ring.total_bytes())
    }),
    gauge("kvlane_chunks_in_progress", &[], "Chunks that have a seat now", |view, out| {
        out.put(&[], view.face.shown.chunks_in_progress)
    }),
    // Sessions and sleep.
    gauge("kvlane_sessions", &[], "Hosts that are attached", |view, out| out.put(&[], view.face.shown.sessions)),
    gauge("kvlane_sessions_limit", &[], "Hosts that may be attached at the same time", |view, out| {
        out.put(&[], view.shared.config.sessions)
    }),
    counter("kvlane_sessions_attached_total", &[], "Attaches that succeeded", of_card),
    counter("kvlane_sessions_refused_total", &[], "Attaches that were refused", of_card),
    counter(
        "kvlane_sessions_lost_total",
        &[],
        "Sessions that ended because of what their host did or because its memory was gone",
        of_card,
    ),
    counter(
        "kvlane_doorbells_total",
        &["direction"],
        "Doorbells: rung for hosts that slept, heard from hosts while this side slept",
        of_card,
    ),
    counter("kvlane_sleeps_total", &[], "Times that the engine thread went to sleep", of_card),
    // The store, as it counts itself.
    gauge("kvlane_store_chunks", &[], "Chunks in the store", of_card),
    gauge("kvlane_store_bytes", &[], "Their bytes", of_card),
    gauge("kvlane_store_limit_bytes", &[], "What these never exceed; 0: the store sets no limit", of_card),
    gauge("kvlane_store_read_only", &[], "1 if the last attempt to write found the store read-only", |view, out| {
        out.put(&[], u8::from(view.face.shown.store.read_only))
    }),
    counter("kvlane_store_hits_total", &[], "Chunks opened", of_card),
    counter("kvlane_store_misses_total", &[], "Opens that found no chunk", of_card),
    counter("kvlane_store_read_bytes_total", &[], "Bytes of blocks read", of_card),
    counter("kvlane_store_put_bytes_total", &[], "Bytes of blocks put", of_card),
    counter("kvlane_store_puts_total", &["result"], "Chunks that were to be put, by how that ended", of_card),
    counter("kvlane_store_evicted_chunks_total", &[], "Chunks that made room for others", of_card),
    counter("kvlane_store_evicted_bytes_total", &[], "Their bytes", of_card),
    counter("kvlane_store_corrupt_chunks_total", &[], "Chunks taken out because they were proven bad", of_card),
    counter(
        "kvlane_store_withheld_chunks_total",
        &[],
        "Times that a bad chunk stayed in the store (shared, or too many bad at once); one found again counts again",
        of_card,
    ),
    counter("kvlane_store_errors_total", &[], "Calls that failed for a reason that is not in the bytes", of_card),
];

/// Writes all families.
pub(super) fn write(view: &MetricsView<'_, '_>, text: &mut BoundedText<'_>) -> fmt::Result {
    all().try_for_each(|family| {
        writeln!(text, "# HELP {} {}.\n# TYPE {} {}", family.name, family.help, family.name, family.kind.name())?;
        (family.series)(view, &mut MetricSeries { text, family })
    })
}

fn prefixes(
    view: &MetricsView<'_, '_>,
    out: &mut MetricSeries<'_, '_>,
    of: fn(&crate::count::answers::Prefixes) -> &AtomicU64,
) -> fmt::Result {
    let answers = &view.shared.counters.answers;
    Asked::PREFIX.iter().try_for_each(|&asked| out.put(&[asked.name()], get(of(answers.prefixes(asked)))))
}

/// Writes the series of a family whose numbers are in the table of facts.
fn of_card(view: &MetricsView<'_, '_>, out: &mut MetricSeries<'_, '_>) -> fmt::Result {
    let shown = &view.face.shown;
    let of = Sources { counters: &view.shared.counters, refused: shown.refused, store: &shown.store };
    let mut rows = [facts::COUNTERS, facts::STORE]
        .into_iter()
        .flat_map(|facts| facts::of_family(facts, out.family.name, |value| value(&of)));
    rows.try_for_each(|(label, value)| out.put(label.as_slice(), value))
}

/// Jobs, busy nanoseconds, bytes in, bytes out of a stage.
type Totals = (u64, u64, u64, u64);

fn stages<T: Display>(
    view: &MetricsView<'_, '_>,
    out: &mut MetricSeries<'_, '_>,
    value: fn(Totals) -> T,
) -> fmt::Result {
    view.shared.counters.stages().iter().try_for_each(|(name, stage)| out.put(&[name], value(stage.read())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    const BEGIN: &str = "| name | type | labels | meaning |\n|---|---|---|---|\n";

    fn rows() -> String {
        let row = |family: &MetricFamily| {
            let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("| `{}` | {} | {} | {} |\n", family.name, family.kind.name(), labels.join(" "), family.help)
        };
        all().map(row).collect()
    }

    #[test]
    fn the_table_of_the_docs_is_this_one() {
        let docs = std::fs::read_to_string(DOCS).unwrap();
        let (before, rest) = docs.split_once(BEGIN).expect("docs/metrics.md has the table's head");
        let (table, after) = rest.split_once("\n\n").map_or((rest, ""), |(table, after)| (table, after));
        if format!("{}\n", table.trim_end()) == rows() {
            return;
        }
        if std::env::var_os("KVLANE_WRITE_DOCS").is_some() {
            std::fs::write(DOCS, format!("{before}{BEGIN}{}\n{after}", rows())).unwrap();
        }
        panic!("docs/metrics.md differs from this table: KVLANE_WRITE_DOCS=1 cargo test -p dpu-app metrics writes it");
    }

    #[test]
    fn every_fact_that_names_a_family_is_a_series_of_it() {
        let card = [facts::COUNTERS, facts::STORE].concat();
        let card = card.iter().map(|fact| (fact.family, fact.label.is_some(), 0));
        let nodes = facts::NODES.iter().map(|fact| (fact.family, fact.label.is_some(), 1));
        let tiers = facts::TIERS.iter().map(|fact| (fact.family, fact.label.is_some(), 1));
        for (name, has_label, shared) in card.chain(nodes).chain(tiers) {
            let Some(name) = name else { continue };
            let family = all().find(|family| family.name == name).expect(name);
            assert_eq!(family.labels.len(), shared + usize::from(has_label), "{name}");
        }
    }

    #[test]
    fn names_keep_to_the_conventions() {
        let units = ["_seconds", "_bytes"];
        for family in all() {
            let (name, kind) = (family.name, family.kind);
            assert!(name.starts_with("kvlane_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == MetricKind::Counter, "{name}");
            let stem = name.strip_suffix("_total").unwrap_or(name);
            for unit in units {
                assert!(!stem.contains(unit) || stem.ends_with(unit), "{name}: its unit is not last");
            }
            assert_eq!(all().filter(|other| other.name == name).count(), 1, "{name} is there twice");
            assert!(!family.help.ends_with('.') && !family.help.contains(['\n', '|', '\\']), "{name}");
        }
    }
}
