//! What is stored, byte by byte: names, shapes, the cut into blocks, the words of headers, manifests and tails. What
//! comes from outside is checked here, once. The spec is docs/formats.md.

pub(crate) mod geometry;
pub(crate) mod header;
pub(crate) mod importance;
pub(crate) mod key;
pub(crate) mod manifest;
pub(crate) mod plan;
pub(crate) mod recipe;
pub mod tail;
pub(crate) mod words;
