//! What the sources say of themselves: every declared function is defined, and has its place in a shared library.

use std::fs;
use std::path::{Path, PathBuf};

/// The text of all files below a directory.
fn text_below(directory: &Path) -> String {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let text_of = |path: PathBuf| match path.is_dir() {
        true => text_below(&path),
        false => fs::read_to_string(path).expect("a source file"),
    };
    entries.map(text_of).collect()
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
#[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
fn every_declared_function_is_defined() {
    let sources = text_below(&src());
    let is_defined = |name: &str| {
        ["fn ", "doca_error_t "]
            .iter()
            .any(|start| ['(', ';'].iter().any(|end| sources.contains(&format!("{start}{name}{end}"))))
    };
    let missing: Vec<String> = declared().filter(|name| !is_defined(name)).collect();
    assert!(missing.is_empty(), "declared, not defined: {missing:?}");
}

#[test]
#[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
fn every_declared_function_has_its_place_in_the_shared_libraries() {
    let symbols = include_str!("../abi/symbols.txt");
    let rows = symbols.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_ascii_whitespace());
    let mut placed: Vec<&str> = rows.filter_map(|mut row| row.nth(2)).collect();
    let mut names: Vec<String> = declared().collect();
    placed.sort_unstable();
    names.sort_unstable();
    assert_eq!(placed, names, "abi/symbols.txt against include/");
}

/// The functions that our headers declare.
fn declared() -> impl Iterator<Item = String> {
    let bindings = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));
    bindings.split("pub fn doca_").skip(1).map(|rest| format!("doca_{}", rest.split('(').next().unwrap_or("")))
}
