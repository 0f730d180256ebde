//! The tests of the data plane, one module for each claim: `cargo test -p dpu-app --test it faults::`. Those that count
//! or change what a whole process does are programs of their own: idle, slots_model, steady_alloc, supervised.
#![forbid(unsafe_code)]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../scrape/mod.rs"]
mod scrape;
#[path = "../../../crates/store/tests/servers/mod.rs"]
mod servers;

mod bad_hosts;
mod bell_model;
mod caps;
mod comes_back;
mod configuration;
mod corrupt;
mod dashboard;
mod dying;
mod faults;
mod footprint;
mod hostile;
mod imports;
mod layouts;
mod lent;
mod liars;
mod metrics;
mod operator;
mod partial;
mod precision;
mod redis;
mod rooms;
mod roundtrip;
mod sections;
mod stuck;
mod tier_faults;
mod together;
mod trace;
mod turns;
mod two_processes;
mod verify;
mod versions;
mod ways;
mod worth;
