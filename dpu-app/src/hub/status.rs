//! What `host-ctl status` shows: one JSON text, rendered without allocating.

use std::fmt::{self, Write};

use crate::count::answers::Asked;
use crate::count::facts::{self, Sources};
use crate::count::json::{BoundedText, Comma, Quoted};
use crate::count::trace::{Late, TraceSpan};
use crate::hub::Hub;
use crate::pipeline::slots::SlotState;

/// Nodes of a store that fit the answer beside all else.
const NODES_SHOWN: usize = 16;
/// Sessions that fit it.
const SESSIONS_SHOWN: usize = 32;

/// Renders the status into `out` and returns its length.
pub(crate) fn write(hub: &Hub<'_, '_>, out: &mut [u8]) -> usize {
    let mut text = BoundedText::new(out);
    if render(hub, &mut text).is_err() {
        // Longer than any host can ask for: say so instead of sending half of it.
        text.clear();
        text.write_str("{\"error\":\"status is longer than the answer area\"}").expect("the area holds this line");
    }
    text.written()
}

/// Renders what requests waited for lately into `out` and returns its length: late requests, then as many of the last
/// stages as fit, newest first.
pub(crate) fn write_trace(hub: &Hub<'_, '_>, out: &mut [u8]) -> usize {
    const END: &str = "]}";
    let room = out.len() - END.len();
    let mut text = BoundedText::new(&mut out[..room]);
    let mut comma = Comma::new();
    let begun = write!(text, "{{\"now_ms\":{},\"late\":[", hub.now.saturating_duration_since(hub.started).as_millis());
    let lates = hub.trace.lates().try_for_each(|late| comma.put(&mut text).and_then(|()| write_late(late, &mut text)));
    begun.and(lates).and_then(|()| text.write_str("],\"spans\":[")).expect("the area is sized for all late requests");
    let (mut comma, mut whole) = (Comma::new(), text.written());
    for span in hub.trace.spans() {
        if comma.put(&mut text).and_then(|()| write_span(span, &mut text)).is_err() {
            break;
        }
        whole = text.written();
    }
    out[whole..whole + END.len()].copy_from_slice(END.as_bytes());
    whole + END.len()
}

fn write_late(late: &Late, text: &mut BoundedText<'_>) -> fmt::Result {
    let Late { at_ms, asker, operation, took, cut, chunks_done, chunk_count, slowest } = late;
    write!(
        text,
        "{{\"at_ms\":{at_ms},\"session\":{},\"request\":{},\"operation\":\"{}\",\"took_ms\":{},\"cut\":{cut},\
         \"chunks_done\":{chunks_done},\"chunk_count\":{chunk_count}",
        asker.session,
        asker.request,
        Asked::of(*operation).name(),
        took.as_millis(),
    )?;
    if let Some(slowest) = slowest {
        write!(text, ",\"slowest\":\"{slowest}\"")?;
    }
    text.write_str("}")
}

fn write_span(span: &TraceSpan, text: &mut BoundedText<'_>) -> fmt::Result {
    let TraceSpan { at_ms, asker, piece, stage, queued, worked, .. } = span;
    write!(text, "{{\"at_ms\":{at_ms},\"session\":{},\"request\":{}", asker.session, asker.request)?;
    if let Some(chunk) = piece.chunk {
        write!(text, ",\"chunk\":{chunk}")?;
    }
    if let Some(block) = piece.block {
        write!(text, ",\"block\":{block}")?;
    }
    let (queued, worked) = (queued.as_micros(), worked.as_micros());
    write!(text, ",\"stage\":\"{}\",\"queued_us\":{queued},\"worked_us\":{worked}}}", stage.name())
}

/// The servers behind the store, the first [`NODES_SHOWN`] of them.
fn nodes(store: &dyn store::Readable<doca::Area>, text: &mut BoundedText<'_>) -> fmt::Result {
    text.write_str("\"nodes\":[")?;
    let (mut comma, mut count, mut result) = (Comma::new(), 0, Ok(()));
    store.nodes(&mut |node| {
        count += 1;
        if count <= NODES_SHOWN && result.is_ok() {
            result = comma.put(text).and_then(|()| {
                let (address, role, state) = (Quoted(node.address), node.role.name(), node.state.name());
                write!(text, "{{\"address\":{address},\"role\":\"{role}\",\"state\":\"{state}\"")?;
                for (name, number) in facts::of_status(facts::NODES, |value| value(node)) {
                    write!(text, ",\"{name}\":{number}")?;
                }
                let latency = &node.latency;
                let (p50, p90, p99, max) = (latency.p50_us, latency.p90_us, latency.p99_us, latency.max_us);
                write!(text, ",\"p50_us\":{p50},\"p90_us\":{p90},\"p99_us\":{p99},\"max_us\":{max}}}")
            });
        }
    });
    result?;
    write!(text, "],\"nodes_known\":{count},")
}

/// The tiers in front of the store.
fn tiers(
    store: &dyn store::Readable<doca::Area>,
    namespaces: &store::Namespaces,
    text: &mut BoundedText<'_>,
) -> fmt::Result {
    text.write_str("\"tiers\":[")?;
    let (mut comma, mut result) = (Comma::new(), Ok(()));
    store.tiers(true, &mut |tier| {
        result = result.and_then(|()| comma.put(text)).and_then(|()| write_tier(tier, namespaces, text));
    });
    result?;
    text.write_str("],")
}

fn write_tier(tier: &store::TierFacts, namespaces: &store::Namespaces, text: &mut BoundedText<'_>) -> fmt::Result {
    write!(text, "{{\"tier\":\"{}\"", tier.name)?;
    for (name, number) in facts::of_status(facts::TIERS, |value| value(tier)) {
        write!(text, ",\"{name}\":{number}")?;
    }
    write!(text, ",\"out\":{},\"scores\":[", tier.out)?;
    let mut comma = Comma::new();
    for count in tier.scores {
        comma.put(text)?;
        write!(text, "{count}")?;
    }
    text.write_str("],\"namespaces\":{")?;
    let mut comma = Comma::new();
    for (name, bytes) in namespaces.names().zip(tier.namespaces) {
        comma.put(text)?;
        write!(text, "{}:{bytes}", Quoted(name))?;
    }
    text.write_str("}}")
}

fn render(hub: &Hub<'_, '_>, text: &mut BoundedText<'_>) -> fmt::Result {
    let shared = hub.shared;
    let device = &hub.device.info();
    write!(
        text,
        "{{\"card\":{{\"version\":{},\"flavour\":{},\"doca\":{},\"device\":{},\"state\":{},\"uptime_s\":{:.3},\"recipe\":\"{}\",\
         \"crc\":\"{}\",\"ring_bytes\":{},\"workers_stuck\":{}}},",
        Quoted(env!("CARGO_PKG_VERSION")),
        Quoted(doca::version::flavour()),
        Quoted(doca::version::running_with()),
        Quoted(&device.pci_address),
        Quoted(hub.state.name()),
        hub.started.elapsed().as_secs_f64(),
        shared.config.recipe,
        if hub.crc_trusted() { "engine" } else { "software" },
        shared.ring.total_bytes(),
        hub.stuck.total(),
    )?;
    text.write_str("\"degraded\":")?;
    let mut written = None;
    shared.store.trouble(&mut |trouble| written = Some(write!(text, "{},", Quoted(trouble))));
    written.unwrap_or_else(|| text.write_str("null,"))?;
    let config = shared.config;
    write!(
        text,
        "\"limits\":{{\"slots\":{},\"store_slots\":{},\"block_bytes\":{},\"sessions\":{},\"chunks\":{},\
         \"fetch_workers\":{},\"dequantize_workers\":{},\"encode_workers\":{},\"inflate_depth\":{},\"dma_depth\":{},\
         \"deadline_ms\":{}}},",
        config.slots,
        config.store_slots,
        config.block_bytes,
        config.sessions,
        config.chunks,
        config.fetch_workers,
        config.dequantize_workers,
        config.encode_workers,
        config.inflate_depth,
        config.dma_depth,
        config.deadline.get().as_millis(),
    )?;
    text.write_str("\"slots\":{")?;
    let mut comma = Comma::new();
    for state in SlotState::ALL {
        comma.put(text)?;
        write!(text, "\"{}\":{}", state.name(), hub.pipeline.slots.count(state))?;
    }
    text.write_str("},\"stages\":{")?;
    let counters = &shared.counters;
    let mut comma = Comma::new();
    for (name, stage) in counters.stages() {
        comma.put(text)?;
        let (jobs, busy_ns, bytes_in, bytes_out) = stage.read();
        let busy_ms = busy_ns as f64 / 1e6;
        write!(
            text,
            "\"{name}\":{{\"jobs\":{jobs},\"busy_ms\":{busy_ms:.3},\"bytes_in\":{bytes_in},\"bytes_out\":{bytes_out}}}"
        )?;
    }
    text.write_str("},\"counters\":{")?;
    let stats = shared.store.stats();
    let of = Sources { counters, refused: hub.events.refused(), store: &stats };
    let mut comma = Comma::new();
    for (name, number) in facts::of_status(facts::COUNTERS, |value| value(&of)) {
        comma.put(text)?;
        write!(text, "\"{name}\":{number}")?;
    }
    text.write_str("},\"latency_us\":{")?;
    let mut comma = Comma::new();
    for asked in Asked::CHUNKS {
        comma.put(text)?;
        let took = counters.answers.took(asked).read();
        let [p50, p99] = [0.5, 0.99].map(|quantile| took.quantile_us(quantile));
        write!(text, "\"{}\":{{\"requests\":{},\"p50\":{p50},\"p99\":{p99}}}", asked.name(), took.count())?;
    }
    text.write_str("},\"store\":{")?;
    for (name, number) in facts::of_status(facts::STORE, |value| value(&of)) {
        write!(text, "\"{name}\":{number},")?;
    }
    write!(text, "\"read_only\":{}}},", stats.read_only)?;
    nodes(shared.store, text)?;
    tiers(shared.store, &config.namespaces, text)?;
    write!(text, "\"sessions_attached\":{},\"sessions\":[", hub.sessions.iter().flatten().count())?;
    let mut comma = Comma::new();
    for session in hub.sessions.iter().flatten().take(SESSIONS_SHOWN) {
        comma.put(text)?;
        write!(
            text,
            "{{\"id\":{},\"client\":{},\"pid\":{},\"namespace\":{},\"recipe\":\"{}\",\"requests\":{},\"chunks\":{},\"asleep\":{}}}",
            session.id,
            Quoted(&session.client),
            session.pid,
            Quoted(config.namespaces.names().nth(usize::from(session.namespace)).unwrap_or_default()),
            session.recipe,
            session.requests.iter().flatten().count(),
            session.chunks,
            session.wake == crate::hub::session::SessionWake::Asleep,
        )?;
    }
    text.write_str("],\"events\":[")?;
    let mut comma = Comma::new();
    for entry in hub.events.iter() {
        comma.put(text)?;
        write!(text, "{{\"at_ms\":{},\"event\":\"{}\",\"value\":{}", entry.at_ms, entry.event.name(), entry.value)?;
        if entry.session > 0 {
            write!(text, ",\"session\":{}", entry.session)?;
        }
        if entry.request > 0 {
            write!(text, ",\"request\":{}", entry.request)?;
        }
        text.write_str("}")?;
    }
    text.write_str("]}")
}
