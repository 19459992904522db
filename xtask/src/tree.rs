//! Where the repository is and which files belong to it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The cargo that runs this command, so that a chosen toolchain stays chosen.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The repository's top directory.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    // Cargo sets the variable at run time; the compiled-in path would be wrong after a move.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set; run this as `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("xtask has no parent directory")?;
    Ok(root.to_owned())
}

/// The build directory: `target` unless cargo is told otherwise.
pub(crate) fn target(root: &Path) -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}

/// A program on the PATH or in the system directories that a user's PATH may lack.
pub(crate) fn find_program(name: &str, also: &[PathBuf]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(also.iter().cloned())
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The files of the repository, relative to `root`, sorted: what git tracks or would track, or
/// without git all that is no build output.
pub(crate) fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output();
    let mut files = match listing {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)
            .context("a file name in the repository is not UTF-8")?
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|file| root.join(file).is_file())
            .collect(),
        _ => walk(root)?,
    };
    files.sort();
    files.dedup();
    if files.is_empty() {
        bail!("{}: no files of the repository found", root.display());
    }
    Ok(files)
}

/// The files below a directory, relative to it; build output and git's own are left out.
pub(crate) fn walk(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let entries = dir.read_dir().with_context(|| dir.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name();
            if kind.is_dir() && name != "target" && name != ".git" {
                left.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path().strip_prefix(root)?.to_owned());
            }
        }
    }
    Ok(found)
}
