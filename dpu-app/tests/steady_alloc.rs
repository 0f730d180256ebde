//! Steady allocates nothing: thousands of blocks go both ways, and no thread of the data plane or of the emulator asks
//! the allocator for anything.

mod rig;
mod scrape;
#[path = "../../crates/store/tests/servers/mod.rs"]
mod servers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use block::{ChunkKey, ElementType, Geometry};
use dpu_app::Verify;
use host_ctl::{Arrangement, Client, Options, RegisteredMapping, Route, Section, Transfer};
use mailbox::layout::Base;
use mailbox::{Operation, Status};
use nix::sys::eventfd::EventFd;
use rig::*;

thread_local! {
    /// The host's own threads, and whoever prints what it caught.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

static WATCHING: AtomicBool = AtomicBool::new(false);
static CAUGHT: AtomicUsize = AtomicUsize::new(0);
/// Backtraces that are printed at most.
const PRINTED: usize = 5;

struct Watched;

impl Watched {
    fn asked(&self, bytes: usize) {
        if !WATCHING.load(SeqCst) || EXEMPT.get() {
            return;
        }
        EXEMPT.set(true);
        if CAUGHT.fetch_add(1, SeqCst) < PRINTED {
            let thread = thread::current();
            eprintln!("{bytes} bytes in {:?}:\n{}", thread.name(), Backtrace::force_capture());
        }
        EXEMPT.set(false);
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator, which upholds the contract; what is done beside
// it touches atomics and a plain cell of the calling thread, and allocates only with that cell saying so.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.asked(layout.size());
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        self.asked(bytes);
        // SAFETY: `ptr` came from `alloc` above, hence from `System`, with this `layout`; the rest is the caller's
        // promise.
        unsafe { System.realloc(ptr, layout, bytes) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `alloc` above, hence from `System`, with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static WATCHED: Watched = Watched;

const CHUNKS: usize = 32;
const ROUNDS: usize = 12;

/// What is asked of the allocator while `work` runs, by threads that are not exempt.
fn allocations(work: impl FnOnce()) -> usize {
    CAUGHT.store(0, SeqCst);
    WATCHING.store(true, SeqCst);
    work();
    WATCHING.store(false, SeqCst);
    CAUGHT.load(SeqCst)
}

/// A section of another shape than the first, in memory beside it.
fn other_geometry() -> Geometry {
    Geometry::new(3, 1, 48, CHUNK_TOKENS.into(), ElementType::F16).unwrap()
}

fn other_section(regions: &mut Vec<RegisteredMapping>) -> Section {
    let other = filled(Arrangement::Contiguous, other_geometry(), CHUNKS, 8);
    let region = regions.len() as u16;
    regions.extend(other.regions);
    let bases = other.bases.into_iter().map(|base| Base { region, ..base }).collect();
    Section { geometry: other.geometry, form: other.form, bases }
}

fn in_other(host: &mut Client, keys: &[ChunkKey], pages: &[u32], operation: Operation) {
    let transfer = Transfer { section: 1, ..transfer(keys, pages) };
    let id = if operation == Operation::Fetch { host.post_fetch(&transfer) } else { host.post_store(&transfer) };
    assert_eq!(host.wait(id.unwrap(), WAIT).unwrap().chunks_done, CHUNKS);
}

/// One test, since the allocator watches all threads of the process.
#[test]
fn a_steady_data_plane_allocates_nothing() {
    EXEMPT.set(true);
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    steady_on(&format!("dir:{}?sync=never&bytes=64M", at("store")), Verify::Off);
    // Hits are lent, and all is compared.
    steady_on(&format!("tiers:dram=64M,dir:{}?sync=never&bytes=64M", at("bottom")), Verify::All);
    if let Some(program) = servers::program() {
        let server = servers::Server::start(program, &[]);
        steady_on(&format!("redis://{}", server.address()), Verify::Off);
        server.flush();
        steady_on(&format!("redis://{}?protocol=2&connections=1&ttl-s=100", server.address()), Verify::Off);
    }
}

fn steady_on(url: &str, verify_dma: Verify) {
    println!("{url}");
    let home = tempfile::tempdir().unwrap();
    let address = scrape::free_address();
    // Every request is late, and is kept.
    let slow = Some(Duration::from_nanos(1));
    let config = dpu_app::Config { metrics: Some(address), store: url.into(), verify_dma, slow, ..small(home.path()) };
    let stop = Arc::new(EventFd::new().unwrap());
    let nap = config.awake * 5;
    let (ready, is_ready) = mpsc::channel();
    let card = thread::Builder::new().name("engine".into());
    // A host that sleeps at once, so that each side has to ring for the other.
    let route = Route::Comch { name: config.comch_name.clone() };
    let options = Options { route, spin: Duration::ZERO, ..Options::default() };
    let card = card
        .spawn({
            let stop = Arc::clone(&stop);
            move || {
                let device = doca::Device::open(&doca::Selector::First).unwrap();
                let (store, slab) = dpu_app::open_store(&config, &device).unwrap();
                dpu_app::serve(&config, device, store.as_ref(), slab, &stop, || ready.send(()).unwrap()).unwrap();
            }
        })
        .unwrap();
    is_ready.recv().unwrap();
    // Somebody watches all the time: that may cost no memory either.
    let scrapes = Arc::new(AtomicUsize::new(0));
    let (over, is_over) = mpsc::channel::<()>();
    let watcher = thread::spawn({
        let scrapes = Arc::clone(&scrapes);
        move || {
            EXEMPT.set(true);
            while is_over.recv_timeout(Duration::from_millis(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
                for path in ["/metrics", "/status", "/healthcheck", "/config", "/nothing"] {
                    assert!(scrape::get(address, path).body.len() > 2);
                }
                scrapes.fetch_add(1, SeqCst);
            }
        }
    });

    for (salt, recipe) in ["q5", "q4p", "lossless", "lossless+raw", "q5+lz4"].into_iter().enumerate() {
        let pages = linear(CHUNKS);
        let options = Options { recipe: Some(recipe.parse().unwrap()), ..options.clone() };
        let mut target = filled(Arrangement::HeadMajor, geometry(), CHUNKS, 7);
        target.further.push(other_section(&mut target.regions));
        let mut host = Client::attach(&options, Some(target)).unwrap();
        let other = keys(other_geometry(), recipe, salt as u8, CHUNKS);
        in_other(&mut host, &other, &pages, Operation::Store);
        let warm = keys(geometry(), recipe, salt as u8, CHUNKS);
        assert_eq!(rig::store(&mut host, &warm, &pages).chunks_done, CHUNKS);
        assert_eq!(fetch(&mut host, &warm, &pages).chunks_done, CHUNKS);
        let before = status(&mut host);
        // Fetches, look-ups, misses, status, and stores of chunks that are new and of some that are known.
        let caught = allocations(|| {
            for round in 0..ROUNDS {
                assert_eq!(fetch(&mut host, &warm, &pages).chunks_done, CHUNKS);
                assert_eq!(lookup(&mut host, &warm).chunks_done, CHUNKS);
                in_other(&mut host, &other, &pages, Operation::Fetch);
                let id = host.post_window(&other, 1, 2).unwrap();
                assert_eq!(host.wait(id, WAIT).unwrap().chunks_done, CHUNKS);
                let new = keys(geometry(), recipe, 100 + (salt * ROUNDS + round) as u8, CHUNKS);
                assert_eq!(fetch(&mut host, &new, &pages).chunks_done, 0);
                let stored = rig::store(&mut host, &new, &pages);
                assert_eq!((stored.status, stored.chunks_done), (Status::Ok, CHUNKS));
                let id = host.post_trace().unwrap();
                assert!(host.wait(id, WAIT).unwrap().answer.len() > 10_000);
                for _ in 0..5 {
                    thread::sleep(nap);
                    let id = host.post_ping().unwrap();
                    assert_eq!(host.wait(id, WAIT).unwrap().status, Status::Ok);
                }
            }
        });
        let after = status(&mut host);
        let blocks =
            |status: &host_ctl::CardStatus, stage: &str| status.value()["stages"][stage]["jobs"].as_u64().unwrap();
        let fetched = blocks(&after, "write") - blocks(&before, "write");
        let stored = blocks(&after, "put") - blocks(&before, "put");
        let rung = counter(&after, "doorbells_rung") - counter(&before, "doorbells_rung");
        let woken = counter(&after, "doorbells_heard") - counter(&before, "doorbells_heard");
        assert!(rung >= ROUNDS as u64 && woken >= 5 * ROUNDS as u64, "by Comch: {rung} doorbells rung, {woken} heard");
        let dram = |status: &host_ctl::CardStatus, what: &str| status.value()["tiers"][0][what].as_u64().unwrap();
        if url.starts_with("tiers:") {
            let lent = dram(&after, "bytes_read") - after.value()["store"]["bytes_copied"].as_u64().unwrap();
            let [hits, came] = ["hits", "promoted"].map(|what| dram(&after, what) - dram(&before, what));
            println!("{recipe}: {hits} hits, {lent} bytes lent in all, {came} chunks came in");
            assert!(hits > 10 && lent > 0);
        }
        println!("{recipe}: {fetched} blocks fetched, {stored} stored, {caught} allocations");
        assert!(fetched > 1000 && stored > 1000, "{fetched} fetched, {stored} stored");
        assert_eq!(caught, 0, "{recipe}");
        host.close(WAIT).unwrap();
    }
    drop(over);
    watcher.join().unwrap();
    println!("{} rounds of scrapes", scrapes.load(SeqCst));
    assert!(scrapes.load(SeqCst) > 5);
    stop.write(1).unwrap();
    card.join().unwrap();
}
