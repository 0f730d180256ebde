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
//! `DOCA_EMULATOR="profile=bf3,seed=42,fail=0.01"`. An unknown key or a value that does not parse is one line on
//! standard error and `DOCA_ERROR_INITIALIZATION`. [`configure`] and [`configure_thread`] replace it from Rust.
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `profile` | `bf3` | `bf3`: decompress only (deflate, LZ4), 2 MiB a task; `bf2`: deflate both ways, 128 MiB |
//! | `devices` | `1` | functions of the card, up to 8: `03:00.0` (`mlx5_0`, `p0`), `03:00.1` (`mlx5_1`, `p1`), ... |
//! | `decompress_threads` | `2` | threads of the compression engine |
//! | `dma_threads` | `1` | threads of the copy engine |
//! | `window` | `1` | `0`: never map an exporter's memory, always copy through the kernel |
//! | `seed` | from the clock | start of all random draws below; printed when a device with one of them is opened |
//! | `fail` | `0` | probability that a task fails in the engine |
//! | `again` | `0` | probability that a submit answers `AGAIN` |
//! | `corrupt` | `0` | probability that a (de)compression flips one bit of its output, checksums following |
//! | `delay_us` | `0` | each task waits a random time up to this in its engine thread |
//! | `reorder` | `0` | `1`: an engine takes any of its eight oldest tasks |
//!
//! # Where it is stricter than a card
//! What the DOCA reference calls undefined is refused here where that is cheap: data outside its buffer, a buffer
//! given back while a task uses it, a task submitted twice, memory that was not registered with the context's device.
//! Refusals that have no error code to carry them (`doca_task_free` of a task in flight) are a line on standard error.
//!
//! # Where it differs
//! Opening a device twice gives two devices. Memory is not pinned. `doca_mmap_set_dmabuf_memrange` answers
//! `NOT_SUPPORTED`. Representors, DOCA Comch and `doca_log` are not here yet.
//!
//! # Panics
//! None are meant to happen. One inside an exported function ends the process, because Rust does not unwind out of
//! `extern "C"`; one in an engine thread does too.

pub mod abi;
mod buf;
mod chance;
mod codec;
mod compress;
mod config;
mod copy;
mod ctx;
mod dev;
mod dma;
mod door;
mod engine;
mod error;
mod export;
mod inventory;
mod job;
mod mmap;
mod pe;
mod pool;
mod region;
mod task;
mod typed;

pub use config::{Config, ConfigError, Profile, configure, configure_thread};
