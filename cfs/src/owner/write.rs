//! Writing to pages: into frames, with room reserved on disk, and everybody's view of the file
//! brought up to date before the answer.

mod input;
mod row;

use std::ops::Range;
use std::sync::Arc;

use oslet::id::PageRef;
use oslet::region::Bytes;

use super::Owner;
use super::dirty::File;
use super::frames::Blocks;
use super::pages::{PAGE, key};
use crate::change::{WriteOptions, Written};
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::engine::Mapping;
use crate::engine::write::{ALL, Live};
use crate::id::Ino;
use crate::{Caller, Error, Result};
use input::Input;

/// Bytes written with the inode's lock held once.
const AT_ONCE: u64 = 64 * PAGE;
/// How often a write is tried again for which there was no room in memory.
const TRIES: usize = 16;

/// A page of a write: which of its bytes, and what has to be known of its blocks.
#[derive(Clone, Copy, Debug)]
struct Part {
    page: u64,
    within: usize,
    len: usize,
    /// Blocks that are touched.
    blocks: u8,
    /// Those of them that need room on disk.
    reserve: u8,
    /// All blocks of the page lie in holes.
    hole: bool,
    /// Something is linked under it.
    shown: bool,
}

impl Part {
    /// Whether it is a whole page that nothing shows.
    fn is_new(&self) -> bool {
        self.len == PAGE as usize && !self.shown
    }
}

impl Owner {
    /// Writes to a file: `pieces` one after the other from `offset` on, or behind its end.
    ///
    /// Fewer bytes than there are were written when the volume is full or a page could not be
    /// read; the error comes when nothing was.
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        pieces: &[Bytes<'_>],
        options: WriteOptions,
    ) -> Result<Written> {
        self.noting(ino, self.write_file(ino, offset, pieces, options))
    }

    pub(super) fn write_file(
        &self,
        ino: Ino,
        offset: u64,
        pieces: &[Bytes<'_>],
        options: WriteOptions,
    ) -> Result<Written> {
        let file = match self.files.find(ino) {
            Some(file) if self.write_again(&file, offset, pieces, options)? => {
                return Ok(Written { offset, len: pieces.iter().map(Bytes::len).sum() });
            }
            Some(file) => file,
            None => self.files.get(&self.cell(ino)?),
        };
        let (seen, written) = {
            let _order = file.order.lock();
            let (journaled, sync) = {
                let live = file.cell.read();
                let sync = self.writer()?.is_sync(&live.inode);
                (self.volume.is_journaled(&live.inode), sync)
            };
            let durable = options.sync || options.data_sync || sync;
            let seen = durable.then(|| (self.errors.sample(Some(ino)), !(options.sync || sync)));
            let mut written = self.write_in_order(&file, offset, pieces, options);
            if journaled && written.is_ok() {
                written = self.journal_contents(&file).and(written);
            }
            (seen, written)
        };
        // A file that was written has something to write back, and is looked at behind that.
        if !written.as_ref().is_ok_and(|written| written.len > 0) {
            self.files.put(file);
        }
        let written = written?;
        if let Some((seen, data_alone)) = seen.filter(|_| written.len > 0)
            && let (_, Some(errno)) = self.sync(ino, data_alone, seen)?
        {
            return Err(Error::Owner(errno));
        }
        Ok(written)
    }

    fn write_in_order(
        &self,
        file: &Arc<File>,
        offset: u64,
        pieces: &[Bytes<'_>],
        options: WriteOptions,
    ) -> Result<Written> {
        let writer = self.writer()?;
        let len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if options.kill_privileges && len > 0 {
            self.kill_privileges(file)?;
        }
        let mut input = Input { pieces, used: 0 };
        let mut written = Written { offset, len: 0 };
        let mut tries = 0;
        loop {
            self.wait_for_room()?;
            let mut live = file.cell.write();
            if written.len == 0 {
                written.offset = self.begin_write(&mut live, offset, len, options)?;
            }
            let most = writer.max_size(&live.inode).saturating_sub(written.offset);
            let at = written.offset + written.len as u64;
            let part = (len.min(most) - written.len as u64).min(AT_ONCE - at % AT_ONCE);
            if part == 0 {
                return Ok(written);
            }
            let mut done = 0;
            let result = self.write_part(file, &mut live, at, part, &mut input, &mut done, options);
            if done > 0 && self.wrote(file, &mut live, at + done as u64).is_some() {
                self.publish_live(&live)?;
            }
            self.write_behind(file, &mut live);
            written.len += done;
            match result {
                Ok(()) => {}
                Err(Error::Exhausted(_)) if tries < TRIES => {
                    // Pages that wait to be written are in the way.
                    tries += 1;
                    drop(live);
                    self.flusher.wait_for_room();
                }
                Err(_) if written.len > 0 => return Ok(written),
                Err(error) => return Err(error),
            }
        }
    }

    /// Checks a write, and does what comes before its first byte. Returns where that goes.
    fn begin_write(
        &self,
        live: &mut Live,
        offset: u64,
        len: u64,
        options: WriteOptions,
    ) -> Result<u64> {
        let inode = &live.inode;
        if live.gone {
            return Err(Error::Stale(inode.ino.to_string()));
        }
        check_writable(inode)?;
        // A file that may only be appended to is no other here: who opened it before may write.
        let offset = if options.append { inode.size } else { offset };
        if len > 0 && offset >= self.writer()?.max_size(inode) {
            return Err(Error::FileTooBig);
        }
        if len > 0 {
            self.outline(live, ALL, options.privileged)?;
        }
        Ok(offset)
    }

    /// Contents in the inode move to a block: those before `size`, of a file that is to be cut.
    pub(super) fn outline(&self, live: &mut Live, size: u64, privileged: bool) -> Result<()> {
        let nobody = Caller { uid: u32::MAX, gid: u32::MAX, privileged: false };
        let caller = if privileged { Caller::ROOT } else { nobody };
        self.writer()?.outline(&caller, live, size)
    }

    /// Writes some pages' worth, as far as it gets: `done` counts the bytes.
    fn write_part(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        offset: u64,
        len: u64,
        input: &mut Input<'_>,
        done: &mut usize,
        options: WriteOptions,
    ) -> Result<()> {
        if offset > live.inode.size {
            self.settle_tail(file, &live.inode)?;
        }
        let parts = self.parts(&live.inode, offset..offset + len)?;
        let needs = |part: &Part| u64::from(part.reserve.count_ones());
        let (granted, short) = self.reserve_for(&parts, needs, options.privileged);
        let mut result = short.map_or(Ok(()), Err);
        let mut rest = &parts[..granted];
        while let Some((part, others)) = rest.split_first() {
            let new = others.iter().take_while(|part| part.is_new()).count();
            let row = if part.is_new() { 1 + new } else { 1 };
            let now = &rest[..row];
            let (count, written) = match self.write_row(file, live.inode.ino, now, input) {
                // There may be room for one.
                (0, Ok(()) | Err(Error::Exhausted(_))) => {
                    let written = self.write_page(file, &live.inode, part, input);
                    (usize::from(written.is_ok()), written)
                }
                written => written,
            };
            *done += now[..count].iter().map(|part| part.len).sum::<usize>();
            live.reserved += now[..count].iter().map(needs).sum::<u64>();
            rest = &rest[count..];
            if let Err(error) = written {
                result = Err(error);
                break;
            }
        }
        let unused = rest.iter().map(needs).sum();
        self.unreserve(unused);
        result
    }

    /// Reserves room for as many of the parts as there is room for.
    fn reserve_for(
        &self,
        parts: &[Part],
        needs: impl Fn(&Part) -> u64,
        privileged: bool,
    ) -> (usize, Option<Error>) {
        let all = parts.iter().map(&needs).sum();
        if self.reserve(all, privileged).is_ok() {
            return (parts.len(), None);
        }
        for (index, part) in parts.iter().enumerate() {
            if let Err(error) = self.reserve(needs(part), privileged) {
                return (index, Some(error));
            }
        }
        (parts.len(), None)
    }

    /// The pages of a range of bytes, and what is known of their blocks.
    fn parts(&self, inode: &Inode, range: Range<u64>) -> Result<Vec<Part>> {
        let (first, end) = (range.start / PAGE, range.end.div_ceil(PAGE));
        let mut parts = Vec::with_capacity((end - first) as usize);
        let mut asked = false;
        let index = self.pages.lock();
        for page in first..end {
            let start = (page * PAGE).max(range.start);
            let len = ((page + 1) * PAGE).min(range.end) - start;
            let within = (start - page * PAGE) as usize;
            let blocks = self.blocks_of(within, len as usize);
            let found = self.find_in(&index, inode.ino, page);
            let held = found.and_then(|page| self.states.get(page));
            let known = held.map_or(0, |held| held.dirty | held.writing);
            asked |= blocks & !known != 0;
            let (len, reserve, shown) = (len as usize, blocks & !known, found.is_some());
            parts.push(Part { page, within, len, blocks, reserve, hole: false, shown });
        }
        drop(index);
        // Whoever only changes what is dirty already does not look at the map.
        if asked {
            let holes = self.holes(inode, first, end)?;
            for (part, holes) in parts.iter_mut().zip(holes) {
                part.reserve &= holes;
                part.hole = holes == self.all_blocks();
            }
        }
        Ok(parts)
    }

    /// Which blocks of pages are on disk nowhere.
    pub(super) fn holes(&self, inode: &Inode, first: u64, end: u64) -> Result<Vec<u8>> {
        let bits = self.volume.superblock().block_bits;
        let per_page = PAGE >> bits;
        let (start, count) = (first * per_page, (end - first) * per_page);
        let mut holes = vec![0; (end - first) as usize];
        for run in self.volume.runs(inode, start, count) {
            let run = run?;
            if run.mapping == Mapping::Hole {
                for block in run.logical.max(start)..run.end().min(start + count) {
                    let block = block - start;
                    holes[(block / per_page) as usize] |= 1 << (block % per_page);
                }
            }
        }
        Ok(holes)
    }

    /// Puts bytes into one page, which is dirty then.
    fn write_page(
        &self,
        file: &Arc<File>,
        inode: &Inode,
        part: &Part,
        input: &mut Input<'_>,
    ) -> Result<()> {
        const EVICTIONS: usize = 64;
        let own = self.arena.region().own();
        for _ in 0..EVICTIONS {
            let shown = self.find(inode.ino, part.page);
            if let Some(page) = shown.filter(|&page| page != self.zeros) {
                if self.make_dirty(file, part.page, page, part.blocks, part.reserve) {
                    return input.take(part.len, |at, bytes| {
                        Ok(own.overwrite(page, part.within + at, bytes)?)
                    });
                }
                // Taken out in between.
                continue;
            }
            let start = part.page * PAGE;
            let whole = part.within == 0
                && (part.len as u64 == PAGE || start + part.len as u64 >= inode.size);
            if whole || part.hole || shown.is_some() || start >= inode.size {
                return self.write_new(file, inode.ino, part, input);
            }
            self.fill_claimed(inode, part.page, part.page + 1)?;
        }
        Err(Error::Exhausted(format!("{}: page {} does not stay in memory", inode.ino, part.page)))
    }

    /// Puts bytes into a page that is not cached, among zeros.
    fn write_new(
        &self,
        file: &Arc<File>,
        ino: Ino,
        part: &Part,
        input: &mut Input<'_>,
    ) -> Result<()> {
        let key = key(ino, part.page)?;
        let mut frame = self.frame()?;
        let (from, to) = (part.within, part.within + part.len);
        frame.put(0, Bytes::Zeros(from))?;
        frame.put(to, Bytes::Zeros(PAGE as usize - to))?;
        // A failure from here on would lose input; none of it can fail but linking.
        let mut copy = Input { ..*input };
        copy.take(part.len, |at, piece| Ok(frame.put(from + at, piece)?))?;
        let blocks = Blocks { dirty: part.blocks, reserved: part.reserve, writing: 0 };
        let page = self.link_with(key, frame.publish(), blocks)?;
        *input = copy;
        self.files.add(file, part.page, &[page]);
        Ok(())
    }

    /// Marks blocks of a cached page as dirty; false if it has been taken out.
    fn make_dirty(
        &self,
        file: &Arc<File>,
        number: u64,
        page: PageRef,
        blocks: u8,
        reserve: u8,
    ) -> bool {
        let marked = self.states.change(page, |held| Blocks {
            dirty: held.dirty | blocks,
            reserved: held.reserved | reserve,
            ..held
        });
        match marked {
            Some(before) => {
                if before.dirty == 0 {
                    self.files.add(file, number, &[page]);
                }
                true
            }
            None => false,
        }
    }

    /// Before a file grows: what lies on disk behind its end, in the same block, becomes zeros.
    pub(super) fn settle_tail(&self, file: &Arc<File>, inode: &Inode) -> Result<()> {
        let (size, block) = (inode.size, u64::from(self.volume.superblock().block_size));
        if size % block == 0 || inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Ok(());
        }
        let page = size / PAGE;
        let blocks = self.blocks_of((size % PAGE) as usize, 1);
        let known = self.held(inode.ino, page).map_or(0, |held| held.dirty);
        if blocks & known != 0 || self.holes(inode, page, page + 1)?[0] & blocks != 0 {
            return Ok(());
        }
        self.dirty_cached(file, inode, page, blocks)
    }

    /// Brings a page in and marks blocks of it, which have their place on disk, as dirty.
    pub(super) fn dirty_cached(
        &self,
        file: &Arc<File>,
        inode: &Inode,
        page: u64,
        blocks: u8,
    ) -> Result<()> {
        // Each turn brings the page in again that was taken out.
        for _ in 0..TRIES {
            match self.find(inode.ino, page) {
                Some(shown) if shown == self.zeros => return Ok(()),
                Some(shown) if self.make_dirty(file, page, shown, blocks, 0) => return Ok(()),
                Some(_) => {}
                None => drop(self.fill_claimed(inode, page, page + 1)?),
            }
        }
        Err(Error::Exhausted(format!("{}: page {page} does not stay in memory", inode.ino)))
    }

    /// What the frame of a cached page holds.
    pub(super) fn held(&self, ino: Ino, page: u64) -> Option<Blocks> {
        self.states.get(self.find(ino, page)?)
    }

    /// The blocks that some bytes of a page lie in.
    pub(super) fn blocks_of(&self, within: usize, len: usize) -> u8 {
        let bits = self.volume.superblock().block_bits;
        let (first, last) = (within >> bits, (within + len.max(1) - 1) >> bits);
        (first..=last).fold(0, |mask, block| mask | 1 << block)
    }

    /// All blocks of a page.
    pub(super) fn all_blocks(&self) -> u8 {
        self.blocks_of(0, PAGE as usize)
    }

    /// Waits while too many pages are dirty.
    fn wait_for_room(&self) -> Result<()> {
        while self.states.busy() >= self.flusher.limits.most {
            self.writer()?;
            self.flusher.wait_for_room();
        }
        Ok(())
    }
}

/// That an inode is a file whose contents may be changed.
pub(super) fn check_writable(inode: &Inode) -> Result<()> {
    match inode.kind {
        Kind::Regular => {}
        Kind::Directory => return Err(Error::IsADirectory),
        _ => return Err(Error::Invalid(format!("{} is no regular file", inode.ino))),
    }
    if inode.flags.contains(InodeFlags::ENCRYPTED) {
        return Err(Error::Encrypted(inode.ino.to_string()));
    }
    if inode.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::VERITY) {
        return Err(Error::NotPermitted);
    }
    Ok(())
}
