//! `doca_dma`: the exported names of the copy context and its one task type.

use std::ptr;

use crate::core::ctx::{self, Ctx};
use crate::core::dev::Dev;
use crate::core::library::Unit;
use crate::core::typed::task_functions;
use crate::engine::library::Queued;
use crate::ffi::abi::{doca_ctx, doca_dev, doca_dma};
use crate::ffi::{Enter, Fault, Handle, Out, exports};

/// A context of this library.
pub(crate) struct Dma(Handle<Ctx>);

impl Enter<*mut doca_dma> for Dma {
    unsafe fn enter(raw: *mut doca_dma) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's; a library's pointer is its context's.
        let ctx = unsafe { Handle::<Ctx>::from_c(raw.cast()) }?;
        Queued::check(ctx, Unit::Dma).map(Dma)
    }
}

exports! {
    fn doca_dma_create(dev: *mut doca_dev => Handle<Dev>, dma: *mut *mut doca_dma => Out<*mut doca_dma>) {
        dma.put(Ctx::create(Queued(Unit::Dma), dev).to_c().cast());
        Ok(())
    }

    fn doca_dma_destroy(dma: *mut doca_dma => Dma) {
        ctx::destroy(dma.0)
    }

    fn doca_dma_as_ctx(dma: *mut doca_dma => Dma) -> *mut doca_ctx = (ptr::null_mut()) {
        dma.0.to_c()
    }

    fn doca_dma_cap_get_max_num_tasks(dma: *mut doca_dma => Dma, max_num_tasks: *mut u32 => Out<u32>) {
        max_num_tasks.put(dma.0.dev.config().tasks_max);
        Ok(())
    }
}

task_functions! {
    Memcpy: doca_dma_task_memcpy of doca_dma as Dma,
    callback doca_dma_task_memcpy_completion_cb_t;
    fn doca_dma_cap_task_memcpy_is_supported;
    fn doca_dma_cap_task_memcpy_get_max_buf_size;
    fn doca_dma_cap_task_memcpy_get_max_buf_list_len;
    fn doca_dma_task_memcpy_set_conf;
    fn doca_dma_task_memcpy_alloc_init;
    fn doca_dma_task_memcpy_as_task;
    fn doca_dma_task_memcpy_set_src;
    fn doca_dma_task_memcpy_get_src;
    fn doca_dma_task_memcpy_set_dst;
    fn doca_dma_task_memcpy_get_dst;
}
