//! One message: its head, its checksum, and which body it has.

use super::{
    ATTACH_MAGIC, ATTACH_MESSAGE_MAX, AttachError, BASE_BYTES, BYE_BYTES, COMMIT_BYTES, Farewell, HEAD_BYTES,
    HELLO_BYTES, Hello, LAYOUT_BYTES, LayoutPart, NAME_BYTES_MAX, REFUSE_BYTES, REGION_BYTES, Refuse, Region,
    SECTION_BYTES, SectionShape, WELCOME_BYTES, Welcome,
};
use crate::limits::VERSION;
use crate::words::Word;

/// The host has said everything; the totals must agree with what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub region_count: u16,
    /// Bases of all sections.
    pub base_count: u16,
    /// Sections after the first.
    pub further_sections: u16,
}

/// Any message of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Hello(Hello<'a>),
    Region(Region<'a>),
    Layout(LayoutPart<'a>),
    Commit(Commit),
    Welcome(Welcome<'a>),
    Refuse(Refuse),
    /// Look at the page.
    Doorbell,
    Bye(Farewell),
    Section(SectionShape),
}

const REFUSE_KIND: u16 = 6;

impl<'a> Message<'a> {
    /// The word that says which.
    pub const fn kind(&self) -> u16 {
        match self {
            Message::Hello(_) => 1,
            Message::Region(_) => 2,
            Message::Layout(_) => 3,
            Message::Commit(_) => 4,
            Message::Welcome(_) => 5,
            Message::Refuse(_) => REFUSE_KIND,
            Message::Doorbell => 7,
            Message::Bye(_) => 8,
            Message::Section(_) => 9,
        }
    }

    /// Writes the message to the front of `out` and returns that part.
    pub fn encode<'o>(&self, out: &'o mut [u8]) -> Result<&'o [u8], AttachError> {
        let bytes = HEAD_BYTES + self.body_bytes()?;
        let room = out.len();
        let out = out.get_mut(..bytes).ok_or(AttachError::Room { bytes, room })?;
        out.fill(0);
        ATTACH_MAGIC.put(out, 0);
        self.kind().put(out, 4);
        VERSION.put(out, 8);
        self.encode_body(&mut out[HEAD_BYTES..]);
        crc_of(out).put(out, 12);
        Ok(out)
    }

    /// Bytes of the body; all that can be wrong with a message of ours.
    fn body_bytes(&self) -> Result<usize, AttachError> {
        Ok(match self {
            Message::Hello(hello) => HELLO_BYTES + hello.check()?.name_bytes(),
            Message::Region(region) => REGION_BYTES + region.check()?.export.len(),
            Message::Layout(part) => LAYOUT_BYTES + part.check()?.bases.count() * BASE_BYTES,
            Message::Commit(_) => COMMIT_BYTES,
            Message::Welcome(welcome) => WELCOME_BYTES + name(welcome.recipe)?.len() + name(welcome.card)?.len(),
            Message::Refuse(_) => REFUSE_BYTES,
            Message::Doorbell => 0,
            Message::Bye(_) => BYE_BYTES,
            Message::Section(section) => section.check().map(|_| SECTION_BYTES)?,
        })
    }

    fn encode_body(&self, body: &mut [u8]) {
        match self {
            Message::Hello(hello) => hello.encode(body),
            Message::Region(region) => region.encode(body),
            Message::Layout(part) => part.encode(body),
            Message::Commit(commit) => {
                commit.region_count.put(body, 0);
                commit.base_count.put(body, 2);
                commit.further_sections.put(body, 4);
            }
            Message::Welcome(welcome) => welcome.encode(body),
            Message::Refuse(refuse) => {
                refuse.reason.put(body, 0);
                refuse.section.put(body, 2);
                refuse.ours.put(body, 8);
                refuse.theirs.put(body, 16);
            }
            Message::Doorbell => {}
            Message::Bye(farewell) => (*farewell as u16).put(body, 0),
            Message::Section(section) => section.encode(body),
        }
    }

    /// Checks and reads one received message. Never panics, whatever the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Message<'a>, AttachError> {
        if bytes.len() < HEAD_BYTES || bytes.len() > ATTACH_MESSAGE_MAX {
            return Err(AttachError::Length { kind: 0, found: bytes.len(), expected: HEAD_BYTES });
        }
        let (magic, kind, theirs) = (u32::get(bytes, 0), u16::get(bytes, 4), u32::get(bytes, 8));
        if magic != ATTACH_MAGIC {
            return Err(AttachError::Magic { found: magic });
        }
        if crc_of(bytes) != u32::get(bytes, 12) {
            return Err(AttachError::Checksum);
        }
        if theirs != VERSION && kind != REFUSE_KIND {
            return Err(AttachError::Version { ours: VERSION, theirs });
        }
        if u16::get(bytes, 6) != 0 {
            return Err(AttachError::Reserved);
        }
        let body = Body { kind, bytes: &bytes[HEAD_BYTES..] };
        Ok(match kind {
            1 => Message::Hello(Hello::decode(body)?),
            2 => Message::Region(Region::decode(body)?),
            3 => Message::Layout(LayoutPart::decode(body)?),
            4 => {
                let body = body.exactly(COMMIT_BYTES)?.zero(6, 2)?.bytes;
                Message::Commit(Commit {
                    region_count: Word::get(body, 0),
                    base_count: Word::get(body, 2),
                    further_sections: Word::get(body, 4),
                })
            }
            5 => Message::Welcome(Welcome::decode(body)?),
            REFUSE_KIND => {
                let body = body.exactly(REFUSE_BYTES)?.zero(4, 4)?.bytes;
                Message::Refuse(Refuse {
                    reason: Word::get(body, 0),
                    section: Word::get(body, 2),
                    ours: Word::get(body, 8),
                    theirs: Word::get(body, 16),
                })
            }
            7 => {
                body.exactly(0)?;
                Message::Doorbell
            }
            8 => {
                let body = body.exactly(BYE_BYTES)?.zero(2, 6)?.bytes;
                let code = u16::get(body, 0);
                let limit = Farewell::ALL.len() as u64;
                let farewell = Farewell::ALL.into_iter().find(|farewell| *farewell as u16 == code);
                Message::Bye(farewell.ok_or(AttachError::Field { what: "farewell", value: code.into(), limit })?)
            }
            9 => Message::Section(SectionShape::decode(body)?),
            found => return Err(AttachError::Kind { found }),
        })
    }
}

/// A body on its way through the checks.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    pub(super) kind: u16,
    pub(super) bytes: &'a [u8],
}

impl<'a> Body<'a> {
    pub(super) fn at_least(self, bytes: usize) -> Result<Body<'a>, AttachError> {
        let (found, expected) = (self.bytes.len(), bytes);
        if found < expected { Err(AttachError::Length { kind: self.kind, found, expected }) } else { Ok(self) }
    }

    pub(super) fn exactly(self, bytes: usize) -> Result<Body<'a>, AttachError> {
        let (found, expected) = (self.bytes.len(), bytes);
        if found != expected { Err(AttachError::Length { kind: self.kind, found, expected }) } else { Ok(self) }
    }

    pub(super) fn zero(self, at: usize, bytes: usize) -> Result<Body<'a>, AttachError> {
        if self.bytes[at..at + bytes].iter().all(|&byte| byte == 0) { Ok(self) } else { Err(AttachError::Reserved) }
    }
}

pub(super) fn crc_of(message: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&message[..12]);
    crc.update(&message[16..]);
    crc.finalize()
}

pub(super) fn at_most(what: &'static str, value: usize, limit: usize) -> Result<(), AttachError> {
    let (value, limit) = (value as u64, limit as u64);
    if value > limit { Err(AttachError::Field { what, value, limit }) } else { Ok(()) }
}

pub(super) fn flag(what: &'static str, value: u8) -> Result<bool, AttachError> {
    at_most(what, value.into(), 1).map(|()| value == 1)
}

pub(super) fn name(name: &str) -> Result<&str, AttachError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if fits { Ok(name) } else { Err(AttachError::Name) }
}

pub(super) fn name_of(bytes: &[u8]) -> Result<&str, AttachError> {
    name(std::str::from_utf8(bytes).map_err(|_| AttachError::Name)?)
}
