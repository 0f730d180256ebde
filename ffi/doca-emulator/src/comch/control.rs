//! Servers, clients and their connections: what these contexts do with what they hear.

mod exports;

use std::cell::{Cell, RefCell};
use std::mem;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::comch::inbox::{Event, Inbox};
use crate::comch::link::Link;
use crate::comch::reactor::{Reactor, Terms};
use crate::core::ctx::{self, Ctx};
use crate::core::library::Library;
use crate::core::pe::Addressee;
use crate::core::rep::DevRep;
use crate::core::task::Task;
use crate::ffi::abi::*;
use crate::ffi::{Answer, Enter, Fault, Handle, Object, Stamp};

/// Longest message, with its room in a 4 KiB buffer of the card.
const MESSAGE_MAX: u32 = 4080;
const QUEUE_DEFAULT: u32 = 128;
/// Connections that are over and still answer to their handle.
const GHOSTS_MAX: usize = 64;

/// What a server or a client is, beside being a context.
pub(crate) struct ControlEnd {
    is_server: bool,
    name: String,
    address: String,
    rep: Option<Handle<DevRep>>,
    message_max: Cell<u32>,
    queue: Cell<u32>,
    on_message: Cell<doca_comch_event_msg_recv_cb_t>,
    on_connect: Cell<doca_comch_event_connection_status_changed_cb_t>,
    on_disconnect: Cell<doca_comch_event_connection_status_changed_cb_t>,
    on_consumer: Cell<doca_comch_event_consumer_cb_t>,
    on_expired: Cell<doca_comch_event_consumer_cb_t>,
    /// The thread and its links; there from start to idle.
    reactor: RefCell<Option<Reactor>>,
    inbox: RefCell<Option<Inbox>>,
    connections: RefCell<Vec<Handle<Connection>>>,
    /// Connections that are over, oldest first.
    ghosts: RefCell<Vec<Handle<Connection>>>,
}

impl ControlEnd {
    /// A server's with its representor, else a client's.
    fn new(name: String, address: String, rep: Option<Handle<DevRep>>) -> ControlEnd {
        if let Some(rep) = rep {
            rep.hold();
        }
        ControlEnd {
            is_server: rep.is_some(),
            name,
            address,
            rep,
            message_max: Cell::new(MESSAGE_MAX),
            queue: Cell::new(QUEUE_DEFAULT),
            on_message: Cell::new(None),
            on_connect: Cell::new(None),
            on_disconnect: Cell::new(None),
            on_consumer: Cell::new(None),
            on_expired: Cell::new(None),
            reactor: RefCell::new(None),
            inbox: RefCell::new(None),
            connections: RefCell::new(Vec::new()),
            ghosts: RefCell::new(Vec::new()),
        }
    }

    fn find(&self, link: &Arc<Link>) -> Option<Handle<Connection>> {
        self.connections.borrow().iter().copied().find(|connection| Arc::ptr_eq(&connection.link, link))
    }

    /// The connection is over; its handle is known for a while.
    fn bury(&self, connection: Handle<Connection>) {
        self.connections.borrow_mut().retain(|other| *other != connection);
        let mut ghosts = self.ghosts.borrow_mut();
        ghosts.push(connection);
        if ghosts.len() > GHOSTS_MAX {
            // SAFETY: made by `Handle::new`, and in no list any more.
            unsafe { ghosts.remove(0).destroy() };
        }
    }

    fn forget_all(&self) {
        let mut all = mem::take(&mut *self.connections.borrow_mut());
        all.append(&mut self.ghosts.borrow_mut());
        for connection in all {
            // SAFETY: made by `Handle::new`, and in no list any more.
            unsafe { connection.destroy() };
        }
    }
}

impl Drop for ControlEnd {
    fn drop(&mut self) {
        self.forget_all();
        if let Some(rep) = self.rep {
            rep.release();
        }
    }
}

/// One client of a server, or a client's one server.
#[repr(C)]
pub(crate) struct Connection {
    stamp: Stamp,
    pub(crate) ctx: Handle<Ctx>,
    pub(crate) link: Arc<Link>,
    /// Producers and consumers on it.
    pub(crate) ends: Arc<AtomicU32>,
    user_data: Cell<doca_data>,
    counters: Cell<[u64; 4]>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Connection {
    type Opaque = doca_comch_connection;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-conn");
}

impl Library for ControlEnd {
    fn start(&self, ctx: Handle<Ctx>) -> Result<doca_ctx_states, Fault> {
        let port = Arc::clone(&ctx.pe.get().ok_or(Fault::DOCA_ERROR_NOT_CONNECTED)?.port);
        let inbox = Inbox::new(Addressee(ctx), port);
        let (address, name) = (self.address.clone(), self.name.clone());
        let (message_max, window) = (self.message_max.get(), self.queue.get());
        let terms = Terms { address, name, message_max, window, inbox: inbox.clone() };
        let (reactor, state) = if self.is_server {
            (Reactor::serve(ctx.dev.config(), terms)?, doca_ctx_states::DOCA_CTX_STATE_RUNNING)
        } else {
            (Reactor::visit(ctx.dev.config(), terms)?, doca_ctx_states::DOCA_CTX_STATE_STARTING)
        };
        *self.reactor.borrow_mut() = Some(reactor);
        *self.inbox.borrow_mut() = Some(inbox);
        Ok(state)
    }

    fn send(&self, task: Handle<Task>) -> Answer {
        let message = task.message.borrow();
        let route = message.route.as_ref().ok_or(Fault::DOCA_ERROR_BAD_STATE)?;
        // SAFETY: the application keeps the message until the task completes.
        let bytes = unsafe { slice::from_raw_parts(message.bytes, message.length) };
        route.send_message(bytes, task);
        Ok(())
    }

    /// What has been sent and is not out yet is flushed.
    fn begin_stop(&self, ctx: Handle<Ctx>) {
        let reactor = self.reactor.borrow();
        for link in reactor.iter().flat_map(Reactor::links) {
            link.flush(ctx);
        }
    }

    /// The links end.
    fn finish_stop(&self) {
        drop(self.reactor.borrow_mut().take());
        *self.inbox.borrow_mut() = None;
        self.forget_all();
    }

    /// One of many clients that did not take a message stops nothing.
    fn stops_on_failure(&self) -> bool {
        !self.is_server
    }

    fn hear(&self, ctx: Handle<Ctx>) {
        let next = self.inbox.borrow().as_ref().and_then(Inbox::next);
        let Some(event) = next else { return };
        // The header's events have no contents: any address of ours will do.
        let opaque = ctx.to_c();
        match event {
            Event::Joined(link) => {
                let connection = Handle::new(Connection {
                    stamp: Stamp::new(Connection::MAGIC),
                    ctx,
                    link,
                    ends: Arc::default(),
                    user_data: Cell::new(doca_data { u64_: 0 }),
                    counters: Cell::new([0; 4]),
                });
                self.connections.borrow_mut().push(connection);
                if !self.is_server {
                    ctx::become_running(ctx);
                } else if let (Some(callback), true) = (self.on_connect.get(), ctx.is_running()) {
                    // SAFETY: the application's function, as the header declares it, on the context's thread.
                    unsafe { callback(opaque.cast(), connection.to_c(), 1) };
                }
            }
            Event::Refused => ctx::fail(ctx),
            Event::Left(link) => {
                let Some(connection) = self.find(&link) else { return };
                self.bury(connection);
                if !self.is_server {
                    ctx::fail(ctx);
                } else if let (Some(callback), true) = (self.on_disconnect.get(), ctx.is_running()) {
                    // SAFETY: as above.
                    unsafe { callback(opaque.cast(), connection.to_c(), 1) };
                }
            }
            Event::Message(link, mut message) => {
                let Some(connection) = self.find(&link) else { return };
                if let (Some(callback), true) = (self.on_message.get(), ctx.is_running()) {
                    // SAFETY: as above; the message lives until the callback returns.
                    unsafe { callback(opaque.cast(), message.as_mut_ptr(), message.len() as u32, connection.to_c()) };
                }
                link.taken(message);
            }
            Event::Consumer(link, id) => consumer_event(ctx, self, &link, id, self.on_consumer.get()),
            Event::Expired(link, id) => consumer_event(ctx, self, &link, id, self.on_expired.get()),
        }
    }
}

fn consumer_event(
    ctx: Handle<Ctx>,
    end: &ControlEnd,
    link: &Arc<Link>,
    id: u32,
    callback: doca_comch_event_consumer_cb_t,
) {
    if let (Some(connection), Some(callback), true) = (end.find(link), callback, ctx.is_running()) {
        // SAFETY: the application's function, as the header declares it, on the context's thread.
        unsafe { callback(ctx.to_c().cast(), connection.to_c(), id) };
    }
}

/// A server's or client's pointer, checked.
macro_rules! side {
    ($name:ident, $opaque:ident, $is_server:literal) => {
        pub(crate) struct $name(Handle<Ctx>);

        impl $name {
            fn end(&self) -> &ControlEnd {
                self.0.library_as().unwrap_or_else(|| unreachable!("a context of this library is an end"))
            }
        }

        impl Enter<*const $opaque> for $name {
            unsafe fn enter(raw: *const $opaque) -> Result<Self, Fault> {
                // SAFETY: our contract is the callee's; a library's pointer is its context's.
                let ctx = unsafe { Handle::<Ctx>::from_c(raw.cast()) }?;
                if is_side(ctx, $is_server) { Ok($name(ctx)) } else { Err(Fault::DOCA_ERROR_INVALID_VALUE) }
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

side!(Server, doca_comch_server, true);
side!(Client, doca_comch_client, false);

fn is_side(ctx: Handle<Ctx>, is_server: bool) -> bool {
    ctx.library_as::<ControlEnd>().is_some_and(|end| end.is_server == is_server)
}
