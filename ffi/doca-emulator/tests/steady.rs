//! One claim: the steady state allocates nothing, on any thread. Alone in its process, because it counts them all.

#![cfg(not(miri))]
#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use rig::c::*;
use rig::*;

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PAGES: usize = 32;
const PAGE: usize = 4096;

#[test]
fn the_steady_state_allocates_nothing() {
    let host = Device::open("");
    let device = Device::open("");
    let engine = Engine::new();
    let inflate = Context::compress(&device, &engine);
    let dma = Context::dma(&device, &engine);
    inflate.log.frees.set(true);
    dma.log.frees.set(true);
    let inventory = Inventory::new(2 * (PAGES + 3));
    let plain = sample(PAGES * PAGE, 1);
    let wire = Memory::new(&device, &deflated(&plain));
    let codes = Memory::zeroed(&device, plain.len());
    let pages = Memory::with_access(&host, &vec![0; plain.len()], PCI_RW);
    let import = Memory::import(&device, &pages.blob(&host).expect("a blob")).expect("an import");
    let fd = out(|fd| unsafe { doca_pe_get_notification_handle(engine.0, fd) }).expect("a descriptor");

    let wait = |context: &Context| {
        while context.log.completions.borrow().is_empty() {
            ok(unsafe { doca_pe_request_notification(engine.0) });
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            assert_eq!(unsafe { libc::poll(&mut poll, 1, 20_000) }, 1);
            ok(unsafe { doca_pe_clear_notification(engine.0, 0) });
            while engine.progress() {}
        }
        assert_eq!(context.log.completions.borrow()[0].status, E::DOCA_SUCCESS);
        context.log.completions.borrow_mut().clear();
    };
    let round = || {
        let (src, dst) = (inventory.source(&wire, 0, wire.len), inventory.destination(&codes, 0, codes.len));
        ok(unsafe { doca_task_submit(inflate.inflate(1, src, dst).expect("a task")) });
        wait(&inflate);
        let page = |i| inventory.destination(&import, i * PAGE, PAGE);
        let scatter = page(PAGES - 1);
        for i in (0..PAGES - 1).rev() {
            ok(unsafe { doca_buf_chain_list(scatter, page(i)) });
        }
        ok(unsafe { doca_task_submit(dma.memcpy(2, dst, scatter).expect("a task")) });
        wait(&dma);
        for buf in [src, dst, scatter] {
            give_back(buf);
        }
    };
    for _ in 0..10 {
        round();
    }
    // The harness's own thread allocates, too, until the test that it started is on its list.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let before = CALLS.load(Ordering::Relaxed);
    for _ in 0..500 {
        round();
    }
    assert_eq!(CALLS.load(Ordering::Relaxed) - before, 0);
    let reversed: Vec<u8> = plain.chunks(PAGE).rev().flatten().copied().collect();
    assert!(pages.bytes() == reversed);
}
