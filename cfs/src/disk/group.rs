//! Group descriptors.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::checksum::{crc16, crc32c};
use super::features::RoCompat;
use super::superblock::Superblock;
use crate::id::Block;
use crate::{Error, Result};

/// A group descriptor as it lies on disk; without `64bit` only its first 32 bytes exist.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawGroup {
    pub(crate) block_bitmap_lo: U32,
    pub(crate) inode_bitmap_lo: U32,
    pub(crate) inode_table_lo: U32,
    pub(crate) free_clusters_lo: U16,
    pub(crate) free_inodes_lo: U16,
    pub(crate) used_dirs_lo: U16,
    pub(crate) flags: U16,
    pub(crate) exclude_bitmap_lo: U32,
    pub(crate) block_bitmap_csum_lo: U16,
    pub(crate) inode_bitmap_csum_lo: U16,
    pub(crate) itable_unused_lo: U16,
    pub(crate) checksum: U16,
    pub(crate) block_bitmap_hi: U32,
    pub(crate) inode_bitmap_hi: U32,
    pub(crate) inode_table_hi: U32,
    pub(crate) free_clusters_hi: U16,
    pub(crate) free_inodes_hi: U16,
    pub(crate) used_dirs_hi: U16,
    pub(crate) itable_unused_hi: U16,
    pub(crate) exclude_bitmap_hi: U32,
    pub(crate) block_bitmap_csum_hi: U16,
    pub(crate) inode_bitmap_csum_hi: U16,
    pub(crate) reserved: U32,
}

assert_layout!(RawGroup, 64, {
    0x00 block_bitmap_lo, 0x04 inode_bitmap_lo, 0x08 inode_table_lo, 0x0c free_clusters_lo,
    0x0e free_inodes_lo, 0x10 used_dirs_lo, 0x12 flags, 0x14 exclude_bitmap_lo,
    0x18 block_bitmap_csum_lo, 0x1a inode_bitmap_csum_lo, 0x1c itable_unused_lo, 0x1e checksum,
    0x20 block_bitmap_hi, 0x24 inode_bitmap_hi, 0x28 inode_table_hi, 0x2c free_clusters_hi,
    0x2e free_inodes_hi, 0x30 used_dirs_hi, 0x32 itable_unused_hi, 0x34 exclude_bitmap_hi,
    0x38 block_bitmap_csum_hi, 0x3a inode_bitmap_csum_hi, 0x3c reserved,
});

/// Where the checksum lies in a descriptor.
const CHECKSUM: usize = 0x1e;

/// A group whose places lie within the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// The bitmap of the group's clusters.
    pub block_bitmap: Block,
    /// The bitmap of the group's inodes.
    pub inode_bitmap: Block,
    /// The first block of the group's inodes.
    pub inode_table: Block,
    /// Clusters not in use.
    pub free_clusters: u32,
    /// Inodes not in use.
    pub free_inodes: u32,
    /// Inodes that are directories.
    pub used_dirs: u32,
    /// Inodes at the end of the table that were never used; 0 where descriptors have no checksum.
    pub itable_unused: u32,
    /// The checksum of the bitmap of clusters, as far as the descriptor has room for it.
    pub block_bitmap_sum: u32,
    /// The checksum of the bitmap of inodes, as far as the descriptor has room for it.
    pub inode_bitmap_sum: u32,
    /// [`INODE_UNINIT`], [`BLOCK_UNINIT`], [`INODE_ZEROED`]; none where descriptors have no
    /// checksum.
    pub flags: u16,
}

/// The group's inodes were never used: its bitmap of inodes is not on disk ([`Group::flags`]).
pub const INODE_UNINIT: u16 = 1;
/// The group's blocks were never used: its bitmap of clusters is not on disk ([`Group::flags`]).
pub const BLOCK_UNINIT: u16 = 2;
/// The whole inode table is on disk ([`Group::flags`]).
pub const INODE_ZEROED: u16 = 4;

impl Group {
    /// Descriptor number `group` of a volume, from its `desc_size` bytes.
    pub fn parse(bytes: &[u8], group: u32, superblock: &Superblock) -> Result<Self> {
        let what = || format!("descriptor of group {group}");
        let size = superblock.desc_size as usize;
        let Some(bytes) = bytes.get(..size) else {
            return Err(Error::corrupt(what(), format!("{} of {size} bytes", bytes.len())));
        };
        let raw = RawGroup::load(bytes);
        if let Some(computed) = checksum(bytes, group, superblock) {
            let found = raw.checksum.get();
            if computed != found {
                let why = format!("checksum {found:#06x}, computed {computed:#06x}");
                return Err(Error::corrupt(what(), why));
            }
        }
        let place = |name: &str, lo: U32, hi: U32, len: u64| {
            let block = u64::from(hi.get()) << 32 | u64::from(lo.get());
            let first = u64::from(superblock.first_data_block);
            let fits = block.checked_add(len).is_some_and(|end| end <= superblock.blocks_count);
            if block > first && fits {
                Ok(Block(block))
            } else {
                Err(Error::corrupt(what(), format!("{name} at block {block}")))
            }
        };
        let checked = superblock.features.group_csum();
        let table = superblock.inode_table_blocks();
        Ok(Self {
            block_bitmap: place("block bitmap", raw.block_bitmap_lo, raw.block_bitmap_hi, 1)?,
            inode_bitmap: place("inode bitmap", raw.inode_bitmap_lo, raw.inode_bitmap_hi, 1)?,
            inode_table: place("inode table", raw.inode_table_lo, raw.inode_table_hi, table)?,
            free_clusters: wide(raw.free_clusters_lo, raw.free_clusters_hi),
            free_inodes: wide(raw.free_inodes_lo, raw.free_inodes_hi),
            used_dirs: wide(raw.used_dirs_lo, raw.used_dirs_hi),
            itable_unused: if checked {
                wide(raw.itable_unused_lo, raw.itable_unused_hi)
            } else {
                0
            },
            block_bitmap_sum: wide(raw.block_bitmap_csum_lo, raw.block_bitmap_csum_hi),
            inode_bitmap_sum: wide(raw.inode_bitmap_csum_lo, raw.inode_bitmap_csum_hi),
            flags: if checked { raw.flags.get() } else { 0 },
        })
    }
}

impl RawGroup {
    /// The fields of a descriptor; those that a small one does not have are zero.
    pub fn load(bytes: &[u8]) -> Self {
        let mut raw = Self::new_zeroed();
        let known = bytes.len().min(size_of::<Self>());
        raw.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
        raw
    }

    /// Puts the fields back into the descriptor they came from, with its checksum.
    pub fn store(&self, bytes: &mut [u8], group: u32, superblock: &Superblock) {
        let known = bytes.len().min(size_of::<Self>());
        bytes[..known].copy_from_slice(&self.as_bytes()[..known]);
        if let Some(sum) = checksum(bytes, group, superblock) {
            bytes[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Clusters not in use.
    pub fn set_free_clusters(&mut self, count: u32) {
        (self.free_clusters_lo, self.free_clusters_hi) = halves(count);
    }

    /// Inodes not in use.
    pub fn set_free_inodes(&mut self, count: u32) {
        (self.free_inodes_lo, self.free_inodes_hi) = halves(count);
    }

    /// Inodes that are directories.
    pub fn set_used_dirs(&mut self, count: u32) {
        (self.used_dirs_lo, self.used_dirs_hi) = halves(count);
    }

    /// Inodes at the end of the table that were never used.
    pub fn set_itable_unused(&mut self, count: u32) {
        (self.itable_unused_lo, self.itable_unused_hi) = halves(count);
    }

    /// The checksum of the bitmap of clusters, on volumes that have one.
    pub fn set_block_bitmap_sum(&mut self, sum: u32) {
        (self.block_bitmap_csum_lo, self.block_bitmap_csum_hi) = halves(sum);
    }

    /// The checksum of the bitmap of inodes, on volumes that have one.
    pub fn set_inode_bitmap_sum(&mut self, sum: u32) {
        (self.inode_bitmap_csum_lo, self.inode_bitmap_csum_hi) = halves(sum);
    }
}

fn wide(lo: U16, hi: U16) -> u32 {
    u32::from(hi.get()) << 16 | u32::from(lo.get())
}

fn halves(value: u32) -> (U16, U16) {
    ((value as u16).into(), ((value >> 16) as u16).into())
}

/// Checks the checksum of a bitmap, as its descriptor has it, on volumes that have one.
pub fn check_bitmap_sum(
    what: impl FnOnce() -> String,
    found: u32,
    computed: u32,
    superblock: &Superblock,
) -> Result<()> {
    // Descriptors of 32 bytes have room for half of it.
    let computed = if superblock.desc_size >= 64 { computed } else { computed & 0xffff };
    if superblock.features.metadata_csum() && found != computed {
        let why = format!("checksum {found:#010x}, computed {computed:#010x}");
        return Err(Error::corrupt(what(), why));
    }
    Ok(())
}

/// What the checksum of a descriptor must be, on volumes where it has one.
pub fn checksum(bytes: &[u8], group: u32, superblock: &Superblock) -> Option<u16> {
    let (head, tail) = bytes.split_at_checked(CHECKSUM)?;
    let tail = tail.get(2..)?;
    let number = group.to_le_bytes();
    if superblock.features.metadata_csum() {
        let parts: [&[u8]; 4] = [&number, head, &[0, 0], tail];
        let sum = parts.iter().fold(superblock.checksum_seed, |crc, part| crc32c(crc, part));
        Some(sum as u16)
    } else if superblock.features.ro_compat.contains(RoCompat::GDT_CSUM) {
        let parts: [&[u8]; 4] = [&superblock.uuid, &number, head, tail];
        Some(parts.iter().fold(!0, |crc, part| crc16(crc, part)))
    } else {
        None
    }
}
