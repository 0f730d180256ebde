//! Commands that pages tell people to type, `PROGRAM COMMAND`: each has to be one that the program's `--help` lists.
//! The programs are those of the last debug build; one that is not built, or older than its sources, is not asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs};

use crate::tree::Tree;
use crate::{Finding, wrap};

const PROGRAMS: [&str; 3] = ["dpu-app", "host-ctl", "kvlane-plan"];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree.root().join("target"), PathBuf::from);
    let sources = tree.with_ending("rs").filter(|file| !file.path.starts_with("tools/xtask/"));
    let sources = sources.filter_map(|file| written(&tree.root().join(&file.path))).max();
    let mut findings = Vec::new();
    for program in PROGRAMS {
        let path = target.join("debug").join(program);
        if written(&path) < sources {
            eprintln!("xtask tidy: commands: skipped: {program} is not built, or older than the sources (cargo build)");
            continue;
        }
        let help =
            Command::new(&path).arg("--help").output().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let help = String::from_utf8_lossy(&help.stdout);
        let known = listed(&help);
        for page in tree.with_ending("md").filter(|page| page.path != "CHANGELOG.md") {
            let unknown = named(&page.text, program).filter(|named| !known.contains(named.1));
            findings.extend(unknown.map(|(line, command)| {
                Finding::new(&page.path, line, format!("`{program} {command}`: {program} --help lists no such command"))
            }));
        }
    }
    findings
}

/// When a file was written; nothing where there is none.
fn written(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// Commands that a help text lists.
fn listed(help: &str) -> BTreeSet<&str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Names have two blanks before them, the lines of their descriptions more.
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// Words behind a program in code, which are neither options nor stand for any; each with its line. In a block the
/// program begins a command: drawings have its name, too.
fn named<'a>(page: &'a str, program: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let mut fence = wrap::Fence::default();
    let mut out = Vec::new();
    for (index, line) in page.lines().enumerate() {
        let spans: Vec<&str> = if fence.sees(line) { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for words in spans.into_iter().map(|span| span.split_whitespace().collect::<Vec<_>>()) {
            let begins = |at: usize| at == 0 || matches!(words[at - 1], "&&" | "||" | "|" | "sudo" | "$" | "#");
            let is_program = |word: &str| word == program || word.ends_with(&format!("/{program}"));
            let pairs = words.windows(2).enumerate().filter(|(at, pair)| begins(*at) && is_program(pair[0]));
            out.extend(pairs.filter(|(_, pair)| is_name(pair[1])).map(|(_, pair)| (index + 1, pair[1])));
        }
    }
    out.into_iter()
}

fn is_name(word: &str) -> bool {
    word.len() > 1 && !word.starts_with('-') && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::{listed, named};

    #[test]
    fn commands_of_a_help_text_are_its_list() {
        let help = "About\n\nCommands:\n  run     Runs\n            it\n  limits  Prints\n\nOptions:\n  -h\n";
        assert_eq!(listed(help).into_iter().collect::<Vec<_>>(), ["limits", "run"]);
    }

    #[test]
    fn commands_of_a_page_are_those_in_code() {
        let page = "dpu-app does it, `dpu-app run --x`, `dpu-app --help`, `dpu-app X`\n```\ntarget/release/dpu-app limits\nhost dpu-app both\n```\n";
        assert_eq!(named(page, "dpu-app").collect::<Vec<_>>(), [(1, "run"), (3, "limits")]);
    }
}
