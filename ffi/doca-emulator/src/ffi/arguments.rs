//! Raw C arguments come in, checked values go on.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

use crate::ffi::abi;
use crate::ffi::{Fault, Handle, Object};

/// The check of one raw argument.
pub(crate) trait Enter<Raw>: Sized {
    /// # Safety
    /// A pointer argument is null or points to what the header says it does, for the length of the call.
    unsafe fn enter(raw: Raw) -> Result<Self, Fault>;
}

impl<T: Object<Opaque = O>, O> Enter<*mut O> for Handle<T> {
    unsafe fn enter(raw: *mut O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        unsafe { Handle::from_c(raw) }
    }
}

impl<T: Object<Opaque = O>, O> Enter<*const O> for Handle<T> {
    unsafe fn enter(raw: *const O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        unsafe { Handle::from_c(raw) }
    }
}

/// A handle that may be left out.
impl<T: Object<Opaque = O>, O> Enter<*mut O> for Option<Handle<T>> {
    unsafe fn enter(raw: *mut O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        if raw.is_null() { Ok(None) } else { unsafe { Handle::from_c(raw) }.map(Some) }
    }
}

/// A place of the caller's for one result.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    pub(crate) fn put(self, value: T) {
        // SAFETY: `enter` got the place from a caller who owns it for the call, and `put` takes `self`. The write is
        // unaligned because C does not promise alignment with a type, only we do.
        unsafe { self.0.as_ptr().write_unaligned(value) };
    }
}

impl<T> Enter<*mut T> for Out<T> {
    unsafe fn enter(raw: *mut T) -> Result<Self, Fault> {
        NonNull::new(raw).map(Out).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)
    }
}

impl<T> Enter<*mut T> for Option<Out<T>> {
    unsafe fn enter(raw: *mut T) -> Result<Self, Fault> {
        Ok(NonNull::new(raw).map(Out))
    }
}

/// An optional input that C passes by pointer.
pub(crate) struct Maybe<T>(pub(crate) Option<T>);

impl<T: Copy> Enter<*const T> for Maybe<T> {
    unsafe fn enter(raw: *const T) -> Result<Self, Fault> {
        // SAFETY: null, or the caller's value, readable for the call; unaligned as in `Out`.
        Ok(Maybe(NonNull::new(raw.cast_mut()).map(|place| unsafe { place.as_ptr().read_unaligned() })))
    }
}

/// A C string, copied.
pub(crate) struct Text(pub(crate) String);

impl Enter<*const c_char> for Text {
    unsafe fn enter(raw: *const c_char) -> Result<Self, Fault> {
        if raw.is_null() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and the caller passes a string that ends.
        let text = unsafe { CStr::from_ptr(raw) };
        Ok(Text(text.to_string_lossy().into_owned()))
    }
}

/// Room for text or bytes; the length comes with each write, because C passes it as another argument.
pub(crate) struct Room(NonNull<u8>);

impl Room {
    /// Writes `bytes` if they fit into `size`.
    pub(crate) fn put(self, bytes: &[u8], size: usize) -> Result<(), Fault> {
        if bytes.len() > size {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's array holds `size` bytes, which are at least as many; it cannot overlap our constant.
        unsafe { self.0.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }
}

// C's `char` is one of these two: signed on x86-64, unsigned on Arm.
impl Enter<*mut i8> for Room {
    unsafe fn enter(raw: *mut i8) -> Result<Self, Fault> {
        NonNull::new(raw.cast()).map(Room).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)
    }
}

impl Enter<*mut u8> for Room {
    unsafe fn enter(raw: *mut u8) -> Result<Self, Fault> {
        NonNull::new(raw).map(Room).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)
    }
}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {$(
        impl Enter<$type> for $type {
            unsafe fn enter(raw: $type) -> Result<Self, Fault> {
                Ok(raw)
            }
        }
    )*};
}

plain!(u8, u32, usize, c_int, *mut c_void, *const c_void, abi::doca_data, abi::doca_error, abi::doca_pe_event_mode);
plain!(*const abi::doca_buf, *mut abi::doca_buf);
plain!(abi::doca_ctx_state_changed_callback_t, abi::doca_mmap_memrange_free_cb_t);
plain!(abi::doca_argp_param_cb_t, abi::doca_argp_validation_cb_t, abi::doca_argp_type, *mut *mut c_char);
plain!(abi::doca_comch_task_send_completion_cb_t, abi::doca_comch_producer_task_send_completion_cb_t);
plain!(abi::doca_comch_consumer_task_post_recv_completion_cb_t, *mut u8);
plain!(abi::doca_comch_counter, abi::doca_comch_event_msg_recv_cb_t, abi::doca_comch_event_consumer_cb_t);
plain!(abi::doca_comch_event_connection_status_changed_cb_t);
plain!(*mut abi::FILE, *mut i8, abi::log_flush_callback);
