//! After Init the store allocates nothing: not for a hit, not for a miss, not for a put or an eviction.

#[path = "it/chunks.rs"]
mod chunks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use chunks::{chunk_path, condemn, key, limits, noise, put, real_chunk, soon};
use store::dir::{DirOptions, DirStore};
use store::{Answer, Ask, Direct, Lookup, Opening, Outcome, Readable, Store, StoreError};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// Counts what the current thread asks for.
struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which upholds the contract; the counter is a
// plain cell of the calling thread, needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `alloc` above, hence from `System`, with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(steps: impl FnOnce()) -> usize {
    let before = COUNT.get();
    steps();
    COUNT.get() - before
}

#[test]
fn steady_state_allocates_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for sync in [false, true] {
        let options = DirOptions { bytes_max: Some(400 << 10), chunks_max: 16, sync };
        let store = DirStore::open(&dir.path().join(sync.to_string()), &limits(), options).expect("open");
        let keys: Vec<_> = (0..40).map(key).collect();
        let block = noise(1, 50_000);
        let (mut manifest, mut found) = ([0; 4096], vec![0; 50_000]);
        let mut one = vec![key(0)];
        let mut round = || {
            for key in &keys {
                one[0] = *key;
                store.begin_put(0, key, None, soon()).expect("begin");
                store.put_block(0, 1, &block[..10_000]).expect("put");
                store.put_block(0, 0, &block).expect("put");
                store.commit_put(0, 2, b"manifest").expect("commit");
                store.begin_put(1, key, None, soon()).expect("begin");
                store.put_block(1, 0, &block).expect("put");
                store.abort_put(1);
                let mut lookup = Lookup::trailing(std::mem::take(&mut one), 1);
                assert_eq!(store.look(&mut lookup, soon()), Ok(1));
                one = lookup.into_keys();
                store.open(0, &Opening::of(key), &mut manifest, soon()).expect("open");
                store.read_block(0, 0, &mut found, soon()).expect("read");
                store.close(0);
                store.touch(0, None, std::slice::from_ref(key), false);
            }
            assert_eq!(store.open(0, &Opening::of(&keys[0]), &mut manifest, soon()), Err(StoreError::Miss));
            condemn(&store, 0, &keys[39]);
            store.stats();
        };
        assert_eq!(allocations(&mut round), 0, "with sync {sync}");
        // Faults neither.
        std::fs::write(chunk_path(store.path(), &keys[38]), [0; 100]).expect("damage");
        let faults = allocations(|| {
            let error = store.open(0, &Opening::of(&keys[38]), &mut manifest, soon()).expect_err("damaged");
            assert!(matches!(error, StoreError::Corrupt { .. }));
        });
        assert_eq!(faults, 0, "with sync {sync}");
    }
}

#[test]
fn a_hit_in_a_tier_allocates_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let url = format!("tiers:dram=8M,dir:{}=32M,dir:{}", at("tier"), at("bottom"));
    let store: Box<dyn Readable<Vec<u8>>> = store::open(&url, &limits()).expect("open");
    let (blocks, manifest) = real_chunk(&key(1), block::Codec::Deflate);
    put(&*store, 0, &key(1), &blocks, &manifest).expect("put");
    let bell = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    let mut reader = store.reader(std::os::fd::AsFd::as_fd(&bell)).expect("a reader");
    let mut found = vec![0; 4096];
    let mut memory = Some(vec![0; blocks[0].len()]);
    let mut keys = Some(vec![key(1)]);
    let mut round = || {
        store.touch(0, None, &[key(1)], false);
        reader.begin(1, Ask::Lookup { lookup: Lookup::leading(keys.take().expect("it came back")), until: soon() });
        let Some(Answer { outcome: Outcome::Looked { keys: back, found: Ok(1) }, .. }) = reader.poll(&mut found) else {
            panic!("it is there")
        };
        keys = Some(back);
        reader.begin(2, Ask::Open { seat: 0, key: key(1), position: None, anew: false, until: soon() });
        let opened = reader.poll(&mut found);
        assert!(matches!(opened, Some(Answer { outcome: Outcome::Opened(Ok(_)), .. })), "{opened:?}");
        let memory_now = memory.take().expect("it came back");
        reader.begin(3, Ask::Read { seat: 0, index: 0, bytes: blocks[0].len(), memory: memory_now, until: soon() });
        let Some(Answer { outcome: Outcome::Read { memory: back, result: Ok(()) }, .. }) = reader.poll(&mut found)
        else {
            panic!("it is read")
        };
        memory = Some(back);
        store.close(0);
        store.stats();
        store.tiers(true, &mut |_| {});
    };
    let dram_hits = || {
        let mut hits = 0;
        store.tiers(true, &mut |tier| hits += if tier.name == "dram" { tier.promoted } else { 0 });
        hits
    };
    while dram_hits() == 0 {
        round();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(allocations(|| (0..50).for_each(|_| round())), 0);
}
