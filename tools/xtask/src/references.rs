//! Files that documents and comments name: each has to be there. Links of Markdown count from their page or, like paths
//! in text, from the root.

use crate::Finding;
use crate::tree::{File, Tree};

/// What a path in text begins with; anything else may be a path of another machine, or none.
const ROOMS: [&str; 11] = [
    ".ci/",
    ".cargo/",
    "crates/",
    "docs/",
    "dpu-app/",
    "ffi/",
    "host-ctl/",
    "scripts/",
    "testdata/",
    "tools/",
    "examples/",
];
/// Of files that a reference names; a path without one has to be a directory's.
const ENDINGS: [&str; 13] =
    [".md", ".rs", ".sh", ".py", ".toml", ".json", ".svg", ".h", ".c", ".awk", ".txt", ".safetensors", ".service"];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    tree.files().iter().flat_map(|file| of(tree, file)).collect()
}

fn of(tree: &Tree, file: &File) -> Vec<Finding> {
    let is_page = file.has_ending("md");
    if !is_page && !file.has_ending("rs") && !file.is_script() {
        return Vec::new();
    }
    let home = file.path.rsplit_once('/').map_or("", |(home, _)| home);
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let missing = |what: &str| Finding::new(&file.path, index + 1, format!("{what} is not there"));
        if is_page {
            let links = links(line).filter(|link| !is_there(tree, home, link));
            findings.extend(links.map(missing));
        }
        // Of code only the comments: paths in it may be of a test's own directories.
        let text = if is_page { line } else { comment(line) };
        findings
            .extend(paths(text).filter(|path| !is_there(tree, "", path) && !is_there(tree, home, path)).map(missing));
    }
    findings
}

/// Targets of the links of a line, without anchors and without other people's pages.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.map(|target| target.split('#').next().unwrap_or(target));
    targets.filter(|target| !target.is_empty() && !target.contains(':') && !target.contains(' '))
}

/// Paths of the tree that a text names.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let is_end = |c: char| {
        c.is_whitespace() || matches!(c, '`' | '"' | '\'' | '(' | ')' | '[' | ']' | ',' | ';' | ':' | '=' | '|')
    };
    text.split(is_end).map(|word| word.trim_end_matches(['.', '!', '?'])).filter(|word| {
        let is_pattern = word.contains(['*', '<', '>', '{', '}', '$', '%', '?', '\\']) || word.contains("...");
        let is_named = ENDINGS.iter().any(|ending| word.ends_with(ending)) || word.ends_with('/');
        let is_any = word.contains("NAME");
        ROOMS.iter().any(|room| word.starts_with(room)) && is_named && !is_pattern && !is_any
    })
}

fn comment(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with("//") || line.starts_with("# ") { line } else { "" }
}

/// Tells whether a path from `home` is there.
fn is_there(tree: &Tree, home: &str, path: &str) -> bool {
    let mut parts: Vec<&str> = home.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    tree.exists(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{links, paths};

    #[test]
    fn links_are_found_without_anchors_and_without_the_web() {
        let line = "see [a](b.md#c), [d](https://e.org), [f](../g.svg) and [h](#here)";
        assert_eq!(links(line).collect::<Vec<_>>(), ["b.md", "../g.svg"]);
    }

    #[test]
    fn paths_are_what_begins_with_a_room_and_names_a_file_or_a_directory() {
        let line = "docs/a.md, `crates/b/src/c.rs`: dpu-app/tests/. /usr/share/d.md docs/*.md scripts/NAME.sh store/get docs/NAME/x.md";
        assert_eq!(paths(line).collect::<Vec<_>>(), ["docs/a.md", "crates/b/src/c.rs", "dpu-app/tests/"]);
    }
}
