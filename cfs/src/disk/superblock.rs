//! The superblock: 1024 bytes at byte 1024 of the volume.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::features::{Compat, Features, Incompat, RoCompat};
use super::{assert_layout, htree};
use crate::id::{Block, Ino};
use crate::limits::{MAX_BLOCK_SIZE, MAX_GROUPS, MIN_BLOCK_SIZE, MIN_INODE_SIZE};
use crate::{Error, Result};

/// Where the superblock is, in bytes from the volume's start.
pub const OFFSET: u64 = 1024;
/// Bytes of the superblock.
pub const SIZE: usize = 1024;
/// The magic number of ext2, ext3 and ext4.
pub const MAGIC: u16 = 0xef53;

/// The superblock as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawSuperblock {
    pub(crate) inodes_count: U32,
    pub(crate) blocks_count_lo: U32,
    pub(crate) r_blocks_count_lo: U32,
    pub(crate) free_blocks_count_lo: U32,
    pub(crate) free_inodes_count: U32,
    pub(crate) first_data_block: U32,
    pub(crate) log_block_size: U32,
    pub(crate) log_cluster_size: U32,
    pub(crate) blocks_per_group: U32,
    pub(crate) clusters_per_group: U32,
    pub(crate) inodes_per_group: U32,
    pub(crate) mtime: U32,
    pub(crate) wtime: U32,
    pub(crate) mnt_count: U16,
    pub(crate) max_mnt_count: U16,
    pub(crate) magic: U16,
    pub(crate) state: U16,
    pub(crate) errors: U16,
    pub(crate) minor_rev_level: U16,
    pub(crate) lastcheck: U32,
    pub(crate) checkinterval: U32,
    pub(crate) creator_os: U32,
    pub(crate) rev_level: U32,
    pub(crate) def_resuid: U16,
    pub(crate) def_resgid: U16,
    pub(crate) first_ino: U32,
    pub(crate) inode_size: U16,
    pub(crate) block_group_nr: U16,
    pub(crate) feature_compat: U32,
    pub(crate) feature_incompat: U32,
    pub(crate) feature_ro_compat: U32,
    pub(crate) uuid: [u8; 16],
    pub(crate) volume_name: [u8; 16],
    pub(crate) last_mounted: [u8; 64],
    pub(crate) algorithm_usage_bitmap: U32,
    pub(crate) prealloc_blocks: u8,
    pub(crate) prealloc_dir_blocks: u8,
    pub(crate) reserved_gdt_blocks: U16,
    pub(crate) journal_uuid: [u8; 16],
    pub(crate) journal_inum: U32,
    pub(crate) journal_dev: U32,
    pub(crate) last_orphan: U32,
    pub(crate) hash_seed: [U32; 4],
    pub(crate) def_hash_version: u8,
    pub(crate) jnl_backup_type: u8,
    pub(crate) desc_size: U16,
    pub(crate) default_mount_opts: U32,
    pub(crate) first_meta_bg: U32,
    pub(crate) mkfs_time: U32,
    pub(crate) jnl_blocks: [U32; 17],
    pub(crate) blocks_count_hi: U32,
    pub(crate) r_blocks_count_hi: U32,
    pub(crate) free_blocks_count_hi: U32,
    pub(crate) min_extra_isize: U16,
    pub(crate) want_extra_isize: U16,
    pub(crate) flags: U32,
    pub(crate) raid_stride: U16,
    pub(crate) mmp_update_interval: U16,
    pub(crate) mmp_block: U64,
    pub(crate) raid_stripe_width: U32,
    pub(crate) log_groups_per_flex: u8,
    pub(crate) checksum_type: u8,
    pub(crate) reserved_pad: U16,
    pub(crate) kbytes_written: U64,
    pub(crate) snapshot_inum: U32,
    pub(crate) snapshot_id: U32,
    pub(crate) snapshot_r_blocks_count: U64,
    pub(crate) snapshot_list: U32,
    pub(crate) error_count: U32,
    pub(crate) first_error_time: U32,
    pub(crate) first_error_ino: U32,
    pub(crate) first_error_block: U64,
    pub(crate) first_error_func: [u8; 32],
    pub(crate) first_error_line: U32,
    pub(crate) last_error_time: U32,
    pub(crate) last_error_ino: U32,
    pub(crate) last_error_line: U32,
    pub(crate) last_error_block: U64,
    pub(crate) last_error_func: [u8; 32],
    pub(crate) mount_opts: [u8; 64],
    pub(crate) usr_quota_inum: U32,
    pub(crate) grp_quota_inum: U32,
    pub(crate) overhead_clusters: U32,
    pub(crate) backup_bgs: [U32; 2],
    pub(crate) encrypt_algos: [u8; 4],
    pub(crate) encrypt_pw_salt: [u8; 16],
    pub(crate) lpf_ino: U32,
    pub(crate) prj_quota_inum: U32,
    pub(crate) checksum_seed: U32,
    pub(crate) wtime_hi: u8,
    pub(crate) mtime_hi: u8,
    pub(crate) mkfs_time_hi: u8,
    pub(crate) lastcheck_hi: u8,
    pub(crate) first_error_time_hi: u8,
    pub(crate) last_error_time_hi: u8,
    pub(crate) first_error_errcode: u8,
    pub(crate) last_error_errcode: u8,
    pub(crate) encoding: U16,
    pub(crate) encoding_flags: U16,
    pub(crate) orphan_file_inum: U32,
    pub(crate) reserved: [U32; 94],
    pub(crate) checksum: U32,
}

assert_layout!(RawSuperblock, SIZE, {
    0x00 inodes_count, 0x04 blocks_count_lo, 0x08 r_blocks_count_lo, 0x0c free_blocks_count_lo,
    0x10 free_inodes_count, 0x14 first_data_block, 0x18 log_block_size, 0x1c log_cluster_size,
    0x20 blocks_per_group, 0x24 clusters_per_group, 0x28 inodes_per_group, 0x2c mtime,
    0x30 wtime, 0x34 mnt_count, 0x36 max_mnt_count, 0x38 magic, 0x3a state, 0x3c errors,
    0x3e minor_rev_level, 0x40 lastcheck, 0x44 checkinterval, 0x48 creator_os, 0x4c rev_level,
    0x50 def_resuid, 0x52 def_resgid, 0x54 first_ino, 0x58 inode_size, 0x5a block_group_nr,
    0x5c feature_compat, 0x60 feature_incompat, 0x64 feature_ro_compat, 0x68 uuid,
    0x78 volume_name, 0x88 last_mounted, 0xc8 algorithm_usage_bitmap, 0xcc prealloc_blocks,
    0xcd prealloc_dir_blocks, 0xce reserved_gdt_blocks, 0xd0 journal_uuid, 0xe0 journal_inum,
    0xe4 journal_dev, 0xe8 last_orphan, 0xec hash_seed, 0xfc def_hash_version,
    0xfd jnl_backup_type, 0xfe desc_size, 0x100 default_mount_opts, 0x104 first_meta_bg,
    0x108 mkfs_time, 0x10c jnl_blocks, 0x150 blocks_count_hi, 0x154 r_blocks_count_hi,
    0x158 free_blocks_count_hi, 0x15c min_extra_isize, 0x15e want_extra_isize, 0x160 flags,
    0x164 raid_stride, 0x166 mmp_update_interval, 0x168 mmp_block, 0x170 raid_stripe_width,
    0x174 log_groups_per_flex, 0x175 checksum_type, 0x176 reserved_pad, 0x178 kbytes_written,
    0x180 snapshot_inum, 0x184 snapshot_id, 0x188 snapshot_r_blocks_count, 0x190 snapshot_list,
    0x194 error_count, 0x198 first_error_time, 0x19c first_error_ino, 0x1a0 first_error_block,
    0x1a8 first_error_func, 0x1c8 first_error_line, 0x1cc last_error_time, 0x1d0 last_error_ino,
    0x1d4 last_error_line, 0x1d8 last_error_block, 0x1e0 last_error_func, 0x200 mount_opts,
    0x240 usr_quota_inum, 0x244 grp_quota_inum, 0x248 overhead_clusters, 0x24c backup_bgs,
    0x254 encrypt_algos, 0x258 encrypt_pw_salt, 0x268 lpf_ino, 0x26c prj_quota_inum,
    0x270 checksum_seed, 0x274 wtime_hi, 0x275 mtime_hi, 0x276 mkfs_time_hi, 0x277 lastcheck_hi,
    0x278 first_error_time_hi, 0x279 last_error_time_hi, 0x27a first_error_errcode,
    0x27b last_error_errcode, 0x27c encoding, 0x27e encoding_flags, 0x280 orphan_file_inum,
    0x284 reserved, 0x3fc checksum,
});

impl RawSuperblock {
    /// What [`Self::checksum`](Self) must be under `metadata_csum`.
    pub fn computed_checksum(&self) -> u32 {
        crc32c(!0, &self.as_bytes()[..SIZE - 4])
    }

    /// Puts the checksum right after a change, where the volume has checksums.
    pub fn update_checksum(&mut self) {
        if self.features().metadata_csum() {
            self.checksum = self.computed_checksum().into();
        }
    }

    /// The three feature words.
    pub fn features(&self) -> Features {
        let extended = self.rev_level.get() > 0;
        let word = |word: U32| if extended { word.get() } else { 0 };
        Features {
            compat: Compat::from_bits_retain(word(self.feature_compat)),
            incompat: Incompat::from_bits_retain(word(self.feature_incompat)),
            ro_compat: RoCompat::from_bits_retain(word(self.feature_ro_compat)),
        }
    }
}

/// A superblock whose numbers fit together; every field is bounded as its comment says.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// Bytes of a block: a power of two, 1024 to 65,536.
    pub block_size: u32,
    /// log2 of [`Self::block_size`].
    pub block_bits: u32,
    /// Blocks of an allocation cluster: a power of two, 1 without `bigalloc`.
    pub cluster_ratio: u32,
    /// Blocks of the volume.
    pub blocks_count: u64,
    /// Blocks reserved for the superuser; at most [`Self::blocks_count`].
    pub reserved_blocks: u64,
    /// The user who may have reserved blocks.
    pub reserved_uid: u32,
    /// What is done about corrupt metadata: 1 nothing, 2 no more changes, 3 the machine stops.
    pub on_error: u16,
    /// The group whose members may have reserved blocks; 0 for none.
    pub reserved_gid: u32,
    /// The first block of group 0.
    pub first_data_block: u32,
    /// Blocks of a group, the last one apart.
    pub blocks_per_group: u32,
    /// Groups: at least 1, at most [`MAX_GROUPS`].
    pub groups: u32,
    /// Groups whose structures lie together: a power of two, 1 without `flex_bg`.
    pub flex_groups: u32,
    /// Inodes of the volume: `groups * inodes_per_group`.
    pub inodes_count: u32,
    /// Inodes of a group: at least one block of them.
    pub inodes_per_group: u32,
    /// Bytes of an inode: a power of two, 128 to the block size.
    pub inode_size: u32,
    /// Bytes of fields after the first 128 that a new inode has.
    pub new_extra_isize: u32,
    /// The first inode that is not reserved.
    pub first_ino: u32,
    /// Bytes of a group descriptor: 32, or a power of two from 64 to 1024 with `64bit`.
    pub desc_size: u32,
    /// Blocks reserved for growing the descriptor table.
    pub reserved_gdt_blocks: u32,
    /// The first meta-group, with `meta_bg`.
    pub first_meta_bg: u32,
    /// The groups that hold backups, with `sparse_super2`.
    pub backup_groups: [u32; 2],
    /// What the volume uses.
    pub features: Features,
    /// The volume's name for itself.
    pub uuid: [u8; 16],
    /// The label, padded with zeros.
    pub volume_name: [u8; 16],
    /// The seed of all `metadata_csum` checksums but this one's own.
    pub checksum_seed: u32,
    /// Whether and how names hash.
    pub hash: htree::HashSeed,
    /// The number of the algorithm for new hash trees.
    pub default_hash: u8,
    /// The journal's inode, if the journal lies on this volume.
    pub journal_inode: Option<Ino>,
    /// The journal's device number as recorded, if it lies elsewhere.
    pub journal_device: u32,
    /// The UUID of a journal that lies elsewhere.
    pub journal_uuid: [u8; 16],
    /// The head of the list of orphaned inodes.
    pub last_orphan: Option<Ino>,
    /// The orphan file's inode, with `orphan_file`.
    pub orphan_file: Option<Ino>,
    /// The files of quotas by user, group and project, with `quota`.
    pub quota_files: [Option<Ino>; 3],
    /// The block of multi-mount protection, with `mmp`.
    pub mmp_block: Option<Block>,
    /// Seconds between updates of that block.
    pub mmp_interval: u16,
    /// Clusters that no file can use, as last computed; 0 if never.
    pub overhead_clusters: u32,
    /// The state word: bit 0 cleanly unmounted, bit 1 errors found, bit 2 orphans being recovered.
    pub state: u16,
    /// Whether the volume was made by the Hurd.
    pub hurd: bool,
}

/// Errors were found on the volume ([`Superblock::state`]).
pub const STATE_ERRORS: u16 = 2;
/// The volume was cleanly unmounted ([`Superblock::state`]).
pub const STATE_CLEAN: u16 = 1;

impl TryFrom<&RawSuperblock> for Superblock {
    type Error = Error;

    /// Checks magic, checksum, features and geometry, in that order.
    fn try_from(raw: &RawSuperblock) -> Result<Self> {
        let magic = raw.magic.get();
        if magic != MAGIC {
            return Err(Error::NotExt(format!(
                "no ext2, ext3 or ext4 filesystem: magic number {magic:#06x} at byte 1080 \
                 ({MAGIC:#06x} expected)"
            )));
        }
        let features = raw.features();
        features.access()?;
        if features.metadata_csum() {
            check(raw.checksum_type, "checksum type", |&kind| kind == 1)?;
            let computed = raw.computed_checksum();
            if computed != raw.checksum.get() {
                return Err(bad(format!(
                    "checksum {:#010x}, computed {computed:#010x}",
                    raw.checksum.get()
                )));
            }
        }
        let blocks = Blocks::new(raw, &features)?;
        let inodes = Inodes::new(raw, &blocks)?;
        let desc_size = desc_size(raw, &features)?;
        let reserved_gdt_blocks = u32::from(raw.reserved_gdt_blocks.get());
        check(reserved_gdt_blocks, "reserved descriptor blocks", |&n| n <= blocks.size / 4)?;
        // Bounded where they are read, so that a bad one costs its own purpose alone.
        let inode = |number: U32| Some(Ino(number.get())).filter(|ino| ino.0 != 0);
        let has_journal = features.compat.contains(Compat::HAS_JOURNAL);
        let mmp = features.incompat.contains(Incompat::MMP);
        let mmp_block = check(raw.mmp_block.get(), "mmp block", |&block| {
            !mmp || (block > u64::from(blocks.first) && block < blocks.count)
        })?;
        Ok(Self {
            block_size: blocks.size,
            block_bits: blocks.size.trailing_zeros(),
            cluster_ratio: blocks.ratio,
            blocks_count: blocks.count,
            reserved_blocks: wide(raw.r_blocks_count_lo, raw.r_blocks_count_hi, &features)
                .min(blocks.count),
            reserved_uid: raw.def_resuid.get().into(),
            on_error: raw.errors.get(),
            reserved_gid: raw.def_resgid.get().into(),
            first_data_block: blocks.first,
            blocks_per_group: blocks.per_group,
            groups: blocks.groups,
            flex_groups: if features.incompat.contains(Incompat::FLEX_BG) {
                1u32.checked_shl(raw.log_groups_per_flex.into()).unwrap_or(1)
            } else {
                1
            },
            inodes_count: inodes.count,
            inodes_per_group: inodes.per_group,
            inode_size: inodes.size,
            new_extra_isize: new_extra_isize(raw, &features, inodes.size),
            first_ino: inodes.first,
            desc_size,
            reserved_gdt_blocks,
            first_meta_bg: raw.first_meta_bg.get(),
            backup_groups: raw.backup_bgs.map(U32::get),
            features,
            uuid: raw.uuid,
            volume_name: raw.volume_name,
            checksum_seed: if features.incompat.contains(Incompat::CSUM_SEED) {
                raw.checksum_seed.get()
            } else {
                crc32c(!0, &raw.uuid)
            },
            hash: htree::HashSeed::new(raw.hash_seed.map(U32::get), raw.flags.get()),
            default_hash: raw.def_hash_version,
            journal_inode: if has_journal { inode(raw.journal_inum) } else { None },
            journal_device: if has_journal { raw.journal_dev.get() } else { 0 },
            journal_uuid: raw.journal_uuid,
            last_orphan: inode(raw.last_orphan),
            orphan_file: if features.compat.contains(Compat::ORPHAN_FILE) {
                inode(raw.orphan_file_inum)
            } else {
                None
            },
            quota_files: if features.ro_compat.contains(RoCompat::QUOTA) {
                [raw.usr_quota_inum, raw.grp_quota_inum, raw.prj_quota_inum].map(inode)
            } else {
                [None; 3]
            },
            mmp_block: mmp.then_some(Block(mmp_block)),
            mmp_interval: raw.mmp_update_interval.get(),
            overhead_clusters: raw.overhead_clusters.get(),
            state: raw.state.get(),
            hurd: raw.creator_os.get() == CREATOR_HURD,
        })
    }
}

const CREATOR_HURD: u32 = 1;

impl Superblock {
    /// From the first bytes of [`OFFSET`]; for [`SIZE`] bytes and more.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (raw, _) = RawSuperblock::ref_from_prefix(bytes)
            .map_err(|_| Error::NotExt(format!("superblock of {} bytes", bytes.len())))?;
        Self::try_from(raw)
    }

    /// Bytes of the volume.
    pub fn volume_size(&self) -> u64 {
        self.blocks_count << self.block_bits
    }

    /// The first block of a group.
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// Blocks of a group's inode table.
    pub fn inode_table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(u64::from(self.block_size))
    }

    /// Whether a group begins with a copy of the superblock.
    pub fn group_has_super(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.compat.contains(Compat::SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || !self.features.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        [3, 5, 7].into_iter().any(|base: u32| {
            std::iter::successors(Some(base), |power| power.checked_mul(base))
                .take_while(|&power| power <= group)
                .any(|power| power == group)
        })
    }

    /// Descriptors in one block.
    pub fn descs_per_block(&self) -> u32 {
        self.block_size / self.desc_size
    }

    /// Blocks of the whole descriptor table.
    pub fn desc_blocks(&self) -> u32 {
        self.groups.div_ceil(self.descs_per_block())
    }

    /// Where the `index`-th block of the descriptor table lies.
    pub fn desc_block(&self, index: u32) -> Block {
        let meta_bg = self.features.incompat.contains(Incompat::META_BG);
        let super_block = OFFSET / u64::from(self.block_size);
        if !meta_bg || index < self.first_meta_bg {
            return Block(super_block + 1 + u64::from(index));
        }
        let group = index.saturating_mul(self.descs_per_block());
        let mut block = self.group_start(group) + u64::from(self.group_has_super(group));
        // The superblock is in block 1 although group 0 starts at block 0.
        if self.block_size == 1024 && index == 0 && self.first_data_block == 0 {
            block += 1;
        }
        Block(block)
    }

    /// How many blocks of the descriptor table (reserved ones not counted) lie in a group.
    pub fn desc_blocks_in_group(&self, group: u32) -> u32 {
        let meta_bg = self.features.incompat.contains(Incompat::META_BG);
        let per_block = self.descs_per_block();
        if !meta_bg || group / per_block < self.first_meta_bg {
            return match (self.group_has_super(group), meta_bg) {
                (false, _) => 0,
                (true, true) => self.first_meta_bg.min(self.desc_blocks()),
                (true, false) => self.desc_blocks(),
            };
        }
        let place = group % per_block;
        u32::from(place == 0 || place == 1 || place == per_block - 1)
    }
}

struct Blocks {
    size: u32,
    ratio: u32,
    count: u64,
    first: u32,
    per_group: u32,
    groups: u32,
}

impl Blocks {
    fn new(raw: &RawSuperblock, features: &Features) -> Result<Self> {
        let bigalloc = features.ro_compat.contains(RoCompat::BIGALLOC);
        let max_log = MAX_BLOCK_SIZE.ilog2() - MIN_BLOCK_SIZE.ilog2();
        let log = check(raw.log_block_size.get(), "log_block_size", |&log| log <= max_log)?;
        let cluster_log = check(raw.log_cluster_size.get(), "log_cluster_size", |&cluster| {
            if bigalloc { cluster >= log && cluster <= MAX_LOG_CLUSTER } else { cluster == log }
        })?;
        let size = MIN_BLOCK_SIZE << log;
        let ratio = 1u32 << (cluster_log - log);
        let clusters =
            check(raw.clusters_per_group.get(), "clusters_per_group", |&n| n > 0 && n <= 8 * size);
        let per_group = raw.blocks_per_group.get();
        if bigalloc {
            let clusters = clusters?;
            check(per_group, "blocks_per_group", |&n| Some(n) == clusters.checked_mul(ratio))?;
        } else {
            check(per_group, "blocks_per_group", |&n| n > 0 && n <= 8 * size)?;
        }
        let count = wide(raw.blocks_count_lo, raw.blocks_count_hi, features);
        // Byte offsets of the volume stay below 2^63.
        check(count, "blocks_count", |&n| n > 0 && n <= (i64::MAX as u64) / u64::from(size))?;
        let first = check(raw.first_data_block.get(), "first_data_block", |&n| {
            u64::from(n) < count && (n == 1 || (n == 0 && (size > 1024 || ratio > 1)))
        })?;
        let groups = (count - u64::from(first)).div_ceil(u64::from(per_group));
        check(groups, "number of groups", |&n| n <= u64::from(MAX_GROUPS))?;
        Ok(Self { size, ratio, count, first, per_group, groups: groups as u32 })
    }
}

/// Clusters of up to 1 GiB: their log2 over 1 KiB.
const MAX_LOG_CLUSTER: u32 = 20;

struct Inodes {
    count: u32,
    per_group: u32,
    size: u32,
    first: u32,
}

impl Inodes {
    fn new(raw: &RawSuperblock, blocks: &Blocks) -> Result<Self> {
        let (size, first) = if raw.rev_level.get() == 0 {
            (MIN_INODE_SIZE, OLD_FIRST_INO)
        } else {
            let size = check(u32::from(raw.inode_size.get()), "inode size", |&n| {
                n.is_power_of_two() && (MIN_INODE_SIZE..=blocks.size).contains(&n)
            })?;
            (size, check(raw.first_ino.get(), "first_ino", |&n| n >= OLD_FIRST_INO)?)
        };
        let per_group = check(raw.inodes_per_group.get(), "inodes_per_group", |&n| {
            n >= blocks.size / size && n <= 8 * blocks.size
        })?;
        let expected = u64::from(blocks.groups) * u64::from(per_group);
        let count = check(raw.inodes_count.get(), "inodes_count", |&n| u64::from(n) == expected)?;
        Ok(Self { count, per_group, size, first })
    }
}

const OLD_FIRST_INO: u32 = 11;

fn desc_size(raw: &RawSuperblock, features: &Features) -> Result<u32> {
    if !features.incompat.contains(Incompat::BITS64) {
        return Ok(32);
    }
    check(u32::from(raw.desc_size.get()), "group descriptor size", |&n| {
        n.is_power_of_two() && (64..=1024).contains(&n)
    })
}

/// What the volume asks for, if it fits, but all fields of today at least.
fn new_extra_isize(raw: &RawSuperblock, features: &Features, inode_size: u32) -> u32 {
    let room = inode_size - MIN_INODE_SIZE;
    let known = (size_of::<super::inode::RawInode>() as u32 - MIN_INODE_SIZE).min(room);
    let wanted = raw.want_extra_isize.get().max(raw.min_extra_isize.get());
    let wanted = u32::from(wanted).max(known);
    let fits = wanted <= room && wanted.is_multiple_of(4);
    let asked = features.ro_compat.contains(RoCompat::EXTRA_ISIZE);
    if asked && fits { wanted } else { known }
}

/// A count in two halves, of which the upper is there with `64bit` alone.
fn wide(lo: U32, hi: U32, features: &Features) -> u64 {
    let hi = if features.incompat.contains(Incompat::BITS64) { hi.get() } else { 0 };
    u64::from(hi) << 32 | u64::from(lo.get())
}

fn check<T: std::fmt::Display>(value: T, name: &str, ok: impl Fn(&T) -> bool) -> Result<T> {
    if ok(&value) { Ok(value) } else { Err(bad(format!("{name} {value} is out of range"))) }
}

fn bad(why: String) -> Error {
    Error::corrupt("superblock", why)
}

#[cfg(test)]
pub(crate) mod tests;
