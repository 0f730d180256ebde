//! The progress engine: the only place where completions come from, on one thread.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys as sys;

use crate::error::{Code, Error};

pub(crate) struct Inner {
    raw: NonNull<sys::doca_pe>,
    fd: i32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `doca_pe_create`; contexts hold an Rc of this, so none is connected any more.
        if let Err(error) = unsafe { call!(doca_pe_destroy(self.raw.as_ptr())) } {
            log::warn!("progress engine leaked: {error}");
        }
    }
}

/// A `doca_pe`. Not `Send`: DOCA locks nothing, one thread owns the engine and its contexts.
#[derive(Clone)]
pub struct ProgressEngine(Rc<Inner>);

impl fmt::Debug for ProgressEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressEngine").field("fd", &self.0.fd).finish()
    }
}

impl ProgressEngine {
    /// # Errors
    /// What `doca_pe_create` or `doca_pe_get_notification_handle` answered.
    pub fn new() -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is a valid place for the handle.
        unsafe { call!(doca_pe_create(&raw mut raw)) }?;
        let raw = NonNull::new(raw).ok_or(Error::new("doca_pe_create", Code::UNEXPECTED))?;
        let mut inner = Inner { raw, fd: -1 };
        // SAFETY: the engine is live and `fd` a valid place; on Linux the handle is a file descriptor.
        unsafe { call!(doca_pe_get_notification_handle(raw.as_ptr(), &raw mut inner.fd)) }?;
        if inner.fd < 0 {
            return Err(Error::new("doca_pe_get_notification_handle", Code::UNEXPECTED));
        }
        Ok(Self(Rc::new(inner)))
    }

    /// Runs what has completed; `true` if anything happened, so call until it is `false`.
    #[must_use]
    pub fn progress(&self) -> bool {
        // SAFETY: the engine is live and used by its own thread only (not Send); the callbacks of this crate do not
        // call back into it.
        unsafe { sys::doca_pe_progress(self.0.raw.as_ptr()) != 0 }
    }

    /// Readable once something completes after [`Self::arm`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: checked non-negative in `new`; DOCA keeps the descriptor open for the engine's life, which the borrow
        // is bound to.
        unsafe { BorrowedFd::borrow_raw(self.0.fd) }
    }

    /// Asks for a wake-up through [`Self::fd`]. Order: progress until `false`, arm, sleep, [`Self::disarm`], again.
    ///
    /// # Errors
    /// What `doca_pe_request_notification` answered.
    pub fn arm(&self) -> Result<(), Error> {
        // SAFETY: the engine is live and owned by this thread.
        unsafe { call!(doca_pe_request_notification(self.0.raw.as_ptr())) }
    }

    /// Clears the wake-up after it came, or because nobody is going to sleep after all.
    ///
    /// # Errors
    /// What `doca_pe_clear_notification` answered.
    pub fn disarm(&self) -> Result<(), Error> {
        // SAFETY: the engine is live and owned by this thread; the handle argument is unused on Linux and must be 0.
        unsafe { call!(doca_pe_clear_notification(self.0.raw.as_ptr(), 0)) }
    }

    pub(crate) fn raw(&self) -> *mut sys::doca_pe {
        self.0.raw.as_ptr()
    }
}
