//! Claims about what the engines do with bytes.

use crate::rig::c::*;
use crate::rig::*;

const BLOCK: usize = if cfg!(miri) { 8 << 10 } else { 256 << 10 };

struct Bench {
    context: Context,
    engine: Engine,
    inventory: Inventory,
    device: Device,
}

fn compress_bench(config: &str) -> Bench {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::compress(&device, &engine);
    Bench { context, engine, inventory: Inventory::new(1024), device }
}

fn dma_bench(config: &str) -> Bench {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    Bench { context, engine, inventory: Inventory::new(1024), device }
}

impl Bench {
    /// Chained bufs of the given lengths, one behind the other in memory.
    fn list(&self, memory: &Memory, lengths: &[usize], is_source: bool) -> *mut doca_buf {
        let mut at = 0;
        let bufs: Vec<_> = lengths
            .iter()
            .map(|len| {
                at += len;
                self.inventory.get(memory, at - len, *len, if is_source { *len } else { 0 }).expect("a buf")
            })
            .collect();
        self.inventory.chain(&bufs)
    }

    fn restart(&self) {
        self.context.stop(&self.engine);
        self.context.completions();
        ok(unsafe { doca_ctx_start(self.context.ctx) });
    }

    /// Runs one inflate over lists cut like this; gives bytes made, or the error after a restart.
    fn inflate(&self, source: &Memory, cuts: &[usize], into: &Memory, room: &[usize]) -> Result<usize, doca_error> {
        let (src, dst) = (self.list(source, cuts, true), self.list(into, room, false));
        let status = self.context.run(&self.engine, self.context.inflate(0, src, dst).expect("a task"));
        let made = room_used(dst);
        give_back(src);
        give_back(dst);
        if status == E::DOCA_SUCCESS {
            return Ok(made);
        }
        assert_eq!((made, self.context.state()), (0, STOPPING));
        self.restart();
        Err(status)
    }

    fn memcpy(&self, src: *mut doca_buf, dst: *mut doca_buf) -> Result<usize, doca_error> {
        let status = self.context.run(&self.engine, self.context.memcpy(0, src, dst).expect("a task"));
        let made = room_used(dst);
        give_back(src);
        give_back(dst);
        if status == E::DOCA_SUCCESS {
            return Ok(made);
        }
        self.restart();
        Err(status)
    }
}

fn room_used(head: *mut doca_buf) -> usize {
    let mut total = 0;
    let mut buf = head;
    while !buf.is_null() {
        total += data_len(buf);
        buf = out(|next| unsafe { doca_buf_get_next_in_list(buf, next) }).expect("a next");
    }
    total
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn deflate_comes_out_whole_with_both_checksums() {
    let bench = compress_bench("");
    let plain = sample(BLOCK, 1);
    let source = Memory::new(&bench.device, &deflated(&plain));
    let into = Memory::zeroed(&bench.device, BLOCK);
    let (src, dst) = (bench.list(&source, &[source.len], true), bench.list(&into, &[BLOCK], false));
    unsafe {
        let task = out(|task| {
            doca_compress_task_decompress_deflate_alloc_init(bench.context.compress_raw(), src, dst, number(3), task)
        })
        .expect("a task");
        assert_eq!(doca_compress_task_decompress_deflate_get_src(task), src.cast_const());
        assert_eq!(doca_compress_task_decompress_deflate_get_dst(task), dst);
        ok(doca_task_submit(doca_compress_task_decompress_deflate_as_task(task)));
        bench.engine.progress_until(|| bench.context.completed() == 1);
        assert_eq!(bench.context.completions()[0].id, 3);
        assert_eq!(doca_compress_task_decompress_deflate_get_crc_cs(task), crc32fast::hash(&plain));
        assert_eq!(doca_compress_task_decompress_deflate_get_adler_cs(task), libdeflater::adler32(&plain));
        doca_task_free(doca_compress_task_decompress_deflate_as_task(task));
    }
    assert_eq!(into.bytes(), plain);
    assert_eq!(data_len(dst), BLOCK);
    give_back(src);
    give_back(dst);
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn lists_of_any_cut_inflate_on_both_sides() {
    let bench = compress_bench("");
    let plain = sample(BLOCK, 2);
    let packed = deflated(&plain);
    let source = Memory::new(&bench.device, &packed);
    let rest = packed.len() - 1011;
    for (cuts, room) in [
        (vec![packed.len()], vec![BLOCK]),
        (vec![11, 1000, rest], vec![BLOCK]),
        (vec![packed.len()], vec![1, BLOCK / 2, BLOCK / 2 - 1]),
        (vec![11, 1000, rest], vec![BLOCK / 4, BLOCK / 4, BLOCK / 4, BLOCK / 4]),
    ] {
        let into = Memory::zeroed(&bench.device, BLOCK);
        assert_eq!(bench.inflate(&source, &cuts, &into, &room), Ok(BLOCK), "{cuts:?} into {room:?}");
        assert_eq!(into.bytes(), plain);
    }
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn a_destination_may_be_longer_than_the_output() {
    let bench = compress_bench("");
    let source = Memory::new(&bench.device, &deflated(&sample(5000, 3)));
    let into = Memory::zeroed(&bench.device, 9000);
    assert_eq!(bench.inflate(&source, &[source.len], &into, &[3000, 3000, 3000]), Ok(5000));
    assert_eq!(into.bytes_at(0, 5000), sample(5000, 3));
    assert!(into.bytes_at(5000, 4000).iter().all(|byte| *byte == 0));
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn corrupt_torn_oversized_and_short_inputs_fail_and_never_crash() {
    let bench = compress_bench("");
    let plain = sample(BLOCK, 4);
    let packed = deflated(&plain);
    let into = Memory::zeroed(&bench.device, BLOCK);
    let mut wrong = packed.clone();
    wrong[0] |= 6; // block type 3 does not exist
    for bytes in [&wrong[..], &packed[..packed.len() / 2]] {
        let source = Memory::new(&bench.device, bytes);
        bench.inflate(&source, &[bytes.len()], &into, &[BLOCK]).expect_err("bad input");
    }
    let source = Memory::new(&bench.device, &packed);
    bench.inflate(&source, &[packed.len()], &into, &[BLOCK - 1]).expect_err("one byte short");
    let whole = Memory::zeroed(&bench.device, (2 << 20) + 1);
    bench.inflate(&source, &[packed.len()], &whole, &[whole.len]).expect_err("a destination over the maximum");
    bench.inflate(&whole, &[whole.len], &into, &[BLOCK]).expect_err("a source over the maximum");
    let cuts = [vec![1; 128], vec![packed.len() - 128]].concat();
    bench.inflate(&source, &cuts, &into, &[BLOCK]).expect_err("a list over the maximum");
    bench.inflate(&source, &cuts[1..], &into, &[BLOCK]).expect_err("not the whole stream");
    let longest = [vec![1; 127], vec![packed.len() - 127]].concat();
    assert_eq!(bench.inflate(&source, &longest, &into, &[BLOCK]), Ok(BLOCK), "just the longest list");
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn deflate_is_raw_and_a_wrapper_is_corrupt_input() {
    let bench = compress_bench("");
    let plain = sample(1000, 14);
    let into = Memory::zeroed(&bench.device, 1000);
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut packed = vec![0; 2000];
    let zlib = compressor.zlib_compress(&plain, &mut packed).expect("room");
    let wrapped = Memory::new(&bench.device, &packed[..zlib]);
    bench.inflate(&wrapped, &[zlib], &into, &[1000]).expect_err("zlib's wrapper");
    let bare = Memory::new(&bench.device, &packed[2..zlib - 4]);
    assert_eq!(bench.inflate(&bare, &[zlib - 6], &into, &[1000]), Ok(1000), "what it wraps");
    let gzip = compressor.gzip_compress(&plain, &mut packed).expect("room");
    let wrapped = Memory::new(&bench.device, &packed[..gzip]);
    bench.inflate(&wrapped, &[gzip], &into, &[1000]).expect_err("gzip's wrapper");
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn a_failed_task_has_no_checksums_and_no_output() {
    let bench = compress_bench("");
    let source = Memory::new(&bench.device, &[7; 100]);
    let into = Memory::zeroed(&bench.device, 1000);
    let (src, dst) = (bench.list(&source, &[100], true), bench.list(&into, &[1000], false));
    unsafe {
        let task = out(|task| {
            doca_compress_task_decompress_deflate_alloc_init(bench.context.compress_raw(), src, dst, number(0), task)
        })
        .expect("a task");
        ok(doca_task_submit(doca_compress_task_decompress_deflate_as_task(task)));
        bench.engine.progress_until(|| bench.context.completed() == 1);
        assert!(bench.context.completions()[0].through_error_cb);
        assert_eq!(doca_compress_task_decompress_deflate_get_crc_cs(task), 0);
        assert_eq!(doca_compress_task_decompress_deflate_get_adler_cs(task), 0);
        doca_task_free(doca_compress_task_decompress_deflate_as_task(task));
    }
    assert_eq!(data_len(dst), 0);
    bench.context.stop(&bench.engine);
    [src, dst].into_iter().for_each(give_back);
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn inflate_respects_the_permissions_of_an_import() {
    let bench = compress_bench("");
    let source = Memory::new(&bench.device, &deflated(&sample(1000, 15)));
    let exported = Memory::with_access(&bench.device, &[1; 1000], PCI_RO);
    let import = Memory::import(&bench.device, &exported.blob(&bench.device).expect("a blob")).expect("an import");
    bench.inflate(&source, &[source.len], &import, &[1000]).expect_err("pci read only");
    assert_eq!(exported.bytes(), [1; 1000]);
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn a_source_that_overlaps_its_destination_still_inflates() {
    let bench = compress_bench("");
    let plain = sample(4096, 5);
    let packed = deflated(&plain);
    let memory = Memory::zeroed(&bench.device, 4096);
    memory.fill(0, &packed);
    assert_eq!(bench.inflate(&memory, &[packed.len()], &memory, &[4096]), Ok(4096));
    assert_eq!(memory.bytes(), plain);
}

#[test]
fn lz4_block_and_stream_report_swapped_xxhash() {
    let bench = compress_bench("");
    let compress = bench.context.compress_raw();
    let plain = sample(BLOCK, 6);
    let block = lz4_flex::block::compress(&plain);
    let mut stream = (block.len() as u32).to_le_bytes().to_vec();
    stream.extend(&block);
    let into = Memory::zeroed(&bench.device, BLOCK);
    let block = Memory::new(&bench.device, &block);
    let stream = Memory::new(&bench.device, &stream);
    let (src, dst) = (bench.list(&block, &[block.len], true), bench.list(&into, &[BLOCK], false));
    let sums = unsafe {
        let task = out(|task| doca_compress_task_decompress_lz4_block_alloc_init(compress, src, dst, number(0), task))
            .expect("a task");
        ok(doca_task_submit(doca_compress_task_decompress_lz4_block_as_task(task)));
        bench.engine.progress_until(|| bench.context.completed() == 1);
        let sums = [
            doca_compress_task_decompress_lz4_block_get_crc_cs(task),
            doca_compress_task_decompress_lz4_block_get_xxh_cs(task),
        ];
        doca_task_free(doca_compress_task_decompress_lz4_block_as_task(task));
        sums
    };
    assert_eq!(into.bytes(), plain);
    assert_eq!(sums[0], crc32fast::hash(&plain));

    give_back(src);
    into.fill(0, &vec![0; BLOCK]);
    ok(unsafe { doca_buf_reset_data_len(dst) });
    let src = bench.list(&stream, &[5, stream.len - 5], true);
    unsafe {
        let task =
            out(|task| doca_compress_task_decompress_lz4_stream_alloc_init(compress, 1, 0, src, dst, number(0), task))
                .expect("a task");
        assert_eq!(doca_compress_task_decompress_lz4_stream_get_has_block_checksum(task), 1);
        assert_eq!(doca_compress_task_decompress_lz4_stream_get_are_blocks_independent(task), 0);
        doca_compress_task_decompress_lz4_stream_set_has_block_checksum(task, 0);
        doca_compress_task_decompress_lz4_stream_set_are_blocks_independent(task, 1);
        ok(doca_task_submit(doca_compress_task_decompress_lz4_stream_as_task(task)));
        bench.engine.progress_until(|| bench.context.completed() == 2);
        assert_eq!(doca_compress_task_decompress_lz4_stream_get_crc_cs(task), sums[0]);
        assert_eq!(doca_compress_task_decompress_lz4_stream_get_xxh_cs(task), sums[1]);
        doca_task_free(doca_compress_task_decompress_lz4_stream_as_task(task));
    }
    assert_eq!(into.bytes(), plain);
    give_back(src);
    give_back(dst);
}

/// The xxHash-32 of "abc" is 0x32D153FF in the literature; the card gives it the other way round.
#[test]
fn xxhash_comes_with_its_bytes_swapped() {
    let bench = compress_bench("");
    let compress = bench.context.compress_raw();
    let block = Memory::new(&bench.device, b"\x30abc");
    let into = Memory::zeroed(&bench.device, 16);
    let (src, dst) = (bench.list(&block, &[4], true), bench.list(&into, &[16], false));
    unsafe {
        let task = out(|task| doca_compress_task_decompress_lz4_block_alloc_init(compress, src, dst, number(0), task));
        let task = task.expect("a task");
        ok(doca_task_submit(doca_compress_task_decompress_lz4_block_as_task(task)));
        bench.engine.progress_until(|| bench.context.completed() == 1);
        assert_eq!(doca_compress_task_decompress_lz4_block_get_xxh_cs(task), 0xff53_d132);
        doca_task_free(doca_compress_task_decompress_lz4_block_as_task(task));
    }
    assert_eq!(into.bytes_at(0, 3), b"abc");
    [src, dst].into_iter().for_each(give_back);
}

#[test]
fn an_lz4_stream_has_no_frame_header_and_no_end_mark() {
    let bench = compress_bench("");
    let compress = bench.context.compress_raw();
    let blocks = b"\x04\0\0\0\x30abc".to_vec();
    let header = [&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82][..], &blocks].concat();
    let end_mark = [&blocks[..], &[0; 4]].concat();
    for (stream, is_good) in [(blocks, true), (header, false), (end_mark, false)] {
        let stream = Memory::new(&bench.device, &stream);
        let into = Memory::zeroed(&bench.device, 64);
        let (src, dst) = (bench.list(&stream, &[stream.len], true), bench.list(&into, &[64], false));
        let task = out(|task| unsafe {
            doca_compress_task_decompress_lz4_stream_alloc_init(compress, 0, 1, src, dst, number(0), task)
        });
        let task = unsafe { doca_compress_task_decompress_lz4_stream_as_task(task.expect("a task")) };
        assert_eq!(bench.context.run(&bench.engine, task) == E::DOCA_SUCCESS, is_good);
        [src, dst].into_iter().for_each(give_back);
        bench.restart();
    }
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn a_bluefield_2_deflates_what_it_inflates() {
    let bench = compress_bench("profile=bf2,decompress_threads=1");
    let compress = bench.context.compress_raw();
    let plain = Memory::new(&bench.device, &sample(BLOCK, 7));
    let packed = Memory::zeroed(&bench.device, BLOCK + 4096);
    let (src, dst) = (bench.list(&plain, &[BLOCK], true), bench.list(&packed, &[packed.len], false));
    unsafe {
        let task =
            out(|task| doca_compress_task_compress_deflate_alloc_init(compress, src, dst, number(0), task)).expect("a");
        ok(doca_task_submit(doca_compress_task_compress_deflate_as_task(task)));
        bench.engine.progress_until(|| bench.context.completed() == 1);
        assert_eq!(doca_compress_task_compress_deflate_get_crc_cs(task), crc32fast::hash(&plain.bytes()));
        doca_task_free(doca_compress_task_compress_deflate_as_task(task));
    }
    let packed_len = data_len(dst);
    assert!(packed_len < BLOCK, "{packed_len}");
    give_back(src);
    give_back(dst);
    let into = Memory::zeroed(&bench.device, BLOCK);
    assert_eq!(bench.inflate(&packed, &[packed_len], &into, &[BLOCK]), Ok(BLOCK));
    assert_eq!(into.bytes(), plain.bytes());
}

#[test]
fn dma_copies_between_lists_of_different_cuts() {
    let bench = dma_bench("");
    let source = Memory::new(&bench.device, &sample(10_000, 8));
    for (cuts, room) in [
        (vec![10_000], vec![10_000]),
        (vec![1, 9_998, 1], vec![4_999, 5_001]),
        (vec![100; 100], vec![10_000]),
        (vec![79; 126], vec![156; 64]),
    ] {
        let total: usize = cuts.iter().sum();
        let into = Memory::zeroed(&bench.device, 10_000);
        let (src, dst) = (bench.list(&source, &cuts, true), bench.list(&into, &room, false));
        assert_eq!(bench.memcpy(src, dst), Ok(total));
        assert_eq!(into.bytes_at(0, total), source.bytes_at(0, total));
        assert!(into.bytes_at(total, 10_000 - total).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_small_copy_is_made_by_submit_and_told_by_progress() {
    let bench = dma_bench("quiet=1,inline_bytes=64");
    for len in [64, 65] {
        let bytes = sample(len, 5);
        let from = Memory::new(&bench.device, &bytes);
        let into = Memory::zeroed(&bench.device, len);
        let (src, dst) = (bench.list(&from, &[len], true), bench.list(&into, &[len], false));
        let task = bench.context.memcpy(9, src, dst).expect("a task");
        ok(unsafe { doca_task_submit(task) });
        if len == 64 {
            assert_eq!(into.bytes(), bytes, "made by submit");
        }
        assert_eq!((bench.context.completed(), bench.context.inflight(), room_used(dst)), (0, 1, 0));
        bench.engine.progress_until(|| bench.context.completed() == 1);
        assert_eq!((room_used(dst), into.bytes() == bytes), (len, true));
        unsafe { doca_task_free(task) };
        bench.context.completions();
        give_back(src);
        give_back(dst);
    }
}

#[test]
fn dma_appends_behind_the_destinations_data() {
    let bench = dma_bench("");
    let source = Memory::new(&bench.device, b"world");
    let into = Memory::new(&bench.device, b"hello ......");
    let src = bench.inventory.source(&source, 0, 5);
    let dst = bench.inventory.get(&into, 0, 12, 6).expect("a buf");
    assert_eq!(bench.memcpy(src, dst), Ok(11));
    assert_eq!(into.bytes(), b"hello world.");
}

#[test]
fn a_source_is_its_data_and_any_address_will_do() {
    let bench = dma_bench("");
    let source = Memory::new(&bench.device, b"..hello.....");
    let into = Memory::new(&bench.device, &[b'-'; 9]);
    let src = bench.inventory.get(&source, 1, 9, 0).expect("a buf");
    ok(unsafe { doca_buf_set_data(src, source.at(2), 5) });
    let dst = bench.inventory.destination(&into, 3, 6);
    assert_eq!(bench.memcpy(src, dst), Ok(5));
    assert_eq!(into.bytes(), b"---hello-");
}

#[test]
fn dma_refuses_nothing_too_much_and_too_little_room() {
    let bench = dma_bench("");
    let large = Memory::zeroed(&bench.device, (2 << 20) + 1);
    let buf = |len| bench.inventory.source(&large, 0, len);
    let room = |len| bench.inventory.destination(&large, 0, len);
    bench.memcpy(buf(0), room(10)).expect_err("an empty source");
    bench.memcpy(buf(10), room(9)).expect_err("no room");
    bench.memcpy(buf(large.len), room(large.len)).expect_err("over the maximum");
    assert_eq!(bench.memcpy(buf(large.len - 1), room(large.len)), Ok(2 << 20));
}

#[test]
fn dma_respects_permissions() {
    let bench = dma_bench("");
    let plain = Memory::new(&bench.device, &sample(64, 9));
    let read_only = Memory::with_access(&bench.device, &[0; 64], 0);
    let exported = Memory::with_access(&bench.device, &[1; 64], PCI_RO);
    let import = Memory::import(&bench.device, &exported.blob(&bench.device).expect("a blob")).expect("an import");
    let source = |memory| bench.inventory.source(memory, 0, 64);
    let room = |memory| bench.inventory.destination(memory, 0, 64);
    bench.memcpy(source(&plain), room(&read_only)).expect_err("local read only");
    bench.memcpy(source(&plain), room(&import)).expect_err("pci read only");
    assert_eq!(exported.bytes(), [1; 64]);
    assert_eq!(bench.memcpy(source(&import), room(&plain)), Ok(64));
    assert_eq!(plain.bytes(), [1; 64]);
}

#[test]
fn an_import_within_one_process_works_until_the_exporter_stops() {
    let bench = dma_bench("");
    let host = Device::open("");
    let exported = Memory::with_access(&host, &sample(4096, 10), PCI_RW);
    let import = Memory::import(&bench.device, &exported.blob(&host).expect("a blob")).expect("an import");
    let into = Memory::zeroed(&bench.device, 4096);
    let copy = || {
        let src = bench.inventory.source(&import, 0, 4096);
        bench.memcpy(src, bench.inventory.destination(&into, 0, 4096))
    };
    assert_eq!(copy(), Ok(4096));
    assert_eq!(into.bytes(), exported.bytes());
    ok(unsafe { doca_mmap_stop(exported.mmap) });
    assert_eq!(copy(), Err(E::DOCA_ERROR_IO_FAILED));
    ok(unsafe { doca_mmap_start(exported.mmap) });
    assert_eq!(copy(), Err(E::DOCA_ERROR_IO_FAILED), "a restart is a new export");
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn inflate_goes_straight_into_imported_memory() {
    let bench = compress_bench("");
    let host = Device::open("");
    let plain = sample(BLOCK, 11);
    let exported = Memory::with_access(&host, &vec![0; BLOCK], PCI_RW);
    let import = Memory::import(&bench.device, &exported.blob(&host).expect("a blob")).expect("an import");
    let source = Memory::new(&bench.device, &deflated(&plain));
    assert_eq!(bench.inflate(&source, &[source.len], &import, &[BLOCK / 2, BLOCK / 2]), Ok(BLOCK));
    assert_eq!(exported.bytes(), plain);
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn a_deep_queue_on_four_threads_mixes_up_nothing() {
    let bench = compress_bench("decompress_threads=4,reorder=1,seed=12");
    let blocks: Vec<Vec<u8>> = (0..TASKS as u64).map(|i| sample(20_000 + 100 * i as usize, i)).collect();
    let sources: Vec<Memory> = blocks.iter().map(|block| Memory::new(&bench.device, &deflated(block))).collect();
    let targets: Vec<Memory> = blocks.iter().map(|block| Memory::zeroed(&bench.device, block.len())).collect();
    for round in 1..=3 {
        let mut bufs = Vec::new();
        for (i, (source, target)) in sources.iter().zip(&targets).enumerate() {
            target.fill(0, &vec![0; target.len]);
            let src = bench.inventory.source(source, 0, source.len);
            let dst = bench.inventory.destination(target, 0, target.len);
            bufs.extend([src, dst]);
            ok(unsafe { doca_task_submit(bench.context.inflate(i as u64, src, dst).expect("a task")) });
        }
        bench.engine.progress_until(|| bench.context.completed() == TASKS as usize);
        let completions = bench.context.completions();
        assert!(completions.iter().all(|c| c.status == E::DOCA_SUCCESS), "round {round}");
        let mut ids: Vec<u64> = completions.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..u64::from(TASKS)));
        completions.iter().for_each(|c| unsafe { doca_task_free(c.task) });
        bufs.into_iter().for_each(give_back);
        for (block, target) in blocks.iter().zip(&targets) {
            assert!(target.bytes() == *block);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "libdeflate is C")]
fn a_remembering_engine_gives_the_same_bytes_and_sums_says_so_and_believes_no_other_source() {
    let bench = compress_bench("remember=1000000");
    let version = unsafe { std::ffi::CStr::from_ptr(doca_version_runtime()) };
    assert_eq!(version.to_str(), Ok("3.0.0-remembering-emulator"));
    let plain = sample(BLOCK, 1);
    let mut packed = deflated(&plain);
    let source = Memory::new(&bench.device, &packed);
    for _ in 0..3 {
        let into = Memory::zeroed(&bench.device, BLOCK);
        assert_eq!(bench.inflate(&source, &[source.len], &into, &[BLOCK]), Ok(BLOCK));
        assert_eq!(into.bytes(), plain);
    }
    let into = Memory::zeroed(&bench.device, BLOCK);
    bench.inflate(&source, &[source.len], &into, &[BLOCK - 1]).expect_err("known, and one byte short all the same");
    // A damaged source is never taken for the good one, wherever the damage is.
    for at in [0, packed.len() / 2, packed.len() - 1] {
        packed[at] ^= 0xff;
        let damaged = Memory::new(&bench.device, &packed);
        let made = bench.inflate(&damaged, &[damaged.len], &into, &[BLOCK]);
        assert!(made.is_err() || into.bytes() != plain, "byte {at}");
        packed[at] ^= 0xff;
    }
}
