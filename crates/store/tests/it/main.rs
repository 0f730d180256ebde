//! The store's integration tests, in one binary; alloc.rs, which counts what is allocated, is alone.

mod chunks;
#[path = "../servers/mod.rs"]
mod servers;
mod tiered;

mod absent;
mod arrivals;
mod contract;
mod dir;
mod hostile_server;
mod model;
mod redis;
mod redis_cluster;
mod redis_tls;
mod scrub;
mod secrets;
mod tier_faults;
mod tiers;
mod worth;
