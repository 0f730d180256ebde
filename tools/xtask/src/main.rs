//! `cargo xtask`: keeps the house in order. `tidy` checks what no compiler does, `wrap` breaks long lines, `ci` runs
//! the steps of `.ci/run`. It depends on nothing, so that it is built in a second.

mod commands;
mod edges;
mod names;
mod orphans;
mod references;
mod source;
mod tree;
mod unsafe_code;
mod widths;
mod wrap;

use std::path::Path;
use std::process::{Command, ExitCode};

use tree::Tree;

const USAGE: &str = "\
Usage: cargo xtask COMMAND
  tidy [CHECK...]   checks the tree; each finding is a line `file:line: what, and what to do`
                    checks: widths references unsafe orphans names edges commands [default: all]
  wrap [FILE...]    breaks what is too long in Markdown and in comments [default: every file that is]
  ci [STEP...]      runs .ci/run: all steps, or these; --list shows them
Exit codes: 0 in order, 1 not, 2 usage.";

/// Something that is not as it should be.
#[derive(Debug)]
pub(crate) struct Finding {
    /// File, from the tree's root.
    pub(crate) file: String,
    /// Line, from 1; 0 for a whole file.
    pub(crate) line: usize,
    /// What is wrong, and what to do about it.
    pub(crate) text: String,
}

impl Finding {
    pub(crate) fn new(file: &str, line: usize, text: impl Into<String>) -> Self {
        Self { file: file.into(), line, text: text.into() }
    }
}

type Check = fn(&Tree) -> Vec<Finding>;

const CHECKS: [(&str, Check); 7] = [
    ("widths", widths::check),
    ("references", references::check),
    ("unsafe", unsafe_code::check),
    ("orphans", orphans::check),
    ("names", names::check),
    ("edges", edges::check),
    ("commands", commands::check),
];

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else { return usage() };
    match command.as_str() {
        "tidy" => tidy(&Tree::read(&root), rest),
        "wrap" => {
            let wrapped = wrap::run(&Tree::read(&root), rest);
            println!("xtask wrap: {wrapped} files changed");
            ExitCode::SUCCESS
        }
        "ci" => {
            let status = Command::new(root.join(".ci/run")).args(rest).status();
            if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        "--help" | "-h" => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn tidy(tree: &Tree, wanted: &[String]) -> ExitCode {
    if wanted.iter().any(|name| CHECKS.iter().all(|check| check.0 != name)) {
        return usage();
    }
    let mut found = 0;
    for (name, check) in CHECKS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let mut findings = check(tree);
            findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            for Finding { file, line, text } in &findings {
                println!("{file}:{line}: {text} [{name}]");
            }
            found += findings.len();
        }
    }
    println!("xtask tidy: {} files, {found} findings", tree.files().len());
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
