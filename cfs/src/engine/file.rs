//! Contents of files, and targets of symbolic links.

use crate::disk::features::Incompat;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::xattr::{self, NameIndex, Value};
use crate::id::Block;
use crate::{Error, Result};

use super::{Mapping, Volume};

/// Longest target that fits into the inode, with the zero that ends it.
const FAST_LINK: u64 = 60;

impl Volume {
    /// Fills `buf` from byte `offset` of a file and says how many bytes there were: fewer than
    /// asked for at the end of the file alone.
    pub fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        check_file(inode)?;
        let len = inode.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        if len == 0 {
            return Ok(0);
        }
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            // What the file was extended by without being written is not there.
            let contents = self.inline_contents(inode)?;
            let from = contents.len().min(offset as usize);
            let here = &contents[from..contents.len().min(from + len)];
            buf[..here.len()].copy_from_slice(here);
            buf[here.len()..].fill(0);
            return Ok(len);
        }
        let bits = self.superblock.block_bits;
        let first = offset >> bits;
        let count = ((offset + len as u64 - 1) >> bits) - first + 1;
        for run in self.runs(inode, first, count) {
            let run = run?;
            let start = (run.logical << bits).max(offset);
            let end = (run.end() << bits).min(offset + len as u64);
            let piece = &mut buf[(start - offset) as usize..(end - offset) as usize];
            match run.mapping {
                Mapping::Hole | Mapping::Unwritten(_) => piece.fill(0),
                Mapping::Data(block) => {
                    let within = start - (run.logical << bits);
                    self.read_newest(inode, (block.0 << bits) + within, piece)?;
                }
            }
        }
        Ok(len)
    }

    /// Reads contents at a place of the volume: what went through the journal is not at home yet,
    /// perhaps.
    fn read_newest(&self, inode: &Inode, mut place: u64, mut to: &mut [u8]) -> Result<()> {
        if !self.is_journaled(inode) {
            return self.source.read_at(place, to);
        }
        let bits = self.superblock.block_bits;
        while !to.is_empty() {
            let (block, within) = (Block(place >> bits), (place & ((1 << bits) - 1)) as usize);
            let blocks = (within + to.len()).div_ceil(1 << bits) as u64;
            let home = self.blocks_at_home(block, blocks);
            let len = to.len().min((home.max(1) << bits) as usize - within);
            let (now, later) = to.split_at_mut(len);
            // A version that has just come home is read there.
            match self.cache.newer(block).filter(|_| home == 0) {
                Some(newer) => now.copy_from_slice(&newer.bytes[within..within + len]),
                None => self.source.read_at(place, now)?,
            }
            (place, to) = (place + len as u64, later);
        }
        Ok(())
    }

    /// How many of some blocks in a row, from the first on, are as they lie at home.
    pub(crate) fn blocks_at_home(&self, first: Block, count: u64) -> u64 {
        let newer = |at: &u64| self.cache.newer(Block(first.0 + at)).is_some();
        (0..count).find(newer).unwrap_or(count)
    }

    /// The first byte at or after `offset` that is not in a hole; [`Error::NoSuchOffset`] if
    /// there is none before the end of the file.
    pub fn seek_data(&self, inode: &Inode, offset: u64) -> Result<u64> {
        self.seek(inode, offset, true)?.ok_or(Error::NoSuchOffset)
    }

    /// The first byte at or after `offset` that is in a hole; the end of the file is one.
    pub fn seek_hole(&self, inode: &Inode, offset: u64) -> Result<u64> {
        Ok(self.seek(inode, offset, false)?.unwrap_or(inode.size))
    }

    fn seek(&self, inode: &Inode, offset: u64, data: bool) -> Result<Option<u64>> {
        check_file(inode)?;
        if offset >= inode.size {
            return Err(Error::NoSuchOffset);
        }
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Ok(data.then_some(offset));
        }
        let bits = self.superblock.block_bits;
        let first = offset >> bits;
        let count = ((inode.size - 1) >> bits) - first + 1;
        for run in self.runs(inode, first, count) {
            let run = run?;
            if data == matches!(run.mapping, Mapping::Data(_)) {
                return Ok(Some((run.logical << bits).max(offset)));
            }
        }
        Ok(None)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != Kind::Symlink {
            return Err(Error::Invalid(format!("{} is no symbolic link", inode.ino)));
        }
        if inode.flags.contains(InodeFlags::ENCRYPTED) {
            return Err(Error::Encrypted(inode.ino.to_string()));
        }
        let bad = |why: &str| Error::corrupt(inode.ino, format!("symbolic link {why}"));
        if inode.size == 0 || inode.size > self.superblock.block_size.into() {
            return Err(bad(&format!("of {} bytes", inode.size)));
        }
        let size = inode.size as usize;
        if self.is_fast_link(inode) {
            let target = inode.block.get(..size).filter(|_| inode.size < FAST_LINK);
            let target = target.filter(|target| !target.contains(&0));
            return target.map(<[u8]>::to_vec).ok_or_else(|| bad("with a bad target"));
        }
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            let mut target = self.inline_contents(inode)?;
            if target.len() < size {
                return Err(bad("that is cut off"));
            }
            target.truncate(size);
            return Ok(target);
        }
        match self.map(inode, 0, 1)?.mapping {
            Mapping::Data(block) => Ok(self.block(block)?.bytes[..size].to_vec()),
            _ => Err(bad("without a block")),
        }
    }

    /// Whether the target is where a map would be. Before `ea_inode` that is so if the link has no
    /// blocks but one of attributes.
    pub(super) fn is_fast_link(&self, inode: &Inode) -> bool {
        let superblock = &self.superblock;
        if superblock.features.incompat.contains(Incompat::EA_INODE) {
            return inode.size < FAST_LINK;
        }
        let cluster = u64::from(superblock.cluster_ratio) << (superblock.block_bits - 9);
        let attributes = if inode.xattr_block == 0 { 0 } else { cluster };
        !inode.flags.contains(InodeFlags::INLINE_DATA) && inode.blocks == attributes
    }

    /// All of the inode's own space for contents: 60 bytes, and the attribute `system.data`.
    pub(super) fn inline_contents(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut contents = inode.block.to_vec();
        contents.extend_from_slice(inline_rest(inode)?);
        Ok(contents)
    }
}

/// The inline contents behind the first 60 bytes.
pub(super) fn inline_rest(inode: &Inode) -> Result<&[u8]> {
    let bad = |why| Error::corrupt(inode.ino, why);
    let entries = xattr::parse_inode(&inode.extra).map_err(bad)?;
    let data =
        entries.into_iter().find(|entry| entry.index == NameIndex::SYSTEM && entry.name == b"data");
    match data.map(|entry| entry.value) {
        Some(Value::Bytes(bytes)) => Ok(bytes),
        Some(Value::Inode { .. }) => Err(bad("inline contents in another inode".into())),
        None => Ok(&[]),
    }
}

fn check_file(inode: &Inode) -> Result<()> {
    match inode.kind {
        Kind::Regular if inode.flags.contains(InodeFlags::ENCRYPTED) => {
            Err(Error::Encrypted(inode.ino.to_string()))
        }
        Kind::Regular => Ok(()),
        Kind::Directory => Err(Error::IsADirectory),
        _ => Err(Error::Invalid(format!("{} is no regular file", inode.ino))),
    }
}
