//! Files of Rust that no crate reaches: neither a root that Cargo knows, nor a module of one.

use std::collections::BTreeSet;

use crate::Finding;
use crate::source::code_of;
use crate::tree::{File, Tree};

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut reached = BTreeSet::new();
    for manifest in tree.with_ending("toml").filter(|file| file.path.ends_with("Cargo.toml")) {
        let home = manifest.path.trim_end_matches("Cargo.toml");
        let roots: Vec<&str> =
            tree.with_ending("rs").map(|file| file.path.as_str()).filter(|path| is_root(home, path)).collect();
        let named = paths_of(manifest).map(|path| normal(home, path));
        for root in roots.into_iter().map(String::from).chain(named) {
            reach(tree, &root, true, &mut reached);
        }
    }
    let orphans = tree.with_ending("rs").filter(|file| !reached.contains(&file.path));
    orphans.map(|file| Finding::new(&file.path, 1, "no module of any crate: name it in one, or remove it")).collect()
}

/// Tells whether Cargo finds this file by itself in the package at `home`.
fn is_root(home: &str, path: &str) -> bool {
    let Some(inside) = path.strip_prefix(home) else { return false };
    let parts: Vec<&str> = inside.split('/').collect();
    match parts.as_slice() {
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] => true,
        ["src", "bin", ..] => parts.len() == 3 || parts.last() == Some(&"main.rs"),
        ["tests" | "benches" | "examples", _] => true,
        ["tests" | "benches" | "examples", _, "main.rs"] => true,
        _ => false,
    }
}

/// Values of `path = "X.rs"` and `build = "X.rs"` of a manifest.
fn paths_of(manifest: &File) -> impl Iterator<Item = &str> {
    let lines = manifest.text.lines().map(str::trim);
    let named = lines.filter(|line| line.starts_with("path = ") || line.starts_with("build = "));
    named.filter_map(|line| line.split('"').nth(1)).filter(|path| path.ends_with(".rs"))
}

/// Adds a file and the modules below it. `is_root`: its modules lie beside it, not in a directory of its name.
fn reach(tree: &Tree, path: &str, is_root: bool, reached: &mut BTreeSet<String>) {
    let Some(file) = tree.file(path) else { return };
    if !reached.insert(path.into()) {
        return;
    }
    let (home, name) = path.rsplit_once('/').unwrap_or(("", path));
    let own = is_root || name == "mod.rs" || name == "main.rs" || name == "lib.rs";
    let below = if own { String::from(home) } else { format!("{home}/{}", name.trim_end_matches(".rs")) };
    for Module { name, given, outer } in modules(&file.text) {
        if let Some(given) = given {
            // Counted from the file, or inside a module from that module's directory.
            let from = outer.iter().fold(format!("{home}/"), |from, outer| format!("{from}{outer}/"));
            reach(tree, &normal(&from, &given), false, reached);
            continue;
        }
        let below = outer.iter().fold(below.clone(), |below, outer| format!("{below}/{outer}"));
        for path in [format!("{below}/{name}.rs"), format!("{below}/{name}/mod.rs")] {
            reach(tree, path.trim_start_matches('/'), false, reached);
        }
    }
    for included in included(&file.text) {
        reach(tree, &normal(&format!("{home}/"), &included), true, reached);
    }
}

struct Module {
    name: String,
    /// What `#[path]` says.
    given: Option<String>,
    /// Modules in this file that it stands in.
    outer: Vec<String>,
}

/// Declarations `mod x;` of a file.
fn modules(text: &str) -> Vec<Module> {
    let code = code_of(text);
    let (mut out, mut outer, mut depth, mut given) = (Vec::new(), Vec::new(), 0_usize, None);
    for (line, code) in text.lines().zip(code.lines()) {
        if let Some((_, value)) = line.split_once("path = \"")
            && code.trim_start().starts_with("#[")
        {
            given = value.split('"').next().map(String::from);
        }
        let declared =
            code.split_once("mod ").filter(|(before, _)| before.is_empty() || before.ends_with([' ', '\t', ']']));
        if let Some((_, rest)) = declared {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let rest = rest[name.len()..].trim_start();
            if rest.starts_with(';') {
                let outer = outer.iter().map(|(_, name): &(usize, String)| name.clone()).collect();
                out.push(Module { name, given: given.take(), outer });
            } else if rest.starts_with('{') {
                outer.push((depth, name));
            }
        }
        for c in code.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        outer.retain(|(at, _)| *at < depth);
    }
    out
}

fn included(text: &str) -> Vec<String> {
    let named = text.split("include!(\"").skip(1).filter_map(|rest| rest.split('"').next());
    named.filter(|path| path.ends_with(".rs")).map(String::from).collect()
}

/// A path from the root, without `..`.
fn normal(home: &str, path: &str) -> String {
    let mut parts: Vec<&str> = home.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::check;
    use crate::tree::Tree;

    #[test]
    fn modules_are_reached_in_all_ways_and_the_others_are_named() {
        let home = tempfile::tempdir().unwrap();
        let files = [
            ("a/Cargo.toml", "[[bin]]\npath = \"odd/x.rs\"\n"),
            (
                "a/src/lib.rs",
                "mod b;\npub mod c;\n// mod orphan;\nmod d {\n    mod e;\n}\n#[path = \"far/f.rs\"]\nmod f;\n",
            ),
            ("a/src/b.rs", "mod g;\n"),
            ("a/src/b/g.rs", ""),
            ("a/src/c/mod.rs", "include!(\"part.rs\");\n"),
            ("a/src/c/part.rs", ""),
            ("a/src/d/e.rs", ""),
            ("a/src/far/f.rs", ""),
            ("a/src/orphan.rs", ""),
            ("a/odd/x.rs", ""),
            ("a/tests/t.rs", "mod rig;\n"),
            ("a/tests/rig/mod.rs", ""),
            ("a/tests/rig/left.rs", ""),
        ];
        for (path, text) in files {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found: Vec<_> = check(&Tree::read(home.path())).into_iter().map(|finding| finding.file).collect();
        assert_eq!(found, ["a/src/orphan.rs", "a/tests/rig/left.rs"]);
    }
}
