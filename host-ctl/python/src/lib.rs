//! The control plane for Python: sessions, memory and keys of `host_ctl` as the module `kvlane._kvlane`.
//!
//! Thin on purpose: it converts arguments, lets go of the interpreter lock where something may wait, and turns errors
//! into exceptions that name the blame (errors.rs). Buffers are found in Python (kvlane/buffers.py), because the buffer
//! protocol is not in the stable interface of Python 3.10; the one unsafe line is in lent.rs. Docs: docs/vllm.md.

mod errors;
mod keys;
mod lent;
mod memory;
mod session;
mod watch;

use pyo3::prelude::*;

#[pymodule]
fn _kvlane(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(module)?;
    module.add_class::<keys::Geometry>()?;
    module.add_function(wrap_pyfunction!(keys::chunk_keys, module)?)?;
    module.add_class::<memory::Memory>()?;
    module.add_class::<session::Session>()?;
    module.add_class::<session::Completion>()
}
