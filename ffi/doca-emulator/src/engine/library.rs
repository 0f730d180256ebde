//! The library behind contexts whose tasks an engine of the device runs.

use crate::core::ctx::Ctx;
use crate::core::library::{Library, Unit};
use crate::core::task::Task;
use crate::ffi::abi::doca_ctx_states;
use crate::ffi::{Answer, Fault, Handle};

/// `doca_compress` or `doca_dma`.
pub(crate) struct Queued(pub(crate) Unit);

impl Queued {
    /// Checks that a library's pointer, which is its context's, is of this unit.
    pub(crate) fn check(ctx: Handle<Ctx>, unit: Unit) -> Result<Handle<Ctx>, Fault> {
        if ctx.library.unit() == Some(unit) { Ok(ctx) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
    }
}

impl Library for Queued {
    fn unit(&self) -> Option<Unit> {
        Some(self.0)
    }

    fn start(&self, ctx: Handle<Ctx>) -> Result<doca_ctx_states, Fault> {
        if !ctx.has_tasks() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        ctx.dev.engines.start(self.0, ctx.dev.config())?;
        Ok(doca_ctx_states::DOCA_CTX_STATE_RUNNING)
    }

    fn send(&self, _: Handle<Task>) -> Answer {
        Err(Fault::DOCA_ERROR_UNEXPECTED)
    }

    fn hear(&self, _: Handle<Ctx>) {}

    fn begin_stop(&self, _: Handle<Ctx>) {}
}
