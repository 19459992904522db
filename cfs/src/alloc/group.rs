//! The newest state of one group, and how it gets into transactions.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::Space;
use super::runs::Runs;
use crate::disk::bitmap;
use crate::disk::group::{BLOCK_UNINIT, Group as Descriptor, INODE_UNINIT, RawGroup};
use crate::disk::superblock::Superblock;
use crate::id::Block;
use crate::journal::Handle;
use crate::journal::format::Tid;
use crate::{Error, Result};

/// A group: what is looked at without its lock is a hint, and right while the lock is held.
pub(super) struct Group {
    /// Blocks that can be claimed.
    pub(super) free: AtomicU32,
    /// The longest run of them; more before the bitmap was read.
    pub(super) longest: AtomicU32,
    pub(super) free_inodes: AtomicU32,
    pub(super) used_dirs: AtomicU32,
    pub(super) state: Mutex<State>,
}

/// What the lock of a group protects.
pub(super) struct State {
    pub(super) counts: Counts,
    pub(super) blocks: Slot<Blocks>,
    pub(super) inodes: Slot<Inodes>,
    /// The transaction that the descriptor was put into last, and whether it changed since.
    put: Option<Tid>,
    stale: bool,
    /// Whether the group is in the list of those that the running transaction changed.
    listed: bool,
}

/// What the descriptor says.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    pub(super) flags: u16,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) used_dirs: u32,
    pub(super) itable_unused: u32,
}

/// A bitmap that is read when it is needed.
pub(super) enum Slot<T> {
    Unread,
    Here(Box<T>),
    /// It contradicts the format and is never used.
    Corrupt,
}

/// The blocks of a group.
pub(super) struct Blocks {
    pub(super) bits: Bits,
    /// As `bits`, with claims that are not committed and blocks that are freed but may not be
    /// claimed yet.
    pub(super) runs: Runs,
    /// Bits in which the two differ, or that are being discarded.
    pub(super) differing: u32,
}

/// The inodes of a group.
pub(super) struct Inodes {
    pub(super) bits: Bits,
    /// No inode before this one is free.
    pub(super) first: u32,
    /// Inodes that are free, but in use on disk until a transaction has committed: only without a
    /// journal, where a crash can leave names that lead to them.
    pub(super) held: Vec<u32>,
}

/// A bitmap in its newest version.
pub(super) struct Bits {
    pub(super) bytes: Box<[u8]>,
    pub(super) sum: u32,
    /// The transaction that it was put into last, and the bits that changed since.
    put: Option<Tid>,
    stale: Option<Range<u32>>,
}

impl Group {
    /// From its descriptor; a corrupt one has no room.
    pub(super) fn new(descriptor: Option<&Descriptor>, superblock: &Superblock) -> Self {
        let corrupt = descriptor.is_none();
        let mut counts = Counts {
            flags: descriptor.map_or(0, |group| group.flags),
            free_blocks: descriptor.map_or(0, |group| group.free_clusters),
            free_inodes: descriptor.map_or(0, |group| group.free_inodes),
            used_dirs: descriptor.map_or(0, |group| group.used_dirs),
            itable_unused: descriptor.map_or(0, |group| group.itable_unused),
        };
        counts.free_blocks = counts.free_blocks.min(superblock.blocks_per_group);
        counts.free_inodes = counts.free_inodes.min(superblock.inodes_per_group);
        counts.itable_unused = counts.itable_unused.min(superblock.inodes_per_group);
        if counts.flags & INODE_UNINIT != 0 {
            counts.itable_unused = superblock.inodes_per_group;
        }
        Self {
            free: AtomicU32::new(counts.free_blocks),
            longest: AtomicU32::new(counts.free_blocks),
            free_inodes: AtomicU32::new(counts.free_inodes),
            used_dirs: AtomicU32::new(counts.used_dirs),
            state: Mutex::new(State {
                counts,
                blocks: if corrupt { Slot::Corrupt } else { Slot::Unread },
                inodes: if corrupt { Slot::Corrupt } else { Slot::Unread },
                put: None,
                stale: false,
                listed: false,
            }),
        }
    }

    /// Brings what is known without the lock up to date.
    pub(super) fn note(&self, free: u32, longest: u32) {
        self.free.store(free, Ordering::Relaxed);
        self.longest.store(longest, Ordering::Relaxed);
    }
}

impl Bits {
    pub(super) fn new(bytes: Box<[u8]>, sum: u32) -> Self {
        Self { bytes, sum, put: None, stale: None }
    }

    /// Sets or clears bits of a bitmap whose checksum covers `covered` bits.
    pub(super) fn change(&mut self, bits: Range<u32>, value: bool, covered: u32) {
        if value {
            bitmap::set(&mut self.bytes, bits.clone());
        } else {
            bitmap::clear(&mut self.bytes, bits.clone());
        }
        self.sum ^= bitmap::sum_change(covered, bits.clone());
        self.stale = Some(match self.stale.take() {
            Some(stale) => stale.start.min(bits.start)..stale.end.max(bits.end),
            None => bits,
        });
    }

    /// It is to be put though nothing in it changed.
    pub(super) fn touch(&mut self) {
        self.stale.get_or_insert(0..0);
    }

    /// Puts a changed bitmap into a transaction that does not have it yet.
    fn put_first(&mut self, home: Block, handle: &mut Handle<'_>) -> Result<()> {
        if self.put == Some(handle.tid()) {
            return Ok(());
        }
        // Nothing is read for it: the whole of it is known.
        handle.create(home, self.bytes.clone())?;
        (self.put, self.stale) = (Some(handle.tid()), None);
        Ok(())
    }

    /// Puts what changed since.
    fn put_last(&mut self, home: Block, handle: &mut Handle<'_>) -> Result<()> {
        let Some(stale) = self.stale.take() else { return Ok(()) };
        let bytes = (stale.start / 8) as usize..stale.end.div_ceil(8) as usize;
        handle.put(home, bytes.start, &self.bytes[bytes])
    }

    fn is_stale(&self) -> bool {
        self.stale.is_some()
    }
}

impl State {
    /// Marks the bitmaps as used from now on where they were not; to be called before their first
    /// change.
    pub(super) fn put_changes(
        &mut self,
        space: &Space,
        number: u32,
        handle: &mut Handle<'_>,
    ) -> Result<()> {
        let Some(Some(descriptor)) = space.volume.groups().get(number as usize) else {
            return Err(Error::corrupt(format_args!("group {number}"), "has no descriptor"));
        };
        if let Slot::Here(blocks) = &mut self.blocks
            && blocks.bits.is_stale()
        {
            self.counts.flags &= !BLOCK_UNINIT;
            blocks.bits.put_first(descriptor.block_bitmap, handle)?;
        }
        if let Slot::Here(inodes) = &mut self.inodes
            && inodes.bits.is_stale()
        {
            self.counts.flags &= !INODE_UNINIT;
            inodes.bits.put_first(descriptor.inode_bitmap, handle)?;
        }
        self.stale = true;
        if self.put != Some(handle.tid()) {
            self.put_descriptor(space, number, handle)?;
        }
        if !self.listed {
            self.listed = true;
            space.changed.lock().push(number);
        }
        Ok(())
    }

    /// Puts what the transaction, which is locked, changed since it changed the group first.
    pub(super) fn put_rest(
        &mut self,
        space: &Space,
        number: u32,
        handle: &mut Handle<'_>,
    ) -> Result<()> {
        self.listed = false;
        let Some(Some(descriptor)) = space.volume.groups().get(number as usize) else {
            return Err(Error::corrupt(format_args!("group {number}"), "has no descriptor"));
        };
        if let Slot::Here(blocks) = &mut self.blocks {
            blocks.bits.put_last(descriptor.block_bitmap, handle)?;
        }
        if let Slot::Here(inodes) = &mut self.inodes {
            inodes.bits.put_last(descriptor.inode_bitmap, handle)?;
        }
        if self.stale { self.put_descriptor(space, number, handle) } else { Ok(()) }
    }

    fn put_descriptor(
        &mut self,
        space: &Space,
        number: u32,
        handle: &mut Handle<'_>,
    ) -> Result<()> {
        let superblock = space.superblock();
        let (per_block, size) = (superblock.descs_per_block(), superblock.desc_size as usize);
        let block = superblock.desc_block(number / per_block);
        let offset = (number % per_block) as usize * size;
        let newest = handle.read(block)?;
        let mut bytes = newest.bytes[offset..offset + size].to_vec();
        // A version that is held would be copied by the put.
        drop(newest);
        let mut raw = RawGroup::load(&bytes);
        self.fill(&mut raw, superblock);
        raw.store(&mut bytes, number, superblock);
        handle.put(block, offset, &bytes)?;
        (self.put, self.stale) = (Some(handle.tid()), false);
        Ok(())
    }

    fn fill(&self, raw: &mut RawGroup, superblock: &Superblock) {
        let counts = &self.counts;
        raw.set_free_clusters(counts.free_blocks);
        raw.set_free_inodes(counts.free_inodes);
        raw.set_used_dirs(counts.used_dirs);
        if superblock.features.group_csum() {
            raw.flags = counts.flags.into();
            raw.set_itable_unused(counts.itable_unused);
        }
        if !superblock.features.metadata_csum() {
            return;
        }
        // The checksum of a bitmap that is not in memory has not changed.
        if let Slot::Here(blocks) = &self.blocks
            && counts.flags & BLOCK_UNINIT == 0
        {
            raw.set_block_bitmap_sum(blocks.bits.sum);
        }
        if let Slot::Here(inodes) = &self.inodes
            && counts.flags & INODE_UNINIT == 0
        {
            raw.set_inode_bitmap_sum(inodes.bits.sum);
        }
    }

    /// Lets bitmaps go if memory and their newest versions do not differ; returns how many.
    pub(super) fn unload(&mut self) -> u32 {
        let busy_blocks = match &self.blocks {
            Slot::Here(blocks) => blocks.differing > 0 || blocks.bits.is_stale(),
            Slot::Unread | Slot::Corrupt => false,
        };
        let busy_inodes = match &self.inodes {
            Slot::Here(inodes) => !inodes.held.is_empty() || inodes.bits.is_stale(),
            Slot::Unread | Slot::Corrupt => false,
        };
        if self.listed || busy_blocks || busy_inodes {
            return 0;
        }
        self.blocks.unload() + self.inodes.unload()
    }
}

impl<T> Slot<T> {
    fn unload(&mut self) -> u32 {
        let here = matches!(self, Self::Here(_));
        if here {
            *self = Self::Unread;
        }
        here.into()
    }
}
