//! `debug=1`: mistakes that a card would punish later, or elsewhere, are said on standard error when they are made.
//!
//! - Every call that refuses something says so, with its name and the code. (`AGAIN`, `IN_PROGRESS` and what capability
//!   questions answer are no refusals.)
//! - Memory of a task that is not mapped any more when an engine comes to it fails that task; without debug mode it
//!   ends the process.
//! - A destination is overwritten with [`POISON`] when it is submitted. Who reads it before the completion reads that;
//!   who writes to it before the completion is told.
//! - At exit: bufs that never went home.
//! - An import that the CPU touches, in [`crate::tools::guard`].
//!
//! It is on for the whole process once a device list with `debug=1` was made. Costs a copy of every destination.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::ffi::complain;
use crate::ffi::error;

/// What a destination holds until it is written.
pub(crate) const POISON: u8 = 0xdb;

static IS_ON: AtomicBool = AtomicBool::new(false);
static BUFS: AtomicI64 = AtomicI64::new(0);

pub(crate) fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

pub(crate) fn switch_on() {
    static AT_EXIT: Once = Once::new();
    IS_ON.store(true, Ordering::Relaxed);
    error::say_refusals();
    AT_EXIT.call_once(|| {
        // SAFETY: a function of our own that lives as long as the code does.
        unsafe { libc::atexit(report) };
    });
}

extern "C" fn report() {
    let bufs = BUFS.load(Ordering::Relaxed);
    if bufs > 0 {
        complain(&format!("debug: {bufs} bufs were never given back (doca_buf_dec_refcount)"));
    }
}

/// Whether all pages of a range of this process can be read. The kernel is asked to send a byte of each through a pipe,
/// for which a hole is an error and no signal.
pub(crate) fn is_mapped(addr: u64, len: usize) -> bool {
    /// The shortest of any machine.
    const PAGE: u64 = 4096;
    /// Fits a pipe.
    const BYTES_MAX: usize = 512;
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return true;
    }
    // SAFETY: both are new, and nobody else's.
    let (mut out, into) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    let mut probes = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 1 }; BYTES_MAX];
    let mut next = addr;
    while next < addr + len as u64 {
        let mut count = 0;
        while count < BYTES_MAX && next < addr + len as u64 {
            probes[count].iov_base = ptr::without_provenance_mut(next as usize);
            next = (next & !(PAGE - 1)) + PAGE;
            count += 1;
        }
        // SAFETY: a list with its length, whose addresses are the kernel's to check.
        let sent = unsafe { libc::writev(into.as_raw_fd(), probes.as_ptr(), count as libc::c_int) };
        if usize::try_from(sent) != Ok(count) || out.read_exact(&mut [0; BYTES_MAX][..count]).is_err() {
            return false;
        }
    }
    true
}

/// Bufs that came out of an inventory, or went home.
pub(crate) fn count_bufs(more: i64) {
    BUFS.fetch_add(more, Ordering::Relaxed);
}
