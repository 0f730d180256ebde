//! The data plane of kvlane: prefix KV between a store and the memory of serving engines, through the card's engines.
//!
//! ```text
//!   store --fetch workers--> wire --inflate engine--> codes --dequantize workers--> tile --DMA engine--> host pages
//!   store <--encode workers--------------------------------------------- tile <--DMA engine-- host pages
//! ```
//!
//! Reading order: `config` (every limit), `slot` (the ring), `job` and `worker` (what touches bytes), `flow` and
//! `request` (what is in progress), `hub` (who decides), then its parts `attend`, `mail`, `chunks`, `engines`, `status`.
//! docs/architecture.md says why it is built so.
//!
//! It refuses: unsafe code, allocation in Steady (attaching a host is Init for its session), and trust in any peer.
#![forbid(unsafe_code)]

#[cfg(feature = "wip")]
mod attend;
#[cfg(feature = "wip")]
pub mod bell;
#[cfg(feature = "wip")]
mod chunks;
#[cfg(feature = "wip")]
pub mod config;
#[cfg(feature = "wip")]
pub mod counters;
#[cfg(feature = "wip")]
pub mod crew;
#[cfg(feature = "wip")]
mod engines;
#[cfg(feature = "wip")]
pub mod events;
#[cfg(feature = "wip")]
pub mod flow;
#[cfg(feature = "wip")]
pub mod hub;
#[cfg(feature = "wip")]
pub mod job;
#[cfg(feature = "wip")]
mod mail;
#[cfg(feature = "wip")]
pub mod probation;
#[cfg(feature = "wip")]
pub mod request;
#[cfg(feature = "wip")]
pub mod run;
#[cfg(feature = "wip")]
pub mod selftest;
#[cfg(feature = "wip")]
pub mod session;
#[cfg(feature = "wip")]
pub mod slot;
#[cfg(feature = "wip")]
mod status;
pub mod store;
#[cfg(feature = "wip")]
pub mod worker;

#[cfg(feature = "wip")]
pub use config::Config;
#[cfg(feature = "wip")]
pub use run::{RunError, run, serve};
