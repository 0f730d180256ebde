//! Memory that tasks reach: of this process, and of others that exported it.

mod caller;
pub(crate) mod copy;
mod courier;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod region;
mod remote;
mod window;
