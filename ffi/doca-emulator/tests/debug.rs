//! Claims about debug mode. What makes the mistake is a process of its own, because it may die of it and because debug
//! mode is the whole process's: this test binary again, at one of the `child_` tests.

#![cfg(not(miri))]
#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

mod rig;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use rig::c::*;
use rig::*;

const CHILD: &str = "KVLANE_TEST_CHILD";
const BLOB: &str = "KVLANE_TEST_BLOB";
const SLOW: &str = "debug=1,delay_us=50000,seed=3";

fn run(name: &str, blob: &[u8]) -> Output {
    let blob: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
    let program = std::env::current_exe().expect("this program");
    let arguments = [name, "--exact", "--nocapture", "--test-threads=1"];
    Command::new(program).args(arguments).env(CHILD, "1").env(BLOB, blob).output().expect("a child")
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// What a child wrote to standard error.
fn said_by(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pages(count: usize) -> *mut u8 {
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let map = libc::mmap(std::ptr::null_mut(), count * 4096, protection, flags, -1, 0);
        assert_ne!(map, libc::MAP_FAILED);
        map.cast()
    }
}

/// Submits a slow copy from one piece of memory to the other, plays with them, and waits for the copy.
fn meddle(source: &Memory, target: &Memory, device: &Device, meddling: impl FnOnce()) -> doca_error {
    let engine = Engine::new();
    let inventory = Inventory::new(2);
    let context = Context::dma(device, &engine);
    let (from, to) = (inventory.source(source, 0, source.len), inventory.destination(target, 0, target.len));
    let task = context.memcpy(0, from, to).expect("a task");
    ok(unsafe { doca_task_submit(task) });
    meddling();
    engine.progress_until(|| context.completed() == 1);
    let status = unsafe { doca_task_get_status(task) };
    unsafe { doca_task_free(task) };
    context.stop(&engine);
    [from, to].into_iter().for_each(give_back);
    status
}

#[test]
fn child_leaks_a_buf() {
    if is_child() {
        let device = Device::open("debug=1");
        let memory = Memory::zeroed(&device, 64);
        let inventory = Inventory::new(1);
        inventory.source(&memory, 0, 64);
        assert_eq!(unsafe { doca_buf_inventory_destroy(inventory.0) }, E::DOCA_ERROR_IN_USE);
        std::process::exit(0);
    }
}

#[test]
fn refused_calls_are_named_and_leaked_bufs_counted() {
    let said = said_by(&run("child_leaks_a_buf", &[]));
    assert!(said.contains("debug: doca_buf_inventory_destroy refused: DOCA_ERROR_IN_USE"), "{said}");
    assert!(said.contains("debug: 1 bufs were never given back"), "{said}");
}

#[test]
fn child_makes_no_mistake() {
    if is_child() {
        let device = Device::open(SLOW);
        let (source, target) = (Memory::new(&device, &[7; 4096]), Memory::zeroed(&device, 4096));
        assert_eq!(meddle(&source, &target, &device, || {}), E::DOCA_SUCCESS);
        assert_eq!(target.bytes(), source.bytes());
        drop((source, target));
        drop(device);
        std::process::exit(0);
    }
}

#[test]
fn who_makes_no_mistake_hears_nothing() {
    let output = run("child_makes_no_mistake", &[]);
    let said = said_by(&output);
    assert!(output.status.success() && !said.contains("doca-emulator: debug:"), "{said}");
}

#[test]
fn child_frees_memory_in_flight() {
    if is_child() {
        let device = Device::open(SLOW);
        // The second page of three: neither the first byte nor the last.
        let map = pages(3);
        let (memory, target) = (Memory::over(&device, map, 3 * 4096, LOCAL_RW), Memory::zeroed(&device, 3 * 4096));
        // As good as unmapped, without the chance that something else moves in.
        let free = || assert_eq!(unsafe { libc::mprotect(map.add(4096).cast(), 4096, libc::PROT_NONE) }, 0);
        assert_eq!(meddle(&memory, &target, &device, free), E::DOCA_ERROR_IO_FAILED);
        std::process::exit(0);
    }
}

#[test]
fn memory_that_was_freed_in_flight_is_named_and_kills_nobody() {
    let output = run("child_frees_memory_in_flight", &[]);
    let said = said_by(&output);
    assert!(said.contains("of a task in flight are not there any more"), "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn child_reads_a_destination() {
    if is_child() {
        let device = Device::open(SLOW);
        let (memory, target) = (Memory::new(&device, &[7; 4096]), Memory::new(&device, &[7; 4096]));
        meddle(&memory, &target, &device, || eprintln!("read early: {:?}", &target.bytes()[4090..]));
        std::process::exit(0);
    }
}

#[test]
fn who_reads_a_destination_early_reads_poison_and_not_by_luck_the_answer() {
    let said = said_by(&run("child_reads_a_destination", &[]));
    assert!(said.contains("read early: [219, 219, 219, 219, 219, 219]"), "{said}");
}

#[test]
fn child_writes_to_a_destination() {
    if is_child() {
        let device = Device::open(SLOW);
        let (memory, target) = (Memory::zeroed(&device, 4096), Memory::zeroed(&device, 4096));
        meddle(&memory, &target, &device, || target.fill(4095, &[1]));
        std::process::exit(0);
    }
}

#[test]
fn a_destination_that_was_written_to_in_flight_is_named() {
    let said = said_by(&run("child_writes_to_a_destination", &[]));
    assert!(said.contains("was written to while its task was in flight"), "{said}");
}

/// The import of what the parent exports.
fn parents_memory(device: &Device) -> Memory {
    let hex = std::env::var(BLOB).expect("a blob");
    let blob: Vec<u8> =
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("two digits")).collect();
    Memory::import(device, &blob).expect("an import")
}

/// Runs a child that gets at `len` bytes of ours.
fn run_with_import(name: &str) -> (Output, Device, Memory) {
    let device = Device::open("");
    let memory = Memory::over(&device, pages(64).wrapping_add(100), 32 * 4096, PCI_RW);
    memory.fill(0, &[7; 32 * 4096]);
    let output = run(name, &memory.blob(&device).expect("a blob"));
    (output, device, memory)
}

#[test]
fn child_touches_an_import() {
    if is_child() {
        let device = Device::open("debug=1");
        let import = parents_memory(&device);
        let target = Memory::zeroed(&device, import.len);
        assert_eq!(meddle(&import, &target, &device, || {}), E::DOCA_SUCCESS);
        assert_eq!(target.bytes(), [7; 32 * 4096], "tasks reach it");
        eprintln!("{}", unsafe { import.first.add(4242).read_volatile() });
        std::process::exit(0);
    }
}

#[test]
fn an_import_that_the_cpu_touches_is_named_before_the_process_dies() {
    let (output, _device, memory) = run_with_import("child_touches_an_import");
    let said = said_by(&output);
    let (place, base) = (memory.first.addr() + 4242, memory.first.addr());
    let pid = std::process::id();
    let wanted = format!(
        "debug: the CPU touched {place:#x}, byte 4242 of an import of process {pid} ({base:#x}, 131072 bytes): \
         only tasks reach an import\n"
    );
    assert!(said.contains(&wanted), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{said}");
}

#[test]
fn child_handles_its_signals() {
    unsafe extern "C" fn handle(_: libc::c_int) {
        unsafe { libc::_exit(42) };
    }
    if is_child() {
        unsafe { libc::signal(libc::SIGSEGV, handle as *const () as libc::sighandler_t) };
        let device = Device::open("debug=1");
        let import = parents_memory(&device);
        eprintln!("{}", unsafe { import.first.read_volatile() });
    }
}

#[test]
fn a_handler_that_was_there_before_gets_the_signal() {
    let (output, _device, _memory) = run_with_import("child_handles_its_signals");
    let said = said_by(&output);
    assert!(said.contains("debug: the CPU touched"), "{said}");
    assert_eq!(output.status.code(), Some(42), "{said}");
}
