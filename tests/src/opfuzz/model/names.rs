//! Operations on names.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::{Kind, Model, ROOT, Result};
use crate::opfuzz::op::{APPEND, FLAGS, IMMUTABLE, NOATIME, NODUMP, Op, Outcome, SYNC};

const S_ISGID: u16 = 0o2000;

impl Model {
    /// Makes an inode and its name. The name is not there, and the directory may be written to.
    pub(super) fn make(&mut self, dir: u32, name: &str, kind: Kind, mode: u16) -> u32 {
        let is_dir = matches!(kind, Kind::Dir(_));
        let is_link = matches!(kind, Kind::Link(_));
        let inherited = match kind {
            Kind::Dir(_) | Kind::File(_) => SYNC | NODUMP | NOATIME,
            _ => NODUMP | NOATIME,
        };
        let parent = self.at(dir).clone();
        let mut node = self.node(kind, mode);
        node.flags = parent.flags & FLAGS & inherited;
        node.owner.1 = if parent.mode & S_ISGID != 0 { parent.owner.1 } else { 0 };
        if parent.mode & S_ISGID != 0 && is_dir {
            node.mode |= S_ISGID;
        }
        match &parent.default_acl {
            _ if is_link => node.mode = 0o777,
            Some(list) => {
                let mut list = list.clone();
                node.mode = node.mode & !0o777 | list.created(node.mode);
                node.acl = list.is_extended().then_some(list);
                if is_dir {
                    node.default_acl = parent.default_acl.clone();
                }
            }
            None => node.mode &= !0o022,
        }
        if is_dir {
            node.links = 2;
            self.at_mut(dir).links += 1;
        }
        let ino = self.add(node);
        self.enter(dir, name, ino);
        ino
    }

    fn enter(&mut self, dir: u32, name: &str, ino: u32) {
        if let Kind::Dir(entries) = &mut self.at_mut(dir).kind {
            entries.insert(name.to_owned(), ino);
        }
        self.modified(dir);
    }

    fn leave(&mut self, dir: u32, name: &str) {
        if let Kind::Dir(entries) = &mut self.at_mut(dir).kind {
            entries.remove(name);
        }
        self.modified(dir);
    }

    pub(super) fn is_dir(&self, ino: u32) -> bool {
        matches!(self.at(ino).kind, Kind::Dir(_))
    }

    fn is_empty(&self, ino: u32) -> bool {
        self.entries(ino).is_ok_and(BTreeMap::is_empty)
    }

    /// Where a new name goes.
    fn new_name(&self, path: &str) -> Result<(u32, String)> {
        let found = self.find(path, false)?;
        match found.ino {
            Some(_) => Err(Errno::EXIST),
            None => Ok((found.dir, found.name)),
        }
    }

    /// Whether a name may be taken away.
    fn may_delete(&self, dir: u32, ino: u32, as_dir: bool) -> Result<()> {
        self.may_write(dir)?;
        if (self.at(dir).flags & APPEND) | (self.at(ino).flags & (APPEND | IMMUTABLE)) != 0 {
            return Err(Errno::PERM);
        }
        match (as_dir, self.is_dir(ino)) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            _ => Ok(()),
        }
    }

    pub(super) fn names(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Mknod { path, mode, device } => {
                let (dir, name) = self.new_name(path)?;
                self.may_write(dir)?;
                let kind = Kind::Special(mode & 0o170_000, *device);
                self.make(dir, &name, kind, (mode & 0o7777) as u16);
            }
            Op::Mkdir { path, mode } => {
                let (dir, name) = self.new_name(path)?;
                self.may_write(dir)?;
                // mkdir(2) ignores the set-id bits.
                self.make(dir, &name, Kind::Dir(BTreeMap::new()), mode & 0o1777);
            }
            Op::Symlink { target, path } => {
                if target.is_empty() {
                    return Err(Errno::NOENT);
                }
                if target.len() >= 4096 {
                    return Err(Errno::NAMETOOLONG);
                }
                let (dir, name) = self.new_name(path)?;
                self.may_write(dir)?;
                if target.len() as u64 >= self.traits.block {
                    return Err(Errno::NAMETOOLONG);
                }
                self.make(dir, &name, Kind::Link(target.clone()), 0o777);
            }
            Op::Link { from, to } => self.link(from, to)?,
            Op::Readlink { path } => {
                let ino = self.lookup(path, false)?;
                let Kind::Link(target) = &self.at(ino).kind else { return Err(Errno::INVAL) };
                return Ok(Outcome::Bytes(target.clone().into_bytes()));
            }
            Op::Unlink { path } => {
                let found = self.find(path, false)?;
                let ino = found.ino.ok_or(Errno::NOENT)?;
                self.may_delete(found.dir, ino, false)?;
                self.leave(found.dir, &found.name);
                self.unlinked(ino);
            }
            Op::Rmdir { path } => {
                let found = self.find(path, false)?;
                let ino = found.ino.ok_or(Errno::NOENT)?;
                self.may_delete(found.dir, ino, true)?;
                if !self.is_empty(ino) {
                    return Err(Errno::NOTEMPTY);
                }
                self.leave(found.dir, &found.name);
                self.at_mut(found.dir).links -= 1;
                self.unlinked(ino);
            }
            Op::Rename { from, to, noreplace, exchange } => {
                self.rename(from, to, *noreplace, *exchange)?;
            }
            Op::List { path } => return self.list(path),
            other => unreachable!("{other} is not of names"),
        }
        Ok(Outcome::Done)
    }

    fn link(&mut self, from: &str, to: &str) -> Result<()> {
        let ino = self.lookup(from, false)?;
        let (dir, name) = self.new_name(to)?;
        self.may_write(dir)?;
        self.may_set(ino)?;
        if self.is_dir(ino) {
            return Err(Errno::PERM);
        }
        self.at_mut(ino).links += 1;
        self.enter(dir, &name, ino);
        self.changed(ino);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, noreplace: bool, exchange: bool) -> Result<()> {
        if noreplace && exchange {
            return Err(Errno::INVAL);
        }
        let (source_dir, source_name) = self.parent(from)?;
        let (target_dir, target_name) = self.parent(to)?;
        let entry = |dir: u32, name: &str| -> Result<Option<u32>> {
            let entries = self.entries(dir)?;
            if name.len() > 255 {
                return Err(Errno::NAMETOOLONG);
            }
            Ok(entries.get(name).copied())
        };
        let source = entry(source_dir, &source_name)?.ok_or(Errno::NOENT)?;
        let target = entry(target_dir, &target_name)?;
        if noreplace && target.is_some() {
            return Err(Errno::EXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::NOENT);
        }
        if source_dir != target_dir {
            if self.is_above(source, target_dir) {
                return Err(Errno::INVAL);
            }
            if target.is_some_and(|target| self.is_above(target, source_dir)) {
                return Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY });
            }
        }
        if target == Some(source) {
            return Ok(());
        }
        let is_dir = self.is_dir(source);
        self.may_delete(source_dir, source, is_dir)?;
        match target {
            None => self.may_write(target_dir)?,
            Some(target) if exchange => {
                self.may_delete(target_dir, target, self.is_dir(target))?;
            }
            Some(target) => {
                self.may_delete(target_dir, target, is_dir)?;
                if is_dir && !self.is_empty(target) {
                    return Err(Errno::NOTEMPTY);
                }
            }
        }
        let above = |moved: u32, model: &Self| u32::from(model.is_dir(moved));
        let gone = above(source, self);
        let come = target.map_or(0, |target| above(target, self));
        self.leave(source_dir, &source_name);
        self.enter(target_dir, &target_name, source);
        self.changed(source);
        self.at_mut(source_dir).links -= gone;
        self.at_mut(target_dir).links += gone;
        if let Some(target) = target {
            self.at_mut(target_dir).links -= come;
            if exchange {
                self.enter(source_dir, &source_name, target);
                self.at_mut(source_dir).links += come;
                self.changed(target);
            } else {
                self.unlinked(target);
            }
        }
        Ok(())
    }

    /// The directory of a path's last name, which need not be there nor valid.
    fn parent(&self, path: &str) -> Result<(u32, String)> {
        match path.rsplit_once('/') {
            None => Ok((ROOT, path.to_owned())),
            Some((dir, name)) => {
                let ino = self.lookup(dir, true)?;
                self.entries(ino)?;
                Ok((ino, name.to_owned()))
            }
        }
    }

    /// Whether a directory is another one, or above it.
    fn is_above(&self, upper: u32, lower: u32) -> bool {
        let Ok(entries) = self.entries(upper) else { return false };
        upper == lower || entries.values().any(|child| self.is_above(*child, lower))
    }

    fn list(&self, path: &str) -> Result<Outcome> {
        let ino = self.lookup(path, true)?;
        let entries = self.entries(ino)?;
        let kind = |ino: &u32| match &self.at(*ino).kind {
            Kind::File(_) => 0o100_000,
            Kind::Dir(_) => 0o040_000,
            Kind::Link(_) => 0o120_000,
            Kind::Special(kind, _) => *kind,
        };
        let names = entries.iter().map(|(name, ino)| (name.clone(), kind(ino)));
        Ok(Outcome::Names(names.collect()))
    }
}
