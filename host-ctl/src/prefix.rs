//! From token ids to the names of chunks. Only whole chunks have names; tokens that fill none are left over and
//! counted.

use block::{ChunkKey, KeyChain, Namespace};

/// The named chunks of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    keys: Vec<ChunkKey>,
    chunk_tokens: usize,
    remainder: usize,
}

impl Prefix {
    /// Names every whole chunk of `tokens`.
    pub fn new(namespace: &Namespace<'_>, tokens: &[u32]) -> Prefix {
        let chunk_tokens = usize::from(namespace.geometry.chunk_tokens);
        let mut chain = KeyChain::new(namespace);
        let chunks = tokens.chunks_exact(chunk_tokens);
        let remainder = chunks.remainder().len();
        Prefix { keys: chunks.map(|chunk| chain.push(chunk)).collect(), chunk_tokens, remainder }
    }

    /// In order, from the prompt's start.
    pub fn keys(&self) -> &[ChunkKey] {
        &self.keys
    }

    /// Whole chunks.
    pub fn chunks(&self) -> usize {
        self.keys.len()
    }

    /// Tokens in whole chunks.
    pub fn tokens(&self) -> usize {
        self.keys.len() * self.chunk_tokens
    }

    /// Tokens at the end that fill no chunk and have no name.
    pub fn remainder(&self) -> usize {
        self.remainder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{ElementType, Geometry, Transform};

    #[test]
    fn a_longer_prompt_starts_with_the_chunks_of_a_shorter_one() {
        let geometry = Geometry::new(2, 1, 8, 16, ElementType::Bf16).unwrap();
        let namespace =
            Namespace { model: "m", geometry, recipe: Transform::Lossless.into(), salt: b"", rank: 0, ranks: 1 };
        let tokens: Vec<u32> = (0..100).collect();
        let (long, short) = (Prefix::new(&namespace, &tokens), Prefix::new(&namespace, &tokens[..40]));
        assert_eq!((long.chunks(), long.tokens(), long.remainder()), (6, 96, 4));
        assert_eq!((short.chunks(), short.tokens(), short.remainder()), (2, 32, 8));
        assert_eq!(long.keys()[..2], short.keys()[..]);
        assert_eq!(Prefix::new(&namespace, &tokens[..15]).chunks(), 0);
    }
}
