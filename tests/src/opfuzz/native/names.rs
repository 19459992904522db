//! Operations on names and attributes.

use cfs::change::{Caller, Change, NewInode, SetAttr, SetTime};
use cfs::disk::inode::Kind;
use cfs::wire::kind_bits;
use rustix::io::Errno;

use super::files::UMASK;
use super::{NativeSubject, Result, errno};
use crate::opfuzz::op::{ACLS, FLAGS, NewTime, Op, Outcome, acl_bytes, acl_name, pattern};

/// Longer paths are refused before they are looked at.
const PATH_MAX: usize = 4096;

impl NativeSubject {
    pub(super) fn names(&mut self, op: &Op) -> Result<Outcome> {
        let client = self.client()?;
        let by = Caller::ROOT;
        match op {
            Op::Mknod { path, mode, device } => {
                let found = self.find(path, false)?;
                let new = NewInode { mode: *mode as u16, umask: UMASK, device: *device };
                client.make(found.dir, found.name.as_bytes(), new, by).map_err(errno)?;
            }
            Op::Mkdir { path, mode } => {
                let found = self.find(path, false)?;
                let new = NewInode { mode: 0o040_000 | mode, umask: UMASK, device: (0, 0) };
                client.make(found.dir, found.name.as_bytes(), new, by).map_err(errno)?;
            }
            Op::Symlink { target, path } => {
                if target.is_empty() {
                    return Err(Errno::NOENT);
                }
                if target.len() >= PATH_MAX {
                    return Err(Errno::NAMETOOLONG);
                }
                let found = self.find(path, false)?;
                let (name, target) = (found.name.as_bytes(), target.as_bytes());
                client.symlink(found.dir, name, target, by).map_err(errno)?;
            }
            Op::Link { from, to } => {
                let ino = self.lookup(from, false)?.attr.ino;
                let found = self.find(to, false)?;
                client.link(ino, found.dir, found.name.as_bytes(), by).map_err(errno)?;
            }
            Op::Readlink { path } => {
                let ino = self.lookup(path, false)?.attr.ino;
                return client.readlink(ino).map(Outcome::Bytes).map_err(errno);
            }
            Op::Unlink { path } => {
                let found = self.find(path, false)?;
                client.unlink(found.dir, found.name.as_bytes(), by).map_err(errno)?;
            }
            Op::Rmdir { path } => {
                let found = self.find(path, false)?;
                client.rmdir(found.dir, found.name.as_bytes(), by).map_err(errno)?;
            }
            Op::Rename { from, to, noreplace, exchange } => {
                if *noreplace && *exchange {
                    return Err(Errno::INVAL);
                }
                let ((from, old), (to, new)) = (self.parent(from)?, self.parent(to)?);
                let flags = u32::from(*noreplace) | u32::from(*exchange) << 1;
                let (from, to) = ((from, old.as_bytes()), (to, new.as_bytes()));
                client.rename(from, to, flags, by).map_err(errno)?;
            }
            Op::List { path } => return self.list(path),
            other => unreachable!("{other} is not of names"),
        }
        Ok(Outcome::Done)
    }

    fn list(&self, path: &str) -> Result<Outcome> {
        let (client, record) = (self.client()?, self.lookup(path, true)?);
        if record.attr.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let (entries, end) = client.readdir(record.attr.ino, position).map_err(errno)?;
            position = entries.last().map_or(position, |entry| entry.next);
            for entry in entries {
                if entry.name != b"." && entry.name != b".." {
                    let kind = entry.kind.map_or(0, |kind| u32::from(kind_bits(kind)) << 12);
                    names.push((String::from_utf8_lossy(&entry.name).into_owned(), kind));
                }
            }
            if end {
                names.sort();
                return Ok(Outcome::Names(names));
            }
        }
    }

    pub(super) fn attributes(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Chmod { path, mode } => {
                let attr = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                self.set(path, true, attr)
            }
            Op::Chown { path, uid, gid } => {
                let directory = self.lookup(path, false)?.attr.kind == Kind::Directory;
                let kill_privileges = !directory;
                let (uid, gid) = (*uid, *gid);
                self.set(path, false, SetAttr { uid, gid, kill_privileges, ..SetAttr::default() })
            }
            Op::Utimens { atime: NewTime::Omit, mtime: NewTime::Omit, .. } => Ok(Outcome::Done),
            Op::Utimens { path, atime, mtime } => {
                let (atime, mtime) = (new_time(*atime), new_time(*mtime));
                self.set(path, false, SetAttr { atime, mtime, ..SetAttr::default() })
            }
            Op::SetFlags { path, flags } => {
                let ino = self.openable(path)?.attr.ino;
                let change = Change::SetFlags { flags: *flags, known: FLAGS, project: None };
                self.client()?.change(ino, change, Caller::ROOT).map_err(errno)?;
                Ok(Outcome::Done)
            }
            Op::GetFlags { path } => {
                let flags = self.openable(path)?.attr.flags.bits() & FLAGS;
                Ok(Outcome::Number(flags.into()))
            }
            _ => self.xattrs(op),
        }
    }

    fn set(&self, path: &str, follow: bool, attr: SetAttr) -> Result<Outcome> {
        let ino = self.lookup(path, follow)?.attr.ino;
        let done = self.client()?.set_attr(ino, attr, Caller::ROOT);
        done.map(|_| Outcome::Done).map_err(errno)
    }

    fn xattrs(&self, op: &Op) -> Result<Outcome> {
        let client = self.client()?;
        let by = Caller::ROOT;
        match op {
            Op::SetXattr { path, name, len, seed, flags } => {
                let (ino, value) = (self.named(path, name)?, pattern(*seed, 0, *len));
                client.set_xattr(ino, name.as_bytes(), &value, *flags, by).map_err(errno)?;
            }
            Op::SetAcl { path, acl, which } => {
                let (name, value) = (acl_name(*acl), acl_bytes(ACLS[*which]));
                let ino = self.named(path, name)?;
                client.set_xattr(ino, name.as_bytes(), &value, 0, by).map_err(errno)?;
            }
            Op::GetXattr { path, name } => {
                let ino = self.named(path, name)?;
                let is_link = client.stat(ino).map_err(errno)?.kind == Kind::Symlink;
                if is_link && name.starts_with("system.") {
                    // The kernel does not ask.
                    return Err(Errno::OPNOTSUPP);
                }
                return client.getxattr(ino, name.as_bytes()).map(Outcome::Bytes).map_err(errno);
            }
            Op::RemoveXattr { path, name } => {
                let ino = self.named(path, name)?;
                client.remove_xattr(ino, name.as_bytes(), by).map_err(errno)?;
            }
            Op::ListXattr { path } => {
                let ino = self.lookup(path, false)?.attr.ino;
                let names = client.listxattr(ino).map_err(errno)?;
                let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                let name = |name: &[u8]| (String::from_utf8_lossy(name).into_owned(), 0);
                let mut names: Vec<_> = names.map(name).collect();
                names.sort();
                return Ok(Outcome::Names(names));
            }
            other => unreachable!("{other} is not of attributes"),
        }
        Ok(Outcome::Done)
    }

    /// The inode of an attribute whose name can be one.
    fn named(&self, path: &str, name: &str) -> Result<cfs::id::Ino> {
        if name.len() > 255 {
            return Err(Errno::RANGE);
        }
        Ok(self.lookup(path, false)?.attr.ino)
    }
}

fn new_time(time: NewTime) -> Option<SetTime> {
    match time {
        NewTime::Now => Some(SetTime::Now),
        NewTime::Omit => None,
        NewTime::At(seconds, nanoseconds) => Some(SetTime::At(seconds, nanoseconds)),
    }
}
