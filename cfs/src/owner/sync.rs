//! Making durable, and what readers ask that needs what is not on disk yet.

use std::sync::Arc;

use super::Owner;
use super::dirty::File;
use super::pages::PAGE;
use crate::engine::StatFs;
use crate::id::{Block, Ino};
use crate::{Error, Result};

impl Owner {
    /// Makes a file durable: with `data_alone` what is needed to read its contents back. Says what
    /// writebacks of it have met since `seen`, and where that ends.
    pub(super) fn sync(&self, ino: Ino, data_alone: bool, seen: u64) -> Result<(u64, Option<i32>)> {
        let done = self.make_durable(ino, data_alone);
        let told = self.errors.since(Some(ino), seen);
        // What a writeback has met says more than that nothing can be written any more.
        if told.1.is_none() { done.map(|()| told) } else { Ok(told) }
    }

    fn make_durable(&self, ino: Ino, data_alone: bool) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        if let Some(file) = self.files.find(ino) {
            self.flush_file(&file);
            self.files.put(file);
        }
        let cell = self.cell(ino)?;
        let tid = {
            let live = cell.read();
            if data_alone { live.data_tid } else { live.tid }
        };
        // What was written in place is in the device's cache, perhaps, even where that transaction
        // is durable by now.
        writer.journal().sync(tid)
    }

    /// Makes everything durable that was changed by now. The rest as [`Self::sync`].
    pub(super) fn sync_all(&self, seen: u64) -> Result<(u64, Option<i32>)> {
        let Some(writer) = &self.writer else { return Ok((seen, None)) };
        self.flush_all();
        let done = writer.journal().flush_all();
        let told = self.errors.since(None, seen);
        if told.1.is_none() { done.map(|()| told) } else { Ok(told) }
    }

    /// Writes back all that is dirty.
    pub(super) fn flush_all(&self) {
        for file in self.files.all() {
            self.flush_file(&file);
            self.files.put(file);
        }
    }

    /// Ends writing: everything is written back and brought home, and the image is as after an
    /// unmount. Nothing may be asked of the volume any more.
    ///
    /// # Errors
    /// When the storage fails; the volume is then as after a crash.
    pub fn stop(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        self.flusher.stop();
        self.flush_all();
        writer.stop()
    }

    /// A descriptor of a file is closed that was written, the `last` or one of several. What had
    /// been cut to nothing before is written when this returns, and its map is in a transaction:
    /// whatever changes from here on is in none that is earlier, so a crash that leaves any of that
    /// leaves the new contents.
    pub(super) fn close_file(&self, ino: Ino, last: bool) {
        if let Some(file) = self.files.find(ino) {
            let replaced = {
                let mut pending = file.pending();
                let replaced = pending.replaced;
                pending.replaced &= !last;
                replaced
            };
            if replaced {
                self.flush_file(&file);
            }
            self.files.put(file);
        }
        if let Some(writer) = self.writer.as_ref().filter(|_| last) {
            writer.space().close_window(ino);
        }
    }

    /// Behind a change of contents: where these go through the journal, they do so in the order of
    /// all other changes.
    pub(super) fn journal_contents(&self, file: &Arc<File>) -> Result<()> {
        if !self.volume.is_journaled(&file.cell.read().inode) {
            return Ok(());
        }
        self.flush_file(file);
        self.writer().map(drop)
    }

    /// Behind a change of a file's size or blocks: durable, where it is to be.
    pub(super) fn settle_change(&self, file: &Arc<File>) -> Result<()> {
        self.journal_contents(file)?;
        if self.writer()?.is_sync(&file.cell.read().inode) {
            self.make_durable(file.ino, false)?;
        }
        Ok(())
    }

    /// Before a name of another file becomes this one's: its contents are on disk then.
    pub(super) fn flush_new_contents(&self, file: &Arc<File>) {
        // What has been given its place may not have reached it.
        if file.cell.read().reserved > 0 || file.is_being_written() {
            self.flush_file(file);
        }
    }

    /// The first byte of data, or of a hole, at or after an offset.
    pub(super) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        // The map says it all once everything has its place.
        if let Some(file) = self.files.find(ino) {
            self.flush_file(&file);
            self.files.put(file);
        }
        self.with_inode(ino, |inode| match data {
            true => self.volume.seek_data(inode, offset),
            false => self.volume.seek_hole(inode, offset),
        })
    }

    /// Bytes of one page, copied. Returns how many there are before the file's end.
    pub(super) fn read_copy(&self, ino: Ino, offset: u64, bytes: &mut [u8]) -> Result<usize> {
        self.with_inode(ino, |inode| {
            let shown = self.find(ino, offset / PAGE);
            if let Some(guard) =
                shown.map(|page| self.arena.region().pin(page)).transpose()?.flatten()
            {
                let len = inode.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
                guard.bytes().copy_to(0, &mut bytes[..len]);
                return Ok(len);
            }
            self.volume.read(inode, offset, bytes)
        })
    }

    /// Discards free runs, as FITRIM does; numbers are of bytes. What was freed is free once its
    /// transaction has committed.
    pub(super) fn trim(&self, start: u64, len: u64, least: u64) -> Result<u64> {
        let writer = self.writer()?;
        let superblock = self.volume.superblock();
        let bits = superblock.block_bits;
        let (first, least) = (start >> bits, least >> bits);
        let wrong = first >= superblock.blocks_count
            || len < u64::from(superblock.block_size)
            || least > superblock.blocks_per_group.into();
        if wrong {
            return Err(Error::Invalid(format!("trim of {len} bytes from {start} on")));
        }
        let end = first.saturating_add(len >> bits);
        Ok(writer.space().trim(Block(first)..Block(end), least)? << bits)
    }

    /// What statfs(2) tells.
    pub(super) fn statfs(&self) -> StatFs {
        match &self.writer {
            Some(writer) => writer.space().statfs(),
            None => self.volume.statfs(),
        }
    }
}
