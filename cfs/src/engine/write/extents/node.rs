//! Changes of single nodes.

use std::ops::Range;
use std::sync::Arc;

use crate::alloc::Claim;
use crate::disk::checksum::crc32c;
use crate::disk::extent::edit::{self as codec, ENTRY_SIZE, Entry};
use crate::disk::extent::{Node, Place};
use crate::engine::cache::CachedBlock;
use crate::engine::write::{Live, Writer};
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

/// Entries of a node that give way to others.
pub(super) struct Change<'a> {
    pub(super) range: Range<usize>,
    pub(super) entries: &'a [Entry],
}

/// What a change of a node means for the entry that leads to it.
pub(super) enum Edited {
    /// Nothing.
    Same,
    /// It gives way to so many of these.
    Entries([Entry; 2], usize),
}

/// Bytes in a node's head before those that count its entries.
const COUNT_AT: usize = 2;

impl Change<'_> {
    /// The entries of a node after the change.
    fn count(&self, before: usize) -> usize {
        before - self.range.len() + self.entries.len()
    }

    /// The entries of a node after the change, one behind the other.
    fn apply(&self, node: &[u8], before: usize) -> Vec<u8> {
        let place = |at: usize| (at + 1) * ENTRY_SIZE;
        let mut bytes = Vec::with_capacity(self.count(before) * ENTRY_SIZE);
        bytes.extend_from_slice(&node[place(0)..place(self.range.start)]);
        bytes.extend_from_slice(self.entries.as_flattened());
        bytes.extend_from_slice(&node[place(self.range.end)..place(before)]);
        bytes
    }
}

impl Writer {
    /// Changes a node in a block.
    pub(super) fn change_node(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        block: Block,
        old: Arc<CachedBlock>,
        change: &Change<'_>,
        claim: &mut impl FnMut() -> Option<Claim>,
    ) -> Result<Edited> {
        let node = Node::parse_checked(&old.bytes, &Place::ROOT)
            .map_err(|why| Error::corrupt(live.inode.ino, why))?;
        let (before, max, depth, first) = (node.len(), node.max(), node.depth, node.key(0));
        let count = change.count(before);
        if count == 0 {
            drop(old);
            self.free_map_block(handle, live, block)?;
            return Ok(Edited::Entries([[0; ENTRY_SIZE]; 2], 0));
        }
        let key = match (change.range.start, change.entries.first()) {
            (0, Some(entry)) => codec::key(entry),
            (0, None) => node.key(change.range.end),
            _ => first,
        };
        let own = codec::index_entry(key, block);
        if count <= max {
            self.rewrite(handle, live, block, old, before, change)?;
            let same = key == first;
            return Ok(if same { Edited::Same } else { Edited::Entries([own; 2], 1) });
        }
        let entries = change.apply(&old.bytes, before);
        drop(old);
        // Who appends leaves full nodes behind.
        let kept = if change.range.end == before { max } else { count / 2 };
        let (left, right) = entries.split_at(kept * ENTRY_SIZE);
        let new = self.create_node(handle, live, right, depth, claim)?;
        let whole = Change { range: 0..before, entries: as_entries(left) };
        let old = handle.read(block)?;
        self.rewrite(handle, live, block, old, before, &whole)?;
        let other = codec::index_entry(first_key(right), new);
        Ok(Edited::Entries([own, other], 2))
    }

    /// Changes the root. One that overflows moves to a block, and leads to that alone.
    pub(super) fn change_root(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        change: &Change<'_>,
        claim: &mut impl FnMut() -> Option<Claim>,
    ) -> Result<()> {
        let node = Node::parse_checked(&live.inode.block, &Place::ROOT)
            .map_err(|why| Error::corrupt(live.inode.ino, why))?;
        let (before, max, depth) = (node.len(), node.max(), node.depth);
        let count = change.count(before);
        let entries = change.apply(&live.inode.block, before);
        let mut root = codec::EMPTY_ROOT;
        if count > max {
            let child = self.create_node(handle, live, &entries, depth, claim)?;
            root[..ENTRY_SIZE].copy_from_slice(&codec::header(1, max, depth + 1));
            let entry = codec::index_entry(first_key(&entries), child);
            root[ENTRY_SIZE..2 * ENTRY_SIZE].copy_from_slice(&entry);
        } else {
            let depth = if count == 0 { 0 } else { depth };
            root[..ENTRY_SIZE].copy_from_slice(&codec::header(count, max, depth));
            root[ENTRY_SIZE..ENTRY_SIZE + entries.len()].copy_from_slice(&entries);
        }
        live.inode.block = root;
        Ok(())
    }

    /// A node in a block of its own.
    fn create_node(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        entries: &[u8],
        depth: u16,
        claim: &mut impl FnMut() -> Option<Claim>,
    ) -> Result<Block> {
        let superblock = self.volume.superblock();
        let size = superblock.block_size as usize;
        let max = self.node_entries;
        let claim = claim()
            .ok_or_else(|| Error::Exhausted("more nodes of a map than were prepared for".into()))?;
        let block = claim.start();
        let mut bytes = vec![0; size].into_boxed_slice();
        bytes[..ENTRY_SIZE].copy_from_slice(&codec::header(entries.len() / ENTRY_SIZE, max, depth));
        bytes[ENTRY_SIZE..ENTRY_SIZE + entries.len()].copy_from_slice(entries);
        if superblock.features.metadata_csum() {
            let tail = (max + 1) * ENTRY_SIZE;
            let sum = crc32c(live.inode.checksum_seed, &bytes[..tail]);
            bytes[tail..tail + 4].copy_from_slice(&sum.to_le_bytes());
        }
        claim.commit(handle)?;
        live.charge(1, superblock);
        handle.create(block, bytes)?;
        Ok(block)
    }

    /// Changes entries of a node that has room for them. Its version is let go before it is
    /// changed, so that it need not be copied.
    fn rewrite(
        &self,
        handle: &mut Handle<'_>,
        live: &Live,
        block: Block,
        old: Arc<CachedBlock>,
        before: usize,
        change: &Change<'_>,
    ) -> Result<()> {
        let place = |at: usize| (at + 1) * ENTRY_SIZE;
        let count = change.count(before);
        let after = &old.bytes[place(change.range.end)..place(before)];
        let moved;
        let from = place(change.range.start);
        let region = if count == before || after.is_empty() {
            change.entries.as_flattened()
        } else {
            moved = [change.entries.as_flattened(), after].concat();
            &moved[..]
        };
        let mut head = [0; ENTRY_SIZE];
        head.copy_from_slice(&old.bytes[..ENTRY_SIZE]);
        head[COUNT_AT..COUNT_AT + 2].copy_from_slice(&(count as u16).to_le_bytes());
        let max = usize::from(u16::from_le_bytes([head[4], head[5]]));
        let sum = self.volume.superblock().features.metadata_csum().then(|| {
            let rest = &old.bytes[from + region.len()..place(max)];
            let parts = [&head, &old.bytes[ENTRY_SIZE..from], region, rest];
            parts.iter().fold(live.inode.checksum_seed, |sum, part| crc32c(sum, part))
        });
        drop(old);
        if count != before {
            handle.put(block, COUNT_AT, &head[COUNT_AT..COUNT_AT + 2])?;
        }
        if !region.is_empty() {
            handle.put(block, from, region)?;
        }
        match sum {
            Some(sum) => handle.put(block, place(max), &sum.to_le_bytes()),
            None => Ok(()),
        }
    }
}

fn as_entries(bytes: &[u8]) -> &[Entry] {
    bytes.as_chunks().0
}

/// The first key of entries, of which there is one at least.
fn first_key(entries: &[u8]) -> u32 {
    as_entries(entries).first().map_or(0, codec::key)
}
