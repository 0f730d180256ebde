//! What a panic on a thread of the emulator's own does.

use std::process;
use std::thread;

/// Held by such a thread: a dead one would leave the application waiting for ever, so its panic ends the process, as
/// one in an exported function does.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            process::abort();
        }
    }
}
