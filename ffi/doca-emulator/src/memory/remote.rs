//! Another process's memory, through the kernel: `process_vm_readv` and `process_vm_writev`.
//!
//! Where these are not to be had (qemu-user has neither, a container's seccomp filter may refuse them), reads and
//! writes of `/proc/PID/mem` do the same, one system call per piece and two around them. The kernel asks for the same
//! right in both ways, and both answer a hole with an error and not with a signal.

use std::ffi::{CStr, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// Copies `bytes` from the remote ranges of `pid` to the local ones.
///
/// # Safety
/// Both lists hold `bytes`; the local ranges are writable, and nobody else uses them meanwhile.
pub(crate) unsafe fn read(
    pid: libc::pid_t,
    local: &[libc::iovec],
    remote: &[libc::iovec],
    bytes: usize,
) -> io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { transfer(Way::In, pid, local, remote, bytes) }
}

/// Copies `bytes` from the local ranges to the remote ones of `pid`.
///
/// # Safety
/// Both lists hold `bytes`; the local ranges are readable.
pub(crate) unsafe fn write(
    pid: libc::pid_t,
    local: &[libc::iovec],
    remote: &[libc::iovec],
    bytes: usize,
) -> io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { transfer(Way::Out, pid, local, remote, bytes) }
}

/// # Safety
/// See [`read`] and [`write`].
unsafe fn transfer(
    way: Way,
    pid: libc::pid_t,
    local: &[libc::iovec],
    remote: &[libc::iovec],
    bytes: usize,
) -> io::Result<()> {
    let (l, r) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
    // SAFETY: lists with their lengths; the caller vouches for the local ranges, the kernel checks both.
    let moved = unsafe {
        match way {
            Way::In => libc::process_vm_readv(pid, local.as_ptr(), l, remote.as_ptr(), r, 0),
            Way::Out => libc::process_vm_writev(pid, local.as_ptr(), l, remote.as_ptr(), r, 0),
        }
    };
    if usize::try_from(moved) == Ok(bytes) {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // SAFETY: as the caller promises.
        Some(libc::ENOSYS | libc::EPERM) if moved < 0 => unsafe { through_file(way, pid, local, remote) },
        _ if moved < 0 => Err(error),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// # Safety
/// See [`read`] and [`write`].
unsafe fn through_file(way: Way, pid: libc::pid_t, local: &[libc::iovec], remote: &[libc::iovec]) -> io::Result<()> {
    let memory = open_memory(way, pid)?;
    let mut locals = local.iter().map(|range| (range.iov_base, range.iov_len));
    let mut here = (std::ptr::null_mut(), 0);
    for range in remote {
        let (mut there, mut left) = (range.iov_base.addr(), range.iov_len);
        while left > 0 {
            while here.1 == 0 {
                here = locals.next().ok_or(io::ErrorKind::InvalidInput)?;
            }
            let step = left.min(here.1);
            // SAFETY: `step` bytes of a local range, for which the caller vouches.
            let moved = unsafe { step_through_file(way, &memory, here.0, there, step) }?;
            here = (here.0.wrapping_byte_add(moved), here.1 - moved);
            (there, left) = (there + moved, left - moved);
        }
    }
    Ok(())
}

/// Without a heap allocation: engines copy when everything is to stand still.
fn open_memory(way: Way, pid: libc::pid_t) -> io::Result<File> {
    let mut path = [0; 32];
    write!(&mut path[..], "/proc/{pid}/mem")?;
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| io::ErrorKind::InvalidInput)?;
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    OpenOptions::new().read(way == Way::In).write(way == Way::Out).open(path)
}

/// Moves at least one byte, or fails.
///
/// # Safety
/// `here` is `bytes` long, and writable or readable as the way asks.
unsafe fn step_through_file(
    way: Way,
    memory: &File,
    here: *mut libc::c_void,
    there: usize,
    bytes: usize,
) -> io::Result<usize> {
    let at = libc::off_t::try_from(there).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a descriptor that `memory` keeps open; the caller vouches for the range here, the kernel checks the
    // other.
    let moved = unsafe {
        match way {
            Way::In => libc::pread(memory.as_raw_fd(), here, bytes, at),
            Way::Out => libc::pwrite(memory.as_raw_fd(), here, bytes, at),
        }
    };
    match usize::try_from(moved) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(moved) => Ok(moved),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    fn ranges(bytes: &mut [u8], lengths: &[usize]) -> Vec<libc::iovec> {
        let mut first = bytes.as_mut_ptr();
        let cut = |&iov_len: &usize| {
            let range = libc::iovec { iov_base: first.cast(), iov_len };
            first = first.wrapping_add(iov_len);
            range
        };
        lengths.iter().map(cut).collect()
    }

    #[test]
    fn memory_comes_and_goes_through_the_file_as_through_the_system_call() {
        let pid = std::process::id() as libc::pid_t;
        let mut there: Vec<u8> = (0..100).collect();
        let mut here = vec![0; 100];
        let (remote, local) = (ranges(&mut there, &[1, 0, 49, 50]), ranges(&mut here, &[0, 30, 30, 40]));
        // SAFETY: both lists cover vectors that live on, of 100 bytes each.
        unsafe { through_file(Way::In, pid, &local, &remote) }.unwrap();
        assert_eq!(here, (0..100).collect::<Vec<u8>>());
        here.reverse();
        // SAFETY: as above.
        unsafe { through_file(Way::Out, pid, &local, &remote) }.unwrap();
        assert_eq!(there, (0..100).rev().collect::<Vec<u8>>());
        there.fill(7);
        // SAFETY: as above.
        unsafe { read(pid, &local, &remote, 100) }.unwrap();
        assert_eq!(here, [7; 100]);
    }

    #[test]
    fn a_hole_is_an_error_both_ways() {
        let pid = std::process::id() as libc::pid_t;
        let mut here = [0; 8];
        let local = ranges(&mut here, &[8]);
        let remote = [libc::iovec { iov_base: std::ptr::without_provenance_mut(4096), iov_len: 8 }];
        for way in [Way::In, Way::Out] {
            // SAFETY: the local range is ours; nothing is mapped at the remote one.
            assert!(unsafe { transfer(way, pid, &local, &remote, 8) }.is_err());
            // SAFETY: as above.
            assert!(unsafe { through_file(way, pid, &local, &remote) }.is_err());
        }
    }
}
