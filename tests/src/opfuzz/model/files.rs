//! Operations on open files.

use rustix::io::Errno;

use super::contents::Blocks;
use super::{Kind, Model, OpenFile, Result, Time};
use crate::opfuzz::op::{APPEND, Allocate, How, IMMUTABLE, Op, Outcome, pattern};

const PAGE: u64 = 4096;

impl Model {
    pub(super) fn slot(&self, slot: usize) -> Result<OpenFile> {
        self.slots[slot].ok_or(Errno::BADF)
    }

    pub(super) fn blocks(&self, ino: u32) -> &Blocks {
        match &self.at(ino).kind {
            Kind::File(blocks) => blocks,
            other => unreachable!("{other:?} is open as a file"),
        }
    }

    fn blocks_mut(&mut self, ino: u32) -> &mut Blocks {
        match &mut self.at_mut(ino).kind {
            Kind::File(blocks) => blocks,
            other => unreachable!("{other:?} is open as a file"),
        }
    }

    pub(super) fn file(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Open { slot, path, how } => {
                if let Some(file) = self.slots[*slot].take() {
                    self.drop_unused(file.ino);
                }
                let ino = self.open(path, how)?;
                let How { write, append, direct, .. } = *how;
                let file = OpenFile { ino, write, append, direct };
                self.slots[*slot] = Some(file);
                Ok(Outcome::Done)
            }
            Op::Close { slot } => {
                let file = self.slots[*slot].take().ok_or(Errno::BADF)?;
                self.drop_unused(file.ino);
                Ok(Outcome::Done)
            }
            Op::Write { slot, offset, len, seed } => {
                let data = pattern(*seed, *offset, *len as usize);
                self.write(*slot, *offset, &data)
            }
            Op::Read { slot, offset, len } => {
                let file = self.slot(*slot)?;
                Ok(Outcome::Bytes(self.blocks(file.ino).read(*offset, *len)))
            }
            Op::Allocate { slot, what, offset, len } => self.allocate(*slot, *what, *offset, *len),
            Op::Copy { from, to, len } => self.copy(*from, *to, *len),
            Op::Seek { slot, offset, data } => {
                let file = self.slot(*slot)?;
                let blocks = self.blocks(file.ino);
                if *offset >= blocks.size {
                    return Err(Errno::NXIO);
                }
                match blocks.seek(*offset, *data) {
                    None => Ok(Outcome::Any),
                    Some(found) => found.map(Outcome::Number).ok_or(Errno::NXIO),
                }
            }
            Op::Truncate { path, size } => {
                let ino = self.open(path, &How { write: true, ..How::default() })?;
                self.truncate(ino, *size)
            }
            Op::TruncateOpen { slot, size } => {
                let file = self.slot(*slot)?;
                if !file.write {
                    return Err(Errno::INVAL);
                }
                self.truncate(file.ino, *size)
            }
            Op::Fsync { slot } => self.slot(*slot).map(|_| Outcome::Done),
            other => unreachable!("{other} is not of a file"),
        }
    }

    /// The regular file that open(2) opens.
    fn open(&mut self, path: &str, how: &How) -> Result<u32> {
        let exclusive = how.create.is_some() && how.exclusive;
        let follow = !how.nofollow && !exclusive;
        let found = self.find(path, follow)?;
        let ino = match (found.ino, how.create) {
            (None, None) => return Err(Errno::NOENT),
            (None, Some(mode)) => {
                self.may_write(found.dir)?;
                let kind = Kind::File(Blocks::new(self.traits.block));
                return Ok(self.make(found.dir, &found.name, kind, mode));
            }
            (Some(_), Some(_)) if how.exclusive => return Err(Errno::EXIST),
            (Some(ino), _) => ino,
        };
        let node = self.at(ino);
        match &node.kind {
            Kind::Link(_) => return Err(Errno::LOOP),
            // Opened to be read it is refused for the way of access.
            Kind::Dir(_) if how.direct && !how.write && how.create.is_none() => {
                return Err(Errno::INVAL);
            }
            Kind::Dir(_) => return Err(Errno::ISDIR),
            // Mounts of these tests have no device nodes.
            Kind::Special(0o020_000 | 0o060_000, _) => return Err(Errno::ACCESS),
            _ => {}
        }
        if how.write {
            if node.flags & IMMUTABLE != 0 {
                return Err(Errno::PERM);
            }
            if node.flags & APPEND != 0 && (!how.append || how.truncate) {
                return Err(Errno::PERM);
            }
        }
        match &node.kind {
            Kind::Special(0o140_000, _) => return Err(Errno::NXIO),
            Kind::Special(..) if how.direct => return Err(Errno::INVAL),
            Kind::Special(..) => return Err(Errno::NODEV),
            _ => {}
        }
        if how.write && how.truncate {
            self.blocks_mut(ino).truncate(0);
            self.modified(ino);
        }
        Ok(ino)
    }

    fn truncate(&mut self, ino: u32, size: u64) -> Result<Outcome> {
        if size > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        self.may_set(ino)?;
        if size > self.traits.largest {
            return Err(Errno::FBIG);
        }
        self.blocks_mut(ino).truncate(size);
        self.modified(ino);
        Ok(Outcome::Done)
    }

    fn write(&mut self, slot: usize, offset: u64, data: &[u8]) -> Result<Outcome> {
        let file = self.slot(slot)?;
        if !file.write {
            return Err(Errno::BADF);
        }
        if data.is_empty() && self.may_write(file.ino).is_err() {
            // The kernel asks ext4 first, and not a filesystem behind FUSE.
            return Ok(Outcome::Any);
        }
        self.may_write(file.ino)?;
        if data.is_empty() {
            return Ok(Outcome::Number(0));
        }
        let at = if file.append { self.blocks(file.ino).size } else { offset };
        if at >= self.traits.largest {
            return Err(Errno::FBIG);
        }
        let len = data.len().min((self.traits.largest - at) as usize);
        self.blocks_mut(file.ino).write(at, &data[..len]);
        self.modified(file.ino);
        Ok(Outcome::Number(len as u64))
    }

    fn allocate(&mut self, slot: usize, what: Allocate, offset: u64, len: u64) -> Result<Outcome> {
        let file = self.slot(slot)?;
        let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
        if len == 0 || offset > i64::MAX as u64 || len > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        if !file.write {
            return Err(Errno::BADF);
        }
        let flags = self.at(file.ino).flags;
        let adds = matches!(what, Allocate::Grow | Allocate::KeepSize);
        if flags & IMMUTABLE != 0 || (flags & APPEND != 0 && !adds) {
            return Err(Errno::PERM);
        }
        if !self.traits.extents && what != Allocate::Punch {
            return Err(self.refused_late(file.ino, Errno::OPNOTSUPP));
        }
        // Files with pointers end before the volume's largest do, which no operation comes to.
        let beyond = |end: &u64| self.traits.extents && *end > self.traits.largest;
        let end = end.filter(|end| !beyond(end)).ok_or(Errno::FBIG)?;
        let (block, largest) = (self.traits.block, self.traits.largest);
        let size = self.blocks(file.ino).size;
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block);
        let refused = match what {
            Allocate::Collapse if !aligned || end >= size => Some(Errno::INVAL),
            Allocate::Insert if !aligned => Some(Errno::INVAL),
            Allocate::Insert if len > largest - size => Some(Errno::FBIG),
            Allocate::Insert if offset >= size => Some(Errno::INVAL),
            _ => None,
        };
        if let Some(errno) = refused {
            return Err(self.refused_late(file.ino, errno));
        }
        let blocks = self.blocks_mut(file.ino);
        match what {
            Allocate::Grow | Allocate::KeepSize => blocks.allocate(offset, len),
            Allocate::Punch => {
                // The page that the end lies in goes as a whole.
                let end = if end > size { size.next_multiple_of(PAGE) } else { end };
                if offset < size {
                    blocks.punch(offset, end - offset);
                }
            }
            Allocate::Zero | Allocate::ZeroKeepSize => blocks.zero(offset, len),
            Allocate::Collapse => blocks.collapse(offset, len),
            Allocate::Insert => blocks.insert(offset, len),
        }
        if matches!(what, Allocate::Grow | Allocate::Zero) {
            blocks.size = blocks.size.max(end);
        }
        self.modified(file.ino);
        Ok(Outcome::Done)
    }

    /// A refusal for which the kernel has set the times already.
    fn refused_late(&mut self, ino: u32, errno: Errno) -> Errno {
        let node = self.at_mut(ino);
        (node.times[1], node.ctime) = (Time::Unknown, Time::Unknown);
        errno
    }

    fn copy(&mut self, from: (usize, u64), to: (usize, u64), len: u64) -> Result<Outcome> {
        let (source, target) = (self.slot(from.0)?, self.slot(to.0)?);
        if !target.write || target.append {
            return Err(Errno::BADF);
        }
        self.may_write(target.ino)?;
        let size = self.blocks(source.ino).size;
        let len = len.min(size.saturating_sub(from.1));
        if to.1 >= self.traits.largest && len > 0 {
            return Err(Errno::FBIG);
        }
        let overlap = from.1 < to.1 + len && to.1 < from.1 + len;
        if source.ino == target.ino && overlap {
            return Err(Errno::INVAL);
        }
        if len == 0 {
            return Ok(Outcome::Number(0));
        }
        let bytes = self.blocks(source.ino).read(from.1, len);
        self.blocks_mut(target.ino).copy(to.1, &bytes);
        self.modified(target.ino);
        Ok(Outcome::Number(len))
    }
}
