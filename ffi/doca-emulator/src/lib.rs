//! A software BlueField behind the DOCA C interface.
//!
//! It exports the functions that its `include/` declares, under their C names, with the behaviour of a card: own engine
//! threads, completions out of order, callbacks only inside `doca_pe_progress`, one failed task stops its whole
//! context, an exported memory map is reached from another process under the exporter's addresses. A program written
//! against the SDK builds against these headers and runs without a card; `doca-sys` does exactly that.
//!
//! ```text
//!   application thread                          engine threads, per device and engine kind
//!   ------------------                          -------------------------------------------
//!   task_submit --snapshot of bufs--> [ queue ] --> codec / copy --> [ port of the PE ] --> eventfd, if armed
//!   pe_progress <------------------ callbacks ------------------------------'
//! ```
//!
//! # Configuration
//! One environment variable, read by `doca_devinfo_create_list`, so each device list may have its own:
//! `DOCA_EMULATOR="profile=bf3,seed=42,fail=0.01"`. All keys are in `docs/emulator.md`. An unknown key or a value that
//! does not parse is one line on standard error and `DOCA_ERROR_INITIALIZATION`. [`configure`] and
//! [`configure_thread`] replace it from Rust.
//!
//! # Where things are
//! | room | what it has |
//! |---|---|
//! | `ffi` | handles, checked arguments, error codes; the bindings of our own headers: [`abi`] |
//! | `config` | what can be set about a device, and its one parser |
//! | `memory` | memory that tasks reach: regions, exports, imports, copies across processes |
//! | `core` | DOCA's own objects: devices, representors, maps, buffers, contexts, tasks, progress engines |
//! | `engine` | threads, codecs, timing model; `doca_compress`, `doca_dma` |
//! | `comch` | servers, clients, producers, consumers; links and where they meet |
//! | `tools` | logs and command lines; debug mode, guards, sockets |
//!
//! Shared libraries under the SDK's names are made by `scripts/emulator-install.sh`, after `abi/symbols.txt`.
//!
//! # Where it is stricter than a card
//! What the DOCA reference calls undefined is refused here where that is cheap: data outside its buffer, a buffer
//! given back while a task uses it, a task submitted twice, memory that was not registered with the context's device.
//! Refusals that have no error code to carry them (`doca_task_free` of a task in flight) are a line on standard error.
//!
//! # Where it differs
//! Opening a device twice gives two devices. Memory is not pinned. `doca_mmap_set_dmabuf_memrange` answers
//! `NOT_SUPPORTED`. More in `docs/emulator.md`.
//!
//! # Panics
//! None are meant to happen. One inside an exported function ends the process, because Rust does not unwind out of
//! `extern "C"`; one in an engine thread does too.

mod comch;
mod config;
mod core;
mod engine;
mod ffi;
mod memory;
#[cfg(test)]
mod sources;
mod tools;

pub use config::{
    Config, ConfigError, FaultEffect, FlipWay, PciAddress, PlannedFault, Profile, Representors, Role, TaskKind,
    Without, configure, configure_thread,
};
pub use ffi::abi;
