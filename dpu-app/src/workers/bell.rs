//! How threads wait for each other without spinning: the sleeper says so, looks once more, and only then sleeps.
//!
//! The waker changes the queue first, then looks at the flag; the sleeper sets the flag first, then looks at the queue.
//! With a sequentially consistent fence between the two steps on both sides, at least one of them sees the other, so no
//! wake-up is lost (the store-buffer argument).
//!
//! `tests/it/bell_model.rs` walks every interleaving of [`EventBell`] with its queues, and shows what each step is for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::thread::{self, Thread};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// What the engine thread rings to wake a worker, however that sleeps. Call after the queue was changed.
pub(crate) trait Bell: Sync {
    fn ring(&self);
}

impl Bell for WorkerBell {
    fn ring(&self) {
        self.ring();
    }
}

impl Bell for EventBell {
    fn ring(&self) {
        self.ring();
    }
}

/// Wakes a worker thread that has nothing to wait for but jobs.
#[derive(Debug, Default)]
pub(crate) struct WorkerBell {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl WorkerBell {
    /// Called once by the worker, before its first [`Self::sleep_unless`].
    pub(crate) fn belongs_here(&self) {
        let _ = self.thread.set(thread::current());
    }

    /// Sleeps until [`Self::ring`], unless `ready` after the flag is up. May return early: loop around it.
    pub(crate) fn sleep_unless(&self, ready: impl FnOnce() -> bool) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ready() {
            thread::park();
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the worker if it sleeps or is about to. Call after the queue was changed.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// Wakes a thread that sleeps in epoll: the engine thread, or a fetch worker that waits for sockets, too.
#[derive(Debug)]
pub struct EventBell {
    asleep: AtomicBool,
    event: EventFd,
    /// Writes of the event that were announced by who took the flag down and not yet read. The sleeper's own.
    owed: AtomicU64,
}

impl EventBell {
    /// # Errors
    /// If the system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { asleep: AtomicBool::new(false), event, owed: AtomicU64::new(0) })
    }

    /// The thread is about to sleep: look at the queues after this, and sleep on this descriptor.
    pub fn going_to_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The thread goes on. Who takes the flag down has written the event, or is about to: each of those writes is read
    /// exactly once. One that is still to come costs an early wake-up of a later sleep, and no more than that: an event
    /// that stayed readable would end every sleep at once.
    pub fn awake(&self) {
        let rung = !self.asleep.swap(false, Ordering::Relaxed);
        let owed = self.owed.load(Ordering::Relaxed) + u64::from(rung);
        let came = if owed > 0 { self.event.read().unwrap_or(0) } else { 0 };
        self.owed.store(owed - came, Ordering::Relaxed);
    }

    /// Wakes the thread if it sleeps or is about to. Call after the queue was changed.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::Relaxed) {
            // Fails only if the counter is at its maximum, and then the descriptor is readable anyway.
            let _ = self.event.write(1);
        }
    }
}

impl AsFd for EventBell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_write_that_comes_late_ends_one_sleep_and_not_all() {
        let bell = EventBell::new().unwrap();
        let is_readable = || {
            let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        for writes_late in [0, 1, 3] {
            bell.going_to_sleep();
            // A ringer is preempted between the two steps of `ring`, for so many sleeps.
            assert!(bell.asleep.swap(false, Ordering::Relaxed));
            bell.awake();
            for _ in 0..writes_late {
                bell.going_to_sleep();
                assert!(!is_readable(), "nothing woke it");
                bell.awake();
            }
            bell.going_to_sleep();
            bell.event.write(1).unwrap();
            assert!(is_readable(), "one early wake-up");
            bell.awake();
            bell.going_to_sleep();
            assert!(!is_readable(), "and no other");
            bell.ring();
            assert!(is_readable(), "a ring is still heard");
            bell.awake();
        }
    }

    #[test]
    fn no_wake_up_is_lost() {
        const ROUNDS: usize = 20_000;
        let (bell, posted) = (WorkerBell::default(), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                bell.belongs_here();
                for round in 1..=ROUNDS {
                    while posted.load(Ordering::Acquire) < round {
                        bell.sleep_unless(|| posted.load(Ordering::Acquire) >= round);
                    }
                }
            });
            for _ in 0..ROUNDS {
                posted.fetch_add(1, Ordering::Release);
                bell.ring();
            }
        });
    }
}
