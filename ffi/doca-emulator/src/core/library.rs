//! What the core asks of the libraries above it, so that it knows none of them.

use std::any::Any;
use std::sync::Arc;

use crate::config::Config;
use crate::core::ctx::Ctx;
use crate::core::pool::Fifo;
use crate::core::task::Task;
use crate::ffi::abi::doca_ctx_states;
use crate::ffi::{Answer, Fault, Handle};

/// What a context is beside being one: the part of the library that made it.
pub(crate) trait Library: Any {
    /// The device's engine that runs the tasks; None where the library sends them itself.
    fn unit(&self) -> Option<Unit> {
        None
    }

    /// Starts a context that has its tasks; the state that this leads to.
    fn start(&self, ctx: Handle<Ctx>) -> Result<doca_ctx_states, Fault>;

    /// Sends a task that no engine runs. It is in flight from here on, unless refused.
    fn send(&self, task: Handle<Task>) -> Answer;

    /// Takes in one of the events that were posted for the context.
    fn hear(&self, ctx: Handle<Ctx>);

    /// Flushes what the library has in flight, because the context stops.
    fn begin_stop(&self, ctx: Handle<Ctx>);

    /// Lets go of what a running context holds, because it becomes idle.
    fn finish_stop(&self) {}

    /// Whether a failed task stops the context.
    fn stops_on_failure(&self) -> bool {
        true
    }
}

/// An engine of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Compress,
    Dma,
}

/// What a device's engines do for its contexts and imports.
pub(crate) trait Engines {
    /// Starts the threads of one if they do not run yet.
    fn start(&self, unit: Unit, config: &Config) -> Answer;

    /// Takes submitted tasks over, in order.
    fn take_in(&self, unit: Unit, tasks: Fifo);

    /// Makes the lane of an exporter that carries its bytes itself, named by its courier; None where there can be none.
    fn lane(&self, courier: u64, config: &Config) -> Option<Arc<dyn Any + Send + Sync>>;
}

/// The way of a message to its peer.
pub(crate) trait MessageRoute {
    /// Sends a control message. `task` is in flight from here on.
    fn send_message(&self, message: &[u8], task: Handle<Task>);
}
