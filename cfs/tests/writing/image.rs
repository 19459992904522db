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
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for index in 0..files {
            std::fs::write(tree.join(index.to_string()), initial(index)).unwrap();
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

/// What file number `index` holds at first.
pub(crate) fn initial(index: usize) -> Vec<u8> {
    (0..index * 9000).map(|at| (at * 7 + index) as u8).collect()
}

fn assert_clean(path: &Path) {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !text.contains("Fix? no"), "e2fsck:\n{text}");
}
