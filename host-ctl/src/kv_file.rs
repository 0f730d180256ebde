//! Safetensors files with a KV cache in them, for the card to read straight from the page cache.
//!
//! The header is parsed by the `safetensors` crate; its bounds against the file are checked here, because nothing of
//! the data is read here: the file is mapped read-only, exported, and its tensor described as a layout of pages.
//! Refuses what is damaged, truncated, of another type or shape, with what to do.
//!
//! Shapes: `[layers, 2, tokens, heads, head size]`, or the same with a number of texts in front. 0 of "2" is K, 1 is V.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{ElementType, Geometry, Kind, Part, Planes};
use doca::{Access, Mapping};
use mailbox::layout::{Base, Form, Order};
use mailbox::quoted;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::Error;
use crate::memory::{Memory, RegisteredMapping};
use crate::unique::Unique;

/// Longest header that is read: as much as the safetensors crate takes.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Length word in front of the header.
const LENGTH_BYTES: u64 = 8;
/// Names of tensors that a message lists.
const NAMES_SHOWN: usize = 12;

/// An open file whose header is sound and whose data is all there.
#[derive(Debug)]
pub struct KvFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// First byte of the data.
    data_at: u64,
    metadata: Metadata,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// What a KV tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape {
    pub layers: usize,
    pub tokens: usize,
    pub heads: usize,
    pub head_size: usize,
    pub element: ElementType,
}

impl TensorShape {
    /// The geometry with chunks of this many tokens.
    ///
    /// # Errors
    /// What is outside the limits.
    pub fn geometry(&self, chunk_tokens: usize) -> Result<Geometry, block::GeometryError> {
        Geometry::new(self.layers, self.heads, self.head_size, chunk_tokens, self.element)
    }

    /// Bytes of K (or V) of one token in one layer.
    pub fn row_bytes(&self) -> usize {
        self.heads * self.head_size * self.element.bytes()
    }

    /// K and V of each layer.
    pub fn planes(&self) -> usize {
        self.layers * Planes::KeysAndValues.kinds().len()
    }

    /// Bytes of all of it. Cannot overflow for a tensor that lies in a file.
    pub fn bytes(&self) -> u64 {
        self.planes() as u64 * self.tokens as u64 * self.row_bytes() as u64
    }
}

/// A KV tensor (of one text) and where it lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvTensor {
    pub shape: TensorShape,
    /// Bytes from the file's start.
    pub offset: u64,
    /// Texts that the tensor holds; `None` without that dimension.
    pub texts: Option<usize>,
}

impl KvTensor {
    /// Where row `token` of one layer's K or V lies.
    pub fn row_offset(&self, layer: usize, kind: Kind, token: usize) -> u64 {
        let row = kind.plane(layer) as u64 * self.shape.tokens as u64 + token as u64;
        self.offset + row * self.shape.row_bytes() as u64
    }
}

impl KvFile {
    /// Opens and checks the header.
    ///
    /// # Errors
    /// Not there, not a regular file, not safetensors, damaged, truncated.
    pub fn open(path: &Path) -> Result<KvFile, Error> {
        let file = File::open(path).map_err(Error::system("open", path))?;
        let found = file.metadata().map_err(Error::system("fstat", path))?;
        let wrong = |what: String| Error::input(path.display(), what, "give a safetensors file that is whole");
        if !found.is_file() {
            return Err(wrong("not a regular file".to_owned()));
        }
        let bytes = found.len();
        if bytes < LENGTH_BYTES {
            return Err(wrong(format!("{bytes} bytes are too few for a safetensors file")));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact_at(&mut length, 0).map_err(Error::system("read", path))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX || header_bytes > bytes - LENGTH_BYTES {
            let what = format!(
                "its header would be {header_bytes} bytes in a file of {bytes}: damaged, truncated or another format"
            );
            return Err(wrong(what));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, LENGTH_BYTES).map_err(Error::system("read", path))?;
        let damaged = |error: serde_json::Error| wrong(format!("damaged header: {error}"));
        serde_json::from_slice::<Unique>(&header).map_err(damaged)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(damaged)?;
        let data_at = LENGTH_BYTES + header_bytes;
        let kv_file = KvFile { path: path.to_owned(), file, bytes, data_at, metadata };
        kv_file.check()?;
        Ok(kv_file)
    }

    /// Every tensor lies in the file and is as long as its shape says; all of them together are the file.
    fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Error::input(self.path.display(), what, "give a safetensors file that is whole");
        let data_bytes = self.bytes - self.data_at;
        let mut end = 0;
        let mut tensors: Vec<_> = self.metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        for (name, info) in tensors {
            let (start, stop) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let bits = info.shape.iter().try_fold(info.dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64));
            if start != end || stop < start || bits.map(|bits| bits.div_ceil(8)) != Some(stop - start) {
                return Err(wrong(format!(
                    "damaged header: tensor {} is not as long as its shape says",
                    quoted(&name)
                )));
            }
            end = stop;
        }
        if end > data_bytes {
            return Err(wrong(format!("truncated: {data_bytes} bytes of data, its header says {end}")));
        }
        if end < data_bytes {
            return Err(wrong(format!("{} bytes behind the last tensor", data_bytes - end)));
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = self
            .metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| Tensor {
                name,
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
                bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            })
            .collect();
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        tensors
    }

    /// What the file holds instead, the first few by name.
    fn names(&self) -> String {
        let mut names: Vec<String> = self.metadata.tensors().into_keys().collect();
        names.sort_unstable();
        let shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(|name| shown(name)).collect();
        match names.len() {
            0 => "it has none".to_owned(),
            count if count > shown.len() => format!("it has {count}: {}, ...", shown.join(", ")),
            _ => format!("it has {}", shown.join(", ")),
        }
    }

    /// Finds a KV tensor. `text` chooses one of several; the first by default.
    ///
    /// # Errors
    /// No such tensor, another type or shape, or no such text.
    pub fn kv(&self, tensor: &str, text: Option<usize>) -> Result<KvTensor, Error> {
        let Some(info) = self.metadata.info(tensor) else {
            return Err(Error::input(
                self.path.display(),
                format!("no tensor {}", quoted(tensor)),
                format!("{}: choose with --tensor", self.names()),
            ));
        };
        let place = format!("{} tensor {}", self.path.display(), quoted(tensor));
        let element = match info.dtype {
            Dtype::BF16 => ElementType::Bf16,
            Dtype::F16 => ElementType::F16,
            Dtype::F32 => ElementType::F32,
            Dtype::F8_E4M3 => ElementType::E4m3,
            Dtype::F8_E5M2 => ElementType::E5m2,
            Dtype::U8 => ElementType::U8,
            Dtype::U16 => ElementType::U16,
            Dtype::U32 => ElementType::U32,
            other => {
                let fix = "convert it to BF16, F16, F32, F8_E4M3, F8_E5M2, U8, U16 or U32";
                return Err(Error::input(place, format!("type {other:?}"), fix));
            }
        };
        let (texts, inner) = match info.shape[..] {
            [layers, 2, tokens, heads, head_size] => (None, [layers, tokens, heads, head_size]),
            [texts, layers, 2, tokens, heads, head_size] => (Some(texts), [layers, tokens, heads, head_size]),
            _ => {
                let what = format!("shape {:?}", info.shape);
                let fix = "needs [layers, 2, tokens, heads, head size], or the same with a number of texts in front";
                return Err(Error::input(place, what, fix));
            }
        };
        let [layers, tokens, heads, head_size] = inner;
        let shape = TensorShape { layers, tokens, heads, head_size, element };
        let index = match (texts, text) {
            (None, None | Some(0)) => 0,
            (None, Some(text)) => {
                return Err(Error::input(place, format!("holds one text, not number {text}"), "leave --text out"));
            }
            (Some(texts), text) if text.unwrap_or(0) < texts => text.unwrap_or(0),
            (Some(texts), text) => {
                let what = format!("holds {texts} texts, not number {}", text.unwrap_or(0));
                return Err(Error::input(place, what, "choose --text from 0"));
            }
        };
        shape.geometry(1).map_err(|error| Error::input(&place, error, "such a cache cannot be stored"))?;
        if tokens == 0 {
            return Err(Error::input(place, "no tokens", "give a tensor with at least one chunk"));
        }
        let offset = self.data_at + info.data_offsets.0 as u64 + index as u64 * shape.bytes();
        Ok(KvTensor { shape, offset, texts })
    }

    /// Reads token ids from a tensor of whole numbers: all of a vector, or row `text` of a matrix.
    ///
    /// # Errors
    /// No such tensor, another type or shape, a negative id.
    pub fn token_ids(&self, tensor: &str, text: Option<usize>) -> Result<Vec<u32>, Error> {
        let Some(info) = self.metadata.info(tensor) else {
            return Err(Error::input(
                self.path.display(),
                format!("no tensor {}", quoted(tensor)),
                format!("{}: choose with --tokens tensor:NAME", self.names()),
            ));
        };
        let place = format!("{} tensor {}", self.path.display(), quoted(tensor));
        let (rows, tokens) = match info.shape[..] {
            [tokens] => (1, tokens),
            [rows, tokens] => (rows, tokens),
            _ => {
                return Err(Error::input(
                    place,
                    format!("shape {:?}", info.shape),
                    "token ids are [tokens] or [texts, tokens]",
                ));
            }
        };
        let row = if info.shape.len() == 1 { 0 } else { text.unwrap_or(0) };
        if row >= rows {
            return Err(Error::input(place, format!("has {rows} rows, not number {row}"), "choose --text from 0"));
        }
        let each = match info.dtype {
            Dtype::U8 => 1,
            Dtype::U16 => 2,
            Dtype::U32 | Dtype::I32 => 4,
            Dtype::I64 | Dtype::U64 => 8,
            other => {
                return Err(Error::input(
                    place,
                    format!("type {other:?}"),
                    "token ids are U8, U16, U32, I32, I64 or U64",
                ));
            }
        };
        let mut bytes = vec![0; tokens * each];
        let at = self.data_at + info.data_offsets.0 as u64 + (row * tokens * each) as u64;
        self.read(&mut bytes, at)?;
        bytes
            .chunks_exact(each)
            .map(|word| {
                let mut wide = [0; 8];
                wide[..each].copy_from_slice(word);
                u32::try_from(u64::from_le_bytes(wide))
                    .ok()
                    .filter(|&id| info.dtype != Dtype::I32 || id <= i32::MAX as u32)
                    .ok_or_else(|| {
                        Error::input(&place, "a token id is negative or above 4294967295", "check the tensor")
                    })
            })
            .collect()
    }

    /// Copies bytes of the file: for comparing and generating, not on any path of the card.
    ///
    /// # Errors
    /// The system's, or a file that became shorter.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_exact_at(out, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Damaged {
                place: self.path.display().to_string(),
                what: "the file became shorter while it was read".to_owned(),
            },
            _ => Error::System { call: "read", path: self.path.clone(), source: error },
        })
    }

    /// Reads one part of a chunk in canonical order.
    ///
    /// # Errors
    /// As for [`KvFile::read`].
    pub fn read_part(
        &self,
        kv: &KvTensor,
        geometry: &Geometry,
        chunk: usize,
        part: &Part,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        out.resize(part.tile_bytes(geometry), 0);
        let token = chunk * usize::from(geometry.chunk_tokens) + usize::from(part.first_token);
        let layer_bytes = out.len() / usize::from(part.layers);
        for (layer, bytes) in out.chunks_exact_mut(layer_bytes).enumerate() {
            self.read(bytes, kv.row_offset(usize::from(part.first_layer) + layer, part.kind, token))?;
        }
        Ok(())
    }

    /// The file's memory and the tensor in it, for the card to read. Whole pages only: tokens behind the last are left
    /// out.
    ///
    /// # Errors
    /// Fewer tokens than one chunk, pages that do not divide it, or no mapping.
    pub fn memory(&self, kv: &KvTensor, chunk_tokens: usize, page_tokens: u16) -> Result<Memory, Error> {
        let place = || self.path.display().to_string();
        let geometry = kv.shape.geometry(chunk_tokens);
        let geometry = geometry.map_err(|error| Error::input(place(), error, "change --chunk-tokens"))?;
        if kv.shape.tokens < chunk_tokens {
            let what = format!("{} tokens are fewer than one chunk of {chunk_tokens}", kv.shape.tokens);
            return Err(Error::input(place(), what, "choose smaller --chunk-tokens, here and for fetches"));
        }
        if page_tokens == 0 {
            return Err(Error::input("--page-tokens", "0", "choose one that divides --chunk-tokens"));
        }
        let mapping = Mapping::of_file(&self.file, self.bytes as usize, Access::Read)?;
        let regions = vec![RegisteredMapping { mapping: Arc::new(mapping), access: Access::Read }];
        let memory = Memory {
            geometry,
            form: contiguous(&geometry, &kv.shape, page_tokens),
            bases: bases(kv),
            regions,
            further: Vec::new(),
        };
        memory.check()?;
        Ok(memory)
    }
}

/// A name in a list: bare where that is plain, else in quotes.
fn shown(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if (1..=64).contains(&name.len()) && name.chars().all(plain) { name.to_owned() } else { quoted(name) }
}

/// The form of a tensor whose tokens lie one after the other.
pub(crate) fn contiguous(geometry: &Geometry, shape: &TensorShape, page_tokens: u16) -> Form {
    let row = geometry.row_bytes() as u64;
    Form {
        order: Order::TokenMajor,
        page_tokens,
        page_count: (shape.tokens / usize::from(page_tokens)).try_into().unwrap_or(u32::MAX),
        page_stride: u64::from(page_tokens) * row,
        token_stride: row,
        head_stride: (usize::from(geometry.head_size) * geometry.element.bytes()) as u64,
    }
}

/// Where K and V of each layer start in the file.
pub(crate) fn bases(kv: &KvTensor) -> Vec<Base> {
    let planes = (0..kv.shape.planes()).map(|plane| Planes::KeysAndValues.of_plane(plane));
    planes.map(|(layer, kind)| Base { region: 0, offset: kv.row_offset(layer, kind, 0) }).collect()
}
