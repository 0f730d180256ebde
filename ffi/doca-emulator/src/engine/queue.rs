//! Tasks on their way to the threads of an engine.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::core::chance::Chance;
use crate::core::pool::Fifo;
use crate::core::task::Task;
use crate::ffi::Handle;

/// Tasks that may overtake another at once, with `reorder`.
const OVERTAKE_MAX: usize = 8;

pub(crate) struct Queue {
    inner: Mutex<Waiting>,
    ready: Condvar,
    /// Random draws; None unless tasks may overtake each other.
    shuffle: Option<Chance>,
}

struct Waiting {
    tasks: Fifo,
    sleepers: usize,
    is_closing: bool,
}

impl Queue {
    pub(crate) fn new(shuffle: Option<Chance>) -> Queue {
        let inner = Mutex::new(Waiting { tasks: Fifo::new(), sleepers: 0, is_closing: false });
        Queue { inner, ready: Condvar::new(), shuffle }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds tasks, in order, and wakes as many threads as they need.
    pub(crate) fn add(&self, tasks: Fifo) {
        let count = tasks.len();
        let sleepers = {
            let mut waiting = self.lock();
            waiting.tasks.append(tasks);
            waiting.sleepers
        };
        match count.min(sleepers) {
            0 => {}
            1 => self.ready.notify_one(),
            _ => self.ready.notify_all(),
        }
    }

    /// Lets the threads go once the queue is empty.
    pub(crate) fn close(&self) {
        self.lock().is_closing = true;
        self.ready.notify_all();
    }

    /// The next task, or None when the device closes.
    pub(crate) fn next(&self) -> Option<Handle<Task>> {
        let mut waiting = self.lock();
        loop {
            let len = waiting.tasks.len();
            if len > 0 {
                let index = self.shuffle.as_ref().map_or(0, |chance| chance.draw() as usize % len.min(OVERTAKE_MAX));
                return waiting.tasks.take(index);
            }
            if waiting.is_closing {
                return None;
            }
            waiting.sleepers += 1;
            waiting = self.ready.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.sleepers -= 1;
        }
    }
}
