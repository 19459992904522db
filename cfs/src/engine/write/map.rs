//! Maps of both kinds: what data blocks a file has, and where the next ones should be.

use std::ops::Range;

use super::{Live, Writer};
use crate::alloc::Claim;
use crate::disk::extent::Extent;
use crate::disk::features::{Incompat, RoCompat};
use crate::disk::indirect;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::superblock::Superblock;
use crate::engine::{Mapping, Run};
use crate::id::Block;
use crate::journal::Handle;
use crate::limits::MAX_FILE_BLOCKS;
use crate::{Error, Result};

/// Blocks that are given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Freed {
    pub(super) start: Block,
    pub(super) len: u64,
}

/// Groups whose blocks are given back in one step: each costs two credits.
const GROUPS_AT_ONCE: u32 = 16;

/// Blocks of journaled contents that are given back in one step: each is forgotten, for a credit.
const FORGOTTEN_AT_ONCE: u64 = 64;

/// Counts the groups in which runs lie.
#[derive(Default)]
pub(super) struct Groups {
    count: u32,
    /// The groups of the run that was added last.
    last: Option<Range<u64>>,
}

impl Groups {
    /// Adds a run, unless that would be too many groups for a step.
    pub(super) fn add(&mut self, superblock: &Superblock, run: Freed) -> bool {
        let group = |block: u64| {
            block.saturating_sub(superblock.first_data_block.into())
                / u64::from(superblock.blocks_per_group)
        };
        let groups = group(run.start.0)..group(run.start.0 + run.len.max(1) - 1) + 1;
        let known = |last: &Range<u64>| last.start <= groups.start && groups.end <= last.end;
        let more =
            if self.last.as_ref().is_some_and(known) { 0 } else { groups.end - groups.start };
        let count = self.count + more as u32;
        let fits = count <= GROUPS_AT_ONCE || self.count == 0;
        if fits {
            (self.count, self.last) = (count, Some(groups));
        }
        fits
    }
}

impl Writer {
    /// Blocks that one change of a map may change at most, those of freed or claimed data apart:
    /// of each level a node, its new neighbour, and the bitmap and descriptor of that.
    pub(super) const EDIT_CREDITS: u32 = 4 * 6 + 3 + Self::STORE_CREDITS;

    /// Credits for [`Self::insert_run`] of so many blocks, and for storing the inode.
    pub fn insert_credits(&self, live: &Live, len: u64) -> u32 {
        let superblock = self.volume.superblock();
        if live.inode.flags.contains(InodeFlags::EXTENTS) {
            // The root says in its head how many levels are below it.
            let depth = u32::from(u16::from_le_bytes([live.inode.block[6], live.inode.block[7]]));
            return 2 + 4 * (depth + 1) + Self::STORE_CREDITS;
        }
        let tables = len.div_ceil(u64::from(superblock.block_size / 4)) as u32 + 4;
        2 + 3 * tables + Self::STORE_CREDITS
    }

    /// The longest run that [`Self::insert_run`] takes.
    pub fn longest_run(&self, live: &Live, unwritten: bool) -> u64 {
        if live.inode.flags.contains(InodeFlags::EXTENTS) {
            Extent::max_len(unwritten).into()
        } else {
            // So that the tables of a run do not need more credits than small journals have.
            (2 * self.volume.superblock().block_size).into()
        }
    }

    /// The first byte behind all that the inode could map, as its kind of map and the way in which
    /// blocks are counted allow.
    pub fn max_size(&self, inode: &Inode) -> u64 {
        let superblock = self.volume.superblock();
        // What lies in the inode will have a map of the kind that the volume prefers.
        let inline = inode.flags.contains(InodeFlags::INLINE_DATA);
        let preferred = superblock.features.incompat.contains(Incompat::EXTENTS);
        let extents = inode.flags.contains(InodeFlags::EXTENTS) || (inline && preferred);
        max_size(superblock, extents)
    }

    /// Maps blocks that are mapped nowhere yet to the claimed ones, which holes must be, and
    /// charges the inode for them. The caller stores the inode afterwards.
    ///
    /// # Errors
    /// Whatever keeps the map from being read or from growing; nothing has changed then and the
    /// claim is given back.
    pub fn insert_run(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        logical: u64,
        claim: Claim,
        unwritten: bool,
    ) -> Result<()> {
        let (start, len) = (claim.start(), u64::from(claim.len()));
        if len > self.longest_run(live, unwritten) {
            return Err(Error::Invalid(format!("a run of {len} blocks is too long")));
        }
        self.check_count(live, len)?;
        if live.inode.flags.contains(InodeFlags::EXTENTS) {
            let first = u32::try_from(logical).map_err(|_| Error::FileTooBig)?;
            if logical + len > MAX_FILE_BLOCKS {
                return Err(Error::FileTooBig);
            }
            let extent = Extent { logical: first, len: len as u32, start, unwritten };
            self.insert_extent(handle, live, extent, claim)
        } else if unwritten {
            Err(no_unwritten(live))
        } else {
            self.insert_pointers(handle, live, logical, claim)
        }
    }

    /// Whether so many more blocks, and some of a map, can be counted where that is in 32 bits.
    fn check_count(&self, live: &Live, len: u64) -> Result<()> {
        let superblock = self.volume.superblock();
        let more = (len + u64::from(self.insert_credits(live, len))) << (superblock.block_bits - 9);
        let wide = superblock.features.ro_compat.contains(RoCompat::HUGE_FILE);
        let fits = wide || live.inode.blocks + more <= u32::MAX.into();
        if fits { Ok(()) } else { Err(Error::FileTooBig) }
    }

    /// Makes what is mapped in a range written, or unwritten; holes stay. The caller stores the
    /// inode afterwards. The handle may go on in another transaction.
    ///
    /// # Errors
    /// Whatever keeps the map from being read or from growing: what was done until then stays.
    pub fn convert(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        range: Range<u64>,
        unwritten: bool,
    ) -> Result<()> {
        if live.inode.flags.contains(InodeFlags::EXTENTS) {
            self.convert_extents(handle, live, range.start, range.end, unwritten)
        } else if unwritten {
            Err(no_unwritten(live))
        } else {
            Ok(())
        }
    }

    /// Gives back what is mapped in a range, from its end on. The caller stores the inode
    /// afterwards. The handle may go on in another transaction.
    ///
    /// # Errors
    /// As [`Self::convert`].
    pub fn remove(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        range: Range<u64>,
    ) -> Result<()> {
        if live.inode.flags.contains(InodeFlags::INLINE_DATA) {
            Ok(())
        } else if live.inode.flags.contains(InodeFlags::EXTENTS) {
            self.remove_extents(handle, live, range.start, range.end)
        } else {
            self.remove_pointers(handle, live, range.start, range.end)
        }
    }

    /// The run of a file's map that begins at a block, `max` blocks at most.
    pub fn map(&self, live: &Live, first: u64, max: u64) -> Result<Run> {
        self.volume.map(&live.inode, first, max)
    }

    /// Where the block at `logical` should best be: behind the one before it, or near the inode.
    pub fn goal(&self, live: &Live, logical: u64) -> Block {
        let home = || self.home(&live.inode);
        let Some(before) = logical.checked_sub(1) else { return home() };
        if live.inode.flags.contains(InodeFlags::EXTENTS) {
            return self.extent_goal(live, logical).unwrap_or_else(home);
        }
        match self.volume.map(&live.inode, before, 1).map(|run| run.mapping) {
            Ok(Mapping::Data(block)) => Block(block.0 + 1),
            _ => home(),
        }
    }

    fn extent_goal(&self, live: &Live, logical: u64) -> Option<Block> {
        // A goal is a wish: an error will be met by who maps the block.
        let path = self.path(&live.inode, u32::try_from(logical).ok()?).ok()?;
        path.neighbour(&live.inode, logical)
    }

    /// Where the blocks of an inode without any should be.
    pub(super) fn home(&self, inode: &Inode) -> Block {
        self.space.goal(inode.ino, inode.kind == Kind::Regular)
    }

    /// Claims a block for a map. It was not reserved: what the volume keeps back is for such.
    pub(super) fn claim_map_block(&self, goal: Block) -> Result<Claim> {
        self.space.claim(goal, 1, false)
    }

    /// Gives back blocks that the inode was charged for.
    pub(super) fn free(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        freed: Freed,
    ) -> Result<()> {
        self.space.free(handle, freed.start, freed.len)?;
        live.discharge(freed.len, self.volume.superblock());
        Ok(())
    }

    /// Gives back blocks of contents. Of those that went through the journal a replay must not
    /// bring back what was in them, over whatever they are by then.
    pub(super) fn free_contents(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        freed: Freed,
    ) -> Result<()> {
        if self.volume.is_journaled(&live.inode) {
            for block in freed.start.0..freed.start.0 + freed.len {
                handle.forget(Block(block));
            }
        }
        self.free(handle, live, freed)
    }

    /// Has the handle give back contents: credits for a step, and how many blocks that can have.
    pub(super) fn step_back(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<u64> {
        let credits = Self::EDIT_CREDITS + 2 * GROUPS_AT_ONCE;
        if self.volume.is_journaled(&live.inode) {
            self.step(handle, live, credits + FORGOTTEN_AT_ONCE as u32)?;
            Ok(FORGOTTEN_AT_ONCE)
        } else {
            self.step(handle, live, credits)?;
            Ok(u64::MAX)
        }
    }

    /// Has the handle change so many more blocks, in the next transaction if need be: the inode is
    /// stored first, so that what was done so far is complete.
    pub(crate) fn step(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        credits: u32,
    ) -> Result<()> {
        let missing = credits.saturating_sub(handle.credits());
        if missing == 0 || handle.extend(missing)? {
            return Ok(());
        }
        self.store(handle, live)?;
        handle.restart(credits)
    }
}

fn no_unwritten(live: &Live) -> Error {
    Error::Unsupported(format!("{} has no extents, which allocating ahead needs", live.inode.ino))
}

/// The largest size of a file, in bytes, as the kernel computes it.
fn max_size(superblock: &Superblock, extents: bool) -> u64 {
    let bits = superblock.block_bits;
    let huge = superblock.features.ro_compat.contains(RoCompat::HUGE_FILE);
    // Blocks that can be counted, with those of the map.
    let counted = if huge { (1 << 48) - 1 } else { u64::from(u32::MAX) >> (bits - 9) };
    let blocks = if extents {
        MAX_FILE_BLOCKS.min(counted)
    } else {
        let per_block_bits = bits - 2;
        let reach = indirect::reach(per_block_bits);
        reach.min(counted - indirect::tables(reach.min(counted), per_block_bits))
    };
    (blocks << bits).min(i64::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_counted_once_in_a_row() {
        let raw = crate::disk::superblock::tests::sound();
        let superblock = Superblock::try_from(&raw).unwrap();
        let mut groups = Groups::default();
        let run = |start, len| Freed { start: Block(start), len };
        assert!(groups.add(&superblock, run(100, 10)));
        assert!(groups.add(&superblock, run(51, 10)));
        assert_eq!(groups.count, 1);
        assert!(groups.add(&superblock, run(8000, 8192 * 3)));
        assert_eq!(groups.count, 5);
        assert!(groups.add(&superblock, run(8192 * 9, 8192 * 10)));
        assert!(!groups.add(&superblock, run(8192 * 30, 8192 * 10)));
    }
}
