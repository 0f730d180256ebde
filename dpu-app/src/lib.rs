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

mod cli;
mod config;
mod count;
mod error;
pub mod footprint;
mod hub;
mod metrics;
mod pipeline;
mod run;
mod settings;
mod slots;
mod workers;

// The program.
pub use cli::main;
pub use config::ratios::{RATIOS, Ratio};
pub use config::{Config, SAMPLE_BLOCKS, SLOTS_MAX, SlotBytes, Verify, WORKERS_MAX, store_limits};
pub use error::RunError;
pub use run::{Checked, check, run, serve};
pub use settings::lines as settings;
pub use slots::lender::open_store;

// What it counts and tells.
pub use count::counters;
pub use metrics::{CONNECTION_TIMEOUT, CONNECTIONS_MAX, MetricKind, REPLY_BYTES, REQUEST_BYTES, families};

// The pipeline, for every world that it runs in: models of the tests, the simulator.
pub use pipeline::chunk::{ChunkInFlight, Direction, Pages};
pub use pipeline::endings::Endings;
pub use pipeline::follow::Follow;
pub use pipeline::job::{BlockFacts, CrewKind, Done, Evidence, Failure, Job, Restored, Seat};
pub use pipeline::scheduler::Scheduler;
pub use pipeline::slots::{SlotState, SlotTable, Ticket};
pub use pipeline::{Inflated, Inflater, Launch, Pipeline, Unreached, World};

// Its workers and engines, for trials stage by stage.
pub use hub::MODERATED_DEPTH;
pub use hub::engines::{bring_inflated, bring_transferred, start_inflate, start_transfer, ticket};
pub use hub::fit::Fit;
pub use hub::session::{SectionMemory, SessionMemory};
pub use workers::crew::{Crews, least_busy};
pub use workers::shared::Shared;
pub use workers::threads::{Leaving, Lines};
