//! The memory of a real dpu-app in a process of its own, as the kernel counts it: no more than it says at its start,
//! beside a fixed part that is DOCA's (the emulator's) and the program's own, and the same after one request and after
//! many, after small ones and after large ones.

use crate::rig::process::{Dpu, Home};
use crate::rig::*;
use block::{ElementType, Geometry};
use dpu_app::{Config, footprint};
use host_ctl::Arrangement;

/// A process's stacks, allocator, and the emulator: its tasks (of 27 sessions' mailboxes, too), buffers and staging,
/// and what engine thread and crews remember of their jobs. Measured: 8 MiB.
const BESIDE: usize = 9 << 20;
/// Pages that are touched for the first time by a request that is larger than those before it.
const LATE: usize = 512 << 10;
/// Of the largest request; a ring's worth of blocks is [`RING`] chunks.
const CHUNKS: usize = 24;
const RING: usize = 8;

/// Anonymous memory now and of shared mappings of its own, bytes. The emulator copies through the kernel here, so that
/// no host's memory is among them.
fn memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    (kib("RssAnon:") + kib("RssShmem:")) << 10
}

#[test]
fn memory_is_what_was_said_and_does_not_grow_with_requests() {
    let home = Home::new();
    // A card's worth of threads and slots: the most that defaults take.
    let config = Config::for_cores(16);
    let numbers = [
        ("--slots", config.slots),
        ("--block-bytes", config.block_bytes),
        ("--fetch-workers", config.fetch_workers),
        ("--dequantize-workers", config.dequantize_workers),
        ("--encode-workers", config.encode_workers),
    ];
    let words = numbers.map(|(flag, value)| (flag, value.to_string()));
    let flags: Vec<&str> = words.iter().flat_map(|(flag, value)| [*flag, value]).collect();
    let url = format!("{}?sync=never", home.store());
    let dpu = Dpu::start_with(&url, &home.socket("card.sock"), "window=0", &flags);
    let pid = dpu.child.id();
    // Blocks of 512 KiB, so that every byte of a slot is touched.
    let geometry = Geometry::new(8, 8, 128, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap();
    let keys = keys(geometry, "q5", 1, CHUNKS);
    let pages = linear(CHUNKS);
    let source = filled(Arrangement::Vllm, geometry, CHUNKS, 5);
    let mut host = dpu.attach(&source);
    for (keys, pages) in keys.chunks(RING / 2).zip(pages.chunks(RING / 2 * PAGES_PER_CHUNK)) {
        assert_eq!(store(&mut host, keys, pages).chunks_done, keys.len());
    }
    let mut fetched = |chunks: usize, times: usize| {
        for _ in 0..times {
            let pages = &pages[..chunks * PAGES_PER_CHUNK];
            assert_eq!(fetch(&mut host, &keys[..chunks], pages).chunks_done, chunks);
        }
        memory(pid)
    };
    let first = fetched(RING, 1);
    let many = fetched(1, 63);
    let large = fetched(CHUNKS, 2);
    // One host.
    let said = footprint::at_start(&config) + footprint::of_session(&config);
    println!("said {said}, after one request {first}, after 64 {many}, after large ones {large}");
    assert!(footprint::at_start(&config) <= footprint::BYTES_MAX);
    assert!(large <= said + BESIDE, "{large} bytes beside {said} that were said");
    assert!(many <= first + LATE, "one request {first}, 64 of them {many}");
    assert!(large <= many + LATE, "small requests {many}, of {CHUNKS} chunks {large}");
}
