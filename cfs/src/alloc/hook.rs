//! What is done when a transaction ends.

use std::sync::atomic::Ordering;

use zerocopy::{FromBytes, IntoBytes};

use super::Space;
use super::group::Slot;
use crate::disk::features::Incompat;
use crate::disk::superblock::{OFFSET, RawSuperblock, SIZE};
use crate::id::Block;
use crate::journal::format::Tid;
use crate::journal::{CommitHook, Handle};
use crate::{Error, Result};

/// What a transaction freed and may be used again when it has committed.
pub(super) struct Freed {
    pub(super) tid: Tid,
    pub(super) group: u32,
    pub(super) what: What,
}

pub(super) enum What {
    Blocks { start: u32, len: u32 },
    Inode(u32),
}

impl Space {
    /// Remembers what was freed until the transaction has committed.
    pub(super) fn note_freed(&self, more: Freed) {
        let mut freed = self.freed.lock();
        if let Some(last) = freed.last_mut()
            && (last.tid, last.group) == (more.tid, more.group)
            && let (What::Blocks { start, len }, What::Blocks { start: next, len: more }) =
                (&mut last.what, &more.what)
        {
            if *start + *len == *next {
                *len += more;
                return;
            }
            if *next + more == *start {
                (*start, *len) = (*next, *len + more);
                return;
            }
        }
        freed.push(more);
    }

    /// Puts the counts of free blocks and inodes into the superblock.
    fn put_totals(&self, handle: &mut Handle<'_>) -> Result<()> {
        let superblock = self.superblock();
        let block_size = u64::from(superblock.block_size);
        let (block, offset) = (Block(OFFSET / block_size), (OFFSET % block_size) as usize);
        let newest = handle.read(block)?;
        let Ok(mut raw) = RawSuperblock::read_from_bytes(&newest.bytes[offset..offset + SIZE])
        else {
            return Err(Error::corrupt("superblock", "is not of 1024 bytes"));
        };
        drop(newest);
        let free = self.free_on_disk.load(Ordering::Relaxed);
        raw.free_blocks_count_lo = (free as u32).into();
        if superblock.features.incompat.contains(Incompat::BITS64) {
            raw.free_blocks_count_hi = ((free >> 32) as u32).into();
        }
        raw.free_inodes_count = (self.free_inodes.load(Ordering::Relaxed) as u32).into();
        raw.update_checksum();
        handle.put(block, offset, raw.as_bytes())
    }

    fn reuse(&self, freed: &Freed) {
        let group = &self.groups[freed.group as usize];
        match freed.what {
            What::Blocks { start, len } => {
                let start = Block(self.superblock().group_start(freed.group) + u64::from(start));
                if self.discard.load(Ordering::Relaxed)
                    && let Err(error) = self.discard_blocks(start, len)
                {
                    self.report(error);
                }
                self.give(start, len);
                self.release(len.into());
                self.pending.fetch_sub(len.into(), Ordering::Relaxed);
            }
            What::Inode(bit) => {
                if let Slot::Here(inodes) = &mut group.state.lock().inodes {
                    inodes.held.retain(|held| *held != bit);
                    inodes.first = inodes.first.min(bit);
                }
            }
        }
    }
}

impl CommitHook for Space {
    fn locking(&self, handle: &mut Handle<'_>) -> Result<()> {
        let changed = std::mem::take(&mut *self.changed.lock());
        if changed.is_empty() {
            return Ok(());
        }
        for number in changed {
            let mut state = self.groups[number as usize].state.lock();
            state.put_rest(self, number, handle)?;
        }
        self.put_totals(handle)
    }

    fn committed(&self, tid: Tid) {
        let freed: Vec<Freed> = {
            let mut freed = self.freed.lock();
            let end = freed.partition_point(|freed| tid.at_least(freed.tid));
            freed.drain(..end).collect()
        };
        freed.iter().for_each(|freed| self.reuse(freed));
    }
}
