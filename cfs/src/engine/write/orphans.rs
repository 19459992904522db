//! Inodes that a crash must not leave as they are: without names, or being cut.
//!
//! They are named by the orphan file where the volume has one and it has room, else by a list
//! through the superblock and the inodes' `dtime`, newest first. Both are changed in the handle
//! that changes the inode.

use std::collections::{HashMap, HashSet};

use zerocopy::{FromBytes, IntoBytes};

use super::inode::difference;
use super::{Live, Writer};
use crate::disk::checksum::crc32c;
use crate::disk::inode::InodeFlags;
use crate::disk::superblock::{OFFSET, RawSuperblock, SIZE};
use crate::engine::{Mapping, Volume};
use crate::id::{Block, Ino};
use crate::journal::Handle;
use crate::orphan::{ORPHAN_FILE_MAGIC, ORPHAN_FILE_TAIL};
use crate::{Error, Result};

/// How an inode is named as an orphan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Orphan {
    /// Not at all.
    No,
    /// By the list.
    Listed,
    /// By a word of the orphan file.
    Slot(u32),
}

/// All orphans: lock 5 of docs/writing.md. Who changes the superblock in a handle locks it too.
pub(crate) struct Orphans {
    file: Option<OrphanFile>,
    /// The newest of the list, 0 for none.
    head: u32,
    /// The neighbours of each inode of the list.
    links: HashMap<u32, Links>,
}

#[derive(Clone, Copy)]
struct Links {
    newer: u32,
    older: u32,
}

struct OrphanFile {
    blocks: Box<[Block]>,
    /// Words for names in one block.
    per_block: u32,
    /// Where the checksums of its blocks begin; `None` on volumes without.
    seed: Option<u32>,
    /// Words that were used and are free again, and the first that never was.
    free: Vec<u32>,
    next: u32,
}

impl Orphans {
    /// Finds the orphan file, which must be empty, and the list, which may have inodes without
    /// names that a recovery has kept.
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let file = match volume.superblock().orphan_file {
            Some(ino) => Some(OrphanFile::open(volume, ino)?),
            None => None,
        };
        let mut orphans = Self { file, head: 0, links: HashMap::new() };
        kept(volume)?.into_iter().rev().for_each(|ino| orphans.push(ino.0));
        Ok(orphans)
    }

    /// The inodes of the list.
    pub(super) fn listed(&self) -> Vec<Ino> {
        self.links.keys().map(|&ino| Ino(ino)).collect()
    }

    /// The orphan that one of the list names as the next.
    pub(super) fn after(&self, ino: Ino) -> u32 {
        self.links.get(&ino.0).map_or(0, |links| links.older)
    }

    fn push(&mut self, ino: u32) {
        self.links.insert(ino, Links { newer: 0, older: self.head });
        if let Some(before) = self.links.get_mut(&self.head) {
            before.newer = ino;
        }
        self.head = ino;
    }

    /// Takes one out of the list; returns its neighbours.
    fn take(&mut self, ino: u32) -> Option<Links> {
        let links = self.links.remove(&ino)?;
        match self.links.get_mut(&links.newer) {
            Some(newer) => newer.older = links.older,
            None => self.head = links.older,
        }
        if let Some(older) = self.links.get_mut(&links.older) {
            older.newer = links.newer;
        }
        Some(links)
    }
}

/// The list of orphans of a volume that is not written yet, from the newest on.
fn kept(volume: &Volume) -> Result<Vec<Ino>> {
    let superblock = volume.superblock();
    let (mut kept, mut seen) = (Vec::new(), HashSet::new());
    let mut next = superblock.last_orphan;
    while let Some(ino) = next {
        let inode = volume.any_inode(ino)?;
        let special = ino.0 < superblock.first_ino || inode.flags.contains(InodeFlags::EA_INODE);
        // What is to be cut, or nobody could have open, is recovery's to do.
        if inode.links > 0 || special || !seen.insert(ino) {
            return Err(Error::NeedsRecovery);
        }
        kept.push(ino);
        next = Some(Ino(inode.dtime)).filter(|next| next.0 != 0);
    }
    Ok(kept)
}

impl OrphanFile {
    fn open(volume: &Volume, ino: Ino) -> Result<Self> {
        let superblock = volume.superblock();
        let inode = volume.any_inode(ino)?;
        let sums = superblock.features.metadata_csum();
        let mut file = Self {
            blocks: Box::default(),
            per_block: (superblock.block_size as usize - ORPHAN_FILE_TAIL) as u32 / 4,
            seed: sums.then_some(inode.checksum_seed),
            free: Vec::new(),
            next: 0,
        };
        let count = inode.size >> superblock.block_bits;
        let mut blocks = Vec::new();
        for run in volume.runs(&inode, 0, count.min(superblock.blocks_count)) {
            let run = run?;
            let Mapping::Data(start) = run.mapping else { continue };
            for block in (start.0..start.0 + run.len).map(Block) {
                file.check(volume, ino, block)?;
                blocks.push(block);
            }
        }
        file.blocks = blocks.into();
        Ok(file)
    }

    fn check(&self, volume: &Volume, ino: Ino, block: Block) -> Result<()> {
        let cached = volume.block(block)?;
        let (names, tail) = cached.bytes.split_at(cached.bytes.len() - ORPHAN_FILE_TAIL);
        let word = |at: usize| tail[at..].first_chunk().map_or(0, |w| u32::from_le_bytes(*w));
        let summed = |seed: u32| crc32c(crc32c(seed, &block.0.to_le_bytes()), names);
        if word(0) != ORPHAN_FILE_MAGIC || self.seed.is_some_and(|seed| summed(seed) != word(4)) {
            return Err(Error::corrupt(ino, format!("orphans at {block}")));
        }
        if names.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(Error::NeedsRecovery) }
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let slot = self.next;
            let fits = (slot / self.per_block) < self.blocks.len() as u32;
            self.next += u32::from(fits);
            fits.then_some(slot)
        })
    }

    fn put(&self, handle: &mut Handle<'_>, slot: u32, name: u32) -> Result<()> {
        let block = self.blocks[(slot / self.per_block) as usize];
        let at = (slot % self.per_block) as usize * 4;
        let name = name.to_le_bytes();
        let sum = match self.seed {
            Some(seed) => {
                let cached = handle.read(block)?;
                let names = &cached.bytes[..cached.bytes.len() - ORPHAN_FILE_TAIL];
                let parts = [&block.0.to_le_bytes(), &names[..at], &name, &names[at + 4..]];
                let sum = parts.iter().fold(seed, |sum, part| crc32c(sum, part));
                Some((cached.bytes.len() - 4, sum))
            }
            None => None,
        };
        handle.put(block, at, &name)?;
        match sum {
            Some((at, sum)) => handle.put(block, at, &sum.to_le_bytes()),
            None => Ok(()),
        }
    }
}

impl Writer {
    /// Blocks that [`Self::add_orphan`] or [`Self::remove_orphan`] changes beside the inode's.
    pub const ORPHAN_CREDITS: u32 = 2;

    /// Names an inode as an orphan: one that has lost its last name, or one with names that may
    /// have blocks beyond its size for a while. The caller stores it afterwards, in this handle.
    ///
    /// # Errors
    /// When the storage fails; the journal has been given up then.
    pub fn add_orphan(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        if live.orphan != Orphan::No {
            return Ok(());
        }
        let ino = live.inode.ino;
        let mut orphans = self.orphans.lock();
        let slot = orphans.file.as_mut().and_then(OrphanFile::take);
        let put = match (slot, &orphans.file) {
            (Some(slot), Some(file)) => {
                live.orphan = Orphan::Slot(slot);
                file.put(handle, slot, ino.0)
            }
            _ => {
                orphans.push(ino.0);
                live.orphan = Orphan::Listed;
                self.edit_superblock(handle, |raw| raw.last_orphan = ino.0.into())
            }
        };
        put.map_err(|error| handle.fail(error))
    }

    /// An inode is an orphan no longer. The caller stores it afterwards, in this handle.
    ///
    /// # Errors
    /// As [`Self::add_orphan`].
    pub fn remove_orphan(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        let ino = live.inode.ino;
        let mut orphans = self.orphans.lock();
        let put = match live.orphan {
            Orphan::No => return Ok(()),
            Orphan::Slot(slot) => match &mut orphans.file {
                Some(file) => {
                    let put = file.put(handle, slot, 0);
                    // Whoever takes it next is in this transaction or in a later one.
                    file.free.push(slot);
                    put
                }
                None => Ok(()),
            },
            Orphan::Listed => {
                let links = orphans.take(ino.0).unwrap_or(Links { newer: 0, older: 0 });
                let put = if links.newer == 0 {
                    self.edit_superblock(handle, |raw| raw.last_orphan = links.older.into())
                } else {
                    self.link_orphan(handle, Ino(links.newer), links.older)
                };
                put.and_then(|()| live.reload(handle))
            }
        };
        put.map_err(|error| handle.fail(error))?;
        live.inode.dtime = 0;
        live.orphan = Orphan::No;
        Ok(())
    }

    /// Changes the superblock; the orphans are locked.
    pub(super) fn edit_superblock(
        &self,
        handle: &mut Handle<'_>,
        change: impl FnOnce(&mut RawSuperblock),
    ) -> Result<()> {
        let bits = self.volume.superblock().block_bits;
        let (block, within) = (Block(OFFSET >> bits), (OFFSET & ((1 << bits) - 1)) as usize);
        let old: [u8; SIZE] = {
            let cached = handle.read(block)?;
            let bytes = cached.bytes.get(within..).and_then(<[u8]>::first_chunk);
            *bytes.ok_or_else(|| Error::corrupt("superblock", "does not fit its block"))?
        };
        let mut raw = RawSuperblock::read_from_bytes(&old)
            .map_err(|_| Error::corrupt("superblock", "is not of 1024 bytes"))?;
        change(&mut raw);
        raw.update_checksum();
        match difference(&old, raw.as_bytes()) {
            Some(changed) => handle.put(block, within + changed.start, &raw.as_bytes()[changed]),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_its_order_when_one_leaves_it() {
        let mut orphans = Orphans { file: None, head: 0, links: HashMap::new() };
        for ino in [11, 12, 13, 14] {
            orphans.push(ino);
        }
        let links = orphans.take(12).unwrap();
        assert_eq!((links.newer, links.older), (13, 11));
        let links = orphans.take(14).unwrap();
        assert_eq!((links.newer, links.older, orphans.head), (0, 13, 13));
        assert_eq!(orphans.after(Ino(13)), 11);
        orphans.take(11).unwrap();
        assert_eq!(orphans.after(Ino(13)), 0);
        orphans.take(13).unwrap();
        assert_eq!((orphans.head, orphans.links.len()), (0, 0));
    }

    #[test]
    fn a_file_gives_each_word_once_until_it_is_full() {
        let mut file = OrphanFile {
            blocks: [Block(5), Block(9)].into(),
            per_block: 3,
            seed: None,
            free: Vec::new(),
            next: 0,
        };
        let slots: Vec<_> = std::iter::from_fn(|| file.take()).collect();
        assert_eq!(slots, [0, 1, 2, 3, 4, 5]);
        file.free.push(4);
        assert_eq!((file.take(), file.take()), (Some(4), None));
    }
}
