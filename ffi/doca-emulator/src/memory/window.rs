//! Pages of a file, mapped here: an exporter's memory or board, if the file is sealed so that it cannot lose them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

/// A mapping of pages of a file; see the module.
pub(crate) struct Window {
    pub(crate) map: *mut libc::c_void,
    map_bytes: usize,
    pub(crate) first: *mut u8,
}

// SAFETY: the mapping belongs to the window alone and stays put until drop; its bytes are only touched by raw copies.
unsafe impl Send for Window {}
// SAFETY: as above; a shared window hands out nothing but its address.
unsafe impl Sync for Window {}

impl Window {
    /// Maps a file that cannot lose the range. Its pages are plain ones: a huge page may be missing at the first touch,
    /// which is a signal, so a file of those is only mapped if its owner is to be trusted.
    pub(crate) fn of_sealed(
        file: &File,
        offset: u64,
        bytes: usize,
        writable: bool,
        is_trusted: bool,
    ) -> Option<Window> {
        // SAFETY: asks about a descriptor that `file` keeps open. Anything but a memfd has no seals, and is not asked
        // further.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        let is_sealed = seals >= 0 && seals & libc::F_SEAL_SHRINK != 0;
        if !is_sealed || !(is_trusted || has_plain_pages(file)) {
            return None;
        }
        let covers = offset.checked_add(bytes as u64)? <= file.metadata().ok()?.len();
        if covers { Window::map(file, offset, bytes, writable) } else { None }
    }

    pub(crate) fn map(file: &File, offset: u64, bytes: usize, writable: bool) -> Option<Window> {
        // Huge pages want offsets that are multiples of theirs; 2 MiB suits all but the rarest.
        const ALIGN: u64 = 2 << 20;
        let start = offset & !(ALIGN - 1);
        let map_bytes = usize::try_from(offset - start).ok()?.checked_add(bytes)?;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let start_off = libc::off_t::try_from(start).ok()?;
        // SAFETY: a new mapping where the kernel likes; it takes nothing away from anybody.
        let map = unsafe {
            libc::mmap(ptr::null_mut(), map_bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), start_off)
        };
        if map == libc::MAP_FAILED {
            return None;
        }
        Some(Window { map, map_bytes, first: map.cast::<u8>().wrapping_add((offset - start) as usize) })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, with its length; regions outlive the tasks that use them, so nobody looks.
        unsafe { libc::munmap(self.map, self.map_bytes) };
    }
}

fn has_plain_pages(file: &File) -> bool {
    // SAFETY: integers, for which zeroes are values.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor that `file` keeps open, and a place for the answer.
    let known = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) } == 0;
    known && about.f_type == libc::TMPFS_MAGIC
}
