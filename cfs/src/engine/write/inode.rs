//! An inode in use, and how it is put into its table.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Writer;
use super::orphans::Orphan;
use crate::disk::inode::{self, Inode, InodeFlags, Kind};
use crate::disk::superblock::Superblock;
use crate::id::{Block, Ino};
use crate::journal::Handle;
use crate::journal::format::Tid;
use crate::limits::MIN_INODE_SIZE;
use crate::{Error, Result};

/// An inode's newest state. All of it that lies on disk is in a transaction as well: whoever
/// changes `inode` or `disk_size` stores it in the same handle.
pub struct Live {
    /// The inode; its size is what readers see.
    pub inode: Inode,
    /// The size that the inode has on disk: up to which its blocks have been written.
    pub disk_size: u64,
    /// Blocks that are reserved for contents that have none yet.
    pub reserved: u64,
    /// The last transaction that changed it.
    pub tid: Tid,
    /// The last transaction without which contents could not be read: that changed map or size.
    pub data_tid: Tid,
    /// How a crash would find it, had it to go or to be cut.
    pub(super) orphan: Orphan,
    /// Whether its number has been given back.
    pub gone: bool,
    /// It never had a name, and may get one.
    pub(super) linkable: bool,
    /// Where it lies.
    place: Place,
    /// Its bytes as they were stored last, and room for as many.
    stored: Box<[u8]>,
    next: Box<[u8]>,
}

/// A block of an inode table, and the offset in it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) block: Block,
    pub(super) offset: usize,
}

/// Where the fields lie that contents are found by: size, count of blocks, map, upper half of size.
const DATA_FIELDS: [Range<usize>; 4] = [0x04..0x08, 0x1c..0x20, 0x28..0x64, 0x6c..0x70];
/// Where an orphan of the list names the next one.
const DTIME: usize = 0x14;

impl Live {
    /// From the bytes of an inode table, of an inode that has names. `tid` is a transaction that is
    /// durable.
    pub(super) fn load(writer: &Writer, ino: Ino, tid: Tid) -> Result<Self> {
        match Self::parse(writer, ino, tid)? {
            live if live.inode.links == 0 => Err(Error::Stale(ino.to_string())),
            live => Ok(live),
        }
    }

    /// The same of an orphan in the list.
    pub(super) fn load_listed(writer: &Writer, ino: Ino, tid: Tid) -> Result<Self> {
        Ok(Self { orphan: Orphan::Listed, ..Self::parse(writer, ino, tid)? })
    }

    fn parse(writer: &Writer, ino: Ino, tid: Tid) -> Result<Self> {
        let superblock = writer.volume.superblock();
        let place = Place::of(writer, ino)?;
        let block = writer.volume.block(place.block)?;
        let size = superblock.inode_size as usize;
        let stored: Box<[u8]> = block.bytes[place.offset..place.offset + size].into();
        let mut inode = Inode::parse(&stored, ino, superblock)?;
        let base = MIN_INODE_SIZE as usize;
        if size > base && stored[base..base + 2] == [0, 0] {
            // Fields that were never used are from now on, as the kernel does it.
            inode.extra = stored[base + superblock.new_extra_isize as usize..].into();
        }
        let next = stored.clone();
        let (disk_size, orphan) = (inode.size, Orphan::No);
        Ok(Self {
            inode,
            disk_size,
            reserved: 0,
            tid,
            data_tid: tid,
            orphan,
            gone: false,
            linkable: false,
            place,
            stored,
            next,
        })
    }

    /// An inode whose number has just been taken.
    pub(super) fn fresh(writer: &Writer, inode: Inode, tid: Tid) -> Result<Self> {
        let place = Place::of(writer, inode.ino)?;
        let size = writer.volume.superblock().inode_size as usize;
        Ok(Self {
            disk_size: inode.size,
            inode,
            reserved: 0,
            tid,
            data_tid: tid,
            orphan: Orphan::No,
            gone: false,
            linkable: false,
            place,
            stored: vec![0; size].into(),
            next: vec![0; size].into(),
        })
    }

    /// Whether the table's bytes say all that is known of it, and for good.
    pub(super) fn is_idle(&self, committed: Tid) -> bool {
        self.reserved == 0
            && self.orphan == Orphan::No
            && self.disk_size == self.inode.size
            && committed.at_least(self.tid)
    }

    /// Takes the bytes that are stored as they are now, the work of neighbours in the list of
    /// orphans included.
    pub(super) fn reload(&mut self, handle: &Handle<'_>) -> Result<()> {
        let block = handle.read(self.place.block)?;
        let place = self.place.offset..self.place.offset + self.stored.len();
        self.stored.copy_from_slice(&block.bytes[place]);
        Ok(())
    }

    /// Adds blocks to those that the inode is charged for, of data or of its map.
    pub fn charge(&mut self, blocks: u64, superblock: &Superblock) {
        self.inode.blocks += blocks << (superblock.block_bits - 9);
    }

    /// Takes blocks off those that the inode is charged for.
    pub fn discharge(&mut self, blocks: u64, superblock: &Superblock) {
        let units = blocks << (superblock.block_bits - 9);
        self.inode.blocks = self.inode.blocks.saturating_sub(units);
    }
}

impl Place {
    fn of(writer: &Writer, ino: Ino) -> Result<Self> {
        let superblock = writer.volume.superblock();
        let offset = writer.volume.inode_offset(ino)?;
        let within = (offset % u64::from(superblock.block_size)) as usize;
        Ok(Self { block: Block(offset >> superblock.block_bits), offset: within })
    }
}

impl Writer {
    /// Blocks that [`Self::store`] may change: the inode's, and the superblock once.
    pub const STORE_CREDITS: u32 = 2;

    /// Puts what has changed of an inode into its table.
    ///
    /// # Errors
    /// [`Error::FileTooBig`] when it has more blocks than can be counted; nothing was put then.
    /// After other errors the journal has been given up.
    pub fn store(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        let superblock = self.volume.superblock();
        if live.orphan == Orphan::Listed {
            return self.store_listed(handle, live);
        }
        bump_version(live);
        live.next.copy_from_slice(&live.stored);
        live.inode.encode(&mut live.next, live.disk_size, superblock)?;
        let Some(changed) = difference(&live.stored, &live.next) else { return Ok(()) };
        if live.disk_size > i32::MAX as u64 && live.inode.kind == Kind::Regular {
            self.note_large_file(handle)?;
        }
        let bytes = &live.next[changed.clone()];
        handle
            .put(live.place.block, live.place.offset + changed.start, bytes)
            .map_err(|error| handle.fail(error))?;
        self.stored(handle.tid(), live);
        Ok(())
    }

    /// Puts a new inode into its table.
    pub(super) fn store_new(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        let superblock = self.volume.superblock();
        live.inode.encode(&mut live.next, live.disk_size, superblock)?;
        handle
            .put(live.place.block, live.place.offset, &live.next)
            .map_err(|error| handle.fail(error))?;
        self.stored(handle.tid(), live);
        Ok(())
    }

    fn stored(&self, tid: Tid, live: &mut Live) {
        let touched = |field: &Range<usize>| live.stored[field.clone()] != live.next[field.clone()];
        if DATA_FIELDS.iter().any(touched) {
            live.data_tid = tid;
        }
        live.tid = tid;
        std::mem::swap(&mut live.stored, &mut live.next);
    }

    /// Stores an orphan of the list. Its neighbour may change where the next one is, at any time
    /// but while the orphans are locked.
    fn store_listed(&self, handle: &mut Handle<'_>, live: &mut Live) -> Result<()> {
        let orphans = self.orphans.lock();
        live.inode.dtime = orphans.after(live.inode.ino);
        bump_version(live);
        let superblock = self.volume.superblock();
        let place = live.place;
        live.reload(handle).map_err(|error| handle.fail(error))?;
        live.next.copy_from_slice(&live.stored);
        live.inode.encode(&mut live.next, live.disk_size, superblock)?;
        if let Some(changed) = difference(&live.stored, &live.next) {
            let bytes = &live.next[changed.clone()];
            handle
                .put(place.block, place.offset + changed.start, bytes)
                .map_err(|error| handle.fail(error))?;
            self.stored(handle.tid(), live);
        }
        Ok(())
    }

    /// Has an orphan of the list, whoever uses it, name another next one; the orphans are locked.
    pub(super) fn link_orphan(&self, handle: &mut Handle<'_>, ino: Ino, next: u32) -> Result<()> {
        let superblock = self.volume.superblock();
        let place = Place::of(self, ino)?;
        let len = superblock.inode_size as usize;
        let mut bytes = handle.read(place.block)?.bytes[place.offset..place.offset + len].to_vec();
        bytes[DTIME..DTIME + 4].copy_from_slice(&next.to_le_bytes());
        let base = MIN_INODE_SIZE as usize;
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |w| u32::from_le_bytes(*w));
        let seed = inode::checksum_seed(ino, word(GENERATION), superblock);
        let extra = if len > base { word(base) as usize & 0xffff } else { 0 };
        if superblock.features.metadata_csum() {
            inode::encode::seal(&mut bytes, seed, extra);
        }
        handle.put(place.block, place.offset, &bytes)
    }

    /// The generation of the inode that a number was used for last, as far as its table says.
    pub(super) fn stored_generation(&self, ino: Ino) -> Option<u32> {
        let place = Place::of(self, ino).ok()?;
        let block = self.volume.block(place.block).ok()?;
        let word = block.bytes.get(place.offset + GENERATION..)?.first_chunk()?;
        Some(u32::from_le_bytes(*word))
    }

    /// The volume says from now on that it has files over 2 GiB.
    fn note_large_file(&self, handle: &mut Handle<'_>) -> Result<()> {
        if self.large_file.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _orphans = self.orphans.lock();
        if !self.large_file.swap(true, Ordering::Relaxed) {
            self.edit_superblock(handle, |raw| {
                let bit = crate::disk::features::RoCompat::LARGE_FILE.bits();
                raw.feature_ro_compat = (raw.feature_ro_compat.get() | bit).into();
            })
            .map_err(|error| handle.fail(error))?;
        }
        Ok(())
    }
}

const GENERATION: usize = 0x64;

/// An inode that changed since it was stored last is another version.
fn bump_version(live: &mut Live) {
    // In the inode of an attribute's value the field counts references.
    if live.inode.flags.contains(InodeFlags::EA_INODE) {
        return;
    }
    let stored = |at: usize| live.stored[at..].first_chunk().map_or(0, |w| u32::from_le_bytes(*w));
    let wide = live.stored.len() >= 0x88 + live.inode.extra.len();
    let (low, high) = live.inode.ctime.encode(wide);
    if stored(0x0c) != low || wide && stored(0x84) != high {
        live.inode.version = live.inode.version.wrapping_add(1);
    }
}

/// The bytes from the first that differs to the last.
pub(super) fn difference(old: &[u8], new: &[u8]) -> Option<Range<usize>> {
    const STEP: usize = 16;
    let differ = |at: &usize| old[*at..*at + STEP] != new[*at..*at + STEP];
    let first = (0..old.len()).step_by(STEP).find(differ)?;
    let last = (first..old.len()).step_by(STEP).rfind(differ)?;
    Some(first..last + STEP)
}
