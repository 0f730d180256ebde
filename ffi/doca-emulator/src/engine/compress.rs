//! `doca_compress`: the exported names of the compression context and its four task types.

use std::ptr;

use crate::core::ctx::{self, Ctx};
use crate::core::dev::Dev;
use crate::core::library::Unit;
use crate::core::typed::{Of, task_functions};
use crate::engine::library::Queued;
use crate::ffi::abi::*;
use crate::ffi::{Enter, Fault, Handle, Out, complain, exports};

/// A context of this library.
pub(crate) struct Compress(Handle<Ctx>);

impl Enter<*mut doca_compress> for Compress {
    unsafe fn enter(raw: *mut doca_compress) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's; a library's pointer is its context's.
        let ctx = unsafe { Handle::<Ctx>::from_c(raw.cast()) }?;
        Queued::check(ctx, Unit::Compress).map(Compress)
    }
}

exports! {
    fn doca_compress_create(
        dev: *mut doca_dev => Handle<Dev>,
        compress: *mut *mut doca_compress => Out<*mut doca_compress>,
    ) {
        compress.put(Ctx::create(Queued(Unit::Compress), dev).to_c().cast());
        Ok(())
    }

    fn doca_compress_destroy(compress: *mut doca_compress => Compress) {
        ctx::destroy(compress.0)
    }

    fn doca_compress_as_ctx(compress: *mut doca_compress => Compress) -> *mut doca_ctx = (ptr::null_mut()) {
        compress.0.to_c()
    }

    fn doca_compress_cap_get_max_num_tasks(
        compress: *mut doca_compress => Compress,
        max_num_tasks: *mut u32 => Out<u32>,
    ) {
        max_num_tasks.put(compress.0.dev.config().tasks_max);
        Ok(())
    }
}

task_functions! {
    Deflate: doca_compress_task_compress_deflate of doca_compress as Compress,
    callback doca_compress_task_compress_deflate_completion_cb_t;
    fn doca_compress_cap_task_compress_deflate_is_supported;
    fn doca_compress_cap_task_compress_deflate_get_max_buf_size;
    fn doca_compress_cap_task_compress_deflate_get_max_buf_list_len;
    fn doca_compress_task_compress_deflate_set_conf;
    fn doca_compress_task_compress_deflate_alloc_init;
    fn doca_compress_task_compress_deflate_as_task;
    fn doca_compress_task_compress_deflate_set_src;
    fn doca_compress_task_compress_deflate_get_src;
    fn doca_compress_task_compress_deflate_set_dst;
    fn doca_compress_task_compress_deflate_get_dst;
}

task_functions! {
    Inflate: doca_compress_task_decompress_deflate of doca_compress as Compress,
    callback doca_compress_task_decompress_deflate_completion_cb_t;
    fn doca_compress_cap_task_decompress_deflate_is_supported;
    fn doca_compress_cap_task_decompress_deflate_get_max_buf_size;
    fn doca_compress_cap_task_decompress_deflate_get_max_buf_list_len;
    fn doca_compress_task_decompress_deflate_set_conf;
    fn doca_compress_task_decompress_deflate_alloc_init;
    fn doca_compress_task_decompress_deflate_as_task;
    fn doca_compress_task_decompress_deflate_set_src;
    fn doca_compress_task_decompress_deflate_get_src;
    fn doca_compress_task_decompress_deflate_set_dst;
    fn doca_compress_task_decompress_deflate_get_dst;
}

task_functions! {
    Lz4Stream: doca_compress_task_decompress_lz4_stream of doca_compress as Compress,
    callback doca_compress_task_decompress_lz4_stream_completion_cb_t;
    fn doca_compress_cap_task_decompress_lz4_stream_is_supported;
    fn doca_compress_cap_task_decompress_lz4_stream_get_max_buf_size;
    fn doca_compress_cap_task_decompress_lz4_stream_get_max_buf_list_len;
    fn doca_compress_task_decompress_lz4_stream_set_conf;
    fn doca_compress_task_decompress_lz4_stream_alloc_init(
        has_block_checksum => set_has_block_checksum,
        are_blocks_independent => set_are_blocks_independent
    );
    fn doca_compress_task_decompress_lz4_stream_as_task;
    fn doca_compress_task_decompress_lz4_stream_set_src;
    fn doca_compress_task_decompress_lz4_stream_get_src;
    fn doca_compress_task_decompress_lz4_stream_set_dst;
    fn doca_compress_task_decompress_lz4_stream_get_dst;
}

task_functions! {
    Lz4Block: doca_compress_task_decompress_lz4_block of doca_compress as Compress,
    callback doca_compress_task_decompress_lz4_block_completion_cb_t;
    fn doca_compress_cap_task_decompress_lz4_block_is_supported;
    fn doca_compress_cap_task_decompress_lz4_block_get_max_buf_size;
    fn doca_compress_cap_task_decompress_lz4_block_get_max_buf_list_len;
    fn doca_compress_task_decompress_lz4_block_set_conf;
    fn doca_compress_task_decompress_lz4_block_alloc_init;
    fn doca_compress_task_decompress_lz4_block_as_task;
    fn doca_compress_task_decompress_lz4_block_set_src;
    fn doca_compress_task_decompress_lz4_block_get_src;
    fn doca_compress_task_decompress_lz4_block_set_dst;
    fn doca_compress_task_decompress_lz4_block_get_dst;
}

type Deflate = doca_compress_task_compress_deflate;
type Inflate = doca_compress_task_decompress_deflate;
type Stream = doca_compress_task_decompress_lz4_stream;
type Block = doca_compress_task_decompress_lz4_block;

exports! {
    fn doca_compress_task_compress_deflate_get_crc_cs(task: *const Deflate => Of<Deflate>) -> u32 = (0) {
        task.crc()
    }

    fn doca_compress_task_compress_deflate_get_adler_cs(task: *const Deflate => Of<Deflate>) -> u32 = (0) {
        task.second_sum()
    }

    fn doca_compress_task_decompress_deflate_get_crc_cs(task: *const Inflate => Of<Inflate>) -> u32 = (0) {
        task.crc()
    }

    fn doca_compress_task_decompress_deflate_get_adler_cs(task: *const Inflate => Of<Inflate>) -> u32 = (0) {
        task.second_sum()
    }

    fn doca_compress_task_decompress_lz4_stream_get_crc_cs(task: *const Stream => Of<Stream>) -> u32 = (0) {
        task.crc()
    }

    fn doca_compress_task_decompress_lz4_stream_get_xxh_cs(task: *const Stream => Of<Stream>) -> u32 = (0) {
        task.second_sum()
    }

    fn doca_compress_task_decompress_lz4_block_get_crc_cs(task: *const Block => Of<Block>) -> u32 = (0) {
        task.crc()
    }

    fn doca_compress_task_decompress_lz4_block_get_xxh_cs(task: *const Block => Of<Block>) -> u32 = (0) {
        task.second_sum()
    }

    fn doca_compress_task_decompress_lz4_stream_set_has_block_checksum(
        task: *mut Stream => Of<Stream>,
        has_block_checksum: u8,
    ) -> () = (complain("set_has_block_checksum: not an lz4 stream task")) {
        task.set_has_block_checksum(has_block_checksum)
    }

    fn doca_compress_task_decompress_lz4_stream_get_has_block_checksum(task: *const Stream => Of<Stream>) -> u8 = (0) {
        task.has_block_checksum()
    }

    fn doca_compress_task_decompress_lz4_stream_set_are_blocks_independent(
        task: *mut Stream => Of<Stream>,
        are_blocks_independent: u8,
    ) -> () = (complain("set_are_blocks_independent: not an lz4 stream task")) {
        task.set_are_blocks_independent(are_blocks_independent)
    }

    fn doca_compress_task_decompress_lz4_stream_get_are_blocks_independent(
        task: *const Stream => Of<Stream>,
    ) -> u8 = (0) {
        task.are_blocks_independent()
    }
}
