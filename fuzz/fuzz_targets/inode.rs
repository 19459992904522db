//! An inode of a volume, its checksum made right: all that it can be asked, and what a runtime
//! publishes of it.
#![no_main]

use cfs::cache::{InodeRecord, RECORD_VALUES};
use cfs::disk::inode::{self, Inode};
use cfs::id::Ino;
use fuzz::{Input, image, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let image = image::choose(image::volumes(), input.byte());
    let ino = Ino(u32::from(input.byte()));
    let (volume, _) = image::with_scratch(image, &[]);
    let superblock = volume.superblock();
    let size = superblock.inode_size as usize;
    let mut bytes = input.bytes(size).to_vec();
    bytes.resize(size, 0);
    if superblock.features.metadata_csum() {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let extra = if size > 128 { usize::from(word(0x80) as u16) } else { 0 };
        let sum = inode::checksum(&bytes, inode::checksum_seed(ino, word(0x64), superblock), extra);
        bytes[0x7c..0x7e].copy_from_slice(&(sum as u16).to_le_bytes());
        if extra >= 4 {
            bytes[0x82..0x84].copy_from_slice(&((sum >> 16) as u16).to_le_bytes());
        }
    }
    if let Ok(inode) = Inode::parse(&bytes, ino, superblock) {
        inode.device();
        walk::inode(&volume, &inode);
    }
    let mut words = [0; RECORD_VALUES];
    let mut input = Input(data);
    words.fill_with(|| input.long());
    if let Some(record) = InodeRecord::from_words(&words) {
        record.to_words();
    }
});
