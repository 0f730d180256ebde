//! Figures, not claims: what the directory store adds to a plain `pread`, and what its choices cost.
//!
//! `cargo test --release -p store --test speed -- --ignored --nocapture`; `STORE_SPEED_DIR` names a directory
//! on the disk to measure. Warm means in the page cache; cold means that the file's pages were given up first, which
//! leaves the host's own cache below a virtual disk.

mod chunks;

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use chunks::{chunk_path, key, limits, noise, soon};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use store::dir::{DirStore, Options};
use store::{Direct, Store};

const CHUNKS: u64 = 32;
const BLOCKS: usize = 64;
const BLOCK_BYTES: usize = 200_000;
const CHUNK_BYTES: f64 = (BLOCKS * BLOCK_BYTES) as f64;
const ROUNDS: usize = 9;

fn gb_per_s(chunks: u64, took: Duration) -> f64 {
    chunks as f64 * CHUNK_BYTES / took.as_secs_f64() / 1e9
}

/// The best of some rounds of each step, in turn so that all meet the same neighbours, each after `before`.
fn best<const N: usize>(before: impl Fn(), mut steps: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut best = [Duration::MAX; N];
    for _ in 0..ROUNDS {
        for (step, best) in steps.iter_mut().zip(&mut best) {
            before();
            let start = Instant::now();
            step();
            *best = start.elapsed().min(*best);
        }
    }
    best
}

#[test]
#[ignore = "prints figures"]
fn reads_and_puts() {
    let parent = std::env::var_os("STORE_SPEED_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent).expect("a temporary directory");
    let blocks: Vec<_> = (0..BLOCKS).map(|n| noise(n as u64, BLOCK_BYTES)).collect();
    let fill = |sync: bool| {
        let options = Options { bytes_max: Some(4 << 30), chunks_max: 1000, sync };
        let store = DirStore::open(&dir.path().join(sync.to_string()), &limits(), options).expect("open");
        let mut times: Vec<_> = (0..CHUNKS)
            .map(|n| {
                let start = Instant::now();
                store.begin_put(0, &key(n), soon()).expect("begin");
                blocks.iter().enumerate().for_each(|(i, block)| store.put_block(0, i, block).expect("put"));
                store.commit_put(0, BLOCKS, &[1; 320]).expect("commit");
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        let (sum, p50, max) = (times.iter().sum(), times[times.len() / 2], times[times.len() - 1]);
        println!("put, sync {sync:5}: {:.2} GB/s; a chunk of 12.8 MB: p50 {p50:?}, max {max:?}", gb_per_s(CHUNKS, sum));
        store
    };
    let store = fill(false);
    fill(true);
    nix::unistd::sync();

    let mut manifest = [0; 4096];
    let keys: Vec<_> = (0..CHUNKS).map(key).collect();
    let mut lookup = || assert_eq!(store.lookup(&keys, soon()), Ok(keys.len()));
    let mut open = || {
        for key in &keys {
            store.open(0, key, &mut manifest, soon()).expect("open");
            store.close(0);
        }
    };
    let [open, lookup] = best(|| {}, [&mut open, &mut lookup]);
    println!("open and close: {:?}; lookup: {:?} a key", open / CHUNKS as u32, lookup / CHUNKS as u32);

    let files: Vec<_> = keys.iter().map(|key| File::open(chunk_path(store.path(), key)).expect("open")).collect();
    let give_up_pages = || {
        for file in &files {
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
        }
    };
    // One buffer for all, at a page as slots are: where it lies changes the figures more than anything else here.
    let mut memory = vec![0; BLOCK_BYTES + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let into = RefCell::new(&mut memory[start..start + BLOCK_BYTES]);
    let plain = |ahead: bool| {
        let mut into = into.borrow_mut();
        for file in &files {
            if ahead {
                posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED).expect("fadvise");
            }
            for i in 0..BLOCKS {
                file.read_exact_at(&mut into, (i * BLOCK_BYTES.next_multiple_of(4096)) as u64).expect("pread");
            }
        }
    };
    let mut through = || {
        let mut into = into.borrow_mut();
        for key in &keys {
            store.open(0, key, &mut manifest, soon()).expect("open");
            for i in 0..BLOCKS {
                store.read_block(0, i, &mut into, soon()).expect("read");
            }
            store.close(0);
        }
    };
    let (mut alone, mut ahead) = (|| plain(false), || plain(true));
    let speed = |took| gb_per_s(CHUNKS, took);
    let [a, b] = best(|| {}, [&mut alone, &mut through]).map(speed);
    println!("warm: plain pread {a:.2} GB/s, the store {b:.2} GB/s");
    let [a, b, c] = best(give_up_pages, [&mut alone, &mut through, &mut ahead]).map(speed);
    println!("cold: plain pread {a:.2} GB/s, the store {b:.2} GB/s, WILLNEED of the whole file {c:.2} GB/s");
}

#[test]
#[ignore = "prints figures"]
fn opening_a_store_of_many_chunks() {
    let parent = std::env::var_os("STORE_SPEED_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent).expect("a temporary directory");
    let options = Options { bytes_max: Some(1 << 40), chunks_max: 1 << 17, sync: false };
    let open = || {
        let start = Instant::now();
        let store = DirStore::open(dir.path(), &limits(), options).expect("open");
        (store.stats().chunks, start.elapsed())
    };
    println!("open, new: {:?}", open());
    for n in 0..100_000 {
        File::create(chunk_path(dir.path(), &key(n))).and_then(|file| file.set_len(10_000_000)).expect("a sparse file");
    }
    println!("open, (chunks, time): {:?}", open());
}
