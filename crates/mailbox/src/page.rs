//! The page in host memory: a sealed memfd, mapped shared, read and written as 64-bit atomics.
//!
//! The one file of this crate with `unsafe`. Other agents write this memory at any time (the card by DMA, an emulator
//! in another process), so nobody here ever holds a reference to its bytes: only to its atomics, and everything is
//! copied out before it is looked at. It refuses to interpret what it copies; that is for `words.rs` and the rings.
//!
//! Under miri, which knows no mmap, the same words live in one shared allocation.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::limits::{IDENTITY_AT, LINE_BYTES, MAGIC, PAGE_BYTES};
use crate::words::{IdentityWords, Line, Span};

const WORD_BYTES: usize = size_of::<u64>();

/// Why there is no page. The operator's or the system's, never the peer's.
#[derive(Debug)]
pub enum PageError {
    /// A call of the system failed.
    System { call: &'static str, source: std::io::Error },
    /// The file is not a page of ours: too small, or its identity says so.
    NotAPage { what: &'static str, ours: u64, theirs: u64 },
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageError::System { call, source } => write!(f, "page: {call}: {source}"),
            PageError::NotAPage { what, ours, theirs } => {
                write!(f, "page: not a page of this build: {what} is {theirs:#x}, ours is {ours:#x}")
            }
        }
    }
}

impl std::error::Error for PageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PageError::System { source, .. } => Some(source),
            PageError::NotAPage { .. } => None,
        }
    }
}

/// One mapping of one page of [`PAGE_BYTES`] bytes. Dropping it unmaps; stop every DMA into it first.
pub struct Page {
    memory: PageMapping,
    generation: u64,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("base", &self.base()).field("generation", &self.generation).finish()
    }
}

impl Page {
    /// A new page of zeros with an identity. `generation` must rise with each page that a host makes: lines of an older
    /// page then never pass for lines of this one.
    pub fn create(generation: u64) -> Result<Page, PageError> {
        let page = Page { memory: PageMapping::create()?, generation };
        let identity = IdentityWords::new(generation).encode();
        // `write` stores the first word last, with Release: that word is the magic.
        page.write(IDENTITY_AT, &identity);
        Ok(page)
    }

    /// Another mapping of the same page, as a second process would have it.
    pub fn share(&self) -> Result<Page, PageError> {
        let page = Page { memory: self.memory.share()?, generation: 0 };
        page.identified()
    }

    /// Maps a page by its file, received from the process that made it.
    #[cfg(not(miri))]
    pub fn open(file: std::os::fd::OwnedFd) -> Result<Page, PageError> {
        Page { memory: PageMapping::open(file)?, generation: 0 }.identified()
    }

    /// The page's file, to hand to another process.
    #[cfg(not(miri))]
    pub fn file(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.memory.file)
    }

    fn identified(mut self) -> Result<Page, PageError> {
        let mut line: Line = [0; LINE_BYTES];
        self.read(Span::new(IDENTITY_AT, LINE_BYTES), &mut line);
        self.generation = check_identity(&line).map_err(|Mismatch { what, ours, theirs }| PageError::NotAPage {
            what,
            ours,
            theirs,
        })?;
        Ok(self)
    }

    /// The number that every line of this page carries.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// First byte of the mapping, for registration with the device; [`PAGE_BYTES`] follow. Page-aligned.
    pub fn base(&self) -> *mut u8 {
        self.memory.base().as_ptr().cast()
    }

    /// Copies out. `span` starts at a multiple of 8 and `out` is as long as it; both are ours, so a breach panics.
    /// The first word is read first, with Acquire: it pairs with the Release of [`Page::write`], and of the engine
    /// that wrote a line by DMA.
    pub fn read(&self, span: Span, out: &mut [u8]) {
        assert!(span.offset.is_multiple_of(WORD_BYTES) && span.bytes == out.len(), "read {span:?} into {}", out.len());
        let mut order = Ordering::Acquire;
        for (index, bytes) in out.chunks_mut(WORD_BYTES).enumerate() {
            let word = self.memory.word(span.offset / WORD_BYTES + index);
            let value = word.load(order).to_ne_bytes();
            bytes.copy_from_slice(&value[..bytes.len()]);
            order = Ordering::Relaxed;
        }
    }

    /// Copies in, the first word last and with Release, so that whoever sees it sees the rest. `offset` is a multiple
    /// of 8. This is what the rings do, and what a card's DMA amounts to: tests and emulators may play card with it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.is_multiple_of(WORD_BYTES) && !bytes.is_empty() && bytes.len() <= PAGE_BYTES - offset);
        let store = |index: usize, part: &[u8], order| {
            let word = self.memory.word(offset / WORD_BYTES + index);
            // A last, short word keeps the bytes behind it.
            let mut value =
                if part.len() == WORD_BYTES { [0; WORD_BYTES] } else { word.load(Ordering::Relaxed).to_ne_bytes() };
            value[..part.len()].copy_from_slice(part);
            word.store(u64::from_ne_bytes(value), order);
        };
        for (index, part) in bytes.chunks(WORD_BYTES).enumerate().skip(1) {
            store(index, part, Ordering::Relaxed);
        }
        store(0, &bytes[..bytes.len().min(WORD_BYTES)], Ordering::Release);
    }

    pub(crate) fn read_line(&self, offset: usize) -> Line {
        let mut line = [0; LINE_BYTES];
        self.read(Span::new(offset, LINE_BYTES), &mut line);
        line
    }

    /// Between writing what the peer looks for and reading whether the peer sleeps: see "sleep" in docs/mailbox.md.
    pub(crate) fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// One word of an identity that is not ours.
pub(crate) struct Mismatch {
    pub(crate) what: &'static str,
    pub(crate) ours: u64,
    pub(crate) theirs: u64,
}

/// Generation of a page of this build, or the first word that disagrees.
pub(crate) fn check_identity(line: &Line) -> Result<u64, Mismatch> {
    let theirs = IdentityWords::decode(line);
    let ours = IdentityWords::new(theirs.generation);
    let words = [
        ("magic", MAGIC, theirs.magic),
        ("version", ours.version.into(), theirs.version.into()),
        ("page bytes", ours.page_bytes.into(), theirs.page_bytes.into()),
        ("command slots", ours.commands.into(), theirs.commands.into()),
        ("completion slots", ours.completions.into(), theirs.completions.into()),
        ("argument bytes", ours.argument_bytes.into(), theirs.argument_bytes.into()),
        ("checksum", u64::from(ours.crc), u64::from(theirs.crc)),
        ("reserved bytes", 0, theirs.reserved.iter().map(|&byte| u64::from(byte)).sum()),
    ];
    debug_assert!(theirs != ours || IdentityWords::is_whole(line));
    match words.into_iter().find(|(_, ours, theirs)| ours != theirs) {
        Some((what, ours, theirs)) => Err(Mismatch { what, ours, theirs }),
        None => Ok(theirs.generation),
    }
}

#[cfg(not(miri))]
use mapped::PageMapping;
#[cfg(miri)]
use owned::PageMapping;

impl PageMapping {
    /// One word of the page. Only ever one at a time: nobody holds a reference to more of it.
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < PAGE_BYTES / WORD_BYTES, "word {index} is not in the page");
        // SAFETY: `base` is the page-aligned start of PAGE_BYTES of memory that live as long as `self`, and the index
        // was just checked; any bits are a valid u64. Other agents write the memory too, and so nothing but atomics is
        // ever made over it.
        unsafe { self.base().add(index).as_ref() }
    }
}

#[cfg(not(miri))]
mod mapped {
    use std::num::NonZeroUsize;
    use std::os::fd::{AsFd, OwnedFd};
    use std::ptr::NonNull;
    use std::sync::atomic::AtomicU64;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    use nix::sys::stat::fstat;
    use nix::unistd::ftruncate;

    use super::PageError;
    use crate::limits::PAGE_BYTES;

    const MAPPED_BYTES: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES).unwrap();

    /// A shared mapping of exactly [`PAGE_BYTES`] and the file behind it.
    pub(super) struct PageMapping {
        base: NonNull<AtomicU64>,
        pub(super) file: OwnedFd,
    }

    // SAFETY: the mapping belongs to this value alone, stays valid on whichever thread it is, and is only ever
    // touched through atomics.
    unsafe impl Send for PageMapping {}
    // SAFETY: as above; what it gives out is `&AtomicU64`, which is `Sync`.
    unsafe impl Sync for PageMapping {}

    fn system(call: &'static str) -> impl FnOnce(nix::Error) -> PageError {
        move |error| PageError::System { call, source: error.into() }
    }

    impl PageMapping {
        pub(super) fn create() -> Result<PageMapping, PageError> {
            let file = memfd_create(c"kvlane-page", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
                .map_err(system("memfd_create"))?;
            ftruncate(&file, PAGE_BYTES as i64).map_err(system("ftruncate"))?;
            // Nobody can take the memory away under us afterwards: no SIGBUS from a peer that holds the file.
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(system("fcntl F_ADD_SEALS"))?;
            PageMapping::map(file)
        }

        pub(super) fn open(file: OwnedFd) -> Result<PageMapping, PageError> {
            let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(system("fcntl F_GET_SEALS"))?;
            if !SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
                return Err(PageError::NotAPage { what: "seal against shrinking", ours: 1, theirs: 0 });
            }
            let theirs = fstat(&file).map_err(system("fstat"))?.st_size as u64;
            if theirs != PAGE_BYTES as u64 {
                return Err(PageError::NotAPage { what: "file size", ours: PAGE_BYTES as u64, theirs });
            }
            PageMapping::map(file)
        }

        pub(super) fn share(&self) -> Result<PageMapping, PageError> {
            let file = self.file.as_fd().try_clone_to_owned();
            PageMapping::map(file.map_err(|source| PageError::System { call: "dup", source })?)
        }

        /// `file` holds at least [`PAGE_BYTES`] and is sealed against shrinking.
        fn map(file: OwnedFd) -> Result<PageMapping, PageError> {
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing of ours; its length is not
            // zero and within the sealed file.
            let base = unsafe { mmap(None, MAPPED_BYTES, protection, MapFlags::MAP_SHARED, &file, 0) };
            Ok(PageMapping { base: base.map_err(system("mmap"))?.cast(), file })
        }

        pub(super) fn base(&self) -> NonNull<AtomicU64> {
            self.base
        }
    }

    impl Drop for PageMapping {
        fn drop(&mut self) {
            // SAFETY: exactly the mapping made in `map`, unmapped once; every borrow of it borrowed `self`.
            let unmapped = unsafe { munmap(self.base.cast(), PAGE_BYTES) };
            debug_assert!(unmapped.is_ok(), "munmap of our own mapping: {unmapped:?}");
        }
    }
}

#[cfg(miri)]
mod owned {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::PageError;
    use crate::limits::PAGE_BYTES;

    /// A stand-in for the mapping under miri: one allocation, shared by all that "map" it.
    pub(super) struct PageMapping(Arc<Allocation>);

    struct Allocation(NonNull<AtomicU64>);

    // SAFETY: the allocation belongs to this value alone and is only ever touched through atomics.
    unsafe impl Send for Allocation {}
    // SAFETY: as above; what it gives out is `&AtomicU64`, which is `Sync`.
    unsafe impl Sync for Allocation {}

    const LAYOUT: Layout = match Layout::from_size_align(PAGE_BYTES, 4096) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    impl PageMapping {
        pub(super) fn create() -> Result<PageMapping, PageError> {
            // SAFETY: the layout is not of zero bytes.
            let base = unsafe { alloc_zeroed(LAYOUT) };
            Ok(PageMapping(Arc::new(Allocation(NonNull::new(base).expect("miri has memory").cast()))))
        }

        pub(super) fn share(&self) -> Result<PageMapping, PageError> {
            Ok(PageMapping(Arc::clone(&self.0)))
        }

        pub(super) fn base(&self) -> NonNull<AtomicU64> {
            self.0.0
        }
    }

    impl Drop for Allocation {
        fn drop(&mut self) {
            // SAFETY: allocated in `create` with this layout, freed once; every borrow of it borrowed a `PageMapping`.
            unsafe { dealloc(self.0.as_ptr().cast(), LAYOUT) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let page = Page::create(3).unwrap();
        let other = page.share().unwrap();
        assert_eq!(other.generation(), 3);
        let text = b"thirteen byte";
        page.write(8192 + 8, text);
        let mut copy = [0; 13];
        other.read(Span::new(8192 + 8, 13), &mut copy);
        assert_eq!(&copy, text);
        // A short write keeps what lies behind it.
        other.write(8192 + 8, b"T");
        page.read(Span::new(8192 + 8, 13), &mut copy);
        assert_eq!(&copy, b"Thirteen byte");
    }

    #[test]
    #[cfg(not(miri))]
    fn a_page_opens_by_its_file_and_other_files_do_not() {
        let page = Page::create(9).unwrap();
        let opened = Page::open(page.file().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(opened.generation(), 9);
        assert_ne!(opened.base(), page.base());

        page.write(IDENTITY_AT + 8, &2_u32.to_le_bytes());
        let refused = Page::open(page.file().try_clone_to_owned().unwrap()).unwrap_err();
        assert_eq!(refused.to_string(), "page: not a page of this build: version is 0x2, ours is 0x1");

        let other = tempfile::tempfile().unwrap();
        assert!(matches!(Page::open(other.into()), Err(PageError::System { .. } | PageError::NotAPage { .. })));
    }

    #[test]
    fn every_flipped_bit_of_the_identity_is_refused_or_changes_the_generation() {
        let line = IdentityWords::new(77).encode();
        for bit in 0..LINE_BYTES * 8 {
            let mut flipped = line;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check_identity(&flipped).is_err(), "bit {bit}");
        }
    }
}
