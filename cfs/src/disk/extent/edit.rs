//! Entries and heads of nodes as they are written.

use zerocopy::IntoBytes;

use super::{ENTRY, Extent, MAGIC, MAX_WRITTEN, RawExtent, RawHeader, RawIndex};
use crate::id::Block;

/// Bytes of a node's head, and of each entry.
pub const ENTRY_SIZE: usize = ENTRY;
/// Entries of a root.
pub const ROOT_ENTRIES: usize = 4;
/// An entry of a leaf or of an index: both begin with the first logical block.
pub type Entry = [u8; ENTRY];

/// The root of an empty map.
pub const EMPTY_ROOT: [u8; 60] = {
    let mut root = [0; 60];
    let magic = MAGIC.to_le_bytes();
    (root[0], root[1], root[4]) = (magic[0], magic[1], ROOT_ENTRIES as u8);
    root
};

/// The head of a node.
pub fn header(entries: usize, max: usize, depth: u16) -> [u8; ENTRY] {
    let raw = RawHeader {
        magic: MAGIC.into(),
        entries: (entries as u16).into(),
        max: (max as u16).into(),
        depth: depth.into(),
        generation: 0.into(),
    };
    zerocopy::transmute!(raw)
}

/// Entries of a node in a block.
pub fn capacity(block_size: u32) -> usize {
    block_size as usize / ENTRY - 1
}

impl Extent {
    /// The most blocks that an extent can have.
    pub const fn max_len(unwritten: bool) -> u32 {
        if unwritten { MAX_WRITTEN as u32 - 1 } else { MAX_WRITTEN as u32 }
    }

    /// The entry of a leaf.
    pub fn entry(&self) -> Entry {
        let unwritten = if self.unwritten { MAX_WRITTEN } else { 0 };
        let raw = RawExtent {
            block: self.logical.into(),
            len: (self.len as u16 + unwritten).into(),
            start_hi: ((self.start.0 >> 32) as u16).into(),
            start_lo: (self.start.0 as u32).into(),
        };
        zerocopy::transmute!(raw)
    }

    /// The part of the extent that lies in a range of the file, if there is one.
    pub fn part(&self, first: u64, end: u64) -> Option<Self> {
        let from = first.max(self.logical.into());
        let to = end.min(self.end());
        let skip = from.checked_sub(self.logical.into())?;
        let len = to.checked_sub(from).filter(|&len| len > 0)?;
        let start = Block(self.start.0 + skip);
        Some(Self { logical: from as u32, len: len as u32, start, ..*self })
    }

    /// Both as one, if `next` carries on where this ends and the length allows it.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let follows = u64::from(next.logical) == self.end()
            && next.start.0 == self.start.0 + u64::from(self.len)
            && next.unwritten == self.unwritten;
        let len = self.len + next.len;
        (follows && len <= Self::max_len(self.unwritten)).then_some(Self { len, ..*self })
    }
}

/// The entry of an index.
pub fn index_entry(first: u32, child: Block) -> Entry {
    let raw = RawIndex {
        block: first.into(),
        leaf_lo: (child.0 as u32).into(),
        leaf_hi: ((child.0 >> 32) as u16).into(),
        unused: 0.into(),
    };
    debug_assert_eq!(raw.as_bytes().len(), ENTRY);
    zerocopy::transmute!(raw)
}

/// The first logical block of an entry.
pub fn key(entry: &Entry) -> u32 {
    u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]])
}

#[cfg(test)]
mod tests {
    use super::super::{Node, Place};
    use super::*;

    #[test]
    fn entries_read_as_they_were_written() {
        let extents = [
            Extent { logical: 7, len: 32768, start: Block(1 << 40), unwritten: false },
            Extent { logical: 40_000, len: 32767, start: Block(9), unwritten: true },
            Extent { logical: 80_000, len: 1, start: Block(5), unwritten: true },
        ];
        let mut node = EMPTY_ROOT;
        node[..12].copy_from_slice(&header(3, 4, 0));
        for (at, extent) in extents.iter().enumerate() {
            node[12 * (at + 1)..12 * (at + 2)].copy_from_slice(&extent.entry());
        }
        let node = Node::parse(&node, &Place::ROOT, |_, _| true).unwrap();
        assert_eq!([0, 1, 2].map(|at| node.extent(at)), extents);
        let empty = Node::parse(&EMPTY_ROOT, &Place::ROOT, |_, _| true).unwrap();
        assert!(empty.is_empty() && empty.depth == 0);
    }

    #[test]
    fn an_index_reads_as_it_was_written() {
        let mut node = EMPTY_ROOT;
        node[..12].copy_from_slice(&header(1, 4, 2));
        node[12..24].copy_from_slice(&index_entry(77, Block((3 << 32) + 4)));
        let node = Node::parse(&node, &Place::ROOT, |_, _| true).unwrap();
        assert_eq!((node.depth, node.key(0), node.child(0)), (2, 77, Block((3 << 32) + 4)));
    }

    #[test]
    fn extents_join_within_their_limits_alone() {
        let a = Extent { logical: 0, len: 32767, start: Block(100), unwritten: false };
        let b = Extent { logical: 32767, len: 1, start: Block(100 + 32767), unwritten: false };
        assert_eq!(a.joined(&b).map(|both| both.len), Some(32768));
        let unwritten = |extent: Extent| Extent { unwritten: true, ..extent };
        assert_eq!(unwritten(a).joined(&unwritten(b)), None);
        assert_eq!(a.joined(&unwritten(b)), None);
        assert_eq!(a.joined(&Extent { start: Block(1), ..b }), None);
        assert_eq!(
            a.part(10, 20).map(|part| (part.logical, part.start, part.len)),
            Some((10, Block(110), 10))
        );
        assert_eq!(a.part(32767, 40000), None);
    }
}
