//! New inodes and new names: create, mknod, mkdir, symlink, link.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use super::budget::Budget;
use super::dir::{Place, Sought};
use super::inline::{ALL, is_inline};
use super::names::{Effects, Report, check_dir, check_name, is_dots, may_add, touch};
use super::xattr::Layout;
use super::{Cell, Live, Writer, now};
use crate::alloc::Claim;
use crate::disk::dirent::edit::{self, NewEntry};
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::id::Ino;
use crate::journal::Handle;
use crate::{Caller, Error, Result};

/// What is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct New<'a> {
    /// Type and permissions, to which the umask has not been applied.
    pub mode: u16,
    /// Applied where the directory has no default ACL.
    pub umask: u16,
    /// Major and minor of a device node.
    pub device: (u32, u32),
    /// Where a symbolic link points.
    pub target: &'a [u8],
}

const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
/// Targets of this length and longer have a block of their own.
const FAST_LINK: usize = 60;

impl Writer {
    /// Blocks that making an inode changes beside its directory: those of its number and of its
    /// attributes, itself, and its first block with the map of that.
    pub(super) const MAKE_CREDITS: u32 = 4 + 3 + Self::STORE_CREDITS + 1 + 2 + 2 * 2;

    /// Makes a file, a directory, a node, a socket or a symbolic link.
    ///
    /// # Errors
    /// `EEXIST` when the name is there, `EPERM` in an immutable directory, `EMLINK` for one
    /// directory too many, `ENAMETOOLONG`, `ENOSPC`: nothing has changed then.
    pub fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new: &New<'_>,
        report: Report<'_>,
    ) -> Result<Arc<Cell>> {
        check_name(name)?;
        let kind = Self::check_new(new)?;
        let parent_cell = self.live(parent)?;
        let mut dir = parent_cell.write();
        let place = self.seek_free(caller, &mut dir, name)?;
        self.check_target_len(new)?;
        if kind == Kind::Directory {
            self.check_dir_links(&dir)?;
        }
        // As mkdir(2) has it: set-group-ID comes from above alone.
        let kept = if kind == Kind::Directory { !(SETUID | SETGID) } else { !0 };
        let mut inherited = self.inherited(caller, &dir, new.mode & kept, new.umask)?;
        let fresh = self.fresh_blocks(&dir.inode, &place)?;
        let own = u32::from(kind == Kind::Directory || new.target.len() >= FAST_LINK);
        let apart = inherited.layout.as_ref().map_or(0, Layout::fresh);
        let mut budget = Budget::new(&self.space, caller, fresh + own + apart)?;
        let values = inherited.layout.as_ref().map_or(0, Layout::credits);
        let mut handle =
            self.begin(self.enter_credits(&dir, fresh) + Self::MAKE_CREDITS + values)?;
        let claims = budget.claim(self.dir_goal(&dir, fresh), fresh)?;
        let own = budget.claim(self.goal_below(&dir), own)?;
        let top = parent == Ino::ROOT || dir.inode.flags.contains(InodeFlags::TOPDIR);
        let ino = self.space.new_inode(&mut handle, parent, top, kind == Kind::Directory)?;
        let now = now();
        let inode = self.new_inode(ino, kind, &dir.inode, caller, new, inherited.mode, now);
        let made = inode
            .map_err(|error| handle.fail(error))
            .and_then(|inode| self.adopt(&mut handle, inode))?;
        let mut live = made.write();
        let parts = Parts { layout: inherited.layout.as_mut(), target: new.target, parent };
        self.fill_new(&mut handle, &mut budget, &mut live, parts, own)
            .map_err(|error| handle.fail(error))?;
        let file_type = self.dir_format().file_type(kind);
        let entry = NewEntry { ino: ino.0, name, file_type };
        self.enter(&mut handle, &mut budget, &mut dir, place, &entry, claims)?;
        if kind == Kind::Directory {
            self.add_subdir(&mut dir);
        }
        touch(&mut dir, now);
        self.store(&mut handle, &mut dir)?;
        if self.is_dir_sync(&dir.inode) {
            handle.sync();
        }
        drop(handle);
        report(&Effects {
            inodes: &[(&parent_cell, &dir), (&made, &live)],
            appeared: &[(parent, name, ino)],
            vanished: &[],
        });
        drop(live);
        Ok(made)
    }

    /// The place for a name in a directory that may get it.
    pub(super) fn seek_free(&self, caller: &Caller, dir: &mut Live, name: &[u8]) -> Result<Place> {
        check_dir(dir)?;
        if is_dots(name) {
            return Err(Error::Exists);
        }
        let Sought::Absent(place) = self.seek(&dir.inode, name)? else {
            return Err(Error::Exists);
        };
        may_add(dir)?;
        if !matches!(place, Place::Inline) {
            return Ok(place);
        }
        self.outline(caller, dir, ALL)?;
        match self.seek(&dir.inode, name)? {
            Sought::Absent(place) => Ok(place),
            Sought::Found(_) => Err(Error::Exists),
        }
    }

    /// Brings a directory's entries out of its inode if a name that is not there may go there.
    pub(super) fn make_place(&self, caller: &Caller, dir: &mut Live, name: &[u8]) -> Result<()> {
        let fixed = InodeFlags::IMMUTABLE;
        let may = is_inline(&dir.inode) && check_dir(dir).is_ok() && check_name(name).is_ok();
        if may
            && !dir.inode.flags.contains(fixed)
            && matches!(self.seek(&dir.inode, name)?, Sought::Absent(_))
        {
            self.outline(caller, dir, ALL)?;
        }
        Ok(())
    }

    /// Refuses what no inode can be.
    fn check_new(new: &New<'_>) -> Result<Kind> {
        let kind = Kind::from_mode(new.mode)
            .ok_or_else(|| Error::Invalid(format!("mode {:#o} has no type", new.mode)))?;
        if kind == Kind::Symlink && new.target.is_empty() {
            return Err(Error::NotFound);
        }
        Ok(kind)
    }

    /// Refuses a target that with the zero byte that ends it would fill more than a block.
    fn check_target_len(&self, new: &New<'_>) -> Result<()> {
        let fits = new.target.len() < self.volume.superblock().block_size as usize;
        if fits { Ok(()) } else { Err(Error::NameTooLong) }
    }

    /// An inode with all that it gets from its directory and from who makes it.
    fn new_inode(
        &self,
        ino: Ino,
        kind: Kind,
        dir: &Inode,
        caller: &Caller,
        new: &New<'_>,
        mode: u16,
        now: Timestamp,
    ) -> Result<Inode> {
        let mut inode =
            Inode::fresh(ino, mode, self.generation(ino), now, self.volume.superblock())?;
        inode.links = if kind == Kind::Directory { 2 } else { 1 };
        (inode.uid, inode.gid) = (caller.uid, caller.gid);
        if dir.mode & SETGID != 0 {
            inode.gid = dir.gid;
            if kind == Kind::Directory {
                inode.mode |= SETGID;
            } else if new.mode & (SETGID | GROUP_EXECUTE) == SETGID | GROUP_EXECUTE
                && !caller.privileged
                && caller.gid != dir.gid
            {
                inode.mode &= !SETGID;
            }
        }
        let passed_on = match kind {
            Kind::Directory => InodeFlags::INHERITED,
            Kind::Regular => InodeFlags::INHERITED - InodeFlags::OF_DIRECTORIES,
            _ => InodeFlags::NODUMP | InodeFlags::NOATIME,
        };
        inode.flags |= dir.flags & passed_on;
        match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                inode.set_device(new.device.0, new.device.1);
            }
            Kind::Symlink => {
                inode.size = new.target.len() as u64;
                if new.target.len() < FAST_LINK {
                    inode.flags -= InodeFlags::EXTENTS;
                    inode.block = [0; FAST_LINK];
                    inode.block[..new.target.len()].copy_from_slice(new.target);
                }
            }
            _ => {}
        }
        Ok(inode)
    }

    /// Gives a new inode its attributes and its first block, and stores it.
    fn fill_new(
        &self,
        handle: &mut Handle<'_>,
        budget: &mut Budget<'_>,
        live: &mut Live,
        parts: Parts<'_, '_>,
        mut claims: Vec<Claim>,
    ) -> Result<()> {
        if claims.is_empty() && parts.layout.is_none() {
            return Ok(());
        }
        let block_size = self.volume.superblock().block_size as usize;
        let content = match live.inode.kind {
            Kind::Directory => {
                let format = self.dir_format();
                let ino = live.inode.ino.0;
                let mut block = edit::first_block(block_size, ino, parts.parent.0, format);
                edit::seal(&mut block, format, live.inode.checksum_seed);
                (live.inode.size, live.disk_size) = (block_size as u64, block_size as u64);
                Some(block)
            }
            Kind::Symlink if parts.target.len() >= FAST_LINK => {
                let mut block = vec![0; block_size].into_boxed_slice();
                block[..parts.target.len()].copy_from_slice(parts.target);
                Some(block)
            }
            _ => None,
        };
        if let Some(content) = content
            && let Some(claim) = claims.pop()
        {
            let place = claim.start();
            budget.insert(self, handle, live, 0, vec![claim])?;
            handle.create(place, content)?;
        }
        if let Some(layout) = parts.layout {
            self.put_attributes(handle, budget, live, layout)?;
        }
        self.store(handle, live)
    }
}

/// An inode without contents that is to be made.
pub(super) struct Planned<'w> {
    mode: u16,
    asked: u16,
    layout: Option<Layout<'w>>,
}

impl Planned<'_> {
    /// Blocks that it needs.
    pub(super) fn fresh(&self) -> u32 {
        self.layout.as_ref().map_or(0, Layout::fresh)
    }

    /// Credits for making it.
    pub(super) fn credits(&self) -> u32 {
        Writer::MAKE_CREDITS + self.layout.as_ref().map_or(0, Layout::credits)
    }
}

impl Writer {
    /// What a file or node is to be that a directory passes on to.
    pub(super) fn plan(&self, caller: &Caller, dir: &Live, new: &New<'_>) -> Result<Planned<'_>> {
        let inherited = self.inherited(caller, dir, new.mode, new.umask)?;
        Ok(Planned { mode: inherited.mode, asked: new.mode, layout: inherited.layout })
    }

    /// Makes it, with [`Planned::credits`]; no name leads to it yet. The plan outlives the handle.
    pub(super) fn make_planned(
        &self,
        handle: &mut Handle<'_>,
        budget: &mut Budget<'_>,
        caller: &Caller,
        dir: &Live,
        plan: &mut Planned<'_>,
    ) -> Result<Arc<Cell>> {
        let (parent, new) = (dir.inode.ino, New { mode: plan.asked, ..New::default() });
        let kind = Self::check_new(&new)?;
        let ino = self.space.new_inode(handle, parent, false, false)?;
        let inode = self.new_inode(ino, kind, &dir.inode, caller, &new, plan.mode, now());
        let made = inode
            .map_err(|error| handle.fail(error))
            .and_then(|inode| self.adopt(handle, inode))?;
        let parts = Parts { layout: plan.layout.as_mut(), target: &[], parent };
        self.fill_new(handle, budget, &mut made.write(), parts, Vec::new())
            .map_err(|error| handle.fail(error))?;
        Ok(made)
    }
}

/// What a new inode consists of beside its fields.
struct Parts<'a, 'w> {
    layout: Option<&'a mut Layout<'w>>,
    target: &'a [u8],
    parent: Ino,
}

impl Writer {
    /// A number that tells one use of an inode number from the others: not that of the last one,
    /// and none that this process has given to 2^32 others before.
    pub(super) fn generation(&self, ino: Ino) -> u32 {
        static FIRST: LazyLock<u32> = LazyLock::new(|| RandomState::new().hash_one(0) as u32);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let last = self.stored_generation(ino);
        loop {
            let next = FIRST.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
            if Some(next) != last {
                return next;
            }
        }
    }
}
