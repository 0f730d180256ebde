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

mod attend;
pub mod bell;
mod chunks;
pub mod config;
pub mod counters;
pub mod crew;
pub mod devices;
mod engines;
pub mod events;
pub mod fit;
pub mod flow;
pub mod hub;
pub mod job;
mod mail;
pub mod probation;
pub mod request;
pub mod run;
pub mod selftest;
pub mod session;
pub mod slot;
mod status;
pub mod store;
pub mod worker;

pub use config::Config;
pub use run::{RunError, run, serve};
