//! All memory that the data plane takes in Init, one line for each consumer. It is a sum of limits: it does not grow
//! with the size of a request or with the number of requests, and before hosts come the defaults stay within
//! [`BYTES_MAX`].
//!
//! What sessions take is counted as if all of them were there; each takes its part at its attach, and the next session
//! of its place has it. Not in it: the program and the stacks of its threads, and what DOCA keeps for itself (tasks,
//! buffers; the emulator's engines). `tests/it/footprint.rs` measures all of it together.

use mailbox::SECTIONS_MAX;
use mailbox::attach::{ATTACH_MESSAGE_MAX, REGIONS_MAX};
use mailbox::layout::{BASES_MAX, Base};
use store::{Outline, OutlinePart};

use crate::config::{ANSWER_BYTES, Config, follower_seats, store_limits};
use crate::count::trace::RequestTrace;
use crate::hub::comch;
use crate::hub::events::Events;
use crate::hub::session::{SectionMemory, Session, SessionDesk};
use crate::hub::visitors::{OPERATORS_MAX, REFUSED_MAX};
use crate::metrics;
use crate::pipeline::chunk::ChunkInFlight;
use crate::pipeline::job::Job;
use crate::pipeline::slots::SlotWork;
use crate::workers::chunks::WorkerChunk;
use crate::workers::line::{BLOCK_QUEUE, Numbered, QUEUE, Worked};
use crate::workers::shared::{Question, StartedPrefix};
use crate::workers::unreadable::Unreadable;

/// Most that the defaults of any machine take before hosts come, bytes.
pub const BYTES_MAX: usize = 65 << 20;

/// libdeflate's state of an encoder, rounded up: up to level 9, and from level 10 on, where it looks for an optimum.
const ENCODER_BYTES: usize = 1 << 20;
const ENCODER_BYTES_OPTIMUM: usize = 10 << 20;
/// State of a decoder.
const DECODER_BYTES: usize = 16 << 10;

/// Lists the memory that is registered with the device, and so pinned: `(consumer, bytes)`, each in whole huge pages.
#[must_use]
pub fn pinned(config: &Config) -> Vec<(&'static str, usize)> {
    let whole = |bytes: usize| bytes.next_multiple_of(doca::HUGE_PAGE_BYTES);
    vec![
        ("ring", whole(config.slots * config.slot_bytes().total())),
        ("staging of sessions", SessionDesk::bytes_of(config.places())),
        ("tier in memory", whole(outline(config).pinned_bytes())),
    ]
}

/// Outlines the store that the configuration names; a directory where it names none that can be known.
fn outline(config: &Config) -> Outline {
    let limits = store_limits(config);
    store::outline(config.store.reveal(), &limits, &config.namespaces).unwrap_or_else(|_| {
        let memory_bytes = store::dir::memory_bytes(&limits);
        let part = OutlinePart {
            name: "dir",
            text: String::new(),
            memory_bytes,
            pinned_bytes: 0,
            bytes_max: None,
            chunks_max: None,
        };
        Outline { parts: vec![part] }
    })
}

/// Lists what Init takes, before hosts come: `(consumer, bytes)`.
fn fixed(config: &Config) -> Vec<(&'static str, usize)> {
    let workers = 1 + config.fetch_workers + config.dequantize_workers + config.encode_workers;
    let seats = config.chunks + follower_seats(config);
    let encoder = if config.deflate_level > 9 { ENCODER_BYTES_OPTIMUM } else { ENCODER_BYTES };
    vec![
        ("ring", config.slots * config.slot_bytes().total()),
        ("staging of sessions", SessionDesk::bytes_of(1)),
        ("table of sessions", config.places() * size_of::<Session>()),
        ("chunks that cannot be read", Unreadable::memory_bytes()),
        ("chunks in progress", seats * (size_of::<WorkerChunk>() + size_of::<ChunkInFlight>())),
        ("slot table", config.slots * size_of::<SlotWork>()),
        ("queues of workers", queue_bytes(QUEUE) + (workers - 1) * queue_bytes(BLOCK_QUEUE)),
        ("manifests of workers", workers * block::MANIFEST_BYTES_MAX),
        ("encoders", config.encode_workers * encoder),
        ("decoders", (config.dequantize_workers + config.encode_workers) * DECODER_BYTES),
        ("channels", servers(config) * comch::memory_bytes(config.sessions)),
        ("events, trace and status", size_of::<Events>() + size_of::<RequestTrace>() + ANSWER_BYTES),
        ("metrics", config.metrics.map_or(0, |_| metrics::memory_bytes())),
        ("store", outline(config).memory_bytes()),
    ]
}

/// Lists what all sessions take when they attach: `(consumer, bytes)`.
fn of_sessions(config: &Config) -> Vec<(&'static str, usize)> {
    let places = config.places();
    let visitors = places + OPERATORS_MAX + REFUSED_MAX;
    vec![
        ("staging of more sessions", SessionDesk::bytes_of(places) - SessionDesk::bytes_of(1)),
        ("memory of sessions", places * memory_of_session()),
        ("attaches", visitors * ATTACH_MESSAGE_MAX),
        ("channels of sessions", servers(config) * comch::memory_of_hosts(config.sessions)),
    ]
}

/// Counts the Comch servers: one for each function of the host that is named, or one.
fn servers(config: &Config) -> usize {
    if config.attach.has_comch() { config.representors.len().max(1) } else { 0 }
}

/// Counts the bytes that one more session takes.
#[must_use]
pub fn of_session(config: &Config) -> usize {
    let channel = if config.attach.has_comch() { comch::memory_of_host() } else { 0 };
    SessionDesk::bytes() + memory_of_session() + ATTACH_MESSAGE_MAX + channel
}

/// Counts the bytes of a session beside its staging memory and its channel.
fn memory_of_session() -> usize {
    let sections = SECTIONS_MAX * size_of::<SectionMemory>() + BASES_MAX * size_of::<Base>();
    REGIONS_MAX * size_of::<doca::Remote>() + sections + Question::BYTES + StartedPrefix::BYTES
}

/// Lists the memory of the whole, with all sessions: `(consumer, bytes)`.
#[must_use]
pub fn lines(config: &Config) -> Vec<(&'static str, usize)> {
    [fixed(config), of_sessions(config)].concat()
}

/// Counts the bytes of the queues between the engine thread and a worker.
fn queue_bytes(places: usize) -> usize {
    places * (size_of::<Numbered>() + size_of::<Worked>()) + places.next_power_of_two() * size_of::<Option<Job>>()
}

/// Adds up the bytes of all consumers, with all sessions.
#[must_use]
pub fn total(config: &Config) -> usize {
    lines(config).iter().map(|(_, bytes)| bytes).sum()
}

/// Adds up the bytes that are taken before hosts come.
#[must_use]
pub fn at_start(config: &Config) -> usize {
    fixed(config).iter().map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::codec::DEFLATE_LEVEL_DEFAULT;

    #[test]
    fn the_defaults_of_any_machine_keep_the_promise() {
        for cores in [1, 2, 8, 16, 128] {
            let config = Config { metrics: "127.0.0.1:1".parse().ok(), ..Config::for_cores(cores) };
            let bytes = at_start(&config);
            assert!(bytes <= BYTES_MAX, "{cores} cores: {bytes} bytes: {:?}", lines(&config));
            assert_eq!(total(&config), bytes + of_sessions(&config).iter().map(|(_, bytes)| bytes).sum::<usize>());
            assert_eq!(config.deflate_level, DEFLATE_LEVEL_DEFAULT, "the encoder's line is for this");
        }
    }

    #[test]
    fn scripts_and_docs_say_what_a_card_pins_with_default_flags() {
        let pinned: usize = pinned(&Config::for_cores(16)).iter().map(|(_, bytes)| bytes).sum();
        let (mib, pages) = (pinned >> 20, pinned / doca::HUGE_PAGE_BYTES);
        for (path, words) in [
            ("scripts/preflight.sh", format!("{mib} is what dpu-app pins with default flags")),
            ("scripts/preflight.sh", format!("card) hugepages_mib={mib} ;;")),
            ("scripts/preflight.sh", format!("card) memlock_mib={mib} ;;")),
            ("scripts/hugepages.sh", format!("{pages} of 2 MiB on a BlueField-3 with default flags")),
            ("docs/bring-up.md", format!("--count {pages} <")),
            ("docs/bring-up.md", format!("{pages} pages of 2 MiB ({mib} MiB")),
        ] {
            let text = std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            // Lines may be broken anywhere.
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(&words), "{path} says otherwise than: {words}");
        }
    }
}
