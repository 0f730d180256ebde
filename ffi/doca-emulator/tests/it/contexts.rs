//! Claims about progress engines, contexts and the life of tasks.

use std::ptr;
use std::thread;
use std::time::Duration;

use crate::rig::c::*;
use crate::rig::*;

/// Device, engine, context, inventory, 4 KiB of source, 4 KiB of destination.
struct Bench {
    context: Context,
    engine: Engine,
    inventory: Inventory,
    source: Memory,
    destination: Memory,
    device: Device,
}

fn bench(config: &str) -> Bench {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    let source = Memory::new(&device, &sample(4096, 1));
    let destination = Memory::zeroed(&device, 4096);
    Bench { context, engine, inventory: Inventory::new(256), source, destination, device }
}

impl Bench {
    /// A task that copies the whole source, with its bufs.
    fn copy(&self, id: u64) -> (*mut doca_task, [*mut doca_buf; 2]) {
        let src = self.inventory.source(&self.source, 0, 4096);
        let dst = self.inventory.destination(&self.destination, 0, 4096);
        (self.context.memcpy(id, src, dst).expect("a task"), [src, dst])
    }

    /// A task that the engine refuses: nothing to copy.
    fn bad_copy(&self, id: u64) -> (*mut doca_task, [*mut doca_buf; 2]) {
        let (task, bufs) = self.copy(id);
        ok(unsafe { doca_buf_reset_data_len(bufs[0]) });
        (task, bufs)
    }
}

fn submit(task: *mut doca_task) {
    ok(unsafe { doca_task_submit(task) });
}

fn free_all(completions: &[Completion]) {
    completions.iter().for_each(|completion| unsafe { doca_task_free(completion.task) });
}

#[test]
fn start_wants_a_progress_engine_and_a_task_type() {
    let (device, engine) = (Device::open(""), Engine::new());
    let context = Context::dma_unconnected(&device);
    unsafe {
        assert_eq!(doca_ctx_start(context.ctx), E::DOCA_ERROR_NOT_CONNECTED);
        ok(doca_pe_connect_ctx(engine.0, context.ctx));
        assert_eq!(doca_pe_connect_ctx(engine.0, context.ctx), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_ctx_start(context.ctx), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(doca_pe_destroy(engine.0), E::DOCA_ERROR_IN_USE);
    }
}

#[test]
fn a_task_type_wants_both_callbacks_and_no_more_tasks_than_the_card_has() {
    let device = Device::open("");
    let context = Context::dma_unconnected(&device);
    let dma = context.dma_raw();
    unsafe {
        let max = out(|max| doca_dma_cap_get_max_num_tasks(dma, max)).expect("a number");
        let conf = |done, failed, count| doca_dma_task_memcpy_set_conf(dma, done, failed, count);
        assert_eq!(conf(None, Some(memcpy_failed), 1), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(conf(Some(memcpy_done), None, 1), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(conf(Some(memcpy_done), Some(memcpy_failed), 0), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(conf(Some(memcpy_done), Some(memcpy_failed), max + 1), E::DOCA_ERROR_INVALID_VALUE);
        ok(conf(Some(memcpy_done), Some(memcpy_failed), max));
        ok(conf(Some(memcpy_done), Some(memcpy_failed), 1));
    }
}

#[test]
fn the_tasks_of_all_types_share_one_maximum() {
    let device = Device::open("");
    unsafe {
        let compress = out(|compress| doca_compress_create(device.0, compress)).expect("a context");
        let max = out(|max| doca_compress_cap_get_max_num_tasks(compress, max)).expect("a number");
        ok(doca_compress_task_decompress_deflate_set_conf(compress, Some(inflate_done), Some(inflate_failed), max));
        let lz4 = doca_compress_task_decompress_lz4_block_set_conf(compress, Some(block_done), Some(block_failed), 1);
        assert_eq!(lz4, E::DOCA_ERROR_INVALID_VALUE);
        let unsupported =
            doca_compress_task_compress_deflate_set_conf(compress, Some(deflate_done), Some(deflate_failed), 1);
        assert_eq!(unsupported, E::DOCA_ERROR_NOT_SUPPORTED);
        ok(doca_compress_destroy(compress));
    }
}

#[test]
fn a_running_context_cannot_be_configured_connected_or_destroyed() {
    let bench = bench("");
    let dma = bench.context.dma_raw();
    unsafe {
        assert_eq!(doca_ctx_start(bench.context.ctx), E::DOCA_ERROR_BAD_STATE);
        assert_eq!(doca_ctx_set_user_data(bench.context.ctx, number(0)), E::DOCA_ERROR_BAD_STATE);
        assert_eq!(doca_ctx_set_state_changed_cb(bench.context.ctx, None), E::DOCA_ERROR_BAD_STATE);
        assert_eq!(doca_pe_connect_ctx(bench.engine.0, bench.context.ctx), E::DOCA_ERROR_BAD_STATE);
        let conf = doca_dma_task_memcpy_set_conf(dma, Some(memcpy_done), Some(memcpy_failed), 1);
        assert_eq!(conf, E::DOCA_ERROR_BAD_STATE);
        assert_eq!(doca_dma_destroy(dma), E::DOCA_ERROR_IN_USE);
    }
}

#[test]
fn an_idle_context_stops_again_and_a_clean_one_at_once() {
    let bench = bench("");
    ok(unsafe { doca_ctx_stop(bench.context.ctx) });
    assert_eq!(bench.context.state(), IDLE);
    ok(unsafe { doca_ctx_stop(bench.context.ctx) });
    assert_eq!(*bench.context.log.states.borrow(), [(IDLE, RUNNING), (RUNNING, STOPPING), (STOPPING, IDLE)]);
    assert_eq!(bench.context.memcpy(0, ptr::null(), ptr::null_mut()), Err(E::DOCA_ERROR_BAD_STATE));
}

#[test]
fn a_pool_runs_out_and_a_freed_task_comes_back() {
    let bench = bench("");
    let allocate = || bench.context.memcpy(0, ptr::null(), ptr::null_mut());
    let tasks: Vec<_> = (0..TASKS).map(|_| allocate().expect("a task")).collect();
    assert_eq!(allocate(), Err(E::DOCA_ERROR_NO_MEMORY));
    unsafe { doca_task_free(tasks[3]) };
    assert_eq!(allocate(), Ok(tasks[3]));
    unsafe {
        assert_eq!(doca_ctx_stop(bench.context.ctx), E::DOCA_ERROR_IN_PROGRESS, "tasks are out");
        assert!(!bench.engine.progress(), "not settled");
        tasks.iter().for_each(|task| doca_task_free(*task));
    }
    assert_eq!(bench.context.state(), STOPPING);
    assert!(bench.engine.progress(), "the step to idle");
    assert_eq!(bench.context.state(), IDLE);
}

#[test]
fn callbacks_run_in_progress_only_and_one_a_call() {
    let bench = bench("");
    let (one, bufs1) = bench.copy(1);
    let (two, bufs2) = bench.copy(2);
    submit(one);
    submit(two);
    thread::sleep(Duration::from_millis(50));
    assert_eq!((bench.context.completed(), bench.context.inflight()), (0, 2));
    assert!(bench.engine.progress());
    assert_eq!((bench.context.completed(), bench.context.inflight()), (1, 1));
    bench.engine.progress_until(|| bench.context.completed() == 2);
    assert!(!bench.engine.progress());
    let completions = bench.context.completions();
    assert!(completions.iter().all(|c| !c.through_error_cb && c.status == E::DOCA_SUCCESS));
    assert_eq!(bench.destination.bytes(), bench.source.bytes());
    free_all(&completions);
    bufs1.into_iter().chain(bufs2).for_each(give_back);
}

#[test]
fn a_completed_task_may_be_kept_and_submitted_again() {
    let bench = bench("");
    let (task, [src, dst]) = bench.copy(5);
    for round in 1..=3 {
        submit(task);
        assert_eq!(unsafe { doca_task_submit(task) }, E::DOCA_ERROR_BAD_STATE, "twice");
        bench.engine.progress_until(|| bench.context.completed() == round);
        assert_eq!(data_len(dst), 4096);
        ok(unsafe { doca_buf_reset_data_len(dst) });
    }
    unsafe {
        doca_task_set_user_data(task, number(6));
        assert_eq!(doca_task_get_user_data(task).u64_, 6);
        assert_eq!(doca_task_get_ctx(task), bench.context.ctx);
        doca_task_free(task);
    }
    [src, dst].into_iter().for_each(give_back);
}

#[test]
fn try_submit_looks_and_submit_does_not() {
    let bench = bench("");
    let (task, bufs) = bench.bad_copy(1);
    assert_eq!(unsafe { doca_task_try_submit(task) }, E::DOCA_ERROR_INVALID_VALUE);
    assert_eq!(bench.context.state(), RUNNING);
    submit(task);
    bench.engine.progress_until(|| bench.context.completed() == 1);
    assert!(bench.context.completions()[0].through_error_cb);
    assert_eq!(bench.context.state(), STOPPING);
    unsafe { doca_task_free(task) };
    bench.context.stop(&bench.engine);
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_failed_task_stops_the_context_and_flushes_its_neighbours_and_a_restart_works() {
    let bench = bench("delay_us=2000,seed=1");
    let mut bufs = Vec::new();
    let (good, more) = bench.copy(100);
    bufs.extend(more);
    submit(good);
    let (bad, more) = bench.bad_copy(101);
    bufs.extend(more);
    submit(bad);
    for id in 102..110 {
        let (task, more) = bench.copy(id);
        bufs.extend(more);
        submit(task);
    }
    bench.engine.progress_until(|| bench.context.completed() == 10);
    let completions = bench.context.completions();
    for completion in &completions {
        let failed = completion.id > 100;
        assert_eq!(completion.through_error_cb, failed, "task {}", completion.id);
        assert_eq!(completion.status != E::DOCA_SUCCESS, failed);
    }
    assert_eq!(bench.context.state(), STOPPING);
    let late = bench.context.memcpy(0, ptr::null(), ptr::null_mut());
    assert_eq!(late, Err(E::DOCA_ERROR_BAD_STATE));
    assert_eq!(unsafe { doca_task_submit(completions[0].task) }, E::DOCA_ERROR_BAD_STATE);
    assert!(!bench.engine.progress(), "idle only after all tasks are freed");
    free_all(&completions);
    assert!(bench.engine.progress());
    assert_eq!(bench.context.state(), IDLE);

    ok(unsafe { doca_ctx_start(bench.context.ctx) });
    let (task, more) = bench.copy(1);
    bufs.extend(more);
    assert_eq!(bench.context.run(&bench.engine, task), E::DOCA_SUCCESS);
    bufs.into_iter().for_each(give_back);
}

#[test]
fn stop_with_tasks_in_flight_is_in_progress_and_flushes_them() {
    let bench = bench("delay_us=3000,seed=2");
    let mut bufs = Vec::new();
    for id in 0..6 {
        let (task, more) = bench.copy(id);
        bufs.extend(more);
        submit(task);
    }
    bench.context.log.frees.set(true);
    assert_eq!(unsafe { doca_ctx_stop(bench.context.ctx) }, E::DOCA_ERROR_IN_PROGRESS);
    assert_eq!(bench.context.state(), STOPPING);
    bench.engine.progress_until(|| bench.context.state() == IDLE);
    let completions = bench.context.completions();
    assert_eq!(completions.len(), 6);
    assert!(completions.iter().all(|c| c.through_error_cb && c.status != E::DOCA_SUCCESS));
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_buf_of_a_task_in_flight_cannot_be_given_back() {
    let bench = bench("delay_us=20000,seed=3");
    let (task, [src, dst]) = bench.copy(0);
    submit(task);
    unsafe {
        assert_eq!(doca_buf_dec_refcount(src, ptr::null_mut()), E::DOCA_ERROR_IN_USE);
        assert_eq!(doca_buf_dec_refcount(dst, ptr::null_mut()), E::DOCA_ERROR_IN_USE);
        doca_task_free(task); // refused, with a line on stderr
    }
    bench.engine.progress_until(|| bench.context.completed() == 1);
    unsafe { doca_task_free(task) };
    [src, dst].into_iter().for_each(give_back);
}

#[test]
fn unflushed_submits_wait_for_a_flush() {
    let bench = bench("");
    let (one, bufs1) = bench.copy(1);
    let (two, bufs2) = bench.copy(2);
    unsafe {
        ok(doca_task_submit_ex(one, 0));
        ok(doca_task_submit_ex(two, 2)); // optimised reports, no flush
        assert_eq!(doca_task_submit_ex(two, 8), E::DOCA_ERROR_INVALID_VALUE);
        thread::sleep(Duration::from_millis(30));
        assert!(!bench.engine.progress());
        assert_eq!(bench.context.inflight(), 2);
        doca_ctx_flush_tasks(bench.context.ctx);
    }
    bench.engine.progress_until(|| bench.context.completed() == 2);
    // Held back again, and a submit with both flags takes along what waits.
    unsafe {
        ok(doca_task_submit_ex(one, 0));
        ok(doca_task_submit_ex(two, 3));
    }
    bench.engine.progress_until(|| bench.context.completed() == 4);
    [one, two].into_iter().for_each(|task| unsafe { doca_task_free(task) });
    bufs1.into_iter().chain(bufs2).for_each(give_back);
}

#[test]
fn a_full_queue_answers_again_and_the_task_stays_the_callers() {
    let bench = bench("queue=3,delay_us=3000,seed=4");
    let tasks: Vec<_> = (0..4).map(|id| bench.copy(id)).collect();
    tasks[..3].iter().for_each(|(task, _)| submit(*task));
    assert_eq!(unsafe { doca_task_submit(tasks[3].0) }, E::DOCA_ERROR_AGAIN);
    assert_eq!(bench.context.state(), RUNNING, "back-pressure is no failure");
    bench.engine.progress_until(|| bench.context.completed() == 1);
    submit(tasks[3].0);
    bench.engine.progress_until(|| bench.context.completed() == 4);
    for (task, bufs) in tasks {
        unsafe { doca_task_free(task) };
        bufs.into_iter().for_each(give_back);
    }
}

#[test]
fn a_task_may_be_submitted_again_in_its_callback() {
    struct Loop {
        left: u32,
        dst: *mut doca_buf,
    }
    unsafe extern "C" fn again(task: *mut doca_dma_task_memcpy, _: doca_data, data: doca_data) {
        unsafe {
            let data = &mut *data.ptr.cast::<Loop>();
            let plain = doca_dma_task_memcpy_as_task(task);
            ok(doca_task_get_status(plain));
            data.left -= 1;
            if data.left == 0 {
                return doca_task_free(plain);
            }
            ok(doca_buf_reset_data_len(data.dst));
            ok(doca_task_submit(plain));
        }
    }
    let (device, engine, inventory) = (Device::open(""), Engine::new(), Inventory::new(2));
    let memory = Memory::zeroed(&device, 64);
    let context = Context::dma_unconnected(&device);
    let bufs = [inventory.source(&memory, 0, 32), inventory.destination(&memory, 32, 32)];
    let mut data = Loop { left: 20, dst: bufs[1] };
    let data: *mut Loop = &raw mut data;
    unsafe {
        ok(doca_pe_connect_ctx(engine.0, context.ctx));
        ok(doca_ctx_set_user_data(context.ctx, doca_data { ptr: data.cast() }));
        ok(doca_dma_task_memcpy_set_conf(context.dma_raw(), Some(again), Some(again), 1));
        ok(doca_ctx_start(context.ctx));
    }
    submit(context.memcpy(0, bufs[0], bufs[1]).expect("a task"));
    engine.progress_until(|| unsafe { (*data).left == 0 });
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_context_with_tasks_in_flight_is_not_destroyed_nor_its_device_closed() {
    let bench = bench("delay_us=3000,seed=5");
    let (task, bufs) = bench.copy(0);
    let dma = bench.context.dma_raw();
    submit(task);
    unsafe {
        assert_eq!(doca_dma_destroy(dma), E::DOCA_ERROR_IN_USE, "running");
        assert_eq!(doca_ctx_stop(bench.context.ctx), E::DOCA_ERROR_IN_PROGRESS);
        assert_eq!(doca_dma_destroy(dma), E::DOCA_ERROR_IN_USE, "stopping");
        assert_eq!(doca_dev_close(bench.device.0), E::DOCA_ERROR_IN_USE);
        assert_eq!(doca_pe_destroy(bench.engine.0), E::DOCA_ERROR_IN_USE);
    }
    bench.engine.progress_until(|| bench.context.completed() == 1);
    unsafe { doca_task_free(task) };
    bench.engine.progress_until(|| bench.context.state() == IDLE);
    bufs.into_iter().for_each(give_back);
}

/// A pointer that a thread may take along.
struct Carried<T>(*mut T);
unsafe impl<T> Send for Carried<T> {}

#[test]
fn each_thread_has_its_progress_engine_and_an_mmap_may_be_shared() {
    const EACH: usize = if cfg!(miri) { 3 } else { 500 };
    struct Seen {
        thread: thread::ThreadId,
        count: usize,
    }
    unsafe extern "C" fn done(task: *mut doca_dma_task_memcpy, _: doca_data, seen: doca_data) {
        unsafe {
            let seen = &mut *seen.ptr.cast::<Seen>();
            assert_eq!(seen.thread, thread::current().id(), "callbacks run on the thread that calls progress");
            ok(doca_task_get_status(doca_dma_task_memcpy_as_task(task)));
            seen.count += 1;
            doca_task_free(doca_dma_task_memcpy_as_task(task));
        }
    }
    let device = Device::open("dma_threads=2");
    let bytes = sample(4096, 6);
    let mut room = bytes.clone();
    let mmap = unsafe {
        let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
        ok(doca_mmap_enable_thread_safety(mmap));
        ok(doca_mmap_add_dev(mmap, device.0));
        ok(doca_mmap_set_memrange(mmap, room.as_mut_ptr().cast(), room.len()));
        ok(doca_mmap_start(mmap));
        mmap
    };
    let first = room.as_mut_ptr();
    thread::scope(|scope| {
        for quarter in [1, 2, 3] {
            let carried = (Carried(device.0), Carried(mmap), Carried(first));
            scope.spawn(move || {
                let (Carried(dev), Carried(mmap), Carried(first)) = { carried };
                let (engine, inventory) = (Engine::new(), Inventory::new(2));
                let mut seen = Seen { thread: thread::current().id(), count: 0 };
                let seen: *mut Seen = &raw mut seen;
                unsafe {
                    let dma = out(|dma| doca_dma_create(dev, dma)).expect("a context");
                    let ctx = doca_dma_as_ctx(dma);
                    ok(doca_pe_connect_ctx(engine.0, ctx));
                    ok(doca_ctx_set_user_data(ctx, doca_data { ptr: seen.cast() }));
                    ok(doca_dma_task_memcpy_set_conf(dma, Some(done), Some(done), 1));
                    ok(doca_ctx_start(ctx));
                    for round in 0..EACH {
                        let buf = |at: usize, filled| {
                            let place = first.add(at).cast();
                            let get = |buf| {
                                doca_buf_inventory_buf_get_by_args(inventory.0, mmap, place, 1024, place, filled, buf)
                            };
                            out(get).expect("a buf")
                        };
                        let (src, dst) = (buf(0, 1024), buf(quarter * 1024, 0));
                        let task = out(|task| doca_dma_task_memcpy_alloc_init(dma, src, dst, number(0), task));
                        submit(doca_dma_task_memcpy_as_task(task.expect("a task")));
                        engine.progress_until(|| (*seen).count == round + 1);
                        [src, dst].into_iter().for_each(give_back);
                    }
                    ok(doca_ctx_stop(ctx));
                    ok(doca_dma_destroy(dma));
                }
            });
        }
    });
    ok(unsafe { doca_mmap_destroy(mmap) });
    assert!(room.chunks(1024).all(|quarter| *quarter == bytes[..1024]));
}

#[test]
fn stop_inside_a_callback_is_in_progress_and_progress_does_not_nest() {
    struct Nest {
        pe: *mut doca_pe,
        ctx: *mut doca_ctx,
        answers: Option<(doca_error, u8, doca_error)>,
    }
    unsafe extern "C" fn done(task: *mut doca_dma_task_memcpy, _: doca_data, nest: doca_data) {
        unsafe {
            let nest = &mut *nest.ptr.cast::<Nest>();
            doca_task_free(doca_dma_task_memcpy_as_task(task));
            nest.answers = Some((doca_ctx_stop(nest.ctx), doca_pe_progress(nest.pe), doca_pe_destroy(nest.pe)));
        }
    }
    let (device, engine, inventory) = (Device::open(""), Engine::new(), Inventory::new(2));
    let memory = Memory::zeroed(&device, 64);
    let context = Context::dma_unconnected(&device);
    let mut nest = Nest { pe: engine.0, ctx: context.ctx, answers: None };
    let bufs = [inventory.source(&memory, 0, 32), inventory.destination(&memory, 32, 32)];
    unsafe {
        ok(doca_pe_connect_ctx(engine.0, context.ctx));
        ok(doca_ctx_set_user_data(context.ctx, doca_data { ptr: (&raw mut nest).cast() }));
        ok(doca_dma_task_memcpy_set_conf(context.dma_raw(), Some(done), Some(done), 1));
        ok(doca_ctx_start(context.ctx));
    }
    submit(context.memcpy(0, bufs[0], bufs[1]).expect("a task"));
    engine.progress_until(|| context.state() == IDLE);
    assert_eq!(nest.answers, Some((E::DOCA_ERROR_IN_PROGRESS, 0, E::DOCA_ERROR_IN_USE)));
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_context_may_be_destroyed_in_the_callback_that_says_idle() {
    unsafe extern "C" fn destroy(dma: doca_data, _: *mut doca_ctx, _: doca_ctx_states, after: doca_ctx_states) {
        if after == IDLE {
            ok(unsafe { doca_dma_destroy(dma.ptr.cast()) });
        }
    }
    let (device, engine) = (Device::open(""), Engine::new());
    unsafe {
        let dma = out(|dma| doca_dma_create(device.0, dma)).expect("a context");
        let ctx = doca_dma_as_ctx(dma);
        ok(doca_pe_connect_ctx(engine.0, ctx));
        ok(doca_ctx_set_user_data(ctx, doca_data { ptr: dma.cast() }));
        ok(doca_ctx_set_state_changed_cb(ctx, Some(destroy)));
        ok(doca_dma_task_memcpy_set_conf(dma, Some(memcpy_done), Some(memcpy_failed), 1));
        ok(doca_ctx_start(ctx));
        let task = out(|task| doca_dma_task_memcpy_alloc_init(dma, ptr::null(), ptr::null_mut(), number(0), task));
        assert_eq!(doca_ctx_stop(ctx), E::DOCA_ERROR_IN_PROGRESS);
        doca_task_free(doca_dma_task_memcpy_as_task(task.expect("a task")));
        assert_eq!(doca_pe_progress(engine.0), 1);
        assert_eq!(doca_pe_progress(engine.0), 0);
    }
}

fn fd_of(engine: &Engine) -> i32 {
    out(|fd| unsafe { doca_pe_get_notification_handle(engine.0, fd) }).expect("a descriptor")
}

fn is_readable(fd: i32, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
}

#[test]
#[cfg_attr(miri, ignore = "miri has no poll")]
fn the_descriptor_wakes_only_who_asked() {
    let bench = bench("");
    let fd = fd_of(&bench.engine);
    let (task, bufs) = bench.copy(0);
    submit(task);
    bench.engine.progress_until(|| bench.context.completed() == 1);
    assert!(!is_readable(fd, 0), "not armed");
    submit(task);
    ok(unsafe { doca_pe_request_notification(bench.engine.0) });
    assert!(is_readable(fd, 5000));
    ok(unsafe { doca_pe_clear_notification(bench.engine.0, 0) });
    assert!(!is_readable(fd, 0));
    assert_eq!(fd, fd_of(&bench.engine), "one for life");
    bench.engine.progress_until(|| bench.context.completed() == 2);
    unsafe { doca_task_free(task) };
    bufs.into_iter().for_each(give_back);
}

#[test]
#[cfg_attr(miri, ignore = "miri has no poll")]
fn a_completion_before_the_request_wakes_as_well() {
    let bench = bench("");
    let (task, bufs) = bench.copy(0);
    submit(task);
    thread::sleep(Duration::from_millis(50));
    ok(unsafe { doca_pe_request_notification(bench.engine.0) });
    assert!(is_readable(fd_of(&bench.engine), 0));
    ok(unsafe { doca_pe_clear_notification(bench.engine.0, 0) });
    bench.engine.progress_until(|| bench.context.completed() == 1);
    unsafe { doca_task_free(task) };
    bufs.into_iter().for_each(give_back);
}

#[test]
#[cfg_attr(miri, ignore = "miri has no poll")]
fn the_step_to_idle_wakes_who_waits_for_it() {
    let bench = bench("");
    let task = bench.context.memcpy(0, ptr::null(), ptr::null_mut()).expect("a task");
    unsafe {
        assert_eq!(doca_ctx_stop(bench.context.ctx), E::DOCA_ERROR_IN_PROGRESS);
        ok(doca_pe_request_notification(bench.engine.0));
        assert!(!is_readable(fd_of(&bench.engine), 0));
        doca_task_free(task);
    }
    assert!(is_readable(fd_of(&bench.engine), 0));
    assert!(bench.engine.progress());
}

#[test]
#[cfg_attr(miri, ignore = "miri has no poll")]
fn no_wake_up_is_lost_in_twenty_thousand() {
    let bench = bench("dma_threads=2");
    let fd = fd_of(&bench.engine);
    let tasks: Vec<_> = (0..4).map(|id| bench.copy(id)).collect();
    for round in 0..20_000 {
        let batch = 1 + round % 4;
        for (task, bufs) in &tasks[..batch] {
            ok(unsafe { doca_buf_reset_data_len(bufs[1]) });
            submit(*task);
        }
        while bench.context.completed() < batch {
            ok(unsafe { doca_pe_request_notification(bench.engine.0) });
            assert!(is_readable(fd, 20_000), "round {round}: {} of {batch}", bench.context.completed());
            ok(unsafe { doca_pe_clear_notification(bench.engine.0, 0) });
            while bench.engine.progress() {}
        }
        bench.context.completions();
    }
    for (task, bufs) in tasks {
        unsafe { doca_task_free(task) };
        bufs.into_iter().for_each(give_back);
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    let bench = bench("");
    let stranger = Device::open("");
    let memory = Memory::zeroed(&stranger, 64);
    let bufs = [bench.inventory.source(&bench.source, 0, 64), bench.inventory.destination(&memory, 0, 64)];
    let task = bench.context.memcpy(0, bufs[0], bufs[1]).expect("a task");
    assert_eq!(unsafe { doca_task_try_submit(task) }, E::DOCA_ERROR_INVALID_VALUE);
    assert_ne!(bench.context.run(&bench.engine, task), E::DOCA_SUCCESS);
    bench.context.stop(&bench.engine);
    bufs.into_iter().for_each(give_back);
    let _ = &bench.device;
}
