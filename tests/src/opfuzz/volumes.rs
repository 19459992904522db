//! Where sequences run: directories of volumes that are made, mounted, checked and made anew.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::{IFlags, Mode, OFlags};

use super::Subject;
use super::dir::{DirSubject, Remount, Ways};
use super::model::Traits;
use super::op::FLAGS;
use super::run::Field;
use crate::kernel::{LoopMount, assert_clean, mke2fs};

/// An image mounted somewhere; dropped it is unmounted.
pub trait Mounted {
    /// Where.
    fn dir(&self) -> &Path;

    /// Unmounts it and says whether that went well.
    ///
    /// # Errors
    /// It did not.
    fn unmount(self: Box<Self>) -> Result<()>;
}

impl Mounted for LoopMount {
    fn dir(&self) -> &Path {
        Self::dir(self)
    }

    fn unmount(self: Box<Self>) -> Result<()> {
        (*self).unmount()
    }
}

/// Mounts an image on a directory, for reading and writing, without devices and access times.
pub type Mounter = Rc<dyn Fn(&Path, &Path) -> Result<Box<dyn Mounted>>>;

/// Kernel ext4 by a loop device.
pub fn kernel_ext4() -> Mounter {
    Rc::new(|image, dir| Ok(Box::new(LoopMount::new(image, dir, "noatime,nodev")?)))
}

/// One volume for many sequences, each in a directory of its own.
pub struct Volume {
    name: String,
    image: PathBuf,
    dir: PathBuf,
    mounter: Mounter,
    mounted: Rc<std::cell::RefCell<Option<Box<dyn Mounted>>>>,
    mke2fs: Vec<String>,
    ways: Ways,
    count: u64,
}

/// Sequences between two checks by e2fsck, after which the volume is made anew.
const BATCH: u64 = 40;

impl Volume {
    /// A volume made by `mke2fs arguments` in `top`.
    ///
    /// # Errors
    /// It cannot be made or mounted.
    pub fn new(name: &str, top: &Path, arguments: &str, mounter: Mounter) -> Result<Self> {
        let mut volume = Self {
            name: name.to_owned(),
            image: top.join(format!("{name}.img")),
            dir: top.join(name),
            mounter,
            mounted: Rc::default(),
            mke2fs: arguments.split_whitespace().map(str::to_owned).collect(),
            ways: Ways::default(),
            count: 0,
        };
        volume.renew()?;
        Ok(volume)
    }

    /// The same for mounts with ways of their own.
    #[must_use]
    pub fn with(mut self, ways: Ways) -> Self {
        self.ways = ways;
        self
    }

    /// Unmounts it, lets e2fsck look at it, makes it anew.
    fn renew(&mut self) -> Result<()> {
        self.check()?;
        let arguments: Vec<_> = self.mke2fs.iter().map(String::as_str).collect();
        mke2fs(&self.image, 256, &arguments)?;
        *self.mounted.borrow_mut() = Some((self.mounter)(&self.image, &self.dir)?);
        Ok(())
    }

    /// Unmounts it and lets e2fsck look at it.
    ///
    /// # Errors
    /// What e2fsck says.
    pub fn check(&mut self) -> Result<()> {
        let Some(mounted) = self.mounted.borrow_mut().take() else { return Ok(()) };
        mounted.unmount()?;
        assert_clean(&self.image).with_context(|| format!("{} after a clean stop", self.name))
    }

    /// An empty directory as a subject.
    ///
    /// # Errors
    /// It cannot be made, or the volume was found broken.
    pub fn subject(&mut self) -> Result<Box<dyn Subject>> {
        self.count += 1;
        if self.count.is_multiple_of(BATCH) {
            self.renew()?;
        }
        let root = self.dir.join(format!("s{}", self.count));
        std::fs::create_dir(&root).with_context(|| root.display().to_string())?;
        // Sticky directories and the like of the one above are not inherited.
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o755))?;
        let (mounted, mounter) = (Rc::clone(&self.mounted), Rc::clone(&self.mounter));
        let (image, dir) = (self.image.clone(), self.dir.clone());
        let remount: Remount = Box::new(move || {
            if let Some(before) = mounted.borrow_mut().take() {
                before.unmount()?;
            }
            *mounted.borrow_mut() = Some(mounter(&image, &dir)?);
            Ok(())
        });
        Ok(Box::new(DirSubject::new(&self.name, &root, Some(remount))?.with(self.ways)))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Files that are immutable are no obstacle to the removal of an image.
        if let Some(mounted) = self.mounted.borrow_mut().take()
            && let Err(error) = mounted.unmount()
        {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}

/// Volumes that are held to the model together.
pub struct Volumes {
    /// What they are like.
    pub traits: Traits,
    /// They.
    pub volumes: Vec<Volume>,
}

impl Field for Volumes {
    fn traits(&self) -> Traits {
        self.traits
    }

    fn subjects(&mut self) -> Result<Vec<Box<dyn Subject>>> {
        self.volumes.iter_mut().map(Volume::subject).collect()
    }
}

/// Removes a tree whatever flags it has; for directories that outlive a run.
///
/// # Errors
/// What the removal says.
pub fn remove_tree(top: &Path) -> Result<()> {
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata()?;
        if meta.is_file() || meta.is_dir() {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(&path, flags, Mode::empty())?;
            let found = rustix::fs::ioctl_getflags(&fd)?.bits();
            if found & FLAGS != 0 {
                rustix::fs::ioctl_setflags(&fd, IFlags::from_bits_retain(found & !FLAGS))?;
            }
        }
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok(std::fs::remove_dir_all(top)?)
}
