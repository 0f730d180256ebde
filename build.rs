//! The one build script of the house: Rust bindings from DOCA headers, for `ffi/doca-sys` and `ffi/doca-emulator`.
//!
//! | package         | feature            | headers                                 | library                       |
//! |-----------------|--------------------|-----------------------------------------|-------------------------------|
//! | `doca-emulator` | none               | its own `include`                       | none: it *is* the library     |
//! | `doca-sys`      | `emulator`         | none: passes on the emulator's bindings | the rlib `doca-emulator`      |
//! | `doca-sys`      | `sdk`, not default | the installed SDK's: ffi/doca-sys/sdk.rs | `libdoca_*.so`, likewise     |
//!
//! It refuses to guess: both flavours, no flavour, or an SDK that is not there or not whole are one error line and no
//! build. It never falls back from the SDK to the emulator.

use std::env;
use std::path::{Path, PathBuf};
use std::process;

#[path = "ffi/doca-sys/sdk.rs"]
mod sdk;

/// Every header that the project uses; the subset is the same from DOCA 2.10 on.
const HEADERS: &[&str] = &[
    "doca_version.h",
    "doca_types.h",
    "doca_error.h",
    "doca_dev.h",
    "doca_mmap.h",
    "doca_buf.h",
    "doca_buf_inventory.h",
    "doca_pe.h",
    "doca_ctx.h",
    "doca_compress.h",
    "doca_dma.h",
    "doca_comch.h",
    "doca_comch_consumer.h",
    "doca_comch_producer.h",
];

/// What only the emulator's programs see: logs and command lines are the SDK's business to offer, not ours to use.
const HEADERS_OF_THE_EMULATOR: &[&str] = &["doca_log.h", "doca_argp.h"];

fn main() {
    println!("cargo::rerun-if-changed=../../build.rs");
    match headers() {
        Ok(Headers::OurOwn) => {
            let include = our_own_headers();
            compile_log(&include);
            generate(&[HEADERS, HEADERS_OF_THE_EMULATOR].concat(), &[include]);
        }
        Ok(Headers::Sdk) => generate(HEADERS, &installed_sdk().include_paths),
        Ok(Headers::None) => {}
        Err(why) => give_up(why),
    }
}

enum Headers {
    OurOwn,
    Sdk,
    None,
}

fn headers() -> Result<Headers, &'static str> {
    if env::var("CARGO_PKG_NAME").as_deref() == Ok("doca-emulator") {
        return Ok(Headers::OurOwn);
    }
    let has = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    match (has("EMULATOR"), has("SDK")) {
        (true, false) => Ok(Headers::None),
        (false, true) => Ok(Headers::Sdk),
        (true, true) => Err("features `emulator` and `sdk` exclude each other: \
                             build the SDK flavour with `--no-default-features --features sdk`"),
        (false, false) => Err("one of the features `emulator` (the default) and `sdk` is needed"),
    }
}

fn our_own_headers() -> PathBuf {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let include = package.join("include");
    println!("cargo::rerun-if-changed={}", include.display());
    include
}

/// The SDK's headers, with the link lines printed and its version passed to the crate.
fn installed_sdk() -> sdk::Sdk {
    println!("cargo::rerun-if-changed=sdk.rs");
    for variable in sdk::Search::VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let sdk = sdk::Search::from_env().find(HEADERS).unwrap_or_else(|why| give_up(&why));
    for module in sdk::MODULES {
        println!("cargo::rerun-if-changed={}", sdk.pc_directory.join(format!("{module}.pc")).display());
    }
    for path in &sdk.library_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for library in &sdk.libraries {
        println!("cargo::rustc-link-lib={library}");
    }
    println!("cargo::rustc-env=KVLANE_DOCA_SDK={}", sdk.version);
    println!("cargo::warning=DOCA SDK {}, found in {}", sdk.version, sdk.pc_directory.display());
    sdk
}

/// The emulator's one C file: the interface's one variadic function.
fn compile_log(include: &Path) {
    println!("cargo::rerun-if-changed=src/tools/log.c");
    cc::Build::new().file("src/tools/log.c").include(include).std("gnu11").warnings(true).compile("doca_emulator_log");
}

fn generate(headers: &[&str], include_paths: &[PathBuf]) {
    let wrapper: String = headers.iter().map(|header| format!("#include <{header}>\n")).collect();
    let bindings = bindgen::Builder::default()
        .header_contents("kvlane_doca.h", &wrapper)
        .clang_arg("-DDOCA_ALLOW_EXPERIMENTAL_API")
        .clang_args(include_paths.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_item("(doca|DOCA)_.*")
        // the C library's; a pointer to one is all that anybody holds
        .opaque_type("_IO_FILE")
        // C may grow enum values at any release; a Rust enum would be undefined behaviour on the first new one.
        .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
        .generate_comments(false)
        .layout_tests(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate();
    let bindings = bindings.unwrap_or_else(|err| give_up(&format!("the DOCA headers could not be read: {err}")));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    if let Err(err) = bindings.write_to_file(&out) {
        give_up(&format!("{} could not be written: {err}", out.display()));
    }
}

/// One line for the person who builds, and no backtrace.
fn give_up(why: &str) -> ! {
    println!("cargo::error={why}");
    process::exit(1);
}
