//! The door: raw C arguments come in, checked values go on. Every exported function is written with [`exports!`], so
//! null pointers, foreign handles and freed handles are answered in one place, with `DOCA_ERROR_INVALID_VALUE`.
//!
//! A handle is recognised by the word at its start. That is a best effort, as any C library's is: a pointer to memory
//! that is not mapped ends the process.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ffi::abi;
use crate::ffi::error::Fault;

/// The first word of every object behind a handle.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Stamp(AtomicU64);

impl Stamp {
    pub(crate) const fn new(magic: u64) -> Stamp {
        Stamp(AtomicU64::new(magic))
    }
}

/// An object that C knows by pointer.
///
/// # Safety
/// The type is `repr(C)` and its first field is a [`Stamp`] made from `MAGIC`, which no other type uses.
pub(crate) unsafe trait Thing {
    /// The opaque type of the header.
    type Opaque;
    const MAGIC: u64;
}

/// A checked pointer to a [`Thing`]. Copy, because C copies handles; not a reference, because a callback may destroy
/// the object while a caller further up the stack still holds it.
#[derive(Debug)]
pub(crate) struct Handle<T>(NonNull<T>);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

impl<T> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: handles are made by `Handle::new` from a live box or slab, or by `enter`, whose caller vouches that
        // the object lives for the call; objects have only shared references made to them, never exclusive ones.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Thing> Handle<T> {
    /// Moves a new object out to C.
    pub(crate) fn new(thing: T) -> Handle<T> {
        Handle(NonNull::from(Box::leak(Box::new(thing))))
    }

    /// For objects that live in a slab.
    pub(crate) fn of(thing: NonNull<T>) -> Handle<T> {
        Handle(thing)
    }

    pub(crate) fn to_c(self) -> *mut T::Opaque {
        self.0.as_ptr().cast()
    }

    /// Takes an object made by [`Handle::new`] back and frees it; later uses of the handle find no stamp.
    ///
    /// # Safety
    /// The object came from `Handle::new`, and nobody uses it afterwards.
    pub(crate) unsafe fn destroy(self) {
        self.stamp().store(0, Ordering::Relaxed);
        // SAFETY: the caller says that this is the box of `Handle::new` and that this is its last use.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }

    fn stamp(&self) -> &AtomicU64 {
        // SAFETY: `Thing` promises that the object starts with a `Stamp`, which is transparent over the atomic.
        unsafe { self.0.cast::<AtomicU64>().as_ref() }
    }

    /// The check of `enter` on its own.
    ///
    /// # Safety
    /// `raw` is null, or readable for eight bytes, or made by this crate.
    pub(crate) unsafe fn from_c(raw: *const T::Opaque) -> Result<Handle<T>, Fault> {
        let pointer = NonNull::new(raw.cast::<T>().cast_mut()).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        if !pointer.is_aligned() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let handle = Handle(pointer);
        if handle.stamp().load(Ordering::Relaxed) == T::MAGIC {
            Ok(handle)
        } else {
            Err(Fault::DOCA_ERROR_INVALID_VALUE)
        }
    }
}

/// From a raw argument to a checked one.
pub(crate) trait Enter<Raw>: Sized {
    /// # Safety
    /// A pointer argument is null or points to what the header says it does, for the length of the call.
    unsafe fn enter(raw: Raw) -> Result<Self, Fault>;
}

impl<T: Thing<Opaque = O>, O> Enter<*mut O> for Handle<T> {
    unsafe fn enter(raw: *mut O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        unsafe { Handle::from_c(raw) }
    }
}

impl<T: Thing<Opaque = O>, O> Enter<*const O> for Handle<T> {
    unsafe fn enter(raw: *const O) -> Result<Self, Fault> {
        // SAFETY: our contract is the callee's.
        unsafe { Handle::from_c(raw) }
    }
}

/// A handle that may be left out.
impl<T: Thing<Opaque = O>, O> Enter<*mut O> for Option<Handle<T>> {
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

/// Defines exported functions. `arg: raw => checked` runs the argument through [`Enter`]; a body without a written
/// return type answers an `Answer`; with one, the value in parentheses is what bad arguments get.
///
/// Each definition is held to the declaration in our headers at compile time: both must coerce to one pointer type.
macro_rules! exports {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $raw:ty $(=> $checked:ty)?),* $(,)?) $(-> $ret:ty = ($bad:expr))? $body:block
    )*) => {$(
        $crate::ffi::door::exports!(@define [$(#[$meta])*] $name ($($arg: $raw, [$($checked)?]),*) [$($ret, $bad)?] $body);
        const _: () = {
            let _same = [$crate::ffi::abi::$name, $name];
        };
    )*};
    (@define [$($meta:tt)*] $name:ident ($($arg:ident: $raw:ty, $checked:tt),*) [] $body:block) => {
        $($meta)*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $raw),*) -> $crate::ffi::abi::doca_error {
            fn body($($arg: $crate::ffi::door::exports!(@type $raw, $checked)),*) -> $crate::ffi::error::Answer $body
            $(
                // SAFETY: the C caller passes what the header asks for; `enter` refuses null and what is not ours.
                let $arg = match unsafe { $crate::ffi::door::Enter::enter($arg) } {
                    Ok(checked) => checked,
                    Err(fault) => return $crate::ffi::error::said(stringify!($name), fault),
                };
            )*
            $crate::ffi::error::said(stringify!($name), $crate::ffi::error::code(body($($arg),*)))
        }
    };
    (@define [$($meta:tt)*] $name:ident ($($arg:ident: $raw:ty, $checked:tt),*) [$ret:ty, $bad:expr] $body:block) => {
        $($meta)*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $raw),*) -> $ret {
            fn body($($arg: $crate::ffi::door::exports!(@type $raw, $checked)),*) -> $ret $body
            $(
                // SAFETY: the C caller passes what the header asks for; `enter` refuses null and what is not ours.
                let $arg = match unsafe { $crate::ffi::door::Enter::enter($arg) } {
                    Ok(checked) => checked,
                    Err(_) => return $bad,
                };
            )*
            body($($arg),*)
        }
    };
    (@type $raw:ty, []) => { $raw };
    (@type $raw:ty, [$checked:ty]) => { $checked };
}
pub(crate) use exports;
