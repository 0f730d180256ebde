//! Claims about the stored form, by its public face: one binary for all of them.

#[cfg(not(miri))] // the Deflate encoder is C
mod blocks;
mod headers;
mod keys;
mod names;
mod tails;
