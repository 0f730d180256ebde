//! What the sources say of themselves: which room knows which, and that every declared function is defined.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms that it may name. A circle between objects, as DOCA has them, stays inside `core`.
const MAY_KNOW: [(&str, &[&str]); 7] = [
    ("ffi", &[]),
    ("tools", &["ffi"]),
    ("config", &[]),
    ("memory", &["ffi", "tools", "config"]),
    ("core", &["ffi", "tools", "config", "memory"]),
    ("engine", &["ffi", "tools", "config", "memory", "core"]),
    ("comch", &["ffi", "tools", "config", "memory", "core"]),
];

/// The text of all files below a directory.
fn text_below(directory: &Path) -> String {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let text_of = |path: PathBuf| match path.is_dir() {
        true => text_below(&path),
        false => fs::read_to_string(path).expect("a source file"),
    };
    entries.map(text_of).collect()
}

/// The text of a room: its root file and those in its directory.
fn text_of(room: &str) -> String {
    let root = fs::read_to_string(src().join(format!("{room}.rs"))).expect("a room has a root file");
    root + &text_below(&src().join(room))
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The rooms that a text names, comments aside.
fn rooms_in(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let paths = code.flat_map(|line| line.split("crate::").skip(1));
    paths.map(|path| path.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or(""))
}

#[test]
#[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
fn rooms_know_only_what_is_below_them() {
    for (index, (room, below)) in MAY_KNOW.iter().enumerate() {
        let is_earlier = |name: &&str| MAY_KNOW[..index].iter().any(|(other, _)| other == name);
        assert!(below.iter().all(is_earlier), "{room}: the table has a circle");
        for named in rooms_in(&text_of(room)) {
            assert!(named == *room || below.contains(&named), "{room} may not know {named}");
        }
    }
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
