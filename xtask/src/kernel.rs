//! `cargo xtask kernel`: a kernel that is not this machine's, to be booted by tests. It is taken
//! out of its package and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use crate::{packages, tree};

/// Packages that depend on the newest kernel of their kind; small ones, without most drivers.
const KINDS: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// Makes sure that there is a kernel in `TARGET/kernel`, and the programs to boot it.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    packages::ensure_guest()?;
    let target = tree::target(&tree::root()?).join("kernel");
    let kernel = match find(&target) {
        Some(kernel) => kernel,
        None => fetch(&target)?,
    };
    println!("{}", kernel.display());
    Ok(ExitCode::SUCCESS)
}

fn find(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let is_kernel = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    };
    entries.filter(is_kernel).max()
}

fn fetch(target: &Path) -> anyhow::Result<PathBuf> {
    let Some(apt) = tree::find_program("apt-get", &[]) else {
        bail!("this is no Debian; put a kernel into {} as vmlinuz", target.display());
    };
    let package = newest().or_else(|_| {
        // Without lists nothing is known; only root may get them.
        output(Command::new(&apt).args(["update", "-q"])).and_then(|_| newest())
    })?;
    let work = target.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    println!("+ apt-get download {package}");
    output(Command::new(&apt).args(["download", "-q", &package]).current_dir(&work))?;
    let file = fs::read_dir(&work)?.flatten().map(|entry| entry.path()).next();
    let file = file.with_context(|| format!("{package}: apt-get has fetched nothing"))?;
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(work.join("out")))?;
    let kernel = find(&work.join("out/boot")).with_context(|| format!("{package}: no kernel"))?;
    let place = target.join(kernel.file_name().context("a kernel without a name")?);
    fs::rename(&kernel, &place).with_context(|| place.display().to_string())?;
    fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
    Ok(place)
}

/// The package that one of the kinds stands for now.
fn newest() -> anyhow::Result<String> {
    for kind in KINDS {
        let text = output(Command::new("apt-cache").args(["depends", kind])).unwrap_or_default();
        let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        if let Some(package) = package.filter(|name| name.starts_with("linux-image-")) {
            return Ok(package.to_owned());
        }
    }
    bail!("no package {}: is `apt-get update` due?", KINDS.join(" or "))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| program.clone())?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "{program}: {}: {}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
