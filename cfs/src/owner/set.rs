//! Sizes and allocation: what becomes of cached pages when blocks come and go.

use std::ops::Range;
use std::sync::Arc;

use oslet::region::Bytes;

use super::Owner;
use super::dirty::File;
use super::frames::Blocks;
use super::pages::PAGE;
use super::write::check_writable;
use crate::cache::InodeRecord;
use crate::disk::inode::{InodeFlags, Kind};
use crate::engine::write::{self, ALL, Allocate, Live, now};
use crate::id::Ino;
use crate::{Caller, Error, Result};

/// Modes of fallocate(2).
const KEEP_SIZE: u32 = 0x01;
const PUNCH_HOLE: u32 = 0x02;
const COLLAPSE_RANGE: u32 = 0x08;
const ZERO_RANGE: u32 = 0x10;
const INSERT_RANGE: u32 = 0x20;

const MODE_SETUID: u16 = 0o4000;
const MODE_SETGID: u16 = 0o2000;

impl Owner {
    /// Makes a file so long.
    pub(super) fn truncate(&self, ino: Ino, size: u64, kill: bool) -> Result<InodeRecord> {
        let writer = self.writer()?;
        let file = self.files.get(&self.cell(ino)?);
        let done = {
            let _order = file.order.lock();
            if kill {
                self.kill_privileges(&file)?;
            }
            self.journal_tail(&file, size)?;
            let done = {
                let _bar = file.bar();
                let mut live = file.cell.write();
                check_writable(&live.inode)?;
                check_not_append(&live)?;
                if size > writer.max_size(&live.inode) {
                    return Err(Error::FileTooBig);
                }
                self.outline(&mut live, size, true)?;
                self.truncate_in_order(&file, &mut live, size)
            };
            done.and_then(|record| self.settle_change(&file).map(|()| record))
        };
        self.files.put(file);
        done
    }

    /// Before a file with contents in the journal grows: what lies behind its end becomes zeros in
    /// a transaction that is not later.
    fn journal_tail(&self, file: &Arc<File>, size: u64) -> Result<()> {
        {
            let live = file.cell.write();
            let grows = size > live.inode.size && live.inode.kind == Kind::Regular;
            if !grows || !self.volume.is_journaled(&live.inode) {
                return Ok(());
            }
            self.settle_tail(file, &live.inode)?;
        }
        self.journal_contents(file)
    }

    fn truncate_in_order(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        size: u64,
    ) -> Result<InodeRecord> {
        let before = live.inode.size;
        if size > before {
            self.settle_tail(file, &live.inode)?;
        } else {
            self.cut_pages(file, live, size)?;
            if size == 0 && before > 0 {
                file.pending().replaced = true;
            }
        }
        let done = self.writer()?.truncate(live, size, now());
        let record = self.publish_live(live);
        done.and(record)
    }

    /// Takes the pages beyond a new size out, and makes zeros of the rest of the last one.
    fn cut_pages(&self, file: &Arc<File>, live: &mut Live, size: u64) -> Result<()> {
        let within = (size % PAGE) as usize;
        if within > 0 && size < live.inode.size {
            self.zero_part(file, live, size / PAGE, within..PAGE as usize)?;
            // Blocks of that page that are beyond the size go with their places on disk.
            let kept = self.blocks_of(0, within);
            self.clean_blocks(file, live, size / PAGE, !kept);
        }
        self.drop_pages(file, live, size.div_ceil(PAGE)..u64::MAX);
        Ok(())
    }

    /// Makes bytes of one page zeros, in memory and later on disk: blocks that are touched in part
    /// and have a place there become dirty.
    fn zero_part(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        page: u64,
        bytes: Range<usize>,
    ) -> Result<()> {
        let ends = [bytes.start, bytes.end];
        let size = self.volume.superblock().block_size as usize;
        let partial = |at: &&usize| !at.is_multiple_of(size);
        let mut blocks = ends.iter().filter(partial).fold(0, |m, &at| m | self.blocks_of(at, 1));
        blocks &= !self.holes(&live.inode, page, page + 1)?[0];
        let shown = self.find(live.inode.ino, page);
        if blocks != 0 {
            self.dirty_cached(file, &live.inode, page, blocks)?;
        } else if shown.is_none_or(|shown| shown == self.zeros) {
            return Ok(());
        }
        let Some(shown) = self.find(live.inode.ino, page).filter(|&page| page != self.zeros) else {
            return Ok(());
        };
        match self.arena.region().own().overwrite(shown, bytes.start, Bytes::Zeros(bytes.len())) {
            // A clean one may be taken out just now: then it is read again, as it is on disk.
            Err(_) if blocks == 0 && self.states.get(shown).is_none() => Ok(()),
            done => Ok(done?),
        }
    }

    /// Blocks of a page need not be written any more; room for them is given back.
    fn clean_blocks(&self, file: &Arc<File>, live: &mut Live, page: u64, blocks: u8) {
        let Some(shown) = self.find(live.inode.ino, page) else { return };
        let clean = |held: Blocks| Blocks {
            dirty: held.dirty & !blocks,
            reserved: held.reserved & !blocks,
            ..held
        };
        if let Some(before) = self.states.change(shown, clean) {
            self.give_back_room(live, u64::from((before.reserved & blocks).count_ones()));
            if before.dirty & !blocks == 0 {
                file.pending().dirty.remove(&page);
            }
        }
    }

    /// Takes pages of a file out of memory, dirty or not; nothing of it is being written.
    pub(super) fn drop_pages(&self, file: &Arc<File>, live: &mut Live, pages: Range<u64>) {
        // There are none beyond the end.
        let pages = pages.start..pages.end.min(live.inode.size.div_ceil(PAGE));
        let mut reserved = 0;
        let mut dropped = Vec::new();
        self.take_out(live.inode.ino, pages, |number, held| {
            reserved += u64::from(held.reserved.count_ones());
            dropped.push(number);
        });
        let mut pending = file.pending();
        for number in dropped {
            pending.dirty.remove(&number);
        }
        drop(pending);
        self.give_back_room(live, reserved);
    }

    fn give_back_room(&self, live: &mut Live, blocks: u64) {
        live.reserved = live.reserved.saturating_sub(blocks);
        self.unreserve(blocks);
    }

    /// What fallocate(2) does, by its mode.
    pub(super) fn allocate(
        &self,
        ino: Ino,
        mode: u32,
        offset: u64,
        len: u64,
        caller: &Caller,
    ) -> Result<InodeRecord> {
        self.writer()?;
        let end = offset.checked_add(len).filter(|&end| len > 0 && end <= i64::MAX as u64);
        let Some(end) = end else {
            let errno =
                if len == 0 { Error::Invalid("no bytes".into()) } else { Error::FileTooBig };
            return Err(errno);
        };
        let file = self.files.get(&self.cell(ino)?);
        let done = {
            let _order = file.order.lock();
            let done = self.allocate_in_order(&file, mode, offset..end, caller);
            done.and_then(|record| self.settle_change(&file).map(|()| record))
        };
        self.files.put(file);
        done
    }

    fn allocate_in_order(
        &self,
        file: &Arc<File>,
        mode: u32,
        range: Range<u64>,
        caller: &Caller,
    ) -> Result<InodeRecord> {
        if mode & KEEP_SIZE == 0 {
            self.journal_tail(file, range.end)?;
        }
        // From here on there are no new dirty pages, and what has no place gets one.
        let shifts = matches!(mode, COLLAPSE_RANGE | INSERT_RANGE);
        let pages = if shifts { 0 } else { range.start / PAGE }..if shifts {
            u64::MAX
        } else {
            range.end.div_ceil(PAGE)
        };
        self.flush_range(file, pages);
        if !caller.privileged {
            self.kill_privileges(file)?;
        }
        let _bar = file.bar();
        let mut live = file.cell.write();
        check_writable(&live.inode)?;
        if mode & !KEEP_SIZE != 0 {
            check_not_append(&live)?;
        }
        self.outline(&mut live, ALL, caller.privileged)?;
        let done = self.allocate_locked(file, &mut live, mode, range, caller);
        let record = self.publish_live(&live);
        done.and(record)
    }

    fn allocate_locked(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        mode: u32,
        range: Range<u64>,
        caller: &Caller,
    ) -> Result<()> {
        let writer = self.writer()?;
        let (bits, size) = (self.volume.superblock().block_bits, live.inode.size);
        let whole = range.start.div_ceil(1 << bits)..range.end >> bits;
        let around = range.start >> bits..range.end.div_ceil(1 << bits);
        let aligned = whole == around;
        let grow = if mode & KEEP_SIZE == 0 { Allocate::Grow } else { Allocate::KeepSize };
        let grows = grow == Allocate::Grow && range.end > size;
        if mode & !KEEP_SIZE != PUNCH_HOLE && !live.inode.flags.contains(InodeFlags::EXTENTS) {
            return Err(Error::Unsupported(format!("{} has no extents", live.inode.ino)));
        }
        let wrong = |why: &str| Err(Error::Invalid(format!("fallocate: {why}")));
        match mode & !KEEP_SIZE {
            0 => {
                if grows {
                    self.settle_tail(file, &live.inode)?;
                }
                writer.allocate(live, around.start, around.end, range.end, grow, caller)
            }
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => {
                // A hole that reaches beyond the end has all of the last page.
                let end = if range.end > size { (size / PAGE + 1) * PAGE } else { range.end };
                let end = end.max(range.start);
                self.zero_pages(file, live, range.start..end)?;
                writer.punch(live, whole.start, (end >> bits).max(whole.start), now())
            }
            ZERO_RANGE => {
                if grows {
                    self.settle_tail(file, &live.inode)?;
                }
                self.zero_pages(file, live, range.start..range.end.min(size.max(range.start)))?;
                if whole.start < whole.end {
                    writer.zero(live, whole.start, whole.end, now())?;
                }
                writer.allocate(live, around.start, around.end, range.end, grow, caller)
            }
            COLLAPSE_RANGE | INSERT_RANGE if mode & KEEP_SIZE != 0 || !aligned => {
                wrong("what is shifted begins and ends with a block")
            }
            COLLAPSE_RANGE => {
                self.drop_pages(file, live, range.start / PAGE..u64::MAX);
                writer.collapse(live, around.start, around.end, now())
            }
            INSERT_RANGE => {
                self.drop_pages(file, live, range.start / PAGE..u64::MAX);
                writer.insert(live, around.start, around.end - around.start, now())
            }
            _ => Err(Error::Unsupported(format!("fallocate mode {mode:#x}"))),
        }
    }

    /// Makes a range of a file read as zeros in memory: whole pages are taken out, as their blocks
    /// are about to be; parts of pages and of blocks become zeros in place.
    fn zero_pages(&self, file: &Arc<File>, live: &mut Live, range: Range<u64>) -> Result<()> {
        let (first, last) = (range.start / PAGE, range.end / PAGE);
        let part = |at: u64| (at % PAGE) as usize;
        if first == last {
            return self.zero_part(file, live, first, part(range.start)..part(range.end));
        }
        if part(range.start) > 0 {
            self.zero_part(file, live, first, part(range.start)..PAGE as usize)?;
        }
        if part(range.end) > 0 {
            self.zero_part(file, live, last, 0..part(range.end))?;
        }
        self.drop_pages(file, live, range.start.div_ceil(PAGE)..last);
        Ok(())
    }

    /// Before somebody without privileges changes contents: a file's own privileges go.
    pub(super) fn kill_privileges(&self, file: &File) -> Result<()> {
        let has_any = {
            let live = file.cell.read();
            let names = self.volume.listxattr(&live.inode)?;
            let capability = names.iter().any(|name| name == b"security.capability");
            live.inode.mode & (MODE_SETUID | MODE_SETGID) != 0 || capability
        };
        if !has_any {
            return Ok(());
        }
        let set = write::SetAttr { kill_privileges: true, ..write::SetAttr::default() };
        self.set_fields(file.ino, &set, &Caller::ROOT).map(drop)
    }
}

fn check_not_append(live: &Live) -> Result<()> {
    match live.inode.flags.contains(InodeFlags::APPEND) {
        true => Err(Error::NotPermitted),
        false => Ok(()),
    }
}
