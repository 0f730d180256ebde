//! The callbacks: each finds its desk by DOCA's user data, records, and returns.
//!
//! They run inside `doca_pe_progress`, on the thread that drives the engine. None unwinds: the only code that could
//! panic is a lock's, and a poisoned one is entered all the same.

use std::slice;

use doca_sys as sys;

use super::desk::{self, CallbackId, RawConnection};

/// The desk of the server that a connection belongs to.
///
/// # Safety
/// Called by DOCA's callbacks with a connection that is live.
unsafe fn desk_of_server(connection: *mut sys::doca_comch_connection) -> CallbackId {
    // SAFETY: the connection is live, so its server is.
    unsafe { desk_of(sys::doca_comch_server_as_ctx(sys::doca_comch_server_get_server_ctx(connection))) }
}

/// # Safety
/// The context is live.
unsafe fn desk_of(ctx: *mut sys::doca_ctx) -> CallbackId {
    let mut data = sys::doca_data { u64_: CallbackId::NONE.word() };
    // SAFETY: the context is live and `data` a valid place; contexts of this crate have tickets for user data.
    unsafe {
        call!(doca_ctx_get_user_data(ctx, &raw mut data)).map_or(CallbackId::NONE, |()| CallbackId::of(data.u64_))
    }
}

/// # Safety
/// The contract of [`desk_of_server`].
unsafe fn place_of(connection: *mut sys::doca_comch_connection) -> CallbackId {
    // SAFETY: the connection is live; `joined` gave it an id.
    CallbackId::of(unsafe { sys::doca_comch_connection_get_user_data(connection).u64_ })
}

/// # Safety
/// Called by DOCA as the header declares it.
pub(super) unsafe extern "C" fn joined(
    _event: *mut sys::doca_comch_event_connection_status_changed,
    connection: *mut sys::doca_comch_connection,
    succeeded: u8,
) {
    if succeeded == 0 {
        return;
    }
    // SAFETY: the connection is live during its callback.
    let at = unsafe { desk_of_server(connection) };
    let place = desk::at(at, |desk| desk.join(RawConnection(connection))).flatten();
    let user = sys::doca_data { u64_: place.unwrap_or(CallbackId::NONE).word() };
    // SAFETY: as above. It cannot fail on a live connection, and one without an id is heard by nobody.
    let _ = unsafe { call!(doca_comch_connection_set_user_data(connection, user)) };
}

/// # Safety
/// Called by DOCA as the header declares it.
pub(super) unsafe extern "C" fn left(
    _event: *mut sys::doca_comch_event_connection_status_changed,
    connection: *mut sys::doca_comch_connection,
    _succeeded: u8,
) {
    // SAFETY: the connection's handle is known during its callback.
    let (at, place) = unsafe { (desk_of_server(connection), place_of(connection)) };
    desk::at(at, |desk| desk.leave(place, RawConnection(connection)));
}

/// # Safety
/// Called by DOCA as the header declares it.
pub(super) unsafe extern "C" fn server_heard(
    _event: *mut sys::doca_comch_event_msg_recv,
    first: *mut u8,
    length: u32,
    connection: *mut sys::doca_comch_connection,
) {
    // SAFETY: the connection is live; the message is DOCA's and stays until this returns.
    let (at, place, message) = unsafe { (desk_of_server(connection), place_of(connection), message(first, length)) };
    desk::at(at, |desk| desk.deliver(place, message));
}

/// # Safety
/// Called by DOCA as the header declares it.
pub(super) unsafe extern "C" fn client_heard(
    _event: *mut sys::doca_comch_event_msg_recv,
    first: *mut u8,
    length: u32,
    connection: *mut sys::doca_comch_connection,
) {
    // SAFETY: the connection is live, so its client is; the message is DOCA's and stays until this returns.
    let (at, message) = unsafe {
        let client = sys::doca_comch_client_get_client_ctx(connection);
        (desk_of(sys::doca_comch_client_as_ctx(client)), message(first, length))
    };
    desk::at(at, |desk| desk.deliver(super::client::PLACE, message));
}

/// # Safety
/// `length` bytes at `first` stay as they are for `'a`.
unsafe fn message<'a>(first: *const u8, length: u32) -> &'a [u8] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(first, length as usize) }
}

/// A send has completed, well or not. The task's user data is its parcel's id, the context's its desk's.
///
/// # Safety
/// Called by DOCA as the header declares it.
pub(super) unsafe extern "C" fn sent<const SUCCEEDED: bool>(
    task: *mut sys::doca_comch_task_send,
    user: sys::doca_data,
    context: sys::doca_data,
) {
    // SAFETY: both unions were written as u64 by this crate; the task has completed, so it may be freed here.
    let (parcel, at) = unsafe {
        sys::doca_task_free(sys::doca_comch_task_send_as_task(task));
        (CallbackId::of(user.u64_), CallbackId::of(context.u64_))
    };
    desk::at(at, |desk| desk.sent(parcel, SUCCEEDED));
}
