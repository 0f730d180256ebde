//! What a card can do: sizes, counts, and which kinds of task.

use crate::config::{Config, Profile, TaskKind};

/// Elements of a buffer list that one task may have.
pub(crate) const LIST_MAX: u32 = 128;
/// Tasks of one context, all types together. Ours: the cards' number is only known at run time.
pub(crate) const TASKS_MAX: u32 = 8192;
const BF3_BUF_BYTES_MAX: u64 = 2 << 20;
const BF2_BUF_BYTES_MAX: u64 = 128 << 20;
/// The copy engine's, on both cards.
const DMA_BUF_BYTES_MAX: u64 = 2 << 20;

/// Longest message of a Comch producer.
pub(crate) const DATA_BYTES_MAX: u32 = 2 << 20;
/// Longest immediate data of one.
pub(crate) const IMM_BYTES_MAX: usize = 32;

/// What a task kind may be given, or None where the card cannot do it.
pub(crate) fn buf_bytes_max(config: &Config, kind: TaskKind) -> Option<u64> {
    let without = config.without;
    let lacks = match kind {
        TaskKind::Memcpy => without.dma,
        TaskKind::Inflate => without.inflate,
        TaskKind::Lz4Stream | TaskKind::Lz4Block => without.lz4,
        _ => false,
    };
    let bytes = if lacks { None } else { buf_bytes_of(config.profile, kind) }?;
    Some(if config.buf_bytes_max == 0 { bytes } else { bytes.min(config.buf_bytes_max) })
}

fn buf_bytes_of(profile: Profile, kind: TaskKind) -> Option<u64> {
    match (profile, kind) {
        (_, TaskKind::Memcpy) => Some(DMA_BUF_BYTES_MAX),
        (Profile::Bf3, TaskKind::Inflate | TaskKind::Lz4Stream | TaskKind::Lz4Block) => Some(BF3_BUF_BYTES_MAX),
        (Profile::Bf2, TaskKind::Inflate | TaskKind::Deflate) => Some(BF2_BUF_BYTES_MAX),
        _ => None,
    }
}
