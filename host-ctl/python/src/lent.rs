//! Memory of Python objects as mappings: the one place of this crate that is unsafe.
//! A GPU's memory comes with a dma-buf (kvlane/cuda.py), or by address alone.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use doca::{Dmabuf, Mapping};
use pyo3::prelude::*;

use crate::errors::input;

/// Lends the memory that `owner` keeps alive.
///
/// Called with what kvlane/buffers.py found: the address and length of a buffer (or of a DLPack tensor) and the very
/// object whose life holds that buffer. Python has no safe way to say "this address"; whoever calls the private class
/// `Memory` with numbers of their own invention can crash their own process, as with `ctypes`.
///
/// An exported buffer cannot move, and numpy resizes no array that is weakly referenced. A torch storage can be resized
/// by whoever has it, and nothing forbids it: such memory comes with a [`Watch`](crate::watch::Watch), which is asked
/// at attach, before each request that names pages and at each such completion. What is left is that somebody resizes a
/// storage while a request on it is in flight, which `kvlane.register` says not to do.
///
/// `dmabuf`: descriptor, which is taken over, and offset.
pub(crate) fn lend(
    address: usize,
    bytes: usize,
    owner: Py<PyAny>,
    dmabuf: Option<(RawFd, usize)>,
) -> PyResult<Arc<Mapping>> {
    // SAFETY: cuda.py gives the descriptor away with the number, and keeps no copy.
    let dmabuf = dmabuf.map(|(fd, offset)| Dmabuf { fd: unsafe { OwnedFd::from_raw_fd(fd) }, offset });
    let base = NonNull::new(address as *mut u8).ok_or_else(|| input("region: address 0"))?;
    let owner = Box::new(owner);
    // SAFETY: `owner` holds what owns the bytes (an exported buffer, a DLPack capsule, a storage), and is dropped by
    // the mapping last: they are not freed for want of an owner. That their owner moves them is either impossible or
    // watched, and between two looks forbidden to the caller, see above. This crate itself never reads or writes them.
    // Aliasing: Rust makes no reference to them; Python's own reads may see a page half written, so pages are used
    // after completions only.
    let mapping = unsafe {
        match dmabuf {
            None => Mapping::lent(base, bytes, owner),
            Some(dmabuf) => Mapping::lent_dmabuf(base, bytes, dmabuf, owner),
        }
    };
    Ok(Arc::new(mapping.map_err(|error| input(format!("region of {bytes} bytes: {error}")))?))
}
