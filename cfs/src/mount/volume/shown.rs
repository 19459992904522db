//! From what the volume says to what a mount shows.

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::cache::InodeRecord;
use crate::client;
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::engine;
use crate::id::Ino;
use crate::mount::{Attr, DirEntry, FileFlags, NodeId, Statx, Time};
use crate::{Error, Result};

/// `STATX_ATTR_*` of the kernel's interface that ext4 reports, with the inode flags they show.
const STATX_FLAGS: [(InodeFlags, u64); 6] = [
    (InodeFlags::COMPRESSED, 0x4),
    (InodeFlags::IMMUTABLE, 0x10),
    (InodeFlags::APPEND, 0x20),
    (InodeFlags::NODUMP, 0x40),
    (InodeFlags::ENCRYPTED, 0x800),
    (InodeFlags::VERITY, 0x10_0000),
];

/// Inode flags that ext4 shows to programs.
const VISIBLE_FLAGS: u32 = 0x725b_dfff;
/// One that is for directories alone.
const PROJECT_INHERIT: u32 = 0x2000_0000;

pub(super) fn dir_entry(entry: &client::DirEntry) -> DirEntry<'_> {
    DirEntry {
        ino: u64::from(entry.ino.0),
        next: entry.next,
        kind: entry.kind.map_or(FileType::Unknown, file_type),
        name: &entry.name,
    }
}

/// The inode that a node is, whose number it has in its lower half. The kernel calls the root 1; on
/// an ext volume 1 is never shown, and the root is 2.
pub(super) fn ino(node: NodeId) -> Ino {
    match node {
        NodeId::ROOT => Ino::ROOT,
        NodeId(node) => Ino(node as u32),
    }
}

/// Which use of its number an inode is; zero for the root, whose number has one.
pub(super) fn generation(node: NodeId) -> u32 {
    (node.0 >> 32) as u32
}

/// The node that an inode is: another use of its number is another node, so that the kernel, and
/// what is counted for it, cannot take one for the other.
pub(super) fn node(attr: &engine::Attr) -> NodeId {
    match attr.ino {
        Ino::ROOT => NodeId::ROOT,
        Ino(ino) => NodeId(u64::from(ino) | u64::from(attr.generation) << 32),
    }
}

/// What is published of a node, unless its number is another inode's by now.
pub(super) fn check(asked: NodeId, record: InodeRecord) -> Result<InodeRecord> {
    if node(&record.attr) == asked { Ok(record) } else { Err(Error::Stale(ino(asked).to_string())) }
}

/// What ext4 answers to names that no attribute can have.
pub(super) fn attribute_name(name: &[u8]) -> std::result::Result<(), Errno> {
    const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    const SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match SPACES.iter().find_map(|space| name.strip_prefix(*space)) {
        Some(b"") => Err(Errno::INVAL),
        None if !LISTS.contains(&name) => Err(Errno::OPNOTSUPP),
        _ => Ok(()),
    }
}

pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

pub(super) fn time(stamp: Timestamp) -> Time {
    Time { secs: stamp.seconds, nanos: stamp.nanoseconds }
}

pub(super) fn statx(record: &InodeRecord) -> Statx {
    let mask = STATX_FLAGS.iter().fold(0, |mask, &(_, bit)| mask | bit);
    let set = STATX_FLAGS.iter().filter(|(flag, _)| record.attr.flags.contains(*flag));
    Statx {
        attr: attr(record),
        btime: record.attr.crtime.map(time),
        attributes: set.fold(0, |set, &(_, bit)| set | bit),
        attributes_mask: mask,
    }
}

pub(super) fn file_flags(record: &InodeRecord) -> FileFlags {
    let attr = &record.attr;
    let hidden = if attr.kind == Kind::Regular { PROJECT_INHERIT } else { 0 };
    FileFlags {
        flags: attr.flags.bits() & VISIBLE_FLAGS & !hidden,
        generation: attr.generation,
        project: attr.project,
    }
}

pub(super) fn attr(record: &InodeRecord) -> Attr {
    let attr = &record.attr;
    Attr {
        ino: u64::from(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: u32::from(attr.mode),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: attr.block_size,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Fifo => FileType::Fifo,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::Directory => FileType::Directory,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Regular => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    }
}
