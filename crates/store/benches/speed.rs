//! `cargo bench -p store --bench speed -- [--dir PATH] [--quick]`
//!
//! What the directory store adds to a plain `pread`, and what its choices cost. `--dir` names a directory on the disk
//! to measure. Warm means in the page cache; cold means that the file's pages were given up first, which leaves the
//! host's own cache below a virtual disk. Steps that are compared run in turn; medians.

#[path = "../tests/it/chunks.rs"]
mod chunks;

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bench::{Report, Sample, Table};
use block::ChunkKey;
use chunks::{chunk_path, key, limits, noise, soon};
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use store::dir::{DirOptions, DirStore};
use store::{Direct, Limits, Lookup, Opening, Store};

const CHUNKS: u64 = 32;
const BLOCKS: usize = 64;
const BLOCK_BYTES: usize = 200_000;
/// A block in a chunk's file.
const PAGES_BYTES: usize = BLOCK_BYTES.next_multiple_of(4096);
const CHUNK_BYTES: f64 = (BLOCKS * BLOCK_BYTES) as f64;

struct Arguments {
    dir: PathBuf,
    rounds: usize,
    many: u64,
}

fn main() {
    let arguments = parse();
    let mut report = Report::new("store", "The embedded store", "cargo bench -p store --bench speed");
    report.notes.push(format!(
        "A `dir:` store of {CHUNKS} chunks of {BLOCKS} blocks of 200 kB. Reads of the store beside plain reads of the same \
         files into the same memory, in turn, medians of {}.",
        arguments.rounds
    ));
    let dir = tempfile::tempdir_in(&arguments.dir).expect("a temporary directory");
    let mut puts = Table::new("Puts, chunks of 12.8 MB", &["sync", "GB/s", "p50 ms", "most ms"]);
    let store = fill(dir.path(), false, &mut puts);
    fill(dir.path(), true, &mut puts);
    nix::unistd::sync();
    report.tables.push(puts);
    report.tables.push(questions(&store, arguments.rounds));
    report.tables.push(reads(&store, arguments.rounds));
    drop(dir);
    report.tables.push(starts(&arguments));
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

fn parse() -> Arguments {
    let mut arguments = Arguments { dir: std::env::temp_dir(), rounds: 9, many: 100_000 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--dir" => arguments.dir = words.next().expect("--dir PATH").into(),
            "--quick" => (arguments.rounds, arguments.many) = (1, 1000),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/speed.rs"),
        }
    }
    arguments
}

/// One sample for each step, in seconds; all steps in turn, so that they meet the same neighbours, each after `before`.
fn in_turn<const N: usize>(rounds: usize, before: impl Fn(), mut steps: [&mut dyn FnMut(); N]) -> [Sample; N] {
    let mut samples = std::array::from_fn(|_| Sample::default());
    for _ in 0..rounds {
        for (step, sample) in steps.iter_mut().zip(&mut samples) {
            before();
            let start = Instant::now();
            step();
            sample.push(start.elapsed().as_secs_f64());
        }
    }
    samples
}

/// All chunks put into a new store.
fn fill(dir: &Path, sync: bool, table: &mut Table) -> DirStore {
    let blocks: Vec<_> = (0..BLOCKS).map(|n| noise(n as u64, BLOCK_BYTES)).collect();
    let options = DirOptions { bytes_max: Some(4 << 30), chunks_max: 1000, sync };
    let store = DirStore::open(&dir.join(sync.to_string()), &limits(), options).expect("open");
    let put = |n| {
        let start = Instant::now();
        store.begin_put(0, &key(n), None, soon()).expect("begin");
        blocks.iter().enumerate().for_each(|(i, block)| store.put_block(0, i, block).expect("put"));
        store.commit_put(0, BLOCKS, &[1; 320]).expect("commit");
        start.elapsed().as_secs_f64()
    };
    let times: Vec<f64> = (0..CHUNKS).map(put).collect();
    let speed = CHUNKS as f64 * CHUNK_BYTES / times.iter().sum::<f64>() / 1e9;
    let times: Sample = times.into_iter().collect();
    let ms = |rank| format!("{:.1}", times.quantile(rank) * 1e3);
    table.row(&[&if sync { "always" } else { "never" }, &format!("{speed:.2}"), &ms(0.5), &ms(1.0)]);
    store
}

fn keys() -> Vec<ChunkKey> {
    (0..CHUNKS).map(key).collect()
}

fn questions(store: &DirStore, rounds: usize) -> Table {
    let (keys, mut manifest) = (keys(), [0; 4096]);
    let mut asked = keys.clone();
    let mut lookup = || {
        let mut lookup = Lookup::leading(std::mem::take(&mut asked));
        assert_eq!(store.look(&mut lookup, soon()), Ok(keys.len()));
        asked = lookup.into_keys();
    };
    let mut open = || {
        for key in &keys {
            store.open(0, &Opening::of(key), &mut manifest, soon()).expect("open");
            store.close(0);
        }
    };
    let [open, lookup] = in_turn(rounds, || {}, [&mut open, &mut lookup]);
    let each = |sample: &Sample| sample.median() / CHUNKS as f64;
    let mut table = Table::new("Questions", &["open and close a chunk, us", "look up a key, ns"]);
    table.row(&[&format!("{:.1}", each(&open) * 1e6), &format!("{:.0}", each(&lookup) * 1e9)]);
    table
}

fn reads(store: &DirStore, rounds: usize) -> Table {
    let (keys, mut manifest) = (keys(), [0; 4096]);
    let files: Vec<_> = keys.iter().map(|key| File::open(chunk_path(store.path(), key)).expect("open")).collect();
    let direct =
        |key| OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(chunk_path(store.path(), key));
    // Not every file system can.
    let directs: Option<Vec<_>> = keys.iter().map(|key| direct(key).ok()).collect();
    let give_up_pages = || {
        for file in &files {
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
        }
    };
    // One buffer for all, at a page as slots are: where it lies changes the figures more than anything else here.
    let mut memory = vec![0; PAGES_BYTES + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let into = RefCell::new(&mut memory[start..start + PAGES_BYTES]);
    let plain = |ahead: bool| {
        let into = &mut into.borrow_mut()[..BLOCK_BYTES];
        for file in &files {
            if ahead {
                posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED).expect("fadvise");
            }
            for i in 0..BLOCKS {
                file.read_exact_at(into, (i * PAGES_BYTES) as u64).expect("pread");
            }
        }
    };
    let mut past_cache = || {
        let mut into = into.borrow_mut();
        for file in directs.iter().flatten() {
            for i in 0..BLOCKS {
                file.read_exact_at(&mut into, (i * PAGES_BYTES) as u64).expect("pread");
            }
        }
    };
    let mut through = || {
        let into = &mut into.borrow_mut()[..BLOCK_BYTES];
        for key in &keys {
            store.open(0, &Opening::of(key), &mut manifest, soon()).expect("open");
            for i in 0..BLOCKS {
                store.read_block(0, i, into, soon()).expect("read");
            }
            store.close(0);
        }
    };
    let (mut alone, mut ahead) = (|| plain(false), || plain(true));
    let speed = |sample: &Sample| CHUNKS as f64 * CHUNK_BYTES / sample.median() / 1e9;
    let mut table = Table::new(
        "Reads, GB/s",
        &["", "plain pread", "the store", "store / plain", "plain, WILLNEED", "plain, O_DIRECT", "spread"],
    );
    let mut row = |name: &str, plain: &Sample, store: &Sample, others: [Option<&Sample>; 2]| {
        let (a, b) = (speed(plain), speed(store));
        let [ahead, direct] =
            others.map(|other| other.map_or(String::from("-"), |other| format!("{:.2}", speed(other))));
        let (share, spread) = (format!("{:.0} %", 100.0 * b / a), format!("{:.0} %", 100.0 * store.spread()));
        table.row(&[&name, &format!("{a:.2}"), &format!("{b:.2}"), &share, &ahead, &direct, &spread]);
    };
    let [a, b] = in_turn(rounds, || {}, [&mut alone, &mut through]);
    row("warm", &a, &b, [None; 2]);
    let [a, b, c, d] = in_turn(rounds, give_up_pages, [&mut alone, &mut through, &mut ahead, &mut past_cache]);
    row("cold", &a, &b, [Some(&c), directs.is_some().then_some(&d)]);
    table
}

/// How long a store of many chunks takes to open, alone and as the disk tier of others, which has the policy to fill,
/// too.
fn starts(arguments: &Arguments) -> Table {
    let dir = tempfile::tempdir_in(&arguments.dir).expect("a temporary directory");
    let (path, bottom) = (dir.path().join("store"), dir.path().join("bottom"));
    let options = DirOptions { bytes_max: Some(1 << 42), chunks_max: 1 << 17, sync: false };
    let timed = |open: &dyn Fn() -> u64| {
        let start = Instant::now();
        (open(), start.elapsed())
    };
    let alone = || DirStore::open(&path, &limits(), options).expect("open").stats().chunks;
    let url = format!("tiers:dir:{}=4096G,dir:{}", path.display(), bottom.display());
    let tier = || {
        let store = store::open::<Vec<u8>>(&url, &Limits { chunks_max: 1 << 17, ..limits() }).expect("open");
        let mut chunks = 0;
        store.tiers(false, &mut |tier| chunks = tier.chunks);
        chunks
    };
    let mut table = Table::new("Starts", &["", "chunks", "ms"]);
    let mut row = |name: &str, (chunks, took): (u64, Duration)| {
        table.row(&[&name, &chunks, &format!("{:.1}", took.as_secs_f64() * 1e3)]);
    };
    row("a store", timed(&alone));
    for n in 0..arguments.many {
        File::create(chunk_path(&path, &key(n))).and_then(|file| file.set_len(10_000_000)).expect("a sparse file");
    }
    row("a store", timed(&alone));
    row("a disk tier", timed(&tier));
    nix::unistd::sync();
    // Names and sizes of files from the disk, as after a reboot; root only.
    if std::fs::write("/proc/sys/vm/drop_caches", "2").is_ok() {
        row("a disk tier, names not in memory", timed(&tier));
    }
    table
}
