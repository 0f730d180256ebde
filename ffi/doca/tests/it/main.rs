//! Claims about the wrapper, over the emulator.

mod comch;
mod wrapper;
