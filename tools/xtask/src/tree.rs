//! The files of the tree, as text. Git is not asked: a tree may have come without its history.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that are never looked into: what is built, and what is data.
const SKIPPED: [&str; 6] = ["target", ".git", "testdata", "__pycache__", ".venv", "recorded"];

/// One text file.
#[derive(Debug)]
pub(crate) struct File {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    pub(crate) fn has_ending(&self, ending: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == ending)
    }

    /// Tells whether it is a script without an ending: `.ci/run`, fakes of tests.
    pub(crate) fn is_script(&self) -> bool {
        ["sh", "py", "awk"].iter().any(|ending| self.has_ending(ending)) || self.text.starts_with("#!")
    }
}

/// All files below a root, in the order of their paths.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    files: Vec<File>,
}

impl Tree {
    pub(crate) fn read(root: &Path) -> Self {
        let mut files = Vec::new();
        visit(root, "", &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { root: root.into(), files }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    pub(crate) fn with_ending(&self, ending: &'static str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.has_ending(ending))
    }

    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// Gathers the text files of a directory; `below` is its path from the root, empty or ending with `/`.
fn visit(directory: &Path, below: &str, files: &mut Vec<File>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, kind) = (format!("{below}{name}"), entry.file_type().expect("a kind of file"));
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            visit(&entry.path(), &format!("{path}/"), files);
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            files.push(File { path, text });
        }
    }
}
