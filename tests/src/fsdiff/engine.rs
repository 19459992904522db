//! The engine's view of a volume.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use cfs::Error;
use cfs::disk::inode::{Inode, InodeFlags, Kind};
use cfs::disk::time::Timestamp;
use cfs::engine::store::BlockSource;
use cfs::engine::{Attr, Options, StatFs, Volume};
use cfs::id::Ino;

use super::listing::{FileInfo, View, VolumeInfo};

/// An image file as a volume's storage, through ordinary system calls.
pub struct ImageFile {
    file: File,
    size: u64,
    writable: bool,
}

impl ImageFile {
    /// Opens an image for reading, or for reading and writing.
    pub fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size, writable })
    }
}

impl BlockSource for ImageFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> cfs::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(Error::io("image: read"))
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> cfs::Result<()> {
        self.file.write_all_at(data, offset).map_err(Error::io("image: write"))
    }

    fn flush(&self) -> cfs::Result<()> {
        self.file.sync_all().map_err(Error::io("image: sync"))
    }
}

/// A volume as the engine reads it.
pub struct EngineView {
    /// The volume.
    pub volume: Volume,
}

impl EngineView {
    /// Opens an image read-only.
    pub fn open(path: &Path) -> Result<Self> {
        let source = Arc::new(ImageFile::open(path, false)?);
        Ok(Self { volume: Volume::open(source, &Options::default())? })
    }
}

impl View for EngineView {
    type Node = Inode;

    fn root(&self) -> Result<Inode> {
        Ok(self.volume.inode(Ino::ROOT)?)
    }

    fn info(&self, node: &Inode) -> Result<FileInfo> {
        Ok(info_of(&self.volume.attr(node)))
    }

    fn names(&self, dir: &Inode) -> Result<Vec<(Vec<u8>, u64, u32)>> {
        let mut names = Vec::new();
        let mut from = 0;
        // Stopped now and then, so that going on from a position is tried too.
        loop {
            let mut burst = 0;
            let before = from;
            self.volume.readdir(dir, from, |entry| {
                if entry.name != b"." && entry.name != b".." {
                    let kind = entry.kind.map_or(0, mode_of);
                    names.push((entry.name.to_vec(), entry.ino.0.into(), kind));
                }
                from = entry.next;
                burst += 1;
                if burst == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if from == before {
                return Ok(names);
            }
        }
    }

    fn child(&self, dir: &Inode, name: &[u8]) -> Result<Inode> {
        Ok(self.volume.inode(self.volume.lookup(dir, name)?)?)
    }

    fn xattrs(&self, node: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let names = self.volume.listxattr(node)?;
        names
            .into_iter()
            .map(|name| {
                let value = self.volume.getxattr(node, &name)?;
                Ok((name, value))
            })
            .collect()
    }

    fn readlink(&self, node: &Inode) -> Result<Vec<u8>> {
        Ok(self.volume.readlink(node)?)
    }

    fn read(&self, node: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(self.volume.read(node, offset, buf)?)
    }

    fn seek(&self, node: &Inode, offset: u64, data: bool) -> Result<Option<u64>> {
        let found = if data {
            self.volume.seek_data(node, offset)
        } else {
            self.volume.seek_hole(node, offset)
        };
        match found {
            Ok(at) => Ok(Some(at)),
            Err(Error::NoSuchOffset) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn volume(&self) -> Result<VolumeInfo> {
        Ok(volume_of(&self.volume.statfs()))
    }
}

/// What is compared of attributes.
pub(super) fn info_of(attr: &Attr) -> FileInfo {
    let time = |time: Timestamp| (time.seconds, time.nanoseconds);
    let compared = InodeFlags::COMPRESSED
        | InodeFlags::IMMUTABLE
        | InodeFlags::APPEND
        | InodeFlags::NODUMP
        | InodeFlags::ENCRYPTED;
    FileInfo {
        ino: attr.ino.0.into(),
        mode: attr.mode.into(),
        links: attr.links,
        owner: (attr.uid, attr.gid),
        device: attr.device,
        size: attr.size,
        blocks: attr.blocks,
        block_size: attr.block_size,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        btime: attr.crtime.map(time),
        // The flags have the values of statx's attributes.
        attributes: attr.flags.intersection(compared).bits().into(),
    }
}

/// What is compared of a volume.
pub(super) fn volume_of(stat: &StatFs) -> VolumeInfo {
    VolumeInfo {
        block_size: stat.block_size.into(),
        blocks: [stat.blocks, stat.free, stat.available],
        inodes: [stat.inodes, stat.free_inodes],
        id: stat.id,
        name_max: stat.name_max.into(),
    }
}

/// The type bits of a mode.
pub(super) fn mode_of(kind: Kind) -> u32 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Regular => 0o100_000,
        Kind::Symlink => 0o120_000,
        Kind::Socket => 0o140_000,
    }
}
