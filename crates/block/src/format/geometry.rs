//! The shape of a model's KV cache and of its chunks: element type, layers, heads, head size, tokens per chunk.
//! Every limit is a named constant here; a geometry outside the limits is refused by [`Geometry::check`], which
//! every function of this crate that takes bytes from outside calls. Byte table: docs/formats.md, "Geometry".

use crate::format::plan::Kind;
use crate::format::words::{all_zero, put, u16_at};
use std::fmt;
use std::str::FromStr;

pub const LAYERS_MAX: usize = 256;
pub const HEADS_MAX: usize = 256;
pub const HEAD_SIZE_MAX: usize = 1024;
/// Planes of the largest cache.
pub const PLANES_MAX: usize = LAYERS_MAX * Kind::ALL.len();
pub const CHUNK_TOKENS_MAX: usize = 1024;
/// Bytes of an encoded geometry.
pub const GEOMETRY_BYTES: usize = 12;

/// Type of one number of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ElementType {
    Bf16 = 1,
    F16 = 2,
    F32 = 3,
}

impl ElementType {
    pub const ALL: [ElementType; 3] = [ElementType::Bf16, ElementType::F16, ElementType::F32];

    pub const fn from_word(word: u8) -> Option<Self> {
        match word {
            1 => Some(Self::Bf16),
            2 => Some(Self::F16),
            3 => Some(Self::F32),
            _ => None,
        }
    }

    pub const fn word(self) -> u8 {
        self as u8
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    Layers(usize),
    Heads(usize),
    HeadSize(usize),
    ChunkTokens(usize),
    ElementWord(u8),
    ElementName,
    Reserved,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layers(n) => write!(f, "layers {n} is outside 1..={LAYERS_MAX}"),
            Self::Heads(n) => write!(f, "heads {n} is outside 1..={HEADS_MAX}"),
            Self::HeadSize(n) => write!(f, "head size {n} is outside 1..={HEAD_SIZE_MAX}"),
            Self::ChunkTokens(n) => write!(f, "chunk tokens {n} is outside 1..={CHUNK_TOKENS_MAX}"),
            Self::ElementWord(w) => write!(f, "element word {w} is not 1 (bf16), 2 (f16) or 3 (f32)"),
            Self::ElementName => write!(f, "element type is not bf16, f16 or f32"),
            Self::Reserved => write!(f, "reserved bytes of a geometry are not zero"),
        }
    }
}

impl std::error::Error for GeometryError {}

/// The shape of one rank's KV cache. `heads` are KV heads of this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    pub layers: u16,
    pub heads: u16,
    pub head_size: u16,
    pub chunk_tokens: u16,
    pub element: ElementType,
}

impl Geometry {
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
        if !within(head_size, HEAD_SIZE_MAX) {
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
        })
    }

    /// Checks the limits again: the fields are public.
    pub fn check(&self) -> Result<(), GeometryError> {
        Self::new(self.layers.into(), self.heads.into(), self.head_size.into(), self.chunk_tokens.into(), self.element)
            .map(|_| ())
    }

    /// Elements of K (or V) of one token in one layer: all heads.
    pub const fn row_elements(&self) -> usize {
        self.heads as usize * self.head_size as usize
    }

    pub const fn row_bytes(&self) -> usize {
        self.row_elements() * self.element.bytes()
    }

    /// Bytes of K (or V) of one layer of one chunk.
    pub const fn layer_chunk_bytes(&self) -> usize {
        self.row_bytes() * self.chunk_tokens as usize
    }

    /// Planes of the cache: K and V of each layer ([`Kind::plane`]).
    pub const fn planes(&self) -> usize {
        self.layers as usize * Kind::ALL.len()
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
        bytes
    }

    pub fn decode(bytes: &[u8; GEOMETRY_BYTES]) -> Result<Self, GeometryError> {
        if !all_zero(&bytes[9..]) {
            return Err(GeometryError::Reserved);
        }
        let element = ElementType::from_word(bytes[8]).ok_or(GeometryError::ElementWord(bytes[8]))?;
        Self::new(
            u16_at(bytes, 0).into(),
            u16_at(bytes, 2).into(),
            u16_at(bytes, 4).into(),
            u16_at(bytes, 6).into(),
            element,
        )
    }
}
