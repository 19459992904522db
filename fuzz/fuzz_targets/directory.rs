//! Directories: blocks of entries, hash trees, names looked up and listed.
#![no_main]

use cfs::disk::dirent::{self, Entries};
use cfs::disk::htree::{self, HashSeed, HashVersion, Index, Root};
use cfs::disk::inode::InodeFlags;
use cfs::id::Ino;
use fuzz::image::SCRATCH_BLOCKS;
use fuzz::{Input, image, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let image = image::choose(image::volumes(), input.byte());
    let flags = input.byte();
    let name = {
        let len = usize::from(input.byte());
        input.bytes(len)
    };
    let contents = input.0;
    blocks(contents, flags, name);

    let (volume, first) = image::with_scratch(image, contents);
    let superblock = volume.superblock();
    let mut dir = volume.any_inode(Ino::ROOT).expect("the root directory");
    dir.ino = Ino(12);
    dir.flags = InodeFlags::EXTENTS;
    if flags & 1 != 0 {
        dir.flags |= InodeFlags::INDEX;
    }
    if flags & 2 != 0 {
        dir.flags |= InodeFlags::INLINE_DATA;
        dir.block.copy_from_slice(&Input(contents).array::<60>());
        dir.extra = contents.get(60..).unwrap_or_default().into();
        dir.size = contents.len() as u64;
    } else {
        let blocks = contents.len().div_ceil(superblock.block_size as usize) as u64;
        let blocks = blocks.clamp(1, SCRATCH_BLOCKS);
        dir.size = blocks << superblock.block_bits;
        dir.block = one_extent(first.0, blocks as u16);
    }
    let _ = volume.lookup(&dir, name);
    walk::inode(&volume, &dir);
});

/// A root of one extent from logical block 0 on.
fn one_extent(start: u64, len: u16) -> [u8; 60] {
    let mut root = [0; 60];
    root[..8].copy_from_slice(&[0x0a, 0xf3, 1, 0, 4, 0, 0, 0]);
    root[16..18].copy_from_slice(&len.to_le_bytes());
    root[18..20].copy_from_slice(&((start >> 32) as u16).to_le_bytes());
    root[20..24].copy_from_slice(&(start as u32).to_le_bytes());
    root
}

fn blocks(contents: &[u8], flags: u8, name: &[u8]) {
    let seed = HashSeed::new([u32::from(flags), 1, 2, 3], u32::from(flags >> 6));
    if let Some(version) = HashVersion::new(flags >> 4 & 3, &seed) {
        assert_eq!(version.hash(name) & 1, 0);
    }
    for block in contents.chunks(1024) {
        let mut end = 0;
        for entry in Entries::new(block, 1000) {
            let Ok(entry) = entry else { break };
            assert!(entry.offset >= end && entry.next <= block.len());
            end = entry.next;
        }
        dirent::checksum(block, 7);
        htree::checksum(block, flags & 4 != 0, 7);
        let large = flags & 8 != 0;
        for checksums in [false, true] {
            let root = Root::parse(block, &seed, large, checksums);
            let root = root.map(|root| root.index);
            for index in [root, Index::parse(block, checksums)].into_iter().flatten() {
                let found = index.find(u32::from_le_bytes(Input(name).array()));
                assert!(found < index.len());
                for i in 0..index.len() {
                    let _ = (index.hash(i), index.block(i));
                }
            }
        }
    }
}
