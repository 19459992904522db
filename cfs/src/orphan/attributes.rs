//! Extended attributes of an inode that goes, and contents in the inode of one that is cut.

use super::{BASE_SIZE, Cleaner, Stored};
use crate::disk::checksum::crc32c;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::xattr::{self, Entry, NameIndex, Value};
use crate::id::{Block, Ino};
use crate::{Error, Result};

const MAGIC: u32 = 0xea02_0000;
/// Where a block of attributes counts the inodes that share it, and where its checksum is.
const REFERENCES: usize = 4;
const CHECKSUM: usize = 0x10;

impl Cleaner<'_> {
    /// Takes an inode's references off its block of attributes and off the inodes that hold values;
    /// returns how many of these it was charged for.
    pub(super) fn release_attributes(&mut self, inode: &Inode) -> Result<u64> {
        let bad = |why| Error::corrupt(inode.ino, why);
        let here = values(&xattr::parse_inode(&inode.extra).map_err(bad)?);
        for &ino in &here {
            self.release_value(inode, ino)?;
        }
        let beside = if inode.xattr_block == 0 { 0 } else { self.release_block(inode)? };
        Ok(here.len() as u64 + beside)
    }

    /// Takes one reference off a block of attributes, which inodes may share; returns how many
    /// values it has in inodes, which go when it does.
    fn release_block(&mut self, inode: &Inode) -> Result<u64> {
        let superblock = self.volume.superblock();
        let place = Block(inode.xattr_block);
        let bad = |why: String| Error::corrupt(inode.ino, format!("attributes at {place}: {why}"));
        if !self.volume.may_claim(inode, place, 1) {
            return Err(bad("no such block".into()));
        }
        let offset = place.0 << superblock.block_bits;
        let mut bytes = vec![0; superblock.block_size as usize];
        self.volume.source().read_at(offset, &mut bytes)?;
        let sums = superblock.features.metadata_csum();
        let sum = xattr::checksum(&bytes, place, superblock.checksum_seed);
        if sums && sum.is_none_or(|(found, computed)| found != computed) {
            return Err(bad("wrong checksum".into()));
        }
        let values = values(&xattr::parse_block(&bytes).map_err(bad)?);
        let count = values.len() as u64;
        let references = word(&bytes, REFERENCES);
        if word(&bytes, 0) != MAGIC || references == 0 {
            return Err(bad("nobody has them".into()));
        }
        if references == 1 {
            for ino in values {
                self.release_value(inode, ino)?;
            }
            self.space.free_blocks(place, 1)?;
            return Ok(count);
        }
        bytes[REFERENCES..REFERENCES + 4].copy_from_slice(&(references - 1).to_le_bytes());
        if sums {
            bytes[CHECKSUM..CHECKSUM + 4].fill(0);
            let seed = crc32c(superblock.checksum_seed, &place.0.to_le_bytes());
            let sum = crc32c(seed, &bytes).to_le_bytes();
            bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
        }
        self.volume.source().write_at(offset, &bytes)?;
        Ok(count)
    }

    /// Takes one reference off an inode that holds a value, and removes it with the last one. The
    /// count is where other inodes have their version and, above that, the time of their change.
    fn release_value(&mut self, owner: &Inode, ino: Ino) -> Result<()> {
        let bad = |why: &str| Error::corrupt(owner.ino, format!("attribute value in {ino}: {why}"));
        if ino.0 < self.volume.superblock().first_ino {
            return Err(bad("reserved"));
        }
        let (inode, mut stored) = self.load(ino)?;
        let holds = inode.flags.contains(InodeFlags::EA_INODE) && inode.kind == Kind::Regular;
        if !holds || inode.xattr_block != 0 {
            return Err(bad("not in use for one"));
        }
        let references =
            u64::from(inode.ctime.seconds as u32) << 32 | u64::from(inode.version as u32);
        let left = references.checked_sub(1).ok_or_else(|| bad("nobody has it"))?;
        if left == 0 {
            self.remove(&inode, &mut stored)?;
        }
        stored.edit(|raw| {
            raw.version_lo = (left as u32).into();
            raw.ctime = ((left >> 32) as u32).into();
        });
        self.store(&inode, stored)
    }

    /// What lies in the inode beyond the size reads as zeros should the file grow again.
    pub(super) fn cut_inline(&self, inode: &Inode, stored: &mut Stored) -> Result<()> {
        let bad = |why: String| Error::corrupt(inode.ino, why);
        let here = inode.block.len();
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
        let mut block = inode.block;
        block[size.min(here)..].fill(0);
        stored.edit(|raw| raw.block = block);
        let entries = xattr::parse_inode(&inode.extra).map_err(bad)?;
        let data = entries.iter().find(|e| e.index == NameIndex::SYSTEM && e.name == b"data");
        let Some(Entry { value: Value::Bytes(value), .. }) = data else { return Ok(()) };
        let cut = size.saturating_sub(here).min(value.len());
        if value.len() > cut {
            // The inode's bytes end with the space for attributes.
            let within = value.as_ptr().addr() - inode.extra.as_ptr().addr();
            let start = stored.bytes.len().saturating_sub(inode.extra.len()) + within;
            let place = stored.bytes.get_mut(start + cut..start + value.len());
            let place = place.filter(|_| start >= BASE_SIZE);
            place.ok_or_else(|| bad("inline contents beyond the inode".into()))?.fill(0);
        }
        Ok(())
    }
}

/// The inodes that hold values.
fn values(entries: &[Entry<'_>]) -> Vec<Ino> {
    let ino = |entry: &Entry<'_>| match entry.value {
        Value::Inode { ino, .. } => Some(ino),
        Value::Bytes(_) => None,
    };
    entries.iter().filter_map(ino).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}
