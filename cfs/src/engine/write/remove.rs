//! Names that go: unlink and rmdir.

use super::dir::{Sought, Spot};
use super::names::{Effects, Report, check_dir, check_name, is_dots, is_sync, may_remove, touch};
use super::{Live, Writer, now};
use crate::disk::inode::Kind;
use crate::id::Ino;
use crate::{Error, Result};

impl Writer {
    /// Takes a name of something other than a directory away, and with the last one the inode,
    /// unless `report` or somebody else holds it.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `EPERM` where the directory or the inode is immutable or
    /// append-only.
    pub fn unlink(&self, parent: Ino, name: &[u8], report: Report<'_>) -> Result<()> {
        if is_dots(name) {
            return Err(Error::IsADirectory);
        }
        self.remove_name(parent, name, false, report)
    }

    /// Takes an empty directory away.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOTEMPTY`, and `EPERM` as for [`Self::unlink`].
    pub fn rmdir(&self, parent: Ino, name: &[u8], report: Report<'_>) -> Result<()> {
        match name {
            b"." => Err(Error::Invalid("\".\" cannot be removed: name the directory".into())),
            b".." => Err(Error::NotEmpty),
            _ => self.remove_name(parent, name, true, report),
        }
    }

    fn remove_name(
        &self,
        parent: Ino,
        name: &[u8],
        directory: bool,
        report: Report<'_>,
    ) -> Result<()> {
        check_name(name)?;
        let parent_cell = self.live(parent)?;
        let mut dir = parent_cell.write();
        let spot = self.seek_there(&dir, name)?;
        let cell = self.live(spot.ino)?;
        let mut victim = cell.write();
        may_remove(&dir, &victim)?;
        match (victim.inode.kind == Kind::Directory, directory) {
            (true, false) => return Err(Error::IsADirectory),
            (false, true) => return Err(Error::NotADirectory),
            (true, true) if !self.is_empty_dir(&victim.inode)? => return Err(Error::NotEmpty),
            _ => {}
        }
        let mut handle = self.begin(1 + 2 * Self::STORE_CREDITS + Self::ORPHAN_CREDITS)?;
        self.take_out(&mut handle, &dir.inode, &spot)?;
        let now = now();
        touch(&mut dir, now);
        if directory {
            self.remove_subdir(&mut dir);
        }
        self.store(&mut handle, &mut dir)?;
        victim.inode.ctime = now;
        self.drop_link(&mut handle, &mut victim)?;
        if is_sync(&dir) {
            handle.sync();
        }
        drop(handle);
        report(&Effects {
            inodes: &[(&parent_cell, &dir), (&cell, &victim)],
            appeared: &[],
            vanished: &[(parent, name)],
        });
        let unnamed = victim.inode.links == 0;
        drop((dir, victim));
        if unnamed {
            self.let_rest(&cell);
        }
        Ok(())
    }

    /// Where a name is in a directory.
    pub(super) fn seek_there(&self, dir: &Live, name: &[u8]) -> Result<Spot> {
        check_dir(dir)?;
        match self.seek(&dir.inode, name)? {
            Sought::Found(spot) => Ok(spot),
            Sought::Absent(_) => Err(Error::NotFound),
        }
    }

    /// An inode has a name less, a directory none; it is stored.
    pub(super) fn drop_link(
        &self,
        handle: &mut crate::journal::Handle<'_>,
        victim: &mut Live,
    ) -> Result<()> {
        let directory = victim.inode.kind == Kind::Directory;
        victim.inode.links = if directory { 0 } else { victim.inode.links.saturating_sub(1) };
        if victim.inode.links == 0 {
            self.unnamed(handle, victim)
        } else {
            self.store(handle, victim)
        }
    }
}
