//! The bindings of our own headers: the types that the exported functions speak, and the signatures that each of them
//! is held to at compile time. `doca-sys` passes them on, so both sides of the C boundary share one Rust type for what
//! travels by value (`doca_data`), and miri can follow calls across it.

#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case, missing_debug_implementations, dead_code)]
#![allow(unreachable_pub, rustdoc::all, clippy::all, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    #[test]
    #[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
    fn every_declared_function_is_defined() {
        let paths_in = |directory: PathBuf| {
            fs::read_dir(directory).expect("src is there").map(|entry| entry.expect("an entry").path())
        };
        let (rooms, mut files): (Vec<PathBuf>, Vec<PathBuf>) =
            paths_in(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).partition(|path| path.is_dir());
        files.extend(rooms.into_iter().flat_map(paths_in));
        let sources: String = files.iter().map(|file| fs::read_to_string(file).expect("a source file")).collect();
        let declared = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));
        let names = declared.split("pub fn doca_").skip(1).map(|rest| rest.split('(').next().unwrap_or(""));
        let is_defined = |name: &str| {
            ["fn ", "doca_error_t "]
                .iter()
                .any(|start| ['(', ';'].iter().any(|end| sources.contains(&format!("{start}doca_{name}{end}"))))
        };
        let missing: Vec<&str> = names.filter(|name| !is_defined(name)).collect();
        assert!(missing.is_empty(), "declared, not defined: {missing:?}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
    fn every_declared_function_has_its_place_in_the_shared_libraries() {
        let symbols = include_str!("../../abi/symbols.txt");
        let rows = symbols.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_ascii_whitespace());
        let mut placed: Vec<&str> = rows.filter_map(|mut row| row.nth(2)).collect();
        let declared = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));
        let mut names: Vec<String> = declared
            .split("pub fn doca_")
            .skip(1)
            .map(|rest| format!("doca_{}", rest.split('(').next().unwrap_or("")))
            .collect();
        placed.sort_unstable();
        names.sort_unstable();
        assert_eq!(placed, names, "abi/symbols.txt against include/");
    }
}
