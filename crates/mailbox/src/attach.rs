//! The words of the attach channel: how a host introduces itself, its memory and its layout, and what the card answers.
//!
//! ```text
//! host                                       card
//!  Hello, Region (page), Region..., Layout..., Commit  ->      collected by `Intake`
//!                                     <-  Welcome | Refuse
//!  Doorbell  <->  Doorbell                                     either way, afterwards
//!  Bye       <->  Bye
//! ```
//! One message each, at most [`ATTACH_MESSAGE_MAX`] bytes, on a channel that keeps messages whole. Encoded into and decoded
//! from byte slices without allocation; every field is checked on decode. The 16-byte head and the body of `Refuse` are
//! the same in every version, so that two versions can at least tell each other apart. Byte tables: docs/mailbox.md.

use std::fmt;

use block::{Codec, GEOMETRY_BYTES, Geometry, Recipe, Transform};

use crate::layout::{BASES_MAX, Base, BaseName, Form, Order};
use crate::limits::VERSION;
use crate::words::Word;

mod intake;
pub use intake::{Attachment, Export, Intake, IntakeState};

/// What dpu-app is called where services have names (DOCA Comch), if nobody says otherwise.
pub const SERVICE_NAME: &str = "kvlane";
/// Largest message. A DOCA Comch channel carries about 4 KB.
pub const ATTACH_MESSAGE_MAX: usize = 4000;
/// KV regions of one session, beside the page.
pub const REGIONS_MAX: usize = 256;
/// Largest export blob.
pub const EXPORT_BYTES_MAX: usize = 1024;
/// Longest client, card or recipe name.
pub const NAME_BYTES_MAX: usize = 64;
/// Region index of the page itself.
pub const PAGE_REGION: u16 = u16::MAX;
/// Bases that one layout message carries.
pub const BASES_PER_MESSAGE: usize = (ATTACH_MESSAGE_MAX - HEAD_BYTES - LAYOUT_BYTES) / BASE_BYTES;

const ATTACH_MAGIC: u32 = u32::from_le_bytes(*b"kvat");
const HEAD_BYTES: usize = 16;
const HELLO_BYTES: usize = 32;
const REGION_BYTES: usize = 24;
const LAYOUT_BYTES: usize = 40;
const BASE_BYTES: usize = 16;
const COMMIT_BYTES: usize = 8;
const WELCOME_BYTES: usize = 40;
const REFUSE_BYTES: usize = 24;
const BYE_BYTES: usize = 8;
const _: () = assert!(HEAD_BYTES + HELLO_BYTES + 2 * NAME_BYTES_MAX <= ATTACH_MESSAGE_MAX);
const _: () = assert!(NAME_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(HEAD_BYTES + REGION_BYTES + EXPORT_BYTES_MAX <= ATTACH_MESSAGE_MAX);
const _: () = assert!(HEAD_BYTES + WELCOME_BYTES + 2 * NAME_BYTES_MAX <= ATTACH_MESSAGE_MAX);
const _: () = assert!(BASES_PER_MESSAGE >= 128 && REGIONS_MAX < PAGE_REGION as usize);

/// A message that cannot be encoded or believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Shorter than its kind, or longer.
    Length { kind: u16, found: usize, expected: usize },
    /// Not one of our messages at all.
    Magic { found: u32 },
    /// The checksum does not cover what is there.
    Checksum,
    /// From another version. Answer [`Refuse::version`].
    Version { ours: u32, theirs: u32 },
    /// A kind of message that this version does not have.
    Kind { found: u16 },
    /// A word outside its range.
    Field { what: &'static str, value: u64, limit: u64 },
    /// Not a geometry that can be.
    Geometry(block::GeometryError),
    /// A name that is not printable UTF-8 of a fitting length.
    Name,
    /// Reserved bytes that are not zero.
    Reserved,
    /// The buffer given to encode is too small: [`ATTACH_MESSAGE_MAX`] always suffices.
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

/// Who has to move, said by a side of version `ours`.
fn upgrade(ours: u32, theirs: u32) -> &'static str {
    if theirs < ours { "upgrade the peer" } else { "upgrade this side" }
}

/// The host introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Generation of the page that follows.
    pub generation: u64,
    /// Process, for people.
    pub pid: u32,
    /// KV regions that follow, the page not counted.
    pub region_count: u16,
    /// Shape of the cache; `None`: a control-only session, which has no regions and no layout.
    pub geometry: Option<Geometry>,
    /// How the card is to store this session's chunks; `None` leaves it to the card's configuration.
    pub recipe: Option<Recipe>,
    /// For people: 1 to [`NAME_BYTES_MAX`] printable bytes.
    pub client: &'a str,
    /// Whose quota of the card's tiers this session uses, likewise; `None`: the one of all who do not say.
    pub namespace: Option<&'a str>,
}

/// Host memory that the card may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region<'a> {
    /// 0, 1, ... in order; [`PAGE_REGION`] for the page.
    pub index: u16,
    /// Whether the card may write it. A read-only one can be stored from and not fetched to.
    pub writable: bool,
    /// Host address of the first byte, as the export blob has it. A number, never a pointer here.
    pub base: u64,
    pub bytes: u64,
    /// What the exporting device said. Sensitive: whoever has it can reach the memory.
    pub export: &'a [u8],
}

/// Some of the layout's bases, from `first` on. The form is the same in each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutPart<'a> {
    pub form: Form,
    /// Index of the first base here; K then V of each layer.
    pub first: u16,
    pub bases: Bases<'a>,
}

/// Bases to send, or as received.
#[derive(Clone, Copy)]
pub enum Bases<'a> {
    Typed(&'a [Base]),
    /// Checked by decode.
    Raw(RawBases<'a>),
}

/// Bases in their encoded form.
#[derive(Clone, Copy, Debug)]
pub struct RawBases<'a>(&'a [u8]);

impl<'a> Bases<'a> {
    pub fn count(&self) -> usize {
        match self {
            Bases::Typed(bases) => bases.len(),
            Bases::Raw(RawBases(bytes)) => bytes.len() / BASE_BYTES,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Base> + use<'a> {
        let (typed, raw) = match *self {
            Bases::Typed(bases) => (bases, [].as_slice()),
            Bases::Raw(RawBases(bytes)) => ([].as_slice(), bytes),
        };
        let raw = raw.chunks_exact(BASE_BYTES);
        typed.iter().copied().chain(raw.map(|base| Base { region: Word::get(base, 0), offset: Word::get(base, 8) }))
    }
}

impl PartialEq for Bases<'_> {
    fn eq(&self, other: &Bases<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Bases<'_> {}

impl fmt::Debug for Bases<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Cuts a layout into messages.
pub fn layout_parts<'a>(form: &Form, bases: &'a [Base]) -> impl Iterator<Item = LayoutPart<'a>> + use<'a> {
    let form = *form;
    bases.chunks(BASES_PER_MESSAGE).enumerate().map(move |(index, bases)| LayoutPart {
        form,
        first: (index * BASES_PER_MESSAGE) as u16,
        bases: Bases::Typed(bases),
    })
}

/// The host has said everything; the totals must agree with what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub region_count: u16,
    pub base_count: u16,
}

/// The card accepts, and says what it will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The card's number for this session, for people and logs.
    pub session: u32,
    /// Of the hello: this welcome is for that page.
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
    pub ours: u64,
    pub theirs: u64,
}

impl Refuse {
    pub const fn new(reason: Reason, ours: u64, theirs: u64) -> Refuse {
        Refuse { reason: reason as u16, ours, theirs }
    }

    /// To a peer of another version.
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

/// For people on the host, with what to do.
impl fmt::Display for Refuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (self.ours, self.theirs);
        f.write_str("the card refuses: ")?;
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

    /// For people.
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
            }
            Message::Welcome(welcome) => welcome.encode(body),
            Message::Refuse(refuse) => {
                refuse.reason.put(body, 0);
                refuse.ours.put(body, 8);
                refuse.theirs.put(body, 16);
            }
            Message::Doorbell => {}
            Message::Bye(farewell) => (*farewell as u16).put(body, 0),
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
                let body = body.exactly(COMMIT_BYTES)?.zero(4, 4)?.bytes;
                Message::Commit(Commit { region_count: Word::get(body, 0), base_count: Word::get(body, 2) })
            }
            5 => Message::Welcome(Welcome::decode(body)?),
            REFUSE_KIND => {
                let body = body.exactly(REFUSE_BYTES)?.zero(2, 6)?.bytes;
                Message::Refuse(Refuse {
                    reason: Word::get(body, 0),
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
            found => return Err(AttachError::Kind { found }),
        })
    }
}

/// A body on its way through the checks.
#[derive(Clone, Copy)]
struct Body<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Body<'a> {
    fn at_least(self, bytes: usize) -> Result<Body<'a>, AttachError> {
        let (found, expected) = (self.bytes.len(), bytes);
        if found < expected { Err(AttachError::Length { kind: self.kind, found, expected }) } else { Ok(self) }
    }

    fn exactly(self, bytes: usize) -> Result<Body<'a>, AttachError> {
        let (found, expected) = (self.bytes.len(), bytes);
        if found != expected { Err(AttachError::Length { kind: self.kind, found, expected }) } else { Ok(self) }
    }

    fn zero(self, at: usize, bytes: usize) -> Result<Body<'a>, AttachError> {
        if self.bytes[at..at + bytes].iter().all(|&byte| byte == 0) { Ok(self) } else { Err(AttachError::Reserved) }
    }
}

fn crc_of(message: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&message[..12]);
    crc.update(&message[16..]);
    crc.finalize()
}

fn at_most(what: &'static str, value: usize, limit: usize) -> Result<(), AttachError> {
    let (value, limit) = (value as u64, limit as u64);
    if value > limit { Err(AttachError::Field { what, value, limit }) } else { Ok(()) }
}

fn flag(what: &'static str, value: u8) -> Result<bool, AttachError> {
    at_most(what, value.into(), 1).map(|()| value == 1)
}

fn name(name: &str) -> Result<&str, AttachError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if fits { Ok(name) } else { Err(AttachError::Name) }
}

fn name_of(bytes: &[u8]) -> Result<&str, AttachError> {
    name(std::str::from_utf8(bytes).map_err(|_| AttachError::Name)?)
}

/// Flags of a hello. A recipe needs one: the words of "none, raw" are all zero.
const HAS_GEOMETRY: u8 = 1;
const HAS_RECIPE: u8 = 2;

/// Transform words and codec word.
fn recipe_of([transform, parameter, codec]: [u8; 3]) -> Result<Recipe, AttachError> {
    let unknown = |what, value: u8| AttachError::Field { what, value: value.into(), limit: 0 };
    let transform =
        Transform::from_words([transform, parameter]).ok_or(unknown("transform of the recipe", transform))?;
    let codec = Codec::from_word(codec).ok_or(unknown("codec of the recipe", codec))?;
    Ok(Recipe { transform, codec })
}

impl<'a> Hello<'a> {
    fn check(&self) -> Result<&Hello<'a>, AttachError> {
        name(self.client)?;
        self.namespace.map(name).transpose()?;
        at_most("region count", self.region_count.into(), if self.geometry.is_some() { REGIONS_MAX } else { 0 })?;
        if let Some(geometry) = self.geometry {
            geometry.check().map_err(AttachError::Geometry)?;
        }
        Ok(self)
    }

    fn name_bytes(&self) -> usize {
        self.client.len() + self.namespace.map_or(0, str::len)
    }

    fn encode(&self, body: &mut [u8]) {
        self.generation.put(body, 0);
        self.pid.put(body, 8);
        self.region_count.put(body, 12);
        body[14] = self.client.len() as u8;
        body[15] = self.namespace.map_or(0, str::len) as u8;
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        body[16] = flag(self.geometry.is_some(), HAS_GEOMETRY) | flag(self.recipe.is_some(), HAS_RECIPE);
        if let Some(recipe) = self.recipe {
            recipe.transform.words().put(body, 17);
            body[19] = recipe.codec as u8;
        }
        if let Some(geometry) = self.geometry {
            geometry.encode().put(body, 20);
        }
        let (client, namespace) = body[HELLO_BYTES..].split_at_mut(self.client.len());
        client.copy_from_slice(self.client.as_bytes());
        namespace.copy_from_slice(self.namespace.unwrap_or_default().as_bytes());
    }

    fn decode(body: Body<'a>) -> Result<Hello<'a>, AttachError> {
        let [client, namespace]: [u8; 2] = Word::get(body.at_least(HELLO_BYTES)?.bytes, 14);
        let body = body.exactly(HELLO_BYTES + usize::from(client) + usize::from(namespace))?;
        let (client, namespace) = body.bytes[HELLO_BYTES..].split_at(client.into());
        let geometry: [u8; GEOMETRY_BYTES] = Word::get(body.bytes, 20);
        let flags = body.bytes[16];
        at_most("hello flags", flags.into(), (HAS_GEOMETRY | HAS_RECIPE).into())?;
        let geometry = if flags & HAS_GEOMETRY != 0 {
            Some(Geometry::decode(&geometry).map_err(AttachError::Geometry)?)
        } else {
            body.zero(20, GEOMETRY_BYTES)?;
            None
        };
        let recipe = if flags & HAS_RECIPE != 0 {
            Some(recipe_of(Word::get(body.bytes, 17))?)
        } else {
            body.zero(17, 3)?;
            None
        };
        let hello = Hello {
            generation: Word::get(body.bytes, 0),
            pid: Word::get(body.bytes, 8),
            region_count: Word::get(body.bytes, 12),
            geometry,
            recipe,
            client: name_of(client)?,
            namespace: if namespace.is_empty() { None } else { Some(name_of(namespace)?) },
        };
        hello.check().copied()
    }
}

const _: () = assert!(20 + GEOMETRY_BYTES == HELLO_BYTES);

impl<'a> Region<'a> {
    fn check(&self) -> Result<&Region<'a>, AttachError> {
        if self.index != PAGE_REGION {
            at_most("region index", self.index.into(), REGIONS_MAX - 1)?;
        }
        at_most("export bytes", self.export.len(), EXPORT_BYTES_MAX)?;
        // Both ends are addresses: base + bytes must not wrap.
        let (value, limit) = (self.bytes, u64::MAX - self.base);
        if value == 0 || value > limit {
            return Err(AttachError::Field { what: "region bytes", value, limit });
        }
        Ok(self)
    }

    fn encode(&self, body: &mut [u8]) {
        self.index.put(body, 0);
        (self.export.len() as u16).put(body, 2);
        body[4] = self.writable.into();
        self.base.put(body, 8);
        self.bytes.put(body, 16);
        body[REGION_BYTES..].copy_from_slice(self.export);
    }

    fn decode(body: Body<'a>) -> Result<Region<'a>, AttachError> {
        let export_bytes = u16::get(body.at_least(REGION_BYTES)?.bytes, 2);
        let body = body.exactly(REGION_BYTES + usize::from(export_bytes))?.zero(5, 3)?.bytes;
        let region = Region {
            index: Word::get(body, 0),
            writable: flag("writable flag", body[4])?,
            base: Word::get(body, 8),
            bytes: Word::get(body, 16),
            export: &body[REGION_BYTES..],
        };
        region.check().copied()
    }
}

impl<'a> LayoutPart<'a> {
    fn check(&self) -> Result<&LayoutPart<'a>, AttachError> {
        at_most("bases of one message", self.bases.count(), BASES_PER_MESSAGE)?;
        at_most("bases", usize::from(self.first) + self.bases.count(), BASES_MAX)?;
        Ok(self)
    }

    fn encode(&self, body: &mut [u8]) {
        body[0] = self.form.order as u8;
        self.form.page_tokens.put(body, 2);
        self.form.page_count.put(body, 4);
        self.form.page_stride.put(body, 8);
        self.form.token_stride.put(body, 16);
        self.form.head_stride.put(body, 24);
        self.first.put(body, 32);
        (self.bases.count() as u16).put(body, 34);
        for (slot, base) in body[LAYOUT_BYTES..].chunks_exact_mut(BASE_BYTES).zip(self.bases.iter()) {
            base.region.put(slot, 0);
            base.offset.put(slot, 8);
        }
    }

    fn decode(body: Body<'a>) -> Result<LayoutPart<'a>, AttachError> {
        let count = u16::get(body.at_least(LAYOUT_BYTES)?.bytes, 34);
        let body = body.exactly(LAYOUT_BYTES + usize::from(count) * BASE_BYTES)?.zero(1, 1)?.zero(36, 4)?.bytes;
        let order = AttachError::Field { what: "layout order", value: body[0].into(), limit: 1 };
        let raw = &body[LAYOUT_BYTES..];
        if raw.chunks_exact(BASE_BYTES).any(|base| base[2..8] != [0; 6]) {
            return Err(AttachError::Reserved);
        }
        let part = LayoutPart {
            form: Form {
                order: Order::from_code(body[0]).ok_or(order)?,
                page_tokens: Word::get(body, 2),
                page_count: Word::get(body, 4),
                page_stride: Word::get(body, 8),
                token_stride: Word::get(body, 16),
                head_stride: Word::get(body, 24),
            },
            first: Word::get(body, 32),
            bases: Bases::Raw(RawBases(raw)),
        };
        part.check().copied()
    }
}

impl<'a> Welcome<'a> {
    fn encode(&self, body: &mut [u8]) {
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

    fn decode(body: Body<'a>) -> Result<Welcome<'a>, AttachError> {
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

#[cfg(test)]
mod tests;
