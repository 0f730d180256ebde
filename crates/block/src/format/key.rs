//! Names of chunks. A key is a BLAKE3 hash chained over the tokens of the prefix, under a root that separates models,
//! shapes, transforms, tenants and ranks. Equal prefixes share keys on every machine and in every process; nothing
//! here depends on a seed or on pointer values. Derivation: docs/formats.md, "Keys".

use crate::format::geometry::Geometry;
use crate::format::recipe::Recipe;
use std::fmt;
use std::str::FromStr;

/// Bytes of a chunk key.
pub const KEY_BYTES: usize = 32;
/// BLAKE3 `derive_key` context of the root. A new key version is a new context.
const ROOT_CONTEXT: &str = "kvlane 2026-11-23 chunk key root v1";

/// The name of one chunk: 256 tokens, all layers, one rank, one transform.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkKey([u8; KEY_BYTES]);

impl ChunkKey {
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkKey({self})")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyError;

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chunk key is 64 lower-case hexadecimal digits")
    }
}

impl std::error::Error for KeyError {}

impl FromStr for ChunkKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(KeyError),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != KEY_BYTES || !rest.is_empty() {
            return Err(KeyError);
        }
        let mut bytes = [0; KEY_BYTES];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

/// All that must be equal for two chunks of equal tokens to be interchangeable.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// Model name and revision, as the operator writes it.
    pub model: &'a str,
    pub geometry: Geometry,
    /// Only the transform enters the key, as it is for the geometry's elements: two codecs of the same codes restore
    /// the same elements.
    pub recipe: Recipe,
    /// Separates tenants; may be empty. Not published: without it nobody can test a guess of the tokens.
    pub salt: &'a [u8],
    pub rank: u32,
    pub ranks: u32,
}

/// Produces the keys of a prompt's chunks, one [`push`](KeyChain::push) per chunk, in order.
#[derive(Clone)]
pub struct KeyChain {
    root: [u8; KEY_BYTES],
    last: [u8; KEY_BYTES],
    chunk_tokens: usize,
}

impl fmt::Debug for KeyChain {
    /// Leaves out the root, which may hold a secret salt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyChain").field("last", &ChunkKey(self.last)).finish_non_exhaustive()
    }
}

impl KeyChain {
    pub fn new(namespace: &Namespace<'_>) -> Self {
        let mut hash = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        let mut field = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(namespace.model.as_bytes());
        field(&namespace.geometry.encode());
        field(&namespace.recipe.transform.for_element(namespace.geometry.element).words());
        field(namespace.salt);
        field(&namespace.rank.to_le_bytes());
        field(&namespace.ranks.to_le_bytes());
        Self {
            root: *hash.finalize().as_bytes(),
            last: [0; KEY_BYTES],
            chunk_tokens: namespace.geometry.chunk_tokens.into(),
        }
    }

    /// The same chain over chunks of `tokens` tokens: in a section whose chunk keeps something else than one row for
    /// each token that it is named by, such as the last of them or a state.
    #[must_use]
    pub fn covering(self, tokens: usize) -> Self {
        Self { chunk_tokens: tokens, ..self }
    }

    /// The key of the next chunk.
    ///
    /// # Panics
    /// When `tokens` is not exactly one chunk: a short chunk has no name.
    pub fn push(&mut self, tokens: &[u32]) -> ChunkKey {
        self.push_with(tokens, b"")
    }

    /// The key of the next chunk, of which `extra` says what its tokens do not: the pictures that some of them stand
    /// for. Without any it is the key of the tokens alone.
    ///
    /// # Panics
    /// As [`push`](KeyChain::push).
    pub fn push_with(&mut self, tokens: &[u32], extra: &[u8]) -> ChunkKey {
        assert_eq!(tokens.len(), self.chunk_tokens, "KeyChain::push takes exactly one chunk of tokens");
        let mut hash = blake3::Hasher::new_keyed(&self.root);
        hash.update(&self.last);
        let mut bytes = [0; 256];
        for piece in tokens.chunks(64) {
            for (slot, token) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(piece) {
                *slot = token.to_le_bytes();
            }
            hash.update(&bytes[..piece.len() * 4]);
        }
        if !extra.is_empty() {
            // A chunk's tokens are always as many, so that nothing here is taken for tokens.
            hash.update(&(extra.len() as u64).to_le_bytes());
            hash.update(extra);
        }
        self.last = *hash.finalize().as_bytes();
        ChunkKey(self.last)
    }
}
