//! Superblocks, their features and numbers, and the group descriptors that they describe.
#![no_main]

use cfs::disk::group::{self, Group};
use cfs::disk::superblock::{RawSuperblock, SIZE, Superblock};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Where a descriptor's checksum lies.
const GROUP_CHECKSUM: usize = 0x1e;

fuzz_target!(|data: &[u8]| {
    let _ = Superblock::parse(data);
    let Some((bytes, descriptors)) = data.split_at_checked(SIZE) else { return };
    let Ok(mut raw) = RawSuperblock::read_from_bytes(bytes) else { return };
    raw.update_checksum();
    let Ok(superblock) = Superblock::parse(raw.as_bytes()) else { return };
    let _ = superblock.features.access();
    superblock.volume_size();
    superblock.inode_table_blocks();
    superblock.desc_blocks();
    let last = superblock.groups - 1;
    for number in [0, 1, superblock.groups / 2, last] {
        let number = number.min(last);
        superblock.group_start(number);
        superblock.group_has_super(number);
        superblock.desc_blocks_in_group(number);
        superblock.desc_block(number / superblock.descs_per_block());
    }
    for (number, bytes) in descriptors.chunks_exact(superblock.desc_size as usize).enumerate() {
        let number = number as u32 % superblock.groups;
        let mut bytes = bytes.to_vec();
        if let Some(sum) = group::checksum(&bytes, number, &superblock) {
            bytes[GROUP_CHECKSUM..][..2].copy_from_slice(&sum.to_le_bytes());
        }
        if let Ok(group) = Group::parse(&bytes, number, &superblock) {
            assert!(group.inode_table.0 < superblock.blocks_count);
        }
    }
});
