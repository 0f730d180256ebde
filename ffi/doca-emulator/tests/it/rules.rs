//! One claim: what `docs/emulator-rules.md` says of tests is true.

#![cfg(not(miri))]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The names of the tests in the Rust files of a directory and of those in it.
fn tests_in(directory: &Path) -> HashSet<String> {
    let files = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut names = HashSet::new();
    let (directories, files): (Vec<PathBuf>, Vec<PathBuf>) = files.partition(|path| path.is_dir());
    names.extend(directories.iter().flat_map(|directory| tests_in(directory)));
    for file in files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let text = fs::read_to_string(file).expect("a source file");
        for rest in text.split("#[test]").skip(1) {
            let name = rest.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
            names.insert(name.expect("a test has a name").to_owned());
        }
    }
    names
}

#[test]
fn every_rule_has_tests_that_exist() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests: HashSet<String> =
        ["src", "tests"].into_iter().flat_map(|directory| tests_in(&package.join(directory))).collect();
    let page = fs::read_to_string(package.join("../../docs/emulator-rules.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| ") && *line != "| rule | test |");
    let mut count = 0;
    for row in rows {
        let names = row.rsplit('|').nth(1).expect("a second column");
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {row}");
        names.iter().for_each(|name| assert!(tests.contains(*name), "no such test: {name}"));
        count += 1;
    }
    assert!(count >= 60, "{count} rules");
}
