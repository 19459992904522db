//! Permissions, owners, times, extended attributes, access control lists, flags.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::acl::List;
use super::{Kind, Model, Result, Time};
use crate::opfuzz::op::{ACLS, APPEND, Acl, FLAGS, IMMUTABLE, NewTime, Op, Outcome};
use crate::opfuzz::op::{acl_bytes, acl_name, pattern};

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o010;

impl Model {
    pub(super) fn attributes(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Chmod { path, mode } => {
                let ino = self.lookup(path, true)?;
                self.may_set(ino)?;
                let node = self.at_mut(ino);
                node.mode = *mode;
                if let Some(acl) = &mut node.acl {
                    acl.chmod(*mode);
                }
                self.changed(ino);
                Ok(Outcome::Done)
            }
            Op::Chown { path, uid, gid } => self.chown(path, *uid, *gid),
            Op::Utimens { path, atime, mtime } => self.utimens(path, *atime, *mtime),
            Op::SetXattr { path, name, len, seed, flags } => {
                let value = pattern(*seed, 0, *len);
                self.set_xattr(path, name, value, XattrFlags::from_bits_retain(*flags))
            }
            Op::GetXattr { path, name } => self.get_xattr(path, name),
            Op::RemoveXattr { path, name } => self.remove_xattr(path, name),
            Op::ListXattr { path } => {
                let ino = self.lookup(path, false)?;
                let node = self.at(ino);
                let acls = [(Acl::Access, &node.acl), (Acl::Default, &node.default_acl)];
                let acls = acls.iter().filter(|acl| acl.1.is_some());
                let acls = acls.map(|acl| acl_name(acl.0).to_owned());
                let names = node.xattrs.keys().cloned().chain(acls);
                let mut names: Vec<_> = names.map(|name| (name, 0)).collect();
                names.sort();
                Ok(Outcome::Names(names))
            }
            Op::SetAcl { path, acl, which } => self.set_acl(path, *acl, *which),
            Op::SetFlags { path, flags } => self.set_flags(path, *flags),
            Op::GetFlags { path } => {
                let ino = self.flagged(path)?;
                Ok(Outcome::Number(self.at(ino).flags.into()))
            }
            other => unreachable!("{other} is not of attributes"),
        }
    }

    fn chown(&mut self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Result<Outcome> {
        let ino = self.lookup(path, false)?;
        let is_dir = self.is_dir(ino);
        if uid.is_some() || gid.is_some() {
            self.may_set(ino)?;
        } else {
            self.may_write(ino)?;
        }
        let node = self.at_mut(ino);
        node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
        if !is_dir {
            node.mode &= !S_ISUID;
            if node.mode & S_IXGRP != 0 {
                node.mode &= !S_ISGID;
            }
        }
        self.changed(ino);
        Ok(Outcome::Done)
    }

    fn utimens(&mut self, path: &str, atime: NewTime, mtime: NewTime) -> Result<Outcome> {
        if atime == NewTime::Omit && mtime == NewTime::Omit {
            return Ok(Outcome::Done);
        }
        let ino = self.lookup(path, false)?;
        let touch = atime == NewTime::Now && mtime == NewTime::Now;
        let fixed = if touch { IMMUTABLE } else { IMMUTABLE | APPEND };
        if self.at(ino).flags & fixed != 0 {
            return Err(Errno::PERM);
        }
        let now = self.now();
        let node = self.at_mut(ino);
        for (time, new) in node.times.iter_mut().zip([atime, mtime]) {
            match new {
                NewTime::Now => *time = now,
                NewTime::Omit => {}
                NewTime::At(seconds, nanoseconds) => *time = Time::Set(seconds, nanoseconds),
            }
        }
        node.ctime = now;
        Ok(Outcome::Done)
    }

    /// Whether an inode can have the attribute at all; `write` when it is to be changed.
    fn xattr_access(&self, ino: u32, name: &str, write: bool) -> Result<()> {
        if write {
            self.may_set(ino)?;
        }
        let node = self.at(ino);
        let plain = matches!(node.kind, Kind::File(_) | Kind::Dir(_));
        if name.starts_with("user.") && !plain {
            return Err(if write { Errno::PERM } else { Errno::NODATA });
        }
        Ok(())
    }

    fn set_xattr(
        &mut self,
        path: &str,
        name: &str,
        value: Vec<u8>,
        flags: XattrFlags,
    ) -> Result<Outcome> {
        if name.len() > 255 {
            return Err(Errno::RANGE);
        }
        let ino = self.lookup(path, false)?;
        self.xattr_access(ino, name, true)?;
        let now = self.now();
        let node = self.at_mut(ino);
        let before = node.xattrs.get(name);
        if before.is_some() && flags.contains(XattrFlags::CREATE) {
            return Err(Errno::EXIST);
        }
        if before.is_none() && flags.contains(XattrFlags::REPLACE) {
            return Err(Errno::NODATA);
        }
        // The same value again need not count as a change.
        node.ctime = if before == Some(&value) { Time::Unknown } else { now };
        node.xattrs.insert(name.to_owned(), value);
        Ok(Outcome::Done)
    }

    fn get_xattr(&self, path: &str, name: &str) -> Result<Outcome> {
        if name.len() > 255 {
            return Err(Errno::RANGE);
        }
        let ino = self.lookup(path, false)?;
        let node = self.at(ino);
        let list = match name {
            "system.posix_acl_access" => Some(&node.acl),
            "system.posix_acl_default" => Some(&node.default_acl),
            _ => None,
        };
        if let Some(list) = list {
            if matches!(node.kind, Kind::Link(_)) {
                return Err(Errno::OPNOTSUPP);
            }
            let list = list.as_ref().ok_or(Errno::NODATA)?;
            return Ok(Outcome::Bytes(acl_bytes(list.entries())));
        }
        self.xattr_access(ino, name, false)?;
        node.xattrs.get(name).cloned().map(Outcome::Bytes).ok_or(Errno::NODATA)
    }

    fn remove_xattr(&mut self, path: &str, name: &str) -> Result<Outcome> {
        if name.len() > 255 {
            return Err(Errno::RANGE);
        }
        let ino = self.lookup(path, false)?;
        let acl = match name {
            "system.posix_acl_access" => Some(Acl::Access),
            "system.posix_acl_default" => Some(Acl::Default),
            _ => None,
        };
        if let Some(acl) = acl {
            self.may_set(ino)?;
            let now = self.now();
            let node = self.at_mut(ino);
            if matches!(node.kind, Kind::Link(_)) {
                return Err(Errno::OPNOTSUPP);
            }
            let list = match acl {
                Acl::Access => &mut node.acl,
                Acl::Default => &mut node.default_acl,
            };
            let had = list.take().is_some();
            node.ctime = if had { now } else { Time::Unknown };
            return Ok(Outcome::Done);
        }
        self.xattr_access(ino, name, true)?;
        let removed = self.at_mut(ino).xattrs.remove(name);
        removed.ok_or(Errno::NODATA)?;
        self.changed(ino);
        Ok(Outcome::Done)
    }

    fn set_acl(&mut self, path: &str, acl: Acl, which: usize) -> Result<Outcome> {
        let ino = self.lookup(path, false)?;
        let is_dir = self.is_dir(ino);
        self.may_set(ino)?;
        if matches!(self.at(ino).kind, Kind::Link(_)) {
            return Err(Errno::OPNOTSUPP);
        }
        if acl == Acl::Default && !is_dir {
            return Err(Errno::ACCESS);
        }
        let list = List::new(ACLS[which])?;
        let node = self.at_mut(ino);
        match acl {
            Acl::Access => {
                node.mode = node.mode & !0o777 | list.mode();
                node.acl = list.is_extended().then_some(list);
            }
            Acl::Default => node.default_acl = Some(list),
        }
        // The same list again need not count as a change.
        node.ctime = Time::Unknown;
        Ok(Outcome::Done)
    }

    /// What can be opened to ask for its flags.
    pub(super) fn flagged(&self, path: &str) -> Result<u32> {
        let ino = self.lookup(path, false)?;
        match &self.at(ino).kind {
            Kind::File(_) | Kind::Dir(_) => Ok(ino),
            Kind::Link(_) => Err(Errno::LOOP),
            Kind::Special(0o020_000 | 0o060_000, _) => Err(Errno::ACCESS),
            Kind::Special(0o140_000, _) => Err(Errno::NXIO),
            Kind::Special(..) => Err(Errno::NODEV),
        }
    }

    fn set_flags(&mut self, path: &str, flags: u32) -> Result<Outcome> {
        let ino = self.flagged(path)?;
        let now = self.now();
        let node = self.at_mut(ino);
        let stays = node.flags & flags & IMMUTABLE != 0;
        if stays && (node.flags ^ flags) & FLAGS != 0 {
            return Err(Errno::PERM);
        }
        node.ctime = if node.flags == flags { Time::Unknown } else { now };
        node.flags = flags;
        Ok(Outcome::Done)
    }
}
