//! What is done to a chunk's elements before they are stored: a transform (elements to codes) and a codec (codes to
//! payload). A recipe is written `transform` or `transform+codec`: `q5`, `q5+lz4`, `lossless+raw`, `peak20`.
//! Formulas: docs/formats.md, "Transforms".

use crate::codec::Codec;
use crate::format::geometry::ElementType;
use crate::format::plan::Kind;
use std::fmt;
use std::str::FromStr;

/// The largest quantizer peak: codes run from 0 to 2 * peak and fit a byte.
pub const PEAK_MAX: u8 = 127;
/// The largest peak of two codes in a byte.
pub const PEAK_PACKED_MAX: u8 = 7;

/// Elements to codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transform {
    /// Elements as they are, in canonical order.
    None,
    /// Elements split in byte planes; restores every bit.
    Lossless,
    /// One byte a code, `2 * peak + 1` levels, peak 1..=127.
    Quant { peak: u8 },
    /// `2 * peak + 1` levels, peak 1..=7, two codes a byte. Smaller after Deflate than one code a byte (a symbol spans
    /// two codes, so less is lost to whole bits) and half the bytes through the engine.
    Packed { peak: u8 },
    /// The bins of CacheGen's released codec for 8B-class models, by layer and kind; scale per token over all heads.
    CacheGen,
}

impl Transform {
    pub const Q8: Self = Self::Quant { peak: 127 };
    pub const Q6: Self = Self::Quant { peak: 31 };
    pub const Q5: Self = Self::Quant { peak: 15 };
    pub const Q4: Self = Self::Quant { peak: 7 };
    pub const Q3: Self = Self::Quant { peak: 3 };
    pub const Q4P: Self = Self::Packed { peak: PEAK_PACKED_MAX };
    pub const Q3P: Self = Self::Packed { peak: 3 };

    /// The two bytes that stand for a transform in headers and keys: its number, and its peak if it has one of its own.
    pub const fn words(self) -> [u8; 2] {
        match self {
            Self::None => [0, 0],
            Self::Lossless => [1, 0],
            Self::Quant { peak } => [2, peak],
            Self::Packed { peak } => [3, peak],
            Self::CacheGen => [4, 0],
        }
    }

    pub const fn from_words(words: [u8; 2]) -> Option<Self> {
        match words {
            [0, 0] => Some(Self::None),
            [1, 0] => Some(Self::Lossless),
            [2, peak] if peak >= 1 && peak <= PEAK_MAX => Some(Self::Quant { peak }),
            [3, peak] if peak >= 1 && peak <= PEAK_PACKED_MAX => Some(Self::Packed { peak }),
            [4, 0] => Some(Self::CacheGen),
            _ => None,
        }
    }

    /// The quantizer's peak C of one layer; `None` where nothing is quantized.
    pub const fn peak(self, kind: Kind, layer: u16) -> Option<u8> {
        match self {
            Self::None | Self::Lossless => None,
            Self::Quant { peak } | Self::Packed { peak } => Some(peak),
            Self::CacheGen => Some(cachegen_bins(kind, layer) / 2 - 1),
        }
    }

    /// Whether elements become codes of a quantizer (and so have levels and scales).
    pub const fn quantizes(self) -> bool {
        !matches!(self, Self::None | Self::Lossless)
    }

    /// What the transform is for elements of this type: opaque ones are kept to the bit, and the only byte plane of
    /// elements of one byte is these elements. Blocks and keys have no other, so one recipe serves all sections.
    #[must_use]
    pub const fn for_element(self, element: ElementType) -> Self {
        let to_the_bit = !self.quantizes() || element.is_opaque();
        match self {
            Self::None => Self::None,
            _ if !to_the_bit => self,
            _ if element.bytes() == 1 => Self::None,
            _ => Self::Lossless,
        }
    }

    /// Bytes of the codes of `elements` elements of `element_bytes` each.
    pub const fn codes_bytes(self, elements: usize, element_bytes: usize) -> usize {
        match self {
            Self::None | Self::Lossless => elements * element_bytes,
            Self::Quant { .. } | Self::CacheGen => elements,
            Self::Packed { .. } => elements.div_ceil(2),
        }
    }

    /// The codec that this transform's codes are stored with unless the recipe names one: measured,
    /// docs/measurements.md.
    pub const fn default_codec(self) -> Codec {
        match self {
            Self::None => Codec::Raw,
            Self::Lossless | Self::Quant { .. } | Self::Packed { .. } | Self::CacheGen => Codec::Deflate,
        }
    }
}

/// CacheGen's bins for Mistral-7B-Instruct-v0.2 and Llama-3.1-8B-Instruct.
const fn cachegen_bins(kind: Kind, layer: u16) -> u8 {
    match kind {
        Kind::K | Kind::Kv if layer < 10 => 32,
        Kind::V if layer < 2 => 32,
        _ => 16,
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => f.write_str("none"),
            Self::Lossless => f.write_str("lossless"),
            Self::Q8 => f.write_str("q8"),
            Self::Q6 => f.write_str("q6"),
            Self::Q5 => f.write_str("q5"),
            Self::Q4 => f.write_str("q4"),
            Self::Q3 => f.write_str("q3"),
            Self::Quant { peak } => write!(f, "peak{peak}"),
            Self::Q4P => f.write_str("q4p"),
            Self::Q3P => f.write_str("q3p"),
            Self::Packed { peak } => write!(f, "packed{peak}"),
            Self::CacheGen => f.write_str("cachegen"),
        }
    }
}

/// A transform and a codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    pub transform: Transform,
    pub codec: Codec,
}

impl Recipe {
    /// The recipe with its transform for elements of this type ([`Transform::for_element`]), and the same codec.
    #[must_use]
    pub const fn for_element(self, element: ElementType) -> Self {
        Self { transform: self.transform.for_element(element), codec: self.codec }
    }
}

impl From<Transform> for Recipe {
    fn from(transform: Transform) -> Self {
        Self { transform, codec: transform.default_codec() }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.transform, self.codec)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipeError {
    Transform,
    Codec,
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transform => f.write_str(
                "transform is not one of none, lossless, q8, q6, q5, q4, q3, q4p, q3p, cachegen, peak1..peak127, \
                     packed1..packed7",
            ),
            Self::Codec => write!(f, "codec is not one of {}", Codec::ALL.map(Codec::name).join(", ")),
        }
    }
}

impl std::error::Error for RecipeError {}

impl FromStr for Transform {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, RecipeError> {
        let named = [
            Self::None,
            Self::Lossless,
            Self::Q8,
            Self::Q6,
            Self::Q5,
            Self::Q4,
            Self::Q3,
            Self::Q4P,
            Self::Q3P,
            Self::CacheGen,
        ];
        if let Some(transform) = named.into_iter().find(|t| t.to_string() == text) {
            return Ok(transform);
        }
        let general = [("peak", 2), ("packed", 3)];
        let (digits, word) = general
            .into_iter()
            .find_map(|(name, word)| Some((text.strip_prefix(name)?, word)))
            .ok_or(RecipeError::Transform)?;
        let peak = digits.parse().map_err(|_| RecipeError::Transform)?;
        Self::from_words([word, peak]).ok_or(RecipeError::Transform)
    }
}

impl FromStr for Recipe {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, RecipeError> {
        let Some((transform, codec)) = text.split_once('+') else {
            return Ok(Transform::from_str(text)?.into());
        };
        let codec = Codec::parse(codec).ok_or(RecipeError::Codec)?;
        Ok(Self { transform: transform.parse()?, codec })
    }
}

/// The elements of a layer of a block that share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Granularity {
    /// No scales: the transform does not quantize.
    None = 0,
    /// All heads of one token.
    Token = 1,
    /// One head of one token.
    TokenHead = 2,
    /// One channel (one element of one head) over the tokens of the block.
    Channel = 3,
}

impl Granularity {
    pub const ALL: [Granularity; 3] = [Granularity::Token, Granularity::TokenHead, Granularity::Channel];

    pub const fn from_word(word: u8) -> Option<Self> {
        match word {
            0 => Some(Self::None),
            1 => Some(Self::Token),
            2 => Some(Self::TokenHead),
            3 => Some(Self::Channel),
            _ => None,
        }
    }

    /// The encoder's choice: all heads of a token, for K and for V. Decided by measurement (docs/measurements.md):
    /// per channel is 1 to 10 % smaller at equal RMS error of K, but per token is smaller at equal loss of the model.
    /// Readers take any, so this may change without a new format version.
    pub const fn chosen(transform: Transform, _kind: Kind) -> Self {
        if transform.quantizes() { Self::Token } else { Self::None }
    }

    /// Scales of one layer of a block.
    pub const fn scales(self, tokens: usize, heads: usize, head_size: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Token => tokens,
            Self::TokenHead => tokens * heads,
            Self::Channel => heads * head_size,
        }
    }
}
