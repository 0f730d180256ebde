//! The memory of the tier T0: whoever opens a store may bring memory that others can read in place, such as an engine
//! of the card. Without, a store takes plain memory, and every hit is copied out of it.

use std::fmt;
use std::io;
use std::sync::RwLock;

use crate::POISONED;

/// One piece of memory, written by one thread and read by many; never the same page both at a time.
pub trait TierSlab: Send + Sync + fmt::Debug {
    /// Copies `bytes` to byte `at` and behind it.
    fn write(&self, at: usize, bytes: &[u8]);

    /// Copies what lies at byte `at` and behind it.
    fn read(&self, at: usize, into: &mut [u8]);
}

/// Takes memory of so many pages of so many bytes. Init only.
pub type Allocate<'a> = &'a dyn Fn(usize, usize) -> io::Result<Box<dyn TierSlab>>;

/// Plain memory. A page's lock is for the compiler's sake: nobody writes a page that others read.
#[derive(Debug)]
pub(crate) struct PlainSlab {
    page_bytes: usize,
    pages: Box<[RwLock<Box<[u8]>>]>,
}

impl PlainSlab {
    pub(crate) fn new(pages: usize, page_bytes: usize) -> Self {
        // Written to, so that the memory is there before anybody waits for it.
        Self { page_bytes, pages: (0..pages).map(|_| RwLock::new(vec![0xff; page_bytes].into())).collect() }
    }

    /// What of each page, and which part of the bytes: page by page.
    fn pieces(&self, mut at: usize, bytes: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let (page_bytes, mut done) = (self.page_bytes, 0);
        std::iter::from_fn(move || {
            let from = at % page_bytes;
            let now = (bytes - done).min(page_bytes - from);
            let piece = (now > 0).then_some((at / page_bytes, from, done, now))?;
            (at, done) = (at + now, done + now);
            Some(piece)
        })
    }
}

impl TierSlab for PlainSlab {
    fn write(&self, at: usize, bytes: &[u8]) {
        for (page, from, done, now) in self.pieces(at, bytes.len()) {
            let mut page = self.pages[page].write().expect(POISONED);
            page[from..from + now].copy_from_slice(&bytes[done..done + now]);
        }
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        for (page, from, done, now) in self.pieces(at, into.len()) {
            let page = self.pages[page].read().expect(POISONED);
            into[done..done + now].copy_from_slice(&page[from..from + now]);
        }
    }
}
