//! Where a volume keeps its own structures, which no file may claim.

use std::ops::Range;

use crate::disk::features::Incompat;
use crate::disk::group::Group;
use crate::disk::superblock::Superblock;
use crate::id::Block;

/// Ranges of blocks, sorted and apart.
pub(crate) struct Zones {
    ranges: Box<[Range<u64>]>,
    blocks: Range<u64>,
}

impl Zones {
    /// Superblocks, descriptors, bitmaps and inode tables of a volume, as far as they are known.
    pub(crate) fn new(superblock: &Superblock, groups: &[Option<Group>]) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(groups.len() * 2);
        let table = superblock.inode_table_blocks();
        for (number, group) in groups.iter().enumerate() {
            let start = superblock.group_start(number as u32);
            let base = base_blocks(superblock, number as u32);
            if base > 0 {
                ranges.push(start..start + base);
            }
            if let Some(group) = group {
                ranges.push(group.block_bitmap.0..group.block_bitmap.0 + 1);
                ranges.push(group.inode_bitmap.0..group.inode_bitmap.0 + 1);
                ranges.push(group.inode_table.0..group.inode_table.0 + table);
            }
        }
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        let blocks = u64::from(superblock.first_data_block) + 1..superblock.blocks_count;
        Self { ranges: ranges.into(), blocks }
    }

    /// Whether blocks may belong to a file.
    pub(crate) fn allow(&self, start: Block, len: u64) -> bool {
        let Some(end) = start.0.checked_add(len) else { return false };
        if start.0 < self.blocks.start || end > self.blocks.end {
            return false;
        }
        let next = self.ranges.partition_point(|range| range.end <= start.0);
        self.ranges.get(next).is_none_or(|range| range.start >= end)
    }

    /// The ranges that reach into these blocks.
    pub(crate) fn within(&self, blocks: Range<u64>) -> impl Iterator<Item = &Range<u64>> {
        let first = self.ranges.partition_point(|range| range.end <= blocks.start);
        self.ranges[first..].iter().take_while(move |range| range.start < blocks.end)
    }

    /// Iterates over the ranges.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter()
    }
}

/// Blocks at a group's start: superblock, descriptors, and what is reserved for more of these.
pub(crate) fn base_blocks(superblock: &Superblock, group: u32) -> u64 {
    let has_super = superblock.group_has_super(group);
    let descriptors = superblock.desc_blocks_in_group(group);
    let meta_bg = superblock.features.incompat.contains(Incompat::META_BG)
        && group / superblock.descs_per_block() >= superblock.first_meta_bg;
    let reserved = if has_super && !meta_bg { superblock.reserved_gdt_blocks } else { 0 };
    u64::from(has_super) + u64::from(descriptors) + u64::from(reserved)
}
