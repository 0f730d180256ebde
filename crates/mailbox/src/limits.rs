//! Every limit of the page, each with its unit in its name. Both sides compile these in; the identity line repeats
//! them, so two builds that disagree find out at attach and not in the middle of a ring.

/// Version of the page and of the attach messages. Raised by any change of a byte's meaning; equal or refused.
pub const VERSION: u32 = 1;
/// "kvlane" and a mark, read as a little-endian word. Stored last, so a page with it is complete.
pub const MAGIC: u64 = u64::from_le_bytes(*b"kvlane\xb7\x01");

/// Everything self-validating comes in lines of this many bytes, aligned to as many.
pub const LINE_BYTES: usize = 64;
/// Command slots, argument areas, and so requests in flight per session.
pub const COMMANDS: usize = 32;
/// Completion slots. No fewer than commands, so the card can never find the ring full and never has to wait for a host.
pub const COMPLETIONS: usize = 32;
/// Bytes of one argument area: chunk records from the host, then the answer text from the card.
pub const ARGUMENT_BYTES: usize = 64 << 10;
/// Command slots that the card copies in one DMA: 512 B, one PCIe read request of the usual maximum size.
pub const COMMAND_WINDOW: usize = 8;
/// Bytes of chunk records that the card copies at once: its staging buffer per session, whatever the request's size.
pub const RECORD_WINDOW_BYTES: usize = 4096;
/// Head of one chunk record: CRC, index, generation, request, key, page count.
pub const RECORD_HEAD_BYTES: usize = LINE_BYTES;
/// Page numbers of one chunk: what fits in one record window beside the head.
pub const PAGES_PER_CHUNK_MAX: usize = (RECORD_WINDOW_BYTES - RECORD_HEAD_BYTES) / 4;
/// Chunks of one request that names no pages (a lookup). With pages there are fewer: [`chunks_max`].
pub const CHUNKS_PER_REQUEST_MAX: usize = chunks_max(0);
/// Sections of one session: layers of equal shape each. Their bases are as many as one cache may have, all together.
pub const SECTIONS_MAX: usize = 16;
/// Consecutive torn copies of one line after which its writer is a liar.
pub const TORN_MAX: u32 = 16;
/// The host spins on its own memory and so counts faster than a preempted emulator copies: torn completions must also
/// last this long before the card is called a liar.
pub const TORN_GRACE_MS: u64 = 1000;

/// Offset of the identity line. Writer: host, once.
pub const IDENTITY_AT: usize = 0;
/// Offset of the two faces of the host line. Writer: host.
pub const HOST_LINE_AT: usize = 128;
/// Offset of the two faces of the card line. Writer: card, by DMA.
pub const CARD_LINE_AT: usize = 256;
/// Offset of the command ring. Writer: host.
pub const COMMANDS_AT: usize = 4096;
/// Offset of the completion ring. Writer: card, by DMA.
pub const COMPLETIONS_AT: usize = COMMANDS_AT + COMMANDS * LINE_BYTES;
/// Offset of the argument areas. Writer: whoever owns the command.
pub const ARGUMENTS_AT: usize = COMPLETIONS_AT + COMPLETIONS * LINE_BYTES;
/// Bytes of the whole page: 2 MiB + 8 KiB.
pub const PAGE_BYTES: usize = ARGUMENTS_AT + COMMANDS * ARGUMENT_BYTES;

/// Bytes of one chunk record with this many page numbers: head and pages, padded to whole lines.
pub const fn record_bytes(pages_per_chunk: usize) -> usize {
    RECORD_HEAD_BYTES + (pages_per_chunk * 4).next_multiple_of(LINE_BYTES)
}

/// Chunks that one request can name when each has this many pages.
pub const fn chunks_max(pages_per_chunk: usize) -> usize {
    ARGUMENT_BYTES / record_bytes(pages_per_chunk)
}

const _: () = {
    assert!(COMMANDS_AT == 4096 && COMPLETIONS_AT == 6144 && ARGUMENTS_AT == 8192);
    assert!(PAGE_BYTES == (2 << 20) + (8 << 10));
    assert!(COMPLETIONS >= COMMANDS, "a completion must always find a slot");
    assert!(COMMANDS <= u32::BITS as usize, "area sets are 32-bit words");
    assert!(COMMAND_WINDOW <= COMMANDS && COMMANDS.is_power_of_two() && COMPLETIONS.is_power_of_two());
    assert!(record_bytes(PAGES_PER_CHUNK_MAX) <= RECORD_WINDOW_BYTES && RECORD_WINDOW_BYTES <= ARGUMENT_BYTES);
    assert!(CARD_LINE_AT + 2 * LINE_BYTES <= COMMANDS_AT && HOST_LINE_AT + 2 * LINE_BYTES <= CARD_LINE_AT);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_in_the_docs_are_the_numbers_in_the_code() {
        assert_eq!(PAGE_BYTES, 2_105_344);
        assert_eq!(PAGES_PER_CHUNK_MAX, 1008);
        assert_eq!(CHUNKS_PER_REQUEST_MAX, 1024);
        assert_eq!(record_bytes(16), 128);
        assert_eq!(chunks_max(16), 512);
        assert_eq!(chunks_max(256), 60);
    }
}
