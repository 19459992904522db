//! Where the blocks of the journal lie on the volume.

use std::sync::Arc;

use super::format::MAX_LOG_BLOCKS;
use super::replay::ReadLog;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::superblock::RawSuperblock;
use crate::disk::time::Timestamp;
use crate::engine::store::BlockSource;
use crate::engine::{Mapping, Volume};
use crate::id::Ino;
use crate::{Error, Result};

/// Blocks of the journal that lie together on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRun {
    /// The first one's place in the journal.
    pub logical: u32,
    /// How many.
    pub len: u64,
    /// The first one's place on the volume.
    pub start: u64,
}

/// The whole journal's place, without holes.
#[derive(Clone, Debug)]
pub struct LogPlace {
    runs: Vec<LogRun>,
    len: u32,
}

/// Kind of the copy of the journal's map in the superblock: the inode's 60 bytes and its size.
const BACKUP_BLOCKS: u8 = 1;

impl LogPlace {
    /// Finds the journal by its inode or, where that is unusable, by the copy of its map in the
    /// superblock.
    pub fn find(volume: &Volume, raw: &RawSuperblock) -> Result<Self> {
        let superblock = volume.superblock();
        let Some(ino) = superblock.journal_inode else {
            if superblock.journal_device != 0 || superblock.journal_uuid != [0; 16] {
                return Err(external(superblock.journal_device, &superblock.journal_uuid));
            }
            let why = "needs recovery, but there is no journal";
            return Err(Error::corrupt("superblock", why));
        };
        let found = volume.any_inode(ino).and_then(|inode| Self::of(volume, &inode));
        match found {
            Err(error @ (Error::Corrupt { .. } | Error::Stale(_))) => {
                // The inode's error is the one to tell when the copy is no better.
                backup(volume, raw, ino).and_then(|inode| Self::of(volume, &inode).ok()).ok_or_else(
                    || match error {
                        Error::Stale(_) => {
                            Error::corrupt("journal", format!("{ino} is not in use"))
                        }
                        error => error,
                    },
                )
            }
            found => found,
        }
    }

    fn of(volume: &Volume, inode: &Inode) -> Result<Self> {
        let bad = |why: String| Error::corrupt(format_args!("journal, {}", inode.ino), why);
        if inode.kind != Kind::Regular || inode.links == 0 {
            return Err(bad("is not a file".into()));
        }
        if inode.flags.contains(InodeFlags::ENCRYPTED) {
            return Err(bad("is encrypted".into()));
        }
        let blocks = inode.size >> volume.superblock().block_bits;
        let len = u32::try_from(blocks).ok().filter(|len| (1..=MAX_LOG_BLOCKS).contains(len));
        let Some(len) = len else { return Err(bad(format!("has {blocks} blocks"))) };
        let mut runs = Vec::new();
        for run in volume.runs(inode, 0, u64::from(len)) {
            let run = run?;
            let Mapping::Data(start) = run.mapping else {
                return Err(bad(format!("block {} is not there", run.logical)));
            };
            let logical = u32::try_from(run.logical).map_err(|_| bad("is too long".into()))?;
            runs.push(LogRun { logical, len: run.len, start: start.0 });
        }
        Ok(Self { runs, len })
    }

    /// Blocks of the journal: at least one.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.len
    }

    /// Its pieces in order.
    #[must_use]
    pub fn runs(&self) -> &[LogRun] {
        &self.runs
    }

    /// Where one of its blocks is on the volume.
    pub fn block(&self, position: u32) -> Result<u64> {
        let next = self.runs.partition_point(|run| run.logical <= position);
        next.checked_sub(1)
            .and_then(|at| self.runs.get(at))
            .map(|run| (run, u64::from(position - run.logical)))
            .filter(|(run, within)| *within < run.len)
            .map(|(run, within)| run.start + within)
            .ok_or_else(|| Error::corrupt("journal", format!("has no block {position}")))
    }
}

impl LogPlace {
    /// Where the blocks from `position` on are that lie together, at most `count` of them.
    pub(super) fn run(&self, position: u32, count: u32) -> Result<(u64, u32)> {
        let start = self.block(position)?;
        let next = self.runs.partition_point(|run| run.logical <= position);
        let together = self.runs.get(next.saturating_sub(1)).map_or(1, |run| {
            let left = run.len - u64::from(position - run.logical);
            u32::try_from(left).unwrap_or(u32::MAX)
        });
        Ok((start, count.min(together)))
    }
}

fn external(device: u32, uuid: &[u8; 16]) -> Error {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    let feature = format!("journal on a device of its own ({major}:{minor}, UUID {hex})");
    Error::Refused { feature, hint: "; let e2fsck -j DEVICE or the kernel replay it first".into() }
}

/// The inode as the superblock's copy has it. The blocks of a deep map cannot be verified under it
/// where they have checksums: these need the inode's generation.
fn backup(volume: &Volume, raw: &RawSuperblock, ino: Ino) -> Option<Inode> {
    if raw.jnl_backup_type != BACKUP_BLOCKS {
        return None;
    }
    let words = raw.jnl_blocks.map(|word| word.get());
    let (map, size) = words.split_at_checked(15)?;
    let mut block = [0; 60];
    for (bytes, word) in block.chunks_exact_mut(4).zip(map) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let extents = block.starts_with(&EXTENT_MAGIC);
    let time = Timestamp::decode(0, None);
    Some(Inode {
        ino,
        kind: Kind::Regular,
        mode: 0o100_600,
        uid: 0,
        gid: 0,
        project: 0,
        size: u64::from(*size.first()?) << 32 | u64::from(*size.get(1)?),
        blocks: 0,
        links: 1,
        flags: if extents { InodeFlags::EXTENTS } else { InodeFlags::empty() },
        generation: 0,
        version: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: None,
        dtime: 0,
        xattr_block: 0,
        block,
        extra: Box::default(),
        checksum_seed: crate::disk::inode::checksum_seed(ino, 0, volume.superblock()),
    })
}

/// What a map by extents begins with. A map by pointers does so only where the journal begins at a
/// block whose number ends in these bits, and then the copy is refused as a broken tree.
const EXTENT_MAGIC: [u8; 2] = 0xf30a_u16.to_le_bytes();

/// Reads the journal from the volume.
pub struct LogFile {
    /// The volume's storage.
    pub source: Arc<dyn BlockSource>,
    /// Where the journal is.
    pub place: LogPlace,
    /// Bytes of a block.
    pub block_size: u32,
}

impl LogFile {
    /// Fills `block`, which is as long as a block.
    pub fn read(&self, position: u32, block: &mut [u8]) -> Result<()> {
        let place = self.place.block(position)?;
        self.source.read_at(place * u64::from(self.block_size), block)
    }
}

impl ReadLog for LogFile {
    fn read_log(&self, position: u32, block: &mut [u8]) -> Result<()> {
        self.read(position, block)
    }
}
