//! What is counted, timed and traced, and how it is written. Read by anyone; it knows no other room's work.

pub mod answers;
pub mod counters;
pub mod facts;
pub mod histogram;
pub mod json;
pub mod trace;
