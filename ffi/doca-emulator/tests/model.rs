//! Claims about what can be switched on: the timing model, lost devices, exporters that vanish; and about logs and
//! command lines.

#![cfg(not(miri))]
#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

mod rig;

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::{Duration, Instant};

use rig::c::*;
use rig::*;

#[test]
fn with_timing_one_task_takes_the_latency_and_a_deep_queue_the_occupancy() {
    // 1 ms a task, four under way at once
    let device = Device::open("timing=1,task_ns=1000000,gigabytes_per_s=100,depth=4");
    let engine = Engine::new();
    let (source, target) = (Memory::new(&device, &sample(64, 1)), Memory::zeroed(&device, 64 * 40));
    let inventory = Inventory::new(80);
    let context = Context::dma(&device, &engine);
    let start = Instant::now();
    let (from, to) = (inventory.source(&source, 0, 64), inventory.destination(&target, 0, 64));
    let task = context.memcpy(0, from, to).expect("a task");
    assert_eq!(context.run(&engine, task), E::DOCA_SUCCESS);
    assert!(start.elapsed() >= Duration::from_millis(4), "{:?}", start.elapsed());

    let mut bufs = vec![from, to];
    let start = Instant::now();
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let (from, to) = (inventory.source(&source, 0, 64), inventory.destination(&target, i * 64, 64));
            bufs.extend([from, to]);
            let task = context.memcpy(i as u64, from, to).expect("a task");
            ok(unsafe { doca_task_submit(task) });
            task
        })
        .collect();
    engine.progress_until(|| context.completed() == 33);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(32 + 3) && took < Duration::from_millis(32 * 4), "{took:?}");
    tasks.into_iter().for_each(|task| unsafe { doca_task_free(task) });
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_lost_device_fails_every_later_task_and_start() {
    let device = Device::open("lose_after=2,seed=1");
    let engine = Engine::new();
    let (source, target) = (Memory::new(&device, &sample(64, 1)), Memory::zeroed(&device, 64));
    let inventory = Inventory::new(2);
    let context = Context::dma(&device, &engine);
    let (from, to) = (inventory.source(&source, 0, 64), inventory.destination(&target, 0, 64));
    let run = || {
        ok(unsafe { doca_buf_reset_data_len(to) });
        let task = context.memcpy(0, from, to).expect("a task");
        context.run(&engine, task)
    };
    assert_eq!((run(), run(), run()), (E::DOCA_SUCCESS, E::DOCA_SUCCESS, E::DOCA_ERROR_DRIVER));
    engine.progress_until(|| context.state() == IDLE);
    assert_eq!(unsafe { doca_ctx_start(context.ctx) }, E::DOCA_ERROR_DRIVER);
    give_back(from);
    give_back(to);
}

#[test]
fn an_exporter_that_is_gone_stays_gone_and_own_memory_does_not_care() {
    let device = Device::open("exporter_gone=1,seed=1");
    let engine = Engine::new();
    let host = Memory::with_access(&device, &sample(64, 1), LOCAL_RW | PCI_RW);
    let import = Memory::import(&device, &host.blob(&device).expect("a blob")).expect("an import");
    let (own, target) = (Memory::new(&device, &sample(64, 2)), Memory::zeroed(&device, 64));
    let inventory = Inventory::new(3);
    let context = Context::dma(&device, &engine);
    let (from, to) = (inventory.source(&own, 0, 64), inventory.destination(&target, 0, 64));
    let far = inventory.source(&import, 0, 64);
    let task = context.memcpy(0, from, to).expect("a task");
    assert_eq!(context.run(&engine, task), E::DOCA_SUCCESS);
    ok(unsafe { doca_buf_reset_data_len(to) });
    let task = context.memcpy(1, far, to).expect("a task");
    assert_eq!(context.run(&engine, task), E::DOCA_ERROR_IO_FAILED);
    engine.progress_until(|| context.state() == IDLE);
    [from, to, far].into_iter().for_each(give_back);
}

#[test]
fn log_lines_carry_level_source_place_and_text_and_obey_the_limit() {
    unsafe extern "C" fn flush(_: *mut c_char) {}
    let mut text = vec![0 as c_char; 4096];
    unsafe {
        let backend =
            out(|backend| doca_log_backend_create_with_buf(text.as_mut_ptr(), text.len(), Some(flush), backend))
                .expect("a backend");
        let source = out(|source| doca_log_register_source(c"CLAIMS".as_ptr(), source)).expect("a source");
        let say = |level: doca_log_level, word: &str| {
            let word = CString::new(word).expect("no zeroes");
            let (file, func) = (c"file.c".as_ptr(), c"function".as_ptr());
            ok(doca_log(level.0, source, file, 42 as c_int, func, c"%s %d".as_ptr(), word.as_ptr(), 7 as c_int));
        };
        say(doca_log_level::DOCA_LOG_LEVEL_DEBUG, "unheard");
        say(doca_log_level::DOCA_LOG_LEVEL_WARNING, "heard");
        ok(doca_log_backend_set_level_lower_limit(backend, doca_log_level::DOCA_LOG_LEVEL_DEBUG.0));
        say(doca_log_level::DOCA_LOG_LEVEL_DEBUG, &"long".repeat(200));
        assert_eq!(doca_log_backend_set_level_lower_limit(backend, 55), E::DOCA_ERROR_INVALID_VALUE);
        let said = std::ffi::CStr::from_ptr(text.as_ptr()).to_string_lossy();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(lines[0].ends_with("[DOCA][WRN][CLAIMS:42][function] heard 7"), "{said}");
        assert!(lines[1].ends_with(&format!("{} 7", "long".repeat(200))), "longer than the shim's own buffer");
        ok(doca_log_backend_set_level_lower_limit(backend, doca_log_level::DOCA_LOG_LEVEL_DISABLE.0));
    }
}

#[derive(Default)]
struct Options {
    text: String,
    number: c_int,
    flag: bool,
    is_valid: bool,
}

unsafe extern "C" fn text(value: *mut c_void, options: *mut c_void) -> doca_error {
    let text = unsafe { std::ffi::CStr::from_ptr(value.cast()) };
    unsafe { (*options.cast::<Options>()).text = text.to_string_lossy().into_owned() };
    E::DOCA_SUCCESS
}

unsafe extern "C" fn count(value: *mut c_void, options: *mut c_void) -> doca_error {
    unsafe { (*options.cast::<Options>()).number = *value.cast::<c_int>() };
    E::DOCA_SUCCESS
}

unsafe extern "C" fn flag(value: *mut c_void, options: *mut c_void) -> doca_error {
    unsafe { (*options.cast::<Options>()).flag = *value.cast::<bool>() };
    E::DOCA_SUCCESS
}

unsafe extern "C" fn validate(options: *mut c_void) -> doca_error {
    unsafe { (*options.cast::<Options>()).is_valid = true };
    E::DOCA_SUCCESS
}

/// Parses a command line with a required text, a number and a flag. The library knows one program per process.
fn parse(line: &[&str]) -> (doca_error, Options) {
    let mut options = Options::default();
    unsafe {
        ok(doca_argp_init(c"program".as_ptr(), (&raw mut options).cast()));
        let types = [
            (c"t", c"text", doca_argp_type::DOCA_ARGP_TYPE_STRING, text as unsafe extern "C" fn(_, _) -> _),
            (c"ns", c"number", doca_argp_type::DOCA_ARGP_TYPE_INT, count),
            (c"f", c"flag", doca_argp_type::DOCA_ARGP_TYPE_BOOLEAN, flag),
        ];
        for (index, (short, long, kind, callback)) in types.into_iter().enumerate() {
            let param = out(|param| doca_argp_param_create(param)).expect("a parameter");
            doca_argp_param_set_short_name(param, short.as_ptr());
            doca_argp_param_set_long_name(param, long.as_ptr());
            doca_argp_param_set_type(param, kind);
            doca_argp_param_set_callback(param, Some(callback));
            if index == 0 {
                doca_argp_param_set_mandatory(param);
            }
            ok(doca_argp_register_param(param));
        }
        ok(doca_argp_register_validation_callback(Some(validate)));
        let words: Vec<CString> =
            ["program"].iter().chain(line).map(|word| CString::new(*word).expect("no zeroes")).collect();
        let mut argv: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
        let answer = doca_argp_start(argv.len() as c_int, argv.as_mut_ptr());
        ok(doca_argp_destroy());
        (answer, options)
    }
}

#[test]
fn command_lines_are_taken_apart_and_misuse_is_refused() {
    let (answer, options) = parse(&["--text=a b", "-ns", "-12", "-f"]);
    assert_eq!(answer, E::DOCA_SUCCESS);
    assert!(options.text == "a b" && options.number == -12 && options.flag && options.is_valid);
    let bad: [&[&str]; 6] =
        [&[], &["-t"], &["-t", "x", "-ns", "many"], &["-t", "x", "-q"], &["x"], &["-t", "x", "-t", "y"]];
    for line in bad {
        assert_eq!(parse(line).0, E::DOCA_ERROR_INVALID_VALUE, "{line:?}");
    }
}
