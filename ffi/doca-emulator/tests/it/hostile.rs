//! Claims about chance: what `fail`, `again`, `corrupt`, `delay_us` and `reorder` do, and that a seed repeats it.

#![cfg(not(miri))]

use std::time::{Duration, Instant};

use crate::rig::c::*;
use crate::rig::*;

const ROUNDS: u64 = 400;

/// Copies of eight bytes, one after the other, restarting the context after each failure. Gives what happened to each.
fn fates(config: &str) -> Vec<&'static str> {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    let inventory = Inventory::new(2);
    let memory = Memory::zeroed(&device, 16);
    let (src, dst) = (inventory.source(&memory, 0, 8), inventory.destination(&memory, 8, 8));
    let mut fates = Vec::new();
    for id in 0..ROUNDS {
        let task = context.memcpy(id, src, dst).expect("a task");
        match unsafe { doca_task_submit(task) } {
            E::DOCA_SUCCESS => {
                engine.progress_until(|| context.completed() == 1);
                let failed = context.completions()[0].through_error_cb;
                unsafe { doca_task_free(task) };
                if failed {
                    context.stop(&engine);
                    ok(unsafe { doca_ctx_start(context.ctx) });
                }
                fates.push(if failed { "failed" } else { "done" });
            }
            E::DOCA_ERROR_AGAIN => {
                unsafe { doca_task_free(task) };
                fates.push("again");
            }
            other => panic!("{other:?}"),
        }
        ok(unsafe { doca_buf_reset_data_len(dst) });
    }
    give_back(src);
    give_back(dst);
    fates
}

fn share(fates: &[&str], wanted: &str) -> f64 {
    fates.iter().filter(|fate| **fate == wanted).count() as f64 / ROUNDS as f64
}

#[test]
fn tasks_fail_and_submits_push_back_as_often_as_asked() {
    let fates = fates("seed=5,fail=0.2,again=0.3");
    let (again, failed) = (share(&fates, "again"), share(&fates, "failed"));
    assert!((0.2..0.4).contains(&again), "again {again}");
    assert!((0.07..0.21).contains(&failed), "failed {failed}, wanted about 0.7 * 0.2");
}

#[test]
fn a_seed_repeats_every_fate() {
    let config = "seed=77,fail=0.1,again=0.1,delay_us=20";
    assert_eq!(fates(config), fates(config));
    assert_ne!(fates(config), fates("seed=78,fail=0.1,again=0.1,delay_us=20"));
}

#[test]
fn corruption_flips_one_bit_and_its_checksum_tells() {
    let device = Device::open("seed=9,corrupt=1");
    let engine = Engine::new();
    let context = Context::compress(&device, &engine);
    let inventory = Inventory::new(2);
    let plain = sample(10_000, 9);
    let source = Memory::new(&device, &deflated(&plain));
    let into = Memory::zeroed(&device, plain.len());
    let (src, dst) = (inventory.source(&source, 0, source.len), inventory.destination(&into, 0, into.len));
    let crc = unsafe {
        let task = out(|task| {
            doca_compress_task_decompress_deflate_alloc_init(context.compress_raw(), src, dst, number(0), task)
        })
        .expect("a task");
        ok(doca_task_submit(doca_compress_task_decompress_deflate_as_task(task)));
        engine.progress_until(|| context.completed() == 1);
        let crc = doca_compress_task_decompress_deflate_get_crc_cs(task);
        doca_task_free(doca_compress_task_decompress_deflate_as_task(task));
        crc
    };
    assert_eq!(context.completions()[0].status, E::DOCA_SUCCESS, "a card would not notice either");
    let made = into.bytes();
    let flipped: u32 = made.iter().zip(&plain).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!(flipped, 1);
    assert_eq!(crc, crc32fast::hash(&made));
    assert_ne!(crc, crc32fast::hash(&plain));
    give_back(src);
    give_back(dst);
}

#[test]
fn a_planned_fault_hits_its_task_and_no_other() {
    let all_but = |number: usize| {
        let mut fates = vec!["done"; ROUNDS as usize];
        fates[number - 1] = "failed";
        fates
    };
    assert_eq!(fates("faults=fail:memcpy:3"), all_but(3));
    assert_eq!(fates("faults=fail:inflate:3"), vec!["done"; ROUNDS as usize], "another kind");
    let start = Instant::now();
    assert_eq!(fates("faults=delay:memcpy:2:50000+fail:memcpy:400"), all_but(400));
    assert!(start.elapsed() >= Duration::from_millis(50), "{:?}", start.elapsed());
    assert_eq!(flips("faults=corrupt:memcpy:7", [false, false]), (1, 1));
}

#[test]
fn the_third_inflate_fails_and_the_fourth_is_corrupt() {
    let device = Device::open("faults=fail:inflate:3+corrupt:inflate:4");
    let engine = Engine::new();
    let context = Context::compress(&device, &engine);
    let inventory = Inventory::new(2);
    let plain = sample(10_000, 3);
    let source = Memory::new(&device, &deflated(&plain));
    let into = Memory::zeroed(&device, plain.len());
    let mut outcomes = Vec::new();
    for id in 1..=5 {
        let (src, dst) = (inventory.source(&source, 0, source.len), inventory.destination(&into, 0, into.len));
        let status = context.run(&engine, context.inflate(id, src, dst).expect("a task"));
        if status != E::DOCA_SUCCESS {
            context.stop(&engine);
            ok(unsafe { doca_ctx_start(context.ctx) });
        }
        outcomes.push((status == E::DOCA_SUCCESS, into.bytes() == plain));
        into.fill(0, &vec![0; plain.len()]);
        [src, dst].into_iter().for_each(give_back);
    }
    assert_eq!(outcomes, [(true, true), (true, true), (false, false), (true, false), (true, true)]);
}

/// What 40 copies of 1000 bytes between two memories flipped, in bits, and how many of them.
fn flips(config: &str, imports: [bool; 2]) -> (usize, u32) {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    let inventory = Inventory::new(4);
    let plain = sample(1000, 8);
    let memory = |is_import: bool, bytes: &[u8]| {
        let own = Memory::with_access(&device, bytes, LOCAL_RW | PCI_RW);
        let import =
            is_import.then(|| Memory::import(&device, &own.blob(&device).expect("a blob")).expect("an import"));
        (import, own)
    };
    let ((import_from, from), (import_to, to)) = (memory(imports[0], &plain), memory(imports[1], &vec![0; 1000]));
    let (mut copies, mut bits) = (0, 0);
    for _ in 0..40 {
        let src = inventory.source(import_from.as_ref().unwrap_or(&from), 0, 1000);
        let dst = inventory.destination(import_to.as_ref().unwrap_or(&to), 0, 1000);
        assert_eq!(context.run(&engine, context.memcpy(0, src, dst).expect("a task")), E::DOCA_SUCCESS);
        let flipped: u32 = to.bytes().iter().zip(&plain).map(|(a, b)| (a ^ b).count_ones()).sum();
        (copies, bits) = (copies + usize::from(flipped > 0), bits + flipped);
        [src, dst].into_iter().for_each(give_back);
    }
    assert_eq!(from.bytes(), plain, "a source is not touched");
    drop((import_from, import_to));
    (copies, bits)
}

#[test]
fn a_copy_may_flip_one_bit_and_succeeds_all_the_same() {
    assert_eq!(flips("seed=4,dma_flip=1", [false, false]), (40, 40));
    let (copies, bits) = flips("seed=4,dma_flip=0.25", [false, false]);
    assert!((3..20).contains(&copies) && bits == copies as u32, "{copies}");
    assert_eq!(flips("seed=4,dma_flip=0.25", [false, false]), (copies, bits), "the seed decides");
    assert_eq!(flips("dma_flip_at=7", [false, false]), (1, 1));
    assert_eq!(flips("dma_flip=1,dma_flip_bytes=1001", [false, false]), (0, 0));
    assert_eq!(flips("dma_flip=1,dma_flip_way=to-host", [false, true]), (40, 40));
    assert_eq!(flips("dma_flip=1,dma_flip_way=to-host", [true, false]), (0, 0));
    assert_eq!(flips("dma_flip=1,dma_flip_way=from-host", [true, false]), (40, 40));
    assert_eq!(flips("dma_flip=1,dma_flip_way=from-host", [false, true]), (0, 0));
}

#[test]
fn delay_makes_tasks_late_and_reorder_lets_them_overtake() {
    let device = Device::open("seed=3,delay_us=2000,reorder=1");
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    let inventory = Inventory::new(64);
    let memory = Memory::zeroed(&device, 64);
    let start = Instant::now();
    let mut bufs = Vec::new();
    for id in 0..32 {
        let (src, dst) = (inventory.source(&memory, 0, 1), inventory.destination(&memory, 1 + id as usize, 1));
        bufs.extend([src, dst]);
        ok(unsafe { doca_task_submit(context.memcpy(id, src, dst).expect("a task")) });
    }
    engine.progress_until(|| context.completed() == 32);
    assert!(start.elapsed() > Duration::from_millis(8), "{:?} for 32 tasks", start.elapsed());
    let completions = context.completions();
    assert!(!completions.is_sorted_by_key(|completion| completion.id));
    completions.iter().for_each(|completion| unsafe { doca_task_free(completion.task) });
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_bad_configuration_gives_no_device_list() {
    // The variable is the process's, so this test asks a child that has it.
    if std::env::var_os("KVLANE_TEST_CHILD").is_some() {
        let list = out(|list: *mut *mut *mut doca_devinfo| unsafe { doca_devinfo_create_list(list, &mut 0) });
        assert_eq!(list, Err(E::DOCA_ERROR_INITIALIZATION));
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "hostile::a_bad_configuration_gives_no_device_list", "--nocapture"])
        .env("KVLANE_TEST_CHILD", "1")
        .env("DOCA_EMULATOR", "sead=42")
        .output()
        .expect("a child");
    assert!(child.status.success());
    assert!(String::from_utf8_lossy(&child.stderr).contains("unknown key `sead`"));
}
