//! The worker threads: what they do to bytes, the queues that lie between them and the engine thread, and what all
//! threads share.

pub(crate) mod affinity;
pub(crate) mod bell;
pub(crate) mod board;
pub(crate) mod chunks;
pub(crate) mod compute;
pub(crate) mod crew;
pub(crate) mod fetch;
pub(crate) mod line;
pub(crate) mod shared;
pub(crate) mod threads;
pub(crate) mod unreadable;
