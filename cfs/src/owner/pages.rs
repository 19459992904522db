//! Bringing pages in, and taking idle ones out when the budget is used up.

use std::collections::{HashMap, HashSet};

use oslet::id::PageRef;
use oslet::region::Rw;
use oslet::sync::AtomicU64;
use parking_lot::{Condvar, Mutex};

use super::{Owner, ahead};
use crate::cache::{Key, PageIndex};
use crate::disk::inode::{Inode, InodeFlags};
use crate::engine::Mapping;
use crate::id::Ino;
use crate::{Error, Result};

pub(super) const PAGE: u64 = oslet::limits::FRAME_SIZE as u64;
/// Pages read from the device at a time.
const FILL_PAGES: u64 = ahead::CHUNK;
/// Pages that somebody is reading from the device right now.
#[derive(Default)]
pub(super) struct Fills {
    pages: Mutex<HashSet<(Ino, u64)>>,
    done: Condvar,
}

/// Lets the waiters for claimed pages go on, however the filling ended.
struct Release<'f> {
    fills: &'f Fills,
    ino: Ino,
    pages: std::ops::Range<u64>,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let mut pages = self.fills.pages.lock();
        for page in self.pages.clone() {
            pages.remove(&(self.ino, page));
        }
        self.fills.done.notify_all();
    }
}

impl Owner {
    /// References to `count` pages of a file from `first` on, read in where they are not cached;
    /// fewer at its end. What a reader from front to back will want next is read meanwhile.
    pub(super) fn read_pages(&self, ino: Ino, first: u64, count: u64) -> Result<Vec<PageRef>> {
        self.with_inode(ino, |inode| self.read_pages_of(inode, first, count))
    }

    fn read_pages_of(&self, inode: &Inode, first: u64, count: u64) -> Result<Vec<PageRef>> {
        let ino = inode.ino;
        let end = inode.size.div_ceil(PAGE);
        let last = first.saturating_add(count).min(end);
        let mut found = HashMap::new();
        let mut seen = false;
        let mut at = first;
        while at < last {
            if let Some(page) = self.find(ino, at) {
                found.insert(at, page);
                at += 1;
                continue;
            }
            let mut until = last;
            if !std::mem::replace(&mut seen, true) {
                let follows = at > 0 && self.find(ino, at - 1).is_some();
                let (_, budget) = self.usage();
                let most = budget as u64 / 8;
                let miss = ahead::Miss { ino, pages: at..last, follows, end, most };
                if !self.ahead.missed(&miss) && follows {
                    // Nobody else reads ahead: in the same turn, then.
                    until = last.saturating_add(FILL_PAGES).min(end);
                }
            }
            self.fill(inode, at, until.min(at + self.fill_pages()), &mut found)?;
            // What another thread was reading is found, or read, in the next turn.
            while found.contains_key(&at) {
                at += 1;
            }
        }
        Ok((first..last).map_while(|page| found.get(&page).copied()).collect())
    }

    /// Brings pages in that nobody waits for yet.
    pub(super) fn bring_in(&self, ino: Ino, pages: std::ops::Range<u64>) -> Result<()> {
        self.with_inode(ino, |inode| self.bring_in_of(inode, pages))
    }

    fn bring_in_of(&self, inode: &Inode, pages: std::ops::Range<u64>) -> Result<()> {
        let ino = inode.ino;
        let end = pages.end.min(inode.size.div_ceil(PAGE));
        let mut at = pages.start;
        while at < end {
            let claimed = self.fills.pages.lock().contains(&(ino, at));
            if claimed || self.find(ino, at).is_some() {
                at += 1;
                continue;
            }
            let mut found = HashMap::new();
            self.fill(inode, at, end.min(at + self.fill_pages()), &mut found)?;
            at += (found.len() as u64).max(1);
        }
        Ok(())
    }

    /// Pages to read at a time: a small cache is not swept out for one of them.
    fn fill_pages(&self) -> u64 {
        let (_, budget) = self.usage();
        FILL_PAGES.min(budget as u64 / 4).max(1)
    }

    pub(super) fn find(&self, ino: Ino, page: u64) -> Option<PageRef> {
        self.find_in(&self.pages.lock(), ino, page)
    }

    /// As [`Self::find`], for who looks for many.
    pub(super) fn find_in(
        &self,
        index: &PageIndex<Rw<AtomicU64>>,
        ino: Ino,
        page: u64,
    ) -> Option<PageRef> {
        index.locate(Key::new(ino, page)?).map(|(_, page)| page)
    }

    /// Reads the pages from `first` to before `end` that nobody else is reading, as far as they
    /// follow one another. Waits for the others if the first is among them.
    fn fill(
        &self,
        inode: &Inode,
        first: u64,
        end: u64,
        found: &mut HashMap<u64, PageRef>,
    ) -> Result<()> {
        let ino = inode.ino;
        let claimed = {
            let mut pages = self.fills.pages.lock();
            if pages.contains(&(ino, first)) {
                self.fills.done.wait(&mut pages);
                return Ok(());
            }
            let free =
                |page: &u64| !pages.contains(&(ino, *page)) && self.find(ino, *page).is_none();
            let until = (first + 1..end).take_while(free).last().map_or(first + 1, |last| last + 1);
            pages.extend((first..until).map(|page| (ino, page)));
            first..until
        };
        let release = Release { fills: &self.fills, ino, pages: claimed.clone() };
        let filled = self.fill_claimed(inode, claimed.start, claimed.end);
        drop(release);
        found.extend(claimed.zip(filled?));
        Ok(())
    }

    /// Links the pages of a claimed range: holes to the page of zeros, whole pages that lie
    /// together on the device by reading them into frames, the rest by assembling them.
    pub(super) fn fill_claimed(&self, inode: &Inode, first: u64, end: u64) -> Result<Vec<PageRef>> {
        let holes = self.hole_pages(inode, first, end)?;
        let mut refs = Vec::with_capacity(holes.len());
        let mut at = first;
        while at < end {
            let hole = holes[(at - first) as usize];
            let like = |page: &u64| holes[(page - first) as usize] == hole;
            let until = (at..end).take_while(like).last().map_or(end, |last| last + 1);
            if hole {
                for page in at..until {
                    refs.push(self.link_zeros(key(inode.ino, page)?)?);
                }
                at = until;
                continue;
            }
            let whole = self.whole_pages(inode, at, until)?;
            match whole {
                Some((offset, count)) => {
                    self.make_room(count)?;
                    match self.volume.source().read_pages(offset, count)? {
                        Some(pages) => {
                            let linked = self.link_all(inode.ino, at, &pages)?;
                            at += linked.len() as u64;
                            refs.extend(linked);
                        }
                        None => at = self.assemble(inode, at, at + count as u64, &mut refs)?,
                    }
                }
                // A page of parts (small blocks, the file's end, contents in the inode): alone.
                None => at = self.assemble(inode, at, at + 1, &mut refs)?,
            }
        }
        Ok(refs)
    }

    fn link_all(&self, ino: Ino, first: u64, pages: &[PageRef]) -> Result<Vec<PageRef>> {
        let mut linked = Vec::with_capacity(pages.len());
        for (number, &page) in (first..).zip(pages) {
            let key = match key(ino, number) {
                Ok(key) => key,
                Err(error) => {
                    self.arena.retire(&pages[linked.len()..]);
                    return Err(error);
                }
            };
            match self.link(key, page) {
                Ok(page) => linked.push(page),
                Err(error) => {
                    self.arena.retire(&pages[linked.len() + 1..]);
                    return Err(error);
                }
            }
        }
        Ok(linked)
    }

    /// Where pages from `first` on lie together on the device, whole, and how many.
    fn whole_pages(&self, inode: &Inode, first: u64, end: u64) -> Result<Option<(u64, usize)>> {
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Ok(None);
        }
        // The file's last page may be followed by anything on the device.
        let end = end.min(inode.size / PAGE);
        let bits = self.volume.superblock().block_bits;
        let start = (first * PAGE) >> bits;
        if end <= first {
            return Ok(None);
        }
        let blocks = ((end * PAGE) >> bits).max(start + 1) - start;
        let run = self.volume.map(inode, start, blocks)?;
        let Mapping::Data(block) = run.mapping else { return Ok(None) };
        let skipped = first * PAGE - (run.logical << bits);
        let at_home = match self.volume.is_journaled(inode) {
            true => self.volume.blocks_at_home(block, run.len),
            false => run.len,
        };
        let bytes = (at_home << bits).saturating_sub(skipped);
        let count = (bytes / PAGE).min(end - first) as usize;
        Ok((count > 0).then_some(((block.0 << bits) + skipped, count)))
    }

    /// Reads pages through the engine and copies them into frames. Returns the page behind them.
    fn assemble(
        &self,
        inode: &Inode,
        first: u64,
        end: u64,
        refs: &mut Vec<PageRef>,
    ) -> Result<u64> {
        let mut bytes = vec![0; ((end - first) * PAGE) as usize];
        // Short at the file's end: the rest of the last page stays zero.
        self.volume.read(inode, first * PAGE, &mut bytes)?;
        for (page, chunk) in (first..end).zip(bytes.chunks(PAGE as usize)) {
            let mut frame = self.frame()?;
            frame.bytes()?.fill().copy_from_slice(chunk);
            refs.push(self.link(key(inode.ino, page)?, frame.publish())?);
        }
        Ok(end)
    }

    /// Which pages lie in holes altogether.
    fn hole_pages(&self, inode: &Inode, first: u64, end: u64) -> Result<Vec<bool>> {
        let mut holes = vec![true; (end - first) as usize];
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            holes.fill(false);
            return Ok(holes);
        }
        let block = u64::from(self.volume.superblock().block_size);
        let start = first * PAGE / block;
        let blocks = (end * PAGE).div_ceil(block) - start;
        for run in self.volume.runs(inode, start, blocks) {
            let run = run?;
            if let Mapping::Data(_) = run.mapping {
                let from = (run.logical * block / PAGE).max(first) - first;
                let to = (run.end() * block).div_ceil(PAGE).min(end) - first;
                holes[from as usize..to.max(from) as usize].fill(false);
            }
        }
        Ok(holes)
    }
}

pub(super) fn key(ino: Ino, page: u64) -> Result<Key> {
    let beyond = || Error::corrupt(ino, format!("page {page} is beyond every file's end"));
    Key::new(ino, page).ok_or_else(beyond)
}
