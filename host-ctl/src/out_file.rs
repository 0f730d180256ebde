//! A safetensors file for the card to write into.
//!
//! It grows under another name with all its room reserved up front, so that a full disk is an error here and not a
//! signal in the middle of a DMA, and takes its own name only when it is whole. Dropped before that, it disappears.
//! The header is padded so that the data starts at a multiple of 4096.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::ElementType;
use doca::{Access, Mapping};
use mailbox::layout::Form;
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::kv_file::{KvTensor, TensorShape, bases, contiguous};
use crate::memory::{Memory, Region};

/// Where the data starts is a multiple of this: a page of memory.
const DATA_ALIGNMENT: usize = 4096;

/// One tensor to announce.
#[derive(Clone, Debug)]
pub(crate) struct Announce<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: u64,
}

/// The safetensors name of an element type.
pub(crate) fn dtype_name(element: ElementType) -> &'static str {
    match element {
        ElementType::Bf16 => "BF16",
        ElementType::F16 => "F16",
        ElementType::F32 => "F32",
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
    temporary: PathBuf,
    pub(crate) file: File,
    published: bool,
    kv: KvTensor,
    bytes: u64,
}

/// Numbers temporary names within this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

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

    /// With all tensors that will be in it, the KV tensor first.
    pub(crate) fn reserve(
        path: &Path,
        tensors: &[Announce<'_>],
        shape: TensorShape,
        facts: &[(&str, String)],
    ) -> Result<OutFile, Error> {
        if path.is_dir() {
            return Err(Error::input(path.display(), "is a directory", "give --out the name of a file"));
        }
        let Some(name) = path.file_name() else {
            return Err(Error::input(path.display(), "not the name of a file", "give --out the name of a file"));
        };
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.part", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(temporary);
        let header = header(tensors, facts);
        let bytes = header.len() as u64 + tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(Error::system("create", &temporary))?;
        let kv = KvTensor { shape, offset: header.len() as u64, texts: None };
        let mut out = OutFile { path: path.to_owned(), temporary, file, published: false, kv, bytes };
        let failed = |errno: Errno| Error::System { call: "reserve room", path: path.to_owned(), source: errno.into() };
        let length = i64::try_from(bytes).map_err(|_| failed(Errno::EFBIG))?;
        posix_fallocate(&out.file, 0, length).map_err(failed)?;
        out.file.write_all(&header).map_err(Error::system("write", path))?;
        Ok(out)
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
        let mapping = Mapping::of_file(&self.file, self.bytes as usize, Access::ReadWrite)?;
        let regions = vec![Region { mapping: Arc::new(mapping), access: Access::ReadWrite }];
        let form: Form = contiguous(&geometry, shape, page_tokens);
        let memory = Memory { geometry, form, bases: bases(&self.kv), regions };
        memory.check()?;
        Ok(memory)
    }

    /// Gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// The system's. The file disappears then.
    pub fn publish(mut self) -> Result<(), Error> {
        fs::rename(&self.temporary, &self.path).map_err(Error::system("rename", &self.path))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = fs::remove_file(&self.temporary) {
            log::warn!("remove {}: {error}", self.temporary.display());
        }
    }
}
