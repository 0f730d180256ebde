//! Where token ids come from: what `--tokens` says.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Error;
use crate::kv_file::KvFile;

/// The most ids of a range or file: as many as a request can name many times over.
const TOKENS_MAX: usize = 1 << 28;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSpec {
    /// `tensor:NAME`: whole numbers of the safetensors file, row `--text` of a matrix.
    Tensor(String),
    /// `range:A..B`: A, A+1, ..., B-1.
    Range(Range<u32>),
    /// `file:PATH`: whitespace-separated ids.
    File(PathBuf),
    /// `text:PATH`: every byte is an id.
    Text(PathBuf),
}

impl FromStr for TokenSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenSpec, String> {
        let forms = "not tensor:NAME, range:A..B, file:PATH or text:PATH";
        let (kind, rest) = text.split_once(':').ok_or(forms)?;
        match kind {
            _ if rest.is_empty() => Err(forms.to_owned()),
            "tensor" => Ok(TokenSpec::Tensor(rest.to_owned())),
            "file" => Ok(TokenSpec::File(rest.into())),
            "text" => Ok(TokenSpec::Text(rest.into())),
            "range" => {
                let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a token id"));
                let (start, end) = rest.split_once("..").ok_or("a range is A..B")?;
                let range: Range<u32> = number(start)?..number(end)?;
                if range.is_empty() || range.len() > TOKENS_MAX {
                    return Err(format!("a range has from 1 to {TOKENS_MAX} ids"));
                }
                Ok(TokenSpec::Range(range))
            }
            _ => Err(forms.to_owned()),
        }
    }
}

impl fmt::Display for TokenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSpec::Tensor(name) => write!(f, "tensor:{name}"),
            TokenSpec::Range(range) => write!(f, "range:{}..{}", range.start, range.end),
            TokenSpec::File(path) => write!(f, "file:{}", path.display()),
            TokenSpec::Text(path) => write!(f, "text:{}", path.display()),
        }
    }
}

impl TokenSpec {
    /// The ids. `file` is the safetensors file that `tensor:` speaks of.
    ///
    /// # Errors
    /// Nothing to read from, or what is there are no ids.
    pub fn load(&self, file: Option<&KvFile>, text: Option<usize>) -> Result<Vec<u32>, Error> {
        match self {
            TokenSpec::Tensor(name) => match file {
                Some(file) => file.token_ids(name, text),
                None => Err(Error::input(
                    format!("--tokens {self}"),
                    "there is no file to take a tensor from",
                    "give --like FILE, or ids as range:A..B, file:PATH or text:PATH",
                )),
            },
            TokenSpec::Range(range) => Ok(range.clone().collect()),
            TokenSpec::File(path) => {
                let words = fs::read_to_string(path).map_err(Error::system("open", path))?;
                let ids = words.split_whitespace().enumerate().map(|(index, word)| {
                    let wrong = |_| {
                        let place = format!("{} word {}", path.display(), index + 1);
                        Error::input(place, format!("{word:?} is not a token id"), "give whole numbers from 0")
                    };
                    word.parse().map_err(wrong)
                });
                some(path, ids.collect::<Result<Vec<u32>, Error>>()?)
            }
            TokenSpec::Text(path) => {
                let bytes = fs::read(path).map_err(Error::system("open", path))?;
                some(path, bytes.into_iter().map(u32::from).collect())
            }
        }
    }
}

fn some(path: &std::path::Path, ids: Vec<u32>) -> Result<Vec<u32>, Error> {
    match ids.len() {
        0 => Err(Error::input(path.display(), "no token ids", "give at least one chunk of them")),
        n if n > TOKENS_MAX => {
            Err(Error::input(path.display(), format!("{n} token ids"), format!("at most {TOKENS_MAX}")))
        }
        _ => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_parse_back_and_nonsense_does_not() {
        for text in ["tensor:tokens", "range:0..512", "file:a/b", "text:prompt.txt"] {
            assert_eq!(text.parse::<TokenSpec>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "tensor",
            "tensor:",
            "range:1",
            "range:5..5",
            "range:9..3",
            "range:a..b",
            "range:0..999999999",
            "url:x",
        ] {
            assert!(bad.parse::<TokenSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn files_of_ids_and_of_text_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        fs::write(&path, "1 2\n  30\t4000000000 ").unwrap();
        assert_eq!(TokenSpec::File(path.clone()).load(None, None).unwrap(), [1, 2, 30, 4_000_000_000]);
        assert_eq!(TokenSpec::Text(path.clone()).load(None, None).unwrap()[..3], [49, 32, 50]);
        fs::write(&path, "1 -2").unwrap();
        let error = TokenSpec::File(path.clone()).load(None, None).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("word 2"), "{error}");
        fs::write(&path, "").unwrap();
        assert_eq!(TokenSpec::Text(path).load(None, None).unwrap_err().exit_code(), 2);
        assert_eq!("tensor:t".parse::<TokenSpec>().unwrap().load(None, None).unwrap_err().exit_code(), 2);
    }
}
