//! Operations on open files.

use cfs::cache::InodeRecord;
use cfs::change::{Caller, NewInode, SetAttr, WriteOptions};
use cfs::disk::inode::{InodeFlags, Kind};
use cfs::id::Ino;
use rustix::io::Errno;

use super::{NativeSubject, OpenFile, Result, errno};
use crate::opfuzz::dir::allocate_mode;
use crate::opfuzz::op::{How, Op, Outcome, pattern};

/// As the subjects that are directories have it.
pub(super) const UMASK: u16 = 0o022;

impl NativeSubject {
    pub(super) fn file(&mut self, op: &Op) -> Result<Outcome> {
        let client = self.client()?;
        match op {
            Op::Open { slot, path, how } => {
                drop(self.close(*slot));
                let ino = self.open(path, how)?;
                let seen = client.hold(ino).map_err(errno)?;
                let file = OpenFile { ino, write: how.write, append: how.append, seen };
                self.slots[*slot] = Some(file);
                Ok(Outcome::Done)
            }
            Op::Close { slot } => self.close(*slot),
            Op::Write { slot, offset, len, seed } => {
                let file = self.slot(*slot)?;
                if !file.write {
                    return Err(Errno::BADF);
                }
                let data = pattern(*seed, *offset, *len as usize);
                self.write(file, *offset, &data).map(|len| Outcome::Number(len as u64))
            }
            Op::Read { slot, offset, len } => {
                let mut bytes = vec![0; *len as usize];
                let file = client.file(self.slot(*slot)?.ino);
                let len = file.read(*offset, &mut bytes).map_err(errno)?;
                bytes.truncate(len);
                Ok(Outcome::Bytes(bytes))
            }
            Op::Allocate { slot, what, offset, len } => {
                let file = self.slot(*slot)?;
                if *len == 0 || (*offset | *len) > i64::MAX as u64 {
                    return Err(Errno::INVAL);
                }
                if !file.write {
                    return Err(Errno::BADF);
                }
                let mode = allocate_mode(*what).bits();
                let done = client.allocate(file.ino, mode, *offset, *len, Caller::ROOT);
                done.map(|()| Outcome::Done).map_err(errno)
            }
            Op::Copy { from, to, len } => self.copy(*from, *to, *len),
            Op::Seek { slot, offset, data } => {
                let found = client.seek(self.slot(*slot)?.ino, *offset, *data);
                found.map(Outcome::Number).map_err(errno)
            }
            Op::Truncate { path, size } => {
                let ino = self.open(path, &How { write: true, ..How::default() })?;
                self.truncate(ino, *size)
            }
            Op::TruncateOpen { slot, size } => match self.slot(*slot)? {
                OpenFile { write: true, ino, .. } => self.truncate(ino, *size),
                _ => Err(Errno::INVAL),
            },
            Op::Fsync { slot } => {
                let file = self.slots[*slot].as_mut().ok_or(Errno::BADF)?;
                // Contents alone are durable with the rest as well.
                let synced = client.sync(file.ino, false, &mut file.seen);
                synced.map(|()| Outcome::Done).map_err(errno)
            }
            Op::FsyncPath { path } => {
                let ino = self.openable(path)?.attr.ino;
                let mut seen = client.hold(ino).map_err(errno)?;
                let synced = client.sync(ino, false, &mut seen);
                client.let_go(ino, 1).map_err(errno)?;
                synced.map(|()| Outcome::Done).map_err(errno)
            }
            other => unreachable!("{other} is not of a file"),
        }
    }

    pub(super) fn close(&mut self, slot: usize) -> Result<Outcome> {
        let file = self.slots[slot].take().ok_or(Errno::BADF)?;
        let client = self.client()?;
        let closed = if file.write { client.close(file.ino) } else { Ok(()) };
        let gone = client.let_go(file.ino, 1);
        closed.and(gone).map(|()| Outcome::Done).map_err(errno)
    }

    /// The regular file that open(2) opens.
    fn open(&mut self, path: &str, how: &How) -> Result<Ino> {
        let exclusive = how.create.is_some() && how.exclusive;
        let found = self.find(path, !how.nofollow && !exclusive)?;
        let client = self.client()?;
        let record = match (found.record, how.create) {
            (None, None) => return Err(Errno::NOENT),
            (record, Some(mode)) if record.is_none() || exclusive => {
                let new = NewInode { mode: 0o100_000 | mode, umask: UMASK, device: (0, 0) };
                let (dir, name) = (found.dir, found.name.as_bytes());
                let made = match exclusive {
                    true => client.make(dir, name, new, Caller::ROOT),
                    false => {
                        client.make_or_find(dir, name, new, Caller::ROOT).map(|(record, _)| record)
                    }
                };
                return made.map(|record| record.attr.ino).map_err(errno);
            }
            (Some(record), _) => record,
            (None, Some(_)) => unreachable!("what is not there is made"),
        };
        may_open(&record, how)?;
        let ino = record.attr.ino;
        if how.write && how.truncate {
            self.truncate(ino, 0)?;
        }
        Ok(ino)
    }

    fn truncate(&self, ino: Ino, size: u64) -> Result<Outcome> {
        let attr = SetAttr { size: Some(size), ..SetAttr::default() };
        let done = self.client()?.set_attr(ino, attr, Caller::ROOT);
        done.map(|_| Outcome::Done).map_err(errno)
    }

    fn write(&self, file: OpenFile, offset: u64, data: &[u8]) -> Result<usize> {
        let options =
            WriteOptions { append: file.append, privileged: true, ..WriteOptions::default() };
        let written = self.client()?.write(file.ino, offset, data, options);
        written.map(|written| written.len).map_err(errno)
    }

    /// What copy_file_range(2) does where a filesystem does nothing of its own.
    fn copy(&self, from: (usize, u64), to: (usize, u64), len: u64) -> Result<Outcome> {
        let (source, target) = (self.slot(from.0)?, self.slot(to.0)?);
        if !target.write || target.append {
            return Err(Errno::BADF);
        }
        let client = self.client()?;
        if client.stat(target.ino).map_err(errno)?.flags.contains(InodeFlags::IMMUTABLE) {
            return Err(Errno::PERM);
        }
        let size = client.stat(source.ino).map_err(errno)?.size;
        let len = len.min(size.saturating_sub(from.1));
        let overlap = from.1 < to.1 + len && to.1 < from.1 + len;
        // The size of the target is looked at before that.
        let too_far = len > 0 && matches!(self.write(target, to.1, &[]), Err(Errno::FBIG));
        if source.ino == target.ino && overlap && !too_far {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; len as usize];
        let len = client.file(source.ino).read(from.1, &mut bytes).map_err(errno)?;
        if len == 0 {
            return Ok(Outcome::Number(0));
        }
        self.write(target, to.1, &bytes[..len]).map(|len| Outcome::Number(len as u64))
    }

    /// What can be opened to ask for its flags, or to be synced.
    pub(super) fn openable(&self, path: &str) -> Result<InodeRecord> {
        let record = self.lookup(path, false)?;
        match record.attr.kind {
            Kind::Regular | Kind::Directory => Ok(record),
            kind => Err(not_opened(kind)),
        }
    }
}

/// Refuses what open(2) refuses; mounts of these tests have no device nodes.
fn may_open(record: &InodeRecord, how: &How) -> Result<()> {
    let kind = record.attr.kind;
    let early = [Kind::Symlink, Kind::Directory, Kind::CharDevice, Kind::BlockDevice];
    if early.contains(&kind) {
        return Err(not_opened(kind));
    }
    let flags = record.attr.flags;
    let append = flags.contains(InodeFlags::APPEND) && (!how.append || how.truncate);
    if how.write && (flags.contains(InodeFlags::IMMUTABLE) || append) {
        return Err(Errno::PERM);
    }
    if kind == Kind::Regular { Ok(()) } else { Err(not_opened(kind)) }
}

/// What is answered to who opens something other than a file.
fn not_opened(kind: Kind) -> Errno {
    match kind {
        Kind::Symlink => Errno::LOOP,
        Kind::Directory => Errno::ISDIR,
        Kind::CharDevice | Kind::BlockDevice => Errno::ACCESS,
        Kind::Socket => Errno::NXIO,
        _ => Errno::NODEV,
    }
}
