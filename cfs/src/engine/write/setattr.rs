//! Fields of inodes that programs set: permissions, owner, times, flags.

use super::names::{Effects, Report};
use super::xattr::{Key, XattrFlags};
use super::{Live, Writer, now};
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::disk::xattr::NameIndex;
use crate::id::Ino;
use crate::{Caller, Error, Result};

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permissions; the type stays.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last changed contents.
    pub mtime: Option<SetTime>,
    /// Last changed at all; the present unless it is given.
    pub ctime: Option<SetTime>,
    /// Set-user-ID, set-group-ID and `security.capability` are to go.
    pub kill_privileges: bool,
}

const PERMISSIONS: u16 = 0o7777;
const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
const CAPABILITY: Key<'_> = Key { index: NameIndex(6), name: b"capability" };

impl Writer {
    /// Changes attributes of an inode.
    ///
    /// # Errors
    /// `EPERM` for one that is immutable or append-only; `EISDIR`, `EINVAL`, `EFBIG` for sizes.
    pub fn set_attr(
        &self,
        caller: &Caller,
        ino: Ino,
        set: &SetAttr,
        report: Report<'_>,
    ) -> Result<()> {
        let cell = self.live(ino)?;
        let mut live = cell.write();
        check_settable(&live, set)?;
        if let Some(size) = set.size {
            check_size(&live)?;
            self.truncate(&mut live, size, now())?;
        }
        self.set_fields(caller, &mut live, set)?;
        report(&Effects { inodes: &[(&cell, &live)], appeared: &[], vanished: &[] });
        Ok(())
    }

    /// Changes all attributes but the size.
    fn set_fields(&self, caller: &Caller, live: &mut Live, set: &SetAttr) -> Result<()> {
        let mode = new_mode(live, set);
        if set.kill_privileges && live.inode.kind != Kind::Directory {
            let none = XattrFlags::empty();
            if let Some(layout) = self.lay_out(caller, live, CAPABILITY, None, none)? {
                self.change_attributes(caller, live, layout, |_| ())?;
            }
        }
        let now = now();
        let (wide, set) = (live.inode.has_wide_times(self.volume.superblock()), *set);
        let change = move |live: &mut Live| {
            let inode = &mut live.inode;
            let time = |time: SetTime| match time {
                SetTime::Now => now,
                SetTime::At(time) => time.clamped(wide),
            };
            inode.mode = mode;
            inode.uid = set.uid.unwrap_or(inode.uid);
            inode.gid = set.gid.unwrap_or(inode.gid);
            inode.atime = set.atime.map_or(inode.atime, time);
            inode.mtime = set.mtime.map_or(inode.mtime, time);
            inode.ctime = set.ctime.map_or(now, time);
        };
        let follows = set.mode.is_some() && live.inode.kind != Kind::Symlink;
        let layout = if follows { self.follow_mode(caller, live, mode)? } else { None };
        if let Some(layout) = layout {
            return self.change_attributes(caller, live, layout, change);
        }
        let mut handle = self.begin(Self::STORE_CREDITS)?;
        change(live);
        self.store(&mut handle, live)?;
        if live.inode.flags.contains(InodeFlags::SYNC) {
            handle.sync();
        }
        Ok(())
    }

    /// Sets the flags of an inode that `known` names, as chattr(1) does.
    ///
    /// # Errors
    /// `EPERM` for who is neither owner nor privileged, or changes what only the superuser may;
    /// `EOPNOTSUPP` for flags that cannot be changed here.
    pub fn set_flags(
        &self,
        caller: &Caller,
        ino: Ino,
        flags: InodeFlags,
        known: InodeFlags,
        report: Report<'_>,
    ) -> Result<()> {
        let cell = self.live(ino)?;
        let mut live = cell.write();
        if !caller.privileged && caller.uid != live.inode.uid {
            return Err(Error::NotPermitted);
        }
        let old = live.inode.flags;
        let fixed = InodeFlags::EXTENTS | InodeFlags::CASEFOLD | InodeFlags::DAX;
        let asked = (old ^ flags) & known;
        if asked.intersects(fixed) {
            let bits = (asked & fixed).bits();
            return Err(Error::Unsupported(format!("{ino}: flags {bits:#x} cannot be changed")));
        }
        let of_kind = match live.inode.kind {
            Kind::Directory => InodeFlags::all(),
            Kind::Regular => !InodeFlags::OF_DIRECTORIES,
            _ => InodeFlags::NODUMP | InodeFlags::NOATIME,
        };
        let settable = InodeFlags::SETTABLE & known;
        let new = (old - settable) | (flags & settable & of_kind);
        let rare = InodeFlags::IMMUTABLE | InodeFlags::APPEND | InodeFlags::JOURNAL_DATA;
        if (old ^ new).intersects(rare) && !caller.privileged {
            return Err(Error::NotPermitted);
        }
        if old != new && (old & new).contains(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        let mut handle = self.begin(Self::STORE_CREDITS)?;
        live.inode.flags = new;
        live.inode.ctime = now();
        self.store(&mut handle, &mut live)?;
        if (old | new).contains(InodeFlags::SYNC) {
            handle.sync();
        }
        drop(handle);
        report(&Effects { inodes: &[(&cell, &live)], appeared: &[], vanished: &[] });
        Ok(())
    }
}

fn check_settable(live: &Live, set: &SetAttr) -> Result<()> {
    if live.gone {
        return Err(Error::Stale(live.inode.ino.to_string()));
    }
    let fields = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
    let present = |time: &Option<SetTime>| *time == Some(SetTime::Now);
    // To touch it, both times at once, is no more than to append to it.
    let touched = present(&set.atime) && present(&set.mtime);
    let times = (set.atime.is_some() || set.mtime.is_some()) && !touched;
    let flags = live.inode.flags;
    if flags.contains(InodeFlags::IMMUTABLE)
        || (flags.contains(InodeFlags::APPEND) && (fields || times || set.size.is_some()))
    {
        return Err(Error::NotPermitted);
    }
    Ok(())
}

fn check_size(live: &Live) -> Result<()> {
    match live.inode.kind {
        Kind::Regular => Ok(()),
        Kind::Directory => Err(Error::IsADirectory),
        _ => Err(Error::Invalid(format!("{} has no size to set", live.inode.ino))),
    }
}

fn new_mode(live: &Live, set: &SetAttr) -> u16 {
    let old = live.inode.mode;
    let mut mode = set.mode.map_or(old, |mode| old & !PERMISSIONS | mode & PERMISSIONS);
    if set.kill_privileges && live.inode.kind != Kind::Directory {
        mode &= !SETUID;
        if mode & GROUP_EXECUTE != 0 {
            mode &= !SETGID;
        }
    }
    mode
}
