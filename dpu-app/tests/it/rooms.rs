//! `pipeline/` is pure. Which room may use which: `tools/xtask/tables/edges.txt`.

use std::fs;
use std::path::{Path, PathBuf};

/// What the scheduler must not know, so that a simulator can run it in virtual time.
const IMPURE: [&str; 7] = ["std::time", "Instant", "std::thread", "std::sync", "std::fs", "std::io", "doca::"];
/// Values of other rooms that are pure though their crate is not.
const PURE: [&str; 1] = ["doca::Error"];

/// The sources of a room: `room.rs` and all of `room/`, without their unit tests.
fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = fs::read_dir(src.join(room)).unwrap().map(|entry| entry.unwrap().path());
    let code = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        (path, code.join("\n"))
    };
    inside.chain([src.join(format!("{room}.rs"))]).map(code).collect()
}

#[test]
fn the_pipeline_knows_no_clock_no_device_and_no_threads() {
    for (path, code) in sources("pipeline") {
        let code = PURE.iter().fold(code, |code, pure| code.replace(pure, ""));
        for word in IMPURE {
            assert!(!code.contains(word), "{}: names {word}", path.display());
        }
    }
}
