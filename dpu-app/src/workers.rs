//! The worker threads: what they do to bytes, the queues that lie between them and the engine thread, and what all
//! threads share.

pub mod affinity;
pub mod bell;
pub mod board;
pub mod chunks;
pub mod compute;
pub mod crew;
pub mod fetch;
pub mod line;
pub mod shared;
pub mod threads;
pub mod unreadable;
