//! The C boundary: the bindings of our own headers, raw arguments to checked values, error codes.

pub mod abi;
pub(crate) mod door;
pub(crate) mod error;
