//! Lines that are too long: 120 columns of code, 100 of Markdown. A table's row, a line of a code block and a line that
//! cannot be broken (a link, a path) are as long as they are. Files from before this rule are listed with how many such
//! lines they have; the numbers only shrink.

use std::collections::BTreeMap;

use crate::names::entries;
use crate::tree::{File, Tree};
use crate::{Finding, wrap};

const TABLE: &str = "tools/xtask/tables/widths.txt";

pub(crate) const CODE: usize = 120;
pub(crate) const PROSE: usize = 100;

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let table = tree.file(TABLE).map_or("", |file| file.text.as_str());
    let mut listed: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (line, entry) in entries(table) {
        if let Some((path, Ok(count))) = entry.split_once(' ').map(|(path, count)| (path, count.trim().parse())) {
            listed.insert(path, (line, count));
        }
    }
    let mut findings = Vec::new();
    for file in tree.files() {
        let (line, allowed) = listed.remove(file.path.as_str()).unwrap_or_default();
        let found = of(file);
        if found.len() < allowed {
            findings.push(Finding::new(
                TABLE,
                line,
                format!("{} has {} such lines now: lower its number", file.path, found.len()),
            ));
        } else if found.len() > allowed {
            findings.extend(found);
        }
    }
    findings.extend(
        listed
            .into_iter()
            .map(|(path, (line, _))| Finding::new(TABLE, line, format!("{path} is not there: take it off"))),
    );
    findings
}

fn of(file: &File) -> Vec<Finding> {
    let Some(most) = most(file) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut block = wrap::Fence::default();
    for (index, line) in file.text.lines().enumerate() {
        let inside = block.sees(line);
        let columns = line.chars().count();
        if columns > most && !(most == PROSE && (inside || is_free(line))) && !is_unbreakable(line) {
            let text =
                format!("{columns} columns, at most {most}: break it (`cargo xtask wrap` does, in prose and comments)");
            findings.push(Finding::new(&file.path, index + 1, text));
        }
    }
    findings
}

/// Columns that a file's lines may have; none of what is not ours to break.
pub(crate) fn most(file: &File) -> Option<usize> {
    if file.has_ending("md") {
        return Some(PROSE);
    }
    (file.has_ending("rs") || file.is_script()).then_some(CODE)
}

/// Tells whether a line of Markdown may be long: a table's row, a picture.
pub(crate) fn is_free(line: &str) -> bool {
    line.trim_start().starts_with('|') || line.trim_start().starts_with("![")
}

/// Tells whether a line has one word beside its marks of comment or list.
fn is_unbreakable(line: &str) -> bool {
    line.split_whitespace().filter(|word| !matches!(*word, "//" | "///" | "//!" | "#" | "-" | "*" | "|")).count() <= 1
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::tree::File;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        of(&File { path: path.into(), text: text.into() }).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn code_has_120_columns_and_prose_100() {
        let (fits, long) = ("x ".repeat(50), "x ".repeat(51));
        assert_eq!(lines("a.md", &format!("{fits}\n{long}")), [2]);
        assert_eq!(lines("a.rs", &long), [0; 0]);
        assert_eq!(lines("a.rs", &"x ".repeat(61)), [1]);
        assert_eq!(lines("a.json", &"x ".repeat(61)), [0; 0]);
    }

    #[test]
    fn tables_blocks_and_links_are_as_long_as_they_are() {
        let long = "x ".repeat(60);
        let page = format!("| {long} |\n```\n{long}\n```\n- https://{}\n{long}", "x".repeat(120));
        assert_eq!(lines("a.md", &page), [6]);
    }
}
