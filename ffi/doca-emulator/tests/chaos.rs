//! One claim: no order of calls, with live handles and any other arguments, crashes the emulator, hangs it, or leaves
//! something behind that cannot be cleared away.
//!
//! Seeded random calls over devices, memory, bufs, contexts, tasks and Comch, from inside callbacks too, and then
//! everything is taken down, where every call must succeed. Each seed runs in a process of its own, this test binary
//! again, so that a crash has a seed. `KVLANE_CHAOS_SEED=N` repeats one (with what the emulator says);
//! `KVLANE_CHAOS_SECONDS=N` is how long to look for a bad one.

#![cfg(not(miri))]
#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

mod rig;

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::process::{Command, Stdio};
use std::ptr;
use std::time::{Duration, Instant};

use doca_emulator::{Config, configure_thread};
use rig::c::*;
use rig::*;

const SEED: &str = "KVLANE_CHAOS_SEED";
const CHILD: &str = "KVLANE_CHAOS_CHILD";
const CALLS: usize = 20_000;
const ARENA: usize = 96 << 10;
/// A hang is this long.
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIGS: [&str; 8] = [
    "",
    "profile=bf2",
    "queue=2,decompress_threads=3",
    "fail=0.05,again=0.1,corrupt=0.1,delay_us=40,reorder=1",
    "exporter_gone=0.05,fail=0.02",
    "lose_after=40",
    "timing=1,task_ns=20000,depth=3",
    "rep=3,devices=2",
];

/// What decodes to "abc", and where arenas hold it: an LZ4 block, raw deflate, an LZ4 stream.
const GOOD: [(usize, &[u8]); 3] = [(0, b"\x30abc"), (16, &[0x4b, 0x4c, 0x4a, 6, 0]), (32, b"\x04\0\0\0\x30abc")];

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
    /// Everything is being taken down: callbacks free what they get.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// SplitMix64.
fn draw(below: usize) -> usize {
    STATE.with(|state| {
        state.set(state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut word = state.get();
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % below.max(1) as u64) as usize
    })
}

fn chance(one_in: usize) -> bool {
    draw(one_in) == 0
}

fn pick<T: Copy>(list: &[T]) -> Option<T> {
    list.get(draw(list.len())).copied()
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Dma,
    Compress,
    Server,
    Client,
    Producer,
    Consumer,
}

/// A context, at a fixed address: its user data.
struct Ctx {
    kind: Kind,
    ctx: *mut doca_ctx,
    pe: Cell<*mut doca_pe>,
    rep: *mut doca_dev_rep,
    /// Out of their pool, and whether they are in flight. The context's idle ends them all.
    tasks: RefCell<Vec<(*mut doca_task, bool)>>,
    /// Freed, still in the pool's memory.
    freed: RefCell<Vec<*mut doca_task>>,
    connections: RefCell<Vec<*mut doca_comch_connection>>,
}

/// # Safety
/// `data` is the user data of a context of this test.
unsafe fn of(data: doca_data) -> &'static Ctx {
    // SAFETY: that is a boxed `Ctx`, whose box lives in `World::contexts` until its context is destroyed: 'static for
    // callbacks, which come before. Only cells of it change.
    unsafe { &*data.ptr.cast::<Ctx>() }
}

/// # Safety
/// `ctx` is a live context of this test.
unsafe fn of_ctx(ctx: *mut doca_ctx) -> &'static Ctx {
    // SAFETY: every context gets its `Ctx` as user data before anything else is done with it.
    unsafe { of(out(|data| doca_ctx_get_user_data(ctx, data)).expect("user data")) }
}

impl Ctx {
    fn free(&self, task: *mut doca_task) {
        self.tasks.borrow_mut().retain(|(other, _)| *other != task);
        self.freed.borrow_mut().push(task);
        // SAFETY: it was in `tasks` (or its completion is running): allocated and not freed since.
        unsafe { doca_task_free(task) };
    }

    fn submit(&self, task: *mut doca_task) {
        // SAFETY: as in `free`; one that is in flight, or of a stopped context, is refused.
        let answer = unsafe {
            match draw(40) {
                0 => doca_task_submit_ex(task, draw(5) as u32),
                1 => doca_task_submit(task),
                _ => doca_task_try_submit(task),
            }
        };
        if answer == E::DOCA_SUCCESS {
            self.tasks.borrow_mut().iter_mut().filter(|(other, _)| *other == task).for_each(|(_, flies)| *flies = true);
        }
    }
}

unsafe extern "C" fn completed(task: *mut doca_task, _: doca_data, data: doca_data) {
    // SAFETY: the emulator gives back the user data of the task's context.
    let ctx = unsafe { of(data) };
    ctx.tasks.borrow_mut().iter_mut().filter(|(other, _)| *other == task).for_each(|(_, flies)| *flies = false);
    if ENDING.get() {
        return ctx.free(task);
    }
    // SAFETY: context and engine are alive in their own completion, and what may not be done there is refused.
    unsafe {
        match draw(8) {
            0..=3 => ctx.free(task),
            4 => ctx.submit(task),
            5 if chance(8) => {
                doca_ctx_stop(ctx.ctx);
            }
            6 => {
                assert_eq!(doca_pe_progress(ctx.pe.get()), 0, "progress does not nest");
                assert_eq!(doca_pe_destroy(ctx.pe.get()), E::DOCA_ERROR_IN_USE);
                assert_ne!(destroy(ctx), E::DOCA_SUCCESS, "in a completion no context is idle");
            }
            _ => {}
        }
    }
}

macro_rules! erased {
    ($($name:ident: $task:ty;)*) => {$(
        unsafe extern "C" fn $name(task: *mut $task, id: doca_data, data: doca_data) {
            // SAFETY: a task of any kind is a doca_task first.
            unsafe { completed(task.cast(), id, data) }
        }
    )*};
}

erased! {
    memcpy_end: doca_dma_task_memcpy;
    inflate_end: doca_compress_task_decompress_deflate;
    deflate_end: doca_compress_task_compress_deflate;
    block_end: doca_compress_task_decompress_lz4_block;
    stream_end: doca_compress_task_decompress_lz4_stream;
    send_end: doca_comch_task_send;
    data_end: doca_comch_producer_task_send;
    receive_end: doca_comch_consumer_task_post_recv;
}

unsafe extern "C" fn changed(data: doca_data, _: *mut doca_ctx, _: doca_ctx_states, after: doca_ctx_states) {
    // SAFETY: as in `completed`.
    let ctx = unsafe { of(data) };
    if after == IDLE {
        assert!(ctx.tasks.borrow().is_empty(), "idle with tasks out");
        ctx.freed.borrow_mut().clear();
        ctx.connections.borrow_mut().clear();
    }
}

unsafe extern "C" fn message(_: *mut doca_comch_event_msg_recv, _: *mut u8, _: u32, at: *mut doca_comch_connection) {
    // SAFETY: a connection is alive in its own event, and so is its server.
    unsafe {
        let server = doca_comch_server_get_server_ctx(at);
        if !server.is_null() && chance(20) {
            doca_comch_server_disconnect(server, at);
            of_ctx(doca_comch_server_as_ctx(server)).connections.borrow_mut().retain(|other| *other != at);
        }
    }
}

/// # Safety
/// `at` is a live connection of a server of this test.
unsafe fn connections_of(at: *mut doca_comch_connection) -> &'static RefCell<Vec<*mut doca_comch_connection>> {
    // SAFETY: that server is a context of this test.
    unsafe { &of_ctx(doca_comch_server_as_ctx(doca_comch_server_get_server_ctx(at))).connections }
}

unsafe extern "C" fn joined(_: *mut doca_comch_event_connection_status_changed, at: *mut doca_comch_connection, _: u8) {
    // SAFETY: a connection is alive in its own event, and only servers ask for these.
    unsafe { connections_of(at) }.borrow_mut().push(at);
}

unsafe extern "C" fn left(_: *mut doca_comch_event_connection_status_changed, at: *mut doca_comch_connection, _: u8) {
    // SAFETY: as in `joined`.
    unsafe { connections_of(at) }.borrow_mut().retain(|other| *other != at);
}

fn destroy(ctx: &Ctx) -> doca_error {
    // SAFETY: `kind` is what it was created as; one that cannot go now is refused.
    unsafe {
        match ctx.kind {
            Kind::Dma => doca_dma_destroy(ctx.ctx.cast()),
            Kind::Compress => doca_compress_destroy(ctx.ctx.cast()),
            Kind::Server => doca_comch_server_destroy(ctx.ctx.cast()),
            Kind::Client => doca_comch_client_destroy(ctx.ctx.cast()),
            Kind::Producer => doca_comch_producer_destroy(ctx.ctx.cast()),
            Kind::Consumer => doca_comch_consumer_destroy(ctx.ctx.cast()),
        }
    }
}

#[derive(Clone, Copy)]
struct Map {
    raw: *mut doca_mmap,
    first: *mut u8,
    len: usize,
}

#[derive(Default)]
struct World {
    directory: String,
    devices: Vec<*mut doca_dev>,
    engines: Vec<*mut doca_pe>,
    maps: Vec<Map>,
    blobs: Vec<Vec<u8>>,
    inventories: Vec<*mut doca_buf_inventory>,
    /// Each with its inventory; given back or not.
    bufs: Vec<(*mut doca_buf_inventory, *mut doca_buf)>,
    #[allow(clippy::vec_box, reason = "the SDK's side knows their addresses")]
    contexts: Vec<Box<Ctx>>,
    /// Ids of consumers, those of old included.
    consumers: Vec<u32>,
}

impl World {
    fn open_device(&mut self) {
        let text = format!("comch_dir={},seed={},{}", self.directory, draw(1 << 20), CONFIGS[draw(CONFIGS.len())]);
        configure_thread(text.parse::<Config>().expect("a configuration"));
        let mut count = 0;
        // SAFETY: places of its own for what it gives back.
        let list = out(|list| unsafe { doca_devinfo_create_list(list, &mut count) }).expect("a list");
        // SAFETY: the list has `count` entries and is alive.
        self.devices.push(out(|dev| unsafe { doca_dev_open(*list.add(draw(count as usize)), dev) }).expect("a device"));
        // SAFETY: an open device does without the list that it was found in; it is not used again.
        ok(unsafe { doca_devinfo_destroy_list(list) });
    }

    fn map(&mut self) {
        let Some(device) = pick(&self.devices) else { return };
        // SAFETY: the devices are open, and the range lies within memory that is never freed.
        unsafe {
            let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
            let mut bytes = vec![0x30u8; ARENA];
            GOOD.iter().for_each(|(at, good)| bytes[*at..at + good.len()].copy_from_slice(good));
            let (first, len) = (Box::leak(bytes.into_boxed_slice()).as_mut_ptr(), 64 + draw(ARENA - 64));
            let most = !chance(6);
            self.devices.iter().filter(|other| most || **other == device).for_each(|dev| {
                doca_mmap_add_dev(mmap, *dev);
            });
            let all = LOCAL_RW | PCI_RW;
            let others = [0, LOCAL_RW, PCI_RO, PCI_RW, PCI_RO | PCI_RW];
            doca_mmap_set_permissions(mmap, if chance(4) { others[draw(5)] } else { all });
            doca_mmap_set_memrange(mmap, first.cast(), len);
            if !chance(10) {
                doca_mmap_start(mmap);
            }
            self.maps.push(Map { raw: mmap, first, len });
        }
    }

    fn export_or_import(&mut self) {
        let (Some(map), Some(device)) = (pick(&self.maps), pick(&self.devices)) else { return };
        // SAFETY: map and device are alive. A blob that was exported has `len` bytes, which are copied at once; one
        // that is imported, right or not, is as long as is said.
        unsafe {
            let mut len = 0;
            if let Ok(blob) = out(|blob| doca_mmap_export_pci(map.raw, device, blob, &mut len)) {
                self.blobs.push(std::slice::from_raw_parts(blob.cast::<u8>(), len).to_vec());
            }
            let index = draw(self.blobs.len());
            let Some(blob) = self.blobs.get_mut(index) else { return };
            if chance(10) {
                let at = draw(blob.len());
                blob[at] ^= 1 << draw(8);
            }
            let user = ptr::null();
            let import = out(|mmap| doca_mmap_create_from_export(user, blob.as_ptr().cast(), blob.len(), device, mmap));
            if let Ok(raw) = import {
                let first = out(|first| doca_mmap_get_memrange(raw, first, &mut len)).expect("a range");
                self.maps.push(Map { raw, first: first.cast(), len });
            }
        }
    }

    fn get_buf(&mut self) {
        let (Some(inventory), Some(map)) = (pick(&self.inventories), pick(&self.maps)) else { return };
        let (good_at, good) = GOOD[draw(GOOD.len())];
        let (at, len, skip, filled) = match draw(8) {
            0 => (draw(map.len + 2), draw(map.len + 2), draw(9), draw(map.len + 2)),
            1..=3 => (good_at, good.len(), 0, good.len()),
            4 => (64, draw(1000), draw(9), draw(500)),
            _ => (64, draw(map.len - 63), 0, 0),
        };
        let (addr, data) = (map.first.wrapping_add(at), map.first.wrapping_add(at + skip));
        // SAFETY: inventory and map are alive; addresses outside the map's range are refused, not read.
        let buf = out(|buf| unsafe {
            let (addr, data) = (addr.cast(), data.cast());
            doca_buf_inventory_buf_get_by_args(inventory, map.raw, addr, len, data, filled, buf)
        });
        self.bufs.extend(buf.map(|buf| (inventory, buf)));
    }

    fn play_with_bufs(&mut self) {
        let (Some((inventory, one)), Some((_, two))) = (pick(&self.bufs), pick(&self.bufs)) else { return };
        // SAFETY: their inventories are alive to the end, so a buf that was given back is seen to be one and refused.
        unsafe {
            match draw(10) {
                0..=2 => doca_buf_dec_refcount(one, ptr::null_mut()),
                3 => doca_buf_inc_refcount(one, ptr::null_mut()),
                4 => doca_buf_chain_list(one, two),
                5 => doca_buf_unchain_list(one, two),
                6 => doca_buf_set_data_len(one, draw(ARENA)),
                7 | 8 => doca_buf_reset_data_len(one),
                _ => {
                    let copy = out(|copy| doca_buf_inventory_buf_dup(inventory, one, copy));
                    self.bufs.extend(copy.map(|copy| (inventory, copy)));
                    E::DOCA_SUCCESS
                }
            };
        }
    }

    fn create_context(&mut self) {
        let Some(device) = pick(&self.devices) else { return };
        let kinds = [Kind::Dma, Kind::Compress, Kind::Server, Kind::Client, Kind::Producer, Kind::Consumer];
        let connection = self.connection();
        let is_connected = !connection.is_null() && !chance(4);
        let kind = if is_connected { kinds[4 + draw(2)] } else { kinds[draw(kinds.len())] };
        let mmap = pick(&self.maps).map_or(ptr::null_mut(), |map| map.raw);
        let name = CString::new(["a", "b"][draw(2)]).expect("no zeroes");
        let mut rep = ptr::null_mut();
        // SAFETY: the device is open, the connection is one of `connection`, a list has the entries that it says.
        let raw: Result<*mut doca_ctx, doca_error> = unsafe {
            match kind {
                Kind::Dma => out(|place| doca_dma_create(device, place)).map(|raw| raw.cast()),
                Kind::Compress => out(|place| doca_compress_create(device, place)).map(|raw| raw.cast()),
                Kind::Server => {
                    let mut count = 0;
                    let list = out(|list| doca_devinfo_rep_create_list(device, 0, list, &mut count)).expect("a list");
                    rep = out(|rep| doca_dev_rep_open(*list.add(draw(count as usize)), rep)).expect("a representor");
                    ok(doca_devinfo_rep_destroy_list(list));
                    out(|place| doca_comch_server_create(device, rep, name.as_ptr(), place)).map(|raw| raw.cast())
                }
                Kind::Client => {
                    out(|place| doca_comch_client_create(device, name.as_ptr(), place)).map(|raw| raw.cast())
                }
                Kind::Producer => out(|place| doca_comch_producer_create(connection, place)).map(|raw| raw.cast()),
                Kind::Consumer => {
                    out(|place| doca_comch_consumer_create(connection, mmap, place)).map(|raw| raw.cast())
                }
            }
        };
        let is_end = [Kind::Producer, Kind::Consumer].contains(&kind);
        if is_end && raw.is_err() {
            return;
        }
        if let (Kind::Consumer, Ok(raw)) = (kind, raw) {
            // SAFETY: a consumer that was just created.
            self.consumers.extend(out(|id| unsafe { doca_comch_consumer_get_id(raw.cast(), id) }));
        }
        let ctx = Box::new(Ctx {
            kind,
            ctx: raw.expect("a context"),
            pe: Cell::new(ptr::null_mut()),
            rep,
            tasks: RefCell::default(),
            freed: RefCell::default(),
            connections: RefCell::default(),
        });
        // SAFETY: a context that was just created; the word is the address of a box that outlives it.
        ok(unsafe { doca_ctx_set_user_data(ctx.ctx, doca_data { ptr: ptr::from_ref(&*ctx).cast_mut().cast() }) });
        // SAFETY: the same context; `changed` reads that word as what it is.
        ok(unsafe { doca_ctx_set_state_changed_cb(ctx.ctx, Some(changed)) });
        self.contexts.push(ctx);
        if is_connected {
            self.set_up(&self.contexts[self.contexts.len() - 1]);
        }
    }

    /// Of any server or client.
    fn connection(&self) -> *mut doca_comch_connection {
        let of = |ctx: &Ctx| match ctx.kind {
            Kind::Server => pick(&ctx.connections.borrow()),
            // SAFETY: a client that is alive.
            Kind::Client => out(|at| unsafe { doca_comch_client_get_connection(ctx.ctx.cast(), at) }).ok(),
            _ => None,
        };
        let all: Vec<_> = self.contexts.iter().filter_map(|ctx| of(ctx)).collect();
        pick(&all).unwrap_or(ptr::null_mut())
    }

    fn set_up(&self, ctx: &Ctx) {
        let count = 1 + draw(12) as u32;
        let raw = ctx.ctx;
        // SAFETY: the context is alive and of the kind that each call is for; callbacks have the signatures of their
        // kinds.
        unsafe {
            match ctx.kind {
                Kind::Dma => {
                    doca_dma_task_memcpy_set_conf(raw.cast(), Some(memcpy_end), Some(memcpy_end), count);
                }
                Kind::Compress => {
                    let raw = raw.cast();
                    let (inflate, deflate) = (Some(inflate_end as _), Some(deflate_end as _));
                    doca_compress_task_decompress_deflate_set_conf(raw, inflate, inflate, count);
                    doca_compress_task_compress_deflate_set_conf(raw, deflate, deflate, count);
                    doca_compress_task_decompress_lz4_block_set_conf(raw, Some(block_end), Some(block_end), count);
                    doca_compress_task_decompress_lz4_stream_set_conf(raw, Some(stream_end), Some(stream_end), count);
                }
                Kind::Server => {
                    let raw = raw.cast();
                    doca_comch_server_task_send_set_conf(raw, Some(send_end), Some(send_end), count);
                    doca_comch_server_event_msg_recv_register(raw, Some(message));
                    doca_comch_server_event_connection_status_changed_register(raw, Some(joined), Some(left));
                    doca_comch_server_set_recv_queue_size(raw, 1 + draw(4) as u32);
                }
                Kind::Client => {
                    doca_comch_client_task_send_set_conf(raw.cast(), Some(send_end), Some(send_end), count);
                    doca_comch_client_event_msg_recv_register(raw.cast(), Some(message));
                }
                Kind::Producer => {
                    doca_comch_producer_task_send_set_conf(raw.cast(), Some(data_end), Some(data_end), count);
                }
                Kind::Consumer => {
                    let end = Some(receive_end as _);
                    doca_comch_consumer_task_post_recv_set_conf(raw.cast(), end, end, count);
                }
            }
            if let Some(pe) = pick(&self.engines)
                && doca_pe_connect_ctx(pe, raw) == E::DOCA_SUCCESS
            {
                ctx.pe.set(pe);
            }
            doca_ctx_start(raw);
        }
    }

    fn allocate(&self, ctx: &Ctx) {
        let any =
            |list: &[(*mut doca_buf_inventory, *mut doca_buf)]| pick(list).map_or(ptr::null_mut(), |(_, buf)| buf);
        let (src, dst) = (any(&self.bufs).cast_const(), any(&self.bufs));
        let raw = ctx.ctx;
        static BYTES: [u8; 4080] = [9; 4080];
        // SAFETY: the context is alive and of the kind that each call is for; bufs and connections are null or ones
        // that were given out, whose inventories and contexts live to the end; `BYTES` is as long as a message may be,
        // and longer ones are refused.
        let task: Result<*mut doca_task, doca_error> = unsafe {
            let id = number(draw(1 << 20) as u64);
            let length = draw(4090) as u32;
            match (ctx.kind, draw(4)) {
                (Kind::Dma, _) => {
                    out(|t| doca_dma_task_memcpy_alloc_init(raw.cast(), src, dst, id, t)).map(|t| t.cast())
                }
                (Kind::Compress, 0) => {
                    let raw = raw.cast();
                    out(|t| doca_compress_task_decompress_deflate_alloc_init(raw, src, dst, id, t)).map(|t| t.cast())
                }
                (Kind::Compress, 1) => {
                    let raw = raw.cast();
                    out(|t| doca_compress_task_compress_deflate_alloc_init(raw, src, dst, id, t)).map(|t| t.cast())
                }
                (Kind::Compress, 2) => {
                    let raw = raw.cast();
                    out(|t| doca_compress_task_decompress_lz4_block_alloc_init(raw, src, dst, id, t)).map(|t| t.cast())
                }
                (Kind::Compress, _) => out(|t| {
                    let (sums, independent) = (draw(2) as u8, draw(2) as u8);
                    let raw = raw.cast();
                    doca_compress_task_decompress_lz4_stream_alloc_init(raw, sums, independent, src, dst, id, t)
                })
                .map(|t| t.cast()),
                (Kind::Server, _) => {
                    let to = pick(&ctx.connections.borrow()).unwrap_or(ptr::null_mut());
                    let bytes = BYTES.as_ptr().cast();
                    out(|t| doca_comch_server_task_send_alloc_init(raw.cast(), to, bytes, length, t)).map(|t| t.cast())
                }
                (Kind::Client, _) => {
                    let to = out(|to| doca_comch_client_get_connection(raw.cast(), to)).unwrap_or(ptr::null_mut());
                    let bytes = BYTES.as_ptr().cast();
                    out(|t| doca_comch_client_task_send_alloc_init(raw.cast(), to, bytes, length, t)).map(|t| t.cast())
                }
                (Kind::Producer, _) => {
                    let (imm, to) = (BYTES.as_ptr().cast_mut(), pick(&self.consumers).unwrap_or(0));
                    let length = draw(34) as u32;
                    let raw = raw.cast();
                    out(|t| doca_comch_producer_task_send_alloc_init(raw, src, imm, length, to, t)).map(|t| t.cast())
                }
                (Kind::Consumer, _) => {
                    out(|t| doca_comch_consumer_task_post_recv_alloc_init(raw.cast(), dst, t)).map(|t| t.cast())
                }
            }
        };
        if let Ok(task) = task {
            ctx.freed.borrow_mut().retain(|other| *other != task);
            ctx.tasks.borrow_mut().push((task, false));
        }
    }

    fn play_with_tasks(&self, ctx: &Ctx) {
        let task = pick(&ctx.tasks.borrow());
        let Some((task, flies)) = task else { return };
        let (buf, other) = (pick(&self.bufs), pick(&self.bufs));
        // SAFETY: a context that is alive.
        let is_running = out(|state| unsafe { doca_ctx_get_state(ctx.ctx, state) }) == Ok(RUNNING);
        // SAFETY: the task is one of this context's list; one that flies or was freed is known by its stamp and
        // refused; bufs as in `play_with_bufs`.
        unsafe {
            match if is_running || chance(3) { draw(9) } else { 5 } {
                0..=4 => ctx.submit(task),
                5 if flies => doca_task_free(task),
                5 => ctx.free(task),
                6 if ctx.kind == Kind::Dma => {
                    let (Some((_, buf)), Some((_, other))) = (buf, other) else { return };
                    doca_dma_task_memcpy_set_src(task.cast(), buf);
                    doca_dma_task_memcpy_set_dst(task.cast(), other);
                }
                7 => {
                    let freed = pick(&ctx.freed.borrow());
                    freed.into_iter().for_each(|task| doca_task_free(task));
                }
                _ => {
                    doca_task_get_status(task);
                    doca_task_set_user_data(task, number(1));
                }
            }
        }
    }

    /// Handles of another kind, and none.
    fn confuse(&self) {
        let (Some(device), Some(map)) = (pick(&self.devices), pick(&self.maps)) else { return };
        let invalid = E::DOCA_ERROR_INVALID_VALUE;
        unsafe {
            assert_eq!(doca_mmap_stop(device.cast()), invalid);
            assert_eq!(doca_dev_close(map.raw.cast()), invalid);
            assert_eq!(doca_ctx_start(map.raw.cast()), invalid);
            assert_eq!(doca_task_submit(device.cast()), invalid);
            assert_eq!(doca_buf_inc_refcount(device.cast(), ptr::null_mut()), invalid);
            assert_eq!(doca_pe_progress(device.cast()), 0);
            assert_eq!(doca_mmap_get_num_bufs(map.raw, ptr::null_mut()), invalid);
            if let Some(ctx) = self.contexts.get(draw(self.contexts.len())).filter(|ctx| ctx.kind != Kind::Dma) {
                assert_eq!(doca_dma_destroy(ctx.ctx.cast()), invalid);
            }
        }
    }

    fn try_to_remove(&mut self) {
        unsafe {
            match draw(6) {
                // A task that is not in flight points to its bufs all the same.
                3 if self.contexts.iter().any(|ctx| !ctx.tasks.borrow().is_empty()) => {}
                0 => self.devices.retain(|dev| !chance(8) || doca_dev_close(*dev) != E::DOCA_SUCCESS),
                1 => self.engines.retain(|pe| !chance(2) || doca_pe_destroy(*pe) != E::DOCA_SUCCESS),
                2 => self.maps.retain(|map| !chance(2) || doca_mmap_destroy(map.raw) != E::DOCA_SUCCESS),
                3 => {
                    let bufs = &mut self.bufs;
                    self.inventories.retain(|inventory| {
                        let stays = !chance(2) || doca_buf_inventory_destroy(*inventory) != E::DOCA_SUCCESS;
                        bufs.retain(|(of, _)| stays || of != inventory);
                        stays
                    });
                }
                4 => self.contexts.retain(|ctx| {
                    let stays = !chance(2) || destroy(ctx) != E::DOCA_SUCCESS;
                    if !stays && !ctx.rep.is_null() {
                        ok(doca_dev_rep_close(ctx.rep));
                    }
                    stays
                }),
                _ => {
                    let Some(map) = pick(&self.maps) else { return };
                    doca_mmap_stop(map.raw);
                    doca_mmap_start(map.raw);
                }
            }
        }
    }

    fn call(&mut self) {
        let ctx = if self.contexts.is_empty() { None } else { Some(draw(self.contexts.len())) };
        match draw(40) {
            0 if self.devices.len() < 4 && chance(16) => self.open_device(),
            1 if self.engines.len() < 3 => {
                self.engines.push(out(|pe| unsafe { doca_pe_create(pe) }).expect("an engine"))
            }
            2 if self.maps.len() < 12 => self.map(),
            3 if self.maps.len() < 12 => self.export_or_import(),
            4 if self.inventories.len() < 3 => {
                let inventory = out(|place| unsafe { doca_buf_inventory_create(1 + draw(30), place) });
                self.inventories.push(inventory.expect("an inventory"));
                unsafe { doca_buf_inventory_start(self.inventories[self.inventories.len() - 1]) };
            }
            5..=8 => {
                if self.bufs.len() > 100 {
                    // Those that went home are of use for a while only.
                    let count = |buf| out(|count| unsafe { doca_buf_get_refcount(buf, count) });
                    self.bufs.retain(|(_, buf)| count(*buf) != Ok(0));
                }
                self.get_buf();
            }
            9..=12 => self.play_with_bufs(),
            13 if self.contexts.len() < 20 => self.create_context(),
            14 => self.confuse(),
            15 if chance(3) => self.try_to_remove(),
            16..=39 => {
                let Some(index) = ctx else { return };
                let ctx = &*self.contexts[index];
                match draw(24) {
                    0 | 1 => self.set_up(ctx),
                    2 if chance(20) => {
                        unsafe { doca_ctx_stop(ctx.ctx) };
                    }
                    3..=7 => self.allocate(ctx),
                    8..=15 => self.play_with_tasks(ctx),
                    16 => unsafe { doca_ctx_flush_tasks(ctx.ctx) },
                    17 => {
                        let pe = ctx.pe.get();
                        unsafe {
                            doca_pe_request_notification(pe);
                            doca_pe_clear_notification(pe, 0);
                        }
                    }
                    _ => {
                        for _ in 0..draw(4) {
                            self.engines.iter().for_each(|pe| {
                                unsafe { doca_pe_progress(*pe) };
                            });
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes everything down; every call must succeed in the end.
    fn end(mut self) {
        ENDING.set(true);
        let start = Instant::now();
        for ctx in &self.contexts {
            let state = || out(|state| unsafe { doca_ctx_get_state(ctx.ctx, state) }).expect("a state");
            unsafe { doca_ctx_stop(ctx.ctx) };
            while state() != IDLE {
                let idle: Vec<_> =
                    ctx.tasks.borrow().iter().filter(|(_, flies)| !flies).map(|(task, _)| *task).collect();
                idle.into_iter().for_each(|task| ctx.free(task));
                self.engines.iter().for_each(|pe| while unsafe { doca_pe_progress(*pe) } == 1 {});
                assert!(start.elapsed() < PATIENCE, "a context does not stop");
                std::thread::yield_now();
            }
        }
        for ctx in self.contexts.drain(..) {
            ok(destroy(&ctx));
            if !ctx.rep.is_null() {
                ok(unsafe { doca_dev_rep_close(ctx.rep) });
            }
        }
        for (_, buf) in &self.bufs {
            while unsafe { doca_buf_dec_refcount(*buf, ptr::null_mut()) } == E::DOCA_SUCCESS {}
        }
        for inventory in self.inventories {
            ok(unsafe { doca_buf_inventory_destroy(inventory) });
        }
        self.maps.iter().for_each(|map| ok(unsafe { doca_mmap_destroy(map.raw) }));
        self.engines.iter().for_each(|pe| ok(unsafe { doca_pe_destroy(*pe) }));
        self.devices.iter().for_each(|dev| ok(unsafe { doca_dev_close(*dev) }));
    }
}

fn run(seed: u64) {
    STATE.set(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let mut world = World { directory: directory.path().display().to_string(), ..World::default() };
    world.open_device();
    world.open_device();
    for _ in 0..CALLS {
        world.call();
    }
    world.end();
}

/// Whether a process of its own survives the seed.
fn survives(seed: u64) -> bool {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program);
    child.args(["--exact", "any_order_of_calls_is_survived_and_cleared_away", "--nocapture"]).env(CHILD, "1");
    child.env(SEED, seed.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn().expect("a child");
    let start = Instant::now();
    while start.elapsed() < 2 * PATIENCE {
        if let Some(status) = child.try_wait().expect("a status") {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("it hangs");
    child.wait().expect("it ends");
    false
}

#[test]
fn any_order_of_calls_is_survived_and_cleared_away() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = variable(SEED) {
        return run(seed);
    }
    let seconds = variable("KVLANE_CHAOS_SECONDS");
    let first = if seconds.is_some() { std::process::id().into() } else { 1 };
    let start = Instant::now();
    let mut bad = Vec::new();
    for (count, seed) in (first << 20..).enumerate() {
        let enough = seconds.map_or(count >= 30, |seconds| start.elapsed().as_secs() >= seconds);
        if enough || bad.len() >= 5 {
            println!("{count} seeds from {}", first << 20);
            break;
        }
        if !survives(seed) {
            bad.push(seed);
        }
    }
    assert!(bad.is_empty(), "repeat with {SEED}=N for N in {bad:?}");
}
