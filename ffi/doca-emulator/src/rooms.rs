//! Which room may know which. A circle between objects, as DOCA has them, stays inside `core`.

use std::fs;
use std::path::Path;

/// Each room, and the rooms that it may name.
const MAY_KNOW: [(&str, &[&str]); 7] = [
    ("ffi", &[]),
    ("tools", &["ffi"]),
    ("config", &[]),
    ("memory", &["ffi", "tools", "config"]),
    ("core", &["ffi", "tools", "config", "memory"]),
    ("engine", &["ffi", "tools", "config", "memory", "core"]),
    ("comch", &["ffi", "tools", "config", "memory", "core"]),
];

/// The text of a room: its root file and those in its directory.
fn text_of(room: &str) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let root = fs::read_to_string(src.join(format!("{room}.rs"))).expect("a room has a root file");
    let files = fs::read_dir(src.join(room)).expect("a room has a directory").map(|entry| entry.expect("an entry"));
    files.map(|file| fs::read_to_string(file.path()).expect("a source file")).fold(root, |text, more| text + &more)
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
