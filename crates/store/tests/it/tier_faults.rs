//! A card's disk that is full, read-only, gone, or hangs; a process that dies in mid-promotion; a remote store that
//! goes and comes back: nothing wrong is ever served, and what can be served is served.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use store::TierFacts;

use crate::chunks::{Questions, again, again_mounted, chunk_path, put, role, soon};
use crate::servers::{self, Server};
use crate::tiered::{Any, Real, facts, keys, open, wait_until, warm, with_bottom_dir};

/// T1 as it counts now.
fn disk(store: &Any) -> TierFacts {
    let mut found = None;
    store.tiers(false, &mut |tier| {
        if tier.name == "dir" {
            found = Some(*tier);
        }
    });
    found.expect("a disk tier")
}

/// Files of chunks in a directory store, and their bytes.
fn files(dir: &Path) -> (u64, u64) {
    let prefixes = fs::read_dir(dir).expect("a directory").flatten().filter(|entry| entry.file_name().len() == 2);
    let lengths = prefixes.flat_map(|prefix| {
        let chunks = fs::read_dir(prefix.path()).expect("a directory").flatten();
        chunks.map(|chunk| chunk.metadata().expect("a file").len()).collect::<Vec<_>>()
    });
    lengths.fold((0, 0), |(files, bytes), length| (files + 1, bytes + length))
}

/// A prompt in a store that is `dir`'s bottom, and tiers of which T1 is `dir`'s tier.
fn filled(dir: &Path, tiers: &str, chunks: u64) -> (Box<Any>, Vec<Real>) {
    let store = open(dir, tiers, &format!("dir:{}", dir.join("bottom").display()));
    let prompt = Real::prompt(chunks);
    for chunk in &prompt {
        put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
    }
    (store, prompt)
}

fn all_is_right(store: &Any, prompt: &[Real]) {
    prompt.iter().for_each(|chunk| chunk.fetched(store).expect("fetch"));
}

/// Runs the test `name` again with a tmpfs of `size` mounted where T1 lies.
fn on_small_disk(name: &str, size: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(dir.path().join("tier")).expect("mkdir");
    again_mounted(name, &format!("mount -t tmpfs -o size={size} tmpfs \"$STORE_DIR/tier\""), dir.path());
}

fn mount(arguments: &[&str], at: &Path) {
    let done = Command::new(arguments[0]).args(&arguments[1..]).arg(at).status();
    assert!(done.is_ok_and(|status| status.success()), "{arguments:?}");
}

#[test]
fn a_full_disk_holds_less_and_room_brings_the_rest_back() {
    const NAME: &str = "tier_faults::a_full_disk_holds_less_and_room_brings_the_rest_back";
    let Some((_, dir)) = role() else { return on_small_disk(NAME, "2m") };
    // The limit promises more than the disk has.
    let (store, prompt) = filled(&dir, "dir:DIR=32M", 24);
    warm(&*store, &prompt[..4], "dir");
    let ballast = dir.join("tier/incoming/put-9");
    fs::write(&ballast, vec![1; 2 << 20]).expect_err("somebody else takes all that is left");
    for chunk in &prompt[4..] {
        store.touch(0, None, &[chunk.key], false);
    }
    let tried = |facts: TierFacts| facts.promoted + facts.refused + facts.failed;
    wait_until("all of them to be tried", || tried(disk(&*store)) >= 24);
    let full = disk(&*store);
    assert!((1..10).contains(&full.chunks), "{full:?}: there is room for four");
    assert_eq!((full.chunks, full.bytes), files(&dir.join("tier")));
    assert_eq!(store.lookup(&keys(&prompt), soon()), Ok(prompt.len()));
    all_is_right(&*store, &prompt);
    fs::remove_file(&ballast).expect("rm");
    wait_until("the rest to come in", || {
        store.touch(0, None, &keys(&prompt), false);
        thread::sleep(Duration::from_millis(20));
        disk(&*store).chunks == prompt.len() as u64
    });
    all_is_right(&*store, &prompt);
}

#[test]
fn a_disk_that_turns_read_only_is_read_and_is_left_alone_by_writers() {
    const NAME: &str = "tier_faults::a_disk_that_turns_read_only_is_read_and_is_left_alone_by_writers";
    let Some((_, dir)) = role() else { return on_small_disk(NAME, "4m") };
    let (store, prompt) = filled(&dir, "dir:DIR=2M", 24);
    warm(&*store, &prompt[..3], "dir");
    mount(&["mount", "-o", "remount,ro"], &dir.join("tier"));
    for chunk in &prompt[3..] {
        store.touch(0, None, &[chunk.key], false);
    }
    wait_until("writes to be given up", || disk(&*store).out);
    let failed = disk(&*store).failed;
    assert!((1..8).contains(&failed), "{failed} failed: the rest is not tried");
    let hits = facts(&*store, "dir").1;
    all_is_right(&*store, &prompt);
    assert_eq!(facts(&*store, "dir").1, hits + 3, "what is there is read from there");
}

#[test]
fn a_disk_that_is_unmounted_while_it_is_used_costs_hits_only() {
    const NAME: &str = "tier_faults::a_disk_that_is_unmounted_while_it_is_used_costs_hits_only";
    let Some((_, dir)) = role() else { return on_small_disk(NAME, "4m") };
    let (store, prompt) = filled(&dir, "dir:DIR=2M", 6);
    warm(&*store, &prompt[..3], "dir");
    store.open(0, &prompt[0].key, &mut [0; 4096], soon()).expect("open");
    mount(&["umount", "--lazy"], &dir.join("tier"));
    store.close(0);
    for chunk in &prompt[3..] {
        store.touch(0, None, &[chunk.key], false);
    }
    all_is_right(&*store, &prompt);
    drop(store);
    // The next start finds the mount point empty and begins anew there.
    let store = open(&dir, "dir:DIR=2M", &format!("dir:{}", dir.join("bottom").display()));
    assert_eq!(disk(&*store).chunks, 0);
    warm(&*store, &prompt, "dir");
    all_is_right(&*store, &prompt);
}

/// A file that whoever opens it hangs on, until somebody opens it for writing.
fn hang_on(path: &Path) {
    fs::remove_file(path).expect("rm");
    mkfifo(path, Mode::S_IRWXU).expect("mkfifo");
}

fn let_go(path: &Path) {
    drop(fs::OpenOptions::new().write(true).open(path).expect("open"));
}

#[test]
fn a_disk_that_hangs_holds_who_asked_it_and_nobody_else() {
    with_bottom_dir("dir:DIR=32M", |dir, open, prompt| {
        let store = open();
        warm(&*store, prompt, "dir");
        let file = chunk_path(&dir.join("tier"), &prompt[0].key);
        hang_on(&file);
        thread::scope(|scope| {
            let store = &*store;
            // open(2) does not return.
            let (told, tells) = mpsc::channel();
            scope.spawn(move || {
                prompt[0].fetched_in(store, 1).expect("from the bottom, when the disk says that it has not got it");
                told.send(()).expect("somebody waits");
            });
            wait_until("the others to see it", || disk(store).out);
            let hits = facts(store, "dir").1;
            let began = Instant::now();
            // The rest of the prompt is on that disk, too, and comes from below; look-ups are exact.
            assert_eq!(store.lookup(&keys(prompt), soon()), Ok(prompt.len()));
            all_is_right(store, prompt);
            store.touch(0, None, &keys(prompt), false);
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            assert_eq!(facts(store, "dir").1, hits);
            tells.try_recv().expect_err("it hangs to the end");
            let_go(&file);
            tells.recv_timeout(Duration::from_secs(20)).expect("it comes back");
            // One slow call is no reason to give the disk up.
            wait_until("the disk to serve", || !disk(store).out);
            prompt[1].fetched(store).expect("fetch");
            assert_eq!((facts(store, "dir").1, disk(store).slow), (hits + 1, 1));
        });
    });
}

#[test]
fn a_store_closes_while_its_mover_hangs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (store, prompt) = filled(dir.path(), "dram=8M", 2);
    let file = chunk_path(&dir.path().join("bottom"), &prompt[0].key);
    hang_on(&file);
    store.touch(0, None, &keys(&prompt), false);
    thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    drop(store);
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    let_go(&file);
}

#[test]
fn a_disk_that_is_slow_again_and_again_is_passed_over() {
    with_bottom_dir("dir:DIR=32M", |dir, open, _| {
        let store = open();
        let prompt = Real::prompt(6);
        for chunk in &prompt {
            put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
        }
        warm(&*store, &prompt, "dir");
        let file = |chunk: &Real| chunk_path(&dir.join("tier"), &chunk.key);
        for chunk in &prompt[..4] {
            assert!(!disk(&*store).out);
            hang_on(&file(chunk));
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(300));
                    let_go(&file(chunk));
                });
                chunk.fetched(&*store).expect("from the bottom, late");
            });
        }
        assert!(disk(&*store).out && disk(&*store).slow == 4, "{:?}", disk(&*store));
        // This one would hang for good.
        hang_on(&file(&prompt[4]));
        let began = Instant::now();
        all_is_right(&*store, &prompt);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
}

#[test]
fn a_remote_store_that_goes_and_comes_back_is_missed_only_for_what_it_alone_has() {
    let Some(program) = servers::program() else { return };
    let mut server = Server::start(program, &["--save", "3600 1", "--rdbcompression", "no"]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), "dram=8M,dir:DIR=32M", &format!("redis://127.0.0.1:{}", server.port));
    let prompt = Real::prompt(6);
    for chunk in &prompt {
        put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
    }
    warm(&*store, &prompt[..4], "dir");
    assert_eq!(server.cli(&["SAVE"]), "OK");
    for _ in 0..3 {
        server.kill();
        let until = || Instant::now() + Duration::from_millis(300);
        assert_eq!(store.lookup(&keys(&prompt), until()), Ok(4));
        all_is_right(&*store, &prompt[..4]);
        store.open(0, &prompt[4].key, &mut [0; 4096], until()).expect_err("nobody has it");
        server.up();
        wait_until("the server", || store.lookup(&keys(&prompt), until()) == Ok(6));
        all_is_right(&*store, &prompt);
    }
}

#[test]
fn a_process_killed_in_mid_promotion_leaves_whole_chunks_or_nothing() {
    const NAME: &str = "tier_faults::a_process_killed_in_mid_promotion_leaves_whole_chunks_or_nothing";
    const CHUNKS: u64 = 40;
    const TIERS: &str = "dram=256K,dir:DIR=640K";
    const ROUNDS: u64 = 20;
    const ROUNDS_MAX: u64 = 300;
    let bottom = |dir: &Path| format!("dir:{}", dir.join("bottom").display());
    if let Some((_, dir)) = role() {
        // Puts one chunk after the other again, which takes it out of T1, and uses all, which brings it back. T1 has
        // room for half of them, so that they come and go.
        let store = open(&dir, TIERS, &bottom(&dir));
        let prompt = Real::prompt(CHUNKS);
        let all = keys(&prompt);
        println!("ready");
        for n in (0..).map(|n: usize| n * 7 % all.len()) {
            let Real { key, blocks, manifest } = &prompt[n];
            put(&*store, 0, key, blocks, manifest).expect("put");
            store.touch(0, None, &all[..=n], false);
            thread::sleep(Duration::from_micros(500));
        }
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (store, prompt) = filled(dir.path(), TIERS, CHUNKS);
    drop(store);
    let tier: PathBuf = dir.path().join("tier");
    let seed: u64 = 7;
    let mut unfinished = 0;
    for round in 0..ROUNDS_MAX {
        // A promotion takes a millisecond: not every kill falls into one.
        if round >= ROUNDS && unfinished > 0 {
            break;
        }
        let mut child = again(NAME, "promotes", dir.path()).stdout(Stdio::piped()).spawn().expect("spawn");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("ready")), "it ended early");
        thread::sleep(Duration::from_micros((seed + round) * 6_364_136_223 % 40_000));
        child.kill().expect("SIGKILL");
        child.wait().expect("wait");
        unfinished += fs::read_dir(tier.join("incoming")).expect("a directory").count();
        let store = open(dir.path(), TIERS, &bottom(dir.path()));
        let facts = disk(&*store);
        assert_eq!(fs::read_dir(tier.join("incoming")).expect("a directory").count(), 0, "seed {seed}, round {round}");
        assert_eq!((facts.chunks, facts.bytes), files(&tier), "seed {seed}, round {round}: index and disk differ");
        assert!(facts.bytes <= facts.bytes_max && facts.bytes_max == 640 << 10, "{facts:?}");
        all_is_right(&*store, &prompt);
    }
    assert!(unfinished > 0, "no kill fell into a promotion: the claim was not tried");
}
