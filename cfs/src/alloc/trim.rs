//! The device is told which blocks nobody uses.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Space;
use crate::id::Block;
use crate::{Error, Result};

impl Space {
    /// Discards free runs of at least `least` blocks within `range`, as FITRIM does; returns how
    /// many blocks those have.
    ///
    /// # Errors
    /// When the storage cannot discard, or fails; when a bitmap cannot be read.
    pub fn trim(&self, range: Range<Block>, least: u64) -> Result<u64> {
        if !self.volume.source().can_discard() {
            return Err(Error::Unsupported("the volume's storage cannot discard".into()));
        }
        let superblock = self.superblock();
        let start = range.start.0.max(superblock.first_data_block.into());
        let end = range.end.0.min(superblock.blocks_count);
        if start >= end {
            return Ok(0);
        }
        let least = u32::try_from(least).unwrap_or(u32::MAX).max(1);
        let (first, _) = self.place(Block(start));
        let (last, _) = self.place(Block(end - 1));
        let mut done = 0;
        for number in first..=last {
            let base = superblock.group_start(number);
            let from = (start.max(base) - base) as u32;
            let to = (end - base).min(self.group_len(number).into()) as u32;
            match self.trim_group(number, from..to, least) {
                Ok(blocks) => done += blocks,
                // It was reported, and the group is not used any more.
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Takes run by run, so that only one is kept from others at a time.
    fn trim_group(&self, number: u32, bits: Range<u32>, least: u32) -> Result<u64> {
        let group = &self.groups[number as usize];
        let mut from = bits.start;
        let mut done = 0;
        loop {
            let mut state = group.state.lock();
            let blocks = state.need_blocks(self, number)?;
            let Some(start) = blocks.runs.find(from, least).filter(|start| *start < bits.end)
            else {
                return Ok(done);
            };
            let len = blocks.runs.len_at(start, bits.end - start);
            from = start + len;
            if len < least {
                continue;
            }
            self.trimming.fetch_add(1, Ordering::Relaxed);
            blocks.runs.take(start..start + len);
            blocks.differing += len;
            let free = group.free.load(Ordering::Relaxed) - len;
            group.note(free, blocks.runs.longest());
            drop(state);
            let start = Block(self.superblock().group_start(number) + u64::from(start));
            let discarded = self.discard_blocks(start, len);
            self.give(start, len);
            self.trimming.fetch_sub(1, Ordering::Relaxed);
            discarded?;
            done += u64::from(len);
        }
    }

    /// Waits a moment if a trim keeps blocks, which then will be free again.
    pub(super) fn wait_for_trim(&self) -> bool {
        let trimming = self.trimming.load(Ordering::Relaxed) > 0;
        if trimming {
            std::thread::yield_now();
        }
        trimming
    }

    pub(super) fn discard_blocks(&self, start: Block, len: u32) -> Result<()> {
        let bits = self.superblock().block_bits;
        self.volume.source().discard(start.0 << bits, u64::from(len) << bits)
    }
}
