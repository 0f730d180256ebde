//! Registered memory that is written once and then read by many, engines among them: a [`Slab`] of pages of one size,
//! and [`Loan`]s of runs of it.
//!
//! ```text
//!   page:  idle (0) --write--> writing --+--> idle        idle or lent (n) --lend--> lent (n + 1) --drop--> lent (n)
//! ```
//!
//! A run may cross pages: they lie one behind the other. Who may use a page when is for the owner of the slab to know;
//! a write to a page that is lent, or a loan of one that is being written, is its bug and panics, so that neither Rust
//! nor an engine ever reads bytes that change.

use std::fmt;
use std::ops::{Deref, Range};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::area::{Registered, RegisteredMemory};
use crate::device::Device;
use crate::error::Error;

/// State of a page that is being written; any other is how many loans there are of it.
const WRITING: u32 = u32::MAX;

struct Pages {
    memory: RegisteredMemory,
    page_bytes: usize,
    states: Box<[AtomicU32]>,
}

/// Memory of fixed size that many may read; see the module's head. Clones are the same slab.
#[derive(Clone)]
pub struct Slab(Arc<Pages>);

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("pages", &self.0.states.len()).field("page_bytes", &self.0.page_bytes).finish()
    }
}

impl Slab {
    /// Maps zeroed, populated memory for `pages` pages and registers it with `device`.
    ///
    /// # Errors
    /// `NO_MEMORY` if the system refuses the mapping, else what the DOCA call answered.
    pub fn allocate(device: &Device, pages: usize, page_bytes: usize) -> Result<Self, Error> {
        assert!(page_bytes > 0, "a page has bytes");
        let memory = RegisteredMemory::allocate(device, pages.saturating_mul(page_bytes))?;
        let states = (0..pages).map(|_| AtomicU32::new(0)).collect();
        Ok(Self(Arc::new(Pages { memory, page_bytes, states })))
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.states.len() * self.0.page_bytes
    }

    /// Pages that are lent now, as far as one can know of others.
    #[must_use]
    pub fn lent_pages(&self) -> usize {
        self.0.states.iter().filter(|state| !matches!(state.load(Relaxed), 0 | WRITING)).count()
    }

    /// Copies `from` to byte `offset` and behind it.
    ///
    /// # Panics
    /// If the range is not inside, or a page of it is lent or being written.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let pages = self.0.pages(offset, from.len());
        for state in &self.0.states[pages.clone()] {
            // Acquire: pairs with the Release of the last loan's drop, and of the writer before.
            let idle = state.compare_exchange(0, WRITING, Acquire, Relaxed);
            assert!(idle.is_ok(), "write of {} at {offset} to a page in use", from.len());
        }
        // SAFETY: `pages` checked the range against the mapping; `from` cannot overlap it, since nobody else can have a
        // mutable or a shared reference to pages whose state this call has just changed from idle to writing.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.0.memory.address(offset), from.len()) }
        // Release: whoever borrows the page sees the bytes.
        self.0.states[pages].iter().for_each(|state| state.store(0, Release));
    }

    /// Lends `bytes` bytes from byte `offset` on, for reading.
    ///
    /// # Panics
    /// If the range is not inside, or a page of it is being written.
    #[must_use]
    pub fn lend(&self, offset: usize, bytes: usize) -> Loan {
        for state in &self.0.states[self.0.pages(offset, bytes)] {
            let one_more = |loans: u32| loans.checked_add(1).filter(|&more| more < WRITING);
            // Acquire: pairs with the Release at the end of `write`.
            let lent = state.fetch_update(Acquire, Relaxed, one_more);
            assert!(lent.is_ok(), "loan of {bytes} at {offset} of a page that is being written");
        }
        Loan { pages: Arc::clone(&self.0), offset, bytes }
    }
}

impl Pages {
    /// The pages of a range, which is inside.
    fn pages(&self, offset: usize, bytes: usize) -> Range<usize> {
        let end = offset.checked_add(bytes).filter(|&end| end <= self.states.len() * self.page_bytes);
        let end = end.unwrap_or_else(|| panic!("{bytes} bytes at {offset} are outside of the slab"));
        offset / self.page_bytes..end.div_ceil(self.page_bytes)
    }
}

/// A run of a [`Slab`] that nobody writes until this is dropped.
pub struct Loan {
    pages: Arc<Pages>,
    offset: usize,
    bytes: usize,
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("offset", &self.offset).field("bytes", &self.bytes).finish()
    }
}

impl Registered for Loan {
    fn memory(&self) -> &RegisteredMemory {
        &self.pages.memory
    }

    fn address(&self) -> *mut u8 {
        self.pages.memory.address(self.offset)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range was checked against the live mapping when it was lent; every page of it counts this loan,
        // so that nobody writes it, and engines are given loans to read from only.
        unsafe { std::slice::from_raw_parts(self.address(), self.bytes) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        for state in &self.pages.states[self.pages.pages(self.offset, self.bytes)] {
            // Release: what was read here was read before the next writer's Acquire.
            state.fetch_sub(1, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Selector;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn slab() -> Slab {
        Slab::allocate(&Device::open(&Selector::First).unwrap(), 4, 64).unwrap()
    }

    #[test]
    fn a_loan_crosses_pages_and_outlives_its_slab() {
        let slab = slab();
        slab.write(60, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let (loan, again) = (slab.lend(60, 8), slab.lend(66, 2));
        assert_eq!((slab.bytes(), slab.lent_pages()), (256, 2));
        drop(slab);
        assert_eq!((&loan[..], &again[..]), (&[1, 2, 3, 4, 5, 6, 7, 8][..], &[7, 8][..]));
    }

    #[test]
    fn pages_in_use_cannot_be_written_and_others_can() {
        let slab = slab();
        let refused = |offset, bytes| catch_unwind(AssertUnwindSafe(|| slab.write(offset, &vec![9; bytes]))).is_err();
        let (first, second) = (slab.lend(0, 65), slab.lend(64, 1));
        assert!(refused(0, 1) && refused(127, 1), "a page is lent as a whole");
        slab.write(128, &[9; 128]);
        drop(first);
        slab.write(0, &[9; 64]);
        assert!(refused(64, 1), "the other loan holds its page still");
        drop(second);
        slab.write(64, &[9; 64]);
        assert!(refused(255, 2) && refused(usize::MAX, 2), "outside");
        assert!(catch_unwind(AssertUnwindSafe(|| slab.lend(0, 257))).is_err(), "outside");
    }

    #[test]
    fn readers_on_other_threads_see_what_was_written_before_they_borrowed() {
        let slab = slab();
        for round in 0..20u8 {
            slab.write(0, &[round; 256]);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| assert_eq!(slab.lend(1, 255)[..], [round; 255]));
                }
            });
        }
    }
}
