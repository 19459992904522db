//! A volume as a FUSE mount shows it, through the native interface.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{
    Attr, Attributes, Data, DirEntry, Directory, DirectoryPlus, Entry, Features, FileFlags,
    Filesystem, FlagsReply, Handle, Lookup, NodeId, Piece, Position, ReadRange, Reply, Request,
    StatFs, Statistics, Statx, StatxAttributes, Time, Value, Whence,
};
use crate::cache::InodeRecord;
use crate::client::{Client, Page};
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::id::Ino;
use crate::{Error, Result};

/// How long the kernel may believe names and attributes: the volume does not change.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

const PAGE: u64 = oslet::limits::FRAME_SIZE as u64;

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

/// A read-only volume behind a mount.
pub struct VolumeFs {
    client: Arc<Client>,
}

impl VolumeFs {
    /// Shows the volume that `client` reads.
    pub fn new(client: Arc<Client>) -> Arc<Self> {
        Arc::new(Self { client })
    }

    fn entry(record: &InodeRecord) -> Entry {
        Entry {
            node: node(record.attr.ino),
            generation: u64::from(record.attr.generation),
            attr: attr(record),
            entry_ttl: FOREVER,
            attr_ttl: FOREVER,
        }
    }

    fn read_range(&self, ino: Ino, range: ReadRange, reply: Reply<Data>) {
        let file = self.client.file(ino);
        let pages = self.client.stat(ino).and_then(|attr| {
            let end = range.offset.saturating_add(u64::from(range.size)).min(attr.size);
            let mut pages = Vec::new();
            let mut at = range.offset;
            while at < end {
                let within = at % PAGE;
                let len = (end - at).min(PAGE - within);
                let page = file.read_ref_of(at / PAGE, end.div_ceil(PAGE))?;
                let page = page.ok_or_else(|| Error::corrupt(ino, "shorter than its size"))?;
                pages.push((page, within as usize, len as usize));
                at += len;
            }
            Ok(pages)
        });
        let pages = match pages {
            Ok(pages) => pages,
            Err(error) => return reply.error(errno(&error)),
        };
        let pieces: Option<Vec<Piece<'_>>> = pages
            .iter()
            .map(|(page, within, len)| match page {
                Page::Shared(guard) => Piece::shared(guard, *within, *len),
                Page::Copied(bytes) => bytes.get(*within..within + len).map(Piece::Bytes),
            })
            .collect();
        match pieces {
            // Copied, or handed to the kernel, before this returns: the pins last until then.
            Some(pieces) => reply.data(&pieces),
            None => reply.error(Errno::IO),
        }
    }

    /// Shows entries from a position on until `push` takes no more.
    fn list(
        &self,
        dir: Ino,
        mut from: u64,
        mut push: impl FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        loop {
            let (entries, end) = self.client.readdir(dir, from)?;
            for entry in &entries {
                let shown = DirEntry {
                    ino: u64::from(entry.ino.0),
                    next: entry.next,
                    kind: entry.kind.map_or(FileType::Unknown, file_type),
                    name: &entry.name,
                };
                if !push(&shown) {
                    return Ok(());
                }
                from = entry.next;
            }
            if end || entries.is_empty() {
                return Ok(());
            }
        }
    }
}

impl Filesystem for VolumeFs {
    fn features(&self) -> Features {
        Features { readdirplus: true, posix_acl: true, export: true }
    }

    fn lookup(&self, _: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>) {
        match self.client.lookup(ino(parent), name) {
            Ok(record) => reply.entry(&Self::entry(&record)),
            Err(Error::NotFound) => reply.absent(FOREVER),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _: &Request, node: NodeId, reply: Reply<Attributes>) {
        match self.client.record(ino(node)) {
            Ok(record) => reply.attributes(&attr(&record), FOREVER),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statx(&self, _: &Request, node: NodeId, reply: Reply<StatxAttributes>) {
        match self.client.record(ino(node)) {
            Ok(record) => {
                let mask = STATX_FLAGS.iter().fold(0, |mask, &(_, bit)| mask | bit);
                let set = STATX_FLAGS.iter().filter(|(flag, _)| record.attr.flags.contains(*flag));
                let statx = Statx {
                    attr: attr(&record),
                    btime: record.attr.crtime.map(time),
                    attributes: set.fold(0, |set, &(_, bit)| set | bit),
                    attributes_mask: mask,
                };
                reply.attributes(&statx, FOREVER);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _: &Request, node: NodeId, reply: Reply<Data>) {
        match self.client.readlink(ino(node)) {
            Ok(target) => reply.data(&[Piece::Bytes(&target)]),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(&self, _: &Request, node: NodeId, _: Handle, range: ReadRange, reply: Reply<Data>) {
        self.read_range(ino(node), range, reply);
    }

    fn readdir(&self, _: &Request, node: NodeId, _: Handle, from: u64, reply: Reply<Directory>) {
        let mut listing = reply.listing();
        match self.list(ino(node), from, |entry| listing.push(entry)) {
            Ok(()) => listing.finish(),
            Err(error) => listing.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        node: NodeId,
        _: Handle,
        from: u64,
        reply: Reply<DirectoryPlus>,
    ) {
        let mut listing = reply.listing();
        let shown = self.list(ino(node), from, |entry| {
            let look_up = entry.name != b"." && entry.name != b"..";
            // An inode that cannot be read is listed by name; using it tells what is wrong.
            let record = look_up.then(|| self.client.record(Ino(entry.ino as u32)).ok()).flatten();
            listing.push(entry, record.as_ref().map(Self::entry).as_ref())
        });
        match shown {
            Ok(()) => listing.finish(),
            Err(error) => listing.error(errno(&error)),
        }
    }

    fn getxattr(&self, _: &Request, node: NodeId, name: &[u8], reply: Reply<Value>) {
        if let Err(errno) = attribute_name(name) {
            return reply.error(errno);
        }
        match self.client.getxattr(ino(node), name) {
            Ok(value) => reply.bytes(&value),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flags(&self, _: &Request, node: NodeId, reply: FlagsReply) {
        match self.client.record(ino(node)) {
            Ok(InodeRecord { attr, .. }) => {
                let inherits = if attr.kind == Kind::Regular { PROJECT_INHERIT } else { 0 };
                reply.flags(&FileFlags {
                    flags: attr.flags.bits() & VISIBLE_FLAGS & !inherits,
                    generation: attr.generation,
                    project: attr.project,
                });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _: &Request, node: NodeId, reply: Reply<Value>) {
        match self.client.listxattr(ino(node)) {
            Ok(names) => reply.bytes(&names),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statfs(&self, _: &Request, _: NodeId, reply: Reply<Statistics>) {
        match self.client.statfs() {
            Ok(stat) => reply.statistics(&StatFs {
                blocks: stat.blocks,
                bfree: stat.free,
                bavail: stat.available,
                files: stat.inodes,
                ffree: stat.free_inodes,
                bsize: stat.block_size,
                frsize: stat.block_size,
                namelen: stat.name_max,
            }),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        node: NodeId,
        _: Handle,
        offset: u64,
        whence: Whence,
        reply: Reply<Position>,
    ) {
        match self.client.seek(ino(node), offset, whence == Whence::Data) {
            Ok(found) => reply.position(found),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// The kernel calls the root 1; on an ext volume 1 is never shown, and the root is 2.
fn ino(node: NodeId) -> Ino {
    match node {
        NodeId::ROOT => Ino::ROOT,
        NodeId(node) => Ino(u32::try_from(node).unwrap_or(0)),
    }
}

fn node(ino: Ino) -> NodeId {
    match ino {
        Ino::ROOT => NodeId::ROOT,
        Ino(ino) => NodeId(u64::from(ino)),
    }
}

/// What ext4 answers to names that no attribute can have.
fn attribute_name(name: &[u8]) -> std::result::Result<(), Errno> {
    const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    const SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match SPACES.iter().find_map(|space| name.strip_prefix(*space)) {
        Some(b"") => Err(Errno::INVAL),
        None if !LISTS.contains(&name) => Err(Errno::OPNOTSUPP),
        _ => Ok(()),
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

fn time(stamp: Timestamp) -> Time {
    Time { secs: stamp.seconds, nanos: stamp.nanoseconds }
}

fn attr(record: &InodeRecord) -> Attr {
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

fn file_type(kind: Kind) -> FileType {
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
