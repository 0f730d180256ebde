//! Every setting and limit of a configuration as text: what start-up prints, `dpu-app limits` and `/config` show.

use mailbox::COMMANDS;

use crate::config::{Config, SAMPLE_BLOCKS, SESSIONS_OF_OPERATOR, TEAM_MAX, VERIFY_TRIES, Verify, follower_seats};
use crate::count::trace;
use crate::footprint;

/// Lists every limit as `(name, value)`, in the order in which start-up prints them.
#[must_use]
pub fn lines(config: &Config) -> Vec<(&'static str, String)> {
    let slot = config.slot_bytes();
    let ring = config.slots * slot.total();
    vec![
        ("block bytes", config.block_bytes.to_string()),
        ("slot bytes", format!("{} (wire {} + codes {} + tile {})", slot.total(), slot.wire, slot.codes, slot.tile)),
        ("slots", format!("{} (stores hold at most {})", config.slots, config.store_slots)),
        ("ring bytes", format!("{ring} ({:.1} MiB)", ring as f64 / f64::from(1 << 20))),
        ("fetch workers", config.fetch_workers.to_string()),
        ("dequantize workers", config.dequantize_workers.to_string()),
        ("encode workers", config.encode_workers.to_string()),
        ("cpus of fetch workers", cpus(&config.fetch_cpus)),
        ("cpus of dequantize workers", cpus(&config.dequantize_cpus)),
        ("cpus of encode workers", cpus(&config.encode_cpus)),
        ("inflate depth", config.inflate_depth.to_string()),
        ("dma depth", config.dma_depth.to_string()),
        ("sessions", format!("{} (and {SESSIONS_OF_OPERATOR} for the operator, by the socket)", config.sessions)),
        ("stop and drain by hosts", String::from(if config.allow_host_stop { "allowed" } else { "refused" })),
        (
            "comch messages per host",
            format!("{} received, {} on their way", doca::comch::RECEIVED_MAX, doca::comch::SENDING_MAX),
        ),
        ("requests per session", COMMANDS.to_string()),
        ("chunks per request", mailbox::CHUNKS_PER_REQUEST_MAX.to_string()),
        ("chunks in progress", config.chunks.to_string()),
        (
            "chunks that follow others' fetches",
            match follower_seats(config) {
                0 => String::from("none"),
                seats => format!("{seats}, at most {} behind one", TEAM_MAX - 1),
            },
        ),
        ("blocks per chunk", block::BLOCKS_PER_CHUNK_MAX.to_string()),
        ("pages per chunk", mailbox::PAGES_PER_CHUNK_MAX.to_string()),
        (
            "verify dma",
            match config.verify_dma {
                Verify::Sample => format!("sample (one block of {SAMPLE_BLOCKS}; {VERIFY_TRIES} tries)"),
                verify => format!("{verify} ({VERIFY_TRIES} tries)"),
            },
        ),
        ("deadline", format!("{} ms", config.deadline.get().as_millis())),
        ("slow requests", config.slow.map_or_else(|| "off".into(), |slow| format!("from {} ms on", slow.as_millis()))),
        ("trace", format!("the last {} stages, the last {} late requests", trace::SPANS, trace::LATES)),
    ]
    .into_iter()
    .chain(memory(config))
    .collect()
}

/// Lists the memory that all of it takes, consumer by consumer.
fn memory(config: &Config) -> Vec<(&'static str, String)> {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let line = |(name, bytes): &(&str, usize)| format!("{name} {:.2}", mib(*bytes));
    let text = |lines: &[(&str, usize)]| {
        let sum: usize = lines.iter().map(|(_, bytes)| bytes).sum();
        format!("{:.1} ({})", mib(sum), lines.iter().map(line).collect::<Vec<_>>().join(" + "))
    };
    let pinned = footprint::pinned(config);
    let pages = pinned.iter().map(|(_, bytes)| bytes).sum::<usize>() / doca::HUGE_PAGE_BYTES;
    vec![
        ("memory MiB", text(&footprint::lines(config))),
        ("memory MiB before hosts come", format!("{:.1}", mib(footprint::at_start(config)))),
        ("memory of a session KiB", footprint::of_session(config).div_ceil(1 << 10).to_string()),
        ("pinned memory MiB", text(&pinned)),
        ("huge pages of 2 MiB", pages.to_string()),
    ]
}

fn cpus(list: &[usize]) -> String {
    match list {
        [] => String::from("any"),
        list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}
