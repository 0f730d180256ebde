//! The C boundary: bindings of our own headers, handles, checked arguments, error codes.

pub mod abi;
mod arguments;
pub(crate) mod error;
mod exports;
mod handle;

pub(crate) use arguments::{Enter, Maybe, Out, Room, Text};
pub(crate) use error::{Answer, FLUSHED, Fault, complain};
pub(crate) use exports::exports;
pub(crate) use handle::{Handle, Object, Stamp};
