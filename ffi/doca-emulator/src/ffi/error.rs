//! `doca_error`: names and our own one-line words, and the result type of this crate.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ffi::abi::{doca_error, doca_error_t};
use crate::ffi::exports;

/// A `doca_error` other than success.
pub(crate) type Fault = doca_error;
pub(crate) type Answer = Result<(), Fault>;

/// What a task of a context that already stopped completes with.
pub(crate) const FLUSHED: Fault = doca_error::DOCA_ERROR_SHUTDOWN;

pub(crate) fn code(answer: Answer) -> doca_error {
    match answer {
        Ok(()) => doca_error::DOCA_SUCCESS,
        Err(fault) => fault,
    }
}

/// One loud line where the interface has no way to say no.
pub(crate) fn complain(what: &str) {
    eprintln!("doca-emulator: {what}");
}

/// Debug mode is on.
static ARE_REFUSALS_SAID: AtomicBool = AtomicBool::new(false);

/// Makes every call that refuses something say so from now on.
pub(crate) fn say_refusals() {
    ARE_REFUSALS_SAID.store(true, Ordering::Relaxed);
}

/// Passes a call's answer on, and says if it refused.
pub(crate) fn said(call: &str, answer: doca_error) -> doca_error {
    let is_quiet = [
        doca_error::DOCA_SUCCESS,
        doca_error::DOCA_ERROR_AGAIN,
        doca_error::DOCA_ERROR_IN_PROGRESS,
        doca_error::DOCA_ERROR_NOT_SUPPORTED,
    ]
    .contains(&answer);
    if !is_quiet && ARE_REFUSALS_SAID.load(Ordering::Relaxed) && call != "doca_task_get_status" {
        complain(&format!("debug: {call} refused: {}", name_of(answer)));
    }
    answer
}

macro_rules! words {
    ($($name:ident: $words:literal,)*) => {
        fn name(error: doca_error) -> &'static CStr {
            const UNKNOWN: &CStr = c"DOCA_ERROR_UNKNOWN";
            match error {
                $(doca_error::$name => {
                    const NAME: &str = concat!(stringify!($name), "\0");
                    const { match CStr::from_bytes_with_nul(NAME.as_bytes()) { Ok(name) => name, Err(_) => UNKNOWN } }
                })*
                _ => UNKNOWN,
            }
        }

        fn descr(error: doca_error) -> &'static CStr {
            match error {
                $(doca_error::$name => $words,)*
                _ => c"a code that this version does not know",
            }
        }
    };
}

words! {
    DOCA_SUCCESS: c"done",
    DOCA_ERROR_UNKNOWN: c"failed, and nobody knows why",
    DOCA_ERROR_NOT_PERMITTED: c"not allowed for this object, or not any more",
    DOCA_ERROR_IN_USE: c"something else still uses it",
    DOCA_ERROR_NOT_SUPPORTED: c"this device cannot do that",
    DOCA_ERROR_AGAIN: c"no room right now, try again",
    DOCA_ERROR_INVALID_VALUE: c"an argument is null or makes no sense",
    DOCA_ERROR_NO_MEMORY: c"nothing left of a limited supply",
    DOCA_ERROR_INITIALIZATION: c"a resource could not be set up",
    DOCA_ERROR_TIME_OUT: c"took too long",
    DOCA_ERROR_SHUTDOWN: c"cut off because its context stops",
    DOCA_ERROR_CONNECTION_RESET: c"the peer reset the connection",
    DOCA_ERROR_CONNECTION_ABORTED: c"the connection broke off",
    DOCA_ERROR_CONNECTION_INPROGRESS: c"still connecting",
    DOCA_ERROR_NOT_CONNECTED: c"not connected",
    DOCA_ERROR_NO_LOCK: c"a lock could not be taken",
    DOCA_ERROR_NOT_FOUND: c"there is no such thing here",
    DOCA_ERROR_IO_FAILED: c"the engine could not move or transform the data",
    DOCA_ERROR_BAD_STATE: c"the object is in the wrong state for this call",
    DOCA_ERROR_UNSUPPORTED_VERSION: c"the two sides speak different versions",
    DOCA_ERROR_OPERATING_SYSTEM: c"a system call failed",
    DOCA_ERROR_DRIVER: c"the driver said no",
    DOCA_ERROR_UNEXPECTED: c"this should not have happened",
    DOCA_ERROR_ALREADY_EXIST: c"there is one already",
    DOCA_ERROR_FULL: c"full",
    DOCA_ERROR_EMPTY: c"empty",
    DOCA_ERROR_IN_PROGRESS: c"begun, not finished yet",
    DOCA_ERROR_TOO_BIG: c"over the limit",
    DOCA_ERROR_AUTHENTICATION: c"the other side could not prove who it is",
    DOCA_ERROR_BAD_CONFIG: c"the configuration does not fit together",
    DOCA_ERROR_SKIPPED: c"left out",
}

pub(crate) fn name_of(error: doca_error) -> &'static str {
    name(error).to_str().unwrap_or("DOCA_ERROR_UNKNOWN")
}

exports! {
    fn doca_error_get_name(error: doca_error_t) -> *const c_char = (c"".as_ptr()) {
        name(error).as_ptr()
    }

    fn doca_error_get_descr(error: doca_error_t) -> *const c_char = (c"".as_ptr()) {
        descr(error).as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_name_and_words() {
        let mut seen = Vec::new();
        for value in 0..=30 {
            let name = name(doca_error(value)).to_str().expect("ascii");
            assert!(name.starts_with("DOCA_") && !descr(doca_error(value)).is_empty());
            assert!(!seen.contains(&name), "{name} twice");
            seen.push(name);
        }
        assert_eq!(name(doca_error(4711)).to_str(), Ok("DOCA_ERROR_UNKNOWN"));
    }
}
