//! What a peer can do wrong. Any of these ends its session and does nothing to anyone else; none of them can be caused
//! by load, by a slow store or by a failing engine.

use std::fmt;

/// The other side of a page broke the rules. Values are as found on the private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// A line stayed torn for longer than any honest writer takes.
    Torn { what: &'static str, copies: u32 },
    /// A whole line out of turn: a runaway or replayed cursor.
    Sequence { what: &'static str, expected: u32, found: u32 },
    /// A whole line of another life of the page.
    Generation { what: &'static str, expected: u64, found: u64 },
    /// A word outside its range.
    Range { what: &'static str, value: u64, limit: u64 },
    /// Reserved bytes that are not zero.
    Reserved { what: &'static str },
    /// A command for an argument area that an unfinished command owns.
    AreaInUse { area: u16 },
    /// A request number that is 0 or already in flight.
    Request { request: u64 },
    /// A completion for a request that is not in flight, or not with that area.
    Unasked { request: u64, area: u16 },
    /// A chunk record whose CRC does not cover what is there.
    Record { index: u32 },
    /// The identity line is not of a page that this build can use.
    Identity { what: &'static str, ours: u64, theirs: u64 },
    /// A copy of another size than was asked for. Ours, or the device's: never the peer's bytes.
    Window { expected: usize, found: usize },
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PeerError::Torn { what, copies } => write!(f, "peer: {what} still torn after {copies} copies"),
            PeerError::Sequence { what, expected, found } => {
                write!(f, "peer: {what} has sequence {found}, expected {expected}")
            }
            PeerError::Generation { what, expected, found } => {
                write!(f, "peer: {what} is of generation {found:#x}, this page is {expected:#x}")
            }
            PeerError::Range { what, value, limit } => write!(f, "peer: {what} is {value}, the limit is {limit}"),
            PeerError::Reserved { what } => write!(f, "peer: reserved bytes of {what} are not zero"),
            PeerError::AreaInUse { area } => write!(f, "peer: argument area {area} belongs to an unfinished command"),
            PeerError::Request { request } => write!(f, "peer: request {request} is zero or already in flight"),
            PeerError::Unasked { request, area } => {
                write!(f, "peer: completion for request {request} in area {area}, which is not in flight")
            }
            PeerError::Record { index } => write!(f, "peer: chunk record {index} fails its checksum"),
            PeerError::Identity { what, ours, theirs } => {
                write!(f, "peer: page identity: {what} is {theirs:#x}, ours is {ours:#x}")
            }
            PeerError::Window { expected, found } => write!(f, "copy of {found} bytes where {expected} were asked for"),
        }
    }
}

impl std::error::Error for PeerError {}
