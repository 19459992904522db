//! The house rules that no compiler checks.
//!
//! Each rule is a function from the tree to findings; a finding says where, what, and what to do.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::tree;

mod layers;
mod lexer;
mod links;
mod sync_points;
mod text;

/// A file of the repository with its text; binary files are not in the list.
pub(crate) struct File {
    /// Relative to the repository's top, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// For Rust files: code and comments told apart, line by line.
    pub(crate) lines: Vec<lexer::Line>,
}

impl File {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let lines = if path.ends_with(".rs") { lexer::lines(text) } else { Vec::new() };
        Self { path: path.to_owned(), text: text.to_owned(), lines }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) file: String,
    /// From 1; 0 for the file as a whole.
    pub(crate) line: usize,
    pub(crate) what: String,
    pub(crate) remedy: String,
    /// Worth knowing, but no error.
    pub(crate) notice: bool,
}

impl Finding {
    pub(crate) fn new(file: &str, line: usize, what: impl Into<String>, remedy: &str) -> Self {
        let (file, what, remedy) = (file.to_owned(), what.into(), remedy.to_owned());
        Self { file, line, what, remedy, notice: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, remedy, notice } = self;
        let mark = if *notice { "notice: " } else { "" };
        write!(out, "{file}:{line}: {mark}{what}; {remedy}")
    }
}

/// Checks the whole tree and prints what it finds.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let root = tree::root()?;
    let files = read(&root, &tree::files(&root)?)?;
    let metadata = layers::metadata(&root)?;

    let mut findings = layers::check(&root, &metadata, &files);
    findings.extend(text::check(&files));
    findings.extend(links::check(&files, &|path| root.join(path).exists()));
    findings.extend(sync_points::check(&files));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| !finding.notice).count();
    println!("tidy: {} files, {errors} findings", files.len());
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(root: &Path, paths: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for path in paths {
        let name = path.to_str().context("a file name in the repository is not UTF-8")?;
        let bytes = fs::read(root.join(path)).with_context(|| name.to_owned())?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File::new(name, &text));
        }
    }
    Ok(files)
}
