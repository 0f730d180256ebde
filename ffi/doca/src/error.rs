//! One error: which DOCA call failed, and with which code.

use std::ffi::CStr;
use std::fmt;

use doca_sys as sys;

/// A `doca_error_t`. Newer SDKs may add values, so this is a number with names, not an enum.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    pub const NOT_PERMITTED: Self = Self(2);
    pub const IN_USE: Self = Self(3);
    pub const NOT_SUPPORTED: Self = Self(4);
    /// Back-pressure: try again after some completions.
    pub const AGAIN: Self = Self(5);
    pub const INVALID_VALUE: Self = Self(6);
    pub const NO_MEMORY: Self = Self(7);
    pub const TIME_OUT: Self = Self(9);
    pub const CONNECTION_RESET: Self = Self(11);
    pub const NOT_CONNECTED: Self = Self(14);
    pub const NOT_FOUND: Self = Self(16);
    pub const IO_FAILED: Self = Self(17);
    pub const BAD_STATE: Self = Self(18);
    pub const OPERATING_SYSTEM: Self = Self(20);
    pub const UNEXPECTED: Self = Self(22);
    pub const ALREADY_EXIST: Self = Self(23);
    pub const IN_PROGRESS: Self = Self(26);
    pub const TOO_BIG: Self = Self(27);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the function takes any value and returns a static, NUL-terminated string or null.
        let name = unsafe { sys::doca_error_get_name(sys::doca_error_t(self.0)) };
        if name.is_null() {
            return write!(f, "DOCA error {}", self.0);
        }
        // SAFETY: not null, so a static C string per the DOCA API reference; nobody writes to it.
        let name = unsafe { CStr::from_ptr(name) };
        write!(f, "{}", name.to_string_lossy())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A DOCA call that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error {
    /// Name of the C function.
    pub call: &'static str,
    pub code: Code,
}

impl Error {
    pub(crate) fn new(call: &'static str, code: Code) -> Self {
        Self { call, code }
    }

    /// Back-pressure, not a failure: pools or queues are full until some tasks complete.
    #[must_use]
    pub fn is_back_pressure(&self) -> bool {
        matches!(self.code, Code::AGAIN | Code::NO_MEMORY)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered {}", self.call, self.code)
    }
}

impl std::error::Error for Error {}

/// Calls a function of `doca-sys` and turns its code into `Result<(), Error>` that names it.
macro_rules! call {
    ($function:ident ( $($argument:expr),* $(,)? )) => {{
        let code = doca_sys::$function($($argument),*);
        if code == doca_sys::doca_error::DOCA_SUCCESS {
            Ok(())
        } else {
            Err($crate::error::Error::new(stringify!($function), $crate::error::Code(code.0 as u32)))
        }
    }};
}
