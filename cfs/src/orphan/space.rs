//! Gives blocks and inodes back: bitmaps, descriptors and their checksums.

use std::collections::BTreeMap;

use zerocopy::{FromZeros, IntoBytes};

use crate::disk::checksum::crc32c;
use crate::disk::group::{self, Group, RawGroup};
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

const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

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
            let mut raw = RawGroup::new_zeroed();
            let known = bytes.len().min(size_of::<RawGroup>());
            raw.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
            edit.apply(self.volume, &mut raw);
            bytes[..known].copy_from_slice(&raw.as_bytes()[..known]);
            if let Some(sum) = group::checksum(&bytes, number, superblock) {
                raw.checksum = sum.into();
                bytes[..known].copy_from_slice(&raw.as_bytes()[..known]);
            }
            source.write_at(offset, &bytes)?;
        }
        Ok(())
    }
}

impl Edit {
    fn apply(&self, volume: &Volume, raw: &mut RawGroup) {
        let add = |lo: u16, hi: u16, more: u32| {
            let sum = (u32::from(hi) << 16 | u32::from(lo)).wrapping_add(more);
            ((sum as u16).into(), ((sum >> 16) as u16).into())
        };
        let sums = volume.superblock().features.metadata_csum();
        if let Some(bitmap) = &self.blocks {
            let (lo, hi) = (raw.free_clusters_lo.get(), raw.free_clusters_hi.get());
            (raw.free_clusters_lo, raw.free_clusters_hi) = add(lo, hi, bitmap.cleared);
            if sums {
                let sum = block_sum(volume, &bitmap.bytes);
                raw.block_bitmap_csum_lo = (sum as u16).into();
                raw.block_bitmap_csum_hi = ((sum >> 16) as u16).into();
            }
        }
        if let Some(bitmap) = &self.inodes {
            let (lo, hi) = (raw.free_inodes_lo.get(), raw.free_inodes_hi.get());
            (raw.free_inodes_lo, raw.free_inodes_hi) = add(lo, hi, bitmap.cleared);
            let (lo, hi) = (raw.used_dirs_lo.get(), raw.used_dirs_hi.get());
            (raw.used_dirs_lo, raw.used_dirs_hi) = add(lo, hi, self.directories.wrapping_neg());
            if sums {
                let sum = inode_sum(volume, &bitmap.bytes);
                raw.inode_bitmap_csum_lo = (sum as u16).into();
                raw.inode_bitmap_csum_hi = ((sum >> 16) as u16).into();
            }
        }
    }
}

impl Bitmap {
    fn clear(&mut self, bit: u32) -> std::result::Result<(), ()> {
        let byte = self.bytes.get_mut((bit / 8) as usize).ok_or(())?;
        let mask = 1 << (bit % 8);
        if *byte & mask == 0 {
            return Err(());
        }
        *byte &= !mask;
        self.cleared += 1;
        Ok(())
    }
}

fn block_sum(volume: &Volume, bytes: &[u8]) -> u32 {
    let superblock = volume.superblock();
    let used = (superblock.blocks_per_group / superblock.cluster_ratio / 8) as usize;
    crc32c(superblock.checksum_seed, bytes.get(..used).unwrap_or(bytes))
}

fn inode_sum(volume: &Volume, bytes: &[u8]) -> u32 {
    let superblock = volume.superblock();
    let used = (superblock.inodes_per_group / 8) as usize;
    crc32c(superblock.checksum_seed, bytes.get(..used).unwrap_or(bytes))
}

fn read_block_bitmap(volume: &Volume, number: u32) -> Result<Bitmap> {
    let (group, raw) = descriptor(volume, number)?;
    let what = || format!("block bitmap of group {number}");
    if group.flags & BLOCK_UNINIT != 0 {
        return Err(Error::corrupt(what(), "is not in use, though blocks of the group are"));
    }
    let bitmap = read_bitmap(volume, group.block_bitmap)?;
    let sums = (raw.block_bitmap_csum_lo.get(), raw.block_bitmap_csum_hi.get());
    check_sum(volume, what, sums, block_sum(volume, &bitmap.bytes))?;
    Ok(bitmap)
}

fn read_inode_bitmap(volume: &Volume, number: u32) -> Result<Bitmap> {
    let (group, raw) = descriptor(volume, number)?;
    let what = || format!("inode bitmap of group {number}");
    if group.flags & INODE_UNINIT != 0 {
        return Err(Error::corrupt(what(), "is not in use, though inodes of the group are"));
    }
    let bitmap = read_bitmap(volume, group.inode_bitmap)?;
    let sums = (raw.inode_bitmap_csum_lo.get(), raw.inode_bitmap_csum_hi.get());
    check_sum(volume, what, sums, inode_sum(volume, &bitmap.bytes))?;
    Ok(bitmap)
}

fn check_sum(
    volume: &Volume,
    what: impl Fn() -> String,
    (lo, hi): (u16, u16),
    computed: u32,
) -> Result<()> {
    let superblock = volume.superblock();
    // Descriptors of 32 bytes have room for half of it.
    let (found, computed) = if superblock.desc_size >= 64 {
        (u32::from(hi) << 16 | u32::from(lo), computed)
    } else {
        (lo.into(), computed & 0xffff)
    };
    if superblock.features.metadata_csum() && found != computed {
        let why = format!("checksum {found:#010x}, computed {computed:#010x}");
        return Err(Error::corrupt(what(), why));
    }
    Ok(())
}

fn read_bitmap(volume: &Volume, place: Block) -> Result<Bitmap> {
    let superblock = volume.superblock();
    let mut bytes = vec![0; superblock.block_size as usize];
    volume.source().read_at(place.0 << superblock.block_bits, &mut bytes)?;
    Ok(Bitmap { place, bytes, cleared: 0 })
}

fn descriptor(volume: &Volume, number: u32) -> Result<(Group, RawGroup)> {
    let (_, bytes) = read_descriptor(volume, number)?;
    let group = Group::parse(&bytes, number, volume.superblock())?;
    let mut raw = RawGroup::new_zeroed();
    let known = bytes.len().min(size_of::<RawGroup>());
    raw.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
    Ok((group, raw))
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
