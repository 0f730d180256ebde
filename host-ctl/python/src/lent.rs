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
/// Called with what kvlane/buffers.py found: the address and length of a buffer (or of a DLPack tensor) and the very object
/// whose life holds that buffer. Python has no safe way to say "this address"; whoever calls the private class `Memory`
/// with numbers of their own invention can crash their own process, as with `ctypes`.
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
    // SAFETY: buffers.py takes address and length from one exported buffer and `owner` from the export itself, so the
    // bytes stay where they are until `owner` is dropped, which the mapping does last. Aliasing: Rust makes no reference to
    // them; Python's own reads may see a page half written, which is why pages are used only after their completion.
    let mapping = unsafe {
        match dmabuf {
            None => Mapping::lent(base, bytes, owner),
            Some(dmabuf) => Mapping::lent_dmabuf(base, bytes, dmabuf, owner),
        }
    };
    Ok(Arc::new(mapping.map_err(|error| input(format!("region of {bytes} bytes: {error}")))?))
}
