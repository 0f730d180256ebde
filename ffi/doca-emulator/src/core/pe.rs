//! `doca_pe`: the only place where callbacks run, and the port through which engines reach it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::ctx::{self, Ctx};
use crate::core::pool::Fifo;
use crate::core::task::{Task, land};
use crate::ffi::abi::{doca_ctx, doca_notification_handle_t, doca_pe, doca_pe_event_mode};
use crate::ffi::{Answer, Fault, Handle, Object, Out, Stamp, exports};

/// A context as the name of whom an event is for; threads other than its own do not look behind it.
#[derive(Clone, Copy)]
pub(crate) struct Addressee(pub(crate) Handle<Ctx>);

// SAFETY: only compared and handed back to the context's own thread.
unsafe impl Send for Addressee {}
// SAFETY: as above.
unsafe impl Sync for Addressee {}

/// The place where engines leave finished tasks. Wake-ups cannot be lost: arming and posting take the same lock, so
/// either the post sees the port armed or the arming sees the task.
pub(crate) struct Port {
    /// Tasks and events in `inner`, to look at without the lock.
    count: AtomicUsize,
    inner: Mutex<Posted>,
    /// An eventfd.
    eventfd: File,
}

struct Posted {
    tasks: Fifo,
    /// Contexts for which there are events, which their libraries keep.
    events: VecDeque<Addressee>,
    is_armed: bool,
}

impl Port {
    fn new() -> Result<Port, Fault> {
        // SAFETY: makes a descriptor; no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Fault::DOCA_ERROR_OPERATING_SYSTEM);
        }
        // SAFETY: a new descriptor that nothing else owns.
        let eventfd = unsafe { File::from_raw_fd(fd) };
        let inner = Mutex::new(Posted { tasks: Fifo::new(), events: VecDeque::new(), is_armed: false });
        Ok(Port { count: AtomicUsize::new(0), inner, eventfd })
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        // The only failure is a full counter, and then the descriptor is readable already.
        let _ = (&self.eventfd).write(&1u64.to_ne_bytes());
    }

    /// Posts a finished task, which is the application's from here on. Called by engine threads.
    pub(crate) fn post(&self, task: Handle<Task>) {
        let wake = {
            let mut posted = self.lock();
            posted.tasks.push(task);
            // Release: pairs with the Acquire in `collect`, though the lock alone would do for the tasks.
            self.count.store(posted.tasks.len() + posted.events.len(), Ordering::Release);
            std::mem::take(&mut posted.is_armed)
        };
        if wake {
            self.signal();
        }
    }

    /// Says that a library has an event for a context.
    pub(crate) fn tell(&self, addressee: Addressee) {
        let wake = {
            let mut posted = self.lock();
            posted.events.push_back(addressee);
            self.count.store(posted.tasks.len() + posted.events.len(), Ordering::Release);
            std::mem::take(&mut posted.is_armed)
        };
        if wake {
            self.signal();
        }
    }

    /// A context becomes idle: what was for it is for nobody.
    pub(crate) fn forget(&self, ctx: Handle<Ctx>) {
        let mut posted = self.lock();
        posted.events.retain(|addressee| addressee.0 != ctx);
        self.count.store(posted.tasks.len() + posted.events.len(), Ordering::Relaxed);
    }

    fn next_event(&self) -> Option<Addressee> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut posted = self.lock();
        let events = posted.events.pop_front();
        self.count.store(posted.tasks.len() + posted.events.len(), Ordering::Relaxed);
        events
    }

    fn collect(&self) -> Option<Fifo> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut posted = self.lock();
        self.count.store(posted.events.len(), Ordering::Relaxed);
        Some(std::mem::replace(&mut posted.tasks, Fifo::new()))
    }

    /// The next post signals; at once, if there is something `already`.
    fn arm(&self, already: bool) {
        let mut posted = self.lock();
        posted.is_armed = !already && posted.tasks.len() == 0 && posted.events.is_empty();
        if !posted.is_armed {
            self.signal();
        }
    }

    /// Something other than a post can be progressed.
    pub(crate) fn nudge(&self) {
        if std::mem::take(&mut self.lock().is_armed) {
            self.signal();
        }
    }

    fn clear(&self) -> Answer {
        self.lock().is_armed = false;
        match (&self.eventfd).read(&mut [0; 8]) {
            Ok(_) => Ok(()),
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Fault::DOCA_ERROR_OPERATING_SYSTEM),
        }
    }
}

#[repr(C)]
pub(crate) struct Pe {
    stamp: Stamp,
    pub(crate) port: Arc<Port>,
    pub(crate) contexts: RefCell<Vec<Handle<Ctx>>>,
    /// Number of contexts that are stopping.
    pub(crate) stopping: Cell<usize>,
    /// Inside `doca_pe_progress`.
    pub(crate) is_busy: Cell<bool>,
    /// Collected from the port, not delivered yet.
    ready: RefCell<Fifo>,
    event_mode: Cell<doca_pe_event_mode>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Pe {
    type Opaque = doca_pe;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-pe\0\0");
}

impl Pe {
    fn settled(&self) -> Option<Handle<Ctx>> {
        if self.stopping.get() == 0 {
            return None;
        }
        self.contexts.borrow().iter().copied().find(|ctx| ctx.is_settled())
    }

    fn next_ready(&self) -> Option<Handle<Task>> {
        let mut ready = self.ready.borrow_mut();
        if ready.len() == 0 {
            *ready = self.port.collect()?;
        }
        ready.pop()
    }
}

/// One step: a context becomes idle, or one task is delivered.
fn progress(pe: Handle<Pe>) -> bool {
    if let Some(ctx) = pe.settled() {
        ctx::finish_stop(ctx);
        return true;
    }
    // Completions first: a message's answer is not heard before the message is known to be out.
    if let Some(task) = pe.next_ready() {
        deliver(task);
        return true;
    }
    let Some(Addressee(ctx)) = pe.port.next_event() else { return false };
    ctx.library.hear(ctx);
    true
}

/// Once a context stops, for whatever reason, its tasks complete through the error callback, those that an engine had
/// finished before included.
fn deliver(task: Handle<Task>) {
    let ctx = task.ctx;
    let status = land(task, ctx.is_stopping());
    ctx.landed();
    if status.is_err() && ctx.is_running() && ctx.library.stops_on_failure() {
        ctx::begin_stop(ctx);
    }
    let Some(conf) = ctx.conf(task.kind) else { return };
    let callback = if status.is_ok() { conf.done } else { conf.failed };
    // SAFETY: the application's function, registered for this type of task; the task is its own again.
    unsafe { callback(task.to_c(), task.user_data.get(), ctx.user_data()) };
}

exports! {
    fn doca_pe_create(pe: *mut *mut doca_pe => Out<*mut doca_pe>) {
        let created = Pe {
            stamp: Stamp::new(Pe::MAGIC),
            port: Arc::new(Port::new()?),
            contexts: RefCell::new(Vec::new()),
            stopping: Cell::new(0),
            is_busy: Cell::new(false),
            ready: RefCell::new(Fifo::new()),
            event_mode: Cell::new(doca_pe_event_mode::DOCA_PE_EVENT_MODE_PROGRESS_SELECTIVE),
        };
        pe.put(Handle::new(created).to_c());
        Ok(())
    }

    fn doca_pe_destroy(pe: *mut doca_pe => Handle<Pe>) {
        if pe.is_busy.get() || !pe.contexts.borrow().is_empty() {
            return Err(Fault::DOCA_ERROR_IN_USE);
        }
        // SAFETY: no context is connected, and the caller gives the handle up.
        unsafe { pe.destroy() };
        Ok(())
    }

    fn doca_pe_connect_ctx(pe: *mut doca_pe => Handle<Pe>, ctx: *mut doca_ctx => Handle<Ctx>) {
        if !ctx.is_idle() {
            return Err(Fault::DOCA_ERROR_BAD_STATE);
        }
        if ctx.pe.get().is_some() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        ctx.pe.set(Some(pe));
        pe.contexts.borrow_mut().push(ctx);
        Ok(())
    }

    fn doca_pe_set_event_mode(pe: *mut doca_pe => Handle<Pe>, event_mode: doca_pe_event_mode) {
        let known = [
            doca_pe_event_mode::DOCA_PE_EVENT_MODE_PROGRESS_SELECTIVE,
            doca_pe_event_mode::DOCA_PE_EVENT_MODE_PROGRESS_ALL,
        ];
        if pe.is_busy.get() || !known.contains(&event_mode) {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        pe.event_mode.set(event_mode);
        Ok(())
    }

    fn doca_pe_progress(pe: *mut doca_pe => Handle<Pe>) -> u8 = (0) {
        if pe.is_busy.replace(true) {
            return 0;
        }
        let happened = progress(pe);
        pe.is_busy.set(false);
        u8::from(happened)
    }

    fn doca_pe_get_notification_handle(
        pe: *const doca_pe => Handle<Pe>,
        handle: *mut doca_notification_handle_t => Out<doca_notification_handle_t>,
    ) {
        handle.put(pe.port.eventfd.as_raw_fd());
        Ok(())
    }

    fn doca_pe_request_notification(pe: *mut doca_pe => Handle<Pe>) {
        if pe.event_mode.get() == doca_pe_event_mode::DOCA_PE_EVENT_MODE_PROGRESS_ALL {
            pe.port.clear()?;
        }
        pe.port.arm(pe.ready.borrow().len() > 0 || pe.settled().is_some());
        Ok(())
    }

    fn doca_pe_clear_notification(pe: *mut doca_pe => Handle<Pe>, handle: doca_notification_handle_t) {
        let _ = handle;
        pe.port.clear()
    }

    fn doca_pe_get_num_inflight_tasks(pe: *const doca_pe => Handle<Pe>, num_inflight_tasks: *mut usize => Out<usize>) {
        num_inflight_tasks.put(pe.contexts.borrow().iter().map(|ctx| ctx.inflight()).sum());
        Ok(())
    }
}
