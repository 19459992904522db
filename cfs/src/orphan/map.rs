//! Cuts the map of a file: extent trees and trees of pointers.
//!
//! Each block that is given back must have been in use, so a tree that names a block twice ends in
//! an error and never in a loop.

use zerocopy::FromBytes;

use super::space::Space;
use crate::disk::extent::{self, Extent, Node, Place, RawExtent, RawHeader};
use crate::disk::inode::Inode;
use crate::engine::Volume;
use crate::id::Block;
use crate::{Error, Result};

const ENTRY: usize = 12;
/// Lengths of unwritten extents are recorded plus this.
const UNWRITTEN: u32 = 32768;

/// Cuts an extent tree at block `end`.
pub(super) fn cut_extents(
    volume: &Volume,
    space: &mut Space<'_>,
    inode: &Inode,
    root: &mut [u8; 60],
    end: u64,
) -> Result<()> {
    let mut tree = Extents { volume, space, inode, end, seen: None };
    let left = tree.cut(root, &Place::ROOT)?;
    if left == 0 {
        let (header, _) = header(root)?;
        header.depth = 0.into();
    }
    Ok(())
}

struct Extents<'a, 'b> {
    volume: &'a Volume,
    space: &'a mut Space<'b>,
    inode: &'a Inode,
    end: u64,
    /// The cluster of the last block met: it stays for the sake of blocks that do, or is given back
    /// already. An extent that begins in it has no say.
    seen: Option<u64>,
}

impl Extents<'_, '_> {
    /// Cuts one node in its bytes and all below it on the volume; returns the entries left.
    fn cut(&mut self, bytes: &mut [u8], place: &Place) -> Result<usize> {
        let (volume, inode) = (self.volume, self.inode);
        let valid = |start, len| volume.may_claim(inode, start, len);
        let node =
            Node::parse(bytes, place, valid).map_err(|why| Error::corrupt(inode.ino, why))?;
        let depth = node.depth;
        let left = if depth == 0 {
            let extents: Vec<_> = (0..node.len()).map(|at| node.extent(at)).collect();
            let mut left = 0;
            for extent in extents {
                let kept = self.end.saturating_sub(extent.logical.into()).min(extent.len.into());
                self.free(&extent, kept)?;
                if kept == 0 {
                    continue;
                }
                let len = kept as u32 + if extent.unwritten { UNWRITTEN } else { 0 };
                entry(bytes, left)?.len = (len as u16).into();
                left += 1;
            }
            left
        } else {
            let last = place.logical.end;
            let keys = (1..node.len()).map(|at| node.key(at).into()).chain([last]);
            let children: Vec<(Block, u64, u64)> = keys
                .enumerate()
                .map(|(at, end)| (node.child(at), node.key(at).into(), end))
                .collect();
            let mut left = 0;
            // A child that ends within the last cluster that stays tells that it does.
            let cluster = self.end - self.end % u64::from(volume.superblock().cluster_ratio);
            for (child, start, end) in children {
                if end <= cluster {
                    left += 1;
                    continue;
                }
                let place = Place { depth: Some(depth - 1), logical: start..end };
                left += usize::from(self.cut_child(child, &place)?);
            }
            left
        };
        let (header, _) = header(bytes)?;
        header.entries = (left as u16).into();
        Ok(left)
    }

    /// Gives back an extent without its first `kept` blocks.
    fn free(&mut self, extent: &Extent, kept: u64) -> Result<()> {
        let ratio = u64::from(self.volume.superblock().cluster_ratio);
        let (start, len) = (extent.start.0, u64::from(extent.len));
        if start % ratio != u64::from(extent.logical) % ratio {
            let why = format!("extent at {} begins within a cluster", extent.logical);
            return Err(Error::corrupt(self.inode.ino, why));
        }
        if kept > 0 {
            self.seen = Some((start + kept - 1) / ratio);
        }
        if kept < len {
            for cluster in (start + kept) / ratio..(start + len).div_ceil(ratio) {
                if self.seen != Some(cluster) {
                    self.space.free_cluster(cluster)?;
                    self.seen = Some(cluster);
                }
            }
        }
        Ok(())
    }

    /// Returns whether anything is left of the child.
    fn cut_child(&mut self, block: Block, place: &Place) -> Result<bool> {
        let superblock = self.volume.superblock();
        let offset = block.0 << superblock.block_bits;
        let mut bytes = vec![0; superblock.block_size as usize];
        self.volume.source().read_at(offset, &mut bytes)?;
        let sums = superblock.features.metadata_csum();
        let seed = self.inode.checksum_seed;
        if sums && extent::checksum(&bytes, seed).is_none_or(|(found, sum)| found != sum) {
            return Err(Error::corrupt(self.inode.ino, format!("checksum of extent {block}")));
        }
        if self.cut(&mut bytes, place)? == 0 {
            self.space.free_blocks(block, 1)?;
            return Ok(false);
        }
        if let (true, Some((_, sum))) = (sums, extent::checksum(&bytes, seed)) {
            let tail = ENTRY * (usize::from(header(&mut bytes)?.0.max.get()) + 1);
            if let Some(place) = bytes.get_mut(tail..tail + 4) {
                place.copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.volume.source().write_at(offset, &bytes)?;
        Ok(true)
    }
}

fn header(bytes: &mut [u8]) -> Result<(&mut RawHeader, &mut [u8])> {
    RawHeader::mut_from_prefix(bytes).map_err(|_| Error::corrupt("extent node", "is too short"))
}

fn entry(bytes: &mut [u8], at: usize) -> Result<&mut RawExtent> {
    let place = bytes.get_mut(ENTRY * (at + 1)..ENTRY * (at + 2)).unwrap_or_default();
    RawExtent::mut_from_bytes(place).map_err(|_| Error::corrupt("extent node", "is too short"))
}

/// Pointers in the inode to blocks of data; three more lead to trees of one, two and three levels.
const DIRECT: usize = 12;

/// Cuts a map by pointers at block `end`.
pub(super) fn cut_pointers(
    volume: &Volume,
    space: &mut Space<'_>,
    inode: &Inode,
    root: &mut [u8; 60],
    end: u64,
) -> Result<()> {
    if volume.superblock().cluster_ratio > 1 {
        return Err(Error::corrupt(inode.ino, "has no extents, though the volume has clusters"));
    }
    let per_block = u64::from(volume.superblock().block_size / 4);
    let mut tree = Pointers { volume, space, inode, end, per_block };
    let mut start = 0;
    for (at, pointer) in root.chunks_exact_mut(4).enumerate() {
        let levels = at.saturating_sub(DIRECT - 1) as u32;
        tree.cut(pointer, levels, start)?;
        start += tree.reach(levels);
    }
    Ok(())
}

struct Pointers<'a, 'b> {
    volume: &'a Volume,
    space: &'a mut Space<'b>,
    inode: &'a Inode,
    end: u64,
    per_block: u64,
}

impl Pointers<'_, '_> {
    /// Blocks of the file below a pointer with so many levels of tables, at most three.
    fn reach(&self, levels: u32) -> u64 {
        self.per_block.pow(levels)
    }

    /// Cuts what is below a pointer, and sets it to zero when nothing is left.
    fn cut(&mut self, pointer: &mut [u8], levels: u32, start: u64) -> Result<()> {
        let number = pointer.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if number == 0 || start + self.reach(levels) <= self.end {
            return Ok(());
        }
        let block = Block(number.into());
        if !self.volume.may_claim(self.inode, block, 1) {
            return Err(Error::corrupt(self.inode.ino, format!("maps block {start} by {block}")));
        }
        if levels > 0 && self.cut_table(block, levels - 1, start)? {
            return Ok(());
        }
        self.space.free_blocks(block, 1)?;
        pointer.fill(0);
        Ok(())
    }

    /// Returns whether anything is left in the table.
    fn cut_table(&mut self, block: Block, levels: u32, start: u64) -> Result<bool> {
        let superblock = self.volume.superblock();
        let offset = block.0 << superblock.block_bits;
        let mut bytes = vec![0; superblock.block_size as usize];
        self.volume.source().read_at(offset, &mut bytes)?;
        for (at, pointer) in (0..).zip(bytes.chunks_exact_mut(4)) {
            self.cut(pointer, levels, start + at * self.reach(levels))?;
        }
        let left = bytes.iter().any(|byte| *byte != 0);
        if left {
            self.volume.source().write_at(offset, &bytes)?;
        }
        Ok(left)
    }
}
