//! Extent trees.

pub mod edit;

use std::ops::Range;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::checksum::crc32c;
use crate::id::Block;
use crate::limits::MAX_EXTENT_DEPTH;

/// The head of a node, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawHeader {
    pub(crate) magic: U16,
    pub(crate) entries: U16,
    pub(crate) max: U16,
    pub(crate) depth: U16,
    pub(crate) generation: U32,
}

/// An entry of a leaf, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawExtent {
    pub(crate) block: U32,
    pub(crate) len: U16,
    pub(crate) start_hi: U16,
    pub(crate) start_lo: U32,
}

/// An entry of a node above the leaves, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawIndex {
    pub(crate) block: U32,
    pub(crate) leaf_lo: U32,
    pub(crate) leaf_hi: U16,
    pub(crate) unused: U16,
}

assert_layout!(RawHeader, 12, { 0 magic, 2 entries, 4 max, 6 depth, 8 generation });
assert_layout!(RawExtent, 12, { 0 block, 4 len, 6 start_hi, 8 start_lo });
assert_layout!(RawIndex, 12, { 0 block, 4 leaf_lo, 8 leaf_hi, 10 unused });

const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;
/// Lengths over this are those of unwritten extents, plus this.
const MAX_WRITTEN: u16 = 32768;

/// Blocks of a file that lie together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first block within the file.
    pub logical: u32,
    /// How many: 1 to 32,768.
    pub len: u32,
    /// The first block on the volume.
    pub start: Block,
    /// Allocated, but read as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The block within the file that follows the extent; up to 2^32.
    pub fn end(&self) -> u64 {
        u64::from(self.logical) + u64::from(self.len)
    }
}

impl From<&RawExtent> for Extent {
    fn from(raw: &RawExtent) -> Self {
        let len = raw.len.get();
        let unwritten = len > MAX_WRITTEN;
        Self {
            logical: raw.block.get(),
            len: u32::from(if unwritten { len - MAX_WRITTEN } else { len }),
            start: Block(u64::from(raw.start_hi.get()) << 32 | u64::from(raw.start_lo.get())),
            unwritten,
        }
    }
}

/// What a node must fit into: known from its parent.
#[derive(Clone, Debug)]
pub struct Place {
    /// Levels below it; `None` for a root, which tells.
    pub depth: Option<u16>,
    /// The logical blocks that it may map. Below a root the first entry must be at the start.
    pub logical: Range<u64>,
}

impl Place {
    /// The place of a root.
    pub const ROOT: Self = Self { depth: None, logical: 0..1 << 32 };
}

/// A node whose entries are sorted, apart, and within what its parent allows.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    bytes: &'a [u8],
    entries: usize,
    /// Levels below this one; 0 in a leaf.
    pub depth: u16,
}

impl<'a> Node<'a> {
    /// Checks the bytes of a root (60, from the inode) or of a block. `valid` says whether blocks
    /// of the volume may belong to a file. The error says what is wrong.
    pub fn parse(
        bytes: &'a [u8],
        place: &Place,
        valid: impl Fn(Block, u64) -> bool,
    ) -> Result<Self, String> {
        let node = Self::parse_checked(bytes, place)?;
        if node.depth == 0 {
            node.check_leaf(place, valid)?
        } else {
            node.check_index(valid)?
        }
        Ok(node)
    }

    /// As [`Self::parse`], for bytes whose entries were checked before: only what depends on the
    /// parent is looked at.
    pub fn parse_checked(bytes: &'a [u8], place: &Place) -> Result<Self, String> {
        let (header, _) = RawHeader::ref_from_prefix(bytes)
            .map_err(|_| format!("extent node of {} bytes", bytes.len()))?;
        let magic = header.magic.get();
        if magic != MAGIC {
            return Err(format!("extent node with magic {magic:#06x}"));
        }
        let (entries, max) = (usize::from(header.entries.get()), usize::from(header.max.get()));
        let room = bytes.len() / ENTRY - 1;
        if max == 0 || max > room || entries > max {
            return Err(format!("extent node with {entries} of {max} entries, room for {room}"));
        }
        let depth = header.depth.get();
        let expected = place.depth.unwrap_or(depth);
        if depth != expected || depth > MAX_EXTENT_DEPTH {
            return Err(format!("extent node of depth {depth} where {expected} is due"));
        }
        let node = Self { bytes, entries, depth };
        if depth > 0 && entries == 0 {
            return Err("extent index without entries".into());
        }
        if entries == 0 {
            return Ok(node);
        }
        let first = u64::from(node.key(0));
        if place.depth.is_some() && first != place.logical.start {
            return Err(format!("extent node starts at {first}, not {}", place.logical.start));
        }
        let last = if depth == 0 {
            node.extent(entries - 1).end()
        } else {
            u64::from(node.key(entries - 1)) + 1
        };
        if last > place.logical.end {
            return Err(format!("extent node reaches {last}, over {}", place.logical.end));
        }
        Ok(node)
    }

    fn check_leaf(&self, place: &Place, valid: impl Fn(Block, u64) -> bool) -> Result<(), String> {
        let mut end = place.logical.start;
        for extent in (0..self.entries).map(|i| self.extent(i)) {
            if extent.len == 0 || u64::from(extent.logical) < end {
                return Err(format!("extent at {} overlaps or is empty", extent.logical));
            }
            end = extent.end();
            if !valid(extent.start, u64::from(extent.len)) {
                let (len, start) = (extent.len, extent.start);
                return Err(format!("extent at {} of {len} at {start}", extent.logical));
            }
        }
        Ok(())
    }

    fn check_index(&self, valid: impl Fn(Block, u64) -> bool) -> Result<(), String> {
        for i in 0..self.entries {
            let key = self.key(i);
            if i > 0 && key <= self.key(i - 1) {
                return Err(format!("extent index {key} out of order"));
            }
            if !valid(self.child(i), 1) {
                return Err(format!("extent index {key} at {}", self.child(i)));
            }
        }
        Ok(())
    }

    /// Entries of the node.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Entries that there is room for; at least one.
    pub fn max(&self) -> usize {
        self.bytes.get(4..6).map_or(1, |max| usize::from(u16::from_le_bytes([max[0], max[1]])))
    }

    /// Whether it has none: only a leaf may.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The first logical block of entry `i`, which exists.
    pub fn key(&self, i: usize) -> u32 {
        // Both kinds of entry begin with it.
        U32::read_from_prefix(self.entry(i)).map_or(0, |(key, _)| key.get())
    }

    /// Entry `i` of a leaf.
    pub fn extent(&self, i: usize) -> Extent {
        match RawExtent::ref_from_bytes(self.entry(i)) {
            Ok(raw) => raw.into(),
            Err(_) => unreachable!("an entry has 12 bytes"),
        }
    }

    /// The block that entry `i` of an index names.
    pub fn child(&self, i: usize) -> Block {
        match RawIndex::ref_from_bytes(self.entry(i)) {
            Ok(raw) => Block(u64::from(raw.leaf_hi.get()) << 32 | u64::from(raw.leaf_lo.get())),
            Err(_) => unreachable!("an entry has 12 bytes"),
        }
    }

    /// The last entry that starts at or before a logical block.
    pub fn find(&self, logical: u32) -> Option<usize> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle) <= logical { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }

    fn entry(&self, i: usize) -> &'a [u8] {
        assert!(i < self.entries, "entry {i} of {}", self.entries);
        &self.bytes[ENTRY * (i + 1)..ENTRY * (i + 2)]
    }
}

/// The checksum at the end of a node's block and what it must be; `None` where the head leaves no
/// room for it.
pub fn checksum(block: &[u8], inode_seed: u32) -> Option<(u32, u32)> {
    let (header, _) = RawHeader::ref_from_prefix(block).ok()?;
    let tail = ENTRY * (usize::from(header.max.get()) + 1);
    let found = U32::read_from_prefix(block.get(tail..)?).ok()?.0.get();
    Some((found, crc32c(inode_seed, &block[..tail])))
}

#[cfg(test)]
mod tests;
