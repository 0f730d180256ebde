//! Hosts that do the card harm: memory that goes away under requests, descriptors that run out. It costs them their own
//! session. The card lives, and an honest host beside them is served.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::process::{Dpu, Home};
use crate::rig::*;
use doca::Mapping;
use host_ctl::{Arrangement, Client, Memory, Options, Route, Transfer};
use mailbox::Status;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

const CHUNKS: usize = 4;
/// How long the bad host is at it.
const ORDEAL: Duration = Duration::from_secs(4);

/// What a KV cache lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backing {
    File,
    Memfd,
    /// A memfd that cannot shrink, and so one that a card maps.
    SealedMemfd,
}

impl Backing {
    fn open(self, bytes: usize) -> File {
        let memfd = || memfd_create(c"kv", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap().into();
        let file = if self == Self::File { tempfile::tempfile().unwrap() } else { memfd() };
        file.set_len(bytes as u64).unwrap();
        if self == Self::SealedMemfd {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        }
        file
    }

    /// Takes all of the file's pages away.
    fn take_away(self, file: &File) {
        let cut = file.set_len(0);
        assert_eq!(cut.is_err(), self == Self::SealedMemfd, "{self:?}: {cut:?}");
        if cut.is_err() {
            let holes = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, holes, 0, file.metadata().unwrap().len() as i64).unwrap();
        }
    }
}

/// A KV cache in a file, so that it can be made unreachable by cutting the file off.
fn in_a_file(backing: Backing) -> (Memory, File) {
    let mut memory = empty(Arrangement::Contiguous, geometry(), CHUNKS);
    let bytes = memory.regions[0].mapping.bytes();
    let file = backing.open(bytes);
    memory.regions[0].mapping = Arc::new(Mapping::of_file(&file, bytes, doca::Access::ReadWrite).unwrap());
    (memory, file)
}

/// Attaches, takes its memory away and posts stores, again and again; how many sessions that cost it.
fn bad_host(options: &Options, over: &AtomicBool) -> usize {
    let mut lost = 0;
    for salt in 0.. {
        if over.load(Relaxed) {
            break;
        }
        let (memory, file) = in_a_file(Backing::File);
        let mut host = Client::attach(options, Some(memory)).expect("it may come again");
        Backing::File.take_away(&file);
        let keys = keys(geometry(), "lossless", 100 + (salt % 100) as u8, CHUNKS);
        let pages = linear(CHUNKS);
        for _ in 0..4 {
            let _ = host.post_store(&transfer(&keys, &pages));
        }
        assert!(host.wait_end(WAIT), "its session ends");
        lost += 1;
    }
    lost
}

/// Stores and fetches without a pause; how many requests, all of which were right.
fn honest_host(dpu: &Dpu, over: &AtomicBool) -> usize {
    let pages = linear(CHUNKS);
    let source = filled(Arrangement::Vllm, geometry(), CHUNKS, 3);
    let content = logical(&source, &pages);
    let (mut host, target) = (dpu.attach(&source), empty(Arrangement::HeadMajor, geometry(), CHUNKS));
    let mut reader = dpu.attach(&target);
    let mut requests = 0;
    for salt in 0.. {
        let keys = keys(geometry(), "lossless", (salt % 100) as u8, CHUNKS);
        let stored = store(&mut host, &keys, &pages);
        assert_eq!((stored.status, stored.chunks_done), (Status::Ok, CHUNKS), "store {salt}");
        target.regions.iter().for_each(|region| region.mapping.write(0, &vec![0; region.mapping.bytes()]));
        let fetched = fetch(&mut reader, &keys, &pages);
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS), "fetch {salt}");
        assert!(logical(&target, &pages) == content, "fetch {salt}: every bit");
        requests += 2;
        if over.load(Relaxed) {
            break;
        }
    }
    requests
}

fn ordeal(busy: bool) {
    let home = Home::new();
    // The kernel copies, as it answers for memory that is gone.
    let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "window=0");
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let lost = thread::scope(|scope| {
        let bad = scope.spawn(|| bad_host(&dpu.options(), &over));
        if busy {
            scope.spawn(|| served.store(honest_host(&dpu, &over), Relaxed));
        }
        thread::sleep(ORDEAL);
        over.store(true, Relaxed);
        bad.join().unwrap()
    });
    println!("sessions lost {lost}, honest requests {}", served.load(Relaxed));
    assert!(lost > 10, "{lost}: as many as brought the card down");
    assert!(!busy || served.load(Relaxed) >= 10);
    // And afterwards all is as ever.
    assert!(honest_host(&dpu, &AtomicBool::new(true)) == 2);
    dpu.signal(Signal::SIGTERM);
    let (status, log) = dpu.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("host memory cannot be reached"), "{log}");
}

#[test]
fn memory_that_goes_away_never_ends_an_idle_card() {
    ordeal(false);
}

#[test]
fn memory_that_goes_away_costs_a_busy_neighbour_nothing() {
    ordeal(true);
}

#[test]
fn a_file_cut_off_while_the_card_copies_is_no_signal_in_a_card_that_maps_files() {
    const ROUNDS: u64 = 12;
    const REQUESTS: usize = 8;
    let home = Home::new();
    let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "window=1");
    for backing in [Backing::File, Backing::Memfd, Backing::SealedMemfd] {
        let mut answered = 0;
        for round in 0..ROUNDS {
            let (memory, file) = in_a_file(backing);
            let mut host = Client::attach(&dpu.options(), Some(memory)).expect("it may come again");
            let pages = linear(CHUNKS);
            let salt = 128 + (backing as u64 * ROUNDS + round) as u8;
            let keys = keys(geometry(), "lossless", salt, CHUNKS);
            assert_eq!(store(&mut host, &keys, &pages).chunks_done, CHUNKS, "while all of it is there");
            // Both ways: pages that are read, and pages that are written.
            let mut post = |n: usize| match n % 2 {
                0 => host.post_fetch(&transfer(&keys, &pages)),
                _ => host.post_store(&Transfer { again: true, ..transfer(&keys, &pages) }),
            };
            let posted: Vec<_> = (0..REQUESTS).map(&mut post).collect();
            thread::sleep(Duration::from_micros(200 * round));
            backing.take_away(&file);
            for id in posted.into_iter().flatten() {
                answered += usize::from(host.wait(id, WAIT).is_ok_and(|done| done.status == Status::Ok));
            }
        }
        println!("{backing:?}: {answered} of {} answered", ROUNDS as usize * REQUESTS);
        assert!(backing != Backing::SealedMemfd || answered == ROUNDS as usize * REQUESTS, "holes read as zeroes");
        assert!(dpu.child.try_wait().unwrap().is_none(), "{backing:?}: the card is gone");
        assert_eq!(honest_host(&dpu, &AtomicBool::new(true)), 2);
    }
    dpu.signal(Signal::SIGTERM);
    let (status, log) = dpu.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

/// Clock ticks of processor time that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_card_without_descriptors_rests_and_lets_hosts_in_when_it_has_some() {
    let home = Home::new();
    let socket = home.socket("card.sock");
    let descriptors = |dpu: &Dpu| std::fs::read_dir(format!("/proc/{}/fd", dpu.child.id())).unwrap().count();
    let wanted = descriptors(&Dpu::start_with(&home.store(), &socket, "", &["--attach", "socket"]));
    let limit = wanted + 6;
    let started = Dpu::start_limited(&home.store(), &socket, &["--attach", "socket"], limit);
    // So many that it runs out, and that its backlog fills.
    let come = |_| Route::Socket(socket.clone()).open(&doca::Selector::First, Duration::from_millis(10)).ok();
    let crowd: Vec<_> = (0..limit).filter_map(come).collect();
    thread::sleep(Duration::from_millis(300));
    assert!(descriptors(&started) >= limit - 1, "they are used up");
    let before = ticks(started.child.id());
    thread::sleep(Duration::from_secs(2));
    let used = ticks(started.child.id()) - before;
    assert!(used < 20, "{used} hundredths of a second in two seconds: it spins");
    drop(crowd);
    let options = Options { route: Route::Socket(socket), timeout: WAIT, ..started.options() };
    let until = Instant::now() + WAIT;
    while Client::attach(&Options { recipe: None, ..options.clone() }, None).is_err() {
        assert!(Instant::now() < until, "nobody is let in any more");
        thread::sleep(Duration::from_millis(50));
    }
}
