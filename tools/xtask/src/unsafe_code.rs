//! Unsafe code: only in the rooms that are listed here, each block and implementation with a SAFETY comment, in the
//! comment above its statement. Clippy asks the same of what it builds; this also sees what is built for
//! another processor or flavour. A file that has clippy look away and says why is left alone here, too.

use crate::Finding;
use crate::source::code_of;
use crate::tree::{File, Tree};

/// Where unsafe code may be: paths begin with one of these.
const ALLOWED: [&str; 12] = [
    "crates/block/src/kernel/",
    "crates/mailbox/src/",
    "crates/store/tests/alloc.rs",
    "dpu-app/src/",
    "dpu-app/benches/",
    "dpu-app/tests/",
    "ffi/doca/",
    "ffi/doca-emulator/",
    "ffi/doca-sys/",
    "host-ctl/python/src/",
    "host-ctl/tests/",
    "tools/xtask/src/",
];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    tree.with_ending("rs").flat_map(|file| of(file, looks_away(file) || of_its_binary(tree, file))).collect()
}

/// Tells whether a file says why clippy looks away from its unsafe blocks.
fn looks_away(file: &File) -> bool {
    file.text.contains("#![allow(clippy::undocumented_unsafe_blocks, reason")
}

/// Tells whether the binary says so for all its modules: main.rs of the same directory of tests.
fn of_its_binary(tree: &Tree, file: &File) -> bool {
    let main = file.path.rsplit_once('/').map(|(home, _)| format!("{home}/main.rs"));
    file.path.contains("/tests/") && main.and_then(|main| tree.file(&main)).is_some_and(looks_away)
}

fn of(file: &File, is_excused: bool) -> Vec<Finding> {
    let code = code_of(&file.text);
    let (code, lines): (Vec<&str>, Vec<&str>) = (code.lines().collect(), file.text.lines().collect());
    let mut findings = Vec::new();
    for (index, line) in code.iter().enumerate() {
        let Some(what) = what(line, code.get(index + 1)) else { continue };
        if !ALLOWED.iter().any(|allowed| file.path.starts_with(allowed)) {
            findings.push(Finding::new(
                &file.path,
                index + 1,
                "unsafe code in a room that has none (tools/xtask/src/unsafe_code.rs)",
            ));
        } else if !is_excused && !is_argued(&lines, &code, index) {
            findings.push(Finding::new(&file.path, index + 1, format!("{what} without a SAFETY comment above it")));
        }
    }
    findings
}

/// What unsafe code begins in a line: a block or an implementation. Functions, their types and attributes are others'
/// words.
fn what(line: &str, next: Option<&&str>) -> Option<&'static str> {
    let at = line.match_indices("unsafe").find(|(at, word)| {
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_word(line[..*at].chars().next_back()) && !is_word(line[at + word.len()..].chars().next())
    })?;
    let rest = line[at.0 + "unsafe".len()..].trim_start();
    let rest = if rest.is_empty() { next.map_or("", |next| next.trim_start()) } else { rest };
    if rest.starts_with('{') {
        Some("an unsafe block")
    } else if rest.starts_with("impl") {
        Some("an unsafe impl")
    } else {
        None
    }
}

/// Tells whether a SAFETY comment stands in the line, or in a comment above the statement that the line belongs to.
fn is_argued(lines: &[&str], code: &[&str], index: usize) -> bool {
    /// Lines of a statement or of its neighbours that share one argument.
    const REACH: usize = 24;
    let has = |line: &str| line.contains("SAFETY:") || line.contains("# Safety");
    if has(lines[index]) {
        return true;
    }
    let from = index.saturating_sub(REACH);
    (from..index).rev().take_while(|at| !ends_an_item(code[*at])).any(|at| has(lines[at]))
}

fn ends_an_item(line: &str) -> bool {
    matches!(line, "}" | "    }")
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::tree::File;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        of(&File { path: path.into(), text: text.into() }, false).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_block_and_an_implementation_need_an_argument() {
        let text = "fn a() {\n    unsafe { b() }\n}\nunsafe impl Send for A {}\n// unsafe { }\nfn c() {\n    // SAFETY: d\n    unsafe { e() }\n}\n";
        assert_eq!(lines("ffi/doca/src/a.rs", text), [2, 4]);
        assert_eq!(lines("ffi/doca/src/a.rs", "unsafe extern \"C\" fn f() {}\n"), [0; 0]);
    }

    #[test]
    fn other_rooms_have_none() {
        assert_eq!(lines("crates/tier/src/a.rs", "// SAFETY: a\nlet b = unsafe { c() };\n"), [2]);
    }
}
