//! Orphans: inodes that a crash left between two transactions of one removal or truncation.
//!
//! They are named by a list through the superblock and their `dtime` fields, or by the orphan file.
//! An inode without names is removed with all it holds; one with names is cut at its size. This is
//! what the kernel does at the first writable mount after a crash, and e2fsck after it has replayed
//! a journal; without it, neither calls the volume clean.
//!
//! All edits go to a layer in memory, which the caller then brings to the volume in one
//! transaction.

mod attributes;
mod map;
mod quota;
mod space;

use std::collections::BTreeSet;
use std::sync::Arc;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::disk::checksum::crc32c;
use crate::disk::features::RoCompat;
use crate::disk::inode::{self, Inode, InodeFlags, Kind, RawInode};
use crate::disk::superblock::{OFFSET, RawSuperblock, SIZE, STATE_ERRORS};
use crate::engine::store::BlockSource;
use crate::engine::{Mapping, Options, Volume};
use crate::id::{Block, Ino};
use crate::{Error, Result};
use quota::{Charges, Usage};
use space::Space;

/// What was done about the orphans of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Inodes removed.
    pub removed: u32,
    /// Inodes cut at their size.
    pub cut: u32,
    /// Inodes without names that were kept as orphans, in the list, for who may have them open.
    pub kept: u32,
    /// Why they were left as they were, if they were; the volume can be read nevertheless.
    pub left: Option<String>,
}

/// Removes and cuts the orphans of the volume in `layer`; with `keep` those stay that users may
/// have open. After an error the layer is of no use. `now` is in seconds since 1970.
pub(crate) fn clear(layer: &Arc<dyn BlockSource>, now: u32, keep: bool) -> Result<Orphans> {
    let options = Options { ignore_journal: true, ..Options::default() };
    let volume = Volume::open(layer.clone(), &options)?;
    let space = Space::new(&volume);
    let (charges, kept) = (Charges::default(), Vec::new());
    let mut cleaner = Cleaner { space, volume: &volume, charges, now, keep, kept };
    let mut done = Orphans::default();
    let superblock = volume.superblock();
    if superblock.last_orphan.is_none() && superblock.orphan_file.is_none() {
        return Ok(done);
    }
    let obstacles = superblock.features.recovery_obstacles();
    if !obstacles.is_empty() {
        let why = format!("the volume can only be read ({})", obstacles.join(", "));
        return Ok(Orphans { left: Some(why), ..done });
    }
    if superblock.state & STATE_ERRORS != 0 {
        let why = "the volume is marked as having errors: run e2fsck";
        return Ok(Orphans { left: Some(why.into()), ..done });
    }
    let mut seen = BTreeSet::new();
    let mut next = superblock.last_orphan;
    while let Some(ino) = next {
        if !seen.insert(ino) {
            return Err(Error::corrupt(ino, "is twice in the list of orphans"));
        }
        next = cleaner.orphan(ino, &mut done)?;
    }
    if let Some(file) = superblock.orphan_file {
        cleaner.orphan_file(file, &mut seen, &mut done)?;
    }
    let first = cleaner.link_kept()?;
    cleaner.space.finish()?;
    cleaner.charges.take_back(&volume)?;
    forget(&**layer, first)?;
    Ok(done)
}

/// The superblock names no orphans any more but those of a list.
fn forget(layer: &dyn BlockSource, first: u32) -> Result<()> {
    let mut bytes = [0; SIZE];
    layer.read_at(OFFSET, &mut bytes)?;
    let Ok(raw) = RawSuperblock::mut_from_bytes(&mut bytes) else {
        return Err(Error::corrupt("superblock", "is not of 1024 bytes"));
    };
    raw.last_orphan = first.into();
    let present = RoCompat::ORPHAN_PRESENT.bits();
    raw.feature_ro_compat = (raw.feature_ro_compat.get() & !present).into();
    raw.update_checksum();
    layer.write_at(OFFSET, raw.as_bytes())
}

/// An inode's bytes and their place in the volume.
struct Stored {
    offset: u64,
    bytes: Vec<u8>,
}

impl Stored {
    /// Changes fields; those that a small inode does not have stay out of it.
    fn edit(&mut self, change: impl FnOnce(&mut RawInode)) {
        let mut raw = RawInode::new_zeroed();
        let known = self.bytes.len().min(size_of::<RawInode>());
        raw.as_mut_bytes()[..known].copy_from_slice(&self.bytes[..known]);
        change(&mut raw);
        self.bytes[..known].copy_from_slice(&raw.as_bytes()[..known]);
    }

    /// Bytes of the fields after the first 128.
    fn extra_size(&self) -> usize {
        let bytes = self.bytes.get(BASE_SIZE..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |size| usize::from(u16::from_le_bytes(*size)))
    }
}

/// Bytes of an inode that has no further fields.
const BASE_SIZE: usize = crate::limits::MIN_INODE_SIZE as usize;

struct Cleaner<'a> {
    volume: &'a Volume,
    space: Space<'a>,
    charges: Charges,
    now: u32,
    /// Whether inodes stay that users may have open, and those that do.
    keep: bool,
    kept: Vec<Ino>,
}

/// Magic number at the end of each block of the orphan file, before the checksum.
pub(crate) const ORPHAN_FILE_MAGIC: u32 = 0x0b10_ca04;
/// Bytes of magic number and checksum.
pub(crate) const ORPHAN_FILE_TAIL: usize = 8;

impl Cleaner<'_> {
    /// Returns the next orphan of the list.
    fn orphan(&mut self, ino: Ino, done: &mut Orphans) -> Result<Option<Ino>> {
        if ino.0 < self.volume.superblock().first_ino {
            return Err(Error::corrupt(ino, "is reserved, but in the list of orphans"));
        }
        let (inode, mut stored) = self.load(ino)?;
        let next = Some(Ino(inode.dtime)).filter(|next| next.0 != 0);
        if inode.links == 0 && self.keep && !inode.flags.contains(InodeFlags::EA_INODE) {
            self.kept.push(ino);
            done.kept += 1;
            return Ok(next);
        }
        if inode.links == 0 {
            let values = self.release_attributes(&inode)?;
            self.remove(&inode, &mut stored)?;
            let usage = Usage { bytes: inode.blocks.saturating_mul(512), inodes: 1 + values };
            self.charges.add(&inode, usage);
            done.removed += 1;
        } else {
            self.cut(&inode, &mut stored)?;
            done.cut += 1;
        }
        self.store(&inode, stored)?;
        Ok(next)
    }

    /// Makes one list of those that stay, wherever they were named. Returns the first, or zero.
    fn link_kept(&mut self) -> Result<u32> {
        let mut next = 0;
        for ino in std::mem::take(&mut self.kept).into_iter().rev() {
            let (inode, mut stored) = self.load(ino)?;
            stored.edit(|raw| raw.dtime = next.into());
            self.store(&inode, stored)?;
            next = ino.0;
        }
        Ok(next)
    }

    /// Gives back an inode and what its map holds.
    fn remove(&mut self, inode: &Inode, stored: &mut Stored) -> Result<()> {
        self.free_map(inode, 0, stored)?;
        self.space.free_inode(inode.ino, inode.kind == Kind::Directory)?;
        let now = self.now;
        stored.edit(|raw| {
            raw.links_count = U16::ZERO;
            raw.dtime = now.into();
            (raw.size_lo, raw.size_hi) = (U32::ZERO, U32::ZERO);
            (raw.blocks_lo, raw.blocks_hi) = (U32::ZERO, U16::ZERO);
            (raw.file_acl_lo, raw.file_acl_hi) = (U32::ZERO, U16::ZERO);
        });
        Ok(())
    }

    fn cut(&mut self, inode: &Inode, stored: &mut Stored) -> Result<()> {
        let superblock = self.volume.superblock();
        let bits = superblock.block_bits;
        let freed = if inode.kind != Kind::Regular || inode.flags.contains(InodeFlags::VERITY) {
            0
        } else if inode.flags.contains(InodeFlags::INLINE_DATA) {
            self.cut_inline(inode, stored)?;
            0
        } else {
            self.zero_tail(inode)?;
            let end = inode.size.div_ceil(u64::from(superblock.block_size));
            self.free_map(inode, end, stored)?
        };
        let bytes = freed << bits;
        let left = inode.blocks.saturating_sub(bytes / 512);
        let huge = inode.flags.contains(InodeFlags::HUGE_FILE);
        let left = if huge { left >> (bits - 9) } else { left };
        stored.edit(|raw| {
            raw.dtime = U32::ZERO;
            raw.blocks_lo = (left as u32).into();
            raw.blocks_hi = ((left >> 32) as u16).into();
        });
        self.charges.add(inode, Usage { bytes, inodes: 0 });
        Ok(())
    }

    /// Frees what the map holds from block `end` on, in the inode's bytes too; returns how many
    /// blocks, those of the map itself included.
    fn free_map(&mut self, inode: &Inode, end: u64, stored: &mut Stored) -> Result<u64> {
        let mapped = match inode.kind {
            Kind::Regular | Kind::Directory => true,
            Kind::Symlink => {
                inode.flags.contains(InodeFlags::EXTENTS) || inode.size >= inode.block.len() as u64
            }
            _ => false,
        };
        if !mapped || inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Ok(0);
        }
        let before = self.space.freed_blocks();
        let mut root = inode.block;
        if inode.flags.contains(InodeFlags::EXTENTS) {
            map::cut_extents(self.volume, &mut self.space, inode, &mut root, end)?;
        } else {
            map::cut_pointers(self.volume, &mut self.space, inode, &mut root, end)?;
        }
        stored.edit(|raw| raw.block = root);
        Ok(self.space.freed_blocks() - before)
    }

    /// What lies in the last block beyond the size reads as zeros should the file grow again.
    fn zero_tail(&self, inode: &Inode) -> Result<()> {
        let superblock = self.volume.superblock();
        let block_size = u64::from(superblock.block_size);
        let within = inode.size % block_size;
        if within == 0 || inode.flags.contains(InodeFlags::ENCRYPTED) {
            return Ok(());
        }
        if let Mapping::Data(block) = self.volume.map(inode, inode.size / block_size, 1)?.mapping {
            let zeros = vec![0; (block_size - within) as usize];
            let offset = (block.0 << superblock.block_bits) + within;
            self.volume.source().write_at(offset, &zeros)?;
        }
        Ok(())
    }

    /// Clears the orphans that the orphan file names, and the file.
    fn orphan_file(
        &mut self,
        ino: Ino,
        seen: &mut BTreeSet<Ino>,
        done: &mut Orphans,
    ) -> Result<()> {
        let superblock = self.volume.superblock();
        let block_size = superblock.block_size as usize;
        let file = self.volume.any_inode(ino)?;
        let count = file.size >> superblock.block_bits;
        for run in self.volume.runs(&file, 0, count.min(superblock.blocks_count)) {
            let run = run?;
            let Mapping::Data(start) = run.mapping else { continue };
            for block in start.0..start.0 + run.len {
                let offset = block << superblock.block_bits;
                let mut bytes = vec![0; block_size];
                self.volume.source().read_at(offset, &mut bytes)?;
                let (names, tail) = bytes.split_at_mut(block_size - ORPHAN_FILE_TAIL);
                let magic = tail.first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
                let sum = |names: &[u8]| {
                    crc32c(crc32c(file.checksum_seed, &block.to_le_bytes()), names).to_le_bytes()
                };
                let checked = superblock.features.metadata_csum();
                if magic != ORPHAN_FILE_MAGIC || checked && tail[4..] != sum(names) {
                    return Err(Error::corrupt(ino, format!("orphans at {}", Block(block))));
                }
                if names.iter().all(|byte| *byte == 0) {
                    continue;
                }
                for name in names.chunks_exact(4) {
                    let orphan = Ino(name.first_chunk().map_or(0, |n| u32::from_le_bytes(*n)));
                    if orphan.0 != 0 && seen.insert(orphan) {
                        self.orphan(orphan, done)?;
                    }
                }
                names.fill(0);
                if checked {
                    tail[4..].copy_from_slice(&sum(names));
                }
                self.volume.source().write_at(offset, &bytes)?;
            }
        }
        Ok(())
    }

    /// An inode as it is by now: the volume's own copy may be older than our edits.
    fn load(&self, ino: Ino) -> Result<(Inode, Stored)> {
        let superblock = self.volume.superblock();
        let offset = self.volume.inode_offset(ino)?;
        let mut bytes = vec![0; superblock.inode_size as usize];
        self.volume.source().read_at(offset, &mut bytes)?;
        let inode = Inode::parse(&bytes, ino, superblock)?;
        Ok((inode, Stored { offset, bytes }))
    }

    fn store(&self, inode: &Inode, mut stored: Stored) -> Result<()> {
        let superblock = self.volume.superblock();
        if superblock.features.metadata_csum() {
            let extra = stored.extra_size();
            inode::encode::seal(&mut stored.bytes, inode.checksum_seed, extra);
        }
        self.volume.source().write_at(stored.offset, &stored.bytes)
    }
}
