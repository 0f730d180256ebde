//! The control plane: attaches to a card, posts commands, reads completions. It touches no KV byte: files and pages are
//! mapped, exported, and reached by the card's DMA.
//!
//! ```text
//! Door --attach--> Client --post_*--> RequestId --poll / wait--> Completion
//!                    |                   cut into page requests that fit (job.rs), leading counts put together again
//! Memory (mappings + layout), Prefix (token ids -> chunk keys): what a serving engine's connector needs, too
//! ```
//! `transfer` is the whole of `host-ctl store` and `fetch`: files in and out, partial hits, done again when the store
//! changed meanwhile; `command` is what the program shares with `kvlane-plan`. The binary only parses and prints.
//! Errors say who is to blame: that is the exit code ([`Error`]). host-ctl/examples/fetch.rs is the shortest client.
#![forbid(unsafe_code)]

mod arrangement;
mod attach;
mod chunk_file;
mod chunk_store;
mod client;
pub mod command;
mod compare;
mod error;
mod export;
mod importances;
mod job;
mod kv_file;
mod memory;
mod mixed;
mod out_file;
mod part_file;
pub mod precision;
mod prefix;
mod random;
mod route;
mod status;
mod tokens;
mod transfer;
mod unique;

pub use arrangement::{Arrangement, PageOrder};
pub use attach::{CardFacts, Door, Options};
pub use chunk_file::{InspectedBlock, InspectedChunk, Inspection, ends_like_a_chunk, inspect, store_files};
pub use chunk_store::{check_store, inspect_store};
pub use client::{Client, Completion, JOBS_MAX, RequestId, Transfer};
pub use compare::{Comparison, KindErrors, compare};
pub use error::{Blame, Error, Gone};
pub use export::{DeviceExporter, Exported, Exporter};
pub use importances::{importance, load_importances};
pub use kv_file::{KvFile, KvTensor, Tensor, TensorShape};
pub use memory::{Memory, RegisteredMapping, Section};
pub use mixed::{Attach, Budget, MixedReport, Mixture, Portion, store_mixed};
pub use out_file::{Announce, OutFile, dtype_name};
pub use prefix::Prefix;
pub use random::Random;
pub use route::Route;
pub use status::{CardStatus, StageDelta, tier_scores};
pub use tokens::TokenSpec;
pub use transfer::{
    Amounts, FetchOrder, FetchReport, Identity, LookupReport, StoreOrder, StoreReport, Target, Watch, fetch, lookup,
    rate, store,
};
