//! Extents that move to other places of their file.

use crate::disk::extent::Extent;
use crate::disk::extent::edit::Entry;
use crate::engine::write::{Live, Writer};
use crate::journal::Handle;
use crate::limits::MAX_FILE_BLOCKS;
use crate::{Error, Result};

impl Writer {
    /// Moves what is mapped from block `from` on down by `by` blocks; those before it are a hole.
    pub(in crate::engine::write) fn shift_down(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        from: u64,
        by: u64,
    ) -> Result<()> {
        let mut next = from;
        while let Ok(logical) = u32::try_from(next) {
            self.step(handle, live, Self::EDIT_CREDITS)?;
            let path = self.path(&live.inode, logical)?;
            let leaf = path.leaf(&live.inode)?;
            let starts = |at: &usize| u64::from(leaf.key(*at)) >= next;
            let first = path.at().filter(starts).unwrap_or(path.at().map_or(0, |at| at + 1));
            next = path.end;
            if first == leaf.len() {
                continue;
            }
            let moved = |at: usize| {
                let extent = leaf.extent(at);
                Extent { logical: extent.logical.wrapping_sub(by as u32), ..extent }
            };
            let mut entries: Vec<Entry> = (first..leaf.len()).map(|at| moved(at).entry()).collect();
            let mut range = first..leaf.len();
            let left = Self::extent_at(&leaf, first.checked_sub(1));
            if let Some(joined) = left.and_then(|left| left.joined(&moved(first))) {
                entries[0] = joined.entry();
                range.start -= 1;
            }
            let splice = self.prepare(live, path, range, entries.len())?;
            self.splice(handle, live, splice, &entries)?;
        }
        Ok(())
    }

    /// Moves what is mapped from block `from` on up by `by` blocks.
    ///
    /// # Errors
    /// [`Error::FileTooBig`] when the last one has no room there; nothing has changed then.
    pub(in crate::engine::write) fn shift_up(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        from: u64,
        by: u64,
    ) -> Result<()> {
        let last = {
            let path = self.path(&live.inode, u32::MAX)?;
            let leaf = path.leaf(&live.inode)?;
            Self::extent_at(&leaf, path.at()).map_or(0, |extent| extent.end())
        };
        if last > from && last + by > MAX_FILE_BLOCKS {
            return Err(Error::FileTooBig);
        }
        self.split_extent(handle, live, from)?;
        let mut end = 1 << 32;
        while end > from {
            self.step(handle, live, Self::EDIT_CREDITS)?;
            let path = self.path(&live.inode, (end - 1) as u32)?;
            let leaf = path.leaf(&live.inode)?;
            let Some(at) = path.at() else { break };
            let first = (0..=at).rev().take_while(|&at| u64::from(leaf.key(at)) >= from).last();
            let Some(first) = first else { break };
            end = leaf.key(first).into();
            let moved = |at: usize| {
                let extent = leaf.extent(at);
                Extent { logical: extent.logical + by as u32, ..extent }.entry()
            };
            let entries: Vec<Entry> = (first..=at).map(moved).collect();
            let splice = self.prepare(live, path, first..at + 1, entries.len())?;
            self.splice(handle, live, splice, &entries)?;
        }
        Ok(())
    }

    /// Has an extent begin at a block that lies within one.
    fn split_extent(&self, handle: &mut Handle<'_>, live: &mut Live, logical: u64) -> Result<()> {
        let Ok(block) = u32::try_from(logical) else { return Ok(()) };
        self.step(handle, live, Self::EDIT_CREDITS)?;
        let path = self.path(&live.inode, block)?;
        let leaf = path.leaf(&live.inode)?;
        let extent = Self::extent_at(&leaf, path.at());
        let Some(extent) = extent.filter(|e| e.end() > logical && e.logical < block) else {
            return Ok(());
        };
        let parts = [extent.part(0, logical), extent.part(logical, u64::MAX)];
        let entries: Vec<Entry> = parts.iter().flatten().map(Extent::entry).collect();
        let at = path.at().unwrap_or(0);
        let splice = self.prepare(live, path, at..at + 1, entries.len())?;
        self.splice(handle, live, splice, &entries)
    }
}
