//! Public names with two meanings: a type or trait that two files of the sources declare for others. Idioms, and the
//! same thing on two sides of a border, are listed; the list only shrinks.

use std::collections::{BTreeMap, BTreeSet};

use crate::Finding;
use crate::source::code_of;
use crate::tree::{File, Tree};

const TABLE: &str = "tools/xtask/tables/names.txt";

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut places: BTreeMap<String, Vec<(&str, usize)>> = BTreeMap::new();
    for file in tree.with_ending("rs").filter(|file| is_ours(file)) {
        for (line, name) in declared(&file.text) {
            places.entry(name).or_default().push((&file.path, line));
        }
    }
    // Of one file the second is the same thing for another processor or flavour.
    places.retain(|_, places| places.iter().map(|place| place.0).collect::<BTreeSet<_>>().len() > 1);
    let listed: Vec<(usize, &str)> = tree.file(TABLE).map_or_else(Vec::new, |file| entries(&file.text).collect());
    let mut findings = Vec::new();
    for (name, places) in &places {
        if !listed.iter().any(|entry| entry.1 == name) {
            let others: Vec<_> = places[1..].iter().map(|(file, line)| format!("{file}:{line}")).collect();
            let text = format!("`{name}` is declared again in {}: one name, one meaning", others.join(", "));
            findings.push(Finding::new(places[0].0, places[0].1, text));
        }
    }
    let gone = listed.iter().filter(|entry| !places.contains_key(entry.1));
    findings.extend(gone.map(|(line, name)| {
        Finding::new(TABLE, *line, format!("`{name}` has one meaning now: take it off this list"))
    }));
    findings
}

/// Tells whether a file is source that others see: no tests, no benches.
fn is_ours(file: &File) -> bool {
    let is_test = file.path.contains("/tests/") || file.path.contains("/benches/") || file.path.contains("/examples/");
    !is_test && !file.path.ends_with("tests.rs")
}

/// Names of a table, each with its line.
pub(crate) fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.split('#').next().unwrap_or("").trim()));
    lines.filter(|(_, line)| !line.is_empty())
}

/// Types and traits that a file declares for others, each with its line; what stands behind `#[cfg(test)]` at the end
/// of a file is left out.
fn declared(text: &str) -> Vec<(usize, String)> {
    let code = code_of(text);
    let own = code.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    own.enumerate().filter_map(|(index, line)| Some((index + 1, name_of(line.trim_start())?))).collect()
}

fn name_of(line: &str) -> Option<String> {
    let rest = line.strip_prefix("pub")?;
    let rest = rest.strip_prefix('(').map_or(rest, |rest| rest.split_once(')').map_or("", |split| split.1));
    let rest = rest.strip_prefix(' ')?;
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let rest = ["struct ", "enum ", "trait ", "union "].iter().find_map(|kind| rest.strip_prefix(kind))?;
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::declared;

    #[test]
    fn public_types_are_declared_and_private_ones_are_not() {
        let text = "pub struct A;\nstruct B;\npub(crate) enum C {}\npub(in a::b) trait D {}\n// pub struct E;\n#[cfg(test)]\npub struct F;\n";
        let names: Vec<_> = declared(text).into_iter().map(|(line, name)| format!("{line}{name}")).collect();
        assert_eq!(names, ["1A", "3C", "4D"]);
    }
}
