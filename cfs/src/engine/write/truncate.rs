//! Files that are cut, grow, are allocated ahead, and go.
//!
//! These functions know blocks and sizes. Whoever has the contents in memory writes back or drops
//! what lies in the range before, and zeroes what a change leaves of blocks at its ends.

use std::ops::Range;

use super::{Cell, Live, Writer, now};
use crate::alloc::Claim;
use crate::caller::Caller;
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::engine::Mapping;
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

/// What an allocation ahead does beyond mapping blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// The file grows to the end of the range.
    Grow,
    /// The size stays.
    KeepSize,
}

/// The end of every map.
const ALL: u64 = 1 << 40;

impl Writer {
    /// Sets the size of a file, and gives back the blocks beyond it. An interrupted cut is
    /// completed by recovery.
    ///
    /// # Errors
    /// [`Error::FileTooBig`] for what the file's map cannot have. When the map cannot be read the
    /// size is set nevertheless.
    pub fn truncate(&self, live: &mut Live, size: u64, time: Timestamp) -> Result<()> {
        if size > self.max_size(&live.inode) {
            return Err(Error::FileTooBig);
        }
        let before = live.inode.size;
        let credits = Self::STORE_CREDITS + Self::ORPHAN_CREDITS;
        let mut handle = self.begin(credits)?;
        (live.inode.size, live.disk_size) = (size, size);
        (live.inode.mtime, live.inode.ctime) = (time, time);
        if size > before {
            return self.store(&mut handle, live);
        }
        let end = size.div_ceil(self.volume.superblock().block_size.into());
        if self.volume.runs(&live.inode, end, ALL).next().is_none_or(
            |run| matches!(&run, Ok(run) if run.mapping == Mapping::Hole && run.end() >= end + ALL),
        ) {
            return self.store(&mut handle, live);
        }
        self.add_orphan(&mut handle, live)?;
        self.store(&mut handle, live)?;
        let cut = self.remove(&mut handle, live, end..ALL);
        cut.and(self.end_cut(&mut handle, live, credits))
    }

    fn end_cut(&self, handle: &mut Handle<'_>, live: &mut Live, credits: u32) -> Result<()> {
        self.step(handle, live, credits)?;
        if live.inode.links > 0 {
            self.remove_orphan(handle, live)?;
        }
        self.store(handle, live)
    }

    /// Gives back the blocks `first..end` of a file.
    ///
    /// # Errors
    /// When the map cannot be read, or has to grow and cannot: what was done until then stays.
    pub fn punch(&self, live: &mut Live, first: u64, end: u64, time: Timestamp) -> Result<()> {
        self.again(live, |live| {
            let mut handle = self.begin(Self::STORE_CREDITS)?;
            (live.inode.mtime, live.inode.ctime) = (time, time);
            let done = self.remove(&mut handle, live, first..end);
            self.store_after(&mut handle, live, done)
        })
    }

    /// Maps unwritten blocks to the holes among the blocks `first..end` of a file, which then is
    /// `size` bytes long if that is more and it is to grow.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without extents, [`Error::FileTooBig`], [`Error::NoSpace`]: what was
    /// mapped until then stays, and the size covers it.
    pub fn allocate(
        &self,
        live: &mut Live,
        first: u64,
        end: u64,
        size: u64,
        grow: Allocate,
        caller: &Caller,
    ) -> Result<()> {
        self.check_extents(live)?;
        let bits = self.volume.superblock().block_bits;
        if size > self.max_size(&live.inode) || end << bits > self.max_size(&live.inode) {
            return Err(Error::FileTooBig);
        }
        self.again(live, |live| self.fill_holes(live, first..end, size, grow, caller))
    }

    fn fill_holes(
        &self,
        live: &mut Live,
        range: Range<u64>,
        size: u64,
        grow: Allocate,
        caller: &Caller,
    ) -> Result<()> {
        let bits = self.volume.superblock().block_bits;
        let Range { start: mut next, end } = range;
        let mut changed = false;
        while next < end {
            let run = self.map(live, next, end - next)?;
            let claim = if run.mapping == Mapping::Hole {
                let want = run.len.min(self.longest_run(live, true)) as u32;
                Some(self.claim_now(self.goal(live, next), want, caller)?)
            } else {
                None
            };
            let len = claim.as_ref().map_or(run.len, |claim| claim.len().into());
            let covered = size.min((next + len) << bits);
            let longer = grow == Allocate::Grow && covered > live.inode.size;
            if claim.is_some() || longer {
                let mut handle = self.begin(self.insert_credits(live, len))?;
                if let Some(claim) = claim {
                    self.insert_run(&mut handle, live, next, claim, true)?;
                }
                let time = now();
                (live.inode.mtime, live.inode.ctime) = (time, time);
                if longer {
                    (live.inode.size, live.disk_size) = (covered, covered);
                }
                self.store(&mut handle, live)?;
                changed = true;
            }
            next += len;
        }
        if !changed {
            // A file whose blocks were all there counts as changed nevertheless.
            let (mut handle, time) = (self.begin(Self::STORE_CREDITS)?, now());
            (live.inode.mtime, live.inode.ctime) = (time, time);
            self.store(&mut handle, live)?;
        }
        Ok(())
    }

    /// Claims blocks that were not reserved, as many as there are for the caller.
    fn claim_now(&self, goal: Block, want: u32, caller: &Caller) -> Result<Claim> {
        let mut want = want;
        while let Err(error) = self.space.reserve(want.into(), caller) {
            if !matches!(error, Error::NoSpace) || want == 1 {
                return Err(error);
            }
            want /= 2;
        }
        // The caller may have them. A promise would have to be taken back should the claim fail.
        self.space.release(want.into());
        self.space.claim(goal, want, false)
    }

    /// Does something once more if it was short of blocks that a commit makes free. No handle is
    /// held.
    fn again(&self, live: &mut Live, work: impl Fn(&mut Live) -> Result<()>) -> Result<()> {
        match work(live) {
            Err(Error::NoSpace) if self.space.reclaim()? => work(live),
            done => done,
        }
    }

    /// Makes the blocks `first..end` of a file read as zeros without writing them: what is mapped
    /// becomes unwritten. Holes stay; [`Self::allocate`] fills them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without extents, and as [`Self::punch`].
    pub fn zero(&self, live: &mut Live, first: u64, end: u64, time: Timestamp) -> Result<()> {
        self.check_extents(live)?;
        self.again(live, |live| {
            let mut handle = self.begin(Self::STORE_CREDITS)?;
            (live.inode.mtime, live.inode.ctime) = (time, time);
            let done = self.convert(&mut handle, live, first..end, true);
            self.store_after(&mut handle, live, done)
        })
    }

    /// Takes the blocks `first..end` out of a file; what follows moves down.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without extents, [`Error::Invalid`] when the range reaches the file's
    /// end, and as [`Self::punch`].
    pub fn collapse(&self, live: &mut Live, first: u64, end: u64, time: Timestamp) -> Result<()> {
        self.check_extents(live)?;
        let bits = self.volume.superblock().block_bits;
        if first >= end || end << bits >= live.inode.size {
            return Err(Error::Invalid("the range reaches the end of the file".into()));
        }
        self.again(live, |live| {
            let mut handle = self.begin(Self::STORE_CREDITS)?;
            (live.inode.mtime, live.inode.ctime) = (time, time);
            let mut done = self.remove(&mut handle, live, first..end);
            if done.is_ok() {
                done = self.shift_down(&mut handle, live, end, end - first);
            }
            if done.is_ok() {
                live.inode.size -= (end - first) << bits;
                live.disk_size = live.inode.size;
            }
            self.store_after(&mut handle, live, done)
        })
    }

    /// Inserts a hole of `count` blocks at block `first` of a file; what follows moves up.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without extents, [`Error::Invalid`] when the place is not within the
    /// file, [`Error::FileTooBig`], and as [`Self::punch`].
    pub fn insert(&self, live: &mut Live, first: u64, count: u64, time: Timestamp) -> Result<()> {
        self.check_extents(live)?;
        let bits = self.volume.superblock().block_bits;
        let size = live.inode.size.checked_add(count << bits).ok_or(Error::FileTooBig)?;
        if size > self.max_size(&live.inode) {
            return Err(Error::FileTooBig);
        }
        if first << bits >= live.inode.size {
            return Err(Error::Invalid("the place is not within the file".into()));
        }
        self.again(live, |live| {
            let mut handle = self.begin(Self::STORE_CREDITS)?;
            let before = (live.inode.size, live.disk_size);
            (live.inode.mtime, live.inode.ctime) = (time, time);
            // Blocks beyond the size would be those of a cut that was interrupted.
            (live.inode.size, live.disk_size) = (size, size);
            let done = self.shift_up(&mut handle, live, first, count);
            if let Err(Error::FileTooBig | Error::NoSpace) = &done {
                (live.inode.size, live.disk_size) = before;
            }
            self.store_after(&mut handle, live, done)
        })
    }

    /// Stores an inode after steps of which each was complete, and passes on how they ended.
    fn store_after(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        done: Result<()>,
    ) -> Result<()> {
        done.and(self.store(handle, live))
    }

    fn check_extents(&self, live: &Live) -> Result<()> {
        if live.inode.flags.contains(InodeFlags::EXTENTS) {
            return Ok(());
        }
        Err(Error::Unsupported(format!("{} has no extents", live.inode.ino)))
    }

    /// The last name of an inode has gone within this handle: it becomes an orphan, and is stored.
    /// After the handle has ended and its locks are given back, [`Self::settle`] is due.
    pub fn unnamed(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        self.add_orphan(handle, live)?;
        self.store(handle, live)
    }

    /// Takes holds of an inode back, and lets it go with the last one if it has no names.
    pub fn release(&self, cell: &Cell, count: u32) -> Result<()> {
        if cell.let_go(count) { self.settle(cell) } else { Ok(()) }
    }

    /// Lets an inode go that has neither names nor holders.
    pub fn settle(&self, cell: &Cell) -> Result<()> {
        let mut live = cell.write();
        if live.gone || live.inode.links > 0 || cell.holds() > 0 {
            return Ok(());
        }
        self.delete(&mut live)
    }

    /// As [`Self::settle`], for who has taken the last name away and has done what was asked: if
    /// the rest fails now, the inode stays an orphan until the volume is closed or recovered.
    pub(super) fn let_rest(&self, cell: &Cell) {
        // It has been given up, or the stop will meet it again.
        let _ = self.settle(cell);
    }

    /// Lets all inodes without names go, whoever holds them.
    pub(super) fn reap_all(&self) -> Result<()> {
        for cell in self.live.all() {
            let mut live = cell.write();
            if !live.gone && live.inode.links == 0 {
                self.delete(&mut live)?;
            }
        }
        Ok(())
    }

    /// Gives back an orphan with all it has, in as many transactions as that takes.
    fn delete(&self, live: &mut Live) -> Result<()> {
        let last = Self::STORE_CREDITS + Self::ORPHAN_CREDITS + INODE_CREDITS;
        let _sharing = self.give_values_back(live)?;
        let mut handle = self.begin(last)?;
        if self.has_map(live) {
            self.remove(&mut handle, live, 0..ALL)?;
        }
        self.step(&mut handle, live, ATTRIBUTE_CREDITS)?;
        self.release_attributes(&mut handle, live)?;
        self.step(&mut handle, live, last)?;
        self.remove_orphan(&mut handle, live)?;
        (live.inode.size, live.disk_size) = (0, 0);
        live.inode.dtime = now().seconds as u32;
        self.store(&mut handle, live)?;
        // Its number may come back from here on.
        self.live.remove(live.inode.ino);
        live.gone = true;
        let directory = live.inode.kind == Kind::Directory;
        self.space
            .free_inode(&mut handle, live.inode.ino, directory)
            .map_err(|error| handle.fail(error))
    }

    /// Whether the inode has a map, and not a device's number, contents or a short target there.
    fn has_map(&self, live: &Live) -> bool {
        match live.inode.kind {
            Kind::Regular | Kind::Directory => true,
            Kind::Symlink => !self.volume.is_fast_link(&live.inode),
            _ => false,
        }
    }
}

/// Blocks that giving a number back changes: bitmap and descriptor.
const INODE_CREDITS: u32 = 2;
/// Blocks that giving attributes back changes: theirs, and bitmap and descriptor of it.
const ATTRIBUTE_CREDITS: u32 = 3 + Writer::STORE_CREDITS;
