//! Volumes of this process for many sequences.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use cfs::change::{Caller, NewInode};
use cfs::engine::write::WriterOptions;
use cfs::id::Ino;
use cfs::local::LocalVolume;
use cfs::open::OpenOptions;

use super::{NativeSubject, Open, Reopen};
use crate::opfuzz::Subject;
use crate::opfuzz::volumes::{Contestant, Image};

/// Bytes of page cache: so few that pages are written back and taken out during a sequence.
const CACHE: u64 = 8 << 20;

/// One volume of this process, a sequence in each of its directories.
pub struct NativeVolume {
    image: Image,
    open: Open,
}

fn open(image: &Path) -> Result<LocalVolume> {
    let writer = Some(WriterOptions::default());
    let options = OpenOptions { writer, ..OpenOptions::default() };
    let volume = LocalVolume::open(image, CACHE, &options)?;
    ensure!(volume.is_writable(), "{}: {:?}", image.display(), volume.warnings());
    Ok(volume)
}

impl NativeVolume {
    /// A volume made by `mke2fs arguments` in `top`.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn new(name: &str, top: &Path, arguments: &str) -> Result<Self> {
        Self::on(Image::new(name, top, arguments))
    }

    /// A volume on an image that is still to be made.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn on(image: Image) -> Result<Self> {
        let mut volume = Self { image, open: Rc::default() };
        volume.renew()?;
        Ok(volume)
    }

    fn renew(&mut self) -> Result<()> {
        self.check()?;
        self.image.make()?;
        *self.open.borrow_mut() = Some(open(self.image.path())?);
        Ok(())
    }

    /// The directory of the next sequence.
    fn next_root(&mut self) -> cfs::Result<Ino> {
        let name = self.image.next_name();
        let new = NewInode { mode: 0o040_755, umask: 0, device: (0, 0) };
        let volume = self.open.borrow();
        let volume = volume.as_ref().ok_or(cfs::Error::NotFound)?;
        Ok(volume.client().make(Ino::ROOT, name.as_bytes(), new, Caller::ROOT)?.attr.ino)
    }
}

impl Contestant for NativeVolume {
    fn check(&mut self) -> Result<()> {
        let Some(volume) = self.open.borrow_mut().take() else { return Ok(()) };
        volume.close().context("a clean stop")?;
        self.image.check()
    }

    fn subject(&mut self) -> Result<Box<dyn Subject>> {
        // A sequence that failed may have left a volume that was not opened again.
        if self.image.is_used_up() || self.open.borrow().is_none() {
            self.renew()?;
        }
        let root = match self.next_root() {
            // What the sequences before have left may be all that there is room for.
            Err(cfs::Error::NoSpace) => {
                self.renew()?;
                self.next_root()?
            }
            root => root?,
        };
        let path: PathBuf = self.image.path().to_owned();
        let reopen: Reopen = Box::new(move || open(&path));
        Ok(Box::new(NativeSubject::new(self.image.name(), &self.open, root, Some(reopen))?))
    }
}
