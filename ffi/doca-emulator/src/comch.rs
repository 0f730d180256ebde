//! Comch: servers, clients, producers and consumers, and the sockets beneath them.

pub(crate) mod control;
pub(crate) mod fast;
pub(crate) mod link;
mod meeting;
mod station;
