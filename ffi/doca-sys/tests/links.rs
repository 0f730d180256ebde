//! The one claim that bindings can make: they reach a library, and it is the one that this build names.

#![allow(clippy::undocumented_unsafe_blocks, reason = "functions that take no pointers")]

use std::ffi::CStr;

use doca_sys::{DOCA_VERSION_STRING, FLAVOUR, doca_error, doca_error_get_name, doca_version_runtime};

#[test]
fn functions_are_linked_and_return_text() {
    let name = unsafe { CStr::from_ptr(doca_error_get_name(doca_error::DOCA_ERROR_IO_FAILED)) };
    assert_eq!(name, c"DOCA_ERROR_IO_FAILED");
}

#[test]
fn headers_and_library_of_the_emulator_agree_on_the_version() {
    if FLAVOUR == "emulator" {
        let version = unsafe { CStr::from_ptr(doca_version_runtime()) };
        assert_eq!(version.to_bytes_with_nul(), DOCA_VERSION_STRING);
    }
}
