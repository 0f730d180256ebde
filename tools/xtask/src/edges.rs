//! Which room may use which: crates by their manifests, rooms inside a crate by its paths. The table says what is
//! allowed, `crate: room -> room room`; an edge that is not there is a finding, and so is one that nobody needs any
//! more. So is a name that `lib.rs` only re-exports: it hides whose it is.

use std::collections::{BTreeMap, BTreeSet};

use crate::Finding;
use crate::names::entries;
use crate::source::{code_of, words};
use crate::tree::Tree;

const TABLE: &str = "tools/xtask/tables/edges.txt";
/// The crate whose rooms are all crates.
const CRATES: &str = "crates";

/// An edge, and where it is.
type Edges = BTreeMap<(String, String), (String, usize)>;

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(table) = tree.file(TABLE) else { return vec![Finding::new(TABLE, 0, "is not there")] };
    let mut allowed: BTreeMap<String, Edges> = BTreeMap::new();
    let mut findings = Vec::new();
    for (line, entry) in entries(&table.text) {
        let Some((place, (from, to))) =
            entry.split_once(':').and_then(|(place, rest)| Some((place, rest.split_once("->")?)))
        else {
            findings.push(Finding::new(TABLE, line, format!("{entry:?} is not `crate: room -> room ...`")));
            continue;
        };
        let edges = allowed.entry(place.trim().into()).or_default();
        for to in to.split_whitespace() {
            edges.insert((from.trim().into(), to.into()), (TABLE.into(), line));
        }
    }
    for (place, allowed) in &allowed {
        let found = if place == CRATES { between_crates(tree) } else { inside(tree, place) };
        findings.extend(found.iter().filter(|(edge, _)| !allowed.contains_key(*edge)).map(
            |((from, to), (file, line))| {
                Finding::new(file, *line, format!("{from} uses {to}, which {TABLE} does not allow in {place}"))
            },
        ));
        findings.extend(allowed.iter().filter(|(edge, _)| !found.contains_key(*edge)).map(
            |((from, to), (file, line))| {
                Finding::new(file, *line, format!("{from} does not use {to} any more: take it off"))
            },
        ));
        findings.extend(circle(allowed).map(|rooms| Finding::new(TABLE, 0, format!("{place}: a circle: {rooms}"))));
    }
    findings
}

/// Packages of this workspace that others depend on outside of their tests.
fn between_crates(tree: &Tree) -> Edges {
    let manifests: Vec<_> = tree.with_ending("toml").filter(|file| file.path.ends_with("/Cargo.toml")).collect();
    let name_of =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("name = \"")?.split('"').next().map(String::from));
    let names: BTreeSet<String> = manifests.iter().filter_map(|file| name_of(&file.text)).collect();
    let mut edges = Edges::new();
    for file in manifests {
        let Some(from) = name_of(&file.text) else { continue };
        let mut inside = false;
        for (index, line) in file.text.lines().enumerate() {
            if line.starts_with('[') {
                inside = line == "[dependencies]";
            }
            let to: String = line.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect();
            if inside && names.contains(&to) {
                edges.insert((from.clone(), to), (file.path.clone(), index + 1));
            }
        }
    }
    edges
}

/// Rooms of a crate's `src` that use each other by `crate::ROOM`: a room is a directory, or a file beside `lib.rs`.
/// What is no room is `lib`'s.
fn inside(tree: &Tree, place: &str) -> Edges {
    let src = format!("{place}/src/");
    let room = |path: &str| {
        let rest = path.strip_prefix(&src)?;
        Some(rest.split('/').next()?.trim_end_matches(".rs").to_owned())
    };
    let rooms: BTreeSet<String> = tree.with_ending("rs").filter_map(|file| room(&file.path)).collect();
    let mut edges = Edges::new();
    for file in tree.with_ending("rs").filter(|file| !file.path.ends_with("tests.rs")) {
        let Some(from) = room(&file.path).filter(|room| !matches!(room.as_str(), "lib" | "main")) else { continue };
        let code = code_of(&file.text);
        let own = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or(&code);
        for (line, to) in used(own) {
            let to = if rooms.contains(to) { to } else { "lib" };
            if to != from {
                edges.entry((from.clone(), to.into())).or_insert((file.path.clone(), line));
            }
        }
    }
    edges
}

/// What stands behind `crate::`, in braces or by itself, each with its line.
fn used(code: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let line = code[..at].matches('\n').count() + 1;
        let group = rest.strip_prefix('{').map_or(rest, |rest| &rest[..closing(rest)]);
        let firsts =
            if rest.starts_with('{') { firsts(group) } else { words(group).take(1).map(|word| word.1).collect() };
        out.extend(firsts.into_iter().map(|word| (line, word)));
    }
    out
}

/// Bytes up to the brace that closes a group whose opening one is before the text.
fn closing(text: &str) -> usize {
    let mut depth = 1_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The first word of each part of a group: `a::{b, c}, d` has `a` and `d`.
fn firsts(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[from..]);
    parts.into_iter().filter_map(|part| words(part).next().map(|word| word.1)).collect()
}

/// Rooms that lead back to the first of them, if there are such.
fn circle(edges: &Edges) -> Option<String> {
    let rooms: BTreeSet<&str> = edges.keys().map(|edge| edge.0.as_str()).collect();
    rooms.into_iter().find_map(|room| {
        let mut way = vec![room];
        leads_to(edges, room, room, &mut way).then(|| way.join(" -> "))
    })
}

fn leads_to<'a>(edges: &'a Edges, from: &str, goal: &str, way: &mut Vec<&'a str>) -> bool {
    for (_, to) in edges.keys().filter(|edge| edge.0 == from) {
        if to == goal {
            way.push(to);
            return true;
        }
        if !way.contains(&to.as_str()) {
            way.push(to);
            if leads_to(edges, to, goal, way) {
                return true;
            }
            way.pop();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::{Edges, circle, used};

    #[test]
    fn what_a_file_uses_is_the_first_name_behind_the_crate() {
        let code = "use crate::a::B;\nuse crate::{c::{D, e}, f};\nfn g(_: &crate::h::I) {}\n";
        assert_eq!(used(code), [(1, "a"), (2, "c"), (2, "f"), (3, "h")]);
    }

    #[test]
    fn a_circle_is_found_and_named() {
        let edges = |list: &[(&str, &str)]| -> Edges {
            list.iter().map(|(a, b)| (((*a).into(), (*b).into()), (String::new(), 0))).collect()
        };
        assert_eq!(circle(&edges(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
        assert_eq!(circle(&edges(&[("a", "b"), ("b", "c"), ("c", "a")])).unwrap(), "a -> b -> c -> a");
    }
}
