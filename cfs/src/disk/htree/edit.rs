//! Changes of hash trees: a leaf is split, and the index above it grows.
//!
//! Everything here makes whole blocks in memory from the blocks on the way to a leaf. Names of the
//! same hash that come apart are joined by bit 0 of the hash that begins the second leaf.

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    ENTRY, HashVersion, NODE_ENTRIES, ROOT_ENTRIES, ROOT_INFO, RawCountLimit, RawIndexEntry,
    RawRootInfo, TAIL,
};
use crate::disk::checksum::crc32c;
use crate::disk::dirent::edit::{self as dirent, Format, NewEntry};
use crate::limits::MAX_HTREE_LEVELS;

/// A block of the directory: its number within it, and its bytes.
pub type DirBlock = (u32, Box<[u8]>);

/// An index block on the way from the root to a leaf.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Its number within the directory; 0 for the root.
    pub number: u32,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The entry that leads on.
    pub place: usize,
}

/// What a directory's trees have in common.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What the volume's features say.
    pub format: Format,
    /// How names hash.
    pub version: HashVersion,
    /// The seed of the directory's checksums.
    pub seed: u32,
}

/// Index levels below the root that a tree may have.
pub fn max_levels(format: Format) -> u8 {
    if format.large { MAX_HTREE_LEVELS } else { 1 }
}

/// How many new blocks it takes to split a leaf under this path; `None` if the tree is full.
pub fn blocks_to_split(path: &[Step<'_>], format: Format) -> Option<u32> {
    let full = path.iter().rev().take_while(|step| is_full(step.bytes, step.number == 0)).count();
    if full < path.len() {
        Some(1 + full as u32)
    } else if path.len() <= usize::from(max_levels(format)) {
        // Each index below the root splits, and the root's entries move into a block of their own.
        Some(1 + full as u32)
    } else {
        None
    }
}

fn is_full(block: &[u8], root: bool) -> bool {
    let node = Node::new(root);
    node.count(block) == node.limit(block)
}

/// Splits a leaf in two, with an entry more, and enters the second into the index. The answer is
/// all blocks that change, sealed: new ones have the numbers from `next` on. There must be as many
/// as [`blocks_to_split`] says.
pub fn split(
    path: &[Step<'_>],
    leaf: (u32, &[u8]),
    entry: &NewEntry<'_>,
    rules: &Rules,
    mut next: u32,
) -> Result<Vec<DirBlock>, String> {
    let mut take = || {
        next += 1;
        next - 1
    };
    let second = take();
    let (halves, mut hash) = split_leaf(leaf.1, entry, rules)?;
    let [low, high] = halves;
    let mut changed = vec![(leaf.0, low), (second, high)];
    let mut child = second;
    for (depth, step) in path.iter().enumerate().rev() {
        let root = step.number == 0;
        let node = Node::new(root);
        if node.count(step.bytes) < node.limit(step.bytes) {
            let mut block = Box::from(step.bytes);
            node.insert(&mut block, step.place + 1, hash, child);
            node.seal(&mut block, rules);
            changed.push((step.number, block));
            return Ok(changed);
        }
        if root {
            if depth != 0 || path.len() > usize::from(max_levels(rules.format)) {
                return Err("hash tree without room for another level".into());
            }
            let number = take();
            let [root, mut below] = grow(step.bytes, number, rules);
            Node::BELOW.insert(&mut below, step.place + 1, hash, child);
            Node::BELOW.seal(&mut below, rules);
            changed.extend([(0, root), (number, below)]);
            return Ok(changed);
        }
        let number = take();
        let (halves, between) = split_index(step, hash, child, rules);
        let [low, high] = halves;
        changed.extend([(step.number, low), (number, high)]);
        (hash, child) = (between, number);
    }
    Err("a leaf without an index".into())
}

/// Makes a tree of a directory of one block: the root in block 0, and all entries but "." and ".."
/// in block 1, still to be split and sealed. `None` if "." and ".." lie where no root could be.
pub fn index_linear(
    block: &[u8],
    number: u8,
    rules: &Rules,
) -> Result<Option<[Box<[u8]>; 2]>, String> {
    let entries = dirent::entries(block, rules.format)?;
    let [dot, dotdot, rest @ ..] = &entries[..] else { return Ok(None) };
    if dot.name != b"." || dotdot.name != b".." || dirent::dotdot(block).is_none() {
        return Ok(None);
    }
    let mut root = vec![0; block.len()].into_boxed_slice();
    root[..ROOT_INFO].copy_from_slice(&block[..ROOT_INFO]);
    // ".." looks as if it filled the block.
    let record = (block.len() - ROOT_INFO / 2) as u16;
    root[ROOT_INFO / 2 + 4..][..2].copy_from_slice(&record.to_le_bytes());
    let info = RawRootInfo {
        reserved_zero: 0.into(),
        hash_version: number,
        info_length: size_of::<RawRootInfo>() as u8,
        indirect_levels: 0,
        unused_flags: 0,
    };
    root[ROOT_INFO..ROOT_ENTRIES].copy_from_slice(info.as_bytes());
    Node::ROOT.start(&mut root, 1, rules.format);
    Node::ROOT.seal(&mut root, rules);
    Ok(Some([root, dirent::pack(block.len(), rest, rules.format)]))
}

/// Both halves of a leaf with an entry more, and the hash that begins the second.
fn split_leaf(
    leaf: &[u8],
    entry: &NewEntry<'_>,
    rules: &Rules,
) -> Result<([Box<[u8]>; 2], u32), String> {
    let mut entries: Vec<(u32, NewEntry<'_>)> = dirent::entries(leaf, rules.format)?
        .into_iter()
        .chain([*entry])
        .map(|entry| (rules.version.hash(entry.name), entry))
        .collect();
    entries.sort_by_key(|(hash, _)| *hash);
    let at = middle(&entries);
    if at == 0 {
        return Err("a leaf without entries was to be split".into());
    }
    let hash = entries[at].0;
    let continued = u32::from(entries[at - 1].0 == hash);
    let entries: Vec<NewEntry<'_>> = entries.into_iter().map(|(_, entry)| entry).collect();
    let halves = [&entries[..at], &entries[at..]].map(|half| {
        let mut block = dirent::pack(leaf.len(), half, rules.format);
        dirent::seal(&mut block, rules.format, rules.seed);
        block
    });
    Ok((halves, hash | continued))
}

/// Where to split: at the boundary of hashes next to the middle, unless names of one hash fill so
/// much that they have to come apart. 0 for less than two entries.
fn middle(entries: &[(u32, NewEntry<'_>)]) -> usize {
    let size = |(_, entry): &(u32, NewEntry<'_>)| dirent::needed(entry.name.len());
    let total: usize = entries.iter().map(size).sum();
    let (mut before, mut best) = (0usize, (usize::MAX, 0));
    for (i, entry) in entries.iter().enumerate() {
        // A boundary within a hash counts as an eighth of the block further off.
        let apart = i > 0 && entries[i - 1].0 == entry.0;
        let distance = (2 * before).abs_diff(total) + if apart { total / 4 } else { 0 };
        if i > 0 && distance < best.0 {
            best = (distance, i);
        }
        before += size(entry);
    }
    best.1
}

/// Both halves of a full index block with an entry more, and the hash that begins the second.
fn split_index(step: &Step<'_>, hash: u32, child: u32, rules: &Rules) -> ([Box<[u8]>; 2], u32) {
    let node = Node::BELOW;
    let count = node.count(step.bytes);
    let keep = count / 2;
    let between = node.hash(step.bytes, keep);
    let mut low: Box<[u8]> = step.bytes.into();
    let mut high = blank_index(step.bytes.len());
    node.start(&mut high, 0, rules.format);
    let moved = &step.bytes[node.entry(keep)..node.entry(count)];
    high[NODE_ENTRIES + 4..][..moved.len() - 4].copy_from_slice(&moved[4..]);
    node.set_count(&mut high, count - keep);
    low[node.entry(keep)..node.entry(count)].fill(0);
    node.set_count(&mut low, keep);
    match (step.place + 1).checked_sub(keep) {
        // The first of the second half is its own beginning: the new entry follows what it
        // was split from.
        Some(at) if at > 0 => node.insert(&mut high, at, hash, child),
        _ => node.insert(&mut low, step.place + 1, hash, child),
    }
    node.seal(&mut low, rules);
    node.seal(&mut high, rules);
    ([low, high], between)
}

/// The root with one entry, and the block below it that has all of its entries, not sealed yet.
fn grow(root: &[u8], number: u32, rules: &Rules) -> [Box<[u8]>; 2] {
    let count = Node::ROOT.count(root);
    let mut below = blank_index(root.len());
    Node::BELOW.start(&mut below, 0, rules.format);
    let entries = &root[ROOT_ENTRIES + 4..Node::ROOT.entry(count)];
    below[NODE_ENTRIES + 4..][..entries.len()].copy_from_slice(entries);
    Node::BELOW.set_count(&mut below, count);
    let mut root: Box<[u8]> = root.into();
    root[ROOT_INFO + 6] += 1;
    root[Node::ROOT.entry(1)..Node::ROOT.entry(count)].fill(0);
    Node::ROOT.start(&mut root, number, rules.format);
    Node::ROOT.seal(&mut root, rules);
    [root, below]
}

/// A block that looks like one unused entry.
fn blank_index(block_size: usize) -> Box<[u8]> {
    let mut block = vec![0; block_size].into_boxed_slice();
    block[4..6].copy_from_slice(&(block_size as u16).to_le_bytes());
    block
}

/// Where the index lies in a block of one of the two kinds. The block was checked: its count and
/// limit are what its size allows.
#[derive(Clone, Copy)]
struct Node {
    start: usize,
}

impl Node {
    const ROOT: Self = Self { start: ROOT_ENTRIES };
    const BELOW: Self = Self { start: NODE_ENTRIES };

    fn new(root: bool) -> Self {
        if root { Self::ROOT } else { Self::BELOW }
    }

    fn entry(self, place: usize) -> usize {
        self.start + place * ENTRY
    }

    fn head(self, block: &[u8]) -> (usize, usize) {
        match RawCountLimit::ref_from_prefix(&block[self.start..]) {
            Ok((head, _)) => (head.limit.get().into(), head.count.get().into()),
            Err(_) => (0, 0),
        }
    }

    fn limit(self, block: &[u8]) -> usize {
        self.head(block).0
    }

    fn count(self, block: &[u8]) -> usize {
        self.head(block).1
    }

    fn set_count(self, block: &mut [u8], count: usize) {
        block[self.start + 2..self.start + 4].copy_from_slice(&(count as u16).to_le_bytes());
    }

    fn hash(self, block: &[u8], place: usize) -> u32 {
        U32::read_from_prefix(&block[self.entry(place)..]).map_or(0, |(hash, _)| hash.get())
    }

    /// An index of one entry.
    fn start(self, block: &mut [u8], child: u32, format: Format) {
        let tail = if format.checksums { TAIL } else { 0 };
        let limit = (block.len() - self.start - tail) / ENTRY;
        let head = RawCountLimit { limit: (limit as u16).into(), count: 1.into() };
        block[self.start..self.start + 4].copy_from_slice(head.as_bytes());
        block[self.start + 4..self.start + 8].copy_from_slice(&child.to_le_bytes());
    }

    /// Enters a child before `place`, which is not 0; the index is not full.
    fn insert(self, block: &mut [u8], place: usize, hash: u32, child: u32) {
        let count = self.count(block);
        let (at, end) = (self.entry(place), self.entry(count));
        block.copy_within(at..end, at + ENTRY);
        let entry = RawIndexEntry { hash: hash.into(), block: child.into() };
        block[at..at + ENTRY].copy_from_slice(entry.as_bytes());
        self.set_count(block, count + 1);
    }

    fn seal(self, block: &mut [u8], rules: &Rules) {
        if rules.format.checksums {
            let covered = self.entry(self.count(block));
            let tail = self.entry(self.limit(block));
            let crc = crc32c(crc32c(rules.seed, &block[..covered]), &block[tail..tail + 4]);
            let crc = crc32c(crc, &[0; 4]);
            block[tail + 4..tail + 8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
