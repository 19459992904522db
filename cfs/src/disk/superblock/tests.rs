use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;

/// What `mke2fs -t ext4 -b 1024` makes of 8 MiB, as far as the checks go.
pub(crate) fn sound() -> RawSuperblock {
    let mut raw = RawSuperblock::new_zeroed();
    raw.magic = MAGIC.into();
    raw.rev_level = 1.into();
    raw.blocks_count_lo = 8192.into();
    raw.first_data_block = 1.into();
    raw.blocks_per_group = 8192.into();
    raw.clusters_per_group = 8192.into();
    raw.inodes_per_group = 2048.into();
    raw.inodes_count = 2048.into();
    raw.first_ino = 11.into();
    raw.inode_size = 256.into();
    raw.desc_size = 64.into();
    raw.checksum_type = 1;
    raw.feature_compat = 0x103c.into();
    raw.feature_incompat = 0x22c2.into();
    raw.feature_ro_compat = 0x46b.into();
    raw.update_checksum();
    raw
}

#[test]
fn a_sound_superblock_is_taken() {
    let superblock = Superblock::try_from(&sound()).unwrap();
    assert_eq!((superblock.block_size, superblock.groups), (1024, 1));
    assert_eq!(superblock.desc_block(0), Block(2));
}

#[test]
fn a_wrong_checksum_is_named() {
    let mut raw = sound();
    raw.mtime = 1.into();
    let message = Superblock::try_from(&raw).unwrap_err().to_string();
    assert!(message.starts_with("superblock: checksum 0x"), "{message}");
}

#[test]
fn numbers_out_of_range_are_named() {
    type Change = fn(&mut RawSuperblock);
    let changes: [(&str, Change); 9] = [
        ("log_block_size 7", |raw| raw.log_block_size = 7.into()),
        ("log_cluster_size 1", |raw| raw.log_cluster_size = 1.into()),
        ("blocks_per_group 0", |raw| raw.blocks_per_group = 0.into()),
        ("blocks_per_group 8193", |raw| raw.blocks_per_group = 8193.into()),
        ("first_data_block 0", |raw| raw.first_data_block = 0.into()),
        ("inode size 192", |raw| raw.inode_size = 192.into()),
        ("inodes_per_group 3", |raw| raw.inodes_per_group = 3.into()),
        ("inodes_count 2049", |raw| raw.inodes_count = 2049.into()),
        ("group descriptor size 32", |raw| raw.desc_size = 32.into()),
    ];
    for (name, change) in changes {
        let mut raw = sound();
        change(&mut raw);
        raw.update_checksum();
        let message = Superblock::try_from(&raw).unwrap_err().to_string();
        assert!(message.starts_with(&format!("superblock: {name} is out of range")), "{message}");
    }
}

#[test]
fn backups_lie_at_the_powers_of_three_five_and_seven() {
    let superblock = Superblock::try_from(&sound()).unwrap();
    let groups: Vec<u32> = (0..130).filter(|&group| superblock.group_has_super(group)).collect();
    assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), SIZE),
        fix: bool,
    ) {
        let mut raw = RawSuperblock::read_from_bytes(&bytes[..]).unwrap();
        raw.magic = MAGIC.into();
        if fix {
            raw.feature_incompat = (raw.feature_incompat.get() & 0x1_e2c2).into();
            raw.log_block_size = (raw.log_block_size.get() % 8).into();
            raw.update_checksum();
        }
        if let Ok(superblock) = Superblock::try_from(&raw) {
            superblock.desc_block(superblock.desc_blocks() - 1);
            superblock.group_has_super(superblock.groups - 1);
        }
    }
}
