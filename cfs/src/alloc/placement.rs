//! In which group a new inode, and its data, should be.
//!
//! Directories below the root are spread over the volume, and others stay near their parents until
//! the group has many of them or little room: so files that are used together lie together (Orlov's
//! allocator, as ext4 has it).

use std::sync::atomic::Ordering;

use super::Space;
use crate::disk::superblock::Superblock;

/// Groups of a flex group from which on data have groups of their own.
const FLEX_WITH_DATA_GROUPS: u32 = 4;

/// The group where the data of an inode of `group` begin. The first one of a flex group has the
/// structures of all: files leave it to directories.
pub(super) fn data_group(superblock: &Superblock, group: u32, regular: bool) -> u32 {
    let flex = superblock.flex_groups;
    if flex < FLEX_WITH_DATA_GROUPS {
        return group;
    }
    let first = group / flex * flex;
    let next = first + u32::from(regular);
    if next < superblock.groups { next } else { first }
}

/// What a flex group has.
#[derive(Clone, Copy, Default)]
struct Room {
    inodes: u64,
    blocks: u64,
    dirs: u64,
}

impl Space {
    /// The first group to look for an inode of a file in.
    pub(super) fn file_group(&self, parent: u32) -> u32 {
        let flex = self.superblock().flex_groups;
        self.first_with_inodes(parent / flex).unwrap_or(parent)
    }

    /// The first group to look for an inode of a directory in.
    pub(super) fn directory_group(&self, parent: u32, top_level: bool) -> u32 {
        let flex = self.superblock().flex_groups;
        let home = parent / flex;
        let count = (self.groups.len() as u32).div_ceil(flex);
        let best = if top_level { self.emptiest(count) } else { self.roomy(home, count) };
        best.or_else(|| self.above_average(home, count))
            .and_then(|chosen| self.first_with_inodes(chosen))
            .unwrap_or(parent)
    }

    /// Of the flex groups with room over the average, one with the fewest directories.
    fn emptiest(&self, count: u32) -> Option<u32> {
        let average = self.average(count);
        let start = self.spread.fetch_add(1, Ordering::Relaxed).wrapping_mul(GOLDEN) % count;
        let mut best = None;
        for flex in (start..count).chain(0..start) {
            let room = self.room(flex);
            let enough =
                room.inodes > 0 && room.inodes >= average.inodes && room.blocks >= average.blocks;
            if enough && best.is_none_or(|(_, dirs)| room.dirs < dirs) {
                best = Some((flex, room.dirs));
            }
        }
        best.map(|(flex, _)| flex)
    }

    /// The next flex group that is not much fuller than the average.
    fn roomy(&self, home: u32, count: u32) -> Option<u32> {
        let superblock = self.superblock();
        let flex = u64::from(superblock.flex_groups);
        let average = self.average(count);
        let inodes = u64::from(superblock.inodes_per_group) * flex;
        let blocks = u64::from(superblock.blocks_per_group) * flex;
        let least_inodes = average.inodes.saturating_sub(inodes / 4).max(1);
        let least_blocks = average.blocks.saturating_sub(blocks / 4);
        let most_dirs = average.dirs + inodes / 16;
        (home..count).chain(0..home).find(|flex| {
            let room = self.room(*flex);
            room.dirs < most_dirs && room.inodes >= least_inodes && room.blocks >= least_blocks
        })
    }

    fn above_average(&self, home: u32, count: u32) -> Option<u32> {
        let average = self.average(count).inodes.max(1);
        (home..count).chain(0..home).find(|flex| self.room(*flex).inodes >= average)
    }

    fn average(&self, count: u32) -> Room {
        let count = u64::from(count);
        let blocks = self.unpromised.load(Ordering::Relaxed).max(0) as u64;
        Room {
            inodes: self.free_inodes.load(Ordering::Relaxed) / count,
            blocks: blocks / count,
            dirs: self.used_dirs.load(Ordering::Relaxed) / count,
        }
    }

    fn room(&self, flex: u32) -> Room {
        let mut room = Room::default();
        for group in &self.groups[self.members(flex)] {
            room.inodes += u64::from(group.free_inodes.load(Ordering::Relaxed));
            room.blocks += u64::from(group.free.load(Ordering::Relaxed));
            room.dirs += u64::from(group.used_dirs.load(Ordering::Relaxed));
        }
        room
    }

    fn first_with_inodes(&self, flex: u32) -> Option<u32> {
        let members = self.members(flex);
        let has = |number: &usize| self.groups[*number].free_inodes.load(Ordering::Relaxed) > 0;
        members.into_iter().find(has).map(|number| number as u32)
    }

    fn members(&self, flex: u32) -> std::ops::Range<usize> {
        let size = self.superblock().flex_groups as usize;
        let start = flex as usize * size;
        start..(start + size).min(self.groups.len())
    }
}

/// Spreads successive numbers over a range.
const GOLDEN: u32 = 0x9e37_79b1;
