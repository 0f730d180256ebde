//! What a command asks for, and the flags that go with it.

/// Flag of a command: its records say what chunks are worth. Always with `Rate`, with `Store` where it is said, else
/// never.
pub(crate) const WITH_IMPORTANCE: u16 = 1;
/// Flag of a store: its chunks are put even where the store has them.
pub(crate) const AGAIN: u16 = 2;
/// Flag of a look-up: a hit needs the trailing chunks before its end only, as many as the target says.
pub(crate) const TRAILING: u16 = 4;

/// The operation that a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Nothing: an answer proves that the card lives.
    Ping,
    /// Where the longest hit ends: the leading chunks that the store has, or what a window needs. Moves nothing.
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
    /// Drains, and then the card's program ends.
    Stop,
    /// Say what chunks are worth, stored or not. Moves nothing.
    Rate,
    /// Undoes a `Drain`: new requests are taken again. `Draining` is the answer of a card that ends.
    Resume,
    /// The spans that requests waited for lately, and the late ones, as JSON text in the answer.
    Trace,
    /// An operation of a newer host. Answered `Unsupported`; the session lives on.
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
            Operation::Lookup => &[0, TRAILING],
            _ => &[0],
        }
    }

    /// Whether each chunk names pages of the session's layout.
    pub const fn takes_pages(self) -> bool {
        matches!(self, Operation::Fetch | Operation::Store)
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
