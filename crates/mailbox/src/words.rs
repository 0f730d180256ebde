//! The words of the page, one `repr(C)` struct per kind of 64-byte line, with its offsets pinned where it is declared.
//!
//! Fixed width, little-endian, reserved bytes named and zero. Every line but the identity starts with the same 16
//! bytes: sequence, CRC-32 of the other 60 bytes, generation. Encoding is by value; nothing here points into shared
//! memory. Byte tables: docs/mailbox.md.

use std::mem::{offset_of, size_of};

use crate::limits::{ARGUMENT_BYTES, COMMANDS, COMPLETIONS, LINE_BYTES, MAGIC, PAGE_BYTES, VERSION};

mod operation;
mod status;

pub(crate) use operation::{AGAIN, TRAILING, WITH_IMPORTANCE};
pub use operation::{Operation, Tokens};
pub use status::{CardState, Status};

/// A private copy of one line.
pub type Line = [u8; LINE_BYTES];

/// A stretch of the page, in bytes from its start. What the card is to copy by DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset from the start of the page.
    pub offset: usize,
    /// Never 0, never past the page's end.
    pub bytes: usize,
}

impl Span {
    pub(crate) fn new(offset: usize, bytes: usize) -> Span {
        assert!(
            bytes > 0 && bytes <= PAGE_BYTES && offset <= PAGE_BYTES - bytes,
            "span {offset}+{bytes} leaves the page"
        );
        Span { offset, bytes }
    }

    /// The same as an index range, for a page held as a slice.
    pub fn range(self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.bytes
    }
}

/// A little-endian word at a fixed offset.
pub(crate) trait Word: Copy {
    fn get(bytes: &[u8], at: usize) -> Self;
    fn put(self, bytes: &mut [u8], at: usize);
}

macro_rules! integer_words {
    ($($word:ty),*) => {$(
        impl Word for $word {
            fn get(bytes: &[u8], at: usize) -> $word {
                let mut raw = [0; size_of::<$word>()];
                raw.copy_from_slice(&bytes[at..at + size_of::<$word>()]);
                <$word>::from_le_bytes(raw)
            }
            fn put(self, bytes: &mut [u8], at: usize) {
                bytes[at..at + size_of::<$word>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
integer_words!(u16, u32, u64);

impl<const N: usize> Word for [u8; N] {
    fn get(bytes: &[u8], at: usize) -> [u8; N] {
        let mut raw = [0; N];
        raw.copy_from_slice(&bytes[at..at + N]);
        raw
    }
    fn put(self, bytes: &mut [u8], at: usize) {
        bytes[at..at + N].copy_from_slice(&self);
    }
}

/// Declares one line: a `repr(C)` struct, the pins of its offsets, and its encoding field by field.
macro_rules! line_words {
    ($(#[$head:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $word:ty = $at:literal,)* }) => {
        $(#[$head])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct $name { $($(#[$doc])* pub(crate) $field: $word,)* }

        const _: () = {
            assert!(size_of::<$name>() == LINE_BYTES);
            $(assert!(offset_of!($name, $field) == $at);)*
        };

        impl $name {
            pub(crate) fn encode(&self) -> Line {
                let mut line = [0; LINE_BYTES];
                $(self.$field.put(&mut line, $at);)*
                line
            }
            pub(crate) fn decode(line: &Line) -> $name {
                $name { $($field: Word::get(line, $at),)* }
            }
        }
    };
}

line_words! {
    /// Identity of the page. Written once by the host before anyone else knows the page; `magic` is stored last.
    IdentityWords {
        magic: u64 = 0,
        version: u32 = 8,
        /// CRC-32 of the other 60 bytes.
        crc: u32 = 12,
        generation: u64 = 16,
        page_bytes: u32 = 24,
        commands: u32 = 28,
        completions: u32 = 32,
        argument_bytes: u32 = 36,
        reserved: [u8; 24] = 40,
    }
}

line_words! {
    /// One face of a side's own line: asleep or not, and how far it has read.
    SideWords {
        sequence: u32 = 0,
        crc: u32 = 4,
        generation: u64 = 8,
        /// 0: awake. Else the running number of this sleep; one doorbell per number.
        asleep: u32 = 16,
        /// Lines taken from the ring that this side reads when it wrote this, modulo 2^32. For people.
        head: u32 = 20,
        /// Card: a [`CardState`]. Host: 0.
        state: u32 = 24,
        reserved: [u8; 36] = 28,
    }
}

line_words! {
    /// One command slot. Writer: host.
    CommandWords {
        sequence: u32 = 0,
        crc: u32 = 4,
        generation: u64 = 8,
        /// Chosen by the host, unique among its requests in flight, never 0.
        request: u64 = 16,
        /// An [`Operation`].
        opcode: u16 = 24,
        /// [`WITH_IMPORTANCE`], [`AGAIN`], [`TRAILING`]; an unknown one is answered `Unsupported`.
        flags: u16 = 26,
        /// Argument area that goes with this command until its completion.
        area: u16 = 28,
        /// Section that the chunks are of; 0 where none are named.
        section: u16 = 30,
        /// Bytes of the area that hold records.
        argument_bytes: u32 = 32,
        chunk_count: u32 = 36,
        pages_per_chunk: u32 = 40,
        /// Tokens of the request to move, counted from its first chunk's first token; `u32::MAX` ends at its end.
        token_start: u32 = 44,
        token_end: u32 = 48,
        /// Deadline, counted from when the card takes the command; 0: the card's configuration decides.
        deadline_us: u32 = 52,
        /// The request that a `Cancel` is about; the trailing chunks of a look-up with that flag; else 0.
        target: u64 = 56,
    }
}

line_words! {
    /// One completion slot. Writer: card.
    CompletionWords {
        sequence: u32 = 0,
        crc: u32 = 4,
        generation: u64 = 8,
        request: u64 = 16,
        /// A [`Status`].
        status: u16 = 24,
        area: u16 = 26,
        /// Leading whole chunks in place (fetch), stored (store) or found (lookup; of a window where its hit ends).
        chunks_done: u32 = 28,
        /// Commands taken when the card wrote this, modulo 2^32. Frees command slots.
        command_head: u32 = 32,
        /// Bytes of text that the card left in the area.
        answer_bytes: u32 = 36,
        wire_bytes: u64 = 40,
        restored_bytes: u64 = 48,
        elapsed_us: u32 = 56,
        /// CRC-32 of the text.
        answer_crc: u32 = 60,
    }
}

const SEQUENCE_AT: usize = 0;
const CRC_AT: usize = 4;
const GENERATION_AT: usize = 8;

fn crc_around(line: &Line, crc_at: usize) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&line[..crc_at]);
    crc.update(&line[crc_at + 4..]);
    crc.finalize()
}

/// Puts sequence, generation and CRC on a line: the last thing its writer does to its private copy.
pub(crate) fn seal(line: &mut Line, sequence: u32, generation: u64) {
    assert!(sequence != 0, "sequence 0 means never written");
    sequence.put(line, SEQUENCE_AT);
    generation.put(line, GENERATION_AT);
    crc_around(line, CRC_AT).put(line, CRC_AT);
}

/// The sequence word, believed or not.
pub(crate) fn sequence(line: &Line) -> u32 {
    Word::get(line, SEQUENCE_AT)
}

/// The generation word, for a line that [`is_whole`].
pub(crate) fn generation(line: &Line) -> u64 {
    Word::get(line, GENERATION_AT)
}

/// Whether the CRC covers what is there.
pub(crate) fn is_whole(line: &Line) -> bool {
    crc_around(line, CRC_AT) == u32::get(line, CRC_AT)
}

/// The next running number: never 0.
pub(crate) fn after(sequence: u32) -> u32 {
    sequence.checked_add(1).unwrap_or(1)
}

impl IdentityWords {
    const CRC_AT: usize = 12;

    /// The identity of a page of this build.
    pub(crate) fn new(generation: u64) -> IdentityWords {
        let mut words = IdentityWords {
            magic: MAGIC,
            version: VERSION,
            crc: 0,
            generation,
            page_bytes: PAGE_BYTES as u32,
            commands: COMMANDS as u32,
            completions: COMPLETIONS as u32,
            argument_bytes: ARGUMENT_BYTES as u32,
            reserved: [0; 24],
        };
        words.crc = crc_around(&words.encode(), Self::CRC_AT);
        words
    }

    pub(crate) fn is_whole(line: &Line) -> bool {
        crc_around(line, Self::CRC_AT) == u32::get(line, Self::CRC_AT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_sealed_line_is_seen() {
        let mut line = [0x5a; LINE_BYTES];
        seal(&mut line, 7, 0x0102_0304_0506_0708);
        assert!(is_whole(&line));
        for bit in 0..LINE_BYTES * 8 {
            let mut flipped = line;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_whole(&flipped), "bit {bit}");
        }
    }

    #[test]
    fn the_crc_leaves_out_itself_and_nothing_else() {
        let mut line = [0; LINE_BYTES];
        seal(&mut line, 1, 2);
        // CRC-32 (IEEE) of 01 00 00 00, 02 and 55 zero bytes, computed with zlib.
        assert_eq!(u32::get(&line, CRC_AT), PINNED_CRC);
        assert_eq!(sequence(&line), 1);
        assert_eq!(generation(&line), 2);
    }

    const PINNED_CRC: u32 = 0xf5eb_2029;

    #[test]
    fn running_numbers_skip_zero() {
        assert_eq!(after(0), 1);
        assert_eq!(after(u32::MAX - 1), u32::MAX);
        assert_eq!(after(u32::MAX), 1);
    }

    #[test]
    fn every_word_of_status_and_operation_comes_back() {
        for code in 0..=u16::MAX {
            assert_eq!(Operation::from_code(code).code(), code);
            if let Some(status) = Status::from_code(code) {
                assert_eq!(status.code(), code);
            }
        }
        assert_eq!(Status::from_code(0), None);
        assert_eq!(Status::from_code(16), None);
        assert!(Status::ALL.iter().all(|status| !status.text().is_empty()));
    }

    #[test]
    fn identity_words_are_at_their_places() {
        let line = IdentityWords::new(0x1122_3344_5566_7788).encode();
        assert_eq!(&line[0..8], b"kvlane\xb7\x01");
        assert_eq!(&line[8..12], &[1, 0, 0, 0]);
        assert_eq!(&line[16..24], &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(&line[24..28], &2_105_344_u32.to_le_bytes());
        assert!(IdentityWords::is_whole(&line));
        assert!(line[40..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn words_survive_a_round_trip() {
        let line: Line = std::array::from_fn(|index| index as u8 * 3 + 1);
        assert_eq!(CommandWords::decode(&line).encode(), line);
        assert_eq!(CompletionWords::decode(&line).encode(), line);
        assert_eq!(SideWords::decode(&line).encode(), line);
        assert_eq!(IdentityWords::decode(&line).encode(), line);
    }
}
