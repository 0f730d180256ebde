//! What `host-ctl status` shows: one JSON text, rendered without allocating.

use std::fmt::{self, Write};

use crate::counters::{Stage, get};
use crate::hub::Hub;
use crate::slot::SlotState;

/// Writes into a byte slice and stops at its end.
struct Text<'a> {
    bytes: &'a mut [u8],
    written: usize,
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.written..self.written + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.written += text.len();
        Ok(())
    }
}

/// A JSON string with what must be escaped escaped.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if (c as u32) < 0x20 => write!(f, "\\u{:04x}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// Puts commas between the entries of an object or array.
struct Comma(bool);

impl Comma {
    fn put(&mut self, text: &mut Text<'_>) -> fmt::Result {
        match std::mem::replace(&mut self.0, true) {
            true => text.write_char(','),
            false => Ok(()),
        }
    }
}

/// Renders the status into `out` and returns its length.
pub(crate) fn write(hub: &Hub<'_, '_>, out: &mut [u8]) -> usize {
    let mut text = Text { bytes: out, written: 0 };
    if render(hub, &mut text).is_err() {
        // Longer than any host can ask for: say so instead of sending half of it.
        text.written = 0;
        text.write_str("{\"error\":\"status is longer than the answer area\"}").expect("the area holds this line");
    }
    text.written
}

fn render(hub: &Hub<'_, '_>, text: &mut Text<'_>) -> fmt::Result {
    let shared = hub.shared;
    let device = &hub.device.info();
    write!(
        text,
        "{{\"card\":{{\"version\":{},\"flavour\":{},\"doca\":{},\"device\":{},\"state\":{},\"uptime_s\":{:.3},\"recipe\":\"{}\",\
         \"crc\":\"{}\",\"ring_bytes\":{}}},",
        Quoted(env!("CARGO_PKG_VERSION")),
        Quoted(doca::version::flavour()),
        Quoted(doca::version::running_with()),
        Quoted(&device.pci_address),
        Quoted(hub.state.name()),
        hub.started.elapsed().as_secs_f64(),
        shared.config.recipe,
        if hub.crc_trusted { "engine" } else { "software" },
        shared.ring.total_bytes(),
    )?;
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
        config.deadline.as_millis(),
    )?;
    text.write_str("\"slots\":{")?;
    let mut comma = Comma(false);
    for state in SlotState::ALL {
        comma.put(text)?;
        write!(text, "\"{}\":{}", state.name(), hub.slots.count(state))?;
    }
    text.write_str("},\"stages\":{")?;
    let counters = &shared.counters;
    let stages: [(&str, &Stage); 7] = [
        ("fetch", &counters.fetch),
        ("inflate", &counters.inflate),
        ("dequantize", &counters.dequantize),
        ("write", &counters.write),
        ("gather", &counters.gather),
        ("encode", &counters.encode),
        ("put", &counters.put),
    ];
    let mut comma = Comma(false);
    for (name, stage) in stages {
        comma.put(text)?;
        let (jobs, busy_ns, bytes_in, bytes_out) = stage.read();
        let busy_ms = busy_ns as f64 / 1e6;
        write!(
            text,
            "\"{name}\":{{\"jobs\":{jobs},\"busy_ms\":{busy_ms:.3},\"bytes_in\":{bytes_in},\"bytes_out\":{bytes_out}}}"
        )?;
    }
    text.write_str("},\"counters\":{")?;
    let numbers = [
        ("requests", &counters.requests),
        ("chunks_fetched", &counters.chunks_fetched),
        ("chunks_missed", &counters.chunks_missed),
        ("chunks_stored", &counters.chunks_stored),
        ("chunks_known", &counters.chunks_known),
        ("chunks_failed", &counters.chunks_failed),
        ("blocks_corrupt", &counters.blocks_corrupt),
        ("blocks_in_software", &counters.blocks_in_software),
        ("blocks_resubmitted", &counters.blocks_resubmitted),
        ("engine_restarts", &counters.engine_restarts),
        ("restored_bytes", &counters.restored_bytes),
        ("wire_bytes", &counters.wire_bytes),
        ("sessions_opened", &counters.sessions_opened),
        ("sessions_lost", &counters.sessions_lost),
        ("doorbells_rung", &counters.doorbells_rung),
        ("sleeps", &counters.sleeps),
    ];
    let mut comma = Comma(false);
    for (name, counter) in numbers {
        comma.put(text)?;
        write!(text, "\"{name}\":{}", get(counter))?;
    }
    let stats = shared.store.stats();
    write!(
        text,
        "}},\"store\":{{\"chunks\":{},\"bytes\":{},\"bytes_max\":{},\"hits\":{},\"misses\":{},\"bytes_read\":{},\
         \"bytes_put\":{},\"puts\":{},\"puts_failed\":{},\"evicted\":{},\"bytes_evicted\":{},\"corrupt\":{},\
         \"io_errors\":{},\"read_only\":{}}},\"sessions\":[",
        stats.chunks,
        stats.bytes,
        stats.bytes_max,
        stats.hits,
        stats.misses,
        stats.bytes_read,
        stats.bytes_put,
        stats.puts,
        stats.puts_failed,
        stats.evicted,
        stats.bytes_evicted,
        stats.corrupt,
        stats.io_errors,
        stats.read_only,
    )?;
    let mut comma = Comma(false);
    for session in hub.sessions.iter().flatten() {
        comma.put(text)?;
        write!(
            text,
            "{{\"id\":{},\"client\":{},\"pid\":{},\"recipe\":\"{}\",\"requests\":{},\"chunks\":{},\"asleep\":{}}}",
            session.id,
            Quoted(&session.client),
            session.pid,
            session.recipe,
            session.requests.iter().flatten().count(),
            session.flows,
            session.wake == crate::session::Wake::Asleep,
        )?;
    }
    text.write_str("],\"events\":[")?;
    let mut comma = Comma(false);
    for entry in hub.events.iter() {
        comma.put(text)?;
        write!(text, "{{\"at_ms\":{},\"event\":\"{}\",\"value\":{}}}", entry.at_ms, entry.event.name(), entry.value)?;
    }
    text.write_str("]}")
}
