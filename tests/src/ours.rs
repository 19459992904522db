//! Images as this project mounts them, in this process.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cfs::engine::write::{AccessTimes, WriterOptions};
use cfs::local::LocalVolume;
use cfs::mount::mountpoint::{MountOptions, Mounted as Mountpoint, open_and_mount};
use cfs::mount::{Config, Session, Sharing, Times, VolumeFs};
use cfs::open::OpenOptions;

use crate::opfuzz::volumes::{Mounted, Mounter};

const SOON: Duration = Duration::from_secs(20);
/// Bytes of page cache.
const CACHE: u64 = 64 << 20;

/// An image under a mount of ours; dropped it is unmounted.
pub struct Ours {
    dir: PathBuf,
    mounted: Option<Mountpoint>,
    session: Option<Session>,
    volume: Option<LocalVolume>,
}

impl Ours {
    /// Mounted to be read alone.
    ///
    /// # Errors
    /// It cannot be opened or mounted.
    pub fn read_only(image: &Path, dir: &Path) -> Result<Self> {
        Self::new(image, dir, OpenOptions { read_only: true, ..OpenOptions::default() }, CACHE)
    }

    /// Mounted to be read and written.
    ///
    /// # Errors
    /// It cannot be opened or mounted, or only be read.
    pub fn writable(image: &Path, dir: &Path) -> Result<Self> {
        let access_times = AccessTimes::Never;
        Self::with(image, dir, WriterOptions { access_times, ..WriterOptions::default() }, CACHE)
    }

    /// The same with ways of writing and a page cache of so many bytes.
    ///
    /// # Errors
    /// As [`Self::writable`].
    pub fn with(image: &Path, dir: &Path, writer: WriterOptions, cache: u64) -> Result<Self> {
        let options = OpenOptions { writer: Some(writer), ..OpenOptions::default() };
        let ours = Self::new(image, dir, options, cache)?;
        let writable = ours.volume.as_ref().is_some_and(LocalVolume::is_writable);
        ensure!(writable, "{}: mounted read-only", image.display());
        Ok(ours)
    }

    fn new(image: &Path, dir: &Path, options: OpenOptions, cache: u64) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let volume = LocalVolume::open(image, cache, &options)?;
        let writer = options.writer;
        let sharing = if volume.is_writable() { Sharing::Alone } else { Sharing::ReadOnly };
        let mut options = MountOptions::new("image");
        options.nosuid = false;
        options.read_only = sharing == Sharing::ReadOnly;
        // As the kernel's mounts that these are compared with.
        options.nodev = !options.read_only;
        let (device, mounted) = open_and_mount(dir, &options)?;
        let times = writer.map_or_else(Times::default, |writer| Times {
            access: writer.access_times,
            not_of_directories: writer.no_dir_times,
        });
        let fs = VolumeFs::with(Arc::clone(volume.client()), sharing, times);
        let session = Some(Session::start(device, fs, Config::default())?);
        Ok(Self { dir: dir.to_owned(), mounted: Some(mounted), session, volume: Some(volume) })
    }

    /// The native interface to the same volume.
    ///
    /// # Panics
    /// When it has been unmounted.
    pub fn volume(&self) -> &LocalVolume {
        self.volume.as_ref().expect("mounted")
    }

    fn end(&mut self) -> Result<()> {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount(&self.dir)?;
        }
        if let Some(session) = self.session.take() {
            ensure!(session.wait(SOON), "{}: outlives its mount", self.dir.display());
            session.stop(SOON)?;
        }
        match self.volume.take() {
            Some(volume) => volume.close().with_context(|| self.dir.display().to_string()),
            None => Ok(()),
        }
    }
}

impl Mounted for Ours {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn unmount(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

/// Mounts images as this project does.
pub fn ours() -> Mounter {
    Rc::new(|image, dir| Ok(Box::new(Ours::writable(image, dir)?)))
}
