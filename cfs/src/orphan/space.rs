//! Gives blocks and inodes back: bitmaps, descriptors and their checksums.

use std::collections::BTreeMap;

use crate::disk::bitmap;
use crate::disk::group::{BLOCK_UNINIT, Group, INODE_UNINIT, RawGroup, check_bitmap_sum};
use crate::disk::superblock::Superblock;
use crate::engine::Volume;
use crate::id::{Block, Ino};
use crate::{Error, Result};

/// What is given back, gathered until [`Space::finish`].
pub(super) struct Space<'a> {
    volume: &'a Volume,
    groups: BTreeMap<u32, Edit>,
    freed: u64,
}

#[derive(Default)]
struct Edit {
    blocks: Option<Bitmap>,
    inodes: Option<Bitmap>,
    directories: u32,
}

/// A bitmap as it was read, and how many bits were cleared since.
struct Bitmap {
    place: Block,
    bytes: Vec<u8>,
    cleared: u32,
}

impl<'a> Space<'a> {
    pub(super) fn new(volume: &'a Volume) -> Self {
        Self { volume, groups: BTreeMap::new(), freed: 0 }
    }

    /// Blocks given back so far.
    pub(super) fn freed_blocks(&self) -> u64 {
        self.freed
    }

    /// Gives back blocks with the clusters that they lie in, each of which must be in use.
    pub(super) fn free_blocks(&mut self, start: Block, len: u64) -> Result<()> {
        let ratio = u64::from(self.volume.superblock().cluster_ratio);
        let end = start.0.saturating_add(len);
        (start.0 / ratio..end.div_ceil(ratio)).try_for_each(|cluster| self.free_cluster(cluster))
    }

    /// Gives back one cluster, by its number from the volume's beginning on.
    pub(super) fn free_cluster(&mut self, cluster: u64) -> Result<()> {
        let volume = self.volume;
        let superblock = volume.superblock();
        let ratio = u64::from(superblock.cluster_ratio);
        let first = u64::from(superblock.first_data_block);
        let block = cluster.saturating_mul(ratio);
        let within = block.checked_sub(first).filter(|_| block < superblock.blocks_count);
        let Some(within) = within.filter(|_| first.is_multiple_of(ratio)) else {
            return Err(Error::corrupt(Block(block), "is outside the volume"));
        };
        let per_group = u64::from(superblock.blocks_per_group);
        let number = (within / per_group) as u32;
        let bit = (within % per_group / ratio) as u32;
        let edit = self.groups.entry(number).or_default();
        let bitmap = match &mut edit.blocks {
            Some(bitmap) => bitmap,
            empty => empty.insert(read_block_bitmap(volume, number)?),
        };
        bitmap.clear(bit).map_err(|()| Error::corrupt(Block(block), "is free already"))?;
        self.freed += ratio;
        Ok(())
    }

    /// Gives back an inode, which must be in use.
    pub(super) fn free_inode(&mut self, ino: Ino, directory: bool) -> Result<()> {
        let per_group = self.volume.superblock().inodes_per_group;
        let index = ino.0.checked_sub(1).ok_or_else(|| Error::corrupt(ino, "is none"))?;
        let (number, bit) = (index / per_group, index % per_group);
        let edit = self.groups.entry(number).or_default();
        let bitmap = match &mut edit.inodes {
            Some(bitmap) => bitmap,
            empty => empty.insert(read_inode_bitmap(self.volume, number)?),
        };
        bitmap.clear(bit).map_err(|()| Error::corrupt(ino, "is free already"))?;
        edit.directories += u32::from(directory);
        Ok(())
    }

    /// Writes bitmaps and descriptors.
    pub(super) fn finish(self) -> Result<()> {
        let (source, superblock) = (self.volume.source(), self.volume.superblock());
        for (number, edit) in self.groups {
            for bitmap in [&edit.blocks, &edit.inodes].into_iter().flatten() {
                source.write_at(bitmap.place.0 << superblock.block_bits, &bitmap.bytes)?;
            }
            let (offset, mut bytes) = read_descriptor(self.volume, number)?;
            let group = Group::parse(&bytes, number, superblock)?;
            let mut raw = RawGroup::load(&bytes);
            edit.apply(&group, &mut raw, superblock);
            raw.store(&mut bytes, number, superblock);
            source.write_at(offset, &bytes)?;
        }
        Ok(())
    }
}

impl Edit {
    fn apply(&self, group: &Group, raw: &mut RawGroup, superblock: &Superblock) {
        let sums = superblock.features.metadata_csum();
        if let Some(bitmap) = &self.blocks {
            raw.set_free_clusters(group.free_clusters.wrapping_add(bitmap.cleared));
            if sums {
                raw.set_block_bitmap_sum(bitmap::block_sum(&bitmap.bytes, superblock));
            }
        }
        if let Some(bitmap) = &self.inodes {
            raw.set_free_inodes(group.free_inodes.wrapping_add(bitmap.cleared));
            raw.set_used_dirs(group.used_dirs.wrapping_sub(self.directories));
            if sums {
                raw.set_inode_bitmap_sum(bitmap::inode_sum(&bitmap.bytes, superblock));
            }
        }
    }
}

impl Bitmap {
    fn clear(&mut self, bit: u32) -> std::result::Result<(), ()> {
        let in_use = (bit as usize) < self.bytes.len() * 8 && bitmap::is_set(&self.bytes, bit);
        if !in_use {
            return Err(());
        }
        bitmap::clear(&mut self.bytes, bit..bit + 1);
        self.cleared += 1;
        Ok(())
    }
}

fn read_block_bitmap(volume: &Volume, number: u32) -> Result<Bitmap> {
    let group = descriptor(volume, number)?;
    let what = || format!("block bitmap of group {number}");
    if group.flags & BLOCK_UNINIT != 0 {
        return Err(Error::corrupt(what(), "is not in use, though blocks of the group are"));
    }
    let bitmap = read_bitmap(volume, group.block_bitmap)?;
    let superblock = volume.superblock();
    let computed = bitmap::block_sum(&bitmap.bytes, superblock);
    check_bitmap_sum(what, group.block_bitmap_sum, computed, superblock)?;
    Ok(bitmap)
}

fn read_inode_bitmap(volume: &Volume, number: u32) -> Result<Bitmap> {
    let group = descriptor(volume, number)?;
    let what = || format!("inode bitmap of group {number}");
    if group.flags & INODE_UNINIT != 0 {
        return Err(Error::corrupt(what(), "is not in use, though inodes of the group are"));
    }
    let bitmap = read_bitmap(volume, group.inode_bitmap)?;
    let superblock = volume.superblock();
    let computed = bitmap::inode_sum(&bitmap.bytes, superblock);
    check_bitmap_sum(what, group.inode_bitmap_sum, computed, superblock)?;
    Ok(bitmap)
}

fn read_bitmap(volume: &Volume, place: Block) -> Result<Bitmap> {
    let superblock = volume.superblock();
    let mut bytes = vec![0; superblock.block_size as usize];
    volume.source().read_at(place.0 << superblock.block_bits, &mut bytes)?;
    Ok(Bitmap { place, bytes, cleared: 0 })
}

fn descriptor(volume: &Volume, number: u32) -> Result<Group> {
    let (_, bytes) = read_descriptor(volume, number)?;
    Group::parse(&bytes, number, volume.superblock())
}

/// A descriptor's bytes and where they are.
fn read_descriptor(volume: &Volume, number: u32) -> Result<(u64, Vec<u8>)> {
    let superblock = volume.superblock();
    let per_block = superblock.descs_per_block();
    let block = superblock.desc_block(number / per_block);
    if number >= superblock.groups || block.0 >= superblock.blocks_count {
        return Err(Error::corrupt(format_args!("group {number}"), "is outside the volume"));
    }
    let within = u64::from(number % per_block) * u64::from(superblock.desc_size);
    let offset = (block.0 << superblock.block_bits) + within;
    let mut bytes = vec![0; superblock.desc_size as usize];
    volume.source().read_at(offset, &mut bytes)?;
    Ok((offset, bytes))
}
