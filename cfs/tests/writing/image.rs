//! Images to write to, and what e2fsck says of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use cfs::engine::write::WriterOptions;
use cfs::local::LocalVolume;
use cfs::open::OpenOptions;

/// An image in a directory of its own, with a few files.
pub(crate) struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// With files `0` to `files - 1`, of a few pages each but the first, which is empty.
    pub(crate) fn new(arguments: &[&str], size: &str, files: usize) -> Self {
        Self::with(arguments, size, files, STEP)
    }

    /// With files that are each `step` bytes longer than the one before.
    pub(crate) fn with(arguments: &[&str], size: &str, files: usize, step: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for index in 0..files {
            std::fs::write(tree.join(index.to_string()), initial(index, step)).unwrap();
        }
        let status = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&tree)
            .args(arguments)
            .arg(dir.path().join("image"))
            .arg(size)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("mke2fs (package e2fsprogs) is needed");
        assert!(status.success());
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(crate) fn open(&self, cache: u64) -> LocalVolume {
        self.open_with(cache, WriterOptions::default())
    }

    pub(crate) fn open_with(&self, cache: u64, writer: WriterOptions) -> LocalVolume {
        let options = OpenOptions { writer: Some(writer), ..OpenOptions::default() };
        LocalVolume::open(&self.path(), cache, &options).unwrap()
    }

    /// Has debugfs do something, and returns what it says.
    pub(crate) fn debugfs(&self, request: &str) -> String {
        let mut debugfs = Command::new("debugfs");
        let output = debugfs.args(["-w", "-R", request]).arg(self.path()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What e2fsprogs reads from a file of the root directory.
    pub(crate) fn dump(&self, name: &str) -> Vec<u8> {
        let out = self.dir.path().join("dump");
        let status = Command::new("debugfs")
            .args(["-R", &format!("dump /{name} {}", out.display())])
            .arg(self.path())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        std::fs::read(out).unwrap()
    }

    /// e2fsck finds nothing at all.
    pub(crate) fn assert_clean(&self) {
        assert_clean(&self.path());
    }
}

/// Bytes by which files are longer than those before, where nothing else is said.
pub(crate) const STEP: usize = 9000;

/// What file number `index` holds at first.
pub(crate) fn initial(index: usize, step: usize) -> Vec<u8> {
    (0..index * step).map(|at| (at * 7 + index) as u8).collect()
}

fn assert_clean(path: &Path) {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !text.contains("Fix? no"), "e2fsck:\n{text}");
}
