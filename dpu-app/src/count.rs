//! What is counted, timed and traced, and how it is written. Read by anyone; it knows no other room's work.

pub(crate) mod answers;
pub mod counters;
pub(crate) mod facts;
pub(crate) mod histogram;
pub(crate) mod json;
pub(crate) mod trace;
