//! `doca_comch_producer` and `doca_comch_consumer`: the fast path of a connection, buffer to buffer.
//!
//! A producer's data is copied when it is submitted, and goes out in pieces over the connection's socket. It needs a
//! buffer that the consumer has posted: without one, submit answers `AGAIN`.

use std::cell::Cell;
use std::mem;
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::comch::control::Connection;
use crate::comch::link::Link;
use crate::config::{DATA_BYTES_MAX, IMM_BYTES_MAX, LIST_MAX, TASKS_MAX, TaskKind};
use crate::core::ctx::{self, Callback, Ctx};
use crate::core::dev::DevInfo;
use crate::core::library::Library;
use crate::core::mmap::Mmap;
use crate::core::passage::gather;
use crate::core::pe::Addressee;
use crate::core::task::Task;
use crate::core::typed::{Of, Typed};
use crate::ffi::abi::*;
use crate::ffi::{Answer, Enter, Fault, Handle, Out, complain, exports};
use crate::memory::copy::Copier;

/// Producers, and consumers, of one process.
const ENDS_MAX: u32 = 512;

/// What a producer or a consumer is, beside being a context.
pub(crate) struct DataEnd {
    is_consumer: bool,
    pub(crate) id: u32,
    link: Arc<Link>,
    /// Ends of the connection, which may be gone before us.
    siblings: Arc<AtomicU32>,
    imm_max: Cell<u32>,
}

impl DataEnd {
    fn new(connection: Handle<Connection>, is_consumer: bool) -> DataEnd {
        static NEXT_ID: AtomicU32 = AtomicU32::new(1);
        let (link, siblings) = (Arc::clone(&connection.link), Arc::clone(&connection.ends));
        siblings.fetch_add(1, Ordering::Relaxed);
        DataEnd { is_consumer, id: NEXT_ID.fetch_add(1, Ordering::Relaxed), link, siblings, imm_max: Cell::new(0) }
    }
}

impl Drop for DataEnd {
    fn drop(&mut self) {
        self.siblings.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Library for DataEnd {
    fn start(&self, ctx: Handle<Ctx>) -> Result<doca_ctx_states, Fault> {
        let port = Arc::clone(&ctx.pe.get().ok_or(Fault::DOCA_ERROR_NOT_CONNECTED)?.port);
        if !self.link.is_open() {
            return Err(Fault::DOCA_ERROR_NOT_CONNECTED);
        }
        if !self.is_consumer {
            return Ok(doca_ctx_states::DOCA_CTX_STATE_RUNNING);
        }
        self.link.add_consumer(self.id, Addressee(ctx), port);
        Ok(doca_ctx_states::DOCA_CTX_STATE_STARTING)
    }

    /// Takes a task whose buffer list is loaded.
    fn send(&self, task: Handle<Task>) -> Answer {
        if self.is_consumer {
            self.link.post(self.id, task);
            return Ok(());
        }
        let message = task.message.borrow();
        self.link.reserve(message.consumer)?;
        // SAFETY: called by submit on an owned task.
        let data = gather(&mut Copier::new(), unsafe { task.job() });
        let data = data.inspect_err(|_| self.link.refund(message.consumer))?;
        self.link.send_data(message.consumer, self.id, &message.imm, &data, task);
        Ok(())
    }

    /// The one event of an end: the other side knows the consumer.
    fn hear(&self, ctx: Handle<Ctx>) {
        ctx::become_running(ctx);
    }

    fn begin_stop(&self, ctx: Handle<Ctx>) {
        if self.is_consumer {
            self.link.drop_consumer(self.id);
        } else {
            self.link.flush(ctx);
        }
    }
}

macro_rules! end {
    ($name:ident, $opaque:ident, $is_consumer:literal) => {
        pub(crate) struct $name(Handle<Ctx>);

        impl $name {
            fn end(&self) -> &DataEnd {
                self.0.library_as().unwrap_or_else(|| unreachable!("a context of this library is an end"))
            }
        }

        impl Enter<*const $opaque> for $name {
            unsafe fn enter(raw: *const $opaque) -> Result<Self, Fault> {
                // SAFETY: our contract is the callee's; a library's pointer is its context's.
                let ctx = unsafe { Handle::<Ctx>::from_c(raw.cast()) }?;
                let is_it = ctx.library_as::<DataEnd>().is_some_and(|end| end.is_consumer == $is_consumer);
                if is_it { Ok($name(ctx)) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
            }
        }

        impl Enter<*mut $opaque> for $name {
            unsafe fn enter(raw: *mut $opaque) -> Result<Self, Fault> {
                // SAFETY: our contract is the callee's.
                unsafe { Enter::enter(raw.cast_const()) }
            }
        }
    };
}

end!(Producer, doca_comch_producer, false);
end!(Consumer, doca_comch_consumer, true);

impl Typed for doca_comch_producer_task_send {
    const KIND: TaskKind = TaskKind::DataSend;
}

impl Typed for doca_comch_consumer_task_post_recv {
    const KIND: TaskKind = TaskKind::PostReceive;
}

/// Immediate data, copied; its length comes with it.
fn immediate(bytes: *const u8, length: u32) -> Result<Vec<u8>, Fault> {
    if length as usize > IMM_BYTES_MAX || (bytes.is_null() && length > 0) {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    if length == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's bytes, for the length of the call.
    Ok(unsafe { slice::from_raw_parts(bytes, length as usize) }.to_vec())
}

fn connected(connection: Handle<Connection>) -> Answer {
    let alive = connection.ctx.is_running() && connection.link.is_open();
    if alive { Ok(()) } else { Err(Fault::DOCA_ERROR_NOT_CONNECTED) }
}

fn put(place: Out<u32>, value: u32) -> Answer {
    place.put(value);
    Ok(())
}

type Send = doca_comch_producer_task_send;
type Receive = doca_comch_consumer_task_post_recv;

exports! {
    fn doca_comch_producer_cap_is_supported(devinfo: *const doca_devinfo => Handle<DevInfo>) {
        let _ = devinfo;
        Ok(())
    }

    fn doca_comch_producer_cap_get_max_num_tasks(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_num_tasks: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_num_tasks, TASKS_MAX)
    }

    fn doca_comch_producer_cap_get_max_buf_size(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_buf_size: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_buf_size, DATA_BYTES_MAX)
    }

    fn doca_comch_producer_cap_get_max_buf_list_len(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_buf_list_len: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_buf_list_len, LIST_MAX)
    }

    fn doca_comch_producer_cap_get_max_producers(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_producers: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_producers, ENDS_MAX)
    }

    fn doca_comch_producer_create(
        comch_connection: *mut doca_comch_connection => Handle<Connection>,
        producer: *mut *mut doca_comch_producer => Out<*mut doca_comch_producer>,
    ) {
        connected(comch_connection)?;
        let end = DataEnd::new(comch_connection, false);
        producer.put(Ctx::create(end, comch_connection.ctx.dev).to_c().cast());
        Ok(())
    }

    fn doca_comch_producer_destroy(producer: *mut doca_comch_producer => Producer) {
        ctx::destroy(producer.0)
    }

    fn doca_comch_producer_as_ctx(producer: *mut doca_comch_producer => Producer) -> *mut doca_ctx = (ptr::null_mut()) {
        producer.0.to_c()
    }

    fn doca_comch_producer_get_id(producer: *const doca_comch_producer => Producer, id: *mut u32 => Out<u32>) {
        put(id, producer.end().id)
    }

    fn doca_comch_producer_task_send_set_conf(
        producer: *mut doca_comch_producer => Producer,
        task_completion_cb: doca_comch_producer_task_send_completion_cb_t,
        task_error_cb: doca_comch_producer_task_send_completion_cb_t,
        num_send_tasks: u32,
    ) {
        type Plain = doca_comch_producer_task_send_completion_cb_t;
        // SAFETY: both are optional C functions of three arguments that differ in what the first points to, which the
        // calling convention does not see; the pointer passed will be of the typed kind.
        let (done, failed) = unsafe {
            (
                mem::transmute::<Plain, Option<Callback>>(task_completion_cb),
                mem::transmute::<Plain, Option<Callback>>(task_error_cb),
            )
        };
        producer.0.configure(TaskKind::DataSend, done, failed, num_send_tasks)
    }

    fn doca_comch_producer_task_send_alloc_init(
        producer: *mut doca_comch_producer => Producer,
        buf: *const doca_buf,
        imm_data: *mut u8,
        imm_data_len: u32,
        consumer_id: u32,
        task: *mut *mut Send => Out<*mut Send>,
    ) {
        let imm = immediate(imm_data, imm_data_len)?;
        let allocated = producer.0.allocate(TaskKind::DataSend)?;
        allocated.init(buf, ptr::null_mut(), doca_data { u64_: 0 });
        let mut message = allocated.message.borrow_mut();
        message.imm_place = imm_data;
        message.imm = imm;
        message.consumer = consumer_id;
        task.put(allocated.to_c().cast());
        Ok(())
    }

    fn doca_comch_producer_task_send_as_task(task: *mut Send => Of<Send>) -> *mut doca_task = (ptr::null_mut()) {
        task.0.to_c()
    }

    fn doca_comch_producer_task_send_get_buf(task: *const Send => Of<Send>) -> *const doca_buf = (ptr::null()) {
        task.src()
    }

    fn doca_comch_producer_task_send_set_buf(task: *mut Send => Of<Send>, buf: *const doca_buf)
        -> () = (complain("doca_comch_producer_task_send_set_buf: not such a task"))
    {
        task.set_src(buf)
    }

    fn doca_comch_producer_task_send_get_consumer_id(task: *const Send => Of<Send>) -> u32 = (0) {
        task.message.borrow().consumer
    }

    fn doca_comch_producer_task_send_set_consumer_id(task: *mut Send => Of<Send>, consumer_id: u32)
        -> () = (complain("doca_comch_producer_task_send_set_consumer_id: not such a task"))
    {
        task.message.borrow_mut().consumer = consumer_id;
    }

    fn doca_comch_producer_task_send_get_imm_data(task: *const Send => Of<Send>) -> *mut u8 = (ptr::null_mut()) {
        task.message.borrow().imm_place
    }

    fn doca_comch_producer_task_send_get_imm_data_len(task: *const Send => Of<Send>) -> u32 = (0) {
        task.message.borrow().imm.len() as u32
    }

    fn doca_comch_producer_task_send_set_imm_data(
        task: *mut Send => Of<Send>,
        imm_data: *mut u8,
        imm_data_len: u32,
    ) -> () = (complain("doca_comch_producer_task_send_set_imm_data: not such a task")) {
        match immediate(imm_data, imm_data_len) {
            Ok(imm) => {
                let mut message = task.message.borrow_mut();
                message.imm_place = imm_data;
                message.imm = imm;
            }
            Err(_) => complain("doca_comch_producer_task_send_set_imm_data: too long, ignored"),
        }
    }

    fn doca_comch_consumer_cap_is_supported(devinfo: *const doca_devinfo => Handle<DevInfo>) {
        let _ = devinfo;
        Ok(())
    }

    fn doca_comch_consumer_cap_get_max_num_tasks(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_num_tasks: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_num_tasks, TASKS_MAX)
    }

    fn doca_comch_consumer_cap_get_max_buf_size(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_buf_size: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_buf_size, DATA_BYTES_MAX)
    }

    fn doca_comch_consumer_cap_get_max_buf_list_len(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_buf_list_len: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_buf_list_len, LIST_MAX)
    }

    fn doca_comch_consumer_cap_get_max_consumers(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_consumers: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_consumers, ENDS_MAX)
    }

    fn doca_comch_consumer_cap_get_max_imm_data_len(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_imm_data_len: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        put(max_imm_data_len, IMM_BYTES_MAX as u32)
    }

    fn doca_comch_consumer_create(
        comch_connection: *mut doca_comch_connection => Handle<Connection>,
        buf_mmap: *mut doca_mmap => Handle<Mmap>,
        consumer: *mut *mut doca_comch_consumer => Out<*mut doca_comch_consumer>,
    ) {
        connected(comch_connection)?;
        if !buf_mmap.region()?.admits_delivery(comch_connection.ctx.dev.id) {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        let end = DataEnd::new(comch_connection, true);
        consumer.put(Ctx::create(end, comch_connection.ctx.dev).to_c().cast());
        Ok(())
    }

    fn doca_comch_consumer_destroy(consumer: *mut doca_comch_consumer => Consumer) {
        ctx::destroy(consumer.0)
    }

    fn doca_comch_consumer_as_ctx(consumer: *mut doca_comch_consumer => Consumer) -> *mut doca_ctx = (ptr::null_mut()) {
        consumer.0.to_c()
    }

    fn doca_comch_consumer_get_id(consumer: *const doca_comch_consumer => Consumer, id: *mut u32 => Out<u32>) {
        put(id, consumer.end().id)
    }

    fn doca_comch_consumer_set_imm_data_len(consumer: *mut doca_comch_consumer => Consumer, imm_data_len: u32) {
        consumer.0.check_idle()?;
        if imm_data_len as usize > IMM_BYTES_MAX {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        consumer.end().imm_max.set(imm_data_len);
        Ok(())
    }

    fn doca_comch_consumer_get_imm_data_len(
        consumer: *const doca_comch_consumer => Consumer,
        imm_data_len: *mut u32 => Out<u32>,
    ) {
        put(imm_data_len, consumer.end().imm_max.get())
    }

    fn doca_comch_consumer_task_post_recv_set_conf(
        consumer: *mut doca_comch_consumer => Consumer,
        task_completion_cb: doca_comch_consumer_task_post_recv_completion_cb_t,
        task_error_cb: doca_comch_consumer_task_post_recv_completion_cb_t,
        num_post_recv_tasks: u32,
    ) {
        type Plain = doca_comch_consumer_task_post_recv_completion_cb_t;
        // SAFETY: both are optional C functions of three arguments that differ in what the first points to, which the
        // calling convention does not see; the pointer passed will be of the typed kind.
        let (done, failed) = unsafe {
            (
                mem::transmute::<Plain, Option<Callback>>(task_completion_cb),
                mem::transmute::<Plain, Option<Callback>>(task_error_cb),
            )
        };
        consumer.0.configure(TaskKind::PostReceive, done, failed, num_post_recv_tasks)
    }

    fn doca_comch_consumer_task_post_recv_alloc_init(
        consumer: *mut doca_comch_consumer => Consumer,
        buf: *mut doca_buf,
        task: *mut *mut Receive => Out<*mut Receive>,
    ) {
        let allocated = consumer.0.allocate(TaskKind::PostReceive)?;
        allocated.init(ptr::null(), buf, doca_data { u64_: 0 });
        task.put(allocated.to_c().cast());
        Ok(())
    }

    fn doca_comch_consumer_task_post_recv_as_task(task: *mut Receive => Of<Receive>)
        -> *mut doca_task = (ptr::null_mut())
    {
        task.0.to_c()
    }

    fn doca_comch_consumer_task_post_recv_get_buf(task: *const Receive => Of<Receive>)
        -> *mut doca_buf = (ptr::null_mut())
    {
        task.dst()
    }

    fn doca_comch_consumer_task_post_recv_set_buf(task: *mut Receive => Of<Receive>, buf: *mut doca_buf)
        -> () = (complain("doca_comch_consumer_task_post_recv_set_buf: not such a task"))
    {
        task.set_dst(buf)
    }

    fn doca_comch_consumer_task_post_recv_get_producer_id(task: *const Receive => Of<Receive>) -> u32 = (0) {
        task.result(|job| job.producer)
    }

    fn doca_comch_consumer_task_post_recv_get_imm_data(task: *const Receive => Of<Receive>)
        -> *const u8 = (ptr::null())
    {
        task.immediate()
    }

    fn doca_comch_consumer_task_post_recv_get_imm_data_len(task: *const Receive => Of<Receive>) -> u32 = (0) {
        task.result(|job| job.imm_len as u32)
    }
}
