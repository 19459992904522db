//! A volume as a FUSE mount shows it, through the native interface.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{
    Agreed, Attr, Attributes, Data, DirEntry, Directory, DirectoryPlus, Entry, Features, FileFlags,
    Filesystem, FlagsReply, Handle, Lookup, NodeId, Piece, Position, ReadRange, Reply, Request,
    StatFs, Statistics, Statx, StatxAttributes, Time, Value, Waits, Whence,
};
use crate::cache::InodeRecord;
use crate::client::{self, Client, Page};
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
///
/// What is published is answered at once; the owner is asked where that holds up nobody.
pub struct VolumeFs {
    client: Arc<Client>,
    waits: OnceLock<Arc<Waits>>,
}

impl VolumeFs {
    /// Shows the volume that `client` reads.
    pub fn new(client: Arc<Client>) -> Arc<Self> {
        Arc::new(Self { client, waits: OnceLock::new() })
    }

    /// Asks by `ask`, which may wait, and answers by `answer`.
    fn wait<K: 'static, T>(
        &self,
        request: &Request,
        reply: Reply<K>,
        ask: impl FnOnce(&Arc<Client>) -> T + Send + 'static,
        answer: impl FnOnce(T, Reply<K>) + Send + 'static,
    ) {
        let client = Arc::clone(&self.client);
        let Some(waits) = self.waits.get() else { return answer(ask(&client), reply) };
        waits.run(request, reply, move |held| {
            let found = ask(&client);
            if let Some(reply) = held.take() {
                answer(found, reply);
            }
        });
    }

    /// Answers with what is published of an inode, else asks for it.
    fn with_record<K: 'static>(
        &self,
        request: &Request,
        node: NodeId,
        reply: Reply<K>,
        answer: impl FnOnce(Result<InodeRecord>, Reply<K>) + Send + 'static,
    ) {
        let ino = ino(node);
        match self.client.cached_record(ino) {
            Some(record) => answer(Ok(record), reply),
            None => self.wait(request, reply, move |client| client.record(ino), answer),
        }
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
}

impl Filesystem for VolumeFs {
    fn features(&self) -> Features {
        Features { readdirplus: true, posix_acl: true, export: true, writable: false }
    }

    fn init(&self, _: &Agreed, waits: &Arc<Waits>) {
        let _ = self.waits.set(Arc::clone(waits));
    }

    fn lookup(&self, request: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>) {
        let answer = |found, reply: Reply<Lookup>| match found {
            Ok(record) => reply.entry(&Self::entry(&record)),
            Err(Error::NotFound) => reply.absent(FOREVER),
            Err(error) => reply.error(errno(&error)),
        };
        let parent = ino(parent);
        if let Some(found) = self.client.cached_lookup(parent, name) {
            return answer(found, reply);
        }
        let name = name.to_vec();
        self.wait(request, reply, move |client| client.lookup(parent, &name), answer);
    }

    fn getattr(&self, request: &Request, node: NodeId, reply: Reply<Attributes>) {
        self.with_record(request, node, reply, |record, reply| match record {
            Ok(record) => reply.attributes(&attr(&record), FOREVER),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn statx(&self, request: &Request, node: NodeId, reply: Reply<StatxAttributes>) {
        self.with_record(request, node, reply, |record, reply| match record {
            Ok(record) => reply.attributes(&statx(&record), FOREVER),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, request: &Request, node: NodeId, reply: Reply<Data>) {
        let answer = |target: Result<Vec<u8>>, reply: Reply<Data>| match target {
            Ok(target) => reply.data(&[Piece::Bytes(&target)]),
            Err(error) => reply.error(errno(&error)),
        };
        let ino = ino(node);
        match self.client.cached_record(ino).and_then(|record| record.target) {
            Some(target) => answer(Ok(target), reply),
            None => self.wait(request, reply, move |client| client.readlink(ino), answer),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        range: ReadRange,
        reply: Reply<Data>,
    ) {
        let ino = ino(node);
        let file = self.client.file(ino);
        let cached = self.client.cached_record(ino).and_then(|record| {
            let get = |page, _| Ok(file.cached_ref(page));
            pages(range, record.attr.size, get).ok().flatten()
        });
        if let Some(pages) = cached {
            return answer_pages(&pages, reply);
        }
        let client = Arc::clone(&self.client);
        let read = move |take: &mut dyn FnMut() -> Option<Reply<Data>>| {
            let file = client.file(ino);
            let found = client.stat(ino).and_then(|attr| {
                let found = pages(range, attr.size, |page, end| file.read_ref_of(page, end));
                found?.ok_or_else(|| Error::corrupt(ino, "shorter than its size"))
            });
            match (found, take()) {
                (Ok(pages), Some(reply)) => answer_pages(&pages, reply),
                (Err(error), Some(reply)) => reply.error(errno(&error)),
                (_, None) => {}
            }
        };
        match self.waits.get() {
            Some(waits) => waits.run(request, reply, move |held| {
                let mut held = Some(held);
                read(&mut || held.take()?.take());
            }),
            None => {
                let mut reply = Some(reply);
                read(&mut || reply.take());
            }
        }
    }

    fn readdir(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        from: u64,
        reply: Reply<Directory>,
    ) {
        let (dir, room) = (ino(node), reply.room());
        let ask = move |client: &Arc<Client>| {
            let mut entries = client.readdir(dir, from)?.0;
            entries.truncate(fitting(&entries, 0, room));
            Ok(entries)
        };
        self.wait(request, reply, ask, |found: Result<Vec<_>>, reply| match found {
            Ok(entries) => {
                let mut listing = reply.listing();
                let _ = entries.iter().all(|entry| listing.push(&shown(entry)));
                listing.finish();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        from: u64,
        reply: Reply<DirectoryPlus>,
    ) {
        let (dir, room) = (ino(node), reply.room());
        let ask = move |client: &Arc<Client>| {
            let mut entries = client.readdir(dir, from)?.0;
            entries.truncate(fitting(&entries, DirectoryPlus::ENTRY, room));
            let look_up = |entry: client::DirEntry| {
                let look_up = entry.name != b"." && entry.name != b"..";
                // An inode that cannot be read is listed by name; using it tells what is wrong.
                let record = look_up.then(|| client.record(entry.ino).ok()).flatten();
                (entry, record)
            };
            Ok(entries.into_iter().map(look_up).collect())
        };
        self.wait(request, reply, ask, |found: Result<Vec<_>>, reply| match found {
            Ok(entries) => {
                let mut listing = reply.listing();
                let _ = entries.iter().all(|(entry, record)| {
                    listing.push(&shown(entry), record.as_ref().map(Self::entry).as_ref())
                });
                listing.finish();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn getxattr(&self, request: &Request, node: NodeId, name: &[u8], reply: Reply<Value>) {
        if let Err(errno) = attribute_name(name) {
            return reply.error(errno);
        }
        let ino = ino(node);
        if self.client.cached_record(ino).is_some_and(|record| !record.has_xattr) {
            return reply.error(Errno::NODATA);
        }
        let name = name.to_vec();
        self.wait(request, reply, move |client| client.getxattr(ino, &name), value);
    }

    fn listxattr(&self, request: &Request, node: NodeId, reply: Reply<Value>) {
        let ino = ino(node);
        if self.client.cached_record(ino).is_some_and(|record| !record.has_xattr) {
            return reply.bytes(&[]);
        }
        self.wait(request, reply, move |client| client.listxattr(ino), value);
    }

    fn flags(&self, request: &Request, node: NodeId, reply: FlagsReply) {
        let (reply, question) = reply.apart();
        self.with_record(request, node, reply, move |record, reply| {
            let reply = FlagsReply::new(reply, question);
            match record {
                Ok(record) => reply.flags(&file_flags(&record)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn statfs(&self, request: &Request, _: NodeId, reply: Reply<Statistics>) {
        let ask = |client: &Arc<Client>| client.statfs();
        self.wait(request, reply, ask, |found, reply| match found {
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
        });
    }

    fn lseek(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        offset: u64,
        whence: Whence,
        reply: Reply<Position>,
    ) {
        let (ino, data) = (ino(node), whence == Whence::Data);
        let ask = move |client: &Arc<Client>| client.seek(ino, offset, data);
        self.wait(request, reply, ask, |found, reply| match found {
            Ok(found) => reply.position(found),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn interrupt(&self, unique: u64) {
        if let Some(waits) = self.waits.get() {
            waits.interrupt(unique);
        }
    }
}

/// Pages with the part of each that was asked for: first byte and bytes.
type Parts<'f> = Vec<(Page<'f>, usize, usize)>;

/// The pages of a range of a file that has `size` bytes, each from `get`, which is given the page
/// and where the range ends. `None` if one is not to be had.
fn pages<'f>(
    range: ReadRange,
    size: u64,
    get: impl Fn(u64, u64) -> Result<Option<Page<'f>>>,
) -> Result<Option<Parts<'f>>> {
    let end = range.offset.saturating_add(u64::from(range.size)).min(size);
    let mut pages = Vec::with_capacity(range.size.div_ceil(PAGE as u32) as usize);
    let mut at = range.offset;
    while at < end {
        let within = at % PAGE;
        let len = (end - at).min(PAGE - within);
        let Some(page) = get(at / PAGE, end.div_ceil(PAGE))? else { return Ok(None) };
        pages.push((page, within as usize, len as usize));
        at += len;
    }
    Ok(Some(pages))
}

fn answer_pages(pages: &Parts<'_>, reply: Reply<Data>) {
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

/// How many entries from the first on there is room for, when each takes `beside` bytes more.
fn fitting(entries: &[client::DirEntry], beside: usize, room: usize) -> usize {
    let mut left = room;
    let fits = |entry: &&client::DirEntry| {
        let size = beside + Directory::size(entry.name.len());
        left.checked_sub(size).map(|less| left = less).is_some()
    };
    entries.iter().take_while(fits).count()
}

fn shown(entry: &client::DirEntry) -> DirEntry<'_> {
    DirEntry {
        ino: u64::from(entry.ino.0),
        next: entry.next,
        kind: entry.kind.map_or(FileType::Unknown, file_type),
        name: &entry.name,
    }
}

fn value(found: Result<Vec<u8>>, reply: Reply<Value>) {
    match found {
        Ok(value) => reply.bytes(&value),
        Err(error) => reply.error(errno(&error)),
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

fn statx(record: &InodeRecord) -> Statx {
    let mask = STATX_FLAGS.iter().fold(0, |mask, &(_, bit)| mask | bit);
    let set = STATX_FLAGS.iter().filter(|(flag, _)| record.attr.flags.contains(*flag));
    Statx {
        attr: attr(record),
        btime: record.attr.crtime.map(time),
        attributes: set.fold(0, |set, &(_, bit)| set | bit),
        attributes_mask: mask,
    }
}

fn file_flags(record: &InodeRecord) -> FileFlags {
    let attr = &record.attr;
    let hidden = if attr.kind == Kind::Regular { PROJECT_INHERIT } else { 0 };
    FileFlags {
        flags: attr.flags.bits() & VISIBLE_FLAGS & !hidden,
        generation: attr.generation,
        project: attr.project,
    }
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
