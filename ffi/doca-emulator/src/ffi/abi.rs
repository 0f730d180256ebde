//! The bindings of our own headers: the types that the exported functions speak, and the signatures that each of them
//! is held to at compile time. `doca-sys` passes them on, so both sides of the C boundary share one Rust type for what
//! travels by value (`doca_data`), and miri can follow calls across it.

#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case, missing_debug_implementations, dead_code)]
#![allow(unreachable_pub, rustdoc::all, clippy::all, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
