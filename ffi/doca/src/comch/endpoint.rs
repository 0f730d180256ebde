//! What a server and a client have in common: a context with its desk, from start to destruction.

use std::ffi::CString;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use doca_sys as sys;

use super::desk::{self, CallbackId, Desk};
use super::outbox::Parcel;
use super::{Caps, ComchLimits, Error, RECEIVED_MAX, SENDING_MAX, SendError, events};
use crate::context::ContextState;
use crate::device::Device;
use crate::engine::ProgressEngine;
use crate::error::Code;
use crate::representor::Representor;

/// How long a context may take to stop; it has nothing to wait for but its own messages.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Raw {
    Server(NonNull<sys::doca_comch_server>),
    Client(NonNull<sys::doca_comch_client>),
}

impl Raw {
    fn base(self) -> *mut sys::doca_ctx {
        // SAFETY: live until `Endpoint` is dropped.
        unsafe {
            match self {
                Self::Server(server) => sys::doca_comch_server_as_ctx(server.as_ptr()),
                Self::Client(client) => sys::doca_comch_client_as_ctx(client.as_ptr()),
            }
        }
    }

    /// Everything that must be said before start, in the order that the DOCA guide asks for.
    fn configure(self, limits: ComchLimits) -> Result<(), crate::Error> {
        let (tasks, length) = ((limits.connections * SENDING_MAX) as u32, limits.message_bytes as u32);
        let (done, failed) = (events::sent::<true>, events::sent::<false>);
        // SAFETY: the context is idle and connected to its engine; all callbacks are static functions of the right
        // type.
        unsafe {
            match self {
                Self::Server(server) => {
                    let server = server.as_ptr();
                    call!(doca_comch_server_task_send_set_conf(server, Some(done), Some(failed), tasks))?;
                    call!(doca_comch_server_event_msg_recv_register(server, Some(events::server_heard)))?;
                    call!(doca_comch_server_event_connection_status_changed_register(
                        server,
                        Some(events::joined),
                        Some(events::left)
                    ))?;
                    call!(doca_comch_server_set_max_msg_size(server, length))?;
                    call!(doca_comch_server_set_recv_queue_size(server, RECEIVED_MAX as u32))
                }
                Self::Client(client) => {
                    let client = client.as_ptr();
                    call!(doca_comch_client_task_send_set_conf(client, Some(done), Some(failed), tasks))?;
                    call!(doca_comch_client_event_msg_recv_register(client, Some(events::client_heard)))?;
                    call!(doca_comch_client_set_max_msg_size(client, length))?;
                    call!(doca_comch_client_set_recv_queue_size(client, RECEIVED_MAX as u32))
                }
            }
        }
    }

    fn destroy(self) -> Result<(), crate::Error> {
        // SAFETY: created in `Endpoint`, idle, and destroyed in its drop only, once.
        unsafe {
            match self {
                Self::Server(server) => call!(doca_comch_server_destroy(server.as_ptr())),
                Self::Client(client) => call!(doca_comch_client_destroy(client.as_ptr())),
            }
        }
    }
}

/// A context with its desk. Dropped, it stops, and leaks what does not stop.
pub(super) struct Endpoint {
    raw: Raw,
    pub desk: CallbackId,
    engine: ProgressEngine,
    /// Closed after the context that they belong to.
    representor: Option<Representor>,
    device: Device,
}

impl Endpoint {
    /// A server, not started yet.
    pub(super) fn server(
        engine: &ProgressEngine,
        representor: Representor,
        name: &str,
        limits: ComchLimits,
    ) -> Result<Self, Error> {
        let device = representor.device().clone();
        let caps = Caps::of(&device);
        if !caps.can_serve {
            return Err(Error::Unsupported { device: device.info().pci_address.clone(), side: "Comch server" });
        }
        caps.check(name, limits)?;
        let text = CString::new(name).expect("checked");
        let mut raw = ptr::null_mut();
        // SAFETY: device and representor are open, the name is a C string, `raw` a valid place.
        unsafe {
            call!(doca_comch_server_create(device.raw(), representor.raw(), text.as_ptr(), &raw mut raw))?;
        }
        let raw = NonNull::new(raw).ok_or(crate::Error::new("doca_comch_server_create", Code::UNEXPECTED))?;
        Self::new(Raw::Server(raw), engine, Some(representor), device, limits, caps)
    }

    /// A client, not started yet.
    pub(super) fn client(
        engine: &ProgressEngine,
        device: &Device,
        name: &str,
        limits: ComchLimits,
    ) -> Result<Self, Error> {
        let caps = Caps::of(device);
        if !caps.can_connect {
            return Err(Error::Unsupported { device: device.info().pci_address.clone(), side: "Comch client" });
        }
        // A client has one connection, whatever the device says of servers.
        caps.check(name, ComchLimits { connections: limits.connections.min(caps.connections_max as usize), ..limits })?;
        let text = CString::new(name).expect("checked");
        let mut raw = ptr::null_mut();
        // SAFETY: the device is open, the name is a C string, `raw` a valid place.
        unsafe { call!(doca_comch_client_create(device.raw(), text.as_ptr(), &raw mut raw))? };
        let raw = NonNull::new(raw).ok_or(crate::Error::new("doca_comch_client_create", Code::UNEXPECTED))?;
        Self::new(Raw::Client(raw), engine, None, device.clone(), limits, caps)
    }

    fn new(
        raw: Raw,
        engine: &ProgressEngine,
        representor: Option<Representor>,
        device: Device,
        limits: ComchLimits,
        caps: Caps,
    ) -> Result<Self, Error> {
        let desk = desk::put_up(Desk::new(limits, caps.connections_max as usize));
        let endpoint = Self { raw, desk, engine: engine.clone(), representor, device };
        let (base, user) = (raw.base(), sys::doca_data { u64_: desk.word() });
        // SAFETY: context and engine are live, the context idle.
        unsafe { call!(doca_pe_connect_ctx(engine.raw(), base))? };
        raw.configure(limits)?;
        // SAFETY: idle and connected.
        unsafe { call!(doca_ctx_set_user_data(base, user))? };
        Ok(endpoint)
    }

    /// `IN_PROGRESS` for a client.
    pub(super) fn start(&self) -> Result<(), crate::Error> {
        // SAFETY: connected and configured.
        unsafe { call!(doca_ctx_start(self.raw.base())) }
    }

    pub(super) fn state(&self) -> ContextState {
        ContextState::of(self.raw.base())
    }

    pub(super) fn engine(&self) -> &ProgressEngine {
        &self.engine
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn representor(&self) -> Option<&Representor> {
        self.representor.as_ref()
    }

    /// Works at this endpoint's desk.
    pub(super) fn at_desk<R>(&self, work: impl FnOnce(&mut Desk) -> R) -> R {
        desk::at(self.desk, work).expect("a desk is taken down with its endpoint")
    }

    /// What a client is connected by.
    pub(super) fn connection(&self) -> Result<desk::RawConnection, crate::Error> {
        let mut connection = ptr::null_mut();
        let Raw::Client(client) = self.raw else { unreachable!("a server has many connections") };
        // SAFETY: the client is live, `connection` a valid place.
        unsafe { call!(doca_comch_client_get_connection(client.as_ptr(), &raw mut connection))? };
        Ok(desk::RawConnection(connection))
    }

    /// Hangs up on a peer.
    pub(super) fn hang_up(&self, connection: desk::RawConnection) -> Result<(), crate::Error> {
        let Raw::Server(server) = self.raw else { unreachable!("a client hangs up by stopping") };
        let nobody = sys::doca_data { u64_: CallbackId::NONE.word() };
        // SAFETY: the desk knows the connection, so it is live: DOCA has not said that it left. It is nobody's from
        // here on, so events that may still come for it find no place.
        unsafe {
            call!(doca_comch_connection_set_user_data(connection.0, nobody))?;
            call!(doca_comch_server_disconnect(server.as_ptr(), connection.0))
        }
    }

    /// Sends a message on a connection of this endpoint.
    pub(super) fn send(&self, place: CallbackId, message: &[u8]) -> Result<(), SendError> {
        self.look();
        self.at_desk(|desk| desk.pack(place, message))?;
        self.flush();
        if self.at_desk(|desk| desk.is_up(place)) { Ok(()) } else { Err(SendError::Closed) }
    }

    /// Connections end with their context, whether or not anybody says so.
    fn look(&self) {
        if self.state() != ContextState::Running {
            self.at_desk(Desk::leave_all);
        }
    }

    /// Gives DOCA what waits, oldest first, as far as it has room.
    pub(super) fn flush(&self) {
        while let Some((connection, parcel, first, bytes)) = self.at_desk(Desk::next_parcel) {
            match self.submit(connection, parcel, first, bytes).map_err(|error| (error.code, error)) {
                Ok(()) => self.at_desk(Desk::posted),
                // Back-pressure. The pool is as large as the outbox, so it is the device's.
                Err((Code::AGAIN | Code::NO_MEMORY, _)) => return,
                Err((code, error)) => {
                    // These say that the peer or the context is going; the event is on its way.
                    if !matches!(code, Code::BAD_STATE | Code::NOT_CONNECTED | Code::CONNECTION_RESET) {
                        log::warn!("comch: {error}");
                    }
                    self.at_desk(Desk::refuse_parcel);
                }
            }
        }
    }

    fn submit(
        &self,
        connection: desk::RawConnection,
        parcel: Parcel,
        first: NonNull<u8>,
        length: usize,
    ) -> Result<(), crate::Error> {
        let (first, length) = (first.as_ptr().cast_const().cast(), length as u32);
        let id = CallbackId { index: parcel.index as u32, generation: parcel.generation };
        let mut task = ptr::null_mut();
        // SAFETY: the connection is live (the desk said so, and only progress, on this thread, changes that); the
        // parcel is not written again before the task has completed; `task` is a valid place, and the task ours until
        // submitted.
        unsafe {
            match self.raw {
                Raw::Server(server) => call!(doca_comch_server_task_send_alloc_init(
                    server.as_ptr(),
                    connection.0,
                    first,
                    length,
                    &raw mut task
                ))?,
                Raw::Client(client) => call!(doca_comch_client_task_send_alloc_init(
                    client.as_ptr(),
                    connection.0,
                    first,
                    length,
                    &raw mut task
                ))?,
            }
            let task = sys::doca_comch_task_send_as_task(task);
            sys::doca_task_set_user_data(task, sys::doca_data { u64_: id.word() });
            call!(doca_task_submit(task)).inspect_err(|_| sys::doca_task_free(task))
        }
    }

    #[cfg(test)]
    pub(super) fn stop(&self) {
        // SAFETY: live; the answer is of no interest, the state is looked at.
        let _ = unsafe { call!(doca_ctx_stop(self.raw.base())) };
    }

    /// Gives last words their time.
    pub(super) fn finish(&self, within: Duration) {
        let until = Instant::now() + within;
        while self.at_desk(|desk| desk.sending() > 0) && Instant::now() < until {
            self.look();
            self.flush();
            if !self.engine.progress() {
                std::thread::yield_now();
            }
        }
    }

    fn come_to_idle(&self) -> Result<(), crate::Error> {
        // SAFETY: live. Idle already: success; else it answers IN_PROGRESS, and progress brings it to idle.
        let _ = unsafe { call!(doca_ctx_stop(self.raw.base())) };
        self.at_desk(Desk::give_up);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.state() != ContextState::Idle {
            if !self.engine.progress() {
                if Instant::now() > deadline {
                    return Err(crate::Error::new("doca_ctx_stop", Code::TIME_OUT));
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        match self.come_to_idle().and_then(|()| self.raw.destroy()) {
            Ok(()) => desk::take_down(self.desk),
            Err(error) => {
                // Callbacks may still come and the device may still read: the desk stays, and so must what they name.
                log::error!("comch context leaked with its desk: {error}");
                std::mem::forget((self.representor.take(), self.device.clone()));
            }
        }
    }
}
