//! Raw DOCA bindings, generated at build time; see `build.rs` at the root of the workspace.
//!
//! Nothing is written by hand here: no wrapper, no convenience. C enums are newtypes, because C may grow values.
//! Header inlines (`doca_buf_inventory_buf_get_by_addr`, `.._by_data`) are not symbols and so are not here:
//! use `doca_buf_inventory_buf_get_by_args`.
//!
//! Safe code over these functions is in the crate `doca`, their behaviour in the crate `doca-emulator` or in the SDK.

/// What stands behind the functions of this build: `"emulator"` or `"sdk"`.
pub const FLAVOUR: &str = if cfg!(feature = "emulator") { "emulator" } else { "sdk" };

/// The installed SDK that this build was made against, e.g. `2.10.0087`; `None` for the emulator.
pub const SDK_VERSION: Option<&str> = if cfg!(feature = "emulator") { None } else { option_env!("KVLANE_DOCA_SDK") };

// The emulator has bindings of its own headers already, and defines its functions with these very types.
#[cfg(feature = "emulator")]
pub use doca_emulator::abi::*;

#[cfg(not(feature = "emulator"))]
mod bindings {
    #![allow(non_camel_case_types, non_upper_case_globals, non_snake_case, missing_debug_implementations)]
    #![allow(unreachable_pub, rustdoc::all, clippy::all, clippy::undocumented_unsafe_blocks)]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

#[cfg(not(feature = "emulator"))]
pub use bindings::*;
