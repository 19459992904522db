//! What operations on names have in common: their checks, and what they tell of themselves.

use std::sync::Arc;

use super::{Cell, Live, Writer};
use crate::disk::features::RoCompat;
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::id::Ino;
use crate::limits::{MAX_LINKS, MAX_NAME};
use crate::{Error, Result};

/// What came of an operation, told once with its inodes locked and its changes in a transaction,
/// before it is answered.
pub struct Effects<'a> {
    /// Inodes that are new or were changed. One without links has lost its last name.
    pub inodes: &'a [(&'a Arc<Cell>, &'a Live)],
    /// Names that appeared or lead elsewhere now: directory, name, inode.
    pub appeared: &'a [(Ino, &'a [u8], Ino)],
    /// Names that vanished.
    pub vanished: &'a [(Ino, &'a [u8])],
}

/// Who is told.
pub type Report<'a> = &'a mut dyn FnMut(&Effects<'_>);

/// Refuses what is no name of one file.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        [] => Err(Error::NotFound),
        _ if name.len() > MAX_NAME => Err(Error::NameTooLong),
        _ if name.contains(&b'/') || name.contains(&0) => {
            let name = String::from_utf8_lossy(name);
            Err(Error::Invalid(format!("{name:?} is no name: it has a slash or a zero byte")))
        }
        _ => Ok(()),
    }
}

/// Whether it is a name that each directory has.
pub(super) fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Refuses what is no directory, or one that was removed.
pub(super) fn check_dir(dir: &Live) -> Result<()> {
    if dir.inode.kind != Kind::Directory {
        Err(Error::NotADirectory)
    } else if dir.inode.links == 0 {
        Err(Error::NotFound)
    } else {
        Ok(())
    }
}

/// Refuses a directory that no name may be added to.
pub(super) fn may_add(dir: &Live) -> Result<()> {
    if dir.inode.flags.contains(InodeFlags::IMMUTABLE) { Err(Error::NotPermitted) } else { Ok(()) }
}

/// Refuses a name that may not go: for its directory's sake or for its inode's.
pub(super) fn may_remove(dir: &Live, victim: &Live) -> Result<()> {
    let kept = InodeFlags::IMMUTABLE | InodeFlags::APPEND;
    if dir.inode.flags.intersects(kept) || victim.inode.flags.intersects(kept) {
        Err(Error::NotPermitted)
    } else {
        Ok(())
    }
}

/// The directory's entries changed.
pub(super) fn touch(dir: &mut Live, now: Timestamp) {
    (dir.inode.mtime, dir.inode.ctime) = (now, now);
}

impl Writer {
    /// Refuses a directory that can have no further directories in it.
    pub(super) fn check_dir_links(&self, dir: &Live) -> Result<()> {
        let uncounted = self.volume.superblock().features.ro_compat.contains(RoCompat::DIR_NLINK)
            && dir.inode.flags.contains(InodeFlags::INDEX);
        if dir.inode.links >= MAX_LINKS && !uncounted { Err(Error::TooManyLinks) } else { Ok(()) }
    }

    /// A directory more lies in this one. Those with too many are not counted any more, and have
    /// one link.
    pub(super) fn add_subdir(&self, dir: &mut Live) {
        let links = &mut dir.inode.links;
        *links = if *links == 1 || *links >= MAX_LINKS { 1 } else { *links + 1 };
    }

    /// A directory less lies in this one.
    pub(super) fn remove_subdir(&self, dir: &mut Live) {
        if dir.inode.links > 2 {
            dir.inode.links -= 1;
        }
    }
}

impl Writer {
    /// The inode that a name leads to. `found` sees it while the directory is locked: the place to
    /// hold it.
    pub fn lookup(
        &self,
        parent: Ino,
        name: &[u8],
        found: impl FnOnce(&Arc<Cell>),
    ) -> Result<Arc<Cell>> {
        let cell = self.live(parent)?;
        let dir = cell.read();
        check_dir(&dir)?;
        let cell = self.live(self.volume.lookup(&dir.inode, name)?)?;
        found(&cell);
        Ok(cell)
    }
}
