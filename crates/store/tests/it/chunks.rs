//! Chunks for the store's tests: keys, blocks of any bytes, real chunks that a scrub believes, and the shortest way to
//! put and get them.
#![allow(dead_code)] // each test binary uses its own part

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use block::codec::Compressor;
use block::{ChunkKey, Codec, ElementType, Geometry, Manifest, Plan, Recipe, TileOrder, Transform};
use nix::sys::eventfd::EventFd;
use store::{BlockingReader, Direct, Limits, Lookup, Opening, Position, Readable, Store, StoreError, Why};

/// What a test says of a chunk that it has taken out.
pub(crate) const WHY: Why = Why { what: "a test says so", block: None };

/// Small tables: a test that leaks a seat notices.
pub(crate) fn limits() -> Limits {
    Limits {
        chunks_open_max: 4,
        puts_max: 4,
        blocks_max: 64,
        block_bytes_max: 1 << 20,
        manifest_bytes_max: 4096,
        chunks_max: 64,
        store_bytes: Some(64 << 20),
        ..Limits::default()
    }
}

/// A temporary directory in memory where there is one: for tests that make thousands of files.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.expect("a temporary directory")
}

/// The n-th of a spread of keys.
pub(crate) fn key(n: u64) -> ChunkKey {
    let mut bytes = [0; 32];
    let mut state = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    for word in bytes.as_chunks_mut::<8>().0 {
        state = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ n;
        *word = state.to_le_bytes();
    }
    ChunkKey::new(bytes)
}

/// Bytes that differ from block to block and do not compress.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Puts a whole chunk, its blocks from the last to the first.
pub(crate) fn put(
    store: &dyn Store,
    seat: usize,
    key: &ChunkKey,
    blocks: &[Vec<u8>],
    manifest: &[u8],
) -> Result<(), StoreError> {
    store.begin_put(seat, key, None, soon())?;
    for (index, block) in blocks.iter().enumerate().rev() {
        if let Err(error) = store.put_block(seat, index, block) {
            store.abort_put(seat);
            return Err(error);
        }
    }
    store.commit_put(seat, blocks.len(), manifest)
}

/// A look-up in a store that answers at once.
pub(crate) trait Look {
    fn lookup(&self, keys: &[ChunkKey], until: Instant) -> Result<usize, StoreError>;
}

impl<S: Direct> Look for S {
    fn lookup(&self, keys: &[ChunkKey], until: Instant) -> Result<usize, StoreError> {
        self.look(&mut Lookup::leading(keys.to_vec()), until)
    }
}

/// What a test asks a store for, each question with a reader of its own.
pub(crate) trait Questions {
    fn lookup(&self, keys: &[ChunkKey], until: Instant) -> Result<usize, StoreError>;
    fn look(&self, keys: &[ChunkKey], trailing: usize, until: Instant) -> Result<usize, StoreError>;
    fn open(&self, seat: usize, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError>;
    fn read(&self, seat: usize, index: usize, bytes: usize, until: Instant) -> Result<Vec<u8>, StoreError>;
    fn open_anew(&self, seat: usize, key: &ChunkKey) -> Result<usize, StoreError>;
    fn discard(&self, seat: usize);
}

impl Questions for dyn Readable<Vec<u8>> + '_ {
    fn lookup(&self, keys: &[ChunkKey], until: Instant) -> Result<usize, StoreError> {
        with_caller(self, |caller| caller.lookup(keys, until))
    }

    fn look(&self, keys: &[ChunkKey], trailing: usize, until: Instant) -> Result<usize, StoreError> {
        with_caller(self, |caller| caller.look(Lookup::trailing(keys.to_vec(), trailing), until))
    }

    fn open(&self, seat: usize, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError> {
        with_caller(self, |caller| caller.open(seat, key, None, manifest, until))
    }

    fn read(&self, seat: usize, index: usize, bytes: usize, until: Instant) -> Result<Vec<u8>, StoreError> {
        with_caller(self, |caller| caller.read(seat, index, bytes, until))
    }

    fn open_anew(&self, seat: usize, key: &ChunkKey) -> Result<usize, StoreError> {
        with_caller(self, |caller| caller.open_anew(seat, key, &mut [0; 4096], soon()))
    }

    fn discard(&self, seat: usize) {
        with_caller(self, |caller| caller.discard(seat, WHY, soon()));
    }
}

pub(crate) fn with_caller<T>(store: &dyn Readable<Vec<u8>>, work: impl FnOnce(&mut BlockingReader<'_>) -> T) -> T {
    let bell = EventFd::new().expect("an eventfd");
    let mut caller = BlockingReader::new(store, &bell).expect("a reader");
    work(&mut caller)
}

/// Opens a chunk, reads all its blocks, closes it.
pub(crate) fn get(
    store: &dyn Readable<Vec<u8>>,
    seat: usize,
    key: &ChunkKey,
    lengths: &[usize],
) -> Result<(Vec<u8>, Vec<Vec<u8>>), StoreError> {
    get_as(store, seat, key, None, lengths)
}

/// The same, by a prompt.
pub(crate) fn get_as(
    store: &dyn Readable<Vec<u8>>,
    seat: usize,
    key: &ChunkKey,
    position: Option<Position>,
    lengths: &[usize],
) -> Result<(Vec<u8>, Vec<Vec<u8>>), StoreError> {
    with_caller(store, |caller| {
        let mut manifest = vec![0; limits().manifest_bytes_max];
        let bytes = caller.open(seat, key, position, &mut manifest, soon())?;
        manifest.truncate(bytes);
        let read = |(index, &bytes): (usize, &usize)| caller.read(seat, index, bytes, soon());
        let blocks: Result<Vec<_>, _> = lengths.iter().enumerate().map(read).collect();
        store.close(seat);
        Ok((manifest, blocks?))
    })
}

/// Opens a chunk in a free seat, if it is there, and says that its bytes are bad.
pub(crate) fn condemn(store: &dyn Direct, seat: usize, key: &ChunkKey) {
    if store.open(seat, &Opening { anew: true, ..Opening::of(key) }, &mut [0; 4096], soon()).is_ok() {
        store.discard(seat, &WHY);
        store.close(seat);
    }
}

/// A chunk in its stored form: wire blocks and the manifest.
pub(crate) fn real_chunk(key: &ChunkKey, codec: Codec) -> (Vec<Vec<u8>>, Vec<u8>) {
    let geometry = Geometry::new(4, 2, 32, 64, ElementType::Bf16).expect("a small geometry");
    let plan = Plan::choose(&geometry, geometry.layer_chunk_bytes()).expect("a plan");
    let transform = Transform::Q8;
    let mut compressor = Compressor::new(1, 1 << 20).expect("level 1");
    let mut blocks = Vec::new();
    for index in 0..plan.block_count(&geometry) {
        let part = plan.part(&geometry, index).expect("a part of the plan");
        // Few values, and every row twice, so that both codecs find something.
        let values = noise(index as u64 + 7, part.elements(&geometry));
        let row = geometry.row_elements();
        let element = |i: usize| {
            let value = f32::from(values[i / (2 * row) * row + i % row] & 15) / 4.0 - 2.0;
            ((value.to_bits() >> 16) as u16).to_le_bytes()
        };
        let tile: Vec<u8> = (0..part.elements(&geometry)).flat_map(element).collect();
        let mut codes = vec![0; part.tile_bytes(&geometry)];
        let mut wire = vec![0; block::wire_bytes_max(&geometry, &part)];
        let recipe = Recipe { transform, codec };
        let bytes = block::encode_tile(
            recipe,
            &geometry,
            key,
            index,
            &part,
            TileOrder::TokenMajor,
            &tile,
            &mut codes,
            &mut wire,
            &mut compressor,
        )
        .expect("finite elements encode");
        wire.truncate(bytes);
        blocks.push(wire);
    }
    let lengths: Vec<u32> = blocks.iter().map(|block| block.len() as u32).collect();
    let manifest = Manifest::new(*key, geometry, plan, &lengths).expect("lengths of real blocks");
    let mut bytes = vec![0; block::manifest_bytes(lengths.len())];
    manifest.encode(&mut bytes);
    (blocks, bytes)
}

/// Where the chunk lies in a `dir:` store.
pub(crate) fn chunk_path(dir: &Path, key: &ChunkKey) -> std::path::PathBuf {
    let name = key.to_string();
    dir.join(&name[..2]).join(name)
}

/// Runs the test `name` of this binary, which calls this, again: as another process with `role` in its environment.
pub(crate) fn again(name: &str, role: &str, dir: &Path) -> Command {
    let thread = std::thread::current();
    assert!(thread.name().is_none_or(|test| test == name || test == "main"), "{name} is not this test's name");
    let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env("STORE_ROLE", role).env("STORE_DIR", dir);
    command
}

/// The same in a mount namespace of its own, after `mount` (a shell line that finds the directory in `$STORE_DIR`).
/// `false`, and why on standard error, where this machine does not allow it.
pub(crate) fn again_mounted(name: &str, mount: &str, dir: &Path) -> bool {
    let inner = again(name, "mounted", dir);
    let unshare = |line: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", line, "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.env("STORE_ROLE", "mounted").env("STORE_DIR", dir);
        command
    };
    match unshare(mount).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("skipped: no mounts here: {}", String::from_utf8_lossy(&output.stderr).trim());
            return false;
        }
        Err(error) => {
            eprintln!("skipped: unshare: {error}");
            return false;
        }
    }
    let status = unshare(&format!("{mount} && exec \"$@\"")).status().expect("unshare ran before");
    assert!(status.success(), "{name} failed inside its mount namespace");
    true
}

/// The role that `again` gave this process, and its directory.
pub(crate) fn role() -> Option<(String, std::path::PathBuf)> {
    Some((std::env::var("STORE_ROLE").ok()?, std::env::var_os("STORE_DIR")?.into()))
}
