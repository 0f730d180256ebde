//! Tasks: what the application allocates, submits, keeps or frees.
//!
//! A submit takes a snapshot of both buffer lists into the task, so engines never look at a `doca_buf`. From then until
//! its completion is taken off the port, the job inside the task belongs to the engine side; the rest of the task stays
//! the application's.

use std::alloc::{self, Layout};
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::abi::{doca_buf, doca_ctx, doca_data, doca_task, doca_task_submit_flag};
use crate::buf::{Buf, append, list};
use crate::chance::Fate;
use crate::ctx::Ctx;
use crate::dev::{LIST_MAX, buf_bytes_max};
use crate::door::{Enter, Handle, Stamp, Thing, exports};
use crate::error::{Answer, Fault, complain};
use crate::pe::Port;
use crate::region::Region;

/// The task types of both contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memcpy,
    Deflate,
    Inflate,
    Lz4Stream,
    Lz4Block,
}

pub(crate) const KINDS: usize = 5;

/// Whose the task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The pool's.
    Free,
    /// The application's: allocated, or completed.
    Owned,
    /// The engine's.
    Flying,
}

/// What all tasks of one run of a context share with the engine.
pub(crate) struct Line {
    pub(crate) device: u64,
    /// A task failed, or the application stopped the context: whatever is still queued is flushed.
    pub(crate) broken: AtomicBool,
    pub(crate) port: Arc<Port>,
}

/// One element of a snapshot.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) addr: u64,
    pub(crate) len: usize,
    region: *const Region,
    /// Holds a reference to the region for itself and for those behind it with the same region.
    pub(crate) is_owner: bool,
}

impl Segment {
    pub(crate) fn region(&self) -> &Region {
        // SAFETY: this segment or an earlier one of the list holds a reference from `load` until `unload`, and only
        // those two ever set or clear segments.
        unsafe { &*self.region }
    }
}

/// The engine's part of a task.
pub(crate) struct Job {
    /// Room for `2 * LIST_MAX` segments in the pool's arena: sources, then destinations.
    segments: NonNull<Segment>,
    sources: usize,
    destinations: usize,
    /// Why the engine will not even try.
    pub(crate) refusal: Option<Fault>,
    pub(crate) fate: Fate,
    pub(crate) has_block_checksum: bool,
    pub(crate) are_blocks_independent: bool,
    /// Bytes written.
    pub(crate) outcome: Result<usize, Fault>,
    pub(crate) sums: Sums,
}

/// Checksums of the plain bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) crc: u32,
    /// Adler-32 for deflate, xxHash-32 with its bytes swapped for LZ4.
    pub(crate) second: u32,
}

impl Job {
    fn all(&self) -> &[Segment] {
        // SAFETY: the arena has room for both lists, and `load` has written that many; it outlives the task.
        unsafe { std::slice::from_raw_parts(self.segments.as_ptr(), self.sources + self.destinations) }
    }

    /// Source segments, destination segments.
    pub(crate) fn lists(&self) -> (&[Segment], &[Segment]) {
        self.all().split_at(self.sources)
    }

    fn push(&mut self, segment: Segment) {
        let index = self.sources + self.destinations;
        assert!(index < 2 * LIST_MAX as usize, "both lists were counted before");
        // SAFETY: inside the arena's room for this task, as just checked.
        unsafe { self.segments.add(index).write(segment) };
    }

    /// Takes the snapshot of one list. The references that it takes are given back by `unload`, on errors too.
    fn load_list(&mut self, head: Handle<Buf>, device: u64, is_destination: bool) -> Answer {
        if head.is_follower() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let mut previous: *const Region = ptr::null();
        for (index, buf) in list(head).enumerate() {
            if index >= LIST_MAX as usize {
                return Err(Fault::DOCA_ERROR_TOO_BIG);
            }
            let region = buf.region.borrow();
            let region = region.as_ref().ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
            if !region.admits(device, is_destination) {
                return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
            }
            let (addr, len) = if is_destination { buf.vacant_tail() } else { buf.filled() };
            if len == 0 {
                continue;
            }
            let is_owner = previous != Arc::as_ptr(region);
            previous = Arc::as_ptr(region);
            if is_owner {
                // Given back in `unload`.
                let _ = Arc::into_raw(Arc::clone(region));
            }
            self.push(Segment { addr, len, region: previous, is_owner });
            if is_destination { self.destinations += 1 } else { self.sources += 1 }
        }
        Ok(())
    }

    /// Gives up the references to the regions, and with them the lists.
    pub(crate) fn unload(&mut self) {
        for segment in self.all() {
            if segment.is_owner {
                // SAFETY: the reference that `load_list` took for this segment; the lists are emptied below.
                unsafe { Arc::decrement_strong_count(segment.region) };
            }
        }
        self.sources = 0;
        self.destinations = 0;
    }

    fn check_sizes(&self, kind: Kind, bytes_max: usize) -> Answer {
        let (sources, destinations) = self.lists();
        let sum = |list: &[Segment]| list.iter().map(|segment| segment.len).sum::<usize>();
        let (source, destination) = (sum(sources), sum(destinations));
        let fits = match kind {
            Kind::Memcpy => destination >= source,
            _ => destination > 0 && destination <= bytes_max,
        };
        if source == 0 || !fits {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        if source > bytes_max { Err(Fault::DOCA_ERROR_TOO_BIG) } else { Ok(()) }
    }
}

#[repr(C)]
pub(crate) struct Task {
    stamp: Stamp,
    pub(crate) kind: Kind,
    pub(crate) ctx: Handle<Ctx>,
    pub(crate) stage: Cell<Stage>,
    pub(crate) user_data: Cell<doca_data>,
    src: Cell<*const doca_buf>,
    dst: Cell<*mut doca_buf>,
    has_block_checksum: Cell<u8>,
    are_blocks_independent: Cell<u8>,
    pub(crate) status: Cell<Answer>,
    /// The buffer heads that a flight holds.
    heads: Cell<[Option<Handle<Buf>>; 2]>,
    /// Of whichever queue or free list the task is in.
    pub(crate) link: Cell<Option<Handle<Task>>>,
    pub(crate) line: Arc<Line>,
    job: UnsafeCell<Job>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Thing for Task {
    type Opaque = doca_task;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-task");
}

impl Task {
    /// # Safety
    /// The caller is the side that `stage` says owns the job, and holds no other reference to it.
    #[allow(clippy::mut_from_ref, reason = "ownership of the job travels with the task, see the head of the module")]
    pub(crate) unsafe fn job(&self) -> &mut Job {
        // SAFETY: exclusive by the caller's word.
        unsafe { &mut *self.job.get() }
    }

    /// Reads a result; zero while the engine has the job.
    fn result(&self, read: impl FnOnce(&Job) -> u32) -> u32 {
        if self.stage.get() == Stage::Flying {
            return 0;
        }
        // SAFETY: not flying, so the job is the application's, which is who calls.
        read(unsafe { self.job() })
    }
}

fn load(task: Handle<Task>) -> Answer {
    // SAFETY: called by submit on an owned task.
    let job = unsafe { task.job() };
    // SAFETY: null, or a buf that the application keeps for the task's flight.
    let (src, dst) = unsafe { (Handle::from_c(task.src.get())?, Handle::from_c(task.dst.get().cast_const())?) };
    let config = task.ctx.dev.config();
    let bytes_max = buf_bytes_max(config.profile, task.kind).ok_or(Fault::DOCA_ERROR_NOT_SUPPORTED)?;
    job.load_list(src, task.line.device, false)?;
    job.load_list(dst, task.line.device, true)?;
    job.check_sizes(task.kind, bytes_max as usize)?;
    src.hold();
    dst.hold();
    task.heads.set([Some(src), Some(dst)]);
    Ok(())
}

fn submit(task: Handle<Task>, validate: bool, flush: bool) -> Answer {
    if task.stage.get() != Stage::Owned || !task.ctx.is_running() {
        return Err(Fault::DOCA_ERROR_BAD_STATE);
    }
    let dev = task.ctx.dev;
    if dev.chance.hits(dev.config().again) {
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
    job.fate = dev.chance.fate(dev.config());
    job.has_block_checksum = task.has_block_checksum.get() != 0;
    job.are_blocks_independent = task.are_blocks_independent.get() != 0;
    task.stage.set(Stage::Flying);
    task.ctx.accept(task, flush);
    Ok(())
}

/// Takes a completed task back from the engine: its bufs are let go, and the destination grows by what was written.
pub(crate) fn land(task: Handle<Task>) -> Answer {
    // SAFETY: the engine posted the task, so it is done with the job.
    let job = unsafe { task.job() };
    let [src, dst] = task.heads.take();
    if let Some(src) = src {
        src.release();
    }
    if let Some(dst) = dst {
        dst.release();
        append(dst, job.outcome.unwrap_or(0));
    }
    task.stage.set(Stage::Owned);
    job.outcome.map(drop)
}

/// All tasks of one type of a running context, and the room for their snapshots. Pages that no list ever reached are
/// never touched, so a large pool of short lists is cheap.
pub(crate) struct Pool {
    tasks: NonNull<[Task]>,
    arena: NonNull<Segment>,
    layout: Layout,
}

impl Pool {
    pub(crate) fn new(ctx: Handle<Ctx>, kind: Kind, count: u32, line: &Arc<Line>) -> Result<Pool, Fault> {
        let room = 2 * LIST_MAX as usize;
        let layout = Layout::array::<Segment>(room * count as usize).map_err(|_| Fault::DOCA_ERROR_NO_MEMORY)?;
        if layout.size() == 0 {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the layout is not empty.
        let arena = NonNull::new(unsafe { alloc::alloc_zeroed(layout) });
        let arena = arena.ok_or(Fault::DOCA_ERROR_NO_MEMORY)?.cast::<Segment>();
        let tasks: Box<[Task]> = (0..count as usize)
            .map(|index| {
                // SAFETY: the arena has `room` segments for each of `count` tasks.
                Task::vacant(ctx, kind, Arc::clone(line), unsafe { arena.add(index * room) })
            })
            .collect();
        Ok(Pool { tasks: NonNull::from(Box::leak(tasks)), arena, layout })
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = Handle<Task>> {
        let first = self.tasks.cast::<Task>();
        // SAFETY: every index is inside the slab.
        (0..self.tasks.len()).map(move |index| Handle::of(unsafe { first.add(index) }))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the box and the memory of `new`. A context drops its pools when all tasks are free, so no engine and
        // no application looks at them; free tasks hold no references in their segments.
        unsafe {
            drop(Box::from_raw(self.tasks.as_ptr()));
            alloc::dealloc(self.arena.as_ptr().cast(), self.layout);
        }
    }
}

impl Task {
    fn vacant(ctx: Handle<Ctx>, kind: Kind, line: Arc<Line>, segments: NonNull<Segment>) -> Task {
        Task {
            stamp: Stamp::new(Task::MAGIC),
            kind,
            ctx,
            stage: Cell::new(Stage::Free),
            user_data: Cell::new(doca_data { u64_: 0 }),
            src: Cell::new(ptr::null()),
            dst: Cell::new(ptr::null_mut()),
            has_block_checksum: Cell::new(0),
            are_blocks_independent: Cell::new(0),
            status: Cell::new(Ok(())),
            heads: Cell::new([None; 2]),
            link: Cell::new(None),
            line,
            job: UnsafeCell::new(Job {
                segments,
                sources: 0,
                destinations: 0,
                refusal: None,
                fate: Fate::default(),
                has_block_checksum: false,
                are_blocks_independent: false,
                outcome: Ok(0),
                sums: Sums::default(),
            }),
        }
    }

    pub(crate) fn init(&self, src: *const doca_buf, dst: *mut doca_buf, user_data: doca_data) {
        self.stage.set(Stage::Owned);
        self.src.set(src);
        self.dst.set(dst);
        self.user_data.set(user_data);
        self.status.set(Ok(()));
    }
}

/// Tasks in order, threaded through their links. Whoever holds the queue owns the links of what is in it.
pub(crate) struct Fifo {
    first: Option<Handle<Task>>,
    last: Option<Handle<Task>>,
    len: usize,
}

// SAFETY: tasks in a queue are touched only by who holds the queue, and a queue moves between threads under a lock.
unsafe impl Send for Fifo {}

impl Fifo {
    pub(crate) const fn new() -> Fifo {
        Fifo { first: None, last: None, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, task: Handle<Task>) {
        task.link.set(None);
        match self.last.replace(task) {
            Some(last) => last.link.set(Some(task)),
            None => self.first = Some(task),
        }
        self.len += 1;
    }

    pub(crate) fn append(&mut self, other: Fifo) {
        match (self.last, other.first) {
            (_, None) => return,
            (Some(last), first) => last.link.set(first),
            (None, first) => self.first = first,
        }
        self.last = other.last;
        self.len += other.len;
    }

    pub(crate) fn pop(&mut self) -> Option<Handle<Task>> {
        self.take(0)
    }

    /// Takes the task at `index`, which costs as many steps.
    pub(crate) fn take(&mut self, index: usize) -> Option<Handle<Task>> {
        let mut before: Option<Handle<Task>> = None;
        let mut task = self.first?;
        for _ in 0..index {
            before = Some(task);
            task = task.link.get()?;
        }
        let after = task.link.take();
        match before {
            Some(before) => before.link.set(after),
            None => self.first = after,
        }
        if after.is_none() {
            self.last = before;
        }
        self.len -= 1;
        Some(task)
    }
}

/// A typed task pointer of one of the contexts, checked to be of its kind.
pub(crate) struct Of<O>(pub(crate) Handle<Task>, PhantomData<O>);

/// Says which kind a typed task of the headers is.
pub(crate) trait Typed {
    const KIND: Kind;
}

impl<O: Typed> Enter<*const O> for Of<O> {
    unsafe fn enter(raw: *const O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's; typed tasks are the same pointers as plain ones.
        let task = unsafe { Handle::<Task>::from_c(raw.cast()) }?;
        if task.kind == O::KIND { Ok(Of(task, PhantomData)) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
    }
}

impl<O: Typed> Enter<*mut O> for Of<O> {
    unsafe fn enter(raw: *mut O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        unsafe { Enter::enter(raw.cast_const()) }
    }
}

impl<O> Deref for Of<O> {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.0
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

    pub(crate) fn second_sum(&self) -> u32 {
        self.result(|job| job.sums.second)
    }

    fn unless_flying<T>(&self, place: &Cell<T>, value: T) {
        if self.stage.get() == Stage::Flying {
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
        match task.stage.get() {
            Stage::Owned => {
                task.stage.set(Stage::Free);
                task.ctx.reclaim(task);
            }
            Stage::Free => complain("doca_task_free: freed twice, ignored"),
            Stage::Flying => complain("doca_task_free: the task is in flight, ignored"),
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

/// The functions that every task type has, from one list of their names.
macro_rules! task_functions {
    (
        $(#[$meta:meta])*
        $kind:ident: $task:ident of $ctx:ident as $checked:ident, callback $callback:ident;
        fn $is_supported:ident; fn $max_buf_size:ident; fn $max_list_len:ident; fn $set_conf:ident;
        fn $alloc_init:ident $(($($option:ident => $setter:ident),*))?;
        fn $as_task:ident; fn $set_src:ident; fn $get_src:ident; fn $set_dst:ident; fn $get_dst:ident;
    ) => {
        impl $crate::task::Typed for $crate::abi::$task {
            const KIND: $crate::task::Kind = $crate::task::Kind::$kind;
        }

        impl $crate::door::Enter<$crate::abi::$callback> for $crate::abi::$callback {
            unsafe fn enter(raw: Self) -> Result<Self, $crate::error::Fault> {
                Ok(raw)
            }
        }

        $crate::door::exports! {
            fn $is_supported(devinfo: *const $crate::abi::doca_devinfo => Handle<$crate::dev::DevInfo>) {
                devinfo.buf_bytes_max($crate::task::Kind::$kind).map(drop)
            }

            fn $max_buf_size(
                devinfo: *const $crate::abi::doca_devinfo => Handle<$crate::dev::DevInfo>,
                bytes: *mut u64 => $crate::door::Out<u64>,
            ) {
                bytes.put(devinfo.buf_bytes_max($crate::task::Kind::$kind)?);
                Ok(())
            }

            fn $max_list_len(
                devinfo: *const $crate::abi::doca_devinfo => Handle<$crate::dev::DevInfo>,
                elements: *mut u32 => $crate::door::Out<u32>,
            ) {
                devinfo.buf_bytes_max($crate::task::Kind::$kind)?;
                elements.put($crate::dev::LIST_MAX);
                Ok(())
            }

            fn $set_conf(
                context: *mut $crate::abi::$ctx => $checked,
                done: $crate::abi::$callback,
                failed: $crate::abi::$callback,
                count: u32,
            ) {
                type Typed = $crate::abi::$callback;
                // SAFETY: both are optional C functions of three arguments that differ in what the first points to,
                // which the calling convention does not see; the pointer passed will be of the typed kind.
                let (done, failed) = unsafe {
                    (
                        std::mem::transmute::<Typed, Option<$crate::ctx::Callback>>(done),
                        std::mem::transmute::<Typed, Option<$crate::ctx::Callback>>(failed),
                    )
                };
                context.0.configure($crate::task::Kind::$kind, done, failed, count)
            }

            fn $alloc_init(
                context: *mut $crate::abi::$ctx => $checked,
                $($($option: u8,)*)?
                src: *const $crate::abi::doca_buf,
                dst: *mut $crate::abi::doca_buf,
                user_data: $crate::abi::doca_data,
                task: *mut *mut $crate::abi::$task => $crate::door::Out<*mut $crate::abi::$task>,
            ) {
                let allocated = context.0.allocate($crate::task::Kind::$kind)?;
                allocated.init(src, dst, user_data);
                $($(allocated.$setter($option);)*)?
                task.put(allocated.to_c().cast());
                Ok(())
            }

            fn $as_task(task: *mut $crate::abi::$task => $crate::task::Of<$crate::abi::$task>)
                -> *mut $crate::abi::doca_task = (std::ptr::null_mut())
            {
                task.0.to_c()
            }

            fn $set_src(
                task: *mut $crate::abi::$task => $crate::task::Of<$crate::abi::$task>,
                src: *const $crate::abi::doca_buf,
            ) -> () = ($crate::error::complain(concat!(stringify!($set_src), ": not such a task"))) {
                task.set_src(src)
            }

            fn $get_src(task: *const $crate::abi::$task => $crate::task::Of<$crate::abi::$task>)
                -> *const $crate::abi::doca_buf = (std::ptr::null())
            {
                task.src()
            }

            fn $set_dst(
                task: *mut $crate::abi::$task => $crate::task::Of<$crate::abi::$task>,
                dst: *mut $crate::abi::doca_buf,
            ) -> () = ($crate::error::complain(concat!(stringify!($set_dst), ": not such a task"))) {
                task.set_dst(dst)
            }

            fn $get_dst(task: *const $crate::abi::$task => $crate::task::Of<$crate::abi::$task>)
                -> *mut $crate::abi::doca_buf = (std::ptr::null_mut())
            {
                task.dst()
            }
        }
    };
}
pub(crate) use task_functions;
