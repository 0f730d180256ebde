//! What the card answers, and how either side leaves.

use std::fmt;

use super::message::{Body, name_of};
use super::{AttachError, WELCOME_BYTES};
use crate::layout::BaseName;
use crate::limits::VERSION;
use crate::words::Word;

/// The card accepts, and says what it will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The card's number for this session, for people and logs.
    pub session: u32,
    /// Generation that the hello named: the welcome is for that page.
    pub generation: u64,
    /// Elements of the largest block, from the card's slot size.
    pub block_elements: u32,
    /// Chunks of one request that the card will work on.
    pub chunks_max: u32,
    /// Requests in flight that the card will work on; more are answered `Busy`.
    pub requests_max: u32,
    /// The recipe that this card stores with; keys depend on it.
    pub recipe: &'a str,
    /// The card's program and version, for people.
    pub card: &'a str,
}

impl<'a> Welcome<'a> {
    pub(super) fn encode(&self, body: &mut [u8]) {
        self.session.put(body, 0);
        self.generation.put(body, 8);
        self.block_elements.put(body, 16);
        self.chunks_max.put(body, 20);
        self.requests_max.put(body, 24);
        (self.recipe.len() as u16).put(body, 28);
        (self.card.len() as u16).put(body, 30);
        let (recipe, card) = body[WELCOME_BYTES..].split_at_mut(self.recipe.len());
        recipe.copy_from_slice(self.recipe.as_bytes());
        card.copy_from_slice(self.card.as_bytes());
    }

    pub(super) fn decode(body: Body<'a>) -> Result<Welcome<'a>, AttachError> {
        let head = body.at_least(WELCOME_BYTES)?.bytes;
        let (recipe, card) = (usize::from(u16::get(head, 28)), usize::from(u16::get(head, 30)));
        let body = body.exactly(WELCOME_BYTES + recipe + card)?.zero(4, 4)?.zero(32, 8)?.bytes;
        let (recipe, card) = body[WELCOME_BYTES..].split_at(recipe);
        Ok(Welcome {
            session: Word::get(body, 0),
            generation: Word::get(body, 8),
            block_elements: Word::get(body, 16),
            chunks_max: Word::get(body, 20),
            requests_max: Word::get(body, 24),
            recipe: name_of(recipe)?,
            card: name_of(card)?,
        })
    }
}

/// Why a card refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    Version = 1,
    Sessions = 2,
    Draining = 3,
    Order = 4,
    Malformed = 5,
    Region = 6,
    Layout = 7,
    Page = 8,
    Block = 9,
    Access = 10,
    Overlap = 11,
}

impl Reason {
    /// Every reason, in the order of its word.
    pub const ALL: [Reason; 11] = [
        Reason::Version,
        Reason::Sessions,
        Reason::Draining,
        Reason::Order,
        Reason::Malformed,
        Reason::Region,
        Reason::Layout,
        Reason::Page,
        Reason::Block,
        Reason::Access,
        Reason::Overlap,
    ];
}

/// The card's no. `ours` and `theirs` are from the card's side and mean what `reason` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// A [`Reason`]; a newer card's may be unknown here.
    pub reason: u16,
    /// 1 + the section that it is about; 0: the session, or its only section.
    pub section: u16,
    pub ours: u64,
    pub theirs: u64,
}

impl Refuse {
    pub const fn new(reason: Reason, ours: u64, theirs: u64) -> Refuse {
        Refuse { reason: reason as u16, section: 0, ours, theirs }
    }

    /// The same about one of `sections` sections. A session that has one only says nothing of it: hosts that know no
    /// sections read such a refusal.
    #[must_use]
    pub const fn in_section(self, index: usize, sections: usize) -> Refuse {
        Refuse { section: if sections > 1 { index as u16 + 1 } else { 0 }, ..self }
    }

    /// Refuses a peer of another version.
    pub const fn version(theirs: u32) -> Refuse {
        Refuse::new(Reason::Version, VERSION as u64, theirs as u64)
    }

    /// The reason, if this version knows it.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| *reason as u16 == self.reason)
    }

    /// Whether attaching again later may succeed with nothing changed.
    pub fn is_transient(&self) -> bool {
        matches!(self.reason(), Some(Reason::Sessions | Reason::Draining))
    }
}

/// Text for people on the host, with what to do.
impl fmt::Display for Refuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (self.ours, self.theirs);
        f.write_str("the card refuses: ")?;
        if let Some(section) = self.section.checked_sub(1) {
            write!(f, "section {section}: ")?;
        }
        match self.reason() {
            Some(Reason::Version) => {
                let side = if theirs < ours { "upgrade the host side" } else { "upgrade dpu-app on the card" };
                write!(f, "it speaks version {ours}, this host speaks {theirs}: {side}")
            }
            Some(Reason::Sessions) => write!(f, "all its {ours} sessions are taken: stop one, or raise its limit"),
            Some(Reason::Draining) => write!(f, "it is being stopped: attach again when it is back"),
            Some(Reason::Order) => write!(f, "message of kind {theirs} out of turn: a bug in the host side"),
            Some(Reason::Malformed) => write!(f, "a message it could not read: host and card builds do not match"),
            Some(Reason::Region) => {
                write!(
                    f,
                    "region {theirs} cannot be used: check its size, its export, the device it was exported \
                     for, and that it is no part of the page"
                )
            }
            Some(Reason::Layout) => {
                write!(f, "the layout does not fit the geometry or the regions: check page size, strides and offsets")
            }
            Some(Reason::Page) => write!(f, "the memory it was shown is not this session's page"),
            Some(Reason::Block) => {
                write!(f, "one token of one layer has {theirs} elements, its slots hold {ours}: raise its slot size")
            }
            Some(Reason::Overlap) => {
                let [one, other] = [ours, theirs].map(BaseName);
                write!(f, "{one} and {other} share bytes of memory: give each of them memory of its own")
            }
            Some(Reason::Access) => write!(f, "this user may not attach: check the permissions of the channel"),
            None => write!(f, "reason {} (ours {ours}, theirs {theirs}): upgrade the host side", self.reason),
        }
    }
}

/// Why a side leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Farewell {
    /// Done: all requests were answered.
    Done = 1,
    /// The program stops.
    Stopping = 2,
    /// The other side broke the rules.
    PeerError = 3,
    /// An engine failed for good.
    DeviceError = 4,
    /// The same host attached anew.
    Replaced = 5,
}

impl Farewell {
    /// Every reason, in the order of its word.
    pub const ALL: [Farewell; 5] =
        [Farewell::Done, Farewell::Stopping, Farewell::PeerError, Farewell::DeviceError, Farewell::Replaced];

    /// Text for people.
    pub const fn text(self) -> &'static str {
        match self {
            Farewell::Done => "done",
            Farewell::Stopping => "the other side stops: attach again when it is back",
            Farewell::PeerError => "the other side says that this one broke the rules of the page: please report it",
            Farewell::DeviceError => "the card's device failed: look at the card's log",
            Farewell::Replaced => "a newer session took its place",
        }
    }
}
