//! An image that is mounted by ours or by the kernel, for tests that do the same to both.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use cfs::engine::write::{AccessTimes, OnError, WriterOptions};

use crate::kernel::{LoopMount, arg, mke2fs};
use crate::opfuzz::volumes::Mounted;
use crate::ours::Ours;

/// An image, mounted by ours or by the kernel.
pub struct World {
    /// Where it is.
    pub image: PathBuf,
    mounted: Option<Box<dyn Mounted>>,
    dir: tempfile::TempDir,
}

impl World {
    /// Made by `mke2fs arguments` and mounted.
    pub fn new(ours: bool, arguments: &[&str], options: &str) -> Result<Self> {
        let mut world = Self::unmounted(arguments)?;
        world.mount(ours, options)?;
        Ok(world)
    }

    /// Made alone.
    pub fn unmounted(arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ops-").tempdir_in("/dev/shm")?;
        let image = dir.path().join("image");
        mke2fs(&image, 64, arguments)?;
        Ok(Self { image, mounted: None, dir })
    }

    /// Mounts it.
    pub fn mount(&mut self, ours: bool, options: &str) -> Result<()> {
        let place = self.beside("mounted");
        self.mounted = Some(if ours {
            let mut writer = ways(options);
            writer.journal.mount_point = Some(place.display().to_string());
            Box::new(Ours::with(&self.image, &place, writer, 16 << 20)?)
        } else {
            Box::new(LoopMount::new(&self.image, &place, options)?)
        });
        Ok(())
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.beside("mounted")
    }

    /// A file there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A file beside the image.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ends the mount, if there is one.
    pub fn unmount(&mut self) -> Result<()> {
        self.mounted.take().map_or(Ok(()), Mounted::unmount)
    }

    /// What a crash now would leave, recovered.
    pub fn recovered(&self) -> Result<PathBuf> {
        let copy = self.beside("crashed");
        std::fs::copy(&self.image, &copy)?;
        let output = Command::new("e2fsck").args(["-fy", arg(&copy)]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(matches!(output.status.code(), Some(0 | 1)), "{}: {text}", output.status);
        Ok(copy)
    }

    /// Bytes that the image takes of its disk.
    pub fn allocated(&self) -> Result<u64> {
        Ok(self.image.metadata()?.blocks() * 512)
    }
}

/// What options of these tests say.
fn ways(options: &str) -> WriterOptions {
    let mut ways = WriterOptions::default();
    for option in options.split(',') {
        match option {
            "commit=300" => ways.journal.commit_interval = Duration::from_secs(300),
            "noatime" => ways.access_times = AccessTimes::Never,
            "strictatime" => ways.access_times = AccessTimes::Strict,
            "nodiratime" => ways.no_dir_times = true,
            "sync" => ways.sync = true,
            "dirsync" => ways.dir_sync = true,
            "discard" => ways.discard = true,
            "errors=continue" => ways.on_error = Some(OnError::Continue),
            "errors=remount-ro" => ways.on_error = Some(OnError::ReadOnly),
            "" | "relatime" => {}
            other => panic!("{other}: unknown here"),
        }
    }
    ways
}
