//! What the build says of an SDK that is whole, of one that is not, and of none: `sdk.rs` over pkg-config files of our
//! making.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../sdk.rs"]
#[allow(dead_code, reason = "the build script's half")]
mod sdk;

use sdk::{MODULES, Sdk, Search};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const TRIPLET: &str = "lib/x86_64-linux-gnu";

/// A directory with the files that an SDK of `version` has, as far as the search looks at them.
struct Fake {
    dir: tempfile::TempDir,
    library: &'static str,
}

impl Fake {
    fn new(version: &str, library: &'static str) -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap(), library };
        for path in ["include", &format!("{library}/pkgconfig")] {
            fs::create_dir_all(fake.path(path)).unwrap();
        }
        fs::write(fake.path("include/doca_types.h"), "").unwrap();
        fake.header_version(version);
        for module in MODULES {
            fake.module(module, version);
            let library = module.replace('-', "_");
            fs::write(fake.path(&format!("{}/lib{library}.so", fake.library)), "").unwrap();
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn header_version(&self, version: &str) {
        fs::write(self.path("include/doca_version.h"), format!("#define DOCA_VERSION_STRING \"{version}\"\n")).unwrap();
    }

    /// As meson writes it for the SDK: with the place that it was packaged for, not the one where it lies.
    fn module(&self, module: &str, version: &str) {
        let requires = if module == "doca-common" { "" } else { "doca-common" };
        let text = format!(
            "prefix=/opt/mellanox/doca\nincludedir=${{prefix}}/include\nlibdir=${{prefix}}/{}\n\nName: {module}\nDescription: fake\n\
             Version: {version}\nRequires: {requires}\nLibs: -L${{libdir}} -l{}\nCflags: -I${{includedir}}\n",
            self.library,
            module.replace('-', "_")
        );
        fs::write(self.path(&format!("{}/pkgconfig/{module}.pc", self.library)), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn search(&self) -> Search {
        Search { doca_dir: Some(self.dir.path().to_owned()), ..nothing() }
    }

    fn find(&self) -> Result<Sdk, String> {
        self.search().find(&["doca_types.h", "doca_version.h"])
    }
}

/// A machine without an SDK.
fn nothing() -> Search {
    Search {
        doca_dir: None,
        target: TARGET.into(),
        host: TARGET.into(),
        pkg_config: "pkg-config".into(),
        path: None,
        libdir: Some("/nowhere".into()),
    }
}

/// One line with all of these words.
#[track_caller]
fn assert_says(found: Result<Sdk, String>, words: &[&str]) {
    let why = found.expect_err("an SDK like this must not pass");
    assert!(!why.contains('\n'), "one line: {why}");
    for word in words {
        assert!(why.contains(word), "expected `{word}` in: {why}");
    }
}

#[test]
fn a_whole_sdk_is_found_in_each_layout_and_where_it_really_lies() {
    for library in [TRIPLET, "lib64", "lib"] {
        let fake = Fake::new("2.10.0087", library);
        let sdk = fake.find().unwrap();
        assert_eq!(sdk.version, "2.10.0087");
        assert_eq!(sdk.include_paths, [fake.path("include")]);
        assert_eq!(sdk.library_paths, [fake.path(library)]);
        assert_eq!(sdk.pc_directory, fake.path(&format!("{library}/pkgconfig")));
        let mut libraries = sdk.libraries;
        libraries.sort();
        libraries.dedup();
        assert_eq!(libraries, ["doca_comch", "doca_common", "doca_compress", "doca_dma"]);
    }
}

#[test]
fn doca_dir_wins_over_pkg_config_and_has_no_stand_in() {
    let (named, other) = (Fake::new("3.0.0058", TRIPLET), Fake::new("2.10.0087", TRIPLET));
    let path = Some(other.path(&format!("{TRIPLET}/pkgconfig")).into());
    let search = Search { path: path.clone(), ..named.search() };
    assert_eq!(search.find(&[]).unwrap().version, "3.0.0058");
    let empty = tempfile::tempdir().unwrap();
    let search = Search { path, doca_dir: Some(empty.path().to_owned()), ..nothing() };
    assert_says(
        search.find(&[]),
        &["DOCA_DIR is", "doca-common.pc", "lib/x86_64-linux-gnu/pkgconfig, lib64/pkgconfig"],
    );
}

#[test]
fn a_relative_doca_dir_is_refused() {
    let search = Search { doca_dir: Some("sdk".into()), ..nothing() };
    assert_says(search.find(&[]), &["DOCA_DIR is sdk", "make it absolute"]);
}

#[test]
fn no_sdk_says_what_to_install_or_set() {
    assert_says(nothing().find(&[]), &["no DOCA SDK module `doca-common`", "DOCA_DIR", "PKG_CONFIG_PATH", "emulator"]);
}

#[test]
fn a_pkg_config_that_cannot_be_run_is_named() {
    let search = Search { pkg_config: "/nowhere/pkg-config".into(), ..nothing() };
    assert_says(search.find(&[]), &["`/nowhere/pkg-config` could not be run"]);
}

#[test]
fn a_missing_module_is_named() {
    let fake = Fake::new("2.10.0087", TRIPLET);
    fake.remove(&format!("{TRIPLET}/pkgconfig/doca-comch.pc"));
    assert_says(fake.find(), &["no DOCA SDK module `doca-comch`", "install its development package in"]);
}

#[test]
fn modules_of_different_versions_are_all_named() {
    let fake = Fake::new("2.10.0087", TRIPLET);
    fake.module("doca-dma", "2.9.1");
    assert_says(
        fake.find(),
        &["different versions", "doca-common 2.10.0087", "doca-dma 2.9.1", "install one SDK whole"],
    );
}

#[test]
fn headers_of_another_release_than_the_modules_are_refused() {
    let fake = Fake::new("2.10.0087", TRIPLET);
    fake.header_version("3.0.0058");
    assert_says(fake.find(), &["headers are of version 3.0.0058", "of 2.10.0087"]);
}

#[test]
fn a_missing_header_or_library_is_named_with_its_place() {
    let fake = Fake::new("2.10.0087", TRIPLET);
    fake.remove("include/doca_types.h");
    assert_says(fake.find(), &["2.10.0087 has no doca_types.h in", "/include", "development packages"]);
    let fake = Fake::new("2.10.0087", TRIPLET);
    fake.remove(&format!("{TRIPLET}/libdoca_dma.so"));
    assert_says(fake.find(), &["2.10.0087 has no libdoca_dma.so in", TRIPLET]);
}

#[test]
fn an_sdk_without_our_names_is_too_old() {
    assert_says(Fake::new("2.6.0058", TRIPLET).find(), &["2.6.0058", "needs 2.7 or newer"]);
    assert_eq!(Fake::new("2.9.1", TRIPLET).find().unwrap().version, "2.9.1");
}

#[test]
fn a_cross_build_never_takes_the_sdk_of_this_machine() {
    let arm = |search: Search| Search { target: "aarch64-unknown-linux-gnu".into(), ..search };
    let search = arm(Search { libdir: None, ..nothing() });
    assert_says(search.find(&[]), &["aarch64-unknown-linux-gnu", "DOCA_DIR", "/opt/mellanox/doca"]);
    let host = Fake::new("2.10.0087", TRIPLET);
    assert_says(arm(host.search()).find(&[]), &["lib/aarch64-linux-gnu/pkgconfig", "aarch64-unknown-linux-gnu"]);
    let card = Fake::new("2.10.0087", "lib/aarch64-linux-gnu");
    let sdk = arm(card.search()).find(&[]).unwrap();
    assert_eq!(sdk.library_paths, [card.path("lib/aarch64-linux-gnu")]);
}

#[test]
fn this_build_says_what_it_is_made_against() {
    assert_eq!(doca_sys::SDK_VERSION.is_some(), doca_sys::FLAVOUR == "sdk");
    assert!(Path::new("sdk.rs").is_file(), "what the build script includes is what is tested here");
}
