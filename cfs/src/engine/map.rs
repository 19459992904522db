//! From a file's blocks to the volume's.

use std::sync::Arc;

use crate::disk::extent::{self, Node, Place};
use crate::disk::indirect::Path;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::id::{Block, Ino};
use crate::{Error, Result};

use super::Volume;
use super::cache::{CachedBlock, Role};

/// Where blocks of a file are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// Nowhere: they read as zeros.
    Hole,
    /// On the volume from this block on.
    Data(Block),
    /// On the volume from this block on, but they read as zeros.
    Unwritten(Block),
}

/// Blocks of a file that lie together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first block within the file.
    pub logical: u64,
    /// How many; at least one.
    pub len: u64,
    /// Where they are.
    pub mapping: Mapping,
}

impl Run {
    /// The block within the file that follows the run.
    pub fn end(&self) -> u64 {
        self.logical + self.len
    }

    /// The run without its first `skip` blocks and with `len` at most; `skip < self.len`.
    fn part(&self, skip: u64, len: u64) -> Self {
        let mapping = match self.mapping {
            Mapping::Hole => Mapping::Hole,
            Mapping::Data(block) => Mapping::Data(Block(block.0 + skip)),
            Mapping::Unwritten(block) => Mapping::Unwritten(Block(block.0 + skip)),
        };
        Self { logical: self.logical + skip, len: len.min(self.len - skip), mapping }
    }

    /// Whether `next` carries on where this ends, in the file and on the volume.
    fn continues(&self, next: &Self) -> bool {
        let after = |block: Block| Block(block.0 + self.len);
        next.logical == self.end()
            && match (self.mapping, next.mapping) {
                (Mapping::Hole, Mapping::Hole) => true,
                (Mapping::Data(a), Mapping::Data(b))
                | (Mapping::Unwritten(a), Mapping::Unwritten(b)) => after(a) == b,
                _ => false,
            }
    }
}

/// The runs of a range of a file, in order and without gaps: see [`Volume::runs`].
pub struct Runs<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    next: u64,
    end: u64,
    ahead: Option<Run>,
    /// Pieces that may still come: a map in which blocks appear over and over ends.
    budget: u64,
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = match self.ahead.take() {
            Some(run) => run,
            None => match self.fetch()? {
                Ok(run) => run,
                Err(error) => {
                    self.next = self.end;
                    return Some(Err(error));
                }
            },
        };
        while let Some(next) = self.fetch() {
            match next {
                Ok(next) if run.continues(&next) => run.len += next.len,
                Ok(next) => {
                    self.ahead = Some(next);
                    break;
                }
                // Met again, and returned, by the next call.
                Err(_) => break,
            }
        }
        Some(Ok(run))
    }
}

impl Runs<'_> {
    /// The next piece as the map has it. After an error the place stays.
    fn fetch(&mut self) -> Option<Result<Run>> {
        if self.next >= self.end {
            return None;
        }
        let run = match self.budget.checked_sub(1) {
            Some(left) => {
                self.budget = left;
                self.volume.map(self.inode, self.next, self.end - self.next)
            }
            None => Err(Error::corrupt(self.inode.ino, "maps more blocks than there are")),
        };
        if let Ok(run) = &run {
            self.next = run.end();
        }
        Some(run)
    }
}

impl Volume {
    /// The runs of `count` blocks of a file from block `first` on: as long as they can be, in
    /// order, without gaps. What lies beyond the end of the file's map is a hole. An error is the
    /// last item.
    pub fn runs<'a>(&'a self, inode: &'a Inode, first: u64, count: u64) -> Runs<'a> {
        // Each piece is a block of the volume at least, or the hole before one.
        let budget = 2 * self.superblock.blocks_count + 64;
        let end = first.saturating_add(count);
        Runs { volume: self, inode, next: first, end, ahead: None, budget }
    }

    /// The run that begins at block `first` of a file, `max` blocks at most (at least 1). It may
    /// be cut where the map is, though the blocks after it carry on.
    pub fn map(&self, inode: &Inode, first: u64, max: u64) -> Result<Run> {
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Err(Error::corrupt(inode.ino, "inline contents have no blocks"));
        }
        if !matches!(inode.kind, Kind::Regular | Kind::Directory | Kind::Symlink) {
            return Err(Error::Invalid(format!("{} has no blocks", inode.ino)));
        }
        let hole = |len| Run { logical: first, len, mapping: Mapping::Hole };
        let run = if inode.flags.contains(InodeFlags::EXTENTS) {
            match u32::try_from(first) {
                Ok(logical) => self.map_extents(inode, logical)?,
                Err(_) => hole(max),
            }
        } else {
            match Path::new(first, self.superblock.block_bits - 2) {
                Some(path) => self.map_indirect(inode, first, &path, max)?,
                None => hole(max),
            }
        };
        Ok(run.part(0, max))
    }

    fn map_extents(&self, inode: &Inode, logical: u32) -> Result<Run> {
        let bad = |why| Error::corrupt(inode.ino, why);
        let valid = |start, len| self.may_claim(inode, start, len);
        let first = u64::from(logical);
        let mut place = Place::ROOT;
        let mut node = Node::parse(&inode.block, &place, valid).map_err(bad)?;
        let mut block;
        // Each turn goes one level down, and no level is below 0.
        while node.depth > 0 {
            let Some(entry) = node.find(logical) else {
                let len = u64::from(node.key(0)) - first;
                return Ok(Run { logical: first, len, mapping: Mapping::Hole });
            };
            let end = if entry + 1 < node.len() {
                u64::from(node.key(entry + 1))
            } else {
                place.logical.end
            };
            let child = node.child(entry);
            place = Place { depth: Some(node.depth - 1), logical: u64::from(node.key(entry))..end };
            block = self.block(child)?;
            block.check(Role::Extents, inode.ino, |bytes| {
                self.check_extent_block(inode, child, bytes, &place)
            })?;
            node = Node::parse_checked(&block.bytes, &place).map_err(bad)?;
        }
        let Some(entry) = node.find(logical) else {
            let end = if node.is_empty() { place.logical.end } else { node.key(0).into() };
            return Ok(Run { logical: first, len: end - first, mapping: Mapping::Hole });
        };
        let extent = node.extent(entry);
        if first < extent.end() {
            let mapping = if extent.unwritten {
                Mapping::Unwritten(extent.start)
            } else {
                Mapping::Data(extent.start)
            };
            let (logical, len) = (u64::from(extent.logical), u64::from(extent.len));
            let run = Run { logical, len, mapping };
            return Ok(run.part(first - logical, len));
        }
        let end =
            if entry + 1 < node.len() { node.key(entry + 1).into() } else { place.logical.end };
        Ok(Run { logical: first, len: end - first, mapping: Mapping::Hole })
    }

    pub(super) fn check_extent_block(
        &self,
        inode: &Inode,
        block: Block,
        bytes: &[u8],
        place: &Place,
    ) -> Result<()> {
        let bad = |why| Error::corrupt(inode.ino, format!("extent {block}: {why}"));
        let valid = |start, len| self.may_claim(inode, start, len);
        Node::parse(bytes, place, valid).map_err(bad)?;
        if !self.superblock.features.metadata_csum() {
            return Ok(());
        }
        match extent::checksum(bytes, inode.checksum_seed) {
            Some((found, computed)) if found == computed => Ok(()),
            Some((found, computed)) => {
                Err(bad(format!("checksum {found:#010x}, computed {computed:#010x}")))
            }
            None => Err(bad("no room for a checksum".into())),
        }
    }

    fn map_indirect(&self, inode: &Inode, first: u64, path: &Path, max: u64) -> Result<Run> {
        let indexes = path.indexes();
        let mut above: [Option<Block>; 4] = [None; 4];
        let mut block: Option<Arc<CachedBlock>> = None;
        for (level, &index) in indexes.iter().enumerate() {
            let leaf = level + 1 == indexes.len();
            let table: &[u8] = match &block {
                None => &inode.block,
                Some(cached) => &cached.bytes,
            };
            let place = pointer(table, index);
            if place == 0 {
                // Neighbours that are missing too make one hole, within this table.
                let step = path.blocks_below(level);
                let more = (index + 1..table_end(table, leaf && level == 0))
                    .take_while(|&next| leaf && u64::from(next - index) < max)
                    .take_while(|&next| pointer(table, next) == 0)
                    .count() as u64;
                return Ok(Run { logical: first, len: step + more, mapping: Mapping::Hole });
            }
            let place = Block(place.into());
            if !self.may_claim(inode, place, 1) || above.contains(&Some(place)) {
                return Err(Error::corrupt(inode.ino, format!("maps block {first} by {place}")));
            }
            if leaf {
                let more = (index + 1..table_end(table, level == 0))
                    .take_while(|&next| u64::from(next - index) < max)
                    .take_while(|&next| {
                        let expected = place.0 + u64::from(next - index);
                        u64::from(pointer(table, next)) == expected
                    })
                    .count() as u64;
                let len = 1 + more;
                if !self.may_claim(inode, place, len) {
                    return Err(Error::corrupt(inode.ino, format!("maps {len} from {place}")));
                }
                return Ok(Run { logical: first, len, mapping: Mapping::Data(place) });
            }
            above[level] = Some(place);
            block = Some(self.block(place)?);
        }
        Err(Error::corrupt(inode.ino, "an indirect map without levels"))
    }

    /// Whether a file may claim blocks. What the volume's own inodes hold lies among its own
    /// structures.
    pub(crate) fn may_claim(&self, inode: &Inode, start: Block, len: u64) -> bool {
        if inode.ino.0 < self.superblock.first_ino && inode.ino != Ino::ROOT {
            return start.0.checked_add(len).is_some_and(|end| end <= self.superblock.blocks_count);
        }
        self.zones.allow(start, len)
    }
}

fn pointer(table: &[u8], index: u32) -> u32 {
    let at = index as usize * 4;
    table.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The end of the pointers to data in a table: in the inode they are the first 12 of 15.
fn table_end(table: &[u8], direct: bool) -> u32 {
    if direct { 12 } else { (table.len() / 4) as u32 }
}
