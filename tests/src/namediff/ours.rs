//! Operations by the engine's writer.

use std::sync::Arc;

use cfs::disk::inode::{InodeFlags, Kind};
use cfs::engine::write::{At, New, RenameFlags, SetAttr, SetTime, Writer, XattrFlags};
use cfs::id::Ino;
use cfs::{Caller, Error, Result};

use super::Op;

/// A writer to which operations by path are done.
pub(super) struct Ours {
    writer: Arc<Writer>,
}

impl Ours {
    /// On an open volume.
    pub(super) fn new(writer: &Arc<Writer>) -> Self {
        Self { writer: Arc::clone(writer) }
    }

    /// Does an operation; the answer is 0 or an errno.
    pub(super) fn apply(&mut self, op: &Op) -> i32 {
        match self.done(op) {
            Ok(()) => 0,
            Err(error @ (Error::Corrupt { .. } | Error::ReadOnly)) => {
                eprintln!("{error}");
                error.errno()
            }
            Err(error) => error.errno(),
        }
    }

    fn ino(&self, path: &str) -> Result<Ino> {
        let mut at = Ino::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            self.check_way(at)?;
            at = self.writer.lookup(at, part.as_bytes(), |_| ())?.ino();
        }
        Ok(at)
    }

    /// The links that there are lead nowhere, or have a name that is too long.
    fn check_way(&self, ino: Ino) -> Result<()> {
        let cell = self.writer.live(ino)?;
        let live = cell.read();
        match live.inode.kind {
            Kind::Directory => Ok(()),
            Kind::Symlink if live.inode.size > 255 => Err(Error::NameTooLong),
            Kind::Symlink => Err(Error::NotFound),
            _ => Err(Error::NotADirectory),
        }
    }

    /// The directory of a path, and the last name.
    fn at<'p>(&self, path: &'p str) -> Result<At<'p>> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.ino(dir)?;
        self.check_way(dir)?;
        Ok(At { dir, name: name.as_bytes() })
    }

    fn kind(&self, ino: Ino) -> Result<Kind> {
        Ok(self.writer.live(ino)?.read().inode.kind)
    }

    fn done(&self, op: &Op) -> Result<()> {
        let writer = &self.writer;
        let caller = &Caller::ROOT;
        let report = &mut |_: &cfs::engine::write::Effects<'_>| ();
        match op {
            Op::Make { path, mode, umask, device } => {
                let at = self.at(path)?;
                let new = New { mode: *mode, umask: *umask, device: *device, target: b"" };
                writer.make(caller, at.dir, at.name, &new, report).map(drop)
            }
            Op::Symlink { path, target } => {
                if target.is_empty() {
                    return Err(Error::NotFound);
                }
                let at = self.at(path)?;
                let target = target.as_bytes();
                let new = New { mode: 0o120_777, target, ..New::default() };
                writer.make(caller, at.dir, at.name, &new, report).map(drop)
            }
            Op::Link { from, to } => {
                let from = self.ino(from)?;
                let at = self.at(to)?;
                writer.link(caller, from, at.dir, at.name, report).map(drop)
            }
            Op::Unlink { path } => {
                let at = self.at(path)?;
                writer.unlink(at.dir, at.name, report)
            }
            Op::Rmdir { path } => {
                let at = self.at(path)?;
                writer.rmdir(at.dir, at.name, report)
            }
            Op::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                let exchanges = flags.contains(RenameFlags::EXCHANGE);
                if exchanges && flags != RenameFlags::EXCHANGE {
                    // Found before the paths are looked at.
                    return Err(Error::Invalid("flags".into()));
                }
                let (from, to) = (self.at(from)?, self.at(to)?);
                writer.rename(caller, from, to, flags, report)
            }
            _ => self.change(op),
        }
    }

    fn change(&self, op: &Op) -> Result<()> {
        let writer = &self.writer;
        let caller = &Caller::ROOT;
        let report = &mut |_: &cfs::engine::write::Effects<'_>| ();
        match op {
            Op::Chmod { path, mode } => {
                let ino = self.ino(path)?;
                if self.kind(ino)? == Kind::Symlink {
                    return Ok(());
                }
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                writer.set_attr(caller, ino, &set, report)
            }
            Op::Chown { path, uid, gid } => {
                let kill_privileges = true;
                let (uid, gid) = (Some(*uid), Some(*gid));
                let set = SetAttr { uid, gid, kill_privileges, ..SetAttr::default() };
                writer.set_attr(caller, self.ino(path)?, &set, report)
            }
            Op::Truncate { path, size } => {
                let ino = self.ino(path)?;
                if self.kind(ino)? != Kind::Regular {
                    return Ok(());
                }
                let time = Some(SetTime::Now);
                let set = SetAttr { size: Some(*size), mtime: time, ..SetAttr::default() };
                writer.set_attr(caller, ino, &set, report)
            }
            Op::Set { path, name, value, flags } => {
                if value.len() > 65536 {
                    return Err(Error::TooBig("value".into()));
                }
                let flags = XattrFlags::from_bits_retain(*flags);
                let ino = self.ino(path)?;
                writer.set_xattr(caller, ino, name.as_bytes(), Some(value), flags, report)
            }
            Op::Remove { path, name } => {
                let flags = XattrFlags::empty();
                writer.set_xattr(caller, self.ino(path)?, name.as_bytes(), None, flags, report)
            }
            Op::Flags { path, flags } => {
                let ino = self.ino(path)?;
                if !matches!(self.kind(ino)?, Kind::Regular | Kind::Directory) {
                    return Ok(());
                }
                let known = InodeFlags::from_bits_retain(0x10_0f8);
                let flags = InodeFlags::from_bits_retain(*flags);
                writer.set_flags(caller, ino, flags, known, report)
            }
            _ => Err(Error::Invalid("no such operation".into())),
        }
    }
}
