//! Looking into what a store behind a URL holds, without a card. Everything is checked that a fetch would check, and
//! the codes' CRC-32 over what software inflates. Reads only: what is bad stays for `dpu-app` to find.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use block::{BLOCKS_PER_CHUNK_MAX, ChunkKey, MANIFEST_BYTES_MAX, Manifest};
use nix::sys::eventfd::EventFd;
use store::redis::check::CheckReport;
use store::{Absent, AnyBackend, BlockingReader, Limits, OpenError, StoreError};

use crate::chunk_file::{InspectedChunk, Inspection, Judge};
use crate::error::Error;

/// A block may be this large in its stored form.
const BLOCK_BYTES_MAX: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// Inspects one chunk of the store at `url`, or all of them, and hands each over as it is done. A chunk that goes
/// meanwhile is passed over; one that was named must be there.
///
/// # Errors
/// The store cannot be opened or read, or the chunk is not there.
pub fn inspect_store(
    url: &str,
    key: Option<&ChunkKey>,
    each: &mut dyn FnMut(usize, usize, Inspection),
) -> Result<(), Error> {
    let limits = Limits {
        chunks_open_max: 1,
        puts_max: 1,
        blocks_max: BLOCKS_PER_CHUNK_MAX,
        block_bytes_max: BLOCK_BYTES_MAX,
        manifest_bytes_max: MANIFEST_BYTES_MAX,
        asks_max: 1,
        writers_max: 1,
        ..Limits::default()
    };
    let store = AnyBackend::open(url, &limits, Absent::Refuse).map_err(|error| open_error(&error))?;
    let bell = EventFd::new().map_err(|errno| system("eventfd", errno.into()))?;
    let mut caller = BlockingReader::new(store.readable(), &bell).map_err(|error| system("epoll", error))?;
    let keys = match key {
        Some(key) => vec![*key],
        None => store.keys().map_err(|error| failed("scan", error))?,
    };
    let mut missed = Vec::new();
    for (index, one) in keys.iter().enumerate() {
        match look(&store, &mut caller, one) {
            Ok(found) => each(index, keys.len(), found),
            Err(StoreError::Miss) if key.is_none() => missed.push((index, one)),
            Err(StoreError::Miss) => return Err(Error::Miss { chunks: 1 }),
            Err(error) => return Err(failed(&one.to_string(), error)),
        }
    }
    if missed.is_empty() {
        return Ok(());
    }
    // What has its name still did not go meanwhile: it is nothing that a card could open.
    let there: HashSet<ChunkKey> = store.keys().map_err(|error| failed("scan", error))?.into_iter().collect();
    for (index, one) in missed.into_iter().filter(|(_, one)| there.contains(one)) {
        let findings =
            vec!["no chunk: not a hash with a manifest; the next store of this chunk replaces it".to_owned()];
        each(index, keys.len(), Inspection { path: path_of(one), chunk: None, findings });
    }
    Ok(())
}

fn path_of(key: &ChunkKey) -> PathBuf {
    PathBuf::from(format!("kvlane:{{{key}}}"))
}

fn look(store: &AnyBackend, caller: &mut BlockingReader<'_>, key: &ChunkKey) -> Result<Inspection, StoreError> {
    let mut manifest = vec![0; MANIFEST_BYTES_MAX];
    let path = path_of(key);
    let bytes = match caller.open(0, key, None, &mut manifest, Instant::now() + PATIENCE) {
        Ok(bytes) => bytes,
        Err(error @ StoreError::Corrupt { .. }) => {
            return Ok(Inspection { path, chunk: None, findings: vec![error.to_string()] });
        }
        Err(error) => return Err(error),
    };
    let looked = blocks(caller, key, &manifest[..bytes]);
    store.readable::<Vec<u8>>().close(0);
    let (chunk, findings) = looked?;
    Ok(Inspection { path, chunk, findings })
}

type Looked = (Option<InspectedChunk>, Vec<String>);

fn blocks(caller: &mut BlockingReader<'_>, key: &ChunkKey, manifest: &[u8]) -> Result<Looked, StoreError> {
    let manifest = match Manifest::parse(manifest) {
        Ok(manifest) if manifest.key() == key => manifest,
        Ok(manifest) => return Ok((None, vec![format!("the manifest is of chunk {}", manifest.key())])),
        Err(error) => return Ok((None, vec![error.to_string()])),
    };
    let stored: u64 = manifest.lengths().iter().map(|bytes| u64::from(*bytes)).sum();
    let mut facts = InspectedChunk {
        key: *key,
        geometry: *manifest.geometry(),
        plan: *manifest.plan(),
        file_bytes: stored + block::manifest_bytes(manifest.block_count()) as u64,
        wire_bytes: stored,
        raw_bytes: manifest.geometry().chunk_bytes() as u64,
        blocks: Vec::new(),
        recipes: std::collections::BTreeMap::new(),
    };
    let (mut judge, mut findings) = (Judge::default(), Vec::new());
    for (index, &bytes) in manifest.lengths().iter().enumerate() {
        match caller.read(0, index, bytes as usize, Instant::now() + PATIENCE) {
            Ok(wire) => findings.extend(judge.block(&mut facts, index, &wire).err()),
            Err(error @ StoreError::Corrupt { .. }) => findings.push(format!("block {index}: {error}")),
            Err(error) => return Err(error),
        }
    }
    Ok((Some(facts), findings))
}

/// Looks at a store on servers from end to end; `None`: it is not on servers.
///
/// # Errors
/// It cannot be opened.
pub fn check_store(url: &str) -> Result<Option<CheckReport>, Error> {
    store::check(url).map_err(|error| open_error(&error))
}

fn open_error(error: &OpenError) -> Error {
    match error {
        OpenError::Unreachable { .. } | OpenError::Refused { .. } => {
            Error::Damaged { place: "store".to_owned(), what: error.to_string() }
        }
        _ => Error::input("--store", error, "see docs/stores.md"),
    }
}

fn failed(place: &str, error: StoreError) -> Error {
    Error::Damaged { place: place.to_owned(), what: error.to_string() }
}

fn system(call: &'static str, source: std::io::Error) -> Error {
    Error::System { call, path: PathBuf::new(), source }
}
