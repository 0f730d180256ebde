//! The places of tasks that nobody holds: the pool of their type, or a queue. Neither allocates once it is made; lists
//! run through the tasks themselves.

use std::alloc::{self, Layout};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::config::{LIST_MAX, TaskKind};
use crate::core::ctx::Ctx;
use crate::core::job::Segment;
use crate::core::task::{ContextRun, Task};
use crate::ffi::{Fault, Handle};

/// All tasks of one type of a running context, and the room for their snapshots. Pages that no list ever reached are
/// never touched, so a large pool of short lists is cheap.
pub(crate) struct Pool {
    tasks: NonNull<[Task]>,
    arena: NonNull<Segment>,
    layout: Layout,
}

impl Pool {
    pub(crate) fn new(ctx: Handle<Ctx>, kind: TaskKind, count: u32, run: &Arc<ContextRun>) -> Result<Pool, Fault> {
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
                Task::vacant(ctx, kind, Arc::clone(run), unsafe { arena.add(index * room) })
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
