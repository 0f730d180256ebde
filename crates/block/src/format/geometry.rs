//! The shape of a section of a model's KV cache and of its chunks: element type, layers and their planes, heads, head
//! size, tokens per chunk. Every limit is a named constant here; a geometry outside the limits is refused by
//! [`Geometry::check`], which every function of this crate that takes bytes from outside calls. Byte table:
//! docs/formats.md, "Geometry".

use crate::format::plan::Kind;
use crate::format::words::{all_zero, put, u16_at};
use std::fmt;
use std::str::FromStr;

pub const LAYERS_MAX: usize = 256;
pub const HEADS_MAX: usize = 256;
/// Elements of a head where there are several.
pub const HEAD_SIZE_MAX: usize = 1024;
/// Elements of a head that is a whole row: an opaque page is long.
pub const LONE_HEAD_SIZE_MAX: usize = u16::MAX as usize;
/// Planes of the largest cache.
pub const PLANES_MAX: usize = LAYERS_MAX * Planes::KeysAndValues.kinds().len();
pub const CHUNK_TOKENS_MAX: usize = 1024;
/// Bytes of an encoded geometry.
pub const GEOMETRY_BYTES: usize = 12;

/// Type of one element of the KV cache: a number, or opaque bytes of some width, which are never quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ElementType {
    Bf16 = 1,
    F16 = 2,
    F32 = 3,
    /// One sign, four exponent and three mantissa bits, no infinity: torch's float8_e4m3fn.
    E4m3 = 4,
    /// One sign, five exponent and two mantissa bits: torch's float8_e5m2.
    E5m2 = 5,
    U8 = 6,
    U16 = 7,
    U32 = 8,
}

impl ElementType {
    /// Every element type, in the order of its word.
    pub const ALL: [ElementType; 8] = [
        ElementType::Bf16,
        ElementType::F16,
        ElementType::F32,
        ElementType::E4m3,
        ElementType::E5m2,
        ElementType::U8,
        ElementType::U16,
        ElementType::U32,
    ];

    pub const fn from_word(word: u8) -> Option<Self> {
        if word >= 1 && word as usize <= Self::ALL.len() { Some(Self::ALL[word as usize - 1]) } else { None }
    }

    pub const fn word(self) -> u8 {
        self as u8
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::E4m3 | Self::E5m2 | Self::U8 => 1,
            Self::Bf16 | Self::F16 | Self::U16 => 2,
            Self::F32 | Self::U32 => 4,
        }
    }

    /// Whether the element is bytes of which nobody here knows what they mean.
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::U8 | Self::U16 | Self::U32)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::E4m3 => "fp8_e4m3",
            Self::E5m2 => "fp8_e5m2",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.name() == name)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ElementType {
    type Err = GeometryError;

    fn from_str(name: &str) -> Result<Self, GeometryError> {
        Self::parse(name).ok_or(GeometryError::ElementName)
    }
}

/// Planes that each layer of a section has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Planes {
    /// K and V, of equal shape.
    #[default]
    KeysAndValues = 0,
    /// One: the latent of MLA, keys without values, a state, or anything opaque.
    One = 1,
}

impl Planes {
    pub const fn from_word(word: u8) -> Option<Self> {
        match word {
            0 => Some(Self::KeysAndValues),
            1 => Some(Self::One),
            _ => None,
        }
    }

    pub const fn word(self) -> u8 {
        self as u8
    }

    /// The kinds of a layer's planes, in the order in which they are stored.
    pub const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::KeysAndValues => &[Kind::K, Kind::V],
            Self::One => &[Kind::Kv],
        }
    }

    /// The layer and the kind of a plane; the other way round is [`Kind::plane`].
    pub const fn of_plane(self, plane: usize) -> (usize, Kind) {
        let kinds = self.kinds();
        (plane / kinds.len(), kinds[plane % kinds.len()])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    Layers(usize),
    Heads(usize),
    HeadSize(usize),
    ChunkTokens(usize),
    ElementWord(u8),
    ElementName,
    PlanesWord(u8),
    Reserved,
    /// An opaque page that cannot be rows of a geometry.
    Page {
        bytes: usize,
        width: usize,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layers(n) => write!(f, "layers {n} is outside 1..={LAYERS_MAX}"),
            Self::Heads(n) => write!(f, "heads {n} is outside 1..={HEADS_MAX}"),
            Self::HeadSize(n) => {
                write!(f, "head size {n} is outside 1..={HEAD_SIZE_MAX} (one head: {LONE_HEAD_SIZE_MAX})")
            }
            Self::ChunkTokens(n) => write!(f, "chunk tokens {n} is outside 1..={CHUNK_TOKENS_MAX}"),
            Self::ElementWord(w) => write!(f, "element word {w} is outside 1..={}", ElementType::ALL.len()),
            Self::ElementName => {
                let names = ElementType::ALL.map(ElementType::name).join(", ");
                write!(f, "element type is not one of {names}")
            }
            Self::PlanesWord(w) => write!(f, "planes word {w} is not 0 (K and V) or 1 (one)"),
            Self::Page { bytes, width } => write!(
                f,
                "a page of {bytes} bytes is not 1..={CHUNK_TOKENS_MAX} rows of 1..={LONE_HEAD_SIZE_MAX} elements of \
                 {width} bytes (1, 2 or 4): choose another width, or pad the page to a multiple of 4096 bytes"
            ),
            Self::Reserved => write!(f, "reserved bytes of a geometry are not zero"),
        }
    }
}

impl std::error::Error for GeometryError {}

/// The shape of a section of one rank's KV cache: layers of equal shape. `heads` are KV heads of this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    pub layers: u16,
    pub heads: u16,
    pub head_size: u16,
    pub chunk_tokens: u16,
    pub element: ElementType,
    pub planes: Planes,
}

impl Geometry {
    /// A geometry with K and V in each layer; see [`Geometry::with_planes`].
    pub fn new(
        layers: usize,
        heads: usize,
        head_size: usize,
        chunk_tokens: usize,
        element: ElementType,
    ) -> Result<Self, GeometryError> {
        let within = |n: usize, max: usize| (1..=max).contains(&n);
        if !within(layers, LAYERS_MAX) {
            return Err(GeometryError::Layers(layers));
        }
        if !within(heads, HEADS_MAX) {
            return Err(GeometryError::Heads(heads));
        }
        if !within(head_size, if heads == 1 { LONE_HEAD_SIZE_MAX } else { HEAD_SIZE_MAX }) {
            return Err(GeometryError::HeadSize(head_size));
        }
        if !within(chunk_tokens, CHUNK_TOKENS_MAX) {
            return Err(GeometryError::ChunkTokens(chunk_tokens));
        }
        Ok(Self {
            layers: layers as u16,
            heads: heads as u16,
            head_size: head_size as u16,
            chunk_tokens: chunk_tokens as u16,
            element,
            planes: Planes::KeysAndValues,
        })
    }

    #[must_use]
    pub const fn with_planes(self, planes: Planes) -> Self {
        Self { planes, ..self }
    }

    /// The geometry of layers that keep one opaque page for each chunk, a state for example, of elements of `width`
    /// bytes. A chunk is as many rows as halve most often (a power of two up to [`CHUNK_TOKENS_MAX`], if it can be),
    /// so that blocks of any size cut it; rows stand where tokens do, and `chunk_tokens` counts them.
    pub fn opaque(layers: usize, page_bytes: usize, width: usize) -> Result<Self, GeometryError> {
        let refused = GeometryError::Page { bytes: page_bytes, width };
        let element = match width {
            1 => ElementType::U8,
            2 => ElementType::U16,
            4 => ElementType::U32,
            _ => return Err(refused),
        };
        let elements = page_bytes / width;
        if elements == 0 || !page_bytes.is_multiple_of(width) {
            return Err(refused);
        }
        let halves = (1 << elements.trailing_zeros().min(CHUNK_TOKENS_MAX.ilog2())) as usize;
        let row = elements / halves;
        let times = (1..=CHUNK_TOKENS_MAX / halves)
            .find(|times| row.is_multiple_of(*times) && row / times <= LONE_HEAD_SIZE_MAX)
            .ok_or(refused)?;
        Ok(Self::new(layers, 1, row / times, halves * times, element)?.with_planes(Planes::One))
    }

    /// Checks the limits again: the fields are public.
    pub fn check(&self) -> Result<(), GeometryError> {
        Self::new(self.layers.into(), self.heads.into(), self.head_size.into(), self.chunk_tokens.into(), self.element)
            .map(|_| ())
    }

    /// Elements of one token in one plane: all heads.
    pub const fn row_elements(&self) -> usize {
        self.heads as usize * self.head_size as usize
    }

    pub const fn row_bytes(&self) -> usize {
        self.row_elements() * self.element.bytes()
    }

    /// Bytes of one plane of one chunk.
    pub const fn layer_chunk_bytes(&self) -> usize {
        self.row_bytes() * self.chunk_tokens as usize
    }

    /// Planes of all layers ([`Kind::plane`]).
    pub const fn planes(&self) -> usize {
        self.layers as usize * self.planes.kinds().len()
    }

    /// Bytes of one token in host memory, over all planes.
    pub const fn token_bytes(&self) -> usize {
        self.row_bytes() * self.planes()
    }

    /// Bytes of one chunk in host memory, over all planes.
    pub const fn chunk_bytes(&self) -> usize {
        self.layer_chunk_bytes() * self.planes()
    }

    pub fn encode(&self) -> [u8; GEOMETRY_BYTES] {
        let mut bytes = [0; GEOMETRY_BYTES];
        put(&mut bytes, 0, &self.layers.to_le_bytes());
        put(&mut bytes, 2, &self.heads.to_le_bytes());
        put(&mut bytes, 4, &self.head_size.to_le_bytes());
        put(&mut bytes, 6, &self.chunk_tokens.to_le_bytes());
        bytes[8] = self.element.word();
        bytes[9] = self.planes.word();
        bytes
    }

    pub fn decode(bytes: &[u8; GEOMETRY_BYTES]) -> Result<Self, GeometryError> {
        if !all_zero(&bytes[10..]) {
            return Err(GeometryError::Reserved);
        }
        let planes = Planes::from_word(bytes[9]).ok_or(GeometryError::PlanesWord(bytes[9]))?;
        let element = ElementType::from_word(bytes[8]).ok_or(GeometryError::ElementWord(bytes[8]))?;
        Self::new(
            u16_at(bytes, 0).into(),
            u16_at(bytes, 2).into(),
            u16_at(bytes, 4).into(),
            u16_at(bytes, 6).into(),
            element,
        )
        .map(|geometry| geometry.with_planes(planes))
    }
}
