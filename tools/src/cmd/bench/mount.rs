//! `oslet mount` of an image, served by a process of its own.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use bench::scratch::{Mount, unmount};

/// As much as is read or written: the peers' caches have no bound either.
const READING: &str = "ro,cache=512M";
const WRITING: &str = "rw,cache=512M";

/// Mounts an image read-only in a new directory beside it.
pub(super) fn mount(image: &Path) -> Result<Mount, String> {
    mount_with(image, READING)
}

/// The same for reading and writing.
pub(super) fn mount_writable(image: &Path) -> Result<Mount, String> {
    mount_with(image, WRITING)
}

fn mount_with(image: &Path, options: &str) -> Result<Mount, String> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let dir = image.with_file_name(format!("mount-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["mount", "-o", options]).arg(image).arg(&dir);
    let output = command.output().map_err(|error| format!("oslet mount: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(why.trim().replace('\n', "; "));
    }
    let mounted = dir.clone();
    let tool: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["umount"],
        false => &["fusermount3", "-u"],
    };
    Ok(Mount::new(dir, move || unmount(&mounted, tool)))
}
