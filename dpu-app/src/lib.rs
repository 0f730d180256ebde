//! The data plane of kvlane: prefix KV between a store and the memory of serving engines, through the card's engines.
//!
//! ```text
//!   store --fetch workers--> wire --inflate engine--> codes --dequantize workers--> tile --DMA engine--> host pages
//!   store <--encode workers--------------------------------------------- tile <--DMA engine-- host pages
//! ```
//!
//! Reading order: `config` (every limit), `slot` (the ring), `job`, `line`, `crew`, `fetcher` and `worker` (what touches bytes), `flow` and
//! `request` (what is in progress), `pipeline` and `scheduler` (who decides), `hub` (where it runs), then its parts `attend` (with `comch`), `mail`, `chunks`, `engines`,
//! `status`; `trace`, `board`, `health` and `metrics` are what monitoring sees.
//! docs/architecture.md says why it is built so.
//!
//! It refuses: unsafe code, allocation in Steady (attaching a host is Init for its session), and trust in any peer.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod answers;
mod attend;
pub mod bell;
pub mod board;
mod chunks;
pub mod comch;
pub mod complaints;
pub mod config;
pub mod counters;
pub mod crew;
pub mod devices;
pub mod engine;
mod engines;
pub mod events;
pub mod fetcher;
pub mod fit;
pub mod flow;
pub mod footprint;
pub mod health;
pub mod histogram;
pub mod hub;
mod importer;
pub mod job;
pub mod json;
pub mod lender;
pub mod line;
mod mail;
mod marks;
pub mod metrics;
pub mod models;
mod notice;
pub mod notify;
pub mod pipeline;
pub mod probation;
pub mod profile;
pub mod propose;
pub mod reload;
pub mod request;
pub mod run;
pub mod scheduler;
pub mod selftest;
pub mod session;
pub mod simulate;
pub mod slot;
mod status;
pub mod trace;
pub mod trial;
mod turns;
pub mod unreadable;
pub mod verify;
pub mod wire;
pub mod worker;

pub use config::Config;
pub use lender::open_store;
pub use run::{Checked, RunError, check, run, serve};
