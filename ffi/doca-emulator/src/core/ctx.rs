//! `doca_ctx`: what the compression and copy contexts have in common, and that is nearly all.
//!
//! ```text
//!           start                 stop, or a task failed
//!   IDLE ----------> RUNNING ------------------------------> STOPPING
//!    ^                  stop, with nothing left to wait for     |
//!    '----------------------------------------------------------'
//!      all tasks completed and freed, and one more pe_progress
//! ```
//! Engines, Comch servers and producers start at once. A Comch client and a consumer are `STARTING` until the other
//! side answered, and go to `STOPPING` if it does not. The state callback runs inside whatever caused the change:
//! `doca_ctx_start`, `doca_ctx_stop` or `doca_pe_progress`.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{KINDS, TASKS_MAX, TaskKind};
use crate::core::dev::Dev;
use crate::core::library::Library;
use crate::core::pe::Pe;
use crate::core::pool::{Fifo, Pool};
use crate::core::task::{ContextRun, Task};
use crate::ffi::abi::{doca_ctx, doca_ctx_state_changed_callback_t, doca_ctx_states, doca_data, doca_task};
use crate::ffi::{Answer, Fault, Handle, Object, Out, Stamp, complain, exports};

/// A completion callback with its task type erased.
pub(crate) type Callback =
    unsafe extern "C" fn(task: *mut doca_task, task_user_data: doca_data, ctx_user_data: doca_data);

#[derive(Clone, Copy)]
pub(crate) struct Conf {
    pub(crate) done: Callback,
    pub(crate) failed: Callback,
    count: u32,
}

#[repr(C)]
pub(crate) struct Ctx {
    stamp: Stamp,
    pub(crate) library: Box<dyn Library>,
    pub(crate) dev: Handle<Dev>,
    pub(crate) pe: Cell<Option<Handle<Pe>>>,
    state: Cell<doca_ctx_states>,
    user_data: Cell<doca_data>,
    state_cb: Cell<doca_ctx_state_changed_callback_t>,
    /// Configuration of each kind of task.
    confs: [Cell<Option<Conf>>; KINDS],
    /// What its tasks share, from start to idle; then the pools of those tasks, and the free ones by kind.
    run: RefCell<Option<Arc<ContextRun>>>,
    pools: RefCell<Vec<Pool>>,
    free: [Cell<Option<Handle<Task>>>; KINDS],
    allocated: Cell<usize>,
    inflight: Cell<usize>,
    /// Tasks that were submitted without the flush flag.
    held_back: Cell<Fifo>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Ctx {
    type Opaque = doca_ctx;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-ctx\0");
}

impl Ctx {
    pub(crate) fn create(library: impl Library, dev: Handle<Dev>) -> Handle<Ctx> {
        dev.hold();
        Handle::new(Ctx {
            stamp: Stamp::new(Ctx::MAGIC),
            library: Box::new(library),
            dev,
            pe: Cell::new(None),
            state: Cell::new(doca_ctx_states::DOCA_CTX_STATE_IDLE),
            user_data: Cell::new(doca_data { u64_: 0 }),
            state_cb: Cell::new(None),
            confs: [const { Cell::new(None) }; KINDS],
            run: RefCell::new(None),
            pools: RefCell::new(Vec::new()),
            free: [const { Cell::new(None) }; KINDS],
            allocated: Cell::new(0),
            inflight: Cell::new(0),
            held_back: Cell::new(Fifo::new()),
        })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.get() == doca_ctx_states::DOCA_CTX_STATE_RUNNING
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.state.get() == doca_ctx_states::DOCA_CTX_STATE_STOPPING
    }

    fn is_starting(&self) -> bool {
        self.state.get() == doca_ctx_states::DOCA_CTX_STATE_STARTING
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state.get() == doca_ctx_states::DOCA_CTX_STATE_IDLE
    }

    pub(crate) fn check_idle(&self) -> Answer {
        if self.is_idle() { Ok(()) } else { Err(Fault::DOCA_ERROR_BAD_STATE) }
    }

    /// Whether the context is stopping and nothing keeps it from becoming idle any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_stopping() && self.allocated.get() == 0
    }

    pub(crate) fn inflight(&self) -> usize {
        self.inflight.get()
    }

    pub(crate) fn user_data(&self) -> doca_data {
        self.user_data.get()
    }

    pub(crate) fn conf(&self, kind: TaskKind) -> Option<Conf> {
        self.confs[kind as usize].get()
    }

    /// The library's part, if it is of that type.
    pub(crate) fn library_as<T: Library>(&self) -> Option<&T> {
        let library: &dyn Any = &*self.library;
        library.downcast_ref()
    }

    pub(crate) fn has_tasks(&self) -> bool {
        self.confs.iter().any(|conf| conf.get().is_some())
    }

    /// `set_conf` of a task type.
    pub(crate) fn configure(
        &self,
        kind: TaskKind,
        done: Option<Callback>,
        failed: Option<Callback>,
        count: u32,
    ) -> Answer {
        self.check_idle()?;
        let (Some(done), Some(failed)) = (done, failed) else { return Err(Fault::DOCA_ERROR_INVALID_VALUE) };
        let mut tasks_max = TASKS_MAX;
        if kind.is_of_an_engine() {
            self.dev.info.buf_bytes_max(kind)?;
            tasks_max = self.dev.config().tasks_max;
        }
        let count_of = |conf: &Cell<Option<Conf>>| conf.get().map_or(0, |conf| u64::from(conf.count));
        let others = self.confs.iter().map(count_of).sum::<u64>() - count_of(&self.confs[kind as usize]);
        if count == 0 || others + u64::from(count) > u64::from(tasks_max) {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        self.confs[kind as usize].set(Some(Conf { done, failed, count }));
        Ok(())
    }

    /// `alloc_init` of a task type, up to filling the task in.
    pub(crate) fn allocate(&self, kind: TaskKind) -> Result<Handle<Task>, Fault> {
        if !self.is_running() {
            return Err(Fault::DOCA_ERROR_BAD_STATE);
        }
        let free = &self.free[kind as usize];
        let task = free.get().ok_or(Fault::DOCA_ERROR_NO_MEMORY)?;
        free.set(task.link.take());
        self.allocated.set(self.allocated.get() + 1);
        Ok(task)
    }

    /// The way back of `allocate`.
    pub(crate) fn reclaim(&self, task: Handle<Task>) {
        task.link.set(self.free[task.kind as usize].replace(Some(task)));
        self.allocated.set(self.allocated.get() - 1);
        if let (true, Some(pe)) = (self.is_settled(), self.pe.get()) {
            pe.port.nudge();
        }
    }

    /// Takes a submitted task in.
    pub(crate) fn accept(&self, task: Handle<Task>, flush: bool) {
        self.inflight.set(self.inflight.get() + 1);
        let mut tasks = self.held_back.replace(Fifo::new());
        tasks.push(task);
        self.held_back.set(tasks);
        if flush {
            self.flush();
        }
    }

    fn flush(&self) {
        let tasks = self.held_back.replace(Fifo::new());
        if let (Some(unit), 1..) = (self.library.unit(), tasks.len()) {
            self.dev.engines.take_in(unit, tasks);
        }
    }

    /// A submitted task is with somebody other than an engine; or, with false, was not taken.
    pub(crate) fn departed(&self, gone: bool) {
        self.inflight.set(if gone { self.inflight.get() + 1 } else { self.inflight.get() - 1 });
    }

    /// One of the tasks in flight has landed.
    pub(crate) fn landed(&self) {
        self.inflight.set(self.inflight.get() - 1);
    }
}

/// The one setter of the state. The callback may destroy the context when that became idle.
fn enter(ctx: Handle<Ctx>, next: doca_ctx_states) {
    let previous = ctx.state.replace(next);
    if let Some(callback) = ctx.state_cb.get() {
        // SAFETY: the application's function, called as the header declares it, on the thread that uses the context.
        unsafe { callback(ctx.user_data.get(), ctx.to_c(), previous, next) };
    }
}

/// STARTING to RUNNING, when what a start waits for has come. A context that is being stopped stays so.
pub(crate) fn become_running(ctx: Handle<Ctx>) {
    if ctx.is_starting() {
        enter(ctx, doca_ctx_states::DOCA_CTX_STATE_RUNNING);
    }
}

/// Stops a context because something other than a task failed for good.
pub(crate) fn fail(ctx: Handle<Ctx>) {
    if ctx.is_starting() || ctx.is_running() {
        begin_stop(ctx);
    }
}

/// RUNNING to STOPPING: what is queued will be flushed by the engines.
pub(crate) fn begin_stop(ctx: Handle<Ctx>) {
    if let Some(run) = &*ctx.run.borrow() {
        run.broken.store(true, Ordering::Release);
    }
    ctx.flush();
    ctx.library.begin_stop(ctx);
    if let Some(pe) = ctx.pe.get() {
        pe.stopping.set(pe.stopping.get() + 1);
    }
    enter(ctx, doca_ctx_states::DOCA_CTX_STATE_STOPPING);
}

/// STOPPING to IDLE, once settled. The context may be gone afterwards.
pub(crate) fn finish_stop(ctx: Handle<Ctx>) {
    debug_assert!(ctx.is_settled() && ctx.inflight() == 0, "a task in flight is an allocated one");
    ctx.free.iter().for_each(|list| list.set(None));
    drop(mem::take(&mut *ctx.pools.borrow_mut()));
    *ctx.run.borrow_mut() = None;
    ctx.library.finish_stop();
    if let Some(pe) = ctx.pe.get() {
        pe.stopping.set(pe.stopping.get() - 1);
        pe.port.forget(ctx);
    }
    enter(ctx, doca_ctx_states::DOCA_CTX_STATE_IDLE);
}

fn start(ctx: Handle<Ctx>) -> Answer {
    ctx.check_idle()?;
    let pe = ctx.pe.get().ok_or(Fault::DOCA_ERROR_NOT_CONNECTED)?;
    if ctx.dev.is_lost() {
        return Err(Fault::DOCA_ERROR_DRIVER);
    }
    let run = ContextRun { device: ctx.dev.id, broken: AtomicBool::new(false), port: Arc::clone(&pe.port) };
    let run = Arc::new(run);
    let mut pools = Vec::new();
    for kind in TaskKind::ALL {
        if let Some(conf) = ctx.conf(kind) {
            pools.push((kind, Pool::new(ctx, kind, conf.count, &run)?));
        }
    }
    let next = ctx.library.start(ctx)?;
    for (kind, pool) in &pools {
        for task in pool.handles() {
            task.link.set(ctx.free[*kind as usize].replace(Some(task)));
        }
    }
    *ctx.pools.borrow_mut() = pools.into_iter().map(|(_, pool)| pool).collect();
    *ctx.run.borrow_mut() = Some(run);
    enter(ctx, next);
    // The callback may have stopped it, but what start came to is decided.
    if next == doca_ctx_states::DOCA_CTX_STATE_RUNNING { Ok(()) } else { Err(Fault::DOCA_ERROR_IN_PROGRESS) }
}

fn stop(ctx: Handle<Ctx>) -> Answer {
    if ctx.is_idle() {
        return Ok(());
    }
    if ctx.is_running() || ctx.is_starting() {
        begin_stop(ctx);
    }
    let in_callback = ctx.pe.get().is_some_and(|pe| pe.is_busy.get());
    if in_callback || !ctx.is_settled() {
        return Err(Fault::DOCA_ERROR_IN_PROGRESS);
    }
    finish_stop(ctx);
    Ok(())
}

/// `doca_compress_destroy`, `doca_dma_destroy`.
pub(crate) fn destroy(ctx: Handle<Ctx>) -> Answer {
    if !ctx.is_idle() {
        return Err(Fault::DOCA_ERROR_IN_USE);
    }
    if let Some(pe) = ctx.pe.get() {
        pe.contexts.borrow_mut().retain(|other| *other != ctx);
    }
    ctx.dev.release();
    // SAFETY: idle, so it has no tasks, and the caller gives the handle up.
    unsafe { ctx.destroy() };
    Ok(())
}

exports! {
    fn doca_ctx_start(ctx: *mut doca_ctx => Handle<Ctx>) {
        start(ctx)
    }

    fn doca_ctx_stop(ctx: *mut doca_ctx => Handle<Ctx>) {
        stop(ctx)
    }

    fn doca_ctx_get_state(ctx: *const doca_ctx => Handle<Ctx>, state: *mut doca_ctx_states => Out<doca_ctx_states>) {
        state.put(ctx.state.get());
        Ok(())
    }

    fn doca_ctx_get_num_inflight_tasks(
        ctx: *const doca_ctx => Handle<Ctx>,
        num_inflight_tasks: *mut usize => Out<usize>,
    ) {
        num_inflight_tasks.put(ctx.inflight());
        Ok(())
    }

    fn doca_ctx_set_user_data(ctx: *mut doca_ctx => Handle<Ctx>, user_data: doca_data) {
        ctx.check_idle()?;
        ctx.user_data.set(user_data);
        Ok(())
    }

    fn doca_ctx_get_user_data(ctx: *const doca_ctx => Handle<Ctx>, user_data: *mut doca_data => Out<doca_data>) {
        user_data.put(ctx.user_data.get());
        Ok(())
    }

    fn doca_ctx_set_state_changed_cb(ctx: *mut doca_ctx => Handle<Ctx>, cb: doca_ctx_state_changed_callback_t) {
        ctx.check_idle()?;
        ctx.state_cb.set(cb);
        Ok(())
    }

    fn doca_ctx_flush_tasks(ctx: *mut doca_ctx => Handle<Ctx>)
        -> () = (complain("doca_ctx_flush_tasks: not a context"))
    {
        ctx.flush();
    }
}
