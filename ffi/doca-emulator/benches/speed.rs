//! How fast the software engines are, here and now: `cargo bench -p doca-emulator`. A table, no statistics: the numbers
//! say what a pipeline on the emulator can be fed with, and are not a card's. The last two columns count processor time
//! of all threads of this process, so they mean something on a busy machine too.

#[path = "../tests/rig/mod.rs"]
mod rig;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::ptr;
use std::time::{Duration, Instant};

use rig::c::*;
use rig::*;

const ROLE: &str = "KVLANE_BENCH_EXPORTER";
const REGION: usize = 64 << 20;
const TIME: Duration = Duration::from_millis(500);

fn main() {
    if let Ok(kind) = std::env::var(ROLE) {
        return export(&kind);
    }
    println!("{:<58} {:>9} {:>9} {:>9} {:>11}", "", "GB/s", "us/task", "cpu us", "GB/cpu s");
    for block in [4 << 10, 64 << 10, 256 << 10, 1 << 20] {
        for threads in [1, 2] {
            inflate(block, threads);
        }
    }
    lz4(256 << 10);
    for block in [64, 4 << 10, 64 << 10, 1 << 20] {
        dma("own memory", block, 1, None, "");
    }
    for (kind, config, name) in [
        ("sealed", "", "sealed memfd of another process (window)"),
        ("private", "", "private memory of another process (kernel)"),
    ] {
        for (block, pieces) in [(64, 1), (4 << 10, 1), (64 << 10, 1), (1 << 20, 1), (1 << 20, 64)] {
            dma(name, block, pieces, Some(kind), config);
        }
    }
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the one timespec that it is given; nothing else has it.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Keeps all tasks in flight for a while and prints the rate.
fn measure(name: &str, engine: &Engine, context: &Context, tasks: &[(*mut doca_task, *mut doca_buf)], bytes: usize) {
    // SAFETY: tasks and bufs are of the caller's context and inventory, which outlive this function; a task is
    // submitted again only after it has completed, so nobody else has it.
    let submit = |task: usize| unsafe {
        let mut buf = tasks[task].1;
        while !buf.is_null() {
            ok(doca_buf_reset_data_len(buf));
            buf = out(|next| doca_buf_get_next_in_list(buf, next)).expect("a next");
        }
        ok(doca_task_submit(tasks[task].0));
    };
    (0..tasks.len()).for_each(submit);
    let mut done = 0u64;
    // SAFETY: the engine is open, and the descriptor is written to the place that `out` gives.
    let fd = out(|fd| unsafe { doca_pe_get_notification_handle(engine.0, fd) }).expect("a descriptor");
    let (start, cpu) = (Instant::now(), cpu_seconds());
    while start.elapsed() < TIME {
        if !engine.progress() {
            // asleep, so that the engines have the cores SAFETY: the engine is open and used by this thread only; poll
            // reads and writes the one pollfd of this line.
            ok(unsafe { doca_pe_request_notification(engine.0) });
            // SAFETY: as above.
            unsafe { libc::poll(&mut libc::pollfd { fd, events: libc::POLLIN, revents: 0 }, 1, 1000) };
            // SAFETY: as above.
            ok(unsafe { doca_pe_clear_notification(engine.0, 0) });
        }
        while engine.progress() {}
        let completions = context.completions();
        for completion in completions {
            assert_eq!(completion.status, E::DOCA_SUCCESS);
            done += 1;
            submit(completion.id as usize);
        }
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let left = tasks.len();
    engine.progress_until(|| context.completed() == left);
    let (giga, tasks) = (done as f64 * bytes as f64 / 1e9, done as f64);
    let [rate, each] = [giga / seconds, seconds * 1e6 / tasks];
    println!("{name:<58} {rate:>9.3} {each:>9.2} {:>9.2} {:>11.3}", cpu * 1e6 / tasks, giga / cpu);
    // SAFETY: each completion is of a task that is out of flight, and nobody uses it after this.
    context.completions().iter().for_each(|completion| unsafe { doca_task_free(completion.task) });
}

fn inflate(block: usize, threads: usize) {
    let device = Device::open(&format!("decompress_threads={threads}"));
    let engine = Engine::new();
    let context = Context::compress(&device, &engine);
    let inventory = Inventory::new(64);
    let source = Memory::new(&device, &deflated(&sample(block, 1)));
    let targets: Vec<Memory> = (0..16).map(|_| Memory::zeroed(&device, block)).collect();
    let src = inventory.source(&source, 0, source.len);
    let tasks: Vec<_> = targets
        .iter()
        .enumerate()
        .map(|(id, target)| {
            let dst = inventory.destination(target, 0, block);
            (context.inflate(id as u64, src, dst).expect("a task"), dst)
        })
        .collect();
    let ratio = block as f64 / source.len as f64;
    let name = format!("inflate {} KiB, {ratio:.2}:1, {threads} thread(s), depth 16", block >> 10);
    measure(&name, &engine, &context, &tasks, block);
    tasks.iter().for_each(|(_, dst)| give_back(*dst));
    give_back(src);
}

fn lz4(block: usize) {
    let device = Device::open("decompress_threads=1");
    let engine = Engine::new();
    let context = Context::compress(&device, &engine);
    let inventory = Inventory::new(64);
    let plain: Vec<u8> =
        sample(block, 1).iter().enumerate().map(|(i, byte)| if i % 8 < 5 { 7 } else { *byte }).collect();
    let source = Memory::new(&device, &lz4_flex::block::compress(&plain));
    let target = Memory::zeroed(&device, block);
    let (src, dst) = (inventory.source(&source, 0, source.len), inventory.destination(&target, 0, block));
    // SAFETY: context and bufs are open, and the task is written to the place that `out` gives.
    let task = out(|task| unsafe {
        doca_compress_task_decompress_lz4_block_alloc_init(context.compress_raw(), src, dst, number(0), task)
    })
    .expect("a task");
    // SAFETY: the task was just made.
    let task = unsafe { doca_compress_task_decompress_lz4_block_as_task(task) };
    let name = format!("lz4 block {} KiB, {:.2}:1, 1 thread, depth 1", block >> 10, block as f64 / source.len as f64);
    measure(&name, &engine, &context, &[(task, dst)], block);
    give_back(src);
    give_back(dst);
}

fn dma(name: &str, block: usize, pieces: usize, exporter: Option<&str>, config: &str) {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    let inventory = Inventory::new(2048);
    let mut child = exporter.map(|kind| {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env(ROLE, kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut hex = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut hex).expect("a blob");
        let blob: Vec<u8> = (0..hex.trim().len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("two digits"))
            .collect();
        (child, blob)
    });
    let source = Memory::new(&device, &sample(block, 1));
    let target = match &child {
        Some((_, blob)) => Memory::import(&device, blob).expect("an import"),
        None => Memory::zeroed(&device, REGION),
    };
    let src = inventory.source(&source, 0, block);
    let depth = 16;
    let tasks: Vec<_> = (0..depth)
        .map(|id| {
            let piece = block / pieces;
            let first = id * (REGION / depth);
            // every second piece, so that nothing merges
            let parts: Vec<_> =
                (0..pieces).map(|i| inventory.destination(&target, first + 2 * i * piece, piece)).collect();
            let dst = inventory.chain(&parts);
            (context.memcpy(id as u64, src, dst).expect("a task"), dst)
        })
        .collect();
    let size = if block < 1024 { format!("{block} B") } else { format!("{} KiB", block >> 10) };
    let name = format!("{size} in {pieces} to {name}");
    measure(&name, &engine, &context, &tasks, block);
    tasks.iter().for_each(|(_, dst)| give_back(*dst));
    give_back(src);
    if let Some((child, _)) = &mut child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The other process: exports its memory and waits for the end of its input.
fn export(kind: &str) {
    let device = Device::open("");
    let first = if kind == "private" {
        Box::leak(vec![1u8; REGION].into_boxed_slice()).as_mut_ptr()
    } else {
        // SAFETY: a new file, and a new mapping of it at an address of the kernel's choice: neither aliases anything.
        unsafe {
            let fd = libc::memfd_create(c"kvlane-bench".as_ptr(), libc::MFD_ALLOW_SEALING);
            assert_eq!(libc::ftruncate(fd, REGION as i64), 0);
            assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK), 0);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(ptr::null_mut(), REGION, protection, libc::MAP_SHARED, fd, 0).cast::<u8>();
            map.write_bytes(1, REGION);
            map
        }
    };
    let memory = Memory::over(&device, first, REGION, PCI_RW);
    let hex: String = memory.blob(&device).expect("a blob").iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
    let _ = std::io::stdin().lines().next();
}
