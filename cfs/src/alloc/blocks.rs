//! Blocks are chosen and given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Space;
use super::claim::Claim;
use super::group::Slot;
use super::hook::{Freed, What};
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

/// A run of a group's blocks that was taken in memory.
pub(super) struct Found {
    pub(super) start: Block,
    pub(super) len: u32,
}

/// What a claim may cost.
#[derive(Clone, Copy)]
struct Wish {
    want: u32,
    /// A run that begins at the goal is good enough with so many blocks.
    near: u32,
    /// A run elsewhere in the group is.
    least: u32,
}

/// A file goes on where it ends, if so many blocks are free there.
const NEAR: u32 = 16;

/// How often a search that finds nothing is repeated.
const PATIENCE: u32 = 1000;

impl Space {
    /// Claims 1 to `want` contiguous blocks, in memory alone: at `goal` if that is free, else in a
    /// run of that length near it, else in the best that there is.
    ///
    /// `reserved` says that they were paid for by [`Self::reserve`]; the others are for maps, and
    /// may be of those held back.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when no block is free: reserved ones are, unless a group was found to be
    /// corrupt since. [`Error::Io`] when bitmaps cannot be read.
    pub fn claim(self: &Arc<Self>, goal: Block, want: u32, reserved: bool) -> Result<Claim> {
        let want = self.pay(want, reserved)?;
        let found = self.search(goal, want);
        self.settle(want, reserved, found)
    }

    /// Takes blocks that were not reserved from those not promised: at most as many as wanted.
    pub(super) fn pay(&self, want: u32, reserved: bool) -> Result<u32> {
        let want = want.max(1);
        if reserved {
            return Ok(want);
        }
        let mut paid = want;
        loop {
            if self.take_unpromised(paid.into(), 0) {
                return Ok(paid);
            }
            let left = self.unpromised.load(Ordering::Relaxed);
            paid = u32::try_from(left).unwrap_or(0).min(paid);
            if paid == 0 {
                return Err(Error::NoSpace);
            }
        }
    }

    /// Makes a claim of what was found, and gives back what was paid too much.
    pub(super) fn settle(
        self: &Arc<Self>,
        paid: u32,
        reserved: bool,
        found: Result<Found>,
    ) -> Result<Claim> {
        let used = found.as_ref().map_or(0, |found| found.len);
        if !reserved {
            self.release(u64::from(paid - used));
        }
        let found = found?;
        Ok(Claim::new(Arc::clone(self), found.start, found.len, reserved))
    }

    /// Takes a run of blocks.
    pub(super) fn search(&self, goal: Block, want: u32) -> Result<Found> {
        let (home, bit) = self.place(goal);
        let mut trouble = None;
        let here = Wish { want, near: NEAR, least: want };
        if let Some(found) = self.attempt(home, bit, here, &mut trouble) {
            return Ok(found);
        }
        let mut patience = PATIENCE;
        loop {
            let whole = Wish { want, near: want, least: want };
            if let Some(found) = self.around(home, bit, whole, &mut trouble) {
                return Ok(found);
            }
            let longest = |group: &super::Group| group.longest.load(Ordering::Relaxed);
            let most = self.groups.iter().map(longest).max().unwrap_or(0);
            if most > 0 {
                let least = (most.min(want) / 2).max(1);
                let part = Wish { want, near: least, least };
                if let Some(found) = self.around(home, bit, part, &mut trouble) {
                    return Ok(found);
                }
            }
            if let Some(error) = trouble {
                return Err(error);
            }
            if most == 0 && !self.windows.give_back_all(self) && !self.wait_for_trim() {
                // There is a block, for it was paid for: somebody is just giving it back. Unless a
                // group was found to be corrupt since.
                patience -= 1;
                if patience == 0 {
                    return Err(Error::NoSpace);
                }
                std::thread::yield_now();
            }
            // Or somebody else was faster, or a group had less than was known before it was read.
        }
    }

    /// Looks at all groups that may have enough, from the home group on.
    fn around(
        &self,
        home: u32,
        bit: u32,
        wish: Wish,
        trouble: &mut Option<Error>,
    ) -> Option<Found> {
        let count = self.groups.len() as u32;
        (home..count).chain(0..home).find_map(|number| {
            if self.groups[number as usize].longest.load(Ordering::Relaxed) < wish.least {
                return None;
            }
            let from = if number == home { bit } else { 0 };
            self.attempt(number, from, wish, trouble)
        })
    }

    fn attempt(
        &self,
        number: u32,
        from: u32,
        wish: Wish,
        trouble: &mut Option<Error>,
    ) -> Option<Found> {
        match self.take(number, from, wish) {
            Ok(found) => found,
            // It was reported, and the group is not used any more.
            Err(Error::Corrupt { .. }) => None,
            Err(error) => {
                *trouble = Some(error);
                None
            }
        }
    }

    fn take(&self, number: u32, from: u32, wish: Wish) -> Result<Option<Found>> {
        let group = &self.groups[number as usize];
        let mut state = group.state.lock();
        let blocks = state.need_blocks(self, number)?;
        let runs = &mut blocks.runs;
        let here = runs.len_at(from, wish.want);
        let start = if here >= wish.want.min(wish.near) {
            from
        } else {
            let len = runs.longest().min(wish.want);
            if len < wish.least {
                return Ok(None);
            }
            match runs.find(from, len).or_else(|| runs.find(0, len)) {
                Some(start) => start,
                None => return Ok(None),
            }
        };
        let len = runs.len_at(start, wish.want);
        runs.take(start..start + len);
        blocks.differing += len;
        let free = group.free.load(Ordering::Relaxed) - len;
        group.note(free, blocks.runs.longest());
        let start = Block(self.superblock().group_start(number) + u64::from(start));
        Ok(Some(Found { start, len }))
    }

    /// Gives back blocks that are taken in memory alone; what was paid for them is not touched.
    pub(super) fn give(&self, start: Block, len: u32) {
        let (number, bit) = self.place(start);
        let group = &self.groups[number as usize];
        let mut state = group.state.lock();
        // A group with blocks taken is neither let go nor found corrupt.
        if let Slot::Here(blocks) = &mut state.blocks {
            blocks.runs.give(bit..bit + len);
            blocks.differing -= len;
            let free = group.free.load(Ordering::Relaxed) + len;
            group.note(free, blocks.runs.longest());
        }
    }

    /// Puts blocks taken in memory into the bitmap.
    pub(super) fn put_used(&self, start: Block, len: u32, handle: &mut Handle<'_>) -> Result<()> {
        let (number, bit) = self.place(start);
        let covered = self.superblock().blocks_per_group;
        let mut state = self.groups[number as usize].state.lock();
        let blocks = state.need_blocks(self, number)?;
        blocks.bits.change(bit..bit + len, true, covered);
        blocks.differing -= len;
        state.counts.free_blocks -= len;
        self.free_on_disk.fetch_sub(len.into(), Ordering::Relaxed);
        state.put_changes(self, number, handle)
    }

    /// Frees blocks. They can be claimed once the handle's transaction has committed.
    ///
    /// Blocks of a group whose bitmap is corrupt stay in use until e2fsck has looked at it. In each
    /// group that has some of the others two blocks change, its bitmap and its descriptor.
    ///
    /// # Errors
    /// Before anything has changed: [`Error::Corrupt`] when one of them is no block that a file
    /// can have, or is free already; when a bitmap cannot be read. Later ones are those of the
    /// handle's puts.
    pub fn free(&self, handle: &mut Handle<'_>, start: Block, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if !self.volume.zones().allow(start, len) {
            let why = format!("{len} blocks from there on are not a file's");
            return Err(Error::corrupt(start, why));
        }
        let (first, _) = self.place(start);
        let (last, _) = self.place(Block(start.0 + len - 1));
        let mut parts = Vec::with_capacity((last - first) as usize + 1);
        for number in first..=last {
            let base = self.superblock().group_start(number);
            let from = (start.0.max(base) - base) as u32;
            let to = (start.0 + len - base).min(self.group_len(number).into()) as u32;
            let mut state = self.groups[number as usize].state.lock();
            match state.need_blocks(self, number) {
                Ok(blocks) => {
                    if !crate::disk::bitmap::all_set(&blocks.bits.bytes, from..to) {
                        let why = format!("a block of {len} from there on is free already");
                        return Err(Error::corrupt(start, why));
                    }
                    parts.push((number, from..to, state));
                }
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let covered = self.superblock().blocks_per_group;
        for (number, bits, mut state) in parts {
            let blocks = state.need_blocks(self, number)?;
            let len = bits.end - bits.start;
            blocks.bits.change(bits.clone(), false, covered);
            blocks.differing += len;
            state.counts.free_blocks += len;
            self.free_on_disk.fetch_add(len.into(), Ordering::Relaxed);
            self.pending.fetch_add(len.into(), Ordering::Relaxed);
            let what = What::Blocks { start: bits.start, len };
            self.note_freed(Freed { tid: handle.tid(), group: number, what });
            state.put_changes(self, number, handle)?;
        }
        Ok(())
    }
}
