//! DOCA's own object graph: devices, memory maps, buffers, contexts, tasks, progress engines.

pub(crate) mod buf;
pub(crate) mod chance;
pub(crate) mod ctx;
pub(crate) mod dev;
mod inventory;
pub(crate) mod job;
pub(crate) mod library;
pub(crate) mod mmap;
pub(crate) mod passage;
pub(crate) mod pe;
pub(crate) mod poison;
pub(crate) mod pool;
pub(crate) mod rep;
pub(crate) mod task;
pub(crate) mod typed;
