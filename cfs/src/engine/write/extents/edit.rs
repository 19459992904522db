//! Extents that come, change between unwritten and written, and go.

use super::Path;
use crate::alloc::Claim;
use crate::disk::extent::Extent;
use crate::disk::extent::edit::Entry;
use crate::engine::write::map::{Freed, Groups};
use crate::engine::write::{Live, Writer};
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

/// Extents that are removed in one change of a leaf.
const EXTENTS_AT_ONCE: usize = 64;

/// Entries of extents, a few.
struct Entries {
    list: [Entry; 3],
    count: usize,
}

impl Entries {
    fn new(extents: [Option<Extent>; 3]) -> Self {
        let mut entries = Self { list: [[0; 12]; 3], count: 0 };
        for extent in extents.into_iter().flatten() {
            entries.list[entries.count] = extent.entry();
            entries.count += 1;
        }
        entries
    }

    fn get(&self) -> &[Entry] {
        &self.list[..self.count]
    }
}

impl Writer {
    /// Maps a run of blocks that is mapped nowhere yet, and joins it with its neighbours.
    pub(in crate::engine::write) fn insert_extent(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        new: Extent,
        claim: Claim,
    ) -> Result<()> {
        let path = self.path(&live.inode, new.logical)?;
        let leaf = path.leaf(&live.inode)?;
        let at = path.at().map_or(0, |at| at + 1);
        let left = Self::extent_at(&leaf, at.checked_sub(1));
        let right = Self::extent_at(&leaf, Some(at));
        let after = right.map_or(path.end, |right| right.logical.into());
        if left.is_some_and(|left| left.end() > new.logical.into()) || new.end() > after {
            let why = format!("block {} would be mapped twice", new.logical);
            return Err(Error::corrupt(live.inode.ino, why));
        }
        let (mut range, mut merged) = (at..at, new);
        if let Some(joined) = left.and_then(|left| left.joined(&merged)) {
            merged = joined;
            range.start -= 1;
        }
        if let Some(joined) = right.and_then(|right| merged.joined(&right)) {
            merged = joined;
            range.end += 1;
        }
        let splice = self.prepare(live, path, range, 1)?;
        claim.commit(handle).map_err(|error| handle.fail(error))?;
        live.charge(new.len.into(), self.volume.superblock());
        self.splice(handle, live, splice, &[merged.entry()])
    }

    /// Makes the extents between two blocks of a file written or unwritten; holes stay.
    pub(in crate::engine::write) fn convert_extents(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        first: u64,
        end: u64,
        unwritten: bool,
    ) -> Result<()> {
        let mut next = first;
        while let Some(logical) = u32::try_from(next).ok().filter(|_| next < end) {
            self.step(handle, live, Self::EDIT_CREDITS)?;
            let path = self.path(&live.inode, logical)?;
            let leaf = path.leaf(&live.inode)?;
            let holds = |extent: &Extent| extent.end() > next;
            let at = match Self::extent_at(&leaf, path.at()).filter(holds) {
                Some(_) => path.at().unwrap_or(0),
                None => path.at().map_or(0, |at| at + 1),
            };
            let Some(extent) = Self::extent_at(&leaf, Some(at)) else {
                next = path.end;
                continue;
            };
            next = extent.end();
            let Some(part) = extent.part(logical.into(), end) else { continue };
            if extent.unwritten == unwritten {
                continue;
            }
            let len = part.len.min(Extent::max_len(unwritten));
            let mut middle = Extent { len, unwritten, ..part };
            next = middle.end();
            let before = extent.part(0, middle.logical.into());
            let after = extent.part(middle.end(), u64::MAX);
            let mut range = at..at + 1;
            let left = Self::extent_at(&leaf, at.checked_sub(1)).filter(|_| before.is_none());
            if let Some(joined) = left.and_then(|left| left.joined(&middle)) {
                middle = joined;
                range.start -= 1;
            }
            let right = Self::extent_at(&leaf, Some(at + 1)).filter(|_| after.is_none());
            if let Some(joined) = right.and_then(|right| middle.joined(&right)) {
                middle = joined;
                range.end += 1;
            }
            let entries = Entries::new([before, Some(middle), after]);
            let splice = self.prepare(live, path, range, entries.count)?;
            self.splice(handle, live, splice, entries.get())?;
        }
        Ok(())
    }

    /// Removes what is mapped between two blocks of a file, from the end on.
    pub(in crate::engine::write) fn remove_extents(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        first: u64,
        end: u64,
    ) -> Result<()> {
        let mut end = end.min(1 << 32);
        while end > first {
            let most = self.step_back(handle, live)?;
            let path = self.path(&live.inode, (end - 1) as u32)?;
            let last = Self::extent_at(&path.leaf(&live.inode)?, path.at());
            let Some(last) = last.filter(|last| last.end() > first) else { break };
            end = end.min(last.end());
            let first = first.max(end.saturating_sub(most));
            let mut freed = [Freed { start: Block(0), len: 0 }; EXTENTS_AT_ONCE];
            let Some(cut) = self.cut(live, &path, first, end, &mut freed)? else { break };
            end = cut.next;
            let splice = self.prepare(live, path, cut.range, cut.left.count)?;
            self.splice(handle, live, splice, cut.left.get())?;
            for &freed in &freed[..cut.freed] {
                self.free_contents(handle, live, freed).map_err(|error| handle.fail(error))?;
            }
        }
        Ok(())
    }

    /// Looks what goes of a leaf, from the block before `end` back to `first` at most.
    fn cut(
        &self,
        live: &Live,
        path: &Path,
        first: u64,
        end: u64,
        freed: &mut [Freed; EXTENTS_AT_ONCE],
    ) -> Result<Option<Cut>> {
        let leaf = path.leaf(&live.inode)?;
        let Some(last) = path.at() else { return Ok(None) };
        let mut groups = Groups::default();
        let mut count = 0;
        let mut start = last + 1;
        while let Some(at) = start.checked_sub(1).filter(|_| count < freed.len()) {
            let Some(part) = leaf.extent(at).part(first, end) else { break };
            let run = Freed { start: part.start, len: part.len.into() };
            if !groups.add(self.volume.superblock(), run) {
                break;
            }
            freed[count] = run;
            count += 1;
            start = at;
        }
        if count == 0 {
            // What lies before `end` ends before `first`, or it begins after a hole.
            return Ok(None);
        }
        let (from, to) = (leaf.extent(start), leaf.extent(last));
        let left = Entries::new([from.part(0, first), to.part(end, u64::MAX), None]);
        let next = first.max(from.logical.into());
        Ok(Some(Cut { range: start..last + 1, left, freed: count, next }))
    }
}

/// What goes of a leaf.
struct Cut {
    range: std::ops::Range<usize>,
    /// What is left of the first and of the last extent.
    left: Entries,
    /// Runs that go.
    freed: usize,
    /// The end of what is to be looked at next.
    next: u64,
}
