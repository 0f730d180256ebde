//! All memory that the data plane takes in Init, one line for each consumer. It is a sum of limits: it does not grow with
//! the size of a request or with the number of requests, and the defaults stay within [`BYTES_MAX`].
//!
//! Not in it: the program and the stacks of its threads, what DOCA keeps for itself (tasks, buffers; the emulator's
//! engines), and tiers that a URL of a store asks for. `tests/footprint.rs` measures all of it together.

use mailbox::attach::{ATTACH_MESSAGE_MAX, REGIONS_MAX};
use mailbox::layout::Base;

use crate::attend::REFUSED_MAX;
use crate::config::Config;
use crate::events::Events;
use crate::flow::{Flow, SlotWork};
use crate::job::{Chunk, Done, Job};
use crate::run::store_limits;
use crate::session::{ANSWER_BYTES, Desk, Session};
use crate::worker::{Asked, Prefix, QUEUE};
use crate::{comch, metrics};

/// What the defaults of any machine stay within.
pub const BYTES_MAX: usize = 64 << 20;

/// libdeflate's state of an encoder, rounded up: up to level 9, and from level 10 on, where it looks for an optimum.
const ENCODER_BYTES: usize = 1 << 20;
const ENCODER_BYTES_OPTIMUM: usize = 10 << 20;
/// And of a decoder.
const DECODER_BYTES: usize = 16 << 10;
/// K and V of each layer.
const BASES_MAX: usize = 2 * block::LAYERS_MAX;

/// `(consumer, bytes)`.
#[must_use]
pub fn lines(config: &Config) -> Vec<(&'static str, usize)> {
    let workers = config.fetch_workers + config.dequantize_workers + config.encode_workers;
    let encoder = if config.deflate_level > 9 { ENCODER_BYTES_OPTIMUM } else { ENCODER_BYTES };
    let keys = mailbox::CHUNKS_PER_REQUEST_MAX * block::KEY_BYTES;
    let session = size_of::<Session>() + REGIONS_MAX * size_of::<doca::Remote>() + BASES_MAX * size_of::<Base>();
    // A server for each function of the host; one where nobody names any.
    let servers = if config.attach.has_comch() { config.representors.len().max(1) } else { 0 };
    let channels = servers * comch::memory_bytes(config.sessions);
    let metrics = config.metrics.map_or(0, |_| metrics::memory_bytes());
    vec![
        ("ring", config.slots * config.slot_bytes().total()),
        ("staging of sessions", config.sessions * Desk::bytes()),
        ("sessions", config.sessions * session),
        ("look-ups", config.sessions * (size_of::<Asked>() + keys)),
        ("prefixes", config.sessions * size_of::<Prefix>()),
        ("chunks in progress", config.chunks * (size_of::<Chunk>() + size_of::<Flow>())),
        ("slot table", config.slots * size_of::<SlotWork>()),
        ("queues of workers", workers * QUEUE * (size_of::<Job>() + size_of::<Done>())),
        ("manifests of workers", workers * block::MANIFEST_BYTES_MAX),
        ("encoders", config.encode_workers * encoder),
        ("decoders", (config.dequantize_workers + config.encode_workers) * DECODER_BYTES),
        ("attaches and channels", (config.sessions + REFUSED_MAX) * ATTACH_MESSAGE_MAX + channels),
        ("events and status", size_of::<Events>() + ANSWER_BYTES),
        ("metrics", metrics),
        ("store, as a directory", store::dir::memory_bytes(&store_limits(config))),
    ]
}

/// Of all lines.
#[must_use]
pub fn total(config: &Config) -> usize {
    lines(config).iter().map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::codec::DEFLATE_LEVEL_DEFAULT;

    #[test]
    fn the_defaults_of_any_machine_keep_the_promise() {
        for cores in [1, 2, 8, 16, 128] {
            let config = Config { metrics: "127.0.0.1:1".parse().ok(), ..Config::for_cores(cores) };
            let total = total(&config);
            assert!(total <= BYTES_MAX, "{cores} cores: {total} bytes: {:?}", lines(&config));
            assert_eq!(config.deflate_level, DEFLATE_LEVEL_DEFAULT, "the encoder's line is for this");
        }
    }
}
