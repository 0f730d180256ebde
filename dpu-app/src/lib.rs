//! The data plane of kvlane: prefix KV between a store and the memory of serving engines, through the card's engines.
//!
//! ```text
//!   store --fetch workers--> wire --inflate engine--> codes --dequantize workers--> tile --DMA engine--> host pages
//!   store <--encode workers--------------------------------------------- tile <--DMA engine-- host pages
//! ```
//!
//! One directory is one room. In reading order:
//!
//! ```text
//!   config     every limit, its default and its range; what SIGHUP may change
//!   count      counters, histograms, traces, and how they are written
//!   pipeline   what is in progress, and every decision: pure, so that a simulator runs it too
//!   slots      memory of the blocks in progress
//!   workers    the threads that touch bytes, and the queues between them and the engine thread
//!   hub        the engine thread: hosts, sessions, engines, requests
//!   metrics    the HTTP server for monitoring
//!   cli        what an operator types
//! ```
//! `run` starts all of it; `error`, `settings` and `footprint` say what all of it may fail at, is told, and takes. A
//! room names only rooms above it in this list (tools/xtask/tables/edges.txt). docs/architecture.md says why it is
//! built so.
//!
//! It refuses: unsafe code, allocation in Steady (attaching a host is Init for its session), and trust in any peer.
#![forbid(unsafe_code)]

/// A line on standard output. A reader that has heard enough (`| head`) is no error.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)));
    }};
}

pub mod cli;
pub mod config;
pub mod count;
mod error;
pub mod footprint;
pub mod hub;
pub mod metrics;
pub mod pipeline;
pub mod run;
pub mod settings;
pub mod slots;
pub mod workers;

pub use config::Config;
pub use error::RunError;
pub use run::{Checked, check, run, serve};
pub use slots::lender::open_store;
