//! Why a message is not believed, or cannot be sent.

use std::fmt;

use super::NAME_BYTES_MAX;

/// A message that cannot be encoded or believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Shorter than its kind, or longer.
    Length { kind: u16, found: usize, expected: usize },
    /// The bytes are none of our messages.
    Magic { found: u32 },
    /// The checksum does not cover what is there.
    Checksum,
    /// The peer has another version. Answer [`Refuse::version`](super::Refuse::version).
    Version { ours: u32, theirs: u32 },
    /// A kind of message that this version does not have.
    Kind { found: u16 },
    /// A word outside its range.
    Field { what: &'static str, value: u64, limit: u64 },
    /// The geometry is outside its limits.
    Geometry(block::GeometryError),
    /// A name that is not printable UTF-8 of a fitting length.
    Name,
    /// Reserved bytes that are not zero.
    Reserved,
    /// The buffer given to encode is too small: [`super::ATTACH_MESSAGE_MAX`] always suffices.
    Room { bytes: usize, room: usize },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AttachError::Length { kind, found, expected } => {
                write!(f, "attach: message of kind {kind} has {found} bytes, expected {expected}")
            }
            AttachError::Magic { found } => write!(f, "attach: not one of our messages (magic {found:#010x})"),
            AttachError::Checksum => write!(f, "attach: message fails its checksum"),
            AttachError::Version { ours, theirs } => {
                write!(f, "attach: peer speaks version {theirs}, this is version {ours}: {}", upgrade(ours, theirs))
            }
            AttachError::Kind { found } => write!(f, "attach: unknown message kind {found}"),
            AttachError::Field { what, value, limit } => write!(f, "attach: {what} is {value}, the limit is {limit}"),
            AttachError::Geometry(error) => write!(f, "attach: {error}"),
            AttachError::Name => write!(f, "attach: a name is not 1 to {NAME_BYTES_MAX} bytes of printable text"),
            AttachError::Reserved => write!(f, "attach: reserved bytes are not zero"),
            AttachError::Room { bytes, room } => write!(f, "attach: message of {bytes} bytes in a buffer of {room}"),
        }
    }
}

impl std::error::Error for AttachError {}

/// Says which side has to be upgraded.
fn upgrade(ours: u32, theirs: u32) -> &'static str {
    if theirs < ours { "upgrade the peer" } else { "upgrade this side" }
}
