//! Entries of directories: where a name is or may go, and the changes of blocks that this takes.

use std::sync::Arc;

use super::budget::Budget;
use super::inline::is_inline;
use super::{Live, Writer};
use crate::alloc::Claim;
use crate::disk::dirent::edit::{self, Format, Found, NewEntry, Patch, Room};
use crate::disk::features::{Compat, Incompat};
use crate::disk::htree::HashVersion;
use crate::disk::htree::edit::{self as tree, DirBlock, Rules, Step};
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::engine::cache::CachedBlock;
use crate::engine::dir::Walk;
use crate::id::{Block, Ino};
use crate::journal::Handle;
use crate::{Error, Result};

/// A name that is there.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    /// What it leads to.
    pub(super) ino: Ino,
    pub(super) site: Site,
}

/// Where a name is.
#[derive(Clone, Copy)]
pub(super) enum Site {
    /// In a block; `first` if that is the directory's first, which is the root of its hash tree.
    Block { block: Block, first: bool, found: Found },
    /// In one of the two spaces for entries in the directory's inode.
    Inline { space: usize, found: Found },
    /// The number of its parent that a directory in its inode has for an entry "..".
    InlineParent,
}

/// What a directory says about a name.
pub(super) enum Sought {
    Found(Spot),
    Absent(Place),
}

/// Where an entry for a name may go.
pub(super) enum Place {
    /// A block has room.
    Room(Block, Room),
    /// A leaf of the hash tree has to be split.
    Leaf(Box<Leaf>),
    /// The directory's only block is full, and becomes a hash tree.
    Only(Arc<CachedBlock>),
    /// All blocks are full, and there is no hash tree.
    Behind,
    /// In the directory's inode, once its entries are in a block: see [`Writer::outline`].
    Inline,
}

/// A full leaf, and the way to it.
pub(super) struct Leaf {
    version: HashVersion,
    path: Vec<(u32, Arc<CachedBlock>, usize)>,
    number: u32,
    bytes: Arc<CachedBlock>,
}

/// Blocks that entering a name changes of those that were there: a leaf, and the index above it.
const MOST_OLD: u32 = 4;

impl Leaf {
    fn steps(&self) -> Vec<Step<'_>> {
        self.path
            .iter()
            .map(|(number, bytes, place)| Step {
                number: *number,
                bytes: &bytes.bytes,
                place: *place,
            })
            .collect()
    }
}

impl Writer {
    /// What the volume's features say of its directories.
    pub(super) fn dir_format(&self) -> Format {
        Format::new(&self.volume.superblock().features)
    }

    /// Looks for a name, and for the place where it would go.
    pub(super) fn seek(&self, dir: &Inode, name: &[u8]) -> Result<Sought> {
        let hashed = dir.flags.contains(InodeFlags::INDEX) && name != b"." && name != b"..";
        let sought = if is_inline(dir) {
            self.seek_inline(dir, name)?
        } else if hashed {
            self.seek_hashed(dir, name)?
        } else {
            self.seek_linear(dir, name)?
        };
        if let Sought::Found(Spot { ino, .. }) = sought {
            self.volume.check_target(dir, name, ino)?;
        }
        Ok(sought)
    }

    fn seek_linear(&self, dir: &Inode, name: &[u8]) -> Result<Sought> {
        let format = self.dir_format();
        let count = self.volume.dir_blocks(dir)?;
        let (mut room, mut only) = (None, None);
        for number in 0..count {
            let (block, cached) = self.volume.dir_block_at(dir, number)?;
            let scan = edit::scan(&cached.bytes, name, format).map_err(bad(dir))?;
            if let Some(found) = scan.found {
                let site = Site::Block { block, first: number == 0, found };
                let spot = Spot { ino: Ino(found.ino), site };
                return Ok(Sought::Found(spot));
            }
            if room.is_none() {
                room = scan.room.map(|room| (block, room));
            }
            only = Some(cached).filter(|_| count == 1);
        }
        let indexes = self.volume.superblock().features.compat.contains(Compat::DIR_INDEX);
        Ok(Sought::Absent(match (room, only) {
            (Some((block, room)), _) => Place::Room(block, room),
            (None, Some(cached)) if indexes && edit::dotdot(&cached.bytes).is_some() => {
                Place::Only(cached)
            }
            (None, _) => Place::Behind,
        }))
    }

    fn seek_hashed(&self, dir: &Inode, name: &[u8]) -> Result<Sought> {
        let unusable = || bad(dir)("its hash tree contradicts itself".into());
        let format = self.dir_format();
        let mut walk = Walk::begin(&self.volume, dir)?.ok_or_else(unusable)?;
        let version = walk.version;
        let hash = version.hash(name);
        if !walk.descend(|index| index.find(hash))? {
            return Err(unusable());
        }
        let mut place = None;
        for _ in 0..self.volume.dir_blocks(dir)? {
            let number = walk.leaf().ok_or_else(unusable)?;
            let (block, cached) = self.volume.dir_block_at(dir, number.into())?;
            let scan = edit::scan(&cached.bytes, name, format).map_err(bad(dir))?;
            if let Some(found) = scan.found {
                let site = Site::Block { block, first: false, found };
                let spot = Spot { ino: Ino(found.ino), site };
                return Ok(Sought::Found(spot));
            }
            // Names of one hash go into the first of their leaves.
            if place.is_none() {
                place = Some(match scan.room {
                    Some(room) => Place::Room(block, room),
                    None => {
                        let path = steps(&walk).ok_or_else(unusable)?;
                        Place::Leaf(Box::new(Leaf { version, path, number, bytes: cached }))
                    }
                });
            }
            match (walk.next(hash)?, place) {
                (Some(true), kept) => place = kept,
                (Some(false), Some(place)) => return Ok(Sought::Absent(place)),
                _ => return Err(unusable()),
            }
        }
        Err(unusable())
    }

    /// How many blocks the directory gets when a name goes there.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it can have no more.
    pub(super) fn fresh_blocks(&self, dir: &Inode, place: &Place) -> Result<u32> {
        let format = self.dir_format();
        let fresh = match place {
            Place::Room(..) | Place::Inline => return Ok(0),
            Place::Leaf(leaf) => {
                tree::blocks_to_split(&leaf.steps(), format).ok_or(Error::NoSpace)?
            }
            Place::Only(_) => 2,
            Place::Behind => 1,
        };
        let superblock = self.volume.superblock();
        let size = dir.size + (u64::from(fresh) << superblock.block_bits);
        let large = superblock.features.incompat.contains(Incompat::LARGEDIR);
        let fits = large || size <= u32::MAX.into();
        if fits { Ok(fresh) } else { Err(Error::NoSpace) }
    }

    /// Credits for [`Self::enter`] and for storing the directory.
    pub(super) fn enter_credits(&self, dir: &Live, fresh: u32) -> u32 {
        if fresh == 0 {
            return 1 + Self::STORE_CREDITS;
        }
        // The blocks may lie apart. As many as are new are changed as well, at most.
        let insert = self.insert_credits(dir, 1);
        fresh * (insert + 2) + MOST_OLD + Self::STORE_CREDITS
    }

    /// Where a directory's next blocks would best lie: behind its last one.
    pub(super) fn dir_goal(&self, dir: &Live, fresh: u32) -> Block {
        let blocks = dir.inode.size >> self.volume.superblock().block_bits;
        if fresh == 0 { Block(0) } else { self.goal(dir, blocks) }
    }

    /// Where the first block of what is made in a directory would best lie.
    pub(super) fn goal_below(&self, dir: &Live) -> Block {
        self.space.goal(dir.inode.ino, false)
    }

    /// Enters a name that [`Self::seek`] did not find into the place that it gave. The caller
    /// stores the directory. After an error the journal has been given up.
    pub(super) fn enter(
        &self,
        handle: &mut Handle<'_>,
        budget: &mut Budget<'_>,
        dir: &mut Live,
        place: Place,
        entry: &NewEntry<'_>,
        claims: Vec<Claim>,
    ) -> Result<()> {
        let put = match place {
            Place::Room(block, room) => self.enter_room(handle, &dir.inode, block, room, entry),
            place => self
                .grown(&dir.inode, place, entry)
                .and_then(|grown| self.put_blocks(handle, budget, dir, grown, claims)),
        };
        put.map_err(|error| handle.fail(error))
    }

    fn enter_room(
        &self,
        handle: &mut Handle<'_>,
        dir: &Inode,
        block: Block,
        room: Room,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        let patch = {
            let cached = self.volume.block(block)?;
            let mut patch = edit::insert(&cached.bytes, room, entry).map_err(bad(dir))?;
            patch.seal(&cached.bytes, self.dir_format(), dir.checksum_seed);
            patch
        };
        put_patch(handle, block, &patch)
    }

    /// The blocks that change or are new when a directory without room gets a name, and whether it
    /// has a hash tree then.
    fn grown(
        &self,
        dir: &Inode,
        place: Place,
        entry: &NewEntry<'_>,
    ) -> Result<(Vec<DirBlock>, bool)> {
        let format = self.dir_format();
        let seed = dir.checksum_seed;
        let superblock = self.volume.superblock();
        let next = (dir.size >> superblock.block_bits) as u32;
        let rules = |version| Rules { format, version, seed };
        match place {
            Place::Leaf(leaf) => {
                let old = (leaf.number, &leaf.bytes.bytes[..]);
                let rules = rules(leaf.version);
                let blocks =
                    tree::split(&leaf.steps(), old, entry, &rules, next).map_err(bad(dir))?;
                Ok((blocks, true))
            }
            Place::Only(old) => {
                let number = superblock.default_hash;
                let version = HashVersion::new(number, &superblock.hash)
                    .ok_or_else(|| bad(dir)(format!("default hash version {number}")))?;
                let rules = rules(version);
                let made = tree::index_linear(&old.bytes, number, &rules).map_err(bad(dir))?;
                let [root, leaf] = made
                    .ok_or_else(|| bad(dir)("\".\" and \"..\" are not where they belong".into()))?;
                let path = [Step { number: 0, bytes: &root, place: 0 }];
                let blocks = tree::split(&path, (1, &leaf), entry, &rules, 2).map_err(bad(dir))?;
                Ok((blocks, true))
            }
            Place::Inline => Err(bad(dir)("its entries lie in its inode".into())),
            Place::Behind | Place::Room(..) => {
                let size = superblock.block_size as usize;
                let mut block = edit::pack(size, &[*entry], format);
                edit::seal(&mut block, format, seed);
                Ok((vec![(next, block)], false))
            }
        }
    }

    /// Puts whole blocks; those behind the directory's end are new, and take the claims.
    fn put_blocks(
        &self,
        handle: &mut Handle<'_>,
        budget: &mut Budget<'_>,
        dir: &mut Live,
        (blocks, indexed): (Vec<DirBlock>, bool),
        claims: Vec<Claim>,
    ) -> Result<()> {
        let bits = self.volume.superblock().block_bits;
        let first = dir.inode.size >> bits;
        let end = budget.insert(self, handle, dir, first, claims)?;
        if blocks.iter().any(|(number, _)| u64::from(*number) >= end) {
            return Err(bad(&dir.inode)("it grows beyond what was claimed for it".into()));
        }
        (dir.inode.size, dir.disk_size) = (end << bits, end << bits);
        dir.inode.flags.set(InodeFlags::INDEX, indexed);
        for (number, bytes) in blocks {
            let place = self.volume.dir_place(&dir.inode, number.into())?;
            if u64::from(number) < first {
                handle.put(place, 0, &bytes)?;
            } else {
                handle.create(place, bytes)?;
            }
        }
        Ok(())
    }

    /// Takes a name out. The caller stores the directory. After an error the journal has been given
    /// up.
    pub(super) fn take_out(
        &self,
        handle: &mut Handle<'_>,
        dir: &mut Live,
        spot: &Spot,
    ) -> Result<()> {
        self.edit_entry(handle, dir, spot, edit::remove)
    }

    /// Lets a name lead to another inode. The caller stores the directory. After an error the
    /// journal has been given up.
    pub(super) fn redirect(
        &self,
        handle: &mut Handle<'_>,
        dir: &mut Live,
        spot: &Spot,
        ino: Ino,
        kind: Kind,
    ) -> Result<()> {
        if let Site::InlineParent = spot.site {
            Self::set_inline_parent(dir, ino);
            return Ok(());
        }
        let file_type = self.dir_format().file_type(kind);
        self.edit_entry(handle, dir, spot, |bytes, found| {
            edit::redirect(bytes, found, ino.0, file_type)
        })
    }

    fn edit_entry(
        &self,
        handle: &mut Handle<'_>,
        dir: &mut Live,
        spot: &Spot,
        change: impl FnOnce(&[u8], Found) -> std::result::Result<Patch, String>,
    ) -> Result<()> {
        let (block, first, found) = match spot.site {
            Site::Block { block, first, found } => (block, first, found),
            Site::Inline { space, found } => {
                return Self::edit_inline(dir, space, |bytes| change(bytes, found))
                    .map_err(|error| handle.fail(error));
            }
            Site::InlineParent => return Ok(()),
        };
        let (format, dir) = (self.dir_format(), &dir.inode);
        let patch = || {
            let cached = self.volume.block(block)?;
            let mut patch = change(&cached.bytes, found).map_err(bad(dir))?;
            // Of a tree's root only the entry ".." changes here.
            if dir.flags.contains(InodeFlags::INDEX) && first {
                patch.seal_root(&cached.bytes, format, dir.checksum_seed).map_err(bad(dir))?;
            } else {
                patch.seal(&cached.bytes, format, dir.checksum_seed);
            }
            Ok(patch)
        };
        patch()
            .and_then(|patch| put_patch(handle, block, &patch))
            .map_err(|error| handle.fail(error))
    }

    /// The entry ".." of a directory.
    pub(super) fn parent_entry(&self, dir: &Inode) -> Result<Spot> {
        if is_inline(dir) {
            return self.inline_parent(dir);
        }
        let (block, cached) = self.volume.dir_block_at(dir, 0)?;
        let found = edit::dotdot(&cached.bytes)
            .ok_or_else(|| bad(dir)("no entry \"..\" where it belongs".into()))?;
        self.volume.check_target(dir, b"..", Ino(found.ino))?;
        Ok(Spot { ino: Ino(found.ino), site: Site::Block { block, first: true, found } })
    }

    /// Whether a directory has no names but "." and "..".
    pub(super) fn is_empty_dir(&self, dir: &Inode) -> Result<bool> {
        if is_inline(dir) {
            return self.is_empty_inline(dir);
        }
        let hashed = dir.flags.contains(InodeFlags::INDEX);
        for number in 0..self.volume.dir_blocks(dir)? {
            let (_, cached) = self.volume.dir_block_at(dir, number)?;
            // Index blocks look as if they had no entries, and the root as if it had two.
            let index =
                hashed && (number == 0 || crate::disk::htree::is_index_block(&cached.bytes));
            if !index && !edit::is_empty(&cached.bytes, self.dir_format()).map_err(bad(dir))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The index blocks that a walk has come by: the number of each in the directory, its bytes, and
/// the place in it.
fn steps(walk: &Walk<'_>) -> Option<Vec<(u32, Arc<CachedBlock>, usize)>> {
    let mut number = 0;
    let mut steps = Vec::with_capacity(walk.path.len());
    for (level, (block, place)) in walk.path.iter().enumerate() {
        steps.push((number, block.clone(), *place));
        number = walk.index(level)?.block(*place);
    }
    Some(steps)
}

/// Changes ranges of a block.
fn put_patch(handle: &mut Handle<'_>, block: Block, patch: &Patch) -> Result<()> {
    patch.pieces().try_for_each(|(offset, bytes)| handle.put(block, offset, bytes))
}

pub(super) fn bad(dir: &Inode) -> impl Fn(String) -> Error + use<> {
    let ino = dir.ino;
    move |why| Error::corrupt(ino, why)
}
