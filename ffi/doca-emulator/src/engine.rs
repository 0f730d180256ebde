//! The engines: threads that decompress, compress and copy, and the libraries whose contexts submit to them.

mod clock;
mod codec;
mod compress;
mod dma;
pub(crate) mod lane;
pub(crate) mod memo;
mod queue;
pub(crate) mod threads;
