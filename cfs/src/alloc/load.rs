//! Bitmaps come into memory, checked, and leave it again.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Space;
use super::group::{Bits, Blocks, Counts, Inodes, Slot, State};
use super::runs::Runs;
use crate::disk::bitmap;
use crate::disk::group::{BLOCK_UNINIT, Group as Descriptor, INODE_UNINIT, check_bitmap_sum};
use crate::id::Block;
use crate::{Error, Result, limits};

impl State {
    /// Has the group's bitmap of blocks in memory.
    ///
    /// # Errors
    /// When it cannot be read, or is corrupt; then it is reported once and never used.
    pub(super) fn need_blocks(&mut self, space: &Space, number: u32) -> Result<&mut Blocks> {
        if let Slot::Unread = self.blocks {
            self.blocks = match read_blocks(space, number, &self.counts) {
                Ok(blocks) => {
                    let group = &space.groups[number as usize];
                    group.note(self.counts.free_blocks, blocks.runs.longest());
                    space.make_room();
                    Slot::Here(Box::new(blocks))
                }
                Err(error @ Error::Corrupt { .. }) => {
                    space.report(error);
                    space.give_up_blocks(number);
                    Slot::Corrupt
                }
                Err(error) => return Err(error),
            };
        }
        match &mut self.blocks {
            Slot::Here(blocks) => Ok(blocks),
            Slot::Unread | Slot::Corrupt => Err(unused(number, "blocks")),
        }
    }

    /// Has the group's bitmap of inodes in memory; errors as for that of its blocks.
    pub(super) fn need_inodes(&mut self, space: &Space, number: u32) -> Result<&mut Inodes> {
        if let Slot::Unread = self.inodes {
            self.inodes = match read_inodes(space, number, &self.counts) {
                Ok(inodes) => {
                    space.make_room();
                    Slot::Here(Box::new(inodes))
                }
                Err(error @ Error::Corrupt { .. }) => {
                    space.report(error);
                    let free = space.groups[number as usize].free_inodes.swap(0, Ordering::Relaxed);
                    space.free_inodes.fetch_sub(free.into(), Ordering::Relaxed);
                    Slot::Corrupt
                }
                Err(error) => return Err(error),
            };
        }
        match &mut self.inodes {
            Slot::Here(inodes) => Ok(inodes),
            Slot::Unread | Slot::Corrupt => Err(unused(number, "inodes")),
        }
    }
}

fn unused(number: u32, of: &str) -> Error {
    Error::corrupt(format_args!("group {number}"), format!("has a corrupt bitmap of {of}"))
}

impl Space {
    /// A group's free blocks are not used any more.
    fn give_up_blocks(&self, number: u32) {
        let group = &self.groups[number as usize];
        let free = group.free.load(Ordering::Relaxed);
        group.note(0, 0);
        self.unpromised.fetch_sub(free.into(), Ordering::Relaxed);
    }

    /// Counts one bitmap more in memory, and lets others go when there are many.
    fn make_room(&self) {
        if self.loaded.fetch_add(1, Ordering::Relaxed) < limits::MAX_BITMAPS {
            return;
        }
        for _ in 0..TRIES {
            let next = self.hand.fetch_add(1, Ordering::Relaxed) as usize % self.groups.len();
            // A group whose lock somebody holds, as our caller does, is in use.
            if let Some(mut state) = self.groups[next].state.try_lock() {
                let released = state.unload();
                self.loaded.fetch_sub(released, Ordering::Relaxed);
                if released > 0 {
                    return;
                }
            }
        }
    }
}

/// Groups that are looked at for a bitmap to let go.
const TRIES: u32 = 64;

fn descriptor(space: &Space, number: u32) -> Result<&Descriptor> {
    let group = space.volume.groups().get(number as usize).and_then(Option::as_ref);
    group.ok_or_else(|| Error::corrupt(format_args!("group {number}"), "has no descriptor"))
}

fn read_blocks(space: &Space, number: u32, counts: &Counts) -> Result<Blocks> {
    let superblock = space.superblock();
    let what = || format!("block bitmap of group {number}");
    let len = space.group_len(number);
    let descriptor = descriptor(space, number)?;
    let bytes: Box<[u8]> = if counts.flags & BLOCK_UNINIT != 0 {
        fresh_blocks(space, number, len)
    } else {
        space.volume.block(descriptor.block_bitmap)?.bytes.clone()
    };
    let sum = bitmap::block_sum(&bytes, superblock);
    if counts.flags & BLOCK_UNINIT == 0 {
        check_bitmap_sum(what, space.sums(number)?.0, sum, superblock)?;
        for zone in own_zones(space, number, len) {
            if !bitmap::all_set(&bytes, zone.clone()) {
                let block = Block(superblock.group_start(number) + u64::from(zone.start));
                let why = format!("the volume's own structures at {block} are not in use");
                return Err(Error::corrupt(what(), why));
            }
        }
    }
    let free = bitmap::count_clear(&bytes, len);
    if free != counts.free_blocks {
        let why = format!("{free} blocks are free, but {} by the descriptor", counts.free_blocks);
        return Err(Error::corrupt(what(), why));
    }
    let mut runs = Runs::new(&bytes);
    runs.take(len..bytes.len() as u32 * 8);
    Ok(Blocks { bits: Bits::new(bytes, sum), runs, differing: 0 })
}

/// The bitmap of a group whose blocks were never used.
fn fresh_blocks(space: &Space, number: u32, len: u32) -> Box<[u8]> {
    let mut bytes = vec![0; space.superblock().block_size as usize].into_boxed_slice();
    own_zones(space, number, len).for_each(|zone| bitmap::set(&mut bytes, zone));
    let bits = bytes.len() as u32 * 8;
    bitmap::set(&mut bytes, len..bits);
    bytes
}

/// Bits of the volume's own structures in a group.
fn own_zones(space: &Space, number: u32, len: u32) -> impl Iterator<Item = Range<u32>> {
    let start = space.superblock().group_start(number);
    let end = start + u64::from(len);
    space
        .volume
        .zones()
        .within(start..end)
        .map(move |zone| (zone.start.max(start) - start) as u32..(zone.end.min(end) - start) as u32)
}

fn read_inodes(space: &Space, number: u32, counts: &Counts) -> Result<Inodes> {
    let superblock = space.superblock();
    let what = || format!("inode bitmap of group {number}");
    let len = superblock.inodes_per_group;
    let descriptor = descriptor(space, number)?;
    let bytes: Box<[u8]> = if counts.flags & INODE_UNINIT != 0 {
        let mut bytes = vec![0; superblock.block_size as usize].into_boxed_slice();
        let bits = bytes.len() as u32 * 8;
        bitmap::set(&mut bytes, len..bits);
        bytes
    } else {
        space.volume.block(descriptor.inode_bitmap)?.bytes.clone()
    };
    let sum = bitmap::inode_sum(&bytes, superblock);
    if counts.flags & INODE_UNINIT == 0 {
        check_bitmap_sum(what, space.sums(number)?.1, sum, superblock)?;
    }
    let reserved = superblock.first_ino.saturating_sub(1).min(len);
    if number == 0 && !bitmap::all_set(&bytes, 0..reserved) {
        return Err(Error::corrupt(what(), "reserved inodes are not in use"));
    }
    let free = bitmap::count_clear(&bytes, len);
    if free != counts.free_inodes {
        let why = format!("{free} inodes are free, but {} by the descriptor", counts.free_inodes);
        return Err(Error::corrupt(what(), why));
    }
    Ok(Inodes { bits: Bits::new(bytes, sum), first: 0, held: Vec::new() })
}

impl Space {
    /// The checksums of a group's bitmaps in the newest version of its descriptor.
    fn sums(&self, number: u32) -> Result<(u32, u32)> {
        let superblock = self.superblock();
        let per_block = superblock.descs_per_block();
        let block = self.volume.block(superblock.desc_block(number / per_block))?;
        let size = superblock.desc_size as usize;
        let offset = (number % per_block) as usize * size;
        let group = Descriptor::parse(&block.bytes[offset..offset + size], number, superblock)?;
        Ok((group.block_bitmap_sum, group.inode_bitmap_sum))
    }
}
