//! Handles: how C knows our objects.
//!
//! A handle is recognised by the word at its start. That is a best effort, as any C library's is: a pointer to memory
//! that is not mapped ends the process.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ffi::Fault;

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
pub(crate) unsafe trait Object {
    /// The opaque type of the header.
    type Opaque;
    const MAGIC: u64;
}

/// A checked pointer to a [`Object`]. Copy, because C copies handles; not a reference, because a callback may destroy
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

impl<T: Object> Handle<T> {
    /// Moves a new object out to C.
    pub(crate) fn new(object: T) -> Handle<T> {
        Handle(NonNull::from(Box::leak(Box::new(object))))
    }

    /// Wraps a pointer to an object that lives in a slab.
    pub(crate) fn of(object: NonNull<T>) -> Handle<T> {
        Handle(object)
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
        // SAFETY: `Object` promises that the object starts with a `Stamp`, which is transparent over the atomic.
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
