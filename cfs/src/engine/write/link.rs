//! Names for what is there, and inodes that get one later or never: link and O_TMPFILE.

use std::sync::Arc;

use super::budget::Budget;
use super::make::{New, Planned};
use super::names::{Effects, Report, check_name, touch};
use super::{Cell, Live, Writer, now};
use crate::disk::dirent::edit::NewEntry;
use crate::disk::inode::{InodeFlags, Kind};
use crate::id::Ino;
use crate::limits::MAX_LINKS;
use crate::{Caller, Error, Result};

impl Writer {
    /// Makes a file without a name, as if for a directory: O_TMPFILE. It goes with its last holder,
    /// or by a crash, unless [`Self::link`] has given it a name. `made` sees it before anybody else
    /// can: the place to hold it.
    ///
    /// # Errors
    /// `EPERM` for a directory that is immutable or has gone; `ENOSPC`.
    pub fn make_nameless(
        &self,
        caller: &Caller,
        parent: Ino,
        new: &New<'_>,
        made: impl FnOnce(&Arc<Cell>),
    ) -> Result<Arc<Cell>> {
        let parent_cell = self.live(parent)?;
        let dir = parent_cell.read();
        if dir.inode.kind != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        if dir.inode.links == 0 || dir.inode.flags.contains(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        if Kind::from_mode(new.mode) != Some(Kind::Regular) {
            return Err(Error::Invalid(format!("mode {:#o}: no file", new.mode)));
        }
        let mut plan = self.plan(caller, &dir, new)?;
        let mut budget = Budget::new(&self.space, caller, plan.fresh())?;
        let mut handle = self.begin(plan.credits() + Self::ORPHAN_CREDITS)?;
        let cell = self.make_planned(&mut handle, &mut budget, caller, &dir, &mut plan)?;
        {
            let mut live = cell.write();
            (live.inode.links, live.linkable) = (0, true);
            self.unnamed(&mut handle, &mut live)?;
        }
        drop(handle);
        made(&cell);
        Ok(cell)
    }

    /// What a whiteout for a directory's name will be.
    pub(super) fn plan_whiteout(&self, caller: &Caller, dir: &Live) -> Result<Planned<'_>> {
        self.plan(caller, dir, &New { mode: WHITEOUT, ..New::default() })
    }
}

/// A character device without permissions.
const WHITEOUT: u16 = 0o020_000;

impl Writer {
    /// Gives an inode a further name.
    ///
    /// # Errors
    /// `EPERM` for a directory, and for an inode or a directory that is immutable; `EMLINK`;
    /// `ENOENT` for an inode that has no name any more, unless it never had one; and as
    /// [`Self::make`].
    pub fn link(
        &self,
        caller: &Caller,
        ino: Ino,
        parent: Ino,
        name: &[u8],
        report: Report<'_>,
    ) -> Result<Arc<Cell>> {
        check_name(name)?;
        let parent_cell = self.live(parent)?;
        let mut dir = parent_cell.write();
        let place = self.seek_free(caller, &mut dir, name)?;
        // A directory may be the very one that is locked; its kind never changes.
        let cell = if ino == parent { return Err(Error::NotPermitted) } else { self.live(ino)? };
        let mut live = cell.write();
        let fixed = live.inode.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND);
        if fixed || live.inode.kind == Kind::Directory {
            return Err(Error::NotPermitted);
        }
        if live.inode.links == 0 && !live.linkable {
            return Err(Error::NotFound);
        }
        if live.inode.links >= MAX_LINKS {
            return Err(Error::TooManyLinks);
        }
        let fresh = self.fresh_blocks(&dir.inode, &place)?;
        let mut budget = Budget::new(&self.space, caller, fresh)?;
        let credits = self.enter_credits(&dir, fresh) + Self::STORE_CREDITS + Self::ORPHAN_CREDITS;
        let mut handle = self.begin(credits)?;
        let claims = budget.claim(self.dir_goal(&dir, fresh), fresh)?;
        let file_type = self.dir_format().file_type(live.inode.kind);
        let entry = NewEntry { ino: ino.0, name, file_type };
        self.enter(&mut handle, &mut budget, &mut dir, place, &entry, claims)?;
        let now = now();
        touch(&mut dir, now);
        live.inode.ctime = now;
        live.inode.links += 1;
        if std::mem::take(&mut live.linkable) {
            self.remove_orphan(&mut handle, &mut live)?;
        }
        self.store(&mut handle, &mut live)?;
        self.store(&mut handle, &mut dir)?;
        if self.is_dir_sync(&dir.inode) {
            handle.sync();
        }
        drop(handle);
        report(&Effects {
            inodes: &[(&parent_cell, &dir), (&cell, &live)],
            appeared: &[(parent, name, ino)],
            vanished: &[],
        });
        drop(live);
        Ok(cell)
    }
}
