//! The names of a chunk in Redis. The braces are a hash tag: a chunk and the puts of it have one slot of a cluster.
//!
//! ```text
//!   kvlane:{HEX}                  hash: `m` the manifest, `0` `1` ... the blocks as docs/formats.md says
//!   kvlane:{HEX}:put:NONCE        the same, unfinished; expires by itself
//! ```

use block::{ChunkKey, KEY_BYTES};

const HEAD: &[u8] = b"kvlane:{";
const PUT: &[u8] = b":put:";
const NONCE_DIGITS: usize = 16;
const CHUNK_BYTES: usize = HEAD.len() + 2 * KEY_BYTES + 1;
const NAME_BYTES: usize = CHUNK_BYTES + PUT.len() + NONCE_DIGITS;

/// The field of the manifest. Blocks have their index in decimal.
pub(super) const MANIFEST_FIELD: &[u8] = b"m";

/// A name in a buffer of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyName {
    bytes: [u8; NAME_BYTES],
    len: usize,
}

impl KeyName {
    /// Makes the name of a chunk.
    pub(super) fn of(key: &ChunkKey) -> Self {
        let mut bytes = [0; NAME_BYTES];
        bytes[..HEAD.len()].copy_from_slice(HEAD);
        digits(key.bytes(), &mut bytes[HEAD.len()..]);
        bytes[CHUNK_BYTES - 1] = b'}';
        Self { bytes, len: CHUNK_BYTES }
    }

    /// Makes the name of a put of it.
    pub(super) fn of_put(key: &ChunkKey, nonce: u64) -> Self {
        let mut name = Self::of(key);
        name.bytes[CHUNK_BYTES..CHUNK_BYTES + PUT.len()].copy_from_slice(PUT);
        digits(&nonce.to_be_bytes(), &mut name.bytes[CHUNK_BYTES + PUT.len()..]);
        name.len = NAME_BYTES;
        name
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The key of a chunk's name; `None`: another name.
    pub(super) fn parse(name: &[u8]) -> Option<ChunkKey> {
        let hex = name.strip_prefix(HEAD)?.strip_suffix(b"}")?;
        std::str::from_utf8(hex).ok()?.parse().ok()
    }
}

fn digits(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

/// The slot of a chunk in a cluster.
pub(super) fn slot_of(key: &ChunkKey) -> u16 {
    redis_protocol::redis_keyslot(KeyName::of(key).bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_has_the_slot_of_its_chunk() {
        let key = ChunkKey::new(std::array::from_fn(|i| i as u8));
        let (name, put) = (KeyName::of(&key), KeyName::of_put(&key, 0xab));
        let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        assert_eq!(name.bytes(), format!("kvlane:{{{hex}}}").as_bytes());
        assert_eq!(put.bytes(), format!("kvlane:{{{hex}}}:put:00000000000000ab").as_bytes());
        assert_eq!(redis_protocol::redis_keyslot(put.bytes()), slot_of(&key));
        assert_eq!(KeyName::parse(name.bytes()), Some(key));
        assert_eq!(KeyName::parse(put.bytes()), None);
    }
}
