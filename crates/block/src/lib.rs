//! The stored form of KV chunks: names, shapes, the cut into blocks, headers, transforms and software codecs.
//!
//! ```text
//! chunk  = a manifest and its blocks; in a file, each block at a multiple of 4096, then the tail
//! block  = [header 128][one peak byte a layer, scales][payload]          "wire": what a store holds
//! payload --codec--> codes --transform--> tile                           what a fetch does
//! ```
//!
//! Pure: no I/O, no threads, and nothing is allocated by encode or decode paths (a [`codec::Compressor`] allocates when
//! it is made). Everything that comes from outside enters by [`Header::open`] (or its steps), [`Manifest::parse`] and
//! [`tail::parse`], which refuse what is not exactly right. The spec is docs/formats.md; the oracle of the fast kernels
//! is `kernel/oracle.rs`.
#![deny(unsafe_code)]

pub mod codec;
mod compare;
mod encode;
mod format;
mod kernel;
mod restore;

pub use codec::Codec;
pub use compare::{Errors, compare, compare_at};
pub use encode::{EncodeError, Quantized, encode_tile, pack, quantize};
pub use format::geometry::{
    CHUNK_TOKENS_MAX, ElementType, GEOMETRY_BYTES, Geometry, GeometryError, HEAD_SIZE_MAX, HEADS_MAX, LAYERS_MAX,
    LONE_HEAD_SIZE_MAX, PLANES_MAX, Planes,
};
pub use format::header::{FORMAT_VERSION, HEADER_BYTES, Header, HeaderError};
pub use format::importance::Importance;
pub use format::key::{ChunkKey, KEY_BYTES, KeyChain, KeyError, Namespace};
pub use format::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError, manifest_bytes};
pub use format::plan::{BLOCK_ELEMENTS_MAX, BLOCKS_PER_CHUNK_MAX, Kind, Part, Plan, PlanError, wire_bytes_max};
pub use format::recipe::{Granularity, PEAK_MAX, PEAK_PACKED_MAX, Recipe, RecipeError, Transform};
pub use format::tail;
pub use format::words::align64;
pub use kernel::shape::TileOrder;
pub use kernel::simd::instruction_set;
pub use restore::{RestoreError, restore, restore_checked};
