//! Inodes are chosen and given back.

use std::sync::atomic::Ordering;

use super::Space;
use super::hook::{Freed, What};
use crate::disk::bitmap;
use crate::disk::features::Compat;
use crate::disk::group::BLOCK_UNINIT;
use crate::id::{Block, Ino};
use crate::journal::Handle;
use crate::{Error, Result};

impl Space {
    /// Takes a free inode, near its parent or, for a directory, where there is room for what it
    /// will hold (after Orlov). `top_level` says that the parent is the root or has the flag
    /// `TOPDIR`.
    ///
    /// All bytes of the inode have to be put by the caller: what lies there is not defined. Up to
    /// four blocks change: the bitmaps of inodes and of blocks, the descriptor, and the inode's
    /// block, which is created where it was never used.
    ///
    /// # Errors
    /// Before anything has changed: [`Error::NoSpace`] when no inode is free; when bitmaps cannot
    /// be read. Later ones are those of the handle's puts.
    pub fn new_inode(
        &self,
        handle: &mut Handle<'_>,
        parent: Ino,
        top_level: bool,
        directory: bool,
    ) -> Result<Ino> {
        let (parent, _) = self.group_of(parent);
        let first = if directory {
            self.directory_group(parent, top_level)
        } else {
            self.file_group(parent)
        };
        let count = self.groups.len() as u32;
        let mut trouble = None;
        for number in (first..count).chain(0..first) {
            if self.groups[number as usize].free_inodes.load(Ordering::Relaxed) == 0 {
                continue;
            }
            match self.new_inode_in(number, directory, handle) {
                Ok(Some(ino)) => return Ok(ino),
                Ok(None) => {}
                // It was reported, and the group is not used any more.
                Err(Failure::Before(Error::Corrupt { .. })) => {}
                Err(Failure::Before(error)) => trouble = Some(error),
                Err(Failure::After(error)) => return Err(error),
            }
        }
        Err(trouble.unwrap_or(Error::NoSpace))
    }

    fn new_inode_in(
        &self,
        number: u32,
        directory: bool,
        handle: &mut Handle<'_>,
    ) -> std::result::Result<Option<Ino>, Failure> {
        let superblock = self.superblock();
        let len = superblock.inodes_per_group;
        let group = &self.groups[number as usize];
        let mut state = group.state.lock();
        let inodes = state.need_inodes(self, number).map_err(Failure::Before)?;
        let Some(bit) = inodes.next(len) else { return Ok(None) };
        // The kernel takes a group with inodes in use to have a bitmap of blocks.
        if state.counts.flags & BLOCK_UNINIT != 0 {
            match state.need_blocks(self, number) {
                Ok(blocks) => blocks.bits.touch(),
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(Failure::Before(error)),
            }
        }
        let inodes = state.need_inodes(self, number).map_err(Failure::Before)?;
        inodes.bits.change(bit..bit + 1, true, len);
        inodes.first = bit + 1;
        let used = len - state.counts.itable_unused;
        state.counts.itable_unused = (len - used.max(bit + 1)).min(state.counts.itable_unused);
        state.counts.free_inodes -= 1;
        state.counts.used_dirs += u32::from(directory);
        group.free_inodes.fetch_sub(1, Ordering::Relaxed);
        group.used_dirs.fetch_add(directory.into(), Ordering::Relaxed);
        self.free_inodes.fetch_sub(1, Ordering::Relaxed);
        self.used_dirs.fetch_add(directory.into(), Ordering::Relaxed);
        state.put_changes(self, number, handle).map_err(Failure::After)?;
        if superblock.features.group_csum() {
            self.create_table_block(number, bit, used, handle).map_err(Failure::After)?;
        }
        Ok(Some(Ino(number * len + bit + 1)))
    }

    /// The first inode in a block of a table: what lies there need not be one.
    fn create_table_block(
        &self,
        number: u32,
        bit: u32,
        used: u32,
        handle: &mut Handle<'_>,
    ) -> Result<()> {
        let superblock = self.superblock();
        let per_block = superblock.block_size / superblock.inode_size;
        let descriptor = self.volume.groups().get(number as usize).and_then(Option::as_ref);
        let Some(descriptor) = descriptor.filter(|_| bit / per_block * per_block >= used) else {
            return Ok(());
        };
        let block = Block(descriptor.inode_table.0 + u64::from(bit / per_block));
        handle.create(block, vec![0; superblock.block_size as usize].into())
    }

    /// Frees an inode; its number may be used again at once, and after the commit on a volume
    /// without a journal. Up to two blocks change: the bitmap's and the descriptor's.
    ///
    /// The inode of a group whose bitmap is corrupt stays in use until e2fsck has looked at it.
    ///
    /// # Errors
    /// Before anything has changed: [`Error::Corrupt`] when it is free already or reserved; when
    /// the bitmap cannot be read. Later ones are those of the handle's puts.
    pub fn free_inode(&self, handle: &mut Handle<'_>, ino: Ino, directory: bool) -> Result<()> {
        let superblock = self.superblock();
        if ino.0 < superblock.first_ino || ino.0 > superblock.inodes_count {
            return Err(Error::corrupt(ino, "is reserved, or outside the volume"));
        }
        let (number, bit) = self.group_of(ino);
        let group = &self.groups[number as usize];
        let mut state = group.state.lock();
        let inodes = match state.need_inodes(self, number) {
            Ok(inodes) => inodes,
            Err(Error::Corrupt { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !bitmap::is_set(&inodes.bits.bytes, bit) {
            return Err(Error::corrupt(ino, "is free already"));
        }
        inodes.bits.change(bit..bit + 1, false, superblock.inodes_per_group);
        if superblock.features.compat.contains(Compat::HAS_JOURNAL) {
            inodes.first = inodes.first.min(bit);
        } else {
            inodes.held.push(bit);
            let what = What::Inode(bit);
            self.note_freed(Freed { tid: handle.tid(), group: number, what });
        }
        state.counts.free_inodes += 1;
        group.free_inodes.fetch_add(1, Ordering::Relaxed);
        self.free_inodes.fetch_add(1, Ordering::Relaxed);
        if directory && state.counts.used_dirs > 0 {
            state.counts.used_dirs -= 1;
            group.used_dirs.fetch_sub(1, Ordering::Relaxed);
            self.used_dirs.fetch_sub(1, Ordering::Relaxed);
        }
        state.put_changes(self, number, handle)
    }
}

/// An error, and whether it came before anything had changed.
enum Failure {
    Before(Error),
    After(Error),
}

impl super::group::Inodes {
    /// The first free inode that may be used, of `len`.
    fn next(&self, len: u32) -> Option<u32> {
        let mut from = self.first;
        loop {
            let bit = bitmap::next_clear(&self.bits.bytes, from..len)?;
            if !self.held.contains(&bit) {
                return Some(bit);
            }
            from = bit + 1;
        }
    }
}
