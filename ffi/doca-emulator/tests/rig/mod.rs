//! A bench for the emulator: everything through the C functions, as a program would.

#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each test file uses its part")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use doca_emulator::{Config, configure_thread};

pub use c::doca_error as E;
use c::*;
pub use doca_emulator::abi as c;

pub const IDLE: doca_ctx_states = doca_ctx_states::DOCA_CTX_STATE_IDLE;
pub const RUNNING: doca_ctx_states = doca_ctx_states::DOCA_CTX_STATE_RUNNING;
pub const STOPPING: doca_ctx_states = doca_ctx_states::DOCA_CTX_STATE_STOPPING;
pub const LOCAL_RW: u32 = doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE.0;
pub const PCI_RO: u32 = doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_ONLY.0;
pub const PCI_RW: u32 = doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_WRITE.0;
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
pub fn ok(error: doca_error) {
    assert_eq!(error, E::DOCA_SUCCESS);
}

/// As [`ok`], from a destructor: says nothing more while a test already fails.
fn ok_unless_failing(error: doca_error) {
    if !std::thread::panicking() {
        ok(error);
    }
}

/// Calls a function whose last argument is a place for its result.
pub fn out<T>(call: impl FnOnce(*mut T) -> doca_error) -> Result<T, doca_error> {
    let mut place = std::mem::MaybeUninit::uninit();
    match call(place.as_mut_ptr()) {
        E::DOCA_SUCCESS => Ok(unsafe { place.assume_init() }),
        error => Err(error),
    }
}

pub fn number(value: u64) -> doca_data {
    doca_data { u64_: value }
}

pub struct Device(pub *mut doca_dev);

impl Device {
    pub fn open(config: &str) -> Device {
        configure_thread(config.parse::<Config>().expect("a configuration"));
        let mut count = 0;
        let list = out(|list| unsafe { doca_devinfo_create_list(list, &mut count) }).expect("a device list");
        assert!(count >= 1);
        let dev = out(|dev| unsafe { doca_dev_open(*list, dev) }).expect("a device");
        ok(unsafe { doca_devinfo_destroy_list(list) });
        configure_thread(None);
        Device(dev)
    }

    pub fn info(&self) -> *mut doca_devinfo {
        unsafe { doca_dev_as_devinfo(self.0) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        ok_unless_failing(unsafe { doca_dev_close(self.0) });
    }
}

/// Registered memory. The bytes are reached by raw pointers only, because engines write to them.
pub struct Memory {
    pub mmap: *mut doca_mmap,
    pub first: *mut u8,
    pub len: usize,
    owned: bool,
}

impl Memory {
    pub fn new(device: &Device, bytes: &[u8]) -> Memory {
        Memory::with_access(device, bytes, LOCAL_RW)
    }

    pub fn zeroed(device: &Device, len: usize) -> Memory {
        Memory::new(device, &vec![0; len])
    }

    pub fn with_access(device: &Device, bytes: &[u8], access: u32) -> Memory {
        let first = Box::leak(bytes.to_vec().into_boxed_slice()).as_mut_ptr();
        let mut memory = Memory::over(device, first, bytes.len(), access);
        memory.owned = true;
        memory
    }

    pub fn over(device: &Device, first: *mut u8, len: usize, access: u32) -> Memory {
        unsafe {
            let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
            ok(doca_mmap_add_dev(mmap, device.0));
            ok(doca_mmap_set_permissions(mmap, access));
            ok(doca_mmap_set_memrange(mmap, first.cast(), len));
            ok(doca_mmap_start(mmap));
            Memory { mmap, first, len, owned: false }
        }
    }

    pub fn blob(&self, device: &Device) -> Result<Vec<u8>, doca_error> {
        unsafe {
            let mut len = 0;
            let blob = out(|blob| doca_mmap_export_pci(self.mmap, device.0, blob, &mut len))?;
            Ok(std::slice::from_raw_parts(blob.cast::<u8>(), len).to_vec())
        }
    }

    pub fn import(device: &Device, blob: &[u8]) -> Result<Memory, doca_error> {
        unsafe {
            let mmap = out(|mmap| {
                doca_mmap_create_from_export(ptr::null(), blob.as_ptr().cast(), blob.len(), device.0, mmap)
            })?;
            let mut len = 0;
            let first = out(|first| doca_mmap_get_memrange(mmap, first, &mut len)).expect("a range");
            Ok(Memory { mmap, first: first.cast(), len, owned: false })
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_at(0, self.len)
    }

    pub fn bytes_at(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        unsafe { std::slice::from_raw_parts(self.first.add(at), len).to_vec() }
    }

    pub fn fill(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        unsafe { self.first.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    pub fn at(&self, offset: usize) -> *mut c_void {
        self.first.wrapping_add(offset).cast()
    }

    pub fn bufs(&self) -> u32 {
        out(|count| unsafe { doca_mmap_get_num_bufs(self.mmap, count) }).expect("a count")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        ok_unless_failing(unsafe { doca_mmap_destroy(self.mmap) });
        if self.owned {
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.first, self.len)) });
        }
    }
}

pub struct Inventory(pub *mut doca_buf_inventory);

impl Inventory {
    pub fn new(count: usize) -> Inventory {
        unsafe {
            let inventory = out(|inventory| doca_buf_inventory_create(count, inventory)).expect("an inventory");
            ok(doca_buf_inventory_start(inventory));
            Inventory(inventory)
        }
    }

    pub fn get(&self, memory: &Memory, at: usize, len: usize, data_len: usize) -> Result<*mut doca_buf, doca_error> {
        let addr = memory.at(at);
        out(|buf| unsafe { doca_buf_inventory_buf_get_by_args(self.0, memory.mmap, addr, len, addr, data_len, buf) })
    }

    pub fn source(&self, memory: &Memory, at: usize, len: usize) -> *mut doca_buf {
        self.get(memory, at, len, len).expect("a source buf")
    }

    pub fn destination(&self, memory: &Memory, at: usize, len: usize) -> *mut doca_buf {
        self.get(memory, at, len, 0).expect("a destination buf")
    }

    pub fn chain(&self, bufs: &[*mut doca_buf]) -> *mut doca_buf {
        for buf in &bufs[1..] {
            ok(unsafe { doca_buf_chain_list(bufs[0], *buf) });
        }
        bufs[0]
    }

    pub fn free(&self) -> u32 {
        out(|count| unsafe { doca_buf_inventory_get_num_free_elements(self.0, count) }).expect("a count")
    }
}

impl Drop for Inventory {
    fn drop(&mut self) {
        ok_unless_failing(unsafe { doca_buf_inventory_destroy(self.0) });
    }
}

pub fn give_back(buf: *mut doca_buf) {
    ok(unsafe { doca_buf_dec_refcount(buf, ptr::null_mut()) });
}

pub fn data_len(buf: *mut doca_buf) -> usize {
    out(|len| unsafe { doca_buf_get_data_len(buf, len) }).expect("a length")
}

pub struct Engine(pub *mut doca_pe);

impl Engine {
    pub fn new() -> Engine {
        Engine(out(|pe| unsafe { doca_pe_create(pe) }).expect("a progress engine"))
    }

    pub fn progress(&self) -> bool {
        unsafe { doca_pe_progress(self.0) == 1 }
    }

    #[track_caller]
    pub fn progress_until(&self, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            if !self.progress() {
                assert!(start.elapsed() < PATIENCE, "nothing happens");
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        ok_unless_failing(unsafe { doca_pe_destroy(self.0) });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub id: u64,
    pub through_error_cb: bool,
    pub status: doca_error,
    pub task: *mut doca_task,
}

/// What callbacks saw. Its address is the context's user data.
#[derive(Default)]
pub struct Log {
    pub completions: RefCell<Vec<Completion>>,
    pub states: RefCell<Vec<(doca_ctx_states, doca_ctx_states)>>,
    pub frees: std::cell::Cell<bool>,
}

unsafe fn record(task: *mut doca_task, id: doca_data, log: doca_data, through_error_cb: bool) {
    unsafe {
        let log = &*log.ptr.cast::<Log>();
        let status = doca_task_get_status(task);
        log.completions.borrow_mut().push(Completion { id: id.u64_, through_error_cb, status, task });
        if log.frees.get() {
            doca_task_free(task);
        }
    }
}

macro_rules! callbacks {
    ($($done:ident, $failed:ident: $task:ident;)*) => {$(
        pub unsafe extern "C" fn $done(task: *mut $task, id: doca_data, log: doca_data) {
            unsafe { record(task.cast(), id, log, false) }
        }

        pub unsafe extern "C" fn $failed(task: *mut $task, id: doca_data, log: doca_data) {
            unsafe { record(task.cast(), id, log, true) }
        }
    )*};
}

callbacks! {
    memcpy_done, memcpy_failed: doca_dma_task_memcpy;
    deflate_done, deflate_failed: doca_compress_task_compress_deflate;
    inflate_done, inflate_failed: doca_compress_task_decompress_deflate;
    stream_done, stream_failed: doca_compress_task_decompress_lz4_stream;
    block_done, block_failed: doca_compress_task_decompress_lz4_block;
}

pub unsafe extern "C" fn state_changed(
    log: doca_data,
    _: *mut doca_ctx,
    before: doca_ctx_states,
    after: doca_ctx_states,
) {
    unsafe { (*log.ptr.cast::<Log>()).states.borrow_mut().push((before, after)) };
}

/// A started context of either library with its log.
pub struct Context {
    pub ctx: *mut doca_ctx,
    pub log: Rc<Log>,
    library: Library,
}

enum Library {
    Dma(*mut doca_dma),
    Compress(*mut doca_compress),
}

pub const TASKS: u32 = 64;

impl Context {
    pub fn dma(device: &Device, engine: &Engine) -> Context {
        let context = Context::dma_unconnected(device);
        unsafe {
            ok(doca_pe_connect_ctx(engine.0, context.ctx));
            ok(doca_dma_task_memcpy_set_conf(context.dma_raw(), Some(memcpy_done), Some(memcpy_failed), TASKS));
        }
        context.start()
    }

    pub fn dma_unconnected(device: &Device) -> Context {
        unsafe {
            let dma = out(|dma| doca_dma_create(device.0, dma)).expect("a dma context");
            Context { ctx: doca_dma_as_ctx(dma), log: Rc::default(), library: Library::Dma(dma) }
        }
    }

    pub fn compress(device: &Device, engine: &Engine) -> Context {
        unsafe {
            let compress = out(|compress| doca_compress_create(device.0, compress)).expect("a compress context");
            let ctx = doca_compress_as_ctx(compress);
            ok(doca_pe_connect_ctx(engine.0, ctx));
            ok(doca_compress_task_decompress_deflate_set_conf(
                compress,
                Some(inflate_done),
                Some(inflate_failed),
                TASKS,
            ));
            if doca_compress_cap_task_decompress_lz4_block_is_supported(device.info()) == E::DOCA_SUCCESS {
                ok(doca_compress_task_decompress_lz4_stream_set_conf(
                    compress,
                    Some(stream_done),
                    Some(stream_failed),
                    4,
                ));
                ok(doca_compress_task_decompress_lz4_block_set_conf(compress, Some(block_done), Some(block_failed), 4));
            } else {
                ok(doca_compress_task_compress_deflate_set_conf(compress, Some(deflate_done), Some(deflate_failed), 4));
            }
            Context { ctx, log: Rc::default(), library: Library::Compress(compress) }.start()
        }
    }

    fn start(self) -> Context {
        unsafe {
            let log = doca_data { ptr: Rc::as_ptr(&self.log).cast_mut().cast() };
            ok(doca_ctx_set_user_data(self.ctx, log));
            ok(doca_ctx_set_state_changed_cb(self.ctx, Some(state_changed)));
            ok(doca_ctx_start(self.ctx));
        }
        self
    }

    pub fn dma_raw(&self) -> *mut doca_dma {
        match self.library {
            Library::Dma(dma) => dma,
            Library::Compress(_) => panic!("a compress context"),
        }
    }

    pub fn compress_raw(&self) -> *mut doca_compress {
        match self.library {
            Library::Compress(compress) => compress,
            Library::Dma(_) => panic!("a dma context"),
        }
    }

    pub fn state(&self) -> doca_ctx_states {
        out(|state| unsafe { doca_ctx_get_state(self.ctx, state) }).expect("a state")
    }

    pub fn inflight(&self) -> usize {
        out(|count| unsafe { doca_ctx_get_num_inflight_tasks(self.ctx, count) }).expect("a count")
    }

    pub fn memcpy(&self, id: u64, src: *const doca_buf, dst: *mut doca_buf) -> Result<*mut doca_task, doca_error> {
        unsafe {
            let task = out(|task| doca_dma_task_memcpy_alloc_init(self.dma_raw(), src, dst, number(id), task))?;
            Ok(doca_dma_task_memcpy_as_task(task))
        }
    }

    pub fn inflate(&self, id: u64, src: *const doca_buf, dst: *mut doca_buf) -> Result<*mut doca_task, doca_error> {
        unsafe {
            let task = out(|task| {
                doca_compress_task_decompress_deflate_alloc_init(self.compress_raw(), src, dst, number(id), task)
            })?;
            Ok(doca_compress_task_decompress_deflate_as_task(task))
        }
    }

    /// The log's completions so far, taken out.
    pub fn completions(&self) -> Vec<Completion> {
        std::mem::take(&mut *self.log.completions.borrow_mut())
    }

    pub fn completed(&self) -> usize {
        self.log.completions.borrow().len()
    }

    /// Submits one task, waits for it and frees it.
    #[track_caller]
    pub fn run(&self, engine: &Engine, task: *mut doca_task) -> doca_error {
        ok(unsafe { doca_task_submit(task) });
        let before = self.completed();
        engine.progress_until(|| self.completed() > before);
        let status = unsafe { doca_task_get_status(task) };
        unsafe { doca_task_free(task) };
        status
    }

    /// Stops the context and waits until it is idle. All its tasks are free.
    #[track_caller]
    pub fn stop(&self, engine: &Engine) {
        unsafe { doca_ctx_stop(self.ctx) };
        engine.progress_until(|| self.state() == IDLE);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        unsafe {
            // With nothing in flight this is synchronous.
            doca_ctx_stop(self.ctx);
            ok_unless_failing(match self.library {
                Library::Dma(dma) => doca_dma_destroy(dma),
                Library::Compress(compress) => doca_compress_destroy(compress),
            });
        }
    }
}

/// Raw RFC 1951.
pub fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut packed = vec![0; compressor.deflate_compress_bound(bytes.len())];
    let len = compressor.deflate_compress(bytes, &mut packed).expect("within its bound");
    packed.truncate(len);
    packed
}

/// Bytes that compress a little, the same for the same seed.
pub fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 23) as u8 * 3
        })
        .collect()
}

/// The user who owns nothing.
pub const NOBODY: u32 = 65534;

/// Whether this process may become nobody: in a user namespace root may be the only user that there is.
pub fn is_root_of_others() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let has_nobody = map.lines().any(|line| {
        let words: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(words[..], [first, _, count] if (first..first + count).contains(&u64::from(NOBODY)))
    });
    // SAFETY: takes nothing and cannot fail.
    has_nobody && unsafe { libc::geteuid() == 0 }
}
