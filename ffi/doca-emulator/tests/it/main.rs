//! Claims about the emulator that need no process of their own. Those that do have a binary each: `chaos`, `debug` and
//! `processes` run children, `model` measures time, `steady` counts the allocations of all threads.

#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

mod comch;
mod contexts;
mod engines;
mod forgers;
mod headers;
mod hostile;
mod memory;
#[path = "../rig/mod.rs"]
mod rig;
mod rules;
