//! Two versions of the program over one store, and cards with other limits: what one does not understand it keeps,
//! answers a miss for and replaces when it is stored; what a look-up promises a fetch gives. No older or newer program
//! is at hand, so the other version's chunks are made here: real ones, with other numbers in them, under checksums that
//! hold.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::rig::*;
use crate::servers::{Server, program};
use block::{ChunkKey, Manifest};
use host_ctl::{Arrangement, Completion, Transfer};
use mailbox::Status;
use nix::sys::eventfd::EventFd;
use store::scrub::{Mode, ScrubEvent};
use store::{BlockingReader, Limits, Readable};

const CHUNKS: usize = 3;
/// The chunk of each prompt that is the other version's.
const OTHER: usize = 1;

/// What the other version does otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    BlockVersion,
    Granularity,
    Transform,
    Codec,
    ReservedWord,
    ManifestVersion,
    /// Of a file.
    TrailerVersion,
}

const OF_ALL_STORES: [News; 6] =
    [News::BlockVersion, News::Granularity, News::Transform, News::Codec, News::ReservedWord, News::ManifestVersion];

impl News {
    /// Makes a chunk of this version one of the other.
    fn change(self, blocks: &mut [Vec<u8>], manifest: &mut [u8]) {
        let (at, value) = match self {
            Self::BlockVersion => (4, 2),
            Self::Granularity => (55, 9),
            Self::Transform => (64, 99),
            Self::Codec => (66, 9),
            Self::ReservedWord => (90, 1),
            Self::ManifestVersion => {
                manifest[4] = 2;
                manifest[60..64].fill(0);
                let sum = crc32fast::hash(manifest).to_le_bytes();
                return manifest[60..64].copy_from_slice(&sum);
            }
            Self::TrailerVersion => return,
        };
        for block in blocks {
            block[at] = value;
            let scales = u32::from_le_bytes(block[68..72].try_into().unwrap()) as usize;
            block[124..128].fill(0);
            let sum = crc32fast::hash(&block[..128 + scales]).to_le_bytes();
            block[124..128].copy_from_slice(&sum);
        }
    }
}

/// Reads a chunk whole from a store that no card has.
fn read(store: &dyn Readable<Vec<u8>>, key: &ChunkKey) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (bell, until) = (EventFd::new().unwrap(), Instant::now() + WAIT);
    let mut caller = BlockingReader::new(store, &bell).unwrap();
    let mut manifest = vec![0; Limits::default().manifest_bytes_max];
    let bytes = caller.open(0, key, None, &mut manifest, until).unwrap();
    manifest.truncate(bytes);
    let lengths = Manifest::parse(&manifest).unwrap().lengths().to_vec();
    let read = |(index, bytes): (usize, &u32)| caller.read(0, index, *bytes as usize, until).unwrap();
    let blocks = lengths.iter().enumerate().map(read).collect();
    store.close(0);
    (blocks, manifest)
}

/// The other version puts its form of a chunk over ours.
fn changed(url: &str, news: News, key: &ChunkKey) {
    let limits = Limits { chunks_open_max: 1, puts_max: 1, ..Limits::default() };
    let store = store::open(url, &limits).unwrap();
    let (mut blocks, mut manifest) = read(&*store, key);
    news.change(&mut blocks, &mut manifest);
    store.begin_put(0, key, None, Instant::now() + WAIT).unwrap();
    blocks.iter().enumerate().for_each(|(index, block)| store.put_block(0, index, block).unwrap());
    store.commit_put(0, blocks.len(), &manifest).unwrap();
}

fn path(dir: &Path, key: &ChunkKey) -> PathBuf {
    let name = key.to_string();
    dir.join(&name[..2]).join(name)
}

/// The trailer's version is its third word, its checksum its last, over the whole tail.
fn changed_trailer(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let end = bytes.len();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let tail = block::tail::tail_bytes(word(end - 52), word(end - 48));
    bytes[end - 56] = 2;
    let sum = crc32fast::hash(&bytes[end - tail..end - 4]).to_le_bytes();
    bytes[end - 4..].copy_from_slice(&sum);
    std::fs::write(file, bytes).unwrap();
}

/// Fetches a prompt; what is reported is right.
fn fetched(card: &Card, (keys, content): &(Vec<ChunkKey>, Vec<u8>)) -> Completion {
    let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
    let mut host = card.attach("q8", target.clone());
    let done = fetch(&mut host, keys, &linear(CHUNKS));
    let after = logical(&target, &linear(CHUNKS));
    for index in 0..done.chunks_done {
        let same = |bytes: &[u8]| chunk_of(bytes, geometry(), CHUNKS, index);
        assert!(same(&after) == same(content), "chunk {index} of {} was reported and is wrong", done.chunks_done);
    }
    host.close(WAIT).unwrap();
    done
}

/// A prompt as its quantizer left it.
fn prompt(card: &Card, salt: u8) -> (Vec<ChunkKey>, Vec<u8>) {
    let (keys, _) = stored(card, "q8", salt, CHUNKS);
    let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
    let mut host = card.attach("q8", target.clone());
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
    host.close(WAIT).unwrap();
    (keys, logical(&target, &linear(CHUNKS)))
}

fn found(card: &Card, keys: &[ChunkKey]) -> usize {
    lookup(&mut card.control(), keys).chunks_done
}

fn of_store(card: &Card, name: &str) -> u64 {
    card.status().value()["store"][name].as_u64().unwrap()
}

/// Both versions live with this store: nothing of either is lost, and a store of ours takes the place of theirs.
fn two_versions_live_together(url: &str, dir: Option<&Path>, raw: &dyn Fn(&ChunkKey) -> Vec<u8>) {
    let mut news = OF_ALL_STORES.to_vec();
    news.extend(dir.map(|_| News::TrailerVersion));
    let mut ours = Card::start_url(url, |_| ());
    let prompts: Vec<_> = (0..news.len()).map(|salt| prompt(&ours, salt as u8 + 1)).collect();
    ours.stop().unwrap();
    drop(ours);
    for (news, (keys, _)) in news.iter().zip(&prompts) {
        changed(url, *news, &keys[OTHER]);
        if let (News::TrailerVersion, Some(dir)) = (*news, dir) {
            changed_trailer(&path(dir, &keys[OTHER]));
        }
    }
    if let Some(dir) = dir {
        let report = store::scrub::run(dir, Mode::Repair, &mut |event: ScrubEvent<'_>| {
            if let ScrubEvent::Finding(finding) = event {
                assert!(!finding.moved, "{finding}");
            }
        });
        let report = report.unwrap();
        assert_eq!((report.foreign, report.damaged, report.moved), (news.len() as u64, 0, 0));
    }
    let ours = Card::start_url(url, |_| ());
    for (news, prompt) in news.iter().zip(&prompts) {
        let keys = &prompt.0;
        let theirs = raw(&keys[OTHER]);
        for _ in 0..3 {
            let done = fetched(&ours, prompt);
            assert_eq!((done.status, done.chunks_done), (Status::Ok, OTHER), "{news:?}: a miss");
            assert_eq!(found(&ours, keys), OTHER, "{news:?}: a look-up promises no more");
        }
        assert!(raw(&keys[OTHER]) == theirs, "{news:?}: theirs is not ours to change");
    }
    assert_eq!((of_store(&ours, "corrupt"), of_store(&ours, "withheld")), (0, 0));
    assert!(ours.counter("chunks_foreign") >= news.len() as u64);
    assert_eq!(ours.counter("chunks_failed"), 0);
    for (salt, (news, prompt)) in news.iter().zip(&prompts).enumerate() {
        stored(&ours, "q8", salt as u8 + 1, CHUNKS);
        assert_eq!(found(&ours, &prompt.0), CHUNKS, "{news:?}");
        assert_eq!(fetched(&ours, prompt).chunks_done, CHUNKS, "{news:?}: ours took its place");
    }
}

#[test]
fn two_versions_live_together_in_one_directory() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let url = format!("dir:{}?sync=never", dir.display());
    two_versions_live_together(&url, Some(&dir), &|key| std::fs::read(path(&dir, key)).unwrap());
}

#[test]
fn two_versions_live_together_in_one_redis() {
    let Some(program) = program() else { return };
    let server = Server::start(program, &[]);
    let raw = |key: &ChunkKey| {
        let name = format!("kvlane:{{{key}}}");
        [["HGET", &name, "m"], ["HGET", &name, "0"]].map(|words| server.cli(&words)).concat().into_bytes()
    };
    two_versions_live_together(&format!("redis://127.0.0.1:{}", server.port), None, &raw);
}

#[test]
fn two_versions_live_together_behind_tiers() {
    let home = tempfile::tempdir().unwrap();
    let (tier, dir) = (home.path().join("tier"), home.path().join("store"));
    let bottom = format!("dir:{}?sync=never", dir.display());
    let url = format!("tiers:dram=4M,dir:{}=64M,{bottom}", tier.display());
    let mut card = Card::start_url(&bottom, |_| ());
    let prompt = prompt(&card, 1);
    card.stop().unwrap();
    drop(card);
    changed(&bottom, News::Codec, &prompt.0[OTHER]);
    let card = Card::start_url(&url, |_| ());
    for _ in 0..3 {
        assert_eq!((fetched(&card, &prompt).chunks_done, found(&card, &prompt.0)), (OTHER, OTHER));
    }
    assert!(path(&dir, &prompt.0[OTHER]).exists());
    stored(&card, "q8", 1, CHUNKS);
    assert_eq!((fetched(&card, &prompt).chunks_done, found(&card, &prompt.0)), (CHUNKS, CHUNKS));
}

#[test]
fn cards_with_other_slots_share_what_fits_and_replace_what_does_not() {
    let Some(program) = program() else { return };
    let server = Server::start(program, &[]);
    let url = format!("redis://127.0.0.1:{}", server.port);
    let large = Card::start_url(&url, |config| config.block_bytes = 64 << 10);
    let small = Card::start_url(&url, |config| config.block_bytes = 8 << 10);
    let of_large = prompt(&large, 1);
    // Nobody has looked yet, and a store sees for itself that the name is not enough.
    let of_other = prompt(&large, 2);
    stored(&small, "q8", 2, CHUNKS);
    assert_eq!(small.counter("chunks_stored"), CHUNKS as u64);
    assert_eq!(fetched(&small, &of_other).chunks_done, CHUNKS);
    let done = fetched(&small, &of_large);
    assert_eq!((done.status, done.chunks_done, found(&small, &of_large.0)), (Status::Ok, 0, 0));
    assert_eq!(
        (fetched(&large, &of_large).chunks_done, of_store(&small, "corrupt")),
        (CHUNKS, 0),
        "and it is still there"
    );
    stored(&small, "q8", 1, CHUNKS);
    for card in [&small, &large] {
        assert_eq!((found(card, &of_large.0), fetched(card, &of_large).chunks_done), (CHUNKS, CHUNKS));
    }
    // What both can read stays as it is.
    stored(&large, "q8", 1, CHUNKS);
    assert_eq!(large.counter("chunks_known"), CHUNKS as u64);
}

#[test]
fn a_store_that_is_done_again_stores_and_says_what_it_stored() {
    let card = Card::start();
    let (keys, _) = stored(&card, "q8", 1, CHUNKS);
    let source = filled(Arrangement::Contiguous, geometry(), CHUNKS, 2);
    let mut host = card.attach("q8", source);
    let pages = linear(CHUNKS);
    let mut store = |again| {
        let id = host.post_store(&Transfer { again, ..Transfer::new(&keys, &pages) }).unwrap();
        host.wait(id, WAIT).unwrap()
    };
    let known = store(false);
    assert_eq!((known.chunks_done, known.restored_bytes, card.counter("chunks_known")), (CHUNKS, 0, CHUNKS as u64));
    let again = store(true);
    let bytes = (CHUNKS * geometry().chunk_bytes()) as u64;
    assert_eq!((again.status, again.chunks_done, again.restored_bytes), (Status::Ok, CHUNKS, bytes));
    assert_eq!(card.counter("chunks_stored"), 2 * CHUNKS as u64);
}
