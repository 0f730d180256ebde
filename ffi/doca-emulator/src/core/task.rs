//! Tasks: what the application allocates, submits, keeps or frees.
//!
//! A submit takes a snapshot of both buffer lists into the task, so engines never look at a `doca_buf`. From then until
//! its completion is taken off the port, the job inside the task belongs to the engine side; the rest of the task stays
//! the application's.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::{DATA_BYTES_MAX, TaskKind, buf_bytes_max};
use crate::core::buf::{Buf, append};
use crate::core::ctx::Ctx;
use crate::core::job::{EngineJob, Segment, Use};
use crate::core::library::MessageRoute;
use crate::core::pe::Port;
use crate::core::poison::poison;
use crate::ffi::abi::{doca_buf, doca_ctx, doca_data, doca_task, doca_task_submit_flag};
use crate::ffi::{Answer, FLUSHED, Fault, Handle, Object, Stamp, complain, exports};
use crate::tools::debug;

/// What a Comch task has beside its buffer.
pub(crate) struct TaskMessage {
    pub(crate) route: Option<Arc<dyn MessageRoute>>,
    /// A control message, the application's.
    pub(crate) bytes: *const u8,
    pub(crate) length: usize,
    pub(crate) consumer: u32,
    pub(crate) imm: Vec<u8>,
    /// The application's copy of it, which its getter returns.
    pub(crate) imm_place: *mut u8,
}

impl TaskMessage {
    const fn blank() -> TaskMessage {
        let (bytes, imm_place) = (ptr::null(), ptr::null_mut());
        TaskMessage { route: None, bytes, length: 0, consumer: 0, imm: Vec::new(), imm_place }
    }
}

/// Owner of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// The pool's.
    Free,
    /// The application's: allocated, or completed.
    Owned,
    /// The engine's.
    Flying,
}

/// What all tasks of one run of a context share with the engine.
pub(crate) struct ContextRun {
    pub(crate) device: u64,
    /// A task failed, or the application stopped the context: whatever is still queued is flushed.
    pub(crate) broken: AtomicBool,
    pub(crate) port: Arc<Port>,
}

#[repr(C)]
pub(crate) struct Task {
    stamp: Stamp,
    pub(crate) kind: TaskKind,
    pub(crate) ctx: Handle<Ctx>,
    pub(crate) state: Cell<TaskState>,
    pub(crate) user_data: Cell<doca_data>,
    src: Cell<*const doca_buf>,
    dst: Cell<*mut doca_buf>,
    has_block_checksum: Cell<u8>,
    are_blocks_independent: Cell<u8>,
    pub(crate) message: RefCell<TaskMessage>,
    status: Cell<Answer>,
    /// The buffer heads that a flight holds.
    heads: Cell<[Option<Handle<Buf>>; 2]>,
    /// Next task of the queue or free list that the task is in.
    pub(crate) link: Cell<Option<Handle<Task>>>,
    pub(crate) run: Arc<ContextRun>,
    job: UnsafeCell<EngineJob>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Task {
    type Opaque = doca_task;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-task");
}

impl Task {
    /// # Safety
    /// The caller is the side that `state` says owns the job, and holds no other reference to it.
    #[allow(clippy::mut_from_ref, reason = "ownership of the job travels with the task, see the head of the module")]
    pub(crate) unsafe fn job(&self) -> &mut EngineJob {
        // SAFETY: exclusive by the caller's word.
        unsafe { &mut *self.job.get() }
    }

    /// Reads a result; zero while the engine has the job.
    pub(crate) fn result(&self, read: impl FnOnce(&EngineJob) -> u32) -> u32 {
        if self.state.get() == TaskState::Flying {
            return 0;
        }
        // SAFETY: not flying, so the job is the application's, which is who calls.
        read(unsafe { self.job() })
    }
}

fn load(task: Handle<Task>) -> Answer {
    // SAFETY: called by submit on an owned task.
    let job = unsafe { task.job() };
    if !task.kind.is_of_an_engine() {
        return load_end(task, job);
    }
    // SAFETY: null, or a buf that the application keeps for the task's flight.
    let (src, dst) = unsafe { (Handle::from_c(task.src.get())?, Handle::from_c(task.dst.get().cast_const())?) };
    let config = task.ctx.dev.config();
    let bytes_max = buf_bytes_max(config, task.kind).ok_or(Fault::DOCA_ERROR_NOT_SUPPORTED)?;
    job.load_list(src, task.run.device, Use::Source)?;
    job.load_list(dst, task.run.device, Use::Destination)?;
    job.check_lengths(config.list_max as usize)?;
    job.check_sizes(task.kind, bytes_max as usize)?;
    src.hold();
    dst.hold();
    task.heads.set([Some(src), Some(dst)]);
    Ok(())
}

/// The one buffer list of a producer's or consumer's task.
fn load_end(task: Handle<Task>, job: &mut EngineJob) -> Answer {
    let (raw, what) = match task.kind {
        TaskKind::PostReceive => (task.dst.get().cast_const(), Use::Delivery),
        _ => (task.src.get(), Use::Source),
    };
    // SAFETY: null, or a buf that the application keeps for the task's flight.
    let buf = unsafe { Handle::from_c(raw) }?;
    job.load_list(buf, task.run.device, what)?;
    job.check_bytes(DATA_BYTES_MAX as usize)?;
    buf.hold();
    task.heads.set(if what == Use::Delivery { [None, Some(buf)] } else { [Some(buf), None] });
    Ok(())
}

/// Hands a task that no engine runs to its library.
fn dispatch(task: Handle<Task>) -> Answer {
    if task.kind != TaskKind::MessageSend
        && let Err(fault) = load(task)
    {
        // SAFETY: the task is owned, and `load` has returned.
        unsafe { task.job() }.unload();
        return Err(fault);
    }
    task.state.set(TaskState::Flying);
    task.ctx.departed(true);
    let answer = task.ctx.library.send(task);
    if answer.is_err() {
        task.state.set(TaskState::Owned);
        task.ctx.departed(false);
        // SAFETY: nobody took the task, so it is owned again.
        unsafe { task.job() }.unload();
        task.heads.take().into_iter().flatten().for_each(|buf| buf.release());
    }
    answer
}

fn submit(task: Handle<Task>, validate: bool, flush: bool) -> Answer {
    if task.state.get() != TaskState::Owned || !task.ctx.is_running() {
        return Err(Fault::DOCA_ERROR_BAD_STATE);
    }
    let dev = task.ctx.dev;
    if dev.chance.hits(dev.config().again) {
        return Err(Fault::DOCA_ERROR_AGAIN);
    }
    if !task.kind.is_of_an_engine() {
        return dispatch(task);
    }
    let queue = dev.config().queue as usize;
    if queue > 0 && task.ctx.inflight() >= queue {
        return Err(Fault::DOCA_ERROR_AGAIN);
    }
    let loaded = load(task);
    // SAFETY: the task is owned, and `load` has returned.
    let job = unsafe { task.job() };
    if loaded.is_err() {
        job.unload();
        if validate {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
    }
    job.refusal = loaded.err();
    job.is_poisoned = false;
    if dev.loses_task() {
        job.refusal = Some(Fault::DOCA_ERROR_DRIVER);
    } else if debug::is_on() && job.refusal.is_none() {
        poison(job);
    }
    job.fate = dev.chance.fate(dev.config());
    if task.kind == TaskKind::Memcpy && job.refusal.is_none() {
        job.fate.flip = dev.flips.of(&dev.chance, dev.config(), job);
    }
    dev.plan.add_to(&mut job.fate, &dev.chance, dev.config(), task.kind);
    job.has_block_checksum = task.has_block_checksum.get() != 0;
    job.are_blocks_independent = task.are_blocks_independent.get() != 0;
    task.state.set(TaskState::Flying);
    task.ctx.accept(task, flush);
    Ok(())
}

/// Takes a completed task back from the engine: its bufs are let go, and the destination grows by what was written.
/// With `is_late`, because the context stops, even a task that an engine had finished counts as flushed.
pub(crate) fn land(task: Handle<Task>, is_late: bool) -> Answer {
    // SAFETY: the engine posted the task, so it is done with the job.
    let job = unsafe { task.job() };
    let outcome = if is_late && task.kind.is_of_an_engine() { job.outcome.and(Err(FLUSHED)) } else { job.outcome };
    let [src, dst] = task.heads.take();
    if let Some(src) = src {
        src.release();
    }
    if let Some(dst) = dst {
        dst.release();
        append(dst, outcome.unwrap_or(0));
    }
    task.state.set(TaskState::Owned);
    let status = outcome.map(drop);
    task.status.set(status);
    status
}

impl Task {
    /// A task of a pool, with room for `2 * LIST_MAX` segments.
    pub(crate) fn vacant(ctx: Handle<Ctx>, kind: TaskKind, run: Arc<ContextRun>, segments: NonNull<Segment>) -> Task {
        Task {
            stamp: Stamp::new(Task::MAGIC),
            kind,
            ctx,
            state: Cell::new(TaskState::Free),
            user_data: Cell::new(doca_data { u64_: 0 }),
            src: Cell::new(ptr::null()),
            dst: Cell::new(ptr::null_mut()),
            has_block_checksum: Cell::new(0),
            are_blocks_independent: Cell::new(0),
            message: RefCell::new(TaskMessage::blank()),
            status: Cell::new(Ok(())),
            heads: Cell::new([None; 2]),
            link: Cell::new(None),
            run,
            job: UnsafeCell::new(EngineJob::vacant(segments)),
        }
    }

    pub(crate) fn init(&self, src: *const doca_buf, dst: *mut doca_buf, user_data: doca_data) {
        self.state.set(TaskState::Owned);
        self.src.set(src);
        self.dst.set(dst);
        self.user_data.set(user_data);
        self.status.set(Ok(()));
        self.message.replace(TaskMessage::blank());
    }
}

/// What the typed functions set and get.
impl Task {
    pub(crate) fn set_src(&self, src: *const doca_buf) {
        self.unless_flying(&self.src, src);
    }

    pub(crate) fn src(&self) -> *const doca_buf {
        self.src.get()
    }

    pub(crate) fn set_dst(&self, dst: *mut doca_buf) {
        self.unless_flying(&self.dst, dst);
    }

    pub(crate) fn dst(&self) -> *mut doca_buf {
        self.dst.get()
    }

    pub(crate) fn set_has_block_checksum(&self, flag: u8) {
        self.unless_flying(&self.has_block_checksum, flag);
    }

    pub(crate) fn has_block_checksum(&self) -> u8 {
        self.has_block_checksum.get()
    }

    pub(crate) fn set_are_blocks_independent(&self, flag: u8) {
        self.unless_flying(&self.are_blocks_independent, flag);
    }

    pub(crate) fn are_blocks_independent(&self) -> u8 {
        self.are_blocks_independent.get()
    }

    pub(crate) fn crc(&self) -> u32 {
        self.result(|job| job.sums.crc)
    }

    /// The immediate data that came with a message.
    pub(crate) fn immediate(&self) -> *const u8 {
        if self.state.get() == TaskState::Flying {
            return ptr::null();
        }
        // SAFETY: not flying, so the job is the application's, which is who calls.
        let job = unsafe { self.job() };
        if job.imm_len == 0 { ptr::null() } else { job.imm.as_ptr() }
    }

    pub(crate) fn second_sum(&self) -> u32 {
        self.result(|job| job.sums.second)
    }

    fn unless_flying<T>(&self, place: &Cell<T>, value: T) {
        if self.state.get() == TaskState::Flying {
            complain("a task in flight was changed: ignored");
        } else {
            place.set(value);
        }
    }
}

exports! {
    fn doca_task_submit(task: *mut doca_task => Handle<Task>) {
        submit(task, false, true)
    }

    fn doca_task_submit_ex(task: *mut doca_task => Handle<Task>, flags: u32) {
        let known = doca_task_submit_flag::DOCA_TASK_SUBMIT_FLAG_FLUSH.0
            | doca_task_submit_flag::DOCA_TASK_SUBMIT_FLAG_OPTIMIZE_REPORTS.0;
        if flags & !known != 0 {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        submit(task, false, flags & doca_task_submit_flag::DOCA_TASK_SUBMIT_FLAG_FLUSH.0 != 0)
    }

    fn doca_task_try_submit(task: *mut doca_task => Handle<Task>) {
        submit(task, true, true)
    }

    fn doca_task_free(task: *mut doca_task => Handle<Task>) -> () = (complain("doca_task_free: not a task")) {
        match task.state.get() {
            TaskState::Owned => {
                task.state.set(TaskState::Free);
                // A message holds its connection.
                task.message.replace(TaskMessage::blank());
                task.ctx.reclaim(task);
            }
            TaskState::Free => complain("doca_task_free: freed twice, ignored"),
            TaskState::Flying => complain("doca_task_free: the task is in flight, ignored"),
        }
    }

    fn doca_task_get_status(task: *const doca_task => Handle<Task>) {
        task.status.get()
    }

    fn doca_task_set_user_data(task: *mut doca_task => Handle<Task>, user_data: doca_data)
        -> () = (complain("doca_task_set_user_data: not a task"))
    {
        task.user_data.set(user_data);
    }

    fn doca_task_get_user_data(task: *const doca_task => Handle<Task>) -> doca_data = (doca_data { u64_: 0 }) {
        task.user_data.get()
    }

    fn doca_task_get_ctx(task: *const doca_task => Handle<Task>) -> *mut doca_ctx = (ptr::null_mut()) {
        task.ctx.to_c()
    }
}
