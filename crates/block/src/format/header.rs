//! The 128-byte header of a wire block. It says what the block is, how it was made and how long each section is, and
//! carries two checksums: of itself with the scales, and of the codes. A header is believed only after
//! [`Header::parse`] (every field, every length) and [`Header::verify_scales`]; [`Header::open`] does all of it.
//! Byte table: docs/formats.md, "Block".

use crate::codec::Codec;
use crate::format::geometry::{GEOMETRY_BYTES, Geometry, GeometryError};
use crate::format::key::{ChunkKey, KEY_BYTES};
use crate::format::plan::{BLOCKS_PER_CHUNK_MAX, Kind, Part};
use crate::format::recipe::{Granularity, PEAK_MAX, Transform};
use crate::format::words::{align64, all_zero, put, u16_at, u32_at};
use std::fmt;
use std::ops::Range;

pub const HEADER_BYTES: usize = 128;
/// Version of blocks and of manifests. A reader takes its own version only.
pub const FORMAT_VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"KVLB";

/// Offsets of the fields; all other bytes are reserved and zero.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 4;
    pub(super) const HEADER_BYTES: usize = 6;
    pub(super) const KEY: usize = 8;
    pub(super) const GEOMETRY: usize = 40;
    pub(super) const BLOCK_INDEX: usize = 52;
    pub(super) const KIND: usize = 54;
    pub(super) const GRANULARITY: usize = 55;
    pub(super) const FIRST_LAYER: usize = 56;
    pub(super) const LAYERS: usize = 58;
    pub(super) const FIRST_TOKEN: usize = 60;
    pub(super) const TOKENS: usize = 62;
    pub(super) const TRANSFORM: usize = 64;
    pub(super) const CODEC: usize = 66;
    pub(super) const SCALE_BYTES: usize = 68;
    pub(super) const CODES_BYTES: usize = 72;
    pub(super) const PAYLOAD_BYTES: usize = 76;
    pub(super) const CODES_CRC: usize = 80;
    pub(super) const RESERVED: usize = 84;
    pub(super) const HEAD_CRC: usize = 124;
}

// The layout is pinned: moving a field is a new version.
const _: () = {
    assert!(at::GEOMETRY == at::KEY + KEY_BYTES);
    assert!(at::BLOCK_INDEX == at::GEOMETRY + GEOMETRY_BYTES);
    assert!(at::TRANSFORM == 64 && at::SCALE_BYTES.is_multiple_of(4));
    assert!(at::HEAD_CRC + 4 == HEADER_BYTES);
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    Short { bytes: usize },
    Magic,
    Version { ours: u16, theirs: u16 },
    Reserved,
    Geometry(GeometryError),
    Part,
    BlockIndex(u16),
    Transform([u8; 2]),
    Codec(u8),
    Granularity(u8),
    ScaleBytes { expected: usize, found: u32 },
    CodesBytes { expected: usize, found: u32 },
    PayloadBytes { codes: u32, found: u32 },
    WireBytes { expected: usize, found: usize },
    Level { layer: usize, peak: u8 },
    HeadCrc { expected: u32, found: u32 },
    OtherKey,
    OtherGeometry,
    OtherPart,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { bytes } => write!(f, "block header: {bytes} bytes, at least {HEADER_BYTES}"),
            Self::Magic => write!(f, "block header: not a kvlane block"),
            Self::Version { ours, theirs } => write!(f, "block header: version {theirs}, this reader is {ours}"),
            Self::Reserved => write!(f, "block header: reserved bytes are not zero"),
            Self::Geometry(e) => write!(f, "block header: {e}"),
            Self::Part => write!(f, "block header: kind, layers or tokens do not fit the geometry"),
            Self::BlockIndex(n) => write!(f, "block header: block index {n}, below {BLOCKS_PER_CHUNK_MAX}"),
            Self::Transform(w) => write!(f, "block header: transform words {w:?} are unknown, or not for its elements"),
            Self::Codec(w) => write!(f, "block header: codec word {w} is unknown"),
            Self::Granularity(w) => write!(f, "block header: granularity word {w} does not fit the transform"),
            Self::ScaleBytes { expected, found } => write!(f, "block header: {found} scale bytes, not {expected}"),
            Self::CodesBytes { expected, found } => write!(f, "block header: {found} codes bytes, not {expected}"),
            Self::PayloadBytes { codes, found } => {
                write!(f, "block header: {found} payload bytes do not fit {codes} codes bytes and the codec")
            }
            Self::WireBytes { expected, found } => write!(f, "block: {found} bytes, its header says {expected}"),
            Self::Level { layer, peak } => write!(f, "block: peak {peak} of layer {layer} does not fit the transform"),
            Self::HeadCrc { expected, found } => {
                write!(f, "block: crc-32 of header and scales is {found:08x}, the header says {expected:08x}")
            }
            Self::OtherKey => write!(f, "block: belongs to another chunk"),
            Self::OtherGeometry => write!(f, "block: made for another geometry"),
            Self::OtherPart => write!(f, "block: holds another part of its chunk"),
        }
    }
}

impl std::error::Error for HeaderError {}

impl HeaderError {
    /// Whether the error means that the bytes are not those that were stored. All other errors are about bytes whose
    /// checksum holds: another version wrote them, and can read them.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Short { .. } | Self::Magic | Self::HeadCrc { .. } | Self::WireBytes { .. } => true,
            Self::OtherKey | Self::OtherGeometry | Self::OtherPart => true,
            Self::Version { .. } | Self::Reserved | Self::Geometry(_) | Self::Part | Self::BlockIndex(_) => false,
            Self::Transform(_) | Self::Codec(_) | Self::Granularity(_) | Self::Level { .. } => false,
            Self::ScaleBytes { .. } | Self::CodesBytes { .. } | Self::PayloadBytes { .. } => false,
        }
    }

    /// Names what a reader does not understand, for those who count such blocks.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Version { .. } => "a block version",
            Self::Transform(_) => "a transform",
            Self::Codec(_) => "a codec",
            Self::Granularity(_) => "a granularity",
            _ => "words of a block header",
        }
    }
}

/// The header of a wire block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub key: ChunkKey,
    pub geometry: Geometry,
    pub part: Part,
    pub block_index: u16,
    pub transform: Transform,
    pub codec: Codec,
    pub granularity: Granularity,
    /// Bytes of peaks and scales, which follow the header.
    pub scale_bytes: u32,
    /// Bytes of the codes, after decompression.
    pub codes_bytes: u32,
    pub payload_bytes: u32,
    /// CRC-32 of the codes.
    pub codes_crc: u32,
    /// CRC-32 of the header with this field zero, then of peaks and scales.
    pub head_crc: u32,
}

impl Header {
    /// Writes the header with `head_crc` as it stands; [`Header::seal`] computes it.
    ///
    /// # Panics
    /// When `wire` is shorter than [`HEADER_BYTES`].
    pub fn encode(&self, wire: &mut [u8]) {
        let head = &mut wire[..HEADER_BYTES];
        head.fill(0);
        put(head, at::MAGIC, &MAGIC);
        put(head, at::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(head, at::HEADER_BYTES, &(HEADER_BYTES as u16).to_le_bytes());
        put(head, at::KEY, self.key.bytes());
        put(head, at::GEOMETRY, &self.geometry.encode());
        put(head, at::BLOCK_INDEX, &self.block_index.to_le_bytes());
        head[at::KIND] = self.part.kind as u8;
        head[at::GRANULARITY] = self.granularity as u8;
        put(head, at::FIRST_LAYER, &self.part.first_layer.to_le_bytes());
        put(head, at::LAYERS, &self.part.layers.to_le_bytes());
        put(head, at::FIRST_TOKEN, &self.part.first_token.to_le_bytes());
        put(head, at::TOKENS, &self.part.tokens.to_le_bytes());
        put(head, at::TRANSFORM, &self.transform.words());
        head[at::CODEC] = self.codec.word();
        put(head, at::SCALE_BYTES, &self.scale_bytes.to_le_bytes());
        put(head, at::CODES_BYTES, &self.codes_bytes.to_le_bytes());
        put(head, at::PAYLOAD_BYTES, &self.payload_bytes.to_le_bytes());
        put(head, at::CODES_CRC, &self.codes_crc.to_le_bytes());
        put(head, at::HEAD_CRC, &self.head_crc.to_le_bytes());
    }

    /// Sets `head_crc` for these peaks and scales.
    pub fn seal(&mut self, scales: &[u8]) {
        self.head_crc = self.crc(scales);
    }

    /// Reads a header and checks every field against every other. The scales are not looked at: see
    /// [`Header::verify_scales`].
    pub fn parse(wire: &[u8]) -> Result<Self, HeaderError> {
        let Some(head) = wire.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderError::Short { bytes: wire.len() });
        };
        if head[at::MAGIC..at::VERSION] != MAGIC {
            return Err(HeaderError::Magic);
        }
        let theirs = u16_at(head, at::VERSION);
        if theirs != FORMAT_VERSION {
            return Err(HeaderError::Version { ours: FORMAT_VERSION, theirs });
        }
        let size = u16_at(head, at::HEADER_BYTES) as usize;
        if size != HEADER_BYTES || head[at::CODEC + 1] != 0 || !all_zero(&head[at::RESERVED..at::HEAD_CRC]) {
            return Err(HeaderError::Reserved);
        }
        let geometry = head[at::GEOMETRY..].first_chunk::<GEOMETRY_BYTES>().expect("inside the header");
        let key = head[at::KEY..].first_chunk::<KEY_BYTES>().expect("inside the header");
        let transform = [head[at::TRANSFORM], head[at::TRANSFORM + 1]];
        let header = Self {
            key: ChunkKey::new(*key),
            geometry: Geometry::decode(geometry).map_err(HeaderError::Geometry)?,
            part: Part {
                kind: Kind::from_word(head[at::KIND]).ok_or(HeaderError::Part)?,
                first_layer: u16_at(head, at::FIRST_LAYER),
                layers: u16_at(head, at::LAYERS),
                first_token: u16_at(head, at::FIRST_TOKEN),
                tokens: u16_at(head, at::TOKENS),
            },
            block_index: u16_at(head, at::BLOCK_INDEX),
            transform: Transform::from_words(transform).ok_or(HeaderError::Transform(transform))?,
            codec: Codec::from_word(head[at::CODEC]).ok_or(HeaderError::Codec(head[at::CODEC]))?,
            granularity: Granularity::from_word(head[at::GRANULARITY])
                .ok_or(HeaderError::Granularity(head[at::GRANULARITY]))?,
            scale_bytes: u32_at(head, at::SCALE_BYTES),
            codes_bytes: u32_at(head, at::CODES_BYTES),
            payload_bytes: u32_at(head, at::PAYLOAD_BYTES),
            codes_crc: u32_at(head, at::CODES_CRC),
            head_crc: u32_at(head, at::HEAD_CRC),
        };
        header.consistent()?;
        Ok(header)
    }

    /// Whether every length follows from the part, the transform and the codec.
    fn consistent(&self) -> Result<(), HeaderError> {
        let Self { geometry, part, transform, .. } = self;
        if !part.within(geometry) {
            return Err(HeaderError::Part);
        }
        if self.block_index as usize >= BLOCKS_PER_CHUNK_MAX {
            return Err(HeaderError::BlockIndex(self.block_index));
        }
        if *transform != transform.for_element(geometry.element) {
            return Err(HeaderError::Transform(transform.words()));
        }
        if transform.quantizes() != (self.granularity != Granularity::None) {
            return Err(HeaderError::Granularity(self.granularity as u8));
        }
        let expected = part.scale_bytes(geometry, self.granularity);
        if self.scale_bytes as usize != expected {
            return Err(HeaderError::ScaleBytes { expected, found: self.scale_bytes });
        }
        let expected = transform.codes_bytes(part.elements(geometry), geometry.element.bytes());
        if self.codes_bytes as usize != expected {
            return Err(HeaderError::CodesBytes { expected, found: self.codes_bytes });
        }
        let fits = match self.codec {
            Codec::Raw => self.payload_bytes == self.codes_bytes,
            Codec::Deflate | Codec::Lz4 => (1..self.codes_bytes).contains(&self.payload_bytes),
        };
        if !fits {
            return Err(HeaderError::PayloadBytes { codes: self.codes_bytes, found: self.payload_bytes });
        }
        Ok(())
    }

    /// Whether this is the block that was asked for.
    pub fn check(
        &self,
        key: &ChunkKey,
        geometry: &Geometry,
        block_index: usize,
        part: &Part,
    ) -> Result<(), HeaderError> {
        if self.key != *key {
            return Err(HeaderError::OtherKey);
        }
        if self.geometry != *geometry {
            return Err(HeaderError::OtherGeometry);
        }
        if self.block_index as usize != block_index || self.part != *part {
            return Err(HeaderError::OtherPart);
        }
        Ok(())
    }

    /// Checks peaks and scales, and with them the header itself, against `head_crc`.
    pub fn verify_scales(&self, scales: &[u8]) -> Result<(), HeaderError> {
        if scales.len() != self.scale_bytes as usize {
            return Err(HeaderError::ScaleBytes { expected: scales.len(), found: self.scale_bytes });
        }
        let found = self.crc(scales);
        if found != self.head_crc {
            return Err(HeaderError::HeadCrc { expected: self.head_crc, found });
        }
        self.verify_peaks(scales)
    }

    /// Whether every peak is one that the transform can have.
    fn verify_peaks(&self, scales: &[u8]) -> Result<(), HeaderError> {
        if !self.transform.quantizes() {
            return Ok(());
        }
        for (layer, &peak) in scales[..self.part.layers as usize].iter().enumerate() {
            let fits = match self.transform {
                Transform::CacheGen => (1..=PEAK_MAX).contains(&peak),
                fixed => fixed.peak(self.part.kind, self.part.first_layer) == Some(peak),
            };
            if !fits {
                return Err(HeaderError::Level { layer, peak });
            }
        }
        Ok(())
    }

    /// The one door for a whole wire block: the checksum of header and scales first, so that what is not understood is
    /// not taken for damage ([`HeaderError::is_damage`]); then parse, compare with what was asked for, check the length
    /// and the peaks. The codes remain to be checked against `codes_crc` by whoever decompresses or restores them.
    pub fn open(
        wire: &[u8],
        key: &ChunkKey,
        geometry: &Geometry,
        block_index: usize,
        part: &Part,
    ) -> Result<Self, HeaderError> {
        check_sum(wire)?;
        let header = Self::parse(wire)?;
        header.check(key, geometry, block_index, part)?;
        if wire.len() != header.wire_bytes() {
            return Err(HeaderError::WireBytes { expected: header.wire_bytes(), found: wire.len() });
        }
        header.verify_peaks(&wire[header.scales_range()])?;
        Ok(header)
    }

    /// Range of peaks and scales in the wire block.
    pub fn scales_range(&self) -> Range<usize> {
        HEADER_BYTES..HEADER_BYTES + self.scale_bytes as usize
    }

    /// Range of the payload in the wire block; it starts at a multiple of 64.
    pub fn payload_range(&self) -> Range<usize> {
        let start = align64(self.scales_range().end);
        start..start + self.payload_bytes as usize
    }

    /// Bytes of the whole wire block.
    pub fn wire_bytes(&self) -> usize {
        self.payload_range().end
    }

    fn crc(&self, scales: &[u8]) -> u32 {
        let mut head = [0; HEADER_BYTES];
        Self { head_crc: 0, ..*self }.encode(&mut head);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head);
        crc.update(scales);
        crc.finalize()
    }
}

/// Checks the CRC of header and scales, of any version: magic, bytes of scales and CRC keep their places
/// (docs/upgrades.md).
fn check_sum(wire: &[u8]) -> Result<(), HeaderError> {
    let Some(head) = wire.first_chunk::<HEADER_BYTES>() else {
        return Err(HeaderError::Short { bytes: wire.len() });
    };
    if head[at::MAGIC..at::VERSION] != MAGIC {
        return Err(HeaderError::Magic);
    }
    let expected = u32_at(head, at::HEAD_CRC);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..at::HEAD_CRC]);
    crc.update(&[0; 4]);
    let scales = wire[HEADER_BYTES..].get(..u32_at(head, at::SCALE_BYTES) as usize);
    // Scales that do not fit the block: the word is wrong or the block was cut off.
    let found = scales.map(|scales| {
        crc.update(scales);
        crc.finalize()
    });
    match found {
        Some(found) if found == expected => Ok(()),
        found => Err(HeaderError::HeadCrc { expected, found: found.unwrap_or(!expected) }),
    }
}
