//! Memory of Python objects as mappings: the one place of this crate that is unsafe.

use std::ptr::NonNull;
use std::sync::Arc;

use doca::Mapping;
use pyo3::prelude::*;

use crate::errors::input;

/// Lends the memory that `owner` keeps alive.
///
/// Called with what kvlane/buffers.py found: the address and length of a buffer (or of a DLPack tensor) and the very object
/// whose life holds that buffer. Python has no safe way to say "this address"; whoever calls the private class `Memory`
/// with numbers of their own invention can crash their own process, as with `ctypes`.
pub(crate) fn lend(address: usize, bytes: usize, owner: Py<PyAny>) -> PyResult<Arc<Mapping>> {
    let base = NonNull::new(address as *mut u8).ok_or_else(|| input("region: address 0"))?;
    // SAFETY: buffers.py takes address and length from one exported buffer and `owner` from the export itself, so the
    // bytes stay where they are until `owner` is dropped, which the mapping does last. Aliasing: Rust makes no reference to
    // them; Python's own reads may see a page half written, which is why pages are used only after their completion.
    let mapping = unsafe { Mapping::lent(base, bytes, Box::new(owner)) };
    Ok(Arc::new(mapping.map_err(|error| input(format!("region of {bytes} bytes: {error}")))?))
}
