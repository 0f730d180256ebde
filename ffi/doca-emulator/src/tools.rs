//! What every room uses (debug mode, sockets), and two libraries of their own: logs and command lines.

pub(crate) mod abort;
mod argp;
pub(crate) mod debug;
pub(crate) mod guard;
mod log;
pub(crate) mod packet;
