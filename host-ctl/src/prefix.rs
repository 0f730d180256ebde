//! Turns token ids into the names of chunks. Only whole chunks have names; tokens that fill none are left over and
//! counted.

use block::{ChunkKey, KeyChain, Namespace};

use crate::error::Error;

/// The named chunks of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    keys: Vec<ChunkKey>,
    chunk_tokens: usize,
    remainder: usize,
}

impl Prefix {
    /// Names every whole chunk of `tokens`.
    ///
    /// # Errors
    /// The model has no name: chunks of all such models would share keys (an unset variable is the usual cause).
    pub fn new(namespace: &Namespace<'_>, tokens: &[u32]) -> Result<Prefix, Error> {
        Prefix::covering(namespace, tokens, namespace.geometry.chunk_tokens.into())
    }

    /// Names every `chunk_tokens` tokens, however many rows a chunk of the geometry has ([`KeyChain::covering`]).
    ///
    /// # Errors
    /// As [`Prefix::new`], or 0 tokens.
    pub fn covering(namespace: &Namespace<'_>, tokens: &[u32], chunk_tokens: usize) -> Result<Prefix, Error> {
        Prefix::with_extras(namespace, tokens, chunk_tokens, &[])
    }

    /// The same, where chunk n is named by `extras[n]` beside its tokens ([`KeyChain::push_with`]); chunks behind the
    /// last of them have none.
    ///
    /// # Errors
    /// As [`Prefix::covering`].
    pub fn with_extras(
        namespace: &Namespace<'_>,
        tokens: &[u32],
        chunk_tokens: usize,
        extras: &[Vec<u8>],
    ) -> Result<Prefix, Error> {
        if namespace.model.trim().is_empty() {
            return Err(Error::input(
                "model",
                "an empty model name",
                "name the model and its revision: chunks of all models without a name would be taken for each other's",
            ));
        }
        if chunk_tokens == 0 {
            return Err(Error::input("chunk tokens", "0 tokens of a key", "name at least one token by a key"));
        }
        let mut chain = KeyChain::new(namespace).covering(chunk_tokens);
        let chunks = tokens.chunks_exact(chunk_tokens);
        let remainder = chunks.remainder().len();
        let extras = extras.iter().map(Vec::as_slice).chain(std::iter::repeat(&b""[..]));
        let keys = chunks.zip(extras).map(|(chunk, extra)| chain.push_with(chunk, extra)).collect();
        Ok(Prefix { keys, chunk_tokens, remainder })
    }

    /// Names of the chunks, from the prompt's start.
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
        let prefix = |tokens| Prefix::new(&namespace, tokens).unwrap();
        let (long, short) = (prefix(&tokens[..]), prefix(&tokens[..40]));
        assert_eq!((long.chunks(), long.tokens(), long.remainder()), (6, 96, 4));
        assert_eq!((short.chunks(), short.tokens(), short.remainder()), (2, 32, 8));
        assert_eq!(long.keys()[..2], short.keys()[..]);
        assert_eq!(prefix(&tokens[..15]).chunks(), 0);
    }

    #[test]
    fn a_section_whose_chunks_keep_less_is_named_by_all_tokens_before_them() {
        let geometry = Geometry::new(2, 1, 8, 16, ElementType::Bf16).unwrap();
        let namespace =
            Namespace { model: "m", geometry, recipe: Transform::Lossless.into(), salt: b"", rank: 0, ranks: 1 };
        let tokens: Vec<u32> = (0..100).collect();
        let prefix = |chunk_tokens| Prefix::covering(&namespace, &tokens, chunk_tokens);
        let wide = prefix(48).unwrap();
        assert_eq!((wide.chunks(), wide.tokens(), wide.remainder()), (2, 96, 4));
        assert!(wide.keys().iter().all(|key| !prefix(16).unwrap().keys().contains(key)));
        assert_eq!(prefix(16).unwrap(), Prefix::new(&namespace, &tokens).unwrap());
        assert!(prefix(0).is_err());
    }

    #[test]
    fn a_model_without_a_name_names_no_chunks() {
        let geometry = Geometry::new(2, 1, 8, 16, ElementType::Bf16).unwrap();
        for model in ["", " ", "\t\n", "\u{a0}"] {
            let namespace =
                Namespace { model, geometry, recipe: Transform::Lossless.into(), salt: b"", rank: 0, ranks: 1 };
            let error = Prefix::new(&namespace, &[0; 16]).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().starts_with("an empty model name"), "{error}");
        }
    }
}
