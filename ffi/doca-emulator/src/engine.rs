//! The engines: threads that decompress, compress and copy, and the libraries whose contexts submit to them.

mod clock;
mod codec;
mod compress;
mod dma;
mod lane;
mod library;
mod memo;
mod open;
mod queue;
mod threads;
