//! Where sequences run: directories of volumes that are made, mounted, checked and made anew.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::Mode;

use super::Subject;
use super::dir::{DirSubject, Remount, Ways};
use super::model::Traits;
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
    kernel_with("noatime,nodev")
}

/// The same for volumes whose maps are of pointers: where blocks are allocated late, SEEK_DATA of
/// the kernel does not find them.
pub fn kernel_ext3() -> Mounter {
    kernel_with("noatime,nodev,nodelalloc")
}

fn kernel_with(options: &'static str) -> Mounter {
    Rc::new(move |image, dir| Ok(Box::new(LoopMount::new(image, dir, options)?)))
}

/// Something that sequences run on: a volume, in whose directories each is alone.
pub trait Contestant {
    /// An empty directory as a subject.
    ///
    /// # Errors
    /// It cannot be made, or the volume was found broken.
    fn subject(&mut self) -> Result<Box<dyn Subject>>;

    /// Stops using the volume and lets e2fsck look at it.
    ///
    /// # Errors
    /// What e2fsck says.
    fn check(&mut self) -> Result<()>;
}

/// An image for many sequences, which is made anew after some.
pub struct Image {
    name: String,
    path: PathBuf,
    mke2fs: Vec<String>,
    megabytes: u64,
    count: u64,
}

/// Sequences between two checks by e2fsck, after which a volume is made anew.
const BATCH: u64 = 40;
const MEGABYTES: u64 = 256;

impl Image {
    /// One in `top`, to be made by `mke2fs arguments`.
    #[must_use]
    pub fn new(name: &str, top: &Path, arguments: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: top.join(format!("{name}.img")),
            mke2fs: arguments.split_whitespace().map(str::to_owned).collect(),
            megabytes: MEGABYTES,
            count: 0,
        }
    }

    /// The same of another size.
    #[must_use]
    pub fn of(self, megabytes: u64) -> Self {
        Self { megabytes, ..self }
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, with nothing in it.
    ///
    /// # Errors
    /// What mke2fs says.
    pub fn make(&self) -> Result<()> {
        let arguments: Vec<_> = self.mke2fs.iter().map(String::as_str).collect();
        mke2fs(&self.path, self.megabytes, &arguments)
    }

    /// Whether it is to be looked at and made anew before the next sequence.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        (self.count + 1).is_multiple_of(BATCH)
    }

    /// The directory of the next sequence.
    pub fn next_name(&mut self) -> String {
        self.count += 1;
        format!("s{}", self.count)
    }

    /// Lets e2fsck look at it.
    ///
    /// # Errors
    /// What e2fsck says.
    pub fn check(&self) -> Result<()> {
        assert_clean(&self.path).with_context(|| format!("{} after a clean stop", self.name))
    }
}

/// One volume that is mounted.
pub struct Volume {
    image: Image,
    dir: PathBuf,
    mounter: Mounter,
    mounted: Rc<std::cell::RefCell<Option<Box<dyn Mounted>>>>,
    ways: Ways,
}

impl Volume {
    /// A volume made by `mke2fs arguments` in `top`.
    ///
    /// # Errors
    /// It cannot be made or mounted.
    pub fn new(name: &str, top: &Path, arguments: &str, mounter: Mounter) -> Result<Self> {
        let mut volume = Self {
            image: Image::new(name, top, arguments),
            dir: top.join(name),
            mounter,
            mounted: Rc::default(),
            ways: Ways::default(),
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
        self.image.make()?;
        *self.mounted.borrow_mut() = Some((self.mounter)(self.image.path(), &self.dir)?);
        Ok(())
    }
}

impl Contestant for Volume {
    fn check(&mut self) -> Result<()> {
        let Some(mounted) = self.mounted.borrow_mut().take() else { return Ok(()) };
        mounted.unmount()?;
        self.image.check()
    }

    fn subject(&mut self) -> Result<Box<dyn Subject>> {
        if self.image.is_used_up() {
            self.renew()?;
        }
        let root = self.dir.join(self.image.next_name());
        std::fs::create_dir(&root).with_context(|| root.display().to_string())?;
        // Sticky directories and the like of the one above are not inherited.
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o755))?;
        let (mounted, mounter) = (Rc::clone(&self.mounted), Rc::clone(&self.mounter));
        let (image, dir) = (self.image.path().to_owned(), self.dir.clone());
        let remount: Remount = Box::new(move || {
            if let Some(before) = mounted.borrow_mut().take() {
                before.unmount()?;
            }
            *mounted.borrow_mut() = Some(mounter(&image, &dir)?);
            Ok(())
        });
        let subject = DirSubject::new(self.image.name(), &root, Some(remount))?;
        Ok(Box::new(subject.with(self.ways)))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Files that are immutable are no obstacle to the removal of an image.
        if let Some(mounted) = self.mounted.borrow_mut().take()
            && let Err(error) = mounted.unmount()
        {
            eprintln!("{}: {error:#}", self.image.name());
        }
    }
}

/// Volumes that are held to the model together.
pub struct Volumes {
    /// What they are like.
    pub traits: Traits,
    /// They.
    pub volumes: Vec<Box<dyn Contestant>>,
    /// Whether the one that there is then may be full.
    pub full: bool,
}

impl Field for Volumes {
    fn traits(&self) -> Traits {
        self.traits
    }

    fn may_be_full(&self) -> bool {
        self.full
    }

    fn subjects(&mut self) -> Result<Vec<Box<dyn Subject>>> {
        self.volumes.iter_mut().map(|volume| volume.subject()).collect()
    }
}
