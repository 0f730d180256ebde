//! What the engine thread asks of its workers, and what they answer: small copies with tickets, never bytes.

use block::{Header, HeaderError, Plan, TileOrder};
use mailbox::{Status, Tokens};

use crate::pipeline::slots::Ticket;
use store::{ResponsibleParty, StoreError, Why};

/// A place of the table of chunks in progress. It is also the chunk's seat in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat(pub u16);

/// Kind of worker that does a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrewKind {
    /// Asks the store what needs no block: look-ups never wait behind reads.
    Ask,
    Fetch,
    Dequantize,
    Encode,
}

impl CrewKind {
    pub const ALL: [Self; 4] = [Self::Ask, Self::Fetch, Self::Dequantize, Self::Encode];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ask => "look-up",
            Self::Fetch => "fetch",
            Self::Dequantize => "dequantize",
            Self::Encode => "encode",
        }
    }
}

/// One piece of work. Answered by exactly one [`Done`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Counts the leading keys that the store has. For the worker that asks.
    Lookup { session: u16 },
    /// Tells the store that the chunks of a prefix were used together, and first what their host says that they are
    /// worth, if it says so: what [`Self::Rate`] does for a rating. For the worker that asks.
    Touch { session: u16 },
    /// Tells the store what a session's host says that chunks are worth: those of its look-up's keys. For the worker
    /// that asks.
    Rate { session: u16 },
    /// Opens the seat's chunk and reads its manifest; `anew`: by another way than before. For fetch workers.
    Open { seat: Seat, anew: bool },
    /// Reads one block into the slot's wire area and checks header and scales. For fetch workers.
    Read { slot: Ticket, seat: Seat, block: u16 },
    /// Gives the seat's chunk back to the store, and tells it why the chunk is bad, if it is. For fetch workers.
    Close { seat: Seat, bad: Option<Why> },
    /// Inflates in software and checks the CRC. For dequantize workers.
    Inflate { slot: Ticket },
    /// Dequantizes into the slot's tile; `check` asks for the codes' CRC in the same pass. For dequantize workers.
    Restore { slot: Ticket, order: TileOrder, from_wire: bool, check: bool },
    /// Compares what came back from the pages with what the slot holds; `tokens` of its chunk moved. For dequantize
    /// workers.
    Compare { slot: Ticket, seat: Seat, block: u16, from: Restored, tokens: Tokens },
    /// Asks whether the chunk is there already and starts to put it if not. For encode workers.
    Begin { seat: Seat },
    /// Quantizes, compresses and puts one block. For encode workers.
    Encode { slot: Ticket, seat: Seat, block: u16 },
    /// Publishes the chunk. For encode workers.
    Commit { seat: Seat },
    /// Gives the put up. For encode workers.
    Abort { seat: Seat },
}

impl Job {
    /// Returns the kind of worker that does it.
    #[must_use]
    pub fn crew(&self) -> CrewKind {
        match self {
            Self::Lookup { .. } | Self::Touch { .. } | Self::Rate { .. } => CrewKind::Ask,
            Self::Open { .. } | Self::Read { .. } | Self::Close { .. } => CrewKind::Fetch,
            Self::Inflate { .. } | Self::Restore { .. } | Self::Compare { .. } => CrewKind::Dequantize,
            Self::Begin { .. } | Self::Encode { .. } | Self::Commit { .. } | Self::Abort { .. } => CrewKind::Encode,
        }
    }

    /// Names it for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "look-up",
            Self::Touch { .. } => "note of use",
            Self::Rate { .. } => "rating",
            Self::Open { .. } => "open",
            Self::Read { .. } => "read",
            Self::Close { .. } => "close",
            Self::Inflate { .. } => "inflate",
            Self::Restore { .. } => "dequantize",
            Self::Compare { .. } => "compare",
            Self::Begin { .. } => "begin of a put",
            Self::Encode { .. } => "put of a block",
            Self::Commit { .. } => "commit",
            Self::Abort { .. } => "end of a put",
        }
    }

    /// The seat whose chunk it is for; a slot's block has it in the slot's table.
    #[must_use]
    pub fn seat(&self) -> Option<Seat> {
        match *self {
            Self::Open { seat, .. }
            | Self::Read { seat, .. }
            | Self::Close { seat, .. }
            | Self::Compare { seat, .. }
            | Self::Begin { seat }
            | Self::Encode { seat, .. }
            | Self::Commit { seat }
            | Self::Abort { seat } => Some(seat),
            Self::Lookup { .. }
            | Self::Touch { .. }
            | Self::Rate { .. }
            | Self::Inflate { .. }
            | Self::Restore { .. } => None,
        }
    }
}

/// What was found instead of what should be there. If the same is found when all is read anew, it is what is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// The check that failed.
    pub what: &'static str,
    /// CRC-32 of the bytes that failed it: it tells apart any two that differ in few bits.
    pub digest: u32,
}

impl Evidence {
    #[must_use]
    pub fn of(what: &'static str, bytes: &[u8]) -> Self {
        Self { what, digest: crc32fast::hash(bytes) }
    }
}

/// Facts that the engine thread needs of a block that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockFacts {
    pub codec: block::Codec,
    pub payload_start: usize,
    pub payload_bytes: usize,
    pub codes_bytes: usize,
    pub codes_crc: u32,
}

impl BlockFacts {
    #[must_use]
    pub fn of(header: &Header) -> Self {
        let payload = header.payload_range();
        Self {
            codec: header.codec,
            payload_start: payload.start,
            payload_bytes: payload.len(),
            codes_bytes: header.codes_bytes as usize,
            codes_crc: header.codes_crc,
        }
    }
}

/// Place of the bytes for the host after [`Job::Restore`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restored {
    Tile,
    /// The block holds the elements as they are, already in the order of the pages: from this byte of the wire area on.
    Wire {
        start: usize,
    },
}

/// The answer to a [`Job`].
#[derive(Clone, Copy, Debug)]
pub enum Done {
    Touched {
        session: u16,
    },
    Rated {
        session: u16,
    },
    Looked {
        session: u16,
        found: Result<usize, Failure>,
    },
    Opened {
        seat: Seat,
        blocks: Result<(Plan, u16), Failure>,
    },
    /// The chunk is open, but its manifest is wrong.
    Misread {
        seat: Seat,
        failure: Failure,
    },
    Read {
        slot: Ticket,
        facts: Result<BlockFacts, Failure>,
    },
    Closed {
        seat: Seat,
    },
    Inflated {
        slot: Ticket,
        result: Result<(), Failure>,
    },
    Restored {
        slot: Ticket,
        from: Result<Restored, Failure>,
    },
    Compared {
        slot: Ticket,
        same: bool,
    },
    /// `true`: started; `false`: the store has the chunk already.
    Began {
        seat: Seat,
        started: Result<bool, Failure>,
    },
    Encoded {
        slot: Ticket,
        wire_bytes: Result<u32, Failure>,
    },
    Committed {
        seat: Seat,
        result: Result<(), Failure>,
    },
    Aborted {
        seat: Seat,
    },
}

/// Reason for which a chunk ends before it is done. `Copy`, so that it travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The store has no such chunk (any more): an answer, not a fault.
    Miss,
    /// Damaged bytes; proven, where a request hears of it.
    Corrupt(Evidence),
    /// Undamaged, but with something that this card does not understand or has no room for: as good as a miss.
    Foreign(&'static str),
    Store(StoreError),
    Device(doca::Error),
    /// What the DMA engine moved was not what it was given, each time.
    Unverified,
    Deadline,
    Cancelled,
    /// A page number outside the session's layout.
    Malformed,
    /// The session ended.
    Gone,
    Draining,
}

impl Failure {
    /// Maps it to the status word that the host sees; a miss is `Ok` with fewer chunks.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Miss | Self::Foreign(_) => Status::Ok,
            Self::Corrupt(_) => Status::Corrupt,
            Self::Store(StoreError::Late { .. }) | Self::Deadline => Status::DeadlineExceeded,
            Self::Store(StoreError::Miss) => Status::Ok,
            Self::Store(StoreError::Corrupt { .. }) => Status::Corrupt,
            Self::Store(StoreError::Full { .. }) => Status::NoSpace,
            Self::Store(StoreError::ReadOnly) => Status::ReadOnly,
            // Ours to ask and not ours to have: the log and `store-check` say why.
            Self::Store(StoreError::Denied { .. }) => Status::StoreDown,
            Self::Store(error) if error.blame() == ResponsibleParty::Store => Status::StoreDown,
            Self::Store(_) => Status::Unsupported,
            Self::Device(_) | Self::Unverified => Status::DeviceError,
            Self::Cancelled | Self::Gone => Status::Cancelled,
            Self::Malformed => Status::Malformed,
            Self::Draining => Status::Draining,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Miss => Self::Miss,
            StoreError::Corrupt { what, value } => Self::Corrupt(Evidence::of(what, &value.to_le_bytes())),
            StoreError::Foreign { what, .. } => Self::Foreign(what),
            error => Self::Store(error),
        }
    }
}

impl From<(HeaderError, &[u8])> for Failure {
    /// Takes what [`Header::open`] says of these bytes.
    fn from((error, wire): (HeaderError, &[u8])) -> Self {
        if error.is_damage() {
            Self::Corrupt(Evidence::of("a block's header", wire))
        } else {
            Self::Foreign(error.kind())
        }
    }
}
