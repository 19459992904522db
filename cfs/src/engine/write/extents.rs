//! Extent trees: the way to an entry, and the one way to change entries.
//!
//! Every change is a [`Splice`]: entries of a leaf give way to others. What that means for the
//! nodes above - another first key, two nodes for one, none - is a splice of one entry there, and
//! so on up to the root in the inode, which grows by a level when it overflows. What can fail is
//! found before the first change.

mod edit;
mod node;
mod shift;

use std::ops::Range;
use std::sync::Arc;

use super::map::Freed;
use super::{Live, Writer};
use crate::alloc::Claim;
use crate::disk::extent::edit::{self as codec, Entry, ROOT_ENTRIES};
use crate::disk::extent::{Extent, Node, Place};
use crate::disk::inode::Inode;
use crate::engine::cache::{CachedBlock, Role};
use crate::id::Block;
use crate::journal::Handle;
use crate::limits::MAX_EXTENT_DEPTH;
use crate::{Error, Result};
use node::Edited;

const LEVELS: usize = MAX_EXTENT_DEPTH as usize + 1;

/// The way from the root to the place of a logical block in a leaf.
#[derive(Default)]
pub(super) struct Path {
    levels: [Level; LEVELS],
    /// Levels below the root.
    depth: usize,
    /// Where the next leaf begins; 2^32 in the last one.
    end: u64,
}

#[derive(Default)]
struct Level {
    /// The node's block and its bytes; none for the root.
    node: Option<(Block, Arc<CachedBlock>)>,
    /// The entry that leads on. In the leaf the last one at or before the logical block.
    at: Option<usize>,
}

/// Entries of a leaf that give way to others, as many blocks as that needs, and what was found.
pub(super) struct Splice {
    path: Path,
    range: Range<usize>,
    claims: [Option<Claim>; LEVELS],
}

impl Path {
    /// A node of the path; its bytes were checked when the path was made.
    fn node<'a>(&'a self, level: usize, inode: &'a Inode) -> Result<Node<'a>> {
        let bytes = match &self.levels[level].node {
            Some((_, node)) => &node.bytes[..],
            None => &inode.block,
        };
        Node::parse_checked(bytes, &Place::ROOT).map_err(|why| Error::corrupt(inode.ino, why))
    }

    /// The leaf.
    fn leaf<'a>(&'a self, inode: &'a Inode) -> Result<Node<'a>> {
        self.node(self.depth, inode)
    }

    /// Where a logical block would be if it were near the extent before it or, at the leaf's start,
    /// the one after it.
    pub(super) fn neighbour(&self, inode: &Inode, logical: u64) -> Option<Block> {
        let leaf = self.leaf(inode).ok()?;
        match Writer::extent_at(&leaf, self.at()) {
            Some(before) => Some(Block(before.start.0 + logical - u64::from(before.logical))),
            None => {
                let after = Writer::extent_at(&leaf, Some(0))?;
                let back = u64::from(after.logical).checked_sub(logical)?;
                after.start.0.checked_sub(back).map(Block)
            }
        }
    }

    /// The last extent of the leaf at or before the logical block.
    fn at(&self) -> Option<usize> {
        self.levels[self.depth].at
    }
}

impl Writer {
    /// The way to a logical block. Before the first entry of a tree it leads to the first leaf.
    pub(super) fn path(&self, inode: &Inode, logical: u32) -> Result<Path> {
        let bad = |why| Error::corrupt(inode.ino, why);
        let volume = &self.volume;
        let mut path = Path::default();
        let mut place = Place::ROOT;
        let valid = |start, len| volume.may_claim(inode, start, len);
        let mut depth = Node::parse(&inode.block, &place, valid).map_err(bad)?.depth;
        path.depth = depth.into();
        for level in 0.. {
            let node = path.node(level, inode)?;
            let found = node.find(logical);
            if depth == 0 {
                path.levels[level].at = found;
                break;
            }
            let at = found.unwrap_or(0);
            let end = if at + 1 < node.len() { node.key(at + 1).into() } else { place.logical.end };
            place = Place { depth: Some(depth - 1), logical: node.key(at).into()..end };
            let child = node.child(at);
            let block = volume.block(child)?;
            block.check(Role::Extents, inode.ino, |bytes| {
                volume.check_extent_block(inode, child, bytes, &place)
            })?;
            Node::parse_checked(&block.bytes, &place).map_err(bad)?;
            path.levels[level].at = Some(at);
            path.levels[level + 1].node = Some((child, block));
            depth -= 1;
        }
        path.end = place.logical.end;
        Ok(path)
    }

    /// Prepares to put `count` entries in the place of `range` of the path's leaf: claims the
    /// blocks that this needs.
    fn prepare(
        &self,
        live: &Live,
        path: Path,
        range: Range<usize>,
        count: usize,
    ) -> Result<Splice> {
        let mut claims = [const { None }; LEVELS];
        let mut more = count as isize - range.len() as isize;
        let mut level = path.depth;
        let mut needed = 0;
        loop {
            let node = path.node(level, &live.inode)?;
            if node.len().saturating_add_signed(more) <= node.max() {
                break;
            }
            needed += 1;
            if level == 0 {
                if path.depth + 1 >= LEVELS {
                    return Err(Error::FileTooBig);
                }
                break;
            }
            more = 1;
            level -= 1;
        }
        if needed > 0 {
            let near = path.levels[path.depth].node.as_ref().map(|(block, _)| *block);
            let goal = near.unwrap_or_else(|| self.home(&live.inode));
            for claim in &mut claims[..needed] {
                *claim = Some(self.claim_map_block(goal)?);
            }
        }
        Ok(Splice { path, range, claims })
    }

    /// Puts `entries` in their place, as many as were prepared for. After an error the journal has
    /// been given up.
    fn splice(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        splice: Splice,
        entries: &[Entry],
    ) -> Result<()> {
        live.data_tid = handle.tid();
        live.tid = handle.tid();
        let fewer = entries.len() < splice.range.len();
        let mut done = self.splice_levels(handle, live, splice, entries);
        if fewer && done.is_ok() {
            done = self.shrink_root(handle, live);
        }
        done.map_err(|error| handle.fail(error))
    }

    fn splice_levels(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        splice: Splice,
        entries: &[Entry],
    ) -> Result<()> {
        let Splice { mut path, range, mut claims } = splice;
        let mut next_claim = claims.iter_mut();
        let mut claim = || next_claim.next().and_then(Option::take);
        let mut edited = Edited::Entries([[0; 12]; 2], 0);
        for level in (0..=path.depth).rev() {
            let (range, entries) = match &edited {
                _ if level == path.depth => (range.clone(), entries),
                Edited::Same => return Ok(()),
                Edited::Entries(list, count) => {
                    let at = path.levels[level].at.unwrap_or(0);
                    (at..at + 1, &list[..*count])
                }
            };
            let change = node::Change { range, entries };
            edited = match path.levels[level].node.take() {
                Some((block, node)) => {
                    self.change_node(handle, live, block, node, &change, &mut claim)?
                }
                None => {
                    self.change_root(handle, live, &change, &mut claim)?;
                    Edited::Same
                }
            };
        }
        Ok(())
    }

    /// Takes the only child of a root back into it, as long as it fits.
    fn shrink_root(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        let bad = |ino, why: String| Error::corrupt(ino, why);
        loop {
            let ino = live.inode.ino;
            let root = Node::parse_checked(&live.inode.block, &Place::ROOT);
            let root = root.map_err(|why| bad(ino, why))?;
            if root.depth == 0 || root.len() != 1 {
                return Ok(());
            }
            let child = root.child(0);
            // Two blocks of the allocator, and the one that is forgotten.
            if handle.credits() < 3 + Self::STORE_CREDITS {
                return Ok(());
            }
            let mut block = [0; 60];
            {
                let cached = handle.read(child)?;
                let node = Node::parse_checked(&cached.bytes, &Place::ROOT);
                let node = node.map_err(|why| bad(ino, why))?;
                if node.len() > ROOT_ENTRIES {
                    return Ok(());
                }
                let used = (node.len() + 1) * codec::ENTRY_SIZE;
                block[..used].copy_from_slice(&cached.bytes[..used]);
                let head = codec::header(node.len(), ROOT_ENTRIES, node.depth);
                block[..head.len()].copy_from_slice(&head);
            }
            live.inode.block = block;
            self.free_map_block(handle, live, child)?;
        }
    }

    /// An extent of a leaf, if it is there.
    fn extent_at(leaf: &Node<'_>, at: Option<usize>) -> Option<Extent> {
        at.filter(|&at| at < leaf.len()).map(|at| leaf.extent(at))
    }

    /// Gives back a block of the map.
    pub(super) fn free_map_block(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        block: Block,
    ) -> Result<()> {
        handle.forget(block);
        self.free(handle, live, Freed { start: block, len: 1 })
    }
}
