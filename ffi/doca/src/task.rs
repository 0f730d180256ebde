//! The three task types that we use, behind one shape, and the callbacks that record them.
//!
//! A callback decodes, records, returns: it pushes one [`Fired`] to its context's sink, a fixed-capacity list local to
//! the engine's thread, and the context takes it from there after `doca_pe_progress` has returned.

use std::cell::RefCell;
use std::ptr;

use doca_sys as sys;

use crate::context::CompressedFormat;
use crate::error::Error;

/// One completed task, as its callback saw it.
#[derive(Clone, Copy)]
pub(crate) struct Fired {
    /// Place and generation in the context's task table (never a pointer).
    pub user: u64,
    pub succeeded: bool,
}

thread_local! {
    /// Sinks of this thread's contexts, by context id. Capacity is reserved when a context is made.
    static SINKS: RefCell<Vec<Option<Vec<Fired>>>> = const { RefCell::new(Vec::new()) };
}

/// Reserves a sink for a context with at most `tasks` in flight; its index is the context's DOCA user data.
pub(crate) fn open_sink(tasks: usize) -> usize {
    SINKS.with_borrow_mut(|sinks| {
        let sink = Some(Vec::with_capacity(tasks));
        match sinks.iter().position(Option::is_none) {
            Some(index) => {
                sinks[index] = sink;
                index
            }
            None => {
                sinks.push(sink);
                sinks.len() - 1
            }
        }
    })
}

pub(crate) fn close_sink(index: usize) {
    SINKS.with_borrow_mut(|sinks| sinks[index] = None);
}

/// Oldest completion of a context that was not yet taken.
pub(crate) fn take_fired(index: usize, taken: &mut Vec<Fired>) {
    SINKS.with_borrow_mut(|sinks| {
        if let Some(sink) = sinks.get_mut(index).and_then(Option::as_mut) {
            taken.append(sink);
        }
    });
}

/// The callback of every task type, for success and failure.
///
/// # Safety
/// Called by DOCA inside `doca_pe_progress`, with the user data that this crate gave to the task and its context.
unsafe extern "C" fn fired<T, const SUCCEEDED: bool>(_task: *mut T, user: sys::doca_data, context: sys::doca_data) {
    // SAFETY: both unions were written as u64 by this crate.
    let (user, context) = unsafe { (user.u64_, context.u64_) };
    SINKS.with(|sinks| {
        // No unwinding through C: a sink that is borrowed or missing is our bug, and the task then shows as lost.
        if let Ok(mut sinks) = sinks.try_borrow_mut()
            && let Some(Some(sink)) = sinks.get_mut(context as usize)
        {
            sink.push(Fired { user, succeeded: SUCCEEDED });
        }
    });
}

/// A task of one of the types, allocated from its context's pool.
#[derive(Clone, Copy)]
pub(crate) enum Task {
    Memcpy(*mut sys::doca_dma_task_memcpy),
    Inflate(*mut sys::doca_compress_task_decompress_deflate),
    Lz4(*mut sys::doca_compress_task_decompress_lz4_block),
}

pub(crate) fn configure_dma(dma: *mut sys::doca_dma, tasks: u32) -> Result<(), Error> {
    type T = sys::doca_dma_task_memcpy;
    // SAFETY: the context is live and idle; the callbacks are static functions of the right type.
    unsafe { call!(doca_dma_task_memcpy_set_conf(dma, Some(fired::<T, true>), Some(fired::<T, false>), tasks)) }
}

pub(crate) fn configure_decompress(
    compress: *mut sys::doca_compress,
    format: CompressedFormat,
    tasks: u32,
) -> Result<(), Error> {
    type D = sys::doca_compress_task_decompress_deflate;
    type L = sys::doca_compress_task_decompress_lz4_block;
    // SAFETY: the context is live and idle; the callbacks are static functions of the right type.
    unsafe {
        match format {
            CompressedFormat::Deflate => call!(doca_compress_task_decompress_deflate_set_conf(
                compress,
                Some(fired::<D, true>),
                Some(fired::<D, false>),
                tasks
            )),
            CompressedFormat::Lz4Block => call!(doca_compress_task_decompress_lz4_block_set_conf(
                compress,
                Some(fired::<L, true>),
                Some(fired::<L, false>),
                tasks
            )),
        }
    }
}

impl Task {
    pub(crate) fn memcpy(
        dma: *mut sys::doca_dma,
        source: *mut sys::doca_buf,
        destination: *mut sys::doca_buf,
        user: u64,
    ) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        let user = sys::doca_data { u64_: user };
        // SAFETY: context running, buffers live and owned by the caller until the task is freed; `raw` is a valid
        // place.
        unsafe { call!(doca_dma_task_memcpy_alloc_init(dma, source, destination, user, &raw mut raw)) }?;
        Ok(Self::Memcpy(raw))
    }

    pub(crate) fn decompress(
        compress: *mut sys::doca_compress,
        format: CompressedFormat,
        source: *mut sys::doca_buf,
        destination: *mut sys::doca_buf,
        user: u64,
    ) -> Result<Self, Error> {
        let user = sys::doca_data { u64_: user };
        match format {
            CompressedFormat::Deflate => {
                let mut raw = ptr::null_mut();
                // SAFETY: as in `memcpy`.
                unsafe {
                    call!(doca_compress_task_decompress_deflate_alloc_init(
                        compress,
                        source,
                        destination,
                        user,
                        &raw mut raw
                    ))
                }?;
                Ok(Self::Inflate(raw))
            }
            CompressedFormat::Lz4Block => {
                let mut raw = ptr::null_mut();
                // SAFETY: as in `memcpy`.
                unsafe {
                    call!(doca_compress_task_decompress_lz4_block_alloc_init(
                        compress,
                        source,
                        destination,
                        user,
                        &raw mut raw
                    ))
                }?;
                Ok(Self::Lz4(raw))
            }
        }
    }

    fn base(self) -> *mut sys::doca_task {
        // SAFETY: a `Task` holds a live task of its type until `free`, after which its place in the table is empty.
        unsafe {
            match self {
                Self::Memcpy(task) => sys::doca_dma_task_memcpy_as_task(task),
                Self::Inflate(task) => sys::doca_compress_task_decompress_deflate_as_task(task),
                Self::Lz4(task) => sys::doca_compress_task_decompress_lz4_block_as_task(task),
            }
        }
    }

    /// Hands the task to its engine; on an error the caller keeps it.
    pub(crate) fn submit(self) -> Result<(), Error> {
        // SAFETY: initialised in a constructor and not in flight.
        unsafe { call!(doca_task_submit(self.base())) }
    }

    /// Why it failed.
    pub(crate) fn status(self) -> Error {
        // SAFETY: the task is live and completed.
        let code = unsafe { sys::doca_task_get_status(self.base()) };
        Error::new("doca_task_submit", crate::error::Code(code.0))
    }

    /// CRC-32 of the output; valid only after success.
    pub(crate) fn crc(self) -> Option<u32> {
        // SAFETY: the task is live and completed with success (the caller's duty).
        unsafe {
            match self {
                Self::Memcpy(_) => None,
                Self::Inflate(task) => Some(sys::doca_compress_task_decompress_deflate_get_crc_cs(task)),
                Self::Lz4(task) => Some(sys::doca_compress_task_decompress_lz4_block_get_crc_cs(task)),
            }
        }
    }

    pub(crate) fn free(self) {
        // SAFETY: the task is live and not in flight; its place is emptied by the caller, so this runs once.
        unsafe { sys::doca_task_free(self.base()) }
    }
}
