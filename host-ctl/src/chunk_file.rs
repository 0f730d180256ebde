//! Looking into what a `dir:` store holds, without a card: for operators, and for doubting a store.
//!
//! What a chunk's file looks like is in `block::tail`. Everything is checked here that a fetch would check, and the
//! codes' CRC-32 over what software inflates. Reads only; a store that a dpu-app uses may be looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::codec::Decompressor;
use block::tail::{self, Place, TAIL_BYTES_MAX, TRAILER_BYTES, TRAILER_MAGIC, TailError};
use block::{BLOCKS_PER_CHUNK_MAX, ChunkKey, Geometry, Header, Kind, Manifest, Plan};

use crate::error::Error;

/// First line of the file that marks a store.
const STORE_MARKER: &str = "kvlane-store";
/// Findings that are kept of one chunk.
const FINDINGS_MAX: usize = 16;

/// One block, as its header says.
#[derive(Clone, Debug)]
pub struct InspectedBlock {
    pub index: usize,
    pub kind: Kind,
    pub first_layer: u16,
    pub layers: u16,
    pub first_token: u16,
    pub tokens: u16,
    pub transform: String,
    pub codec: String,
    pub wire_bytes: u64,
    pub raw_bytes: u64,
}

/// One chunk.
#[derive(Clone, Debug)]
pub struct InspectedChunk {
    pub key: ChunkKey,
    pub geometry: Geometry,
    pub plan: Plan,
    pub file_bytes: u64,
    pub wire_bytes: u64,
    pub raw_bytes: u64,
    /// Blocks whose header is good.
    pub blocks: Vec<InspectedBlock>,
    /// How many blocks have which `transform+codec`.
    pub recipes: BTreeMap<String, usize>,
}

/// What was found in one file.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub path: PathBuf,
    /// `None` where not even the table of contents could be read.
    pub chunk: Option<InspectedChunk>,
    /// What is wrong, at most a few of each file; none: every check passed.
    pub findings: Vec<String>,
}

impl Inspection {
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

/// The chunk files of a store directory, in the order of their keys; or the one of `key`.
///
/// # Errors
/// Not a store, or not readable.
pub fn store_files(directory: &Path, key: Option<&ChunkKey>) -> Result<Vec<PathBuf>, Error> {
    let marker = directory.join(STORE_MARKER);
    if !marker.is_file() {
        let what = format!("no {STORE_MARKER} in it: not a store");
        return Err(Error::input(directory.display(), what, "give the path that dpu-app has as --store dir:PATH"));
    }
    if let Some(key) = key {
        let name = key.to_string();
        return Ok(vec![directory.join(&name[..2]).join(&name)]);
    }
    let mut files = Vec::new();
    for prefix in 0..=255_u8 {
        let prefix = directory.join(format!("{prefix:02x}"));
        let entries = match fs::read_dir(&prefix) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::System { call: "read directory", path: prefix, source: error }),
        };
        for entry in entries {
            files.push(entry.map_err(Error::system("read directory", &prefix))?.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Reads one chunk file from end to end.
///
/// # Errors
/// It cannot be opened or read. Damage is not an error but a finding.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    let file = File::open(path).map_err(Error::system("open", path))?;
    let found = file.metadata().map_err(Error::system("fstat", path))?;
    if !found.is_file() {
        return Err(Error::input(
            path.display(),
            "not a regular file",
            "give a chunk file, dir:PATH or a .safetensors",
        ));
    }
    let mut eye = Eye { path, file: &file, bytes: found.len(), findings: Vec::new() };
    let chunk = match eye.tail() {
        Ok((places, manifest)) => Some(eye.chunk(&places, &manifest)?),
        Err(Trouble::Damage(what)) => {
            eye.findings.push(what);
            None
        }
        Err(Trouble::Error(error)) => return Err(error),
    };
    Ok(Inspection { path: path.to_owned(), chunk, findings: eye.findings })
}

/// Whether a file ends like a chunk file: enough to tell it from others.
pub fn ends_like_a_chunk(path: &Path) -> bool {
    let look = || -> std::io::Result<bool> {
        let file = File::open(path)?;
        let at = file.metadata()?.len().checked_sub(TRAILER_BYTES as u64).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, at)?;
        Ok(magic == TRAILER_MAGIC)
    };
    look().unwrap_or(false)
}

/// Looks at blocks, wherever they come from: header, scales and the codes' CRC-32 over what software inflates.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    inflate: Option<Decompressor>,
    codes: Vec<u8>,
}

impl Judge {
    /// Adds a block to the facts of its chunk; `Err`: what is wrong with it.
    pub(crate) fn block(&mut self, facts: &mut InspectedChunk, index: usize, wire: &[u8]) -> Result<(), String> {
        let InspectedChunk { key, geometry, plan, .. } = *facts;
        let part = plan.part(&geometry, index).expect("a parsed manifest has a part for each block");
        let header =
            Header::open(wire, &key, &geometry, index, &part).map_err(|error| format!("block {index}: {error}"))?;
        *facts.recipes.entry(format!("{}+{}", header.transform, header.codec)).or_default() += 1;
        facts.blocks.push(InspectedBlock {
            index,
            kind: part.kind,
            first_layer: part.first_layer,
            layers: part.layers,
            first_token: part.first_token,
            tokens: part.tokens,
            transform: header.transform.to_string(),
            codec: header.codec.to_string(),
            wire_bytes: wire.len() as u64,
            raw_bytes: part.tile_bytes(&geometry) as u64,
        });
        self.codes.resize(header.codes_bytes as usize, 0);
        let inflate = self.inflate.get_or_insert_with(Decompressor::new);
        inflate.codes(&header, wire, &mut self.codes).map_err(|error| format!("block {index}: {error}"))
    }
}

enum Trouble {
    Damage(String),
    Error(Error),
}

impl From<TailError> for Trouble {
    fn from(error: TailError) -> Trouble {
        Trouble::Damage(error.to_string())
    }
}

struct Eye<'a> {
    path: &'a Path,
    file: &'a File,
    bytes: u64,
    findings: Vec<String>,
}

impl Eye<'_> {
    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut out = vec![0; bytes];
        self.file.read_exact_at(&mut out, offset).map_err(Error::system("read", self.path))?;
        Ok(out)
    }

    fn found(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }

    /// Table and manifest, checked.
    fn tail(&self) -> Result<(Vec<Place>, Manifest), Trouble> {
        let trailer = self.read_last(TRAILER_BYTES.min(self.bytes as usize))?;
        let bytes = tail::measure(&trailer, self.bytes)?;
        if bytes > TAIL_BYTES_MAX {
            return Err(Trouble::Damage(format!("a tail of {bytes} bytes cannot be")));
        }
        let window = self.read_last(bytes)?;
        let mut places = vec![Place::default(); BLOCKS_PER_CHUNK_MAX];
        let tail = tail::parse(&window, self.bytes, &mut places)?;
        places.truncate(tail.blocks);
        let manifest = Manifest::parse(&window[tail.manifest_at..][..tail.manifest_bytes]);
        let manifest = manifest.map_err(|error| Trouble::Damage(error.to_string()))?;
        if *manifest.key() != tail.key {
            return Err(Trouble::Damage("trailer and manifest name different chunks".to_owned()));
        }
        if !places.iter().map(|place| &place.bytes).eq(manifest.lengths()) {
            return Err(Trouble::Damage("table and manifest tell different blocks".to_owned()));
        }
        Ok((places, manifest))
    }

    fn read_last(&self, bytes: usize) -> Result<Vec<u8>, Trouble> {
        self.read(self.bytes - bytes as u64, bytes).map_err(Trouble::Error)
    }

    fn chunk(&mut self, places: &[Place], manifest: &Manifest) -> Result<InspectedChunk, Error> {
        let (key, geometry, plan) = (*manifest.key(), *manifest.geometry(), *manifest.plan());
        let name = self.path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if name.is_some_and(|name: ChunkKey| name != key) {
            self.found(format!("holds chunk {key}: its name is another's"));
        }
        let mut facts = InspectedChunk {
            key,
            geometry,
            plan,
            file_bytes: self.bytes,
            wire_bytes: places.iter().map(|place| u64::from(place.bytes)).sum(),
            raw_bytes: geometry.chunk_bytes() as u64,
            blocks: Vec::with_capacity(places.len()),
            recipes: BTreeMap::new(),
        };
        self.overlaps(places);
        let mut judge = Judge::default();
        for (index, place) in places.iter().enumerate() {
            let wire = self.read(place.offset, place.bytes as usize)?;
            if let Err(what) = judge.block(&mut facts, index, &wire) {
                self.found(what);
            }
        }
        Ok(facts)
    }

    fn overlaps(&mut self, places: &[Place]) {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|&index| places[index].offset);
        for pair in order.windows(2) {
            let (one, other) = (places[pair[0]], places[pair[1]]);
            if one.offset + u64::from(one.bytes) > other.offset {
                self.found(format!("blocks {} and {} share bytes", pair[0], pair[1]));
            }
        }
    }
}
