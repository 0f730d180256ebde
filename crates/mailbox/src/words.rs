//! The words of the page, one `repr(C)` struct per kind of 64-byte line, with its offsets pinned where it is declared.
//!
//! Fixed width, little-endian, reserved bytes named and zero. Every line but the identity starts with the same 16 bytes:
//! sequence, CRC-32 of the other 60 bytes, generation. Encoding is by value; nothing here points into shared memory.
//! Byte tables: docs/mailbox.md.

use std::fmt;
use std::mem::{offset_of, size_of};

use crate::limits::{ARGUMENT_BYTES, COMMANDS, COMPLETIONS, LINE_BYTES, MAGIC, PAGE_BYTES, VERSION};

/// A private copy of one line.
pub type Line = [u8; LINE_BYTES];

/// A stretch of the page, in bytes from its start. What the card is to copy by DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From the start of the page.
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
    /// Who the page is. Written once by the host before anyone else knows the page; `magic` is stored last.
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
        /// [`WITH_IMPORTANCE`], [`AGAIN`]; an unknown one is answered `Unsupported`.
        flags: u16 = 26,
        /// Argument area that goes with this command until its completion.
        area: u16 = 28,
        reserved: u16 = 30,
        /// Bytes of the area that hold records.
        argument_bytes: u32 = 32,
        chunk_count: u32 = 36,
        pages_per_chunk: u32 = 40,
        /// Tokens of the request to move, counted from its first chunk's first token; `u32::MAX` ends at its end.
        token_start: u32 = 44,
        token_end: u32 = 48,
        /// From when the card takes the command; 0 leaves it to the card's configuration.
        deadline_us: u32 = 52,
        /// The request that a `Cancel` is about; else 0.
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
        /// Leading whole chunks in place (fetch), stored (store) or found (lookup).
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

/// Flag of a command: its records say what chunks are worth. Always with `Rate`, with `Store` where it is said, else never.
pub(crate) const WITH_IMPORTANCE: u16 = 1;
/// Flag of a store: its chunks are put even where the store has them.
pub(crate) const AGAIN: u16 = 2;

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Nothing: an answer proves that the card lives.
    Ping,
    /// How many leading chunks the store has. Moves nothing.
    Lookup,
    /// Restore leading chunks into host pages.
    Fetch,
    /// Compress host pages and put them in the store.
    Store,
    /// Give up on `target`, which then completes as `Cancelled` (or as what it had become).
    Cancel,
    /// Counters and limits as JSON text in the answer.
    Status,
    /// The card finishes what runs and takes nothing new, from anybody.
    Drain,
    /// As `Drain`, and then the card's program ends.
    Stop,
    /// Say what chunks are worth, stored or not. Moves nothing.
    Rate,
    /// Undoes a `Drain`: new requests are taken again. `Draining` is the answer of a card that ends.
    Resume,
    /// What requests waited for lately, and which were late, as JSON text in the answer.
    Trace,
    /// From a newer host. Answered `Unsupported`; the session lives on.
    Unknown(u16),
}

impl Operation {
    /// The word on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Operation::Ping => 1,
            Operation::Lookup => 2,
            Operation::Fetch => 3,
            Operation::Store => 4,
            Operation::Cancel => 5,
            Operation::Status => 6,
            Operation::Drain => 7,
            Operation::Stop => 8,
            Operation::Rate => 9,
            Operation::Resume => 10,
            Operation::Trace => 11,
            Operation::Unknown(code) => code,
        }
    }

    /// One word for people and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Ping => "ping",
            Operation::Lookup => "lookup",
            Operation::Fetch => "fetch",
            Operation::Store => "store",
            Operation::Cancel => "cancel",
            Operation::Status => "status",
            Operation::Drain => "drain",
            Operation::Stop => "stop",
            Operation::Rate => "rate",
            Operation::Resume => "resume",
            Operation::Trace => "trace",
            Operation::Unknown(_) => "an unknown operation",
        }
    }

    /// Total: what this build does not know is `Unknown`.
    pub const fn from_code(code: u16) -> Operation {
        match code {
            1 => Operation::Ping,
            2 => Operation::Lookup,
            3 => Operation::Fetch,
            4 => Operation::Store,
            5 => Operation::Cancel,
            6 => Operation::Status,
            7 => Operation::Drain,
            8 => Operation::Stop,
            9 => Operation::Rate,
            10 => Operation::Resume,
            11 => Operation::Trace,
            code => Operation::Unknown(code),
        }
    }

    /// Whether the command names chunks.
    pub const fn takes_chunks(self) -> bool {
        matches!(self, Operation::Lookup | Operation::Fetch | Operation::Store | Operation::Rate)
    }

    /// The flags that go with it: one of these.
    pub(crate) const fn flags(self) -> &'static [u16] {
        match self {
            Operation::Store => &[0, WITH_IMPORTANCE, AGAIN, WITH_IMPORTANCE | AGAIN],
            Operation::Rate => &[WITH_IMPORTANCE],
            _ => &[0],
        }
    }

    /// Whether each chunk names pages of the session's layout.
    pub const fn takes_pages(self) -> bool {
        matches!(self, Operation::Fetch | Operation::Store)
    }
}

/// How a command ended. A miss or a partial hit is `Ok` with fewer chunks done than asked: an answer, not an error.
/// Whatever the status, the first `chunks_done` chunks are whole and right, and nothing past them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    Ok = 1,
    StoreDown = 2,
    DeviceError = 3,
    DeadlineExceeded = 4,
    Cancelled = 5,
    Corrupt = 6,
    Unsupported = 7,
    Malformed = 8,
    Busy = 9,
    Draining = 10,
    NoSpace = 11,
    ReadOnly = 12,
    NoLayout = 13,
    NotFound = 14,
    Forbidden = 15,
}

impl Status {
    /// Every status, in the order of its word.
    pub const ALL: [Status; 15] = [
        Status::Ok,
        Status::StoreDown,
        Status::DeviceError,
        Status::DeadlineExceeded,
        Status::Cancelled,
        Status::Corrupt,
        Status::Unsupported,
        Status::Malformed,
        Status::Busy,
        Status::Draining,
        Status::NoSpace,
        Status::ReadOnly,
        Status::NoLayout,
        Status::NotFound,
        Status::Forbidden,
    ];

    /// The word on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// `None`: no word of this version.
    pub const fn from_code(code: u16) -> Option<Status> {
        if code >= 1 && (code as usize) <= Status::ALL.len() { Some(Status::ALL[code as usize - 1]) } else { None }
    }

    /// One word for machines: labels, JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::StoreDown => "store_down",
            Status::DeviceError => "device_error",
            Status::DeadlineExceeded => "deadline_exceeded",
            Status::Cancelled => "cancelled",
            Status::Corrupt => "corrupt",
            Status::Unsupported => "unsupported",
            Status::Malformed => "malformed",
            Status::Busy => "busy",
            Status::Draining => "draining",
            Status::NoSpace => "no_space",
            Status::ReadOnly => "read_only",
            Status::NoLayout => "no_layout",
            Status::NotFound => "not_found",
            Status::Forbidden => "forbidden",
        }
    }

    /// Whether the same request may succeed a little later, unchanged.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Status::StoreDown | Status::DeviceError | Status::DeadlineExceeded | Status::Busy | Status::NoSpace
        )
    }

    /// What happened and what to do about it, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::StoreDown => {
                "the store did not answer: recompute this prefix and check the store that the card is given"
            }
            Status::DeviceError => {
                "an engine of the card failed and is being restarted: recompute; look at the card's log if it repeats"
            }
            Status::DeadlineExceeded => {
                "the deadline passed first: recompute; raise the deadline or lower the load if it repeats"
            }
            Status::Cancelled => "cancelled by the host",
            Status::Corrupt => {
                "a stored chunk failed its check and was not used: recompute; the next store of it replaces it"
            }
            Status::Unsupported => "this card does not know the operation: upgrade dpu-app",
            Status::Malformed => {
                "the request does not fit the session's layout: a bug in the host side, please report it"
            }
            Status::Busy => "the card has no room for another request: retry, or recompute",
            Status::Draining => "the card is being stopped: recompute, and attach again when it is back",
            Status::NoSpace => "the store is full: free space or give it more; fetches still work",
            Status::ReadOnly => "the store is read-only for this card: nothing was stored",
            Status::NoLayout => {
                "this session registered no memory: attach with a geometry and a layout to fetch or store"
            }
            Status::NotFound => "no such request: it has completed already",
            Status::Forbidden => {
                "the card takes this from its own operator only: run host-ctl on the card with --socket PATH, or start \
                 dpu-app with --allow-host-stop"
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Life of a session as its card sees it. `Steady <-> Draining`: a drain can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CardState {
    Steady = 1,
    Draining = 2,
}

impl CardState {
    /// The only ways from one to another.
    pub const fn may_become(self, next: CardState) -> bool {
        matches!((self, next), (CardState::Steady, CardState::Draining) | (CardState::Draining, CardState::Steady))
    }

    pub(crate) const fn from_code(code: u32) -> Option<CardState> {
        match code {
            1 => Some(CardState::Steady),
            2 => Some(CardState::Draining),
            _ => None,
        }
    }
}

/// Tokens of a request that are to move, counted from the first token of its first chunk: what an engine already has in
/// its own prefix cache, and the last prompt token that it recomputes anyway, are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub start: u32,
    /// Exclusive; `u32::MAX` means to the end of the last chunk.
    pub end: u32,
}

impl Tokens {
    /// All tokens of all chunks.
    pub const ALL: Tokens = Tokens { start: 0, end: u32::MAX };
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
