//! The page and the rings that host and card share, and the words in them.
//!
//! One page of host memory per session. The host reads and writes it; the card reaches it **by DMA only**, so the card
//! side here is sans-I/O: it says which bytes to copy ([`Span`]) and judges the private copy it is handed. Everything
//! that crosses is self-validating and believed only from that copy; a peer that breaks the rules costs itself its
//! session ([`PeerError`]) and nobody else anything.
//!
//! Refuses: DOCA, threads, logging, allocation after creation, and `unsafe` outside `page.rs`.
//! The drawing, the byte tables and the sleep proof: docs/mailbox.md.
#![deny(unsafe_code)]

#[forbid(unsafe_code)]
pub mod attach;
#[forbid(unsafe_code)]
mod card;
#[forbid(unsafe_code)]
pub mod channel;
#[forbid(unsafe_code)]
mod cursor;
#[forbid(unsafe_code)]
mod host;
#[forbid(unsafe_code)]
pub mod layout;
#[forbid(unsafe_code)]
mod limits;
#[forbid(unsafe_code)]
mod line;
mod page;
#[forbid(unsafe_code)]
mod peer;
#[forbid(unsafe_code)]
mod record;
#[forbid(unsafe_code)]
mod visible;
#[forbid(unsafe_code)]
mod words;

pub use card::{Answer, CardRing, Command, Progress};
pub use host::{AnswerError, Chunk, Completion, Doorbell, HostRing, PostError, Request, Sleep};
pub use limits::*;
pub use line::HostLine;
pub use page::{Page, PageError};
pub use peer::PeerError;
pub use record::{Pages, Record, Records};
pub use visible::{quoted, visible, visible_json};
pub use words::{CardState, Line, Operation, Span, Status, Tokens};

#[cfg(test)]
mod liar_tests;
#[cfg(test)]
mod ring_tests;
