//! `doca_comch`: the exported names of servers, clients and connections.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::Ordering;

use super::{Client, Connection, ControlEnd, MESSAGE_MAX, Server, is_side};
use crate::comch::link::Counter;
use crate::comch::reactor::CLIENTS_MAX;
use crate::config::{Role, TASKS_MAX, TaskKind};
use crate::core::ctx::{self, Callback, Ctx};
use crate::core::dev::{Dev, DevInfo};
use crate::core::rep::DevRep;
use crate::core::typed::{Of, Typed};
use crate::ffi::abi::*;
use crate::ffi::{Answer, Fault, Handle, Out, Text, exports};

/// Longest name of a server, its zero included.
const NAME_MAX: u32 = 120;
const QUEUE_MAX: u32 = 8192;

impl Typed for doca_comch_task_send {
    const KIND: TaskKind = TaskKind::MessageSend;
}

fn check_name(name: &str) -> Answer {
    let fits = !name.is_empty() && name.len() < NAME_MAX as usize;
    if fits { Ok(()) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
}

fn set_limit(ctx: Handle<Ctx>, place: &Cell<u32>, size: u32, limit: u32) -> Answer {
    ctx.check_idle()?;
    if size == 0 || size > limit {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    place.set(size);
    Ok(())
}

fn set_events<C: Copy>(ctx: Handle<Ctx>, events: [(&Cell<Option<C>>, Option<C>); 2]) -> Answer {
    ctx.check_idle()?;
    if events.iter().any(|(_, callback)| callback.is_none()) {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    events.into_iter().for_each(|(place, callback)| place.set(callback));
    Ok(())
}

fn configure_send(
    ctx: Handle<Ctx>,
    done: doca_comch_task_send_completion_cb_t,
    failed: doca_comch_task_send_completion_cb_t,
    count: u32,
) -> Answer {
    type Plain = doca_comch_task_send_completion_cb_t;
    // SAFETY: both are optional C functions of three arguments that differ in what the first points to, which the
    // calling convention does not see; the pointer passed will be of the typed kind.
    let (done, failed) =
        unsafe { (mem::transmute::<Plain, Option<Callback>>(done), mem::transmute::<Plain, Option<Callback>>(failed)) };
    ctx.configure(TaskKind::MessageSend, done, failed, count)
}

fn allocate_send(
    ctx: Handle<Ctx>,
    peer: Handle<Connection>,
    bytes: *const c_void,
    length: u32,
) -> Result<*mut doca_comch_task_send, Fault> {
    if peer.ctx != ctx || bytes.is_null() || length == 0 {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    if !peer.link.is_open() {
        return Err(Fault::DOCA_ERROR_NOT_CONNECTED);
    }
    if length > peer.link.message_max.load(Ordering::Relaxed) {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    let task = ctx.allocate(TaskKind::MessageSend)?;
    task.init(ptr::null(), ptr::null_mut(), doca_data { u64_: 0 });
    let mut message = task.message.borrow_mut();
    message.route = Some(peer.link.clone());
    message.bytes = bytes.cast();
    message.length = length as usize;
    Ok(task.to_c().cast())
}

fn put_device(ctx: Handle<Ctx>, dev: Out<*mut doca_dev>) -> Answer {
    dev.put(ctx.dev.to_c());
    Ok(())
}

exports! {
    fn doca_comch_cap_server_is_supported(devinfo: *const doca_devinfo => Handle<DevInfo>) {
        if devinfo.config.role == Role::Host { Err(Fault::DOCA_ERROR_NOT_SUPPORTED) } else { Ok(()) }
    }

    fn doca_comch_cap_client_is_supported(devinfo: *const doca_devinfo => Handle<DevInfo>) {
        if devinfo.config.role == Role::Card { Err(Fault::DOCA_ERROR_NOT_SUPPORTED) } else { Ok(()) }
    }

    fn doca_comch_cap_get_max_name_len(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_name_len: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        max_name_len.put(NAME_MAX);
        Ok(())
    }

    fn doca_comch_cap_get_max_msg_size(devinfo: *const doca_devinfo => Handle<DevInfo>, size: *mut u32 => Out<u32>) {
        let _ = devinfo;
        size.put(MESSAGE_MAX);
        Ok(())
    }

    fn doca_comch_cap_get_max_recv_queue_size(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        size: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        size.put(QUEUE_MAX);
        Ok(())
    }

    fn doca_comch_cap_get_max_clients(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        num_clients: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        num_clients.put(CLIENTS_MAX);
        Ok(())
    }

    fn doca_comch_cap_get_max_send_tasks(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        max_send_tasks: *mut u32 => Out<u32>,
    ) {
        let _ = devinfo;
        max_send_tasks.put(TASKS_MAX);
        Ok(())
    }

    fn doca_comch_server_create(
        dev: *mut doca_dev => Handle<Dev>,
        repr: *mut doca_dev_rep => Handle<DevRep>,
        name: *const c_char => Text,
        comch_server: *mut *mut doca_comch_server => Out<*mut doca_comch_server>,
    ) {
        if dev.config().role == Role::Host {
            return Err(Fault::DOCA_ERROR_NOT_SUPPORTED);
        }
        check_name(&name.0)?;
        if !repr.is_of(dev) {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let end = ControlEnd::new(name.0, repr.info.pci_address(), Some(repr));
        comch_server.put(Ctx::create(end, dev).to_c().cast());
        Ok(())
    }

    fn doca_comch_server_destroy(comch_server: *mut doca_comch_server => Server) {
        ctx::destroy(comch_server.0)
    }

    fn doca_comch_server_as_ctx(comch_server: *mut doca_comch_server => Server) -> *mut doca_ctx = (ptr::null_mut()) {
        comch_server.0.to_c()
    }

    fn doca_comch_server_get_device(
        comch_server: *const doca_comch_server => Server,
        dev: *mut *mut doca_dev => Out<*mut doca_dev>,
    ) {
        put_device(comch_server.0, dev)
    }

    fn doca_comch_server_get_device_rep(
        comch_server: *const doca_comch_server => Server,
        rep: *mut *mut doca_dev_rep => Out<*mut doca_dev_rep>,
    ) {
        rep.put(comch_server.end().rep.ok_or(Fault::DOCA_ERROR_UNEXPECTED)?.to_c());
        Ok(())
    }

    fn doca_comch_server_disconnect(
        comch_server: *mut doca_comch_server => Server,
        connection: *mut doca_comch_connection => Handle<Connection>,
    ) {
        if connection.ctx != comch_server.0 {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        if connection.ends.load(Ordering::Relaxed) > 0 {
            return Err(Fault::DOCA_ERROR_IN_USE);
        }
        if !connection.link.close() {
            return Err(Fault::DOCA_ERROR_NOT_CONNECTED);
        }
        // Asked for, so there will be no event.
        comch_server.end().bury(connection);
        Ok(())
    }

    fn doca_comch_server_set_max_msg_size(comch_server: *mut doca_comch_server => Server, size: u32) {
        set_limit(comch_server.0, &comch_server.end().message_max, size, MESSAGE_MAX)
    }

    fn doca_comch_server_get_max_msg_size(
        comch_server: *const doca_comch_server => Server,
        size: *mut u32 => Out<u32>,
    ) {
        size.put(comch_server.end().message_max.get());
        Ok(())
    }

    fn doca_comch_server_set_recv_queue_size(comch_server: *mut doca_comch_server => Server, size: u32) {
        set_limit(comch_server.0, &comch_server.end().queue, size, QUEUE_MAX)
    }

    fn doca_comch_server_get_recv_queue_size(
        comch_server: *const doca_comch_server => Server,
        size: *mut u32 => Out<u32>,
    ) {
        size.put(comch_server.end().queue.get());
        Ok(())
    }

    fn doca_comch_client_create(
        dev: *mut doca_dev => Handle<Dev>,
        name: *const c_char => Text,
        comch_client: *mut *mut doca_comch_client => Out<*mut doca_comch_client>,
    ) {
        if dev.config().role == Role::Card {
            return Err(Fault::DOCA_ERROR_NOT_SUPPORTED);
        }
        check_name(&name.0)?;
        let end = ControlEnd::new(name.0, dev.info.pci_address(), None);
        comch_client.put(Ctx::create(end, dev).to_c().cast());
        Ok(())
    }

    fn doca_comch_client_destroy(comch_client: *mut doca_comch_client => Client) {
        ctx::destroy(comch_client.0)
    }

    fn doca_comch_client_as_ctx(comch_client: *mut doca_comch_client => Client) -> *mut doca_ctx = (ptr::null_mut()) {
        comch_client.0.to_c()
    }

    fn doca_comch_client_get_device(
        comch_client: *const doca_comch_client => Client,
        dev: *mut *mut doca_dev => Out<*mut doca_dev>,
    ) {
        put_device(comch_client.0, dev)
    }

    fn doca_comch_client_get_connection(
        comch_client: *const doca_comch_client => Client,
        connection: *mut *mut doca_comch_connection => Out<*mut doca_comch_connection>,
    ) {
        let first = comch_client.end().connections.borrow().first().copied();
        connection.put(first.ok_or(Fault::DOCA_ERROR_BAD_STATE)?.to_c());
        Ok(())
    }

    fn doca_comch_client_set_max_msg_size(comch_client: *mut doca_comch_client => Client, size: u32) {
        set_limit(comch_client.0, &comch_client.end().message_max, size, MESSAGE_MAX)
    }

    fn doca_comch_client_get_max_msg_size(
        comch_client: *const doca_comch_client => Client,
        size: *mut u32 => Out<u32>,
    ) {
        size.put(comch_client.end().message_max.get());
        Ok(())
    }

    fn doca_comch_client_set_recv_queue_size(comch_client: *mut doca_comch_client => Client, size: u32) {
        set_limit(comch_client.0, &comch_client.end().queue, size, QUEUE_MAX)
    }

    fn doca_comch_client_get_recv_queue_size(
        comch_client: *const doca_comch_client => Client,
        size: *mut u32 => Out<u32>,
    ) {
        size.put(comch_client.end().queue.get());
        Ok(())
    }

    fn doca_comch_connection_set_user_data(
        connection: *mut doca_comch_connection => Handle<Connection>,
        user_data: doca_data,
    ) {
        connection.user_data.set(user_data);
        Ok(())
    }

    fn doca_comch_connection_get_user_data(connection: *const doca_comch_connection => Handle<Connection>)
        -> doca_data = (doca_data { u64_: 0 })
    {
        connection.user_data.get()
    }

    fn doca_comch_server_get_server_ctx(connection: *const doca_comch_connection => Handle<Connection>)
        -> *mut doca_comch_server = (ptr::null_mut())
    {
        if is_side(connection.ctx, true) { connection.ctx.to_c().cast() } else { ptr::null_mut() }
    }

    fn doca_comch_client_get_client_ctx(connection: *const doca_comch_connection => Handle<Connection>)
        -> *mut doca_comch_client = (ptr::null_mut())
    {
        if is_side(connection.ctx, false) { connection.ctx.to_c().cast() } else { ptr::null_mut() }
    }

    fn doca_comch_connection_update_info(comch_connection: *mut doca_comch_connection => Handle<Connection>) {
        let link = &comch_connection.link;
        let all = [Counter::SentMessages, Counter::SentBytes, Counter::ReceivedMessages, Counter::ReceivedBytes];
        comch_connection.counters.set(all.map(|which| link.counter(which)));
        Ok(())
    }

    fn doca_comch_connection_get_counter(
        comch_connection: *const doca_comch_connection => Handle<Connection>,
        counter_type: doca_comch_counter,
        counter_value: *mut u64 => Out<u64>,
    ) {
        let index = (counter_type.0 as usize).checked_sub(1).filter(|index| *index < 4);
        let index = index.ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        counter_value.put(comch_connection.counters.get()[index]);
        Ok(())
    }

    fn doca_comch_server_task_send_set_conf(
        comch_server: *mut doca_comch_server => Server,
        task_completion_cb: doca_comch_task_send_completion_cb_t,
        task_error_cb: doca_comch_task_send_completion_cb_t,
        num_send_tasks: u32,
    ) {
        configure_send(comch_server.0, task_completion_cb, task_error_cb, num_send_tasks)
    }

    fn doca_comch_client_task_send_set_conf(
        comch_client: *mut doca_comch_client => Client,
        task_completion_cb: doca_comch_task_send_completion_cb_t,
        task_error_cb: doca_comch_task_send_completion_cb_t,
        num_send_tasks: u32,
    ) {
        configure_send(comch_client.0, task_completion_cb, task_error_cb, num_send_tasks)
    }

    fn doca_comch_server_task_send_alloc_init(
        comch_server: *mut doca_comch_server => Server,
        peer: *mut doca_comch_connection => Handle<Connection>,
        msg: *const c_void,
        len: u32,
        task: *mut *mut doca_comch_task_send => Out<*mut doca_comch_task_send>,
    ) {
        task.put(allocate_send(comch_server.0, peer, msg, len)?);
        Ok(())
    }

    fn doca_comch_client_task_send_alloc_init(
        comch_client: *mut doca_comch_client => Client,
        peer: *mut doca_comch_connection => Handle<Connection>,
        msg: *const c_void,
        len: u32,
        task: *mut *mut doca_comch_task_send => Out<*mut doca_comch_task_send>,
    ) {
        task.put(allocate_send(comch_client.0, peer, msg, len)?);
        Ok(())
    }

    fn doca_comch_task_send_as_task(task: *mut doca_comch_task_send => Of<doca_comch_task_send>)
        -> *mut doca_task = (ptr::null_mut())
    {
        task.0.to_c()
    }

    fn doca_comch_server_event_msg_recv_register(
        comch_server: *mut doca_comch_server => Server,
        recv_event_cb: doca_comch_event_msg_recv_cb_t,
    ) {
        let place = &comch_server.end().on_message;
        set_events(comch_server.0, [(place, recv_event_cb), (place, recv_event_cb)])
    }

    fn doca_comch_client_event_msg_recv_register(
        comch_client: *mut doca_comch_client => Client,
        recv_event_cb: doca_comch_event_msg_recv_cb_t,
    ) {
        let place = &comch_client.end().on_message;
        set_events(comch_client.0, [(place, recv_event_cb), (place, recv_event_cb)])
    }

    fn doca_comch_server_event_connection_status_changed_register(
        comch_server: *mut doca_comch_server => Server,
        connect_event_cb: doca_comch_event_connection_status_changed_cb_t,
        disconnect_event_cb: doca_comch_event_connection_status_changed_cb_t,
    ) {
        let end = comch_server.end();
        set_events(
            comch_server.0,
            [(&end.on_connect, connect_event_cb), (&end.on_disconnect, disconnect_event_cb)],
        )
    }

    fn doca_comch_server_event_consumer_register(
        comch_server: *mut doca_comch_server => Server,
        new_consumer_event_cb: doca_comch_event_consumer_cb_t,
        expired_consumer_event_cb: doca_comch_event_consumer_cb_t,
    ) {
        let end = comch_server.end();
        let events = [(&end.on_consumer, new_consumer_event_cb), (&end.on_expired, expired_consumer_event_cb)];
        set_events(comch_server.0, events)
    }

    fn doca_comch_client_event_consumer_register(
        comch_client: *mut doca_comch_client => Client,
        new_consumer_event_cb: doca_comch_event_consumer_cb_t,
        expired_consumer_event_cb: doca_comch_event_consumer_cb_t,
    ) {
        let end = comch_client.end();
        let events = [(&end.on_consumer, new_consumer_event_cb), (&end.on_expired, expired_consumer_event_cb)];
        set_events(comch_client.0, events)
    }
}
