//! Attributes of inodes and of the volume.

use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::id::Ino;

use super::{Volume, zones};

/// What statx(2) and FUSE want to know about an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Which use of the number this is.
    pub generation: u32,
    /// What it is.
    pub kind: Kind,
    /// Type and permissions as `st_mode` has them.
    pub mode: u16,
    /// Names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project.
    pub project: u32,
    /// Major and minor number of a device node, else zeros.
    pub device: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes in use.
    pub blocks: u64,
    /// Bytes of a block of the volume.
    pub block_size: u32,
    /// Last read.
    pub atime: Timestamp,
    /// Last changed contents.
    pub mtime: Timestamp,
    /// Last changed at all.
    pub ctime: Timestamp,
    /// Made, where the inode says so.
    pub crtime: Option<Timestamp>,
    /// The flags as FS_IOC_GETFLAGS has them.
    pub flags: InodeFlags,
    /// How often it was changed.
    pub version: u64,
}

/// What statfs(2) tells, in blocks of the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks that files could have.
    pub blocks: u64,
    /// Blocks not in use.
    pub free: u64,
    /// Blocks not in use that are not reserved.
    pub available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Inodes not in use.
    pub free_inodes: u64,
    /// Bytes of the longest name.
    pub name_max: u32,
    /// `f_fsid`, from the UUID.
    pub id: u64,
}

/// Clusters that the kernel keeps back where there are extents: a 50th, but not more than this.
const RESERVED_CLUSTERS: u64 = 4096;

impl Volume {
    /// What an inode tells about itself.
    pub fn attr(&self, inode: &Inode) -> Attr {
        let inline = inode.flags.contains(InodeFlags::INLINE_DATA) && inode.kind == Kind::Regular;
        // As the kernel does, so that no program takes an inline file for one hole.
        let inline_blocks = if inline { inode.size.div_ceil(512) } else { 0 };
        Attr {
            ino: inode.ino,
            generation: inode.generation,
            kind: inode.kind,
            mode: inode.mode,
            links: inode.links.into(),
            uid: inode.uid,
            gid: inode.gid,
            project: inode.project,
            device: inode.device(),
            size: inode.size,
            blocks: inode.blocks.saturating_add(inline_blocks),
            block_size: self.superblock.block_size,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            crtime: inode.crtime,
            flags: inode.flags,
            version: inode.version,
        }
    }

    /// What the volume tells about itself, as the kernel would.
    pub fn statfs(&self) -> StatFs {
        let superblock = &self.superblock;
        let ratio = u64::from(superblock.cluster_ratio);
        let groups = || self.groups.iter().flatten();
        let free: u64 = groups().map(|group| u64::from(group.free_clusters)).sum();
        let free = (free * ratio).min(superblock.blocks_count);
        let (low, high) = superblock.uuid.split_at(8);
        let word = |bytes: &[u8]| {
            bytes.first_chunk().map_or(0, |bytes: &[u8; 8]| u64::from_le_bytes(*bytes))
        };
        StatFs {
            block_size: superblock.block_size,
            blocks: superblock.blocks_count.saturating_sub(self.overhead),
            free,
            available: free.saturating_sub(self.kept_from_users()),
            inodes: superblock.inodes_count.into(),
            free_inodes: groups().map(|group| u64::from(group.free_inodes)).sum(),
            name_max: 255,
            id: word(low) ^ word(high),
        }
    }

    /// Blocks that are kept for the maps of what was promised.
    pub(crate) fn held_back(&self) -> u64 {
        let ratio = u64::from(self.superblock.cluster_ratio);
        (self.superblock.blocks_count / ratio / 50).min(RESERVED_CLUSTERS) * ratio
    }

    /// Free blocks that statfs(2) does not tell users of. Without extents the kernel keeps none
    /// for maps.
    pub(crate) fn kept_from_users(&self) -> u64 {
        let extents = self.superblock.features.incompat.contains(Incompat::EXTENTS);
        self.superblock.reserved_blocks + if extents { self.held_back() } else { 0 }
    }

    /// Blocks that no file can have: structures of the volume, and its journal.
    pub(super) fn count_overhead(&self) -> u64 {
        let superblock = &self.superblock;
        let ratio = u64::from(superblock.cluster_ratio);
        let bigalloc = superblock.features.ro_compat.contains(RoCompat::BIGALLOC);
        let recorded = u64::from(superblock.overhead_clusters);
        if bigalloc && recorded > 0 && recorded <= superblock.blocks_count {
            return recorded * ratio;
        }
        let mut blocks = u64::from(superblock.first_data_block);
        if bigalloc {
            blocks += self.clusters_of_structures() * ratio;
        } else {
            let each = superblock.inode_table_blocks() + 2;
            let groups =
                (0..superblock.groups).map(|group| zones::base_blocks(superblock, group) + each);
            blocks += groups.sum::<u64>();
        }
        let journal = superblock
            .journal_inode
            .filter(|_| superblock.features.compat.contains(Compat::HAS_JOURNAL))
            .and_then(|ino| self.any_inode(ino).ok())
            .map_or(0, |inode| inode.size >> superblock.block_bits);
        blocks + journal.div_ceil(ratio) * ratio
    }

    fn clusters_of_structures(&self) -> u64 {
        let ratio = u64::from(self.superblock.cluster_ratio);
        let mut next = 0;
        let mut clusters = 0;
        for range in self.zones.iter() {
            let first = (range.start / ratio).max(next);
            next = next.max(range.end.div_ceil(ratio));
            clusters += next.saturating_sub(first);
        }
        clusters
    }
}
