//! How threads wait for each other without spinning: the sleeper says so, looks once more, and only then sleeps.
//!
//! The waker changes the queue first, then looks at the flag; the sleeper sets the flag first, then looks at the queue.
//! With a sequentially consistent fence between the two steps on both sides, at least one of them sees the other, so no
//! wake-up is lost (the store-buffer argument).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, Thread};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// What the engine thread rings to wake a worker, however that sleeps. Call after the queue was changed.
pub trait Bell: Sync {
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
pub struct WorkerBell {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl WorkerBell {
    /// Called once by the worker, before its first [`Self::sleep_unless`].
    pub fn belongs_here(&self) {
        let _ = self.thread.set(thread::current());
    }

    /// Sleeps until [`Self::ring`], unless `ready` after the flag is up. May return early: loop around it.
    pub fn sleep_unless(&self, ready: impl FnOnce() -> bool) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ready() {
            thread::park();
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the worker if it sleeps or is about to. Call after the queue was changed.
    pub fn ring(&self) {
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
}

impl EventBell {
    /// # Errors
    /// If the system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    /// The thread is about to sleep: look at the queues after this, and sleep on this descriptor.
    pub fn going_to_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The thread goes on. Who takes the flag down has written the event, or is about to.
    pub fn awake(&self) {
        if !self.asleep.swap(false, Ordering::Relaxed) {
            // WouldBlock: the write is still to come and will cost one early wake-up.
            let _ = self.event.read();
        }
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

    use super::*;

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
