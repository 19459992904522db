//! Hashed directories: the index blocks, and the hashes of names.
//!
//! The root index lies in block 0 of the directory behind the entries "." and "..", which look to
//! others as if they filled the block; every other index block looks like one unused entry.

pub mod edit;
mod hash;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::checksum::crc32c;
use super::dirent::{RawEntry, record_len};
use crate::limits::MAX_HTREE_LEVELS;

pub use hash::{HashSeed, HashVersion};

/// What the root says about the tree, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawRootInfo {
    pub(crate) reserved_zero: U32,
    pub(crate) hash_version: u8,
    pub(crate) info_length: u8,
    pub(crate) indirect_levels: u8,
    pub(crate) unused_flags: u8,
}

/// The head of an index's entries, in the place of the first entry's hash.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawCountLimit {
    pub(crate) limit: U16,
    pub(crate) count: U16,
}

/// An entry of an index, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawIndexEntry {
    pub(crate) hash: U32,
    pub(crate) block: U32,
}

assert_layout!(RawRootInfo, 8, {
    0 reserved_zero, 4 hash_version, 5 info_length, 6 indirect_levels, 7 unused_flags,
});
assert_layout!(RawCountLimit, 4, { 0 limit, 2 count });
assert_layout!(RawIndexEntry, ENTRY, { 0 hash, 4 block });

const ENTRY: usize = 8;
/// Where the root's info lies: behind the heads and names of "." and "..".
const ROOT_INFO: usize = 24;
const ROOT_ENTRIES: usize = ROOT_INFO + 8;
const NODE_ENTRIES: usize = 8;
/// Bytes of the tail with the checksum: a reserved word, and the checksum.
const TAIL: usize = 8;

/// A root's answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root<'a> {
    /// How names hash.
    pub version: HashVersion,
    /// Levels of index blocks below the root; 0 if its entries name leaves.
    pub levels: u8,
    /// The entries.
    pub index: Index<'a>,
}

/// The entries of one index block: hashes from which on the blocks hold names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Index<'a> {
    entries: &'a [u8],
    count: usize,
}

impl<'a> Root<'a> {
    /// The root in block 0 of a directory. The error says what is wrong; the names can still be
    /// found by reading all blocks.
    pub fn parse(
        block: &'a [u8],
        seed: &HashSeed,
        large_dir: bool,
        checksums: bool,
    ) -> Result<Self, String> {
        let info = block.get(ROOT_INFO..).and_then(|rest| RawRootInfo::ref_from_prefix(rest).ok());
        let Some((info, _)) = info else {
            return Err(format!("hash tree root of {} bytes", block.len()));
        };
        let version = HashVersion::new(info.hash_version, seed)
            .ok_or_else(|| format!("hash version {}", info.hash_version))?;
        let levels = if large_dir { MAX_HTREE_LEVELS } else { 1 };
        if info.indirect_levels > levels {
            return Err(format!("hash tree of {} levels", info.indirect_levels));
        }
        if info.unused_flags & 1 != 0 || usize::from(info.info_length) != size_of::<RawRootInfo>() {
            return Err("hash tree root of an unknown kind".into());
        }
        let index = Index::new(block, ROOT_ENTRIES, checksums)?;
        Ok(Self { version, levels: info.indirect_levels, index })
    }
}

impl<'a> Index<'a> {
    /// The entries of an index block below the root.
    pub fn parse(block: &'a [u8], checksums: bool) -> Result<Self, String> {
        if !is_index_block(block) {
            return Err("no index block".into());
        }
        Self::new(block, NODE_ENTRIES, checksums)
    }

    fn new(block: &'a [u8], start: usize, checksums: bool) -> Result<Self, String> {
        let tail = if checksums { TAIL } else { 0 };
        let room = block.len().saturating_sub(start + tail) / ENTRY;
        let entries = block.get(start..).unwrap_or_default();
        let Ok((head, _)) = RawCountLimit::ref_from_prefix(entries) else {
            return Err(format!("index of {} bytes", block.len()));
        };
        let (limit, count) = (usize::from(head.limit.get()), usize::from(head.count.get()));
        if limit != room || count == 0 || count > limit {
            return Err(format!("index with {count} of {limit} entries, room for {room}"));
        }
        Ok(Self { entries: &entries[..count * ENTRY], count })
    }

    /// How many entries; at least one.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: an index names at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The hash from which on entry `i` holds names: bit 0 says that names of this hash begin in
    /// the block before. 0 for the first, which begins with the index.
    pub fn hash(&self, i: usize) -> u32 {
        if i == 0 { 0 } else { self.entry(i).hash.get() }
    }

    /// The directory's block that entry `i` names.
    pub fn block(&self, i: usize) -> u32 {
        self.entry(i).block.get() & 0x0fff_ffff
    }

    /// The last entry that begins at or before a hash.
    pub fn find(&self, hash: u32) -> usize {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.hash(middle) <= hash { low = middle + 1 } else { high = middle }
        }
        low - 1
    }

    fn entry(&self, i: usize) -> &'a RawIndexEntry {
        match RawIndexEntry::ref_from_bytes(&self.entries[i * ENTRY..(i + 1) * ENTRY]) {
            Ok(entry) => entry,
            Err(_) => unreachable!("an entry has 8 bytes"),
        }
    }
}

/// Whether a block of a hashed directory other than its first is an index block.
pub fn is_index_block(block: &[u8]) -> bool {
    RawEntry::ref_from_prefix(block).is_ok_and(|(head, _)| {
        head.inode.get() == 0 && record_len(head.rec_len.get(), block.len()) == block.len()
    })
}

/// The checksum in the tail of an index block, and what it must be; `None` if its head leaves no
/// room for a tail. `root` tells block 0 from the others.
pub fn checksum(block: &[u8], root: bool, inode_seed: u32) -> Option<(u32, u32)> {
    let (covered, tail) = covered(block, root)?;
    let (reserved, found) = block[tail..tail + TAIL].split_at(4);
    let crc = crc32c(inode_seed, &block[..covered]);
    let computed = crc32c(crc32c(crc, reserved), &[0; 4]);
    Some((U32::read_from_bytes(found).ok()?.get(), computed))
}

/// How many bytes from the start of an index block its checksum covers, and where its tail lies;
/// `None` if its head leaves no room for a tail.
pub(super) fn covered(block: &[u8], root: bool) -> Option<(usize, usize)> {
    let start = if root { ROOT_ENTRIES } else { NODE_ENTRIES };
    let (head, _) = RawCountLimit::ref_from_prefix(block.get(start..)?).ok()?;
    let (limit, count) = (usize::from(head.limit.get()), usize::from(head.count.get()));
    let tail = start + limit * ENTRY;
    (count <= limit && tail + TAIL <= block.len()).then_some((start + count * ENTRY, tail))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: HashSeed = HashSeed { seed: [0; 4], unsigned: false };

    #[test]
    fn the_last_entry_at_or_before_a_hash_is_found() {
        let mut block = vec![0; 1024];
        block[4..6].copy_from_slice(&1024u16.to_le_bytes());
        block[8..10].copy_from_slice(&127u16.to_le_bytes());
        block[10..12].copy_from_slice(&4u16.to_le_bytes());
        for (i, hash) in [10u32, 20, 31].into_iter().enumerate() {
            block[16 + i * 8..20 + i * 8].copy_from_slice(&hash.to_le_bytes());
            block[20 + i * 8..24 + i * 8].copy_from_slice(&(i as u32 + 7).to_le_bytes());
        }
        let index = Index::parse(&block, false).unwrap();
        assert_eq!([0, 9, 10, 19, 20, 30, 31, 99].map(|hash| index.find(hash)), {
            [0, 0, 1, 1, 2, 2, 3, 3]
        });
        assert_eq!(index.block(3), 9);
        assert!(Index::parse(&block, true).is_err(), "room for 126 with a checksum");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut block in proptest::collection::vec(any::<u8>(), 0..256),
            checksums: bool,
            hash: u32,
        ) {
            if block.len() > 40 {
                let len = block.len() as u16;
                block[..4].fill(0);
                block[4..6].copy_from_slice(&len.to_le_bytes());
                let room = (block.len() - 8 - if checksums { 8 } else { 0 }) / 8;
                block[8] = room as u8;
                block[9] = 0;
                block[11] = 0;
            }
            if let Ok(index) = Index::parse(&block, checksums) {
                prop_assert!(index.find(hash) < index.len());
            }
            let _ = Root::parse(&block, &SEED, true, checksums);
            checksum(&block, true, 0);
            checksum(&block, false, 0);
        }
    }
}
