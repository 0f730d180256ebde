//! Claims about `dir:` that only a directory can make: crashes, limits, full and read-only disks, damage, two openers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use store::dir::{DirOptions, DirStore};
use store::{Direct, OpenError, Opening, ResponsibleParty, Store, StoreError};

use crate::chunks::{Look, again, again_mounted, chunk_path, condemn, get, key, limits, noise, put, role, soon};

/// A store that may hold `bytes`, without waiting for the disk.
fn store(dir: &Path, bytes: u64) -> DirStore {
    let options = DirOptions { bytes_max: Some(bytes), chunks_max: 64, sync: false };
    DirStore::open(dir, &limits(), options).expect("the directory opens")
}

/// The one block of chunk `n`: 40 KiB, so that a file takes 40 KiB and its tail.
fn block(n: u64) -> Vec<u8> {
    noise(n, 40 << 10)
}

const FILE_BYTES: u64 = (40 << 10) + 16 + 1 + 64;

fn put_block(store: &DirStore, n: u64) -> Result<(), StoreError> {
    put(store, 0, &key(n), &[block(n)], b"m")
}

fn get_block(store: &DirStore, n: u64) -> Result<(), StoreError> {
    let (_, blocks) = get(store, 0, &key(n), &[40 << 10])?;
    assert!(blocks == [block(n)], "chunk {n} came back with other bytes");
    Ok(())
}

/// Opens a chunk once more, from the disk, which finds the same: only then it goes.
fn is_bad_anew(store: &DirStore, n: u64, error: StoreError) {
    assert_eq!(store.lookup(&[key(n)], soon()), Ok(1), "once is no proof");
    let opening = Opening { anew: true, ..Opening::of(&key(n)) };
    assert_eq!(store.open(0, &opening, &mut [0; 4096], soon()), Err(error));
    assert_eq!(store.lookup(&[key(n)], soon()), Ok(0));
}

fn present(store: &DirStore, chunks: std::ops::Range<u64>) -> Vec<u64> {
    chunks.filter(|&n| store.lookup(&[key(n)], soon()) == Ok(1)).collect()
}

/// Bytes of all regular files but the marker.
fn bytes_on_disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_on_disk(&entry.path()),
            Ok(meta) if entry.file_name() != "kvlane-store" => meta.len(),
            _ => 0,
        })
        .sum()
}

#[test]
fn a_process_killed_at_any_time_leaves_whole_chunks_or_nothing() {
    const NAME: &str = "dir::a_process_killed_at_any_time_leaves_whole_chunks_or_nothing";
    if let Some((_, dir)) = role() {
        // Puts chunks round and round, two at a time, until it is killed.
        let store = store(&dir, 30 * FILE_BYTES);
        println!("ready");
        std::thread::scope(|scope| {
            for seat in 0..2 {
                let store = &store;
                scope.spawn(move || {
                    for n in (seat as u64..).step_by(2).map(|n| n % 40) {
                        put(store, seat, &key(n), &[block(n)], b"m").expect("put");
                    }
                });
            }
        });
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut chunks, mut unfinished) = (0, 0);
    for life in 0..12 {
        let mut child = again(NAME, "victim", dir.path()).stdout(Stdio::piped()).spawn().expect("spawn");
        let ready = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        assert!(ready.into_iter().any(|line| line.contains("ready")), "the victim started");
        std::thread::sleep(Duration::from_micros(5000 + 3700 * life));
        child.kill().expect("kill -9");
        child.wait().expect("wait");
        unfinished += fs::read_dir(dir.path().join("incoming")).expect("incoming").count();
        let store = store(dir.path(), 30 * FILE_BYTES);
        assert_eq!(fs::read_dir(dir.path().join("incoming")).expect("incoming").count(), 0);
        for n in present(&store, 0..40) {
            get_block(&store, n).expect("a chunk that is there is whole");
            chunks += 1;
        }
        assert_eq!(store.stats().corrupt, 0);
        assert_eq!(store.stats().bytes, bytes_on_disk(dir.path()));
    }
    assert!(chunks > 0 && unfinished > 0, "{chunks} chunks and {unfinished} unfinished puts: the kills missed");
}

#[test]
fn zeros_behind_a_name_after_a_power_cut_are_corrupt_not_loaded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    {
        let store = store(dir.path(), 1 << 20);
        (0..3).for_each(|n| put_block(&store, n).expect("put"));
    }
    // What `sync=never` may leave: the name and the length without the bytes, or no length either.
    fs::write(chunk_path(dir.path(), &key(0)), vec![0; FILE_BYTES as usize]).expect("zeros");
    fs::write(chunk_path(dir.path(), &key(1)), []).expect("empty");
    let store = store(dir.path(), 1 << 20);
    for n in [0, 1] {
        let error = get_block(&store, n).expect_err("damaged");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(error.blame(), ResponsibleParty::Store);
        is_bad_anew(&store, n, error);
        assert_eq!(get_block(&store, n), Err(StoreError::Miss));
    }
    get_block(&store, 2).expect("the third is whole");
    assert_eq!(store.stats().corrupt, 2);
}

#[test]
fn the_least_recently_used_chunk_goes_first_and_the_limit_holds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let limit = 5 * FILE_BYTES + 4096;
    let store = store(dir.path(), limit);
    for n in 0..5 {
        put_block(&store, n).expect("put");
    }
    get_block(&store, 0).expect("use the oldest");
    store.lookup(&[key(1)], soon()).expect("a lookup is no use");
    put_block(&store, 5).expect("put");
    assert_eq!(present(&store, 0..6), [0, 2, 3, 4, 5]);
    assert!(bytes_on_disk(dir.path()) <= limit);
    assert_eq!(store.stats().bytes, bytes_on_disk(dir.path()));
    assert_eq!((store.stats().evicted, store.stats().bytes_evicted), (1, FILE_BYTES));
}

#[test]
fn a_touched_prefix_loses_its_tail_before_its_head() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 5 * FILE_BYTES + 4096);
    for n in 0..5 {
        put_block(&store, n).expect("put");
    }
    store.touch(0, None, &[key(0), key(1), key(99), key(2), key(3)], false);
    for n in 10..13 {
        put_block(&store, n).expect("put");
    }
    assert_eq!(present(&store, 0..20), [0, 1, 10, 11, 12]);
}

/// Puts chunk `n` of a prompt, the chunk before it being `n - 1` unless it is the first of `first`.
fn put_behind(store: &DirStore, n: u64, first: u64) -> Result<(), StoreError> {
    let parent = (n > first).then(|| key(n - 1));
    store.begin_put(0, &key(n), parent.as_ref(), soon())?;
    if let Err(error) = store.put_block(0, 0, &block(n)) {
        store.abort_put(0);
        return Err(error);
    }
    store.commit_put(0, 1, b"m")
}

#[test]
fn what_is_kept_of_a_prompt_is_its_head_however_it_was_put_and_used_and_over_a_restart() {
    for (fetched, restarted) in [(false, false), (true, false), (false, true), (true, true)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = self::store(dir.path(), 8 * FILE_BYTES + 4096);
        (0..8).for_each(|n| put_behind(&store, n, 0).expect("put"));
        let opening = |n: u64| Opening { parent: (n > 0).then(|| key(n - 1)), ..Opening::of(&key(n)) };
        if fetched {
            for n in 0..8 {
                store.open(0, &opening(n), &mut [0; 4096], soon()).expect("open");
                store.close(0);
            }
        }
        if restarted {
            drop(store);
            store = self::store(dir.path(), 8 * FILE_BYTES + 4096);
        }
        (20..23).for_each(|n| put_behind(&store, n, 20).expect("put"));
        let kept = present(&store, 0..30);
        assert_eq!(kept, [0, 1, 2, 3, 4, 20, 21, 22], "fetched: {fetched}, restarted: {restarted}");
    }
}

#[test]
fn a_prompt_longer_than_the_store_keeps_its_head() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 6 * FILE_BYTES + 4096);
    (0..20).for_each(|n| put_behind(&store, n, 0).expect("put"));
    let kept = present(&store, 0..20);
    assert_eq!(kept[..5], [0, 1, 2, 3, 4], "{kept:?}");
}

#[test]
fn the_index_is_a_limit_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = DirOptions { bytes_max: Some(1 << 30), chunks_max: 3, sync: false };
    let store = DirStore::open(dir.path(), &limits(), options).expect("open");
    for n in 0..10 {
        put_block(&store, n).expect("put");
    }
    assert_eq!(present(&store, 0..10), [7, 8, 9]);
    assert_eq!(bytes_on_disk(dir.path()), 3 * FILE_BYTES);
}

#[test]
fn a_chunk_evicted_while_it_is_read_is_read_to_its_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 2 * FILE_BYTES + 4096);
    put_block(&store, 0).expect("put");
    let mut manifest = [0; 4096];
    store.open(1, &Opening::of(&key(0)), &mut manifest, soon()).expect("open");
    let mut found = vec![0; 40 << 10];
    for n in 1..4 {
        put_block(&store, n).expect("put");
    }
    assert!(!chunk_path(dir.path(), &key(0)).exists(), "evicted");
    store.read_block(1, 0, &mut found, soon()).expect("read");
    assert!(found == block(0));
    store.close(1);
}

#[test]
fn a_chunk_larger_than_the_store_is_full_and_evicts_no_put() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 3 * FILE_BYTES);
    put_block(&store, 0).expect("put");
    store.begin_put(1, &key(1), None, soon()).expect("begin");
    store.put_block(1, 0, &block(1)).expect("a put in progress");
    let error = put(&store, 0, &key(2), &[noise(2, 100 << 10)], b"m").expect_err("no room");
    assert_eq!(error, StoreError::Full { bytes: 100 << 10 });
    assert_eq!(present(&store, 0..1), [0], "what cannot fit anyway evicts nothing");
    assert_eq!(error.blame(), ResponsibleParty::Operator);
    store.commit_put(1, 1, b"m").expect("the other put is not disturbed");
    get_block(&store, 1).expect("get");
    assert!(store.stats().bytes == 2 * FILE_BYTES && store.stats().evicted == 0);
}

#[test]
fn a_file_that_cannot_be_removed_fails_one_put_and_not_the_next() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 3 * FILE_BYTES + 4096);
    (0..3).for_each(|n| put_block(&store, n).expect("put"));
    // A directory in its place: unlink does not remove it.
    let path = chunk_path(dir.path(), &key(0));
    fs::rename(&path, dir.path().join("aside")).expect("rename");
    fs::create_dir(&path).expect("mkdir");
    let error = put_block(&store, 3).expect_err("the oldest cannot be evicted");
    assert_eq!(error, StoreError::Io { call: "unlink", errno: Errno::EISDIR });
    put_block(&store, 3).expect("the next one can");
    assert_eq!(present(&store, 0..4), [0, 2, 3]);
}

#[test]
fn a_restart_finds_the_same_chunks_in_the_same_order_of_use() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    {
        let store = store(dir.path(), 1 << 20);
        (0..4).for_each(|n| put_block(&store, n).expect("put"));
    }
    // Use is written down in the mtime. 2 was used longest ago, then 0, 3, 1.
    for (age, n) in [2, 0, 3, 1].into_iter().rev().enumerate() {
        let file = fs::File::options().write(true).open(chunk_path(dir.path(), &key(n))).expect("the chunk's file");
        file.set_modified(SystemTime::now() - Duration::from_secs(100_000 * (age as u64 + 1))).expect("utimens");
    }
    {
        let store = store(dir.path(), 1 << 20);
        assert_eq!(store.stats().bytes, 4 * FILE_BYTES);
        get_block(&store, 2).expect("use of the oldest is written down");
    }
    // A smaller limit evicts at start: 0 and 3 are the oldest now.
    let store = store(dir.path(), 2 * FILE_BYTES);
    assert_eq!(present(&store, 0..4), [1, 2]);
    assert_eq!(bytes_on_disk(dir.path()), 2 * FILE_BYTES);
    get_block(&store, 1).expect("get");
    get_block(&store, 2).expect("get");
}

#[test]
fn the_second_opener_is_told_the_pid_of_the_first() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = store(dir.path(), 1 << 20);
    let error = DirStore::open(dir.path(), &limits(), DirOptions::default()).expect_err("locked");
    assert_eq!(error, OpenError::Busy { path: dir.path().into(), pid: Some(std::process::id()) });
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    store(dir.path(), 1 << 20);
}

#[test]
fn a_url_that_cannot_work_says_what_can() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = dir.path().display();
    fs::create_dir(dir.path().join("home")).expect("mkdir");
    fs::write(dir.path().join("home/letter"), "dear").expect("write");
    fs::create_dir(dir.path().join("future")).expect("mkdir");
    fs::write(dir.path().join("future/kvlane-store"), "kvlane dir store 2\n").expect("write");
    fs::write(dir.path().join("plain"), "").expect("write");
    for (url, said) in [
        ("mongodb://h".to_string(), "use dir:PATH"),
        ("somewhere".to_string(), "use dir:PATH"),
        ("dir:".to_string(), "the path is empty"),
        (format!("dir:{at}/new?bytes=lots"), "bytes is not a number like 200G"),
        (format!("dir:{at}/new?bytes=0"), "bytes is not a number like 200G"),
        (format!("dir:{at}/new?sync=perhaps"), "sync is not one of always, never"),
        (format!("dir:{at}/new?chunks=0"), "chunks is not a number from 1"),
        (format!("dir:{at}/new?color=red"), "options are bytes, chunks, sync"),
        (format!("dir:{at}/no/such"), "mkdir --parents"),
        (format!("dir:{at}/home"), "neither a kvlane store nor empty"),
        (format!("dir:{at}/future"), "kvlane dir store 2"),
        (format!("dir:{at}/plain"), "Not a directory"),
    ] {
        let error = store::open::<Vec<u8>>(&url, &limits()).expect_err(&url);
        assert!(error.to_string().contains(said), "{url}: {error}");
    }
    assert_eq!(fs::read_dir(dir.path().join("home")).expect("home").count(), 1, "a refused directory is not touched");
    assert!(!dir.path().join("new").exists());
}

#[test]
fn a_url_says_the_limits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let url = format!("dir:{}/s?bytes=3M&chunks=7&sync=never", dir.path().display());
    let store = store::open::<Vec<u8>>(&url, &limits()).expect("open");
    assert_eq!(store.stats().bytes_max, 3 << 20);
    let text = store.describe();
    assert!(text.contains("bytes max 3145728, chunks max 7, sync never"), "{text}");
    drop(store);
    let url = format!("dir:{}/s", dir.path().display());
    assert_eq!(
        store::open::<Vec<u8>>(&url, &limits()).expect("open").stats().bytes_max,
        64 << 20,
        "limits without an option"
    );
    assert_eq!(store::directory(&url), Some(&*dir.path().join("s")));
    assert_eq!(["7", "2K", "3MiB", "1G", "1T"].map(store::bytes), [7, 2048, 3 << 20, 1 << 30, 1 << 40].map(Some));
    assert_eq!(["", "G", "-1", "1.5G", "1P", "99999999T", "0"].map(store::bytes), [None; 7]);
}

#[test]
fn without_a_limit_a_store_takes_half_of_what_is_free() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = DirOptions { bytes_max: None, ..DirOptions::default() };
    let store = DirStore::open(dir.path(), &limits(), options).expect("open");
    let stat = nix::sys::statvfs::statvfs(dir.path()).expect("statvfs");
    let half = stat.blocks_available() * stat.fragment_size() / 2;
    assert!(store.stats().bytes_max.abs_diff(half) < half / 2, "{} is not about {half}", store.stats().bytes_max);
}

#[test]
fn a_file_that_was_cut_off_or_grew_or_changed_places_is_corrupt_and_quarantined() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 16 << 20);
    let path = |n| chunk_path(dir.path(), &key(n));
    for n in 0..6 {
        put_block(&store, n).expect("put");
    }
    let change = |n: u64, f: &dyn Fn(&fs::File)| f(&fs::File::options().write(true).open(path(n)).expect("open"));
    change(0, &|file| file.set_len(FILE_BYTES - 1).expect("truncate"));
    change(1, &|file| file.set_len(20).expect("truncate"));
    change(2, &|file| file.set_len(FILE_BYTES + 1).expect("grow"));
    change(3, &|file| file.write_all_at(&[7], FILE_BYTES - 70).expect("write"));
    fs::copy(path(5), path(4)).expect("copy");
    for n in 0..5 {
        let error = get_block(&store, n).expect_err("damaged");
        assert!(matches!(error, StoreError::Corrupt { .. }), "chunk {n}: {error}");
        is_bad_anew(&store, n, error);
        assert!(!path(n).exists() && store.quarantine_path().join(key(n).to_string()).exists());
        put_block(&store, n).expect("its place is free");
        get_block(&store, n).expect("and holds the chunk again");
    }
    assert_eq!(store.stats().corrupt, 5);
    assert_eq!(store.stats().bytes, bytes_on_disk(dir.path()), "quarantined bytes count");
}

#[test]
fn a_file_cut_off_while_it_is_open_is_corrupt() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 16 << 20);
    put_block(&store, 0).expect("put");
    store.open(0, &Opening::of(&key(0)), &mut [0; 4096], soon()).expect("open");
    fs::File::options().write(true).open(chunk_path(dir.path(), &key(0))).expect("open").set_len(5000).expect("cut");
    let error = store.read_block(0, 0, &mut vec![0; 40 << 10], soon()).expect_err("cut off");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    store.close(0);
    let error = get_block(&store, 0).expect_err("cut off");
    is_bad_anew(&store, 0, error);
}

#[test]
fn the_quarantine_is_bounded_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let limit = 200 * FILE_BYTES;
    for life in 0..2 {
        let store = store(dir.path(), limit);
        for n in life * 100..life * 100 + 20 {
            put_block(&store, n).expect("put");
            condemn(&store, 3, &key(n));
        }
        let kept = fs::read_dir(store.quarantine_path()).expect("quarantine").count();
        // A sixteenth of 200 files' bytes are twelve files.
        assert_eq!(kept, 12);
        assert_eq!(store.stats().bytes, bytes_on_disk(dir.path()));
        assert_eq!((store.stats().chunks, store.stats().corrupt), (0, 20));
    }
}

#[test]
fn a_call_that_fails_is_no_miss_and_deletes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 16 << 20);
    put_block(&store, 0).expect("put");
    // A directory can be opened like a file, and then every read fails.
    let path = chunk_path(dir.path(), &key(0));
    let aside = dir.path().join("aside");
    fs::rename(&path, &aside).expect("rename");
    fs::create_dir(&path).expect("mkdir");
    let error = get_block(&store, 0).expect_err("unreadable");
    assert_eq!(error, StoreError::Io { call: "pread", errno: Errno::EISDIR });
    assert!(error.may_retry() && error.blame() == ResponsibleParty::Store);
    assert_eq!(store.lookup(&[key(0)], soon()), Ok(1), "still there");
    fs::remove_dir(&path).expect("rmdir");
    fs::rename(&aside, &path).expect("rename");
    get_block(&store, 0).expect("it was only unreadable");
    assert_eq!((store.stats().io_errors, store.stats().corrupt), (3, 0), "three tries");
}

#[test]
fn a_file_removed_behind_our_back_is_a_miss() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = store(dir.path(), 16 << 20);
    put_block(&store, 0).expect("put");
    fs::remove_file(chunk_path(dir.path(), &key(0))).expect("rm");
    assert_eq!(get_block(&store, 0), Err(StoreError::Miss));
    assert_eq!((store.lookup(&[key(0)], soon()), store.stats().bytes), (Ok(0), 0));
}

#[test]
fn files_that_are_no_chunks_are_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    drop(store(dir.path(), 1 << 20));
    let name = key(3).to_string();
    let strangers = [format!("{}/notes", &name[..2]), format!("00/ff{}", &name[2..]), "readme".into()];
    for stranger in &strangers {
        fs::write(dir.path().join(stranger), "x").expect("write");
    }
    let store = store(dir.path(), 1 << 20);
    assert_eq!(store.stats().chunks, 0);
    assert!(strangers.iter().all(|stranger| dir.path().join(stranger).exists()));
}

#[test]
fn a_full_disk_evicts_and_tries_once_more_then_says_full() {
    const NAME: &str = "dir::a_full_disk_evicts_and_tries_once_more_then_says_full";
    let Some((_, dir)) = role() else {
        let dir = tempfile::tempdir().expect("a temporary directory");
        again_mounted(NAME, "mount -t tmpfs -o size=4m tmpfs \"$STORE_DIR\"", dir.path());
        return;
    };
    // 4 MiB of disk, and a limit that it cannot keep.
    let store = store(&dir, 1 << 30);
    let ballast = dir.join("incoming/put-9");
    fs::write(&ballast, vec![1; 2 << 20]).expect("somebody else takes half of it");
    for n in 0..60 {
        put_block(&store, n).expect("a put evicts what it needs");
        get_block(&store, n).expect("get");
    }
    let stats = store.stats();
    assert!(stats.evicted > 10 && stats.chunks > 20, "{stats:?}");
    assert_eq!(stats.bytes, bytes_on_disk(&dir) - (2 << 20));
    // Now nothing can be evicted that would help.
    fs::write(dir.join("incoming/put-8"), vec![1; 2 << 20]).expect_err("no space");
    let error = (0..60).map(|n| put(&store, 0, &key(n), &[noise(n, 1 << 20), noise(n, 1 << 20)], b"m"));
    let error = error.into_iter().find_map(Result::err).expect("no room for 2 MiB");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    fs::remove_file(dir.join("incoming/put-8")).expect("rm");
    fs::remove_file(&ballast).expect("rm");
    put_block(&store, 7).expect("room again");
    get_block(&store, 7).expect("get");
}

#[test]
fn a_read_only_disk_serves_fetches_and_refuses_puts() {
    const NAME: &str = "dir::a_read_only_disk_serves_fetches_and_refuses_puts";
    let Some((_, dir)) = role() else {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = store(dir.path(), 1 << 20);
        (0..3).for_each(|n| put_block(&first, n).expect("put"));
        drop(first);
        let mount = "mount --bind \"$STORE_DIR\" \"$STORE_DIR\" && mount -o remount,bind,ro \"$STORE_DIR\"";
        again_mounted(NAME, mount, dir.path());
        return;
    };
    // Even under a limit that it exceeds.
    let store = store(&dir, 2 * FILE_BYTES);
    assert!(store.stats().read_only && store.describe().contains("read-only"));
    let error = put_block(&store, 5).expect_err("read-only");
    assert_eq!((error, error.blame()), (StoreError::ReadOnly, ResponsibleParty::Operator));
    (0..3).for_each(|n| get_block(&store, n).expect("get"));
    assert_eq!(get_block(&store, 5), Err(StoreError::Miss));
    // What is proven bad is not served again, though it cannot be moved.
    condemn(&store, 3, &key(1));
    assert_eq!(get_block(&store, 1), Err(StoreError::Miss));
    assert!(chunk_path(&dir, &key(1)).exists());
    let error = DirStore::open(&dir, &limits(), DirOptions::default()).expect_err("locked all the same");
    assert!(matches!(error, OpenError::Busy { .. }), "{error}");
    let error = DirStore::open(&dir.join("new"), &limits(), DirOptions::default()).expect_err("it cannot be made");
    assert!(error.to_string().contains("mounted read-only") && !error.may_pass(), "{error}");
}

#[test]
fn a_disk_that_turns_read_only_serves_fetches_and_recovers() {
    const NAME: &str = "dir::a_disk_that_turns_read_only_serves_fetches_and_recovers";
    let Some((_, dir)) = role() else {
        let dir = tempfile::tempdir().expect("a temporary directory");
        again_mounted(NAME, "mount -t tmpfs -o size=4m tmpfs \"$STORE_DIR\"", dir.path());
        return;
    };
    let remount = |flag: &str| {
        let done = std::process::Command::new("mount").args(["-o", &format!("remount,{flag}")]).arg(&dir).status();
        done.is_ok_and(|status| status.success())
    };
    let store = store(&dir, 3 * FILE_BYTES + 4096);
    (0..3).for_each(|n| put_block(&store, n).expect("put"));
    assert!(remount("ro"), "remount");
    for n in 0..3 {
        assert_eq!(put_block(&store, n + 10), Err(StoreError::ReadOnly));
        get_block(&store, n).expect("fetches go on");
    }
    assert!(store.stats().read_only);
    assert!(remount("rw"), "remount");
    put_block(&store, 9).expect("put");
    get_block(&store, 9).expect("get");
    assert!(!store.stats().read_only, "the last write went well");
    assert_eq!(store.stats().bytes, bytes_on_disk(&dir));
}

#[test]
fn readers_and_writers_in_a_small_store_never_see_a_broken_chunk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let limit = 8 * FILE_BYTES + 4096;
    let store = store(dir.path(), limit);
    let end = Instant::now() + Duration::from_millis(1500);
    std::thread::scope(|scope| {
        for seat in 0..2 {
            let store = &store;
            scope.spawn(move || {
                let mut n = seat as u64;
                while Instant::now() < end {
                    n = (n * 5 + 3) % 16;
                    match put(store, seat, &key(n), &[block(n)], b"m") {
                        Ok(()) | Err(StoreError::Full { .. }) => {}
                        Err(error) => panic!("put: {error}"),
                    }
                    if n == 7 {
                        condemn(store, seat + 2, &key(7));
                    }
                }
            });
            scope.spawn(move || {
                let (mut n, mut hits) = (seat as u64 + 1, 0);
                while Instant::now() < end {
                    n = (n * 7 + 1) % 16;
                    match get(store, seat, &key(n), &[40 << 10]) {
                        Ok((_, blocks)) => {
                            assert!(blocks == [block(n)]);
                            hits += 1;
                        }
                        Err(error) => assert_eq!(error, StoreError::Miss),
                    }
                }
                assert!(hits > 0);
            });
        }
        scope.spawn(|| {
            while Instant::now() < end {
                assert!(store.stats().bytes <= limit, "{:?}", store.stats());
            }
        });
    });
    assert_eq!(store.stats().bytes, bytes_on_disk(dir.path()));
    assert_eq!(store.stats().io_errors, 0);
}
