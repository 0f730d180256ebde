//! How a chunk is cut into blocks. Blocks come in one order: group of layers, then kind (K before V), then ranges of
//! tokens. A plan follows from the geometry and the largest block a slot can hold; the manifest records it, so that a
//! reader with other slots still knows what it looks at. Spec: docs/formats.md, "Plan".

use crate::format::geometry::{Geometry, GeometryError, Planes};
use crate::format::recipe::{Granularity, Transform};
use crate::format::words::align64;
use std::fmt;

pub const BLOCKS_PER_CHUNK_MAX: usize = 1024;
/// The most elements of one block.
pub const BLOCK_ELEMENTS_MAX: usize = 1 << 22;

/// What a plane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    K = 0,
    V = 1,
    /// All that a layer keeps, in its one plane ([`Planes::One`]). Transforms that know K and V treat it as K.
    Kv = 2,
}

impl Kind {
    /// Every kind, in the order of its word.
    pub const ALL: [Kind; 3] = [Kind::K, Kind::V, Kind::Kv];

    pub const fn from_word(word: u8) -> Option<Self> {
        if (word as usize) < Self::ALL.len() { Some(Self::ALL[word as usize]) } else { None }
    }

    /// The planes of a layer that has one of this kind.
    pub const fn planes(self) -> Planes {
        match self {
            Self::K | Self::V => Planes::KeysAndValues,
            Self::Kv => Planes::One,
        }
    }

    /// Place among the planes of a layer.
    pub const fn place(self) -> usize {
        match self {
            Self::K | Self::Kv => 0,
            Self::V => 1,
        }
    }

    /// Place of a layer's plane among all planes of a cache: K before V, layer after layer.
    pub const fn plane(self, layer: usize) -> usize {
        layer * self.planes().kinds().len() + self.place()
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::K => "K",
            Self::V => "V",
            Self::Kv => "KV",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    Geometry(GeometryError),
    /// No number of tokens made by halving a chunk fits the block.
    NoFit {
        row_elements: usize,
        block_elements_max: usize,
    },
    BlocksPerChunk(usize),
    /// Words of a plan that do not cut this geometry into whole blocks.
    Words {
        layers_per_block: u16,
        tokens_per_block: u16,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(e) => write!(f, "plan: {e}"),
            Self::NoFit { row_elements, block_elements_max } => write!(
                f,
                "plan: no halving of the chunk's tokens fits {block_elements_max} elements at {row_elements} a token"
            ),
            Self::BlocksPerChunk(n) => write!(f, "plan: {n} blocks a chunk, at most {BLOCKS_PER_CHUNK_MAX}"),
            Self::Words { layers_per_block, tokens_per_block } => {
                write!(
                    f,
                    "plan: {layers_per_block} layers and {tokens_per_block} tokens a block do not cut this geometry"
                )
            }
        }
    }
}

impl std::error::Error for PlanError {}

impl From<GeometryError> for PlanError {
    fn from(e: GeometryError) -> Self {
        Self::Geometry(e)
    }
}

/// The cut. The last group of layers may be shorter; ranges of tokens are all equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    pub layers_per_block: u16,
    pub tokens_per_block: u16,
}

impl Plan {
    /// The largest even blocks of at most `block_elements_max` elements: several layers with all tokens, or one layer
    /// with the tokens halved until they fit.
    pub fn choose(geometry: &Geometry, block_elements_max: usize) -> Result<Self, PlanError> {
        geometry.check()?;
        let block_elements_max = block_elements_max.min(BLOCK_ELEMENTS_MAX);
        let (layers, row) = (geometry.layers as usize, geometry.row_elements());
        let mut tokens = geometry.chunk_tokens as usize;
        let mut layers_per_block = 1;
        if tokens * row <= block_elements_max {
            let most = block_elements_max / (tokens * row);
            layers_per_block = layers.div_ceil(layers.div_ceil(most));
        }
        while tokens * row > block_elements_max {
            if !tokens.is_multiple_of(2) {
                return Err(PlanError::NoFit { row_elements: row, block_elements_max });
            }
            tokens /= 2;
        }
        let plan = Self { layers_per_block: layers_per_block as u16, tokens_per_block: tokens as u16 };
        plan.check(geometry)?;
        Ok(plan)
    }

    /// Whether this plan cuts `geometry` into whole blocks within the limits: for plans that come from outside.
    pub fn check(&self, geometry: &Geometry) -> Result<(), PlanError> {
        geometry.check()?;
        let Self { layers_per_block, tokens_per_block } = *self;
        let whole = (1..=geometry.layers).contains(&layers_per_block)
            && (1..=geometry.chunk_tokens).contains(&tokens_per_block)
            && geometry.chunk_tokens.is_multiple_of(tokens_per_block)
            && (layers_per_block == 1 || tokens_per_block == geometry.chunk_tokens)
            && layers_per_block as usize * tokens_per_block as usize * geometry.row_elements() <= BLOCK_ELEMENTS_MAX;
        if !whole {
            return Err(PlanError::Words { layers_per_block, tokens_per_block });
        }
        match self.block_count(geometry) {
            n if n <= BLOCKS_PER_CHUNK_MAX => Ok(()),
            n => Err(PlanError::BlocksPerChunk(n)),
        }
    }

    /// Blocks of one chunk.
    pub const fn block_count(&self, geometry: &Geometry) -> usize {
        let groups = geometry.layers.div_ceil(self.layers_per_block) as usize;
        groups * geometry.planes.kinds().len() * self.ranges(geometry)
    }

    /// The part that block `index` holds; `None` past the last.
    pub fn part(&self, geometry: &Geometry, index: usize) -> Option<Part> {
        if index >= self.block_count(geometry) {
            return None;
        }
        let ranges = self.ranges(geometry);
        let (group, kind) = geometry.planes.of_plane(index / ranges);
        let first_layer = group as u16 * self.layers_per_block;
        Some(Part {
            kind,
            first_layer,
            layers: self.layers_per_block.min(geometry.layers - first_layer),
            first_token: (index % ranges) as u16 * self.tokens_per_block,
            tokens: self.tokens_per_block,
        })
    }

    /// The largest part of any block; slots are sized for it.
    pub fn largest(&self, geometry: &Geometry) -> Part {
        self.part(geometry, 0).expect("a checked plan has a first block, and no block is larger")
    }

    const fn ranges(&self, geometry: &Geometry) -> usize {
        (geometry.chunk_tokens / self.tokens_per_block) as usize
    }
}

/// The content of one block: planes of one kind of a range of layers, a range of the chunk's tokens, all heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    pub kind: Kind,
    pub first_layer: u16,
    pub layers: u16,
    pub first_token: u16,
    pub tokens: u16,
}

impl Part {
    pub const fn elements(&self, geometry: &Geometry) -> usize {
        self.layers as usize * self.tokens as usize * geometry.row_elements()
    }

    /// Bytes of the elements: a tile, and the most that codes take.
    pub const fn tile_bytes(&self, geometry: &Geometry) -> usize {
        self.elements(geometry) * geometry.element.bytes()
    }

    /// Bytes of levels and scales: one peak byte a layer, then the scales.
    pub const fn scale_bytes(&self, geometry: &Geometry, granularity: Granularity) -> usize {
        if matches!(granularity, Granularity::None) {
            return 0;
        }
        let scales = granularity.scales(self.tokens as usize, geometry.heads as usize, geometry.head_size as usize);
        self.layers as usize * (1 + scales * geometry.element.bytes())
    }

    /// Whether the part lies inside the geometry and a block may be that large.
    pub fn within(&self, geometry: &Geometry) -> bool {
        self.kind.planes() == geometry.planes
            && self.layers >= 1
            && self.tokens >= 1
            && self.first_layer as usize + self.layers as usize <= geometry.layers as usize
            && self.first_token as usize + self.tokens as usize <= geometry.chunk_tokens as usize
            && self.elements(geometry) <= BLOCK_ELEMENTS_MAX
    }
}

/// The most bytes that a wire block of this part takes, whatever its recipe: the size of a slot's wire area.
pub fn wire_bytes_max(geometry: &Geometry, part: &Part) -> usize {
    let as_is = crate::HEADER_BYTES + part.tile_bytes(geometry);
    let largest = Transform::Q8.for_element(geometry.element);
    if !largest.quantizes() {
        return as_is;
    }
    let codes = largest.codes_bytes(part.elements(geometry), geometry.element.bytes());
    let quantized = Granularity::ALL.map(|g| align64(crate::HEADER_BYTES + part.scale_bytes(geometry, g)) + codes);
    quantized.into_iter().fold(as_is, usize::max)
}
