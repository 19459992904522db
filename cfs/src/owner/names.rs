//! Changes that others ask for: what each becomes in the engine, and what everybody then sees.

use std::sync::Arc;

use super::Owner;
use super::answer::Sender;
use crate::cache::InodeRecord;
use crate::change::{Change, Changed, NewInode, Order, SetAttr, SetTime};
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::engine::write::{self, At, Cell, Effects, New, RenameFlags, Writer, XattrFlags};
use crate::id::Ino;
use crate::{Caller, Error, Result};

/// A name in a directory.
type Named<'n> = (Ino, &'n [u8]);

impl Owner {
    /// Makes a change that a participant asks for, complete in itself, and publishes what came of
    /// it.
    pub fn change(&self, from: Sender, ino: Ino, order: &Order) -> Result<Changed> {
        self.noting(ino, self.apply(from, ino, order))
    }

    pub(super) fn apply(&self, from: Sender, ino: Ino, order: &Order) -> Result<Changed> {
        let by = &order.caller;
        let made = |record| Ok(Changed { record: Some(record), made: true });
        let changed = |record| Ok(Changed { record: Some(record), made: false });
        let gone = |()| Changed { record: None, made: false };
        match &order.change {
            Change::Make { name, inode, reuse } => self.make_file((ino, name), *inode, *reuse, by),
            Change::Symlink { name, target } => {
                let new = New { mode: SYMLINK, target, ..New::default() };
                made(self.make((ino, name), &new, by)?)
            }
            Change::Link { name, ino: target } => {
                changed(self.add_name(Ino(*target), (ino, name), by)?)
            }
            Change::Unlink { name } => {
                self.removing(|writer, report| writer.unlink(ino, name, report)).map(gone)
            }
            Change::Rmdir { name } => {
                self.removing(|writer, report| writer.rmdir(ino, name, report)).map(gone)
            }
            Change::Rename { name, to, new_name, flags } => {
                self.rename((ino, name), (Ino(*to), new_name), *flags, by).map(gone)
            }
            Change::Set { attr } => changed(self.set(ino, attr, by)?),
            Change::Accessed => changed(self.accessed(ino)?),
            Change::SetXattr { name, value, flags } => {
                let flags = XattrFlags::from_bits_retain(*flags);
                changed(self.xattr(ino, name, Some(value), flags, by)?)
            }
            Change::RemoveXattr { name } => {
                changed(self.xattr(ino, name, None, XattrFlags::REPLACE, by)?)
            }
            Change::Allocate { mode, offset, len } => {
                changed(self.allocate(ino, *mode, *offset, *len, by)?)
            }
            Change::SetFlags { flags, known, project } => {
                if project.is_some() {
                    return Err(Error::Unsupported("project quota is not supported".into()));
                }
                let flags = InodeFlags::from_bits_retain(*flags);
                let known = InodeFlags::from_bits_retain(*known);
                changed(self.set_flags(ino, flags, known, by)?)
            }
            Change::MakeNameless { inode } => made(self.make_nameless(from, ino, *inode, by)?),
        }
    }

    fn make_file(
        &self,
        at: Named<'_>,
        inode: NewInode,
        reuse: bool,
        by: &Caller,
    ) -> Result<Changed> {
        let NewInode { mode, umask, device } = inode;
        let new = New { mode, umask, device, ..New::default() };
        loop {
            match self.make(at, &new, by) {
                Err(Error::Exists) if reuse => {}
                record => return Ok(Changed { record: Some(record?), made: true }),
            }
            match self.lookup(at.0, at.1) {
                // It went in between.
                Err(Error::NotFound) => {}
                record => return Ok(Changed { record: Some(record?), made: false }),
            }
        }
    }

    fn make(&self, (dir, name): Named<'_>, new: &New<'_>, by: &Caller) -> Result<InodeRecord> {
        let mut cell = None;
        self.removing(|writer, report| {
            cell = Some(writer.make(by, dir, name, new, report)?);
            Ok(())
        })?;
        let cell = cell.ok_or(Error::NotFound)?;
        self.record(&cell)
    }

    /// A file without a name, which who asks for it holds.
    fn make_nameless(
        &self,
        from: Sender,
        dir: Ino,
        inode: NewInode,
        by: &Caller,
    ) -> Result<InodeRecord> {
        self.check_holds(from)?;
        let NewInode { mode, umask, device } = inode;
        let new = New { mode, umask, device, ..New::default() };
        let held = |cell: &Arc<Cell>| self.hold_new(cell, from);
        let cell = self.writer()?.make_nameless(by, dir, &new, held)?;
        self.record(&cell)
    }

    fn add_name(&self, ino: Ino, (dir, name): Named<'_>, by: &Caller) -> Result<InodeRecord> {
        let cell = self.cell(ino)?;
        self.removing(|writer, report| writer.link(by, ino, dir, name, report).map(drop))?;
        self.record(&cell)
    }

    fn rename(&self, from: Named<'_>, to: Named<'_>, flags: u32, by: &Caller) -> Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        // A file that takes another's place: should there be a crash it has its contents.
        if !flags.contains(RenameFlags::NOREPLACE) && self.lookup(to.0, to.1).is_ok() {
            let moved = self.lookup(from.0, from.1)?;
            if moved.attr.kind == Kind::Regular
                && let Some(file) = self.files.find(moved.attr.ino)
            {
                self.flush_new_contents(&file);
                self.files.put(file);
            }
        }
        let at = |(dir, name)| At { dir, name };
        self.removing(|writer, report| writer.rename(by, at(from), at(to), flags, report))
    }

    fn set(&self, ino: Ino, set: &SetAttr, by: &Caller) -> Result<InodeRecord> {
        let only_size = SetAttr { size: set.size, ..SetAttr::default() };
        let kill = SetAttr { kill_privileges: true, ..only_size };
        if let Some(size) = set.size {
            let record = self.truncate(ino, size, set.kill_privileges)?;
            if *set == only_size || *set == kill {
                return Ok(record);
            }
        }
        let time = |time: SetTime| match time {
            SetTime::Now => write::SetTime::Now,
            SetTime::At(seconds, nanoseconds) => {
                write::SetTime::At(Timestamp { seconds, nanoseconds })
            }
        };
        let fields = write::SetAttr {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: None,
            atime: set.atime.map(time),
            mtime: set.mtime.map(time),
            ctime: set.ctime.map(time),
            kill_privileges: set.kill_privileges,
        };
        self.set_fields(ino, &fields, by)
    }

    /// Sets attributes other than the size.
    pub(super) fn set_fields(
        &self,
        ino: Ino,
        set: &write::SetAttr,
        by: &Caller,
    ) -> Result<InodeRecord> {
        let cell = self.cell(ino)?;
        self.removing(|writer, report| writer.set_attr(by, ino, set, report))?;
        self.record(&cell)
    }

    /// Somebody has read an inode. The time of that goes to disk with other changes, or later.
    fn accessed(&self, ino: Ino) -> Result<InodeRecord> {
        let options = self.writer()?.options();
        let file = self.files.get(&self.cell(ino)?);
        let mut live = file.cell.write();
        let (now, inode) = (write::now(), &mut live.inode);
        let kept = inode.flags.contains(InodeFlags::NOATIME)
            || (options.no_dir_times && inode.kind == Kind::Directory);
        let due = options.access_times.is_due([inode.atime, inode.mtime, inode.ctime], now);
        if !kept && due {
            inode.atime = now;
            self.files.add_times(&file);
        }
        let record = self.publish_live(&live);
        drop(live);
        self.files.put(file);
        record
    }

    fn xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        flags: XattrFlags,
        by: &Caller,
    ) -> Result<InodeRecord> {
        let cell = self.cell(ino)?;
        self.removing(|writer, report| writer.set_xattr(by, ino, name, value, flags, report))?;
        self.record(&cell)
    }

    fn set_flags(
        &self,
        ino: Ino,
        flags: InodeFlags,
        known: InodeFlags,
        by: &Caller,
    ) -> Result<InodeRecord> {
        let cell = self.cell(ino)?;
        let set = || {
            self.removing(|writer, report| writer.set_flags(by, ino, flags, known, report))?;
            self.record(&cell)
        };
        let (journaled, regular) = {
            let live = cell.read();
            let asked = (live.inode.flags ^ flags) & known;
            (asked.contains(InodeFlags::JOURNAL_DATA), live.inode.kind == Kind::Regular)
        };
        if !(journaled && regular && by.privileged) {
            return set();
        }
        // The way to the disk changes between two writebacks, and no replay brings back what went
        // there by the journal over what is written in place.
        let file = self.files.get(&cell);
        let done = {
            let _order = file.order.lock();
            self.flush_file(&file);
            let _bar = file.bar();
            self.writer()?.journal().bring_home().and_then(|()| set())
        };
        self.files.put(file);
        done
    }

    /// An inode as it is now.
    fn record(&self, cell: &Cell) -> Result<InodeRecord> {
        self.publish_live(&*super::show::read(cell)?)
    }

    /// Does something that the writer reports, publishes it, and lets inodes go that have lost
    /// their last name and that nobody holds. Whether that succeeds is not the caller's: the names
    /// have gone, and what is left is an orphan until the volume is closed or recovered.
    fn removing(
        &self,
        change: impl FnOnce(&Writer, &mut dyn FnMut(&Effects<'_>)) -> Result<()>,
    ) -> Result<()> {
        let writer = self.writer()?;
        let mut unnamed: Vec<Arc<Cell>> = Vec::new();
        let done = change(writer, &mut |effects| self.publish_effects(effects, &mut unnamed));
        for cell in &unnamed {
            self.release_unnamed(cell);
        }
        done
    }
}

const SYMLINK: u16 = 0o120_777;
