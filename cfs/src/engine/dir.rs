//! Names in directories.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::disk::dirent::{self, Entries};
use crate::disk::features::Incompat;
use crate::disk::htree::{self, HashVersion, Index, Root};
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::id::{Block, Ino};
use crate::limits::MAX_NAME;
use crate::{Error, Result};

use super::cache::{CachedBlock, Role};
use super::file::inline_rest;
use super::{Mapping, Volume};

/// An entry of a directory, as [`Volume::readdir`] shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The inode that it names; not checked to exist.
    pub ino: Ino,
    /// The name: 1 to 255 bytes without a slash.
    pub name: &'a [u8],
    /// What the entry says of the inode's type, if anything.
    pub kind: Option<Kind>,
    /// Where to go on after this entry; not 0.
    pub next: u64,
}

/// What a hash tree says about a name.
enum Hashed {
    Found(Ino),
    Absent,
    /// The index contradicts itself although its checksums are right: read all blocks.
    Unusable,
}

/// Where an inline directory's entries begin in the space of positions: behind "." and "..",
/// which it does not have.
const INLINE_START: u64 = 24;

/// Bytes of an inline directory before its entries: the number of its parent.
pub(super) const INLINE_PARENT: usize = 4;

impl Volume {
    /// The inode that a name in a directory means; "." and ".." too.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Ino> {
        check_directory(dir)?;
        if name.len() > MAX_NAME {
            return Err(Error::NameTooLong);
        }
        let found = if dir.flags.contains(InodeFlags::INLINE_DATA) {
            self.lookup_inline(dir, name)?
        } else if dir.flags.contains(InodeFlags::INDEX) && name != b"." && name != b".." {
            match self.lookup_hashed(dir, name)? {
                Hashed::Found(ino) => Some(ino),
                Hashed::Absent => None,
                Hashed::Unusable => self.lookup_linear(dir, name)?,
            }
        } else {
            self.lookup_linear(dir, name)?
        };
        let ino = found.ok_or(Error::NotFound)?;
        self.check_target(dir, name, ino)?;
        Ok(ino)
    }

    /// Refuses an inode that no name may lead to.
    pub(super) fn check_target(&self, dir: &Inode, name: &[u8], ino: Ino) -> Result<()> {
        if self.is_public(ino) && (ino != dir.ino || name == b"." || name == b"..") {
            return Ok(());
        }
        let name = String::from_utf8_lossy(name);
        Err(Error::corrupt(dir.ino, format!("name {name:?} leads to {ino}")))
    }

    /// Shows the entries of a directory from a position on to `emit`, "." and ".." too, until it
    /// breaks or there are no more. A position is 0 or what an entry gave as its `next`.
    pub fn readdir(
        &self,
        dir: &Inode,
        from: u64,
        mut emit: impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        check_directory(dir)?;
        if dir.flags.contains(InodeFlags::INLINE_DATA) {
            return self.readdir_inline(dir, from, &mut emit);
        }
        let bits = self.superblock.block_bits;
        for index in from >> bits..self.dir_blocks(dir)? {
            let start = index << bits;
            let block = self.dir_block(dir, index)?;
            let entries = self.entries(dir, &block.bytes);
            if show(entries, start, from, &mut emit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lookup_linear(&self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>> {
        for index in 0..self.dir_blocks(dir)? {
            let block = self.dir_block(dir, index)?;
            if let Some(ino) = find(self.entries(dir, &block.bytes), name)? {
                return Ok(Some(ino));
            }
        }
        Ok(None)
    }

    fn lookup_hashed(&self, dir: &Inode, name: &[u8]) -> Result<Hashed> {
        let Some(mut walk) = Walk::begin(self, dir)? else { return Ok(Hashed::Unusable) };
        let hash = walk.version.hash(name);
        if !walk.descend(|index| index.find(hash))? {
            return Ok(Hashed::Unusable);
        }
        // A leaf more than the directory has blocks has been seen before.
        for _ in 0..self.dir_blocks(dir)? {
            let Some(leaf) = walk.leaf() else { return Ok(Hashed::Unusable) };
            let block = self.dir_block(dir, leaf.into())?;
            if let Some(ino) = find(self.entries(dir, &block.bytes), name)? {
                return Ok(Hashed::Found(ino));
            }
            match walk.next(hash)? {
                Some(true) => {}
                Some(false) => return Ok(Hashed::Absent),
                None => return Ok(Hashed::Unusable),
            }
        }
        Ok(Hashed::Unusable)
    }

    fn lookup_inline(&self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>> {
        let (parent, spaces) = inline_spaces(dir)?;
        match name {
            b"." => return Ok(Some(dir.ino)),
            b".." => return Ok(Some(parent)),
            _ => {}
        }
        for space in spaces {
            if let Some(ino) = find(self.entries(dir, space), name)? {
                return Ok(Some(ino));
            }
        }
        Ok(None)
    }

    fn readdir_inline(
        &self,
        dir: &Inode,
        from: u64,
        emit: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let (parent, spaces) = inline_spaces(dir)?;
        let kind = Some(Kind::Directory);
        let here: [(u64, Ino, &[u8]); 2] = [(0, dir.ino, b"."), (INLINE_START / 2, parent, b"..")];
        for (at, ino, name) in here {
            let next = at + INLINE_START / 2;
            if at >= from && emit(DirEntry { ino, name, kind, next }).is_break() {
                return Ok(());
            }
        }
        let mut start = INLINE_START;
        for space in spaces {
            if show(self.entries(dir, space), start, from, emit)?.is_break() {
                break;
            }
            start += space.len() as u64;
        }
        Ok(())
    }

    /// Blocks of a directory.
    pub(super) fn dir_blocks(&self, dir: &Inode) -> Result<u64> {
        if dir.size == 0 || !dir.size.is_multiple_of(self.superblock.block_size.into()) {
            return Err(Error::corrupt(dir.ino, format!("directory of {} bytes", dir.size)));
        }
        Ok(dir.size >> self.superblock.block_bits)
    }

    /// Where a block of a directory lies.
    pub(super) fn dir_place(&self, dir: &Inode, index: u64) -> Result<Block> {
        match self.map(dir, index, 1)?.mapping {
            Mapping::Data(block) => Ok(block),
            _ => Err(Error::corrupt(dir.ino, format!("directory block {index}: it is a hole"))),
        }
    }

    fn dir_block(&self, dir: &Inode, index: u64) -> Result<Arc<CachedBlock>> {
        Ok(self.dir_block_at(dir, index)?.1)
    }

    /// A block of a directory whose checksum and entries are right, and where it lies.
    pub(super) fn dir_block_at(
        &self,
        dir: &Inode,
        index: u64,
    ) -> Result<(Block, Arc<CachedBlock>)> {
        let bad = |why: String| Error::corrupt(dir.ino, format!("directory block {index}: {why}"));
        let place = self.dir_place(dir, index)?;
        let block = self.block(place)?;
        let hashed = dir.flags.contains(InodeFlags::INDEX);
        let role = if hashed && index == 0 { Role::Index } else { Role::Directory };
        block.check(role, dir.ino, |bytes| {
            if self.superblock.features.metadata_csum() {
                let sums = if role == Role::Index || (hashed && htree::is_index_block(bytes)) {
                    htree::checksum(bytes, index == 0, dir.checksum_seed)
                } else {
                    dirent::checksum(bytes, dir.checksum_seed)
                };
                let (found, computed) = sums.ok_or_else(|| bad("no checksum".into()))?;
                if found != computed {
                    return Err(bad(format!("checksum {found:#010x}, computed {computed:#010x}")));
                }
            }
            Entries::new(bytes, self.superblock.inodes_count)
                .try_for_each(|entry| entry.map(|_| ()))
                .map_err(bad)
        })?;
        Ok((place, block))
    }

    fn entries<'a>(&self, dir: &Inode, bytes: &'a [u8]) -> NamedEntries<'a> {
        NamedEntries { dir: dir.ino, entries: Entries::new(bytes, self.superblock.inodes_count) }
    }
}

/// Entries whose errors name the directory.
struct NamedEntries<'a> {
    dir: Ino,
    entries: Entries<'a>,
}

impl<'a> Iterator for NamedEntries<'a> {
    type Item = Result<dirent::Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.entries.next()?.map_err(|why| Error::corrupt(self.dir, why)))
    }
}

/// A way through a hash tree from its root to an entry that names a leaf.
pub(super) struct Walk<'a> {
    volume: &'a Volume,
    dir: &'a Inode,
    levels: u8,
    /// How the tree's names hash.
    pub(super) version: HashVersion,
    checksums: bool,
    /// The index blocks from the root on, with the place in each.
    pub(super) path: Vec<(Arc<CachedBlock>, usize)>,
}

impl<'a> Walk<'a> {
    /// At the root; `None` if that is unusable.
    pub(super) fn begin(volume: &'a Volume, dir: &'a Inode) -> Result<Option<Self>> {
        let features = &volume.superblock.features;
        let checksums = features.metadata_csum();
        let large = features.incompat.contains(Incompat::LARGEDIR);
        let root = volume.dir_block(dir, 0)?;
        let parsed = Root::parse(&root.bytes, &volume.superblock.hash, large, checksums);
        let Ok((version, levels)) = parsed.map(|root| (root.version, root.levels)) else {
            return Ok(None);
        };
        Ok(Some(Self { volume, dir, levels, version, checksums, path: vec![(root, 0)] }))
    }

    /// Goes down from the last index of the path, whose place `choose` gives as it does for each
    /// below. `false` if the index is unusable.
    pub(super) fn descend(&mut self, choose: impl Fn(&Index<'_>) -> usize) -> Result<bool> {
        let last = self.path.len() - 1;
        let Some(place) = self.index(last).map(|index| choose(&index)) else { return Ok(false) };
        self.path[last].1 = place;
        self.descend_from_place(choose)
    }

    fn descend_from_place(&mut self, choose: impl Fn(&Index<'_>) -> usize) -> Result<bool> {
        while self.path.len() <= usize::from(self.levels) {
            let Some(child) = self.leaf() else { return Ok(false) };
            let block = self.volume.dir_block(self.dir, child.into())?;
            self.path.push((block, 0));
            let last = self.path.len() - 1;
            let Some(place) = self.index(last).map(|index| choose(&index)) else {
                return Ok(false);
            };
            self.path[last].1 = place;
        }
        Ok(true)
    }

    /// Moves on to the next leaf if it may hold names of the same hash; `None` if the index is
    /// unusable.
    pub(super) fn next(&mut self, hash: u32) -> Result<Option<bool>> {
        loop {
            let last = self.path.len() - 1;
            let Some(index) = self.index(last) else { return Ok(None) };
            let place = self.path[last].1 + 1;
            if place < index.len() {
                if index.hash(place) & !1 != hash {
                    return Ok(Some(false));
                }
                self.path[last].1 = place;
                return Ok(self.descend_from_place(|_| 0)?.then_some(true));
            }
            if last == 0 {
                return Ok(Some(false));
            }
            self.path.pop();
        }
    }

    /// The block that the end of the path names, if the directory has such a block.
    pub(super) fn leaf(&self) -> Option<u32> {
        let last = self.path.len() - 1;
        let block = self.index(last)?.block(self.path[last].1);
        let blocks = self.volume.dir_blocks(self.dir).ok()?;
        (u64::from(block) < blocks).then_some(block)
    }

    /// The index that a block of the path holds.
    pub(super) fn index(&self, level: usize) -> Option<Index<'_>> {
        let bytes = &self.path[level].0.bytes;
        if level > 0 {
            return Index::parse(bytes, self.checksums).ok();
        }
        let seed = self.version.seed();
        Root::parse(bytes, seed, self.levels > 1, self.checksums).ok().map(|root| root.index)
    }
}

fn check_directory(dir: &Inode) -> Result<()> {
    if dir.kind != Kind::Directory {
        Err(Error::NotADirectory)
    } else if dir.flags.contains(InodeFlags::ENCRYPTED) {
        Err(Error::Encrypted(dir.ino.to_string()))
    } else {
        Ok(())
    }
}

fn find(entries: NamedEntries<'_>, name: &[u8]) -> Result<Option<Ino>> {
    for entry in entries {
        let entry = entry?;
        if entry.name == name {
            return Ok(Some(Ino(entry.ino)));
        }
    }
    Ok(None)
}

/// Shows the entries of a space that begins at position `start` to `emit`, from a position on.
fn show(
    entries: NamedEntries<'_>,
    start: u64,
    from: u64,
    emit: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    for entry in entries {
        let entry = entry?;
        if start + (entry.offset as u64) < from {
            continue;
        }
        let next = start + entry.next as u64;
        let shown = DirEntry { ino: Ino(entry.ino), name: entry.name, kind: entry.kind, next };
        if emit(shown).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The parent of an inline directory, and its two spaces of entries.
pub(super) fn inline_spaces(dir: &Inode) -> Result<(Ino, [&[u8]; 2])> {
    let (parent, entries) = dir.block.split_at(INLINE_PARENT);
    let parent = parent.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok((Ino(parent), [entries, inline_rest(dir)?]))
}
