//! A safetensors file for the card to write into.
//!
//! It grows without a name (part_file.rs) with all its room reserved up front, so that a full disk is an error here and
//! not a signal in the middle of a DMA, and takes its name only when it is whole. Before that nothing is left of it,
//! however the process ends.
//! The header is padded so that the data starts at a multiple of 4096.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::ElementType;
use doca::{Access, Mapping};
use mailbox::layout::Form;
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::kv_file::{KvTensor, TensorShape, bases, contiguous};
use crate::memory::{Memory, RegisteredMapping};
use crate::part_file::PartFile;

/// Where the data starts is a multiple of this: a page of memory.
const DATA_ALIGNMENT: usize = 4096;

/// One tensor to announce.
#[derive(Clone, Debug)]
pub struct Announce<'a> {
    pub name: &'a str,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// The safetensors name of an element type.
pub fn dtype_name(element: ElementType) -> &'static str {
    match element {
        ElementType::Bf16 => "BF16",
        ElementType::F16 => "F16",
        ElementType::F32 => "F32",
        ElementType::E4m3 => "F8_E4M3",
        ElementType::E5m2 => "F8_E5M2",
        ElementType::U8 => "U8",
        ElementType::U16 => "U16",
        ElementType::U32 => "U32",
    }
}

/// Length word and header, padded.
pub(crate) fn header(tensors: &[Announce<'_>], facts: &[(&str, String)]) -> Vec<u8> {
    let mut object = Map::new();
    let facts: Map<String, Value> = facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    object.insert("__metadata__".to_owned(), Value::Object(facts));
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes;
        let words = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end] });
        object.insert(tensor.name.to_owned(), words);
        at = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(DATA_ALIGNMENT) - 8, b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    bytes
}

/// See the module.
#[derive(Debug)]
pub struct OutFile {
    path: PathBuf,
    part: PartFile,
    kv: KvTensor,
    bytes: u64,
}

impl OutFile {
    /// Makes the file for one KV tensor and reserves its room. `facts` go to the file's metadata.
    ///
    /// # Errors
    /// No such directory, no permission, no space.
    pub fn create(path: &Path, tensor: &str, shape: TensorShape, facts: &[(&str, String)]) -> Result<OutFile, Error> {
        let dims = vec![shape.layers, 2, shape.tokens, shape.heads, shape.head_size];
        let announce = Announce { name: tensor, dtype: dtype_name(shape.element), shape: dims, bytes: shape.bytes() };
        OutFile::reserve(path, &[announce], shape, facts)
    }

    /// Does what [`OutFile::create`] does, with all tensors that will be in the file, the KV tensor first.
    ///
    /// # Errors
    /// Those of [`OutFile::create`].
    pub fn reserve(
        path: &Path,
        tensors: &[Announce<'_>],
        shape: TensorShape,
        facts: &[(&str, String)],
    ) -> Result<OutFile, Error> {
        if path.is_dir() {
            return Err(Error::input(path.display(), "is a directory", "give --out the name of a file"));
        }
        if path.file_name().is_none() {
            return Err(Error::input(path.display(), "not the name of a file", "give --out the name of a file"));
        }
        let header = header(tensors, facts);
        let bytes = header.len() as u64 + tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
        let part = PartFile::create(path).map_err(Error::system("create", path))?;
        let kv = KvTensor { shape, offset: header.len() as u64, texts: None };
        let out = OutFile { path: path.to_owned(), part, kv, bytes };
        let failed = |errno: Errno| Error::System { call: "reserve room", path: path.to_owned(), source: errno.into() };
        let length = i64::try_from(bytes).map_err(|_| failed(Errno::EFBIG))?;
        posix_fallocate(out.file(), 0, length).map_err(failed)?;
        out.file().write_all(&header).map_err(Error::system("write", path))?;
        Ok(out)
    }

    /// The file, positioned behind its header, for callers that write the tensors themselves.
    pub fn file(&self) -> &File {
        self.part.file()
    }

    /// Where the KV tensor lies.
    pub fn kv(&self) -> &KvTensor {
        &self.kv
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file's memory, for the card to write.
    ///
    /// # Errors
    /// A layout that cannot be, or no mapping.
    pub fn memory(&self, chunk_tokens: usize, page_tokens: u16) -> Result<Memory, Error> {
        let shape = &self.kv.shape;
        let geometry = shape.geometry(chunk_tokens);
        let geometry =
            geometry.map_err(|error| Error::input("geometry", error, "change --geometry or --chunk-tokens"))?;
        if page_tokens == 0 {
            return Err(Error::input("--page-tokens", "0", "choose one that divides --chunk-tokens"));
        }
        let mapping = Mapping::of_file(self.file(), self.bytes as usize, Access::ReadWrite)?;
        let regions = vec![RegisteredMapping { mapping: Arc::new(mapping), access: Access::ReadWrite }];
        let form: Form = contiguous(&geometry, shape, page_tokens);
        let memory = Memory { geometry, form, bases: bases(&self.kv), regions, further: Vec::new() };
        memory.check()?;
        Ok(memory)
    }

    /// Gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// The system's. The file disappears then.
    pub fn publish(self) -> Result<(), Error> {
        self.part.publish().map_err(Error::system("rename", &self.path))
    }
}
