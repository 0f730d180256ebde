//! The version of DOCA: the one that the build was made against, and the one that it runs with.

use std::ffi::CStr;

use doca_sys as sys;

/// `emulator`, or `DOCA SDK 2.10.0087`: what the functions of this build come from, for people to read.
#[must_use]
pub fn built_for() -> String {
    match sys::SDK_VERSION {
        Some(version) => format!("DOCA SDK {version}"),
        None => String::from(sys::FLAVOUR),
    }
}

/// The version of the library that this process runs with.
#[must_use]
pub fn running_with() -> &'static str {
    // SAFETY: no arguments; the answer is a static string of the library's, or null.
    let version = unsafe { sys::doca_version_runtime() };
    if version.is_null() {
        return "unknown";
    }
    // SAFETY: not null, so a NUL-terminated string that lives as long as the library, which is never unloaded.
    unsafe { CStr::from_ptr(version) }.to_str().unwrap_or("unknown")
}

/// Whether software stands in for the card: by the build, or because the library that was loaded is the emulator's.
#[must_use]
pub fn is_emulator() -> bool {
    sys::FLAVOUR == "emulator" || running_with().ends_with("-emulator")
}

/// What stands behind the functions of this process: `emulator` or `sdk`.
#[must_use]
pub fn flavour() -> &'static str {
    if is_emulator() { "emulator" } else { sys::FLAVOUR }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_and_the_library_say_who_they_are() {
        assert_eq!(built_for().starts_with("DOCA SDK "), sys::FLAVOUR == "sdk");
        assert!(running_with().contains('.'), "{}", running_with());
        assert!(is_emulator() || sys::FLAVOUR == "sdk");
    }
}
