//! A chunk's table of contents: what chunk it is, how it was cut, and how long each block is. It has a fixed capacity
//! and needs no heap. It refuses a plan that does not cover the geometry exactly and a length that no block of that
//! part can have. Byte table: docs/formats.md, "Manifest".

use crate::format::geometry::{GEOMETRY_BYTES, Geometry, GeometryError};
use crate::format::header::{FORMAT_VERSION, HEADER_BYTES};
use crate::format::importance::Importance;
use crate::format::key::{ChunkKey, KEY_BYTES};
use crate::format::plan::{BLOCKS_PER_CHUNK_MAX, Plan, PlanError, wire_bytes_max};
use crate::format::words::{put, u16_at, u32_at};
use std::fmt;

const MAGIC: [u8; 4] = *b"KVLM";
const HEAD_BYTES: usize = 64;

mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 4;
    pub(super) const HEAD_BYTES: usize = 6;
    pub(super) const KEY: usize = 8;
    pub(super) const GEOMETRY: usize = 40;
    pub(super) const LAYERS_PER_BLOCK: usize = 52;
    pub(super) const TOKENS_PER_BLOCK: usize = 54;
    pub(super) const BLOCK_COUNT: usize = 56;
    pub(super) const IMPORTANCE: usize = 58;
    pub(super) const CRC: usize = 60;
}

const _: () = {
    assert!(at::GEOMETRY == at::KEY + KEY_BYTES);
    assert!(at::LAYERS_PER_BLOCK == at::GEOMETRY + GEOMETRY_BYTES);
    assert!(at::CRC + 4 == HEAD_BYTES);
};

/// Bytes of a manifest of `block_count` blocks.
pub const fn manifest_bytes(block_count: usize) -> usize {
    HEAD_BYTES + 4 * block_count
}

pub const MANIFEST_BYTES_MAX: usize = manifest_bytes(BLOCKS_PER_CHUNK_MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    Bytes { expected: usize, found: usize },
    Magic,
    Version { ours: u16, theirs: u16 },
    Head { bytes: u16 },
    Crc { expected: u32, found: u32 },
    Geometry(GeometryError),
    Plan(PlanError),
    BlockCount { expected: usize, found: usize },
    Length { block: usize, bytes: u32 },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { expected, found } => write!(f, "manifest: {found} bytes, not {expected}"),
            Self::Magic => write!(f, "manifest: not a kvlane manifest"),
            Self::Version { ours, theirs } => write!(f, "manifest: version {theirs}, this reader is {ours}"),
            Self::Head { bytes } => write!(f, "manifest: lengths from byte {bytes} on, not {HEAD_BYTES}"),
            Self::Crc { expected, found } => write!(f, "manifest: crc-32 is {found:08x}, it says {expected:08x}"),
            Self::Geometry(e) => write!(f, "manifest: {e}"),
            Self::Plan(e) => write!(f, "manifest: {e}"),
            Self::BlockCount { expected, found } => write!(f, "manifest: {found} blocks, its plan makes {expected}"),
            Self::Length { block, bytes } => write!(f, "manifest: block {block} cannot be {bytes} bytes"),
        }
    }
}

impl std::error::Error for ManifestError {}

impl ManifestError {
    /// Whether the error means that the bytes are not those that were stored. All other errors are about manifests
    /// whose checksum holds: another version wrote them, and can read them.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Bytes { .. } | Self::Magic | Self::Crc { .. })
    }

    /// Names what a reader does not understand, for those who count such manifests.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Version { .. } => "a manifest version",
            _ => "words of a manifest",
        }
    }
}

/// A chunk's table of contents. About 4 KiB; keep it where requests are kept.
#[derive(Clone, Debug)]
pub struct Manifest {
    key: ChunkKey,
    geometry: Geometry,
    plan: Plan,
    importance: Importance,
    block_count: u16,
    lengths: [u32; BLOCKS_PER_CHUNK_MAX],
}

impl Manifest {
    /// A manifest of blocks of these wire lengths.
    pub fn new(key: ChunkKey, geometry: Geometry, plan: Plan, lengths: &[u32]) -> Result<Self, ManifestError> {
        plan.check(&geometry).map_err(ManifestError::Plan)?;
        let expected = plan.block_count(&geometry);
        if lengths.len() != expected {
            return Err(ManifestError::BlockCount { expected, found: lengths.len() });
        }
        let mut manifest = Self {
            key,
            geometry,
            plan,
            importance: Importance::NEUTRAL,
            block_count: expected as u16,
            lengths: [0; BLOCKS_PER_CHUNK_MAX],
        };
        for (block, &bytes) in lengths.iter().enumerate() {
            let part = plan.part(&geometry, block).expect("below the plan's block count");
            if bytes as usize <= HEADER_BYTES || bytes as usize > wire_bytes_max(&geometry, &part) {
                return Err(ManifestError::Length { block, bytes });
            }
            manifest.lengths[block] = bytes;
        }
        Ok(manifest)
    }

    /// The same, with what the host says that the chunk is worth.
    #[must_use]
    pub fn with_importance(self, importance: Importance) -> Self {
        Self { importance, ..self }
    }

    /// Writes the manifest to the start of `bytes` and returns how many bytes it took: [`manifest_bytes`].
    ///
    /// # Panics
    /// When `bytes` is shorter than that.
    pub fn encode(&self, bytes: &mut [u8]) -> usize {
        let len = manifest_bytes(self.block_count());
        let bytes = &mut bytes[..len];
        bytes.fill(0);
        put(bytes, at::MAGIC, &MAGIC);
        put(bytes, at::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(bytes, at::HEAD_BYTES, &(HEAD_BYTES as u16).to_le_bytes());
        put(bytes, at::KEY, self.key.bytes());
        put(bytes, at::GEOMETRY, &self.geometry.encode());
        put(bytes, at::LAYERS_PER_BLOCK, &self.plan.layers_per_block.to_le_bytes());
        put(bytes, at::TOKENS_PER_BLOCK, &self.plan.tokens_per_block.to_le_bytes());
        put(bytes, at::BLOCK_COUNT, &self.block_count.to_le_bytes());
        put(bytes, at::IMPORTANCE, &self.importance.word().to_le_bytes());
        for (slot, length) in bytes[HEAD_BYTES..].as_chunks_mut::<4>().0.iter_mut().zip(self.lengths()) {
            *slot = length.to_le_bytes();
        }
        let crc = crc_of(bytes);
        put(bytes, at::CRC, &crc.to_le_bytes());
        len
    }

    /// The one door for manifests. `bytes` may be longer than the manifest, but then what is not understood is damage.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else {
            return Err(ManifestError::Bytes { expected: HEAD_BYTES, found: bytes.len() });
        };
        if head[at::MAGIC..at::VERSION] != MAGIC {
            return Err(ManifestError::Magic);
        }
        // The code is where it is in all versions, and of all bytes, so that neither is taken for the other: damage and
        // what is not understood.
        let (whole, expected) = (crc_of(bytes), u32_at(head, at::CRC));
        let foreign =
            |error| Err(if whole == expected { error } else { ManifestError::Crc { expected, found: whole } });
        let theirs = u16_at(head, at::VERSION);
        if theirs != FORMAT_VERSION {
            return foreign(ManifestError::Version { ours: FORMAT_VERSION, theirs });
        }
        let bytes_before = u16_at(head, at::HEAD_BYTES);
        if usize::from(bytes_before) != HEAD_BYTES {
            return foreign(ManifestError::Head { bytes: bytes_before });
        }
        let found = u16_at(head, at::BLOCK_COUNT) as usize;
        let Some(bytes) = bytes.get(..manifest_bytes(found)).filter(|_| found <= BLOCKS_PER_CHUNK_MAX) else {
            return foreign(ManifestError::BlockCount { expected: (bytes.len() - HEAD_BYTES) / 4, found });
        };
        let crc = crc_of(bytes);
        if crc != expected {
            return Err(ManifestError::Crc { expected, found: crc });
        }
        let geometry = head[at::GEOMETRY..].first_chunk::<GEOMETRY_BYTES>().expect("inside the head");
        let key = head[at::KEY..].first_chunk::<KEY_BYTES>().expect("inside the head");
        let plan = Plan {
            layers_per_block: u16_at(head, at::LAYERS_PER_BLOCK),
            tokens_per_block: u16_at(head, at::TOKENS_PER_BLOCK),
        };
        let mut lengths = [0; BLOCKS_PER_CHUNK_MAX];
        for (length, word) in lengths.iter_mut().zip(bytes[HEAD_BYTES..].as_chunks::<4>().0) {
            *length = u32::from_le_bytes(*word);
        }
        let geometry = Geometry::decode(geometry).map_err(ManifestError::Geometry)?;
        let importance = Importance::from_word(u16_at(head, at::IMPORTANCE));
        Ok(Self::new(ChunkKey::new(*key), geometry, plan, &lengths[..found])?.with_importance(importance))
    }

    pub fn key(&self) -> &ChunkKey {
        &self.key
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn importance(&self) -> Importance {
        self.importance
    }

    pub fn block_count(&self) -> usize {
        self.block_count.into()
    }

    /// Wire bytes of each block.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths[..self.block_count()]
    }
}

/// CRC-32 of a manifest with its CRC field taken as zero.
fn crc_of(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..at::CRC]);
    crc.update(&[0; 4]);
    crc.update(&bytes[at::CRC + 4..]);
    crc.finalize()
}
