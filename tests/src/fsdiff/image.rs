//! Images made by mke2fs, and mounts of them by the kernel.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Whether loop mounts are possible at all. Says so where they are not, for a test to leave by.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: {test} mounts images, which needs root");
    }
    root
}

/// A directory that goes with the test.
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// An empty directory.
    pub fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::Builder::new().prefix("fsdiff-").tempdir()? })
    }

    /// An empty directory in memory, where files may have more bytes than on many disks; `None`
    /// without room for so many mebibytes.
    pub fn in_memory(megabytes: u64) -> Result<Option<Self>> {
        let shm = Path::new("/dev/shm");
        let free = rustix::fs::statvfs(shm).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        if free >> 20 < megabytes {
            return Ok(None);
        }
        Ok(Some(Self { dir: tempfile::Builder::new().prefix("fsdiff-").tempdir_in(shm)? }))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory in it.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    }
}

/// An image file with a filesystem.
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
}

impl Image {
    /// Makes a filesystem of `megabytes` with `mke2fs arguments`, filled from a directory.
    pub fn make(path: &Path, megabytes: u64, arguments: &str, from: Option<&Path>) -> Result<Self> {
        File::create(path)?.set_len(megabytes << 20)?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F"]).args(arguments.split_whitespace());
        if let Some(from) = from {
            command.arg("-d").arg(from);
        }
        run(command.arg(path))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Runs commands of debugfs, one a line, that change the image.
    pub fn debugfs_write(&self, commands: &str) -> Result<()> {
        for command in commands.lines() {
            let output = run(Command::new("debugfs").args(["-w", "-R", command]).arg(&self.path))?;
            // It exits with 0 whatever happens, and greets on stderr.
            let words = String::from_utf8_lossy(&output.stderr);
            ensure!(words.lines().count() <= 1, "debugfs {command}: {words}");
        }
        Ok(())
    }

    /// Runs tune2fs, if there are arguments for it.
    pub fn tune(&self, arguments: &str) -> Result<()> {
        if !arguments.is_empty() {
            let mut command = Command::new("tune2fs");
            run(command.args(arguments.split_whitespace()).arg(&self.path))?;
        }
        Ok(())
    }

    /// The first block of the inodes of group 0, as debugfs says.
    pub fn inode_table(&self) -> Result<u64> {
        let output = run(Command::new("debugfs").args(["-R", "imap <1>"]).arg(&self.path))?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let block = words
            .split("located at block ")
            .nth(1)
            .and_then(|rest| rest.split(',').next()?.trim().parse().ok());
        block.with_context(|| format!("debugfs imap <1>: {words}"))
    }

    /// Fails unless e2fsck finds nothing wrong.
    pub fn fsck(&self) -> Result<()> {
        run(Command::new("e2fsck").arg("-fn").arg(&self.path)).map(drop)
    }

    /// Lets e2fsck pack and sort all directories.
    pub fn rebuild(&self) -> Result<()> {
        let output = Command::new("e2fsck").arg("-fyD").arg(&self.path).output();
        let status = output.context("e2fsck (is e2fsprogs installed?)")?.status;
        // 1: the volume was changed.
        ensure!(matches!(status.code(), Some(0 | 1)), "e2fsck -fyD: {status}");
        self.fsck()
    }

    /// Mounts it in a directory of its own.
    pub fn mount(&self, at: &Path, options: &str) -> Result<LoopMount> {
        let options = format!("loop,{options}");
        // A mount namespace made meanwhile keeps a copy of the last mount for a moment.
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", &options]).arg(&self.path).arg(at);
        patiently("already mounted", &mut command)?;
        Ok(LoopMount { at: at.to_owned(), mounted: true })
    }
}

/// A mount, undone when it is dropped.
pub struct LoopMount {
    at: PathBuf,
    mounted: bool,
}

impl LoopMount {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Undoes the mount and says whether that worked.
    pub fn unmount(mut self) -> Result<()> {
        self.mounted = false;
        umount(&self.at)
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = umount(&self.at)
        {
            eprintln!("{error:#}");
        }
    }
}

/// Undoes a mount. A process that another test starts holds a copy of every open file between its
/// fork and its exec: then the mount is busy for a moment.
fn umount(at: &Path) -> Result<()> {
    let mut command = Command::new("umount");
    patiently("busy", command.arg(at))
}

/// Runs a command again for a minute while it fails with these words.
fn patiently(words: &str, command: &mut Command) -> Result<()> {
    let mut tries = 1200;
    loop {
        match run(command) {
            Err(error) if tries > 0 && error.to_string().contains(words) => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other.map(drop),
        }
    }
}

/// Runs a command to its end; an error with its words if it fails.
pub fn run(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let line = format!("{name} {}", arguments.join(" "));
    let output = command.output().with_context(|| format!("{line} (is {name} installed?)"))?;
    ensure!(
        output.status.success(),
        "{line}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}
