//! A scrub finds what is damaged, says where, and proves nothing by a failed call.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use block::codec::decompress;
use block::{Codec, Header};
use store::dir::{DirOptions, DirStore};
use store::scrub::{self, Damage, DamagedFile, Mode, ScrubEvent, ScrubReport};
use store::{OpenError, Store};

use crate::chunks::{Look, chunk_path, get, key, limits, memory_dir, noise, put, real_chunk, soon};

fn options() -> DirOptions {
    DirOptions { bytes_max: Some(64 << 20), chunks_max: 64, sync: false }
}

fn store(dir: &Path) -> DirStore {
    DirStore::open(dir, &limits(), options()).expect("the directory opens")
}

/// A store with real chunks `0..chunks` of the codec.
fn filled(dir: &Path, chunks: u64, codec: Codec) -> DirStore {
    let store = store(dir);
    for n in 0..chunks {
        let (blocks, manifest) = real_chunk(&key(n), codec);
        put(&store, 0, &key(n), &blocks, &manifest).expect("put");
    }
    store
}

fn scrub(dir: &Path, mode: Mode) -> (ScrubReport, Vec<DamagedFile>) {
    let mut findings = Vec::new();
    let mut directories = 0;
    let report = scrub::run(dir, mode, &mut |event| match event {
        ScrubEvent::Finding(finding) => findings.push(finding.clone()),
        ScrubEvent::Progress { directories: n, directories_max, .. } => {
            assert!(n == directories + 1 && n <= directories_max);
            directories = n;
        }
    });
    assert_eq!(directories, 256);
    (report.expect("the scrub runs"), findings)
}

#[test]
fn whole_chunks_of_every_codec_are_good_also_while_the_store_is_in_use() {
    for codec in Codec::ALL {
        let dir = memory_dir();
        let store = filled(dir.path(), 5, codec);
        store.begin_put(1, &key(9), None, soon()).expect("begin");
        let (report, findings) = scrub(dir.path(), Mode::Report);
        assert_eq!(findings, [], "{codec}");
        let blocks = 5 * real_chunk(&key(0), codec).0.len() as u64;
        assert_eq!((report.files, report.good, report.blocks, report.unfinished), (5, 5, blocks, 1));
        assert_eq!(report.bytes, store.stats().bytes);
        store.abort_put(1);
    }
}

#[test]
fn any_byte_flipped_in_a_raw_chunk_is_found() {
    let dir = memory_dir();
    drop(filled(dir.path(), 1, Codec::Raw));
    flip_everywhere(dir.path(), 97, |_, _| panic!("not found"));
}

#[test]
fn any_byte_flipped_in_a_compressed_chunk_is_found_or_changes_no_code() {
    for codec in [Codec::Deflate, Codec::Lz4] {
        let dir = memory_dir();
        let (blocks, _) = real_chunk(&key(0), codec);
        assert!(blocks.iter().all(|wire| Header::parse(wire).expect("a real block").codec == codec), "{codec}");
        drop(filled(dir.path(), 1, codec));
        let mut unseen = 0;
        let tried = flip_everywhere(dir.path(), 197, |file, at| {
            // The blocks were put from the last to the first, each at a multiple of 4096.
            let mut start = 0;
            let (index, start) = (0..blocks.len())
                .rev()
                .find_map(|index| {
                    let here = start;
                    start += blocks[index].len().next_multiple_of(4096);
                    (at < start).then_some((index, here))
                })
                .expect("a flip in the tail is always found");
            let wire = &file[start..start + blocks[index].len()];
            assert_eq!(codes(wire), codes(&blocks[index]), "byte {at} changes codes and was not found");
            unseen += 1;
        });
        assert!(unseen * 50 < tried, "{unseen} of {tried} flips changed nothing: {codec}");
    }
}

fn codes(wire: &[u8]) -> Vec<u8> {
    let header = Header::parse(wire).expect("a header");
    let mut codes = vec![0; header.codes_bytes as usize];
    decompress(header.codec, &wire[header.payload_range()], &mut codes).expect("a payload");
    codes
}

/// Flips a bit of every `step`-th byte of chunk 0, of its ends and of its zeros, one at a time; `unseen` hears of the
/// file when the scrub found nothing. Returns how many it tried.
fn flip_everywhere(dir: &Path, step: usize, mut unseen: impl FnMut(&[u8], usize)) -> usize {
    let path = chunk_path(dir, &key(0));
    let good = fs::read(&path).expect("the chunk's file");
    let ends = (0..200).chain(good.len() - 400..good.len()).chain([4095, 4096]);
    let places: Vec<_> = (0..good.len()).step_by(step).chain(ends).collect();
    let file = fs::File::options().write(true).open(&path).expect("open");
    for (n, &at) in places.iter().enumerate() {
        let bad = good[at] ^ 1 << (n % 8);
        file.write_all_at(&[bad], at as u64).expect("write");
        let (report, findings) = scrub(dir, Mode::Report);
        if findings.is_empty() {
            let mut file = good.clone();
            file[at] = bad;
            unseen(&file, at);
        } else {
            assert_eq!((report.damaged, report.good), (1, 0), "byte {at}: {findings:?}");
        }
        file.write_all_at(&[good[at]], at as u64).expect("write");
    }
    places.len()
}

#[test]
fn every_kind_of_damage_is_named_and_repaired_by_moving_the_file() {
    let dir = memory_dir();
    let store = filled(dir.path(), 8, Codec::Deflate);
    // A chunk put under the wrong key, one whose manifest is none, one that lacks a block.
    let (blocks, manifest) = real_chunk(&key(20), Codec::Deflate);
    put(&store, 0, &key(21), &blocks, &manifest).expect("put");
    put(&store, 0, &key(22), &[noise(1, 100)], b"no manifest").expect("put");
    put(&store, 0, &key(20), &blocks[1..], &manifest).expect("put");
    drop(store);
    let path = |n| chunk_path(dir.path(), &key(n));
    let cut = |n, bytes| fs::File::options().write(true).open(path(n)).expect("open").set_len(bytes).expect("set_len");
    let whole = fs::metadata(path(0)).expect("stat").len();
    cut(1, whole - 4096);
    cut(2, whole + 4096);
    cut(3, 0);
    fs::copy(path(0), path(4)).expect("copy");
    fs::rename(path(5), dir.path().join("00/no-chunk")).expect("rename");
    fs::remove_file(path(6)).expect("rm");
    fs::create_dir(path(6)).expect("mkdir");
    fs::write(dir.path().join("incoming/put-3"), "half").expect("write");

    let damage = |findings: &[DamagedFile], n: u64| {
        let found = findings.iter().find(|finding| finding.path == path(n));
        found.unwrap_or_else(|| panic!("chunk {n} was not found")).damage.clone()
    };
    let (report, findings) = scrub(dir.path(), Mode::Report);
    assert_eq!((report.files, report.good, report.damaged, report.misnamed), (11, 2, 7, 2));
    assert_eq!((report.moved, report.unfinished, report.quarantined), (0, 1, 0));
    assert!(findings.iter().all(|finding| !finding.moved));
    for n in [1, 2, 3] {
        assert!(matches!(damage(&findings, n), Damage::Tail(_)), "{}", damage(&findings, n));
    }
    assert_eq!(damage(&findings, 4), Damage::Key { found: key(0) });
    assert_eq!(damage(&findings, 21), Damage::Key { found: key(20) });
    assert!(matches!(damage(&findings, 22), Damage::Manifest(_)));
    let (table, manifest) = (blocks.len() - 1, blocks.len());
    assert_eq!(damage(&findings, 20), Damage::Blocks { table, manifest });

    let (report, findings) = scrub(dir.path(), Mode::Repair);
    assert_eq!((report.damaged, report.moved, report.misnamed), (7, 7, 2));
    assert!(findings.iter().all(|finding| finding.moved == finding.damage.is_proven()));
    assert!(dir.path().join("00/no-chunk").exists() && path(6).exists(), "what is not ours is left alone");
    let (report, _) = scrub(dir.path(), Mode::Report);
    assert_eq!((report.good, report.damaged, report.quarantined), (2, 0, 7));
    let store = self::store(dir.path());
    assert_eq!(store.stats().chunks, 2);
    let (blocks, _) = real_chunk(&key(7), Codec::Deflate);
    let lengths: Vec<_> = blocks.iter().map(Vec::len).collect();
    assert!(get(&store, 0, &key(7), &lengths).expect("get").1 == blocks);
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
}

#[test]
fn a_file_that_cannot_be_read_is_not_damaged() {
    let dir = memory_dir();
    drop(filled(dir.path(), 2, Codec::Raw));
    let path = chunk_path(dir.path(), &key(0));
    // A link is not a regular file; a dangling one cannot even be opened.
    fs::remove_file(&path).expect("rm");
    std::os::unix::fs::symlink("/nowhere", &path).expect("symlink");
    let (report, _) = scrub(dir.path(), Mode::Repair);
    assert_eq!((report.good, report.damaged, report.moved, report.misnamed), (1, 0, 0, 1));
    assert!(fs::symlink_metadata(&path).is_ok(), "left alone");
}

#[test]
fn a_repair_needs_the_store_for_itself_and_a_scrub_needs_a_store() {
    let dir = memory_dir();
    let error = scrub::run(dir.path(), Mode::Repair, &mut |_| {}).expect_err("empty");
    assert_eq!(error, OpenError::NotAStore { path: dir.path().into() });
    assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 0, "a scrub makes no store");
    let store = filled(dir.path(), 1, Codec::Raw);
    let error = scrub::run(dir.path(), Mode::Repair, &mut |_| {}).expect_err("in use");
    assert!(matches!(error, OpenError::Busy { .. }), "{error}");
    drop(store);
    assert_eq!(scrub(dir.path(), Mode::Repair).0.good, 1);
}
