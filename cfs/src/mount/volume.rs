//! A volume as a FUSE mount shows it, through the native interface.

mod access;
mod change;
mod known;
mod read;
mod shown;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{
    Agreed, Allocation, Attributes, Changes, Controlled, Created, Data, Directory, DirectoryPlus,
    Done, Entry, Features, Filesystem, FlagsReply, Handle, Lookup, NewFlags, NewNode, NodeId,
    OpenCache, Opened, Opening, Piece, Position, ReadRange, RenameFlags, Reply, Request, StatFs,
    Statistics, StatxAttributes, TrimRange, Trimmed, Value, Waits, Whence, WriteRange, Written,
    XattrFlags,
};
use crate::cache::InodeRecord;
use crate::change::Change;
use crate::client::{self, Client};
use crate::id::Ino;
use crate::{Error, Result};
pub use access::Times;
use change::{caller, done};
use known::{Known, Later, Work};
use read::fitting;
use shown::{attr, attribute_name, dir_entry, errno, file_flags, ino, node, statx};

/// How long the kernel may believe names and attributes: the volume does not change.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// Who changes the volume beside a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Nobody changes it: the kernel may believe everything for ever.
    ReadOnly,
    /// This mount alone does: the kernel knows of every change.
    Alone,
    /// Others do as well: the kernel asks each time, and reads files past its page cache where it
    /// can map them all the same. Elsewhere it drops a file's pages when it is opened, and when its
    /// times have changed.
    Shared,
}

/// A volume behind a mount.
///
/// What is published is answered at once; the owner is asked where that holds up nobody.
pub struct VolumeFs {
    shown: Arc<Shown>,
    waits: OnceLock<Arc<Waits>>,
    later: Mutex<Option<Later>>,
}

/// What answers are made from.
struct Shown {
    client: Arc<Client>,
    sharing: Sharing,
    times: Times,
    /// Files are read past the kernel's page cache, which still can map them.
    direct: AtomicBool,
    known: Known,
}

impl Shown {
    fn is_writable(&self) -> bool {
        self.sharing != Sharing::ReadOnly
    }

    /// How long the kernel may believe names and attributes.
    fn ttl(&self) -> Duration {
        if self.sharing == Sharing::Shared { Duration::ZERO } else { FOREVER }
    }

    /// A name that was looked up, and is one more of those that the kernel gives back.
    fn entry(&self, record: &InodeRecord) -> Result<Entry> {
        let ino = record.attr.ino;
        match self.sharing {
            Sharing::ReadOnly => {}
            Sharing::Alone => self.known.count(ino),
            Sharing::Shared => self.known.hold_and_count(&self.client, ino)?,
        }
        Ok(self.plain_entry(record))
    }

    /// Whether a look-up of that inode can be counted without asking the owner.
    fn knows_at_once(&self, ino: Ino) -> bool {
        self.sharing != Sharing::Shared || self.known.is_held(ino)
    }

    /// What a name leads to stays while the kernel knows it, although the name may go.
    fn keep(&self, dir: Ino, name: &[u8]) -> Result<()> {
        match self.client.lookup(dir, name) {
            Ok(record) => self.known.hold(&self.client, record.attr.ino),
            // Who takes the name away says what is wrong.
            Err(_) => Ok(()),
        }
    }

    fn plain_entry(&self, record: &InodeRecord) -> Entry {
        Entry {
            node: node(record.attr.ino),
            generation: u64::from(record.attr.generation),
            attr: attr(record),
            entry_ttl: self.ttl(),
            attr_ttl: self.ttl(),
        }
    }

    fn answer_lookup(&self, found: Result<InodeRecord>, reply: Reply<Lookup>) {
        match found.and_then(|record| self.entry(&record)) {
            Ok(entry) => reply.entry(&entry),
            Err(Error::NotFound) => reply.absent(self.ttl()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn answer_attributes(&self, found: Result<InodeRecord>, reply: Reply<Attributes>) {
        match found {
            Ok(record) => reply.attributes(&attr(&record), self.ttl()),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

impl VolumeFs {
    /// Shows the volume that `client` reads, and changes where others may not.
    pub fn new(client: Arc<Client>, sharing: Sharing) -> Arc<Self> {
        Self::with(client, sharing, Times::default())
    }

    /// The same with times of reading as they are wanted, and as the owner keeps them.
    pub fn with(client: Arc<Client>, sharing: Sharing, times: Times) -> Arc<Self> {
        let shown = Arc::new(Shown {
            client,
            sharing,
            times,
            direct: AtomicBool::new(false),
            known: Known::default(),
        });
        Arc::new(Self { shown, waits: OnceLock::new(), later: Mutex::new(None) })
    }

    /// Asks by `ask`, which may wait, and answers by `answer`.
    fn wait<K: 'static, T>(
        &self,
        request: &Request,
        reply: Reply<K>,
        ask: impl FnOnce(&Shown) -> T + Send + 'static,
        answer: impl FnOnce(&Shown, T, Reply<K>) + Send + 'static,
    ) {
        let shown = Arc::clone(&self.shown);
        let Some(waits) = self.waits.get() else { return answer(&shown, ask(&shown), reply) };
        waits.run(request, reply, move |held| {
            let found = ask(&shown);
            if let Some(reply) = held.take() {
                answer(&shown, found, reply);
            }
        });
    }

    /// Answers with what is published of an inode, else asks for it.
    fn with_record<K: 'static>(
        &self,
        request: &Request,
        node: NodeId,
        reply: Reply<K>,
        answer: impl FnOnce(&Shown, Result<InodeRecord>, Reply<K>) + Send + 'static,
    ) {
        let ino = ino(node);
        match self.shown.client.cached_record(ino) {
            Some(record) => answer(&self.shown, Ok(record), reply),
            None => self.wait(request, reply, move |shown| shown.client.record(ino), answer),
        }
    }

    /// Has something done behind a request that nobody waits for.
    fn later(&self, work: Work) {
        match &*self.later.lock() {
            Some(later) => later.push(work),
            None => work.run(&self.shown.client),
        }
    }
}

impl Filesystem for VolumeFs {
    fn features(&self) -> Features {
        let writable = self.shown.is_writable();
        let shared = self.shown.sharing == Sharing::Shared;
        Features { readdirplus: true, posix_acl: true, export: true, writable, shared }
    }

    fn init(&self, agreed: &Agreed, waits: &Arc<Waits>) {
        self.shown.direct.store(agreed.direct_mappings, Ordering::Relaxed);
        let _ = self.waits.set(Arc::clone(waits));
        if self.shown.is_writable() {
            // Without the thread its work is done where it comes up.
            *self.later.lock() = Later::start(Arc::clone(&self.shown.client)).ok();
        }
    }

    fn destroy(&self) {
        let later = self.later.lock().take();
        let held = self.shown.known.forget_all();
        if let Some(later) = later {
            later.finish();
        }
        held.into_iter().for_each(|ino| Work::LetGo(ino).run(&self.shown.client));
    }

    fn lookup(&self, request: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>) {
        let parent = ino(parent);
        if let Some(found) = self.shown.client.cached_lookup(parent, name) {
            let ino = found.as_ref().ok().map(|record| record.attr.ino);
            if ino.is_none_or(|ino| self.shown.knows_at_once(ino)) {
                return self.shown.answer_lookup(found, reply);
            }
        }
        let name = name.to_vec();
        let ask = move |shown: &Shown| shown.client.lookup(parent, &name);
        self.wait(request, reply, ask, Shown::answer_lookup);
    }

    fn forget(&self, node: NodeId, count: u64) {
        let ino = ino(node);
        if self.shown.is_writable() && self.shown.known.forget(ino, count) {
            self.later(Work::LetGo(ino));
        }
    }

    fn getattr(&self, request: &Request, node: NodeId, reply: Reply<Attributes>) {
        self.with_record(request, node, reply, Shown::answer_attributes);
    }

    fn statx(&self, request: &Request, node: NodeId, reply: Reply<StatxAttributes>) {
        self.with_record(request, node, reply, |shown, record, reply| match record {
            Ok(record) => reply.attributes(&statx(&record), shown.ttl()),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, request: &Request, node: NodeId, reply: Reply<Data>) {
        let ino = ino(node);
        if let Some(record) = self.shown.client.cached_record(ino)
            && !self.shown.is_access_due(&record)
            && let Some(target) = &record.target
        {
            return reply.data(&[Piece::Bytes(target)]);
        }
        let ask = move |shown: &Shown| {
            shown.accessed(ino);
            shown.client.readlink(ino)
        };
        self.wait(request, reply, ask, |_, target, reply| match target {
            Ok(target) => reply.data(&[Piece::Bytes(&target)]),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn read(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        range: ReadRange,
        reply: Reply<Data>,
    ) {
        self.read_file(request, node, range, reply);
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
        let ask = move |shown: &Shown| {
            shown.accessed(dir);
            let mut entries = shown.client.readdir(dir, from)?.0;
            entries.truncate(fitting(&entries, 0, room));
            Ok(entries)
        };
        self.wait(request, reply, ask, |_, found: Result<Vec<_>>, reply| match found {
            Ok(entries) => {
                let mut listing = reply.listing();
                let _ = entries.iter().all(|entry| listing.push(&dir_entry(entry)));
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
        let ask = move |shown: &Shown| {
            shown.accessed(dir);
            let client = &shown.client;
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
        self.wait(request, reply, ask, |shown, found: Result<Vec<_>>, reply| match found {
            Ok(entries) => {
                let mut listing = reply.listing();
                // They fit, so each one that is counted arrives.
                let _ = entries.iter().all(|(entry, record)| {
                    let known = record.as_ref().and_then(|record| shown.entry(record).ok());
                    listing.push(&dir_entry(entry), known.as_ref())
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
        if self.shown.client.cached_record(ino).is_some_and(|record| !record.has_xattr) {
            return reply.error(Errno::NODATA);
        }
        let name = name.to_vec();
        self.wait(request, reply, move |shown| shown.client.getxattr(ino, &name), value);
    }

    fn listxattr(&self, request: &Request, node: NodeId, reply: Reply<Value>) {
        let ino = ino(node);
        if self.shown.client.cached_record(ino).is_some_and(|record| !record.has_xattr) {
            return reply.bytes(&[]);
        }
        self.wait(request, reply, move |shown| shown.client.listxattr(ino), value);
    }

    fn flags(&self, request: &Request, node: NodeId, reply: FlagsReply) {
        let (reply, question) = reply.apart();
        self.with_record(request, node, reply, move |_, record, reply| {
            let reply = FlagsReply::new(reply, question);
            match record {
                Ok(record) => reply.flags(&file_flags(&record)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn statfs(&self, request: &Request, _: NodeId, reply: Reply<Statistics>) {
        let ask = |shown: &Shown| shown.client.statfs();
        self.wait(request, reply, ask, |_, found, reply| match found {
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
        let ask = move |shown: &Shown| shown.client.seek(ino, offset, data);
        self.wait(request, reply, ask, |_, found, reply| match found {
            Ok(found) => reply.position(found),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn open(&self, request: &Request, node: NodeId, how: Opening, reply: Reply<Opened>) {
        self.open_file(request, node, how, reply);
    }

    fn flush(&self, request: &Request, node: NodeId, handle: Handle, reply: Reply<Done>) {
        self.close_descriptor(request, node, handle, reply);
    }

    fn release(&self, node: NodeId, handle: Handle) {
        self.close_file(node, handle);
    }

    fn opendir(&self, _: &Request, _: NodeId, reply: Reply<Opened>) {
        match self.shown.sharing {
            // By itself, and what it has listed it need not ask again.
            Sharing::ReadOnly | Sharing::Alone => reply.unsupported(),
            Sharing::Shared => reply.opened(Handle(0), OpenCache::empty()),
        }
    }

    fn setattr(&self, ask: &Request, node: NodeId, what: &Changes, reply: Reply<Attributes>) {
        self.set_attributes(ask, node, what, reply);
    }

    fn mknod(&self, ask: &Request, dir: NodeId, name: &[u8], new: &NewNode, r: Reply<Lookup>) {
        self.make(ask, dir, name, new, r);
    }

    fn mkdir(&self, ask: &Request, dir: NodeId, name: &[u8], new: &NewNode, r: Reply<Lookup>) {
        let directory = FileType::Directory.as_raw_mode();
        self.make(ask, dir, name, &NewNode { mode: new.mode & 0o7777 | directory, ..*new }, r);
    }

    fn symlink(&self, ask: &Request, dir: NodeId, name: &[u8], to: &[u8], r: Reply<Lookup>) {
        let (dir, by, name, to) = (ino(dir), caller(ask), name.to_vec(), to.to_vec());
        let ask_owner = move |shown: &Shown| shown.client.symlink(dir, &name, &to, by);
        self.wait(ask, r, ask_owner, Shown::answer_lookup);
    }

    fn link(&self, ask: &Request, node: NodeId, dir: NodeId, name: &[u8], r: Reply<Lookup>) {
        let (ino, dir, by, name) = (ino(node), ino(dir), caller(ask), name.to_vec());
        let ask_owner = move |shown: &Shown| shown.client.link(ino, dir, &name, by);
        self.wait(ask, r, ask_owner, Shown::answer_lookup);
    }

    fn unlink(&self, request: &Request, parent: NodeId, name: &[u8], reply: Reply<Done>) {
        let (dir, by, name) = (ino(parent), caller(request), name.to_vec());
        let ask = move |shown: &Shown| {
            shown.keep(dir, &name)?;
            shown.client.unlink(dir, &name, by)
        };
        self.wait(request, reply, ask, done);
    }

    fn rmdir(&self, request: &Request, parent: NodeId, name: &[u8], reply: Reply<Done>) {
        let (dir, by, name) = (ino(parent), caller(request), name.to_vec());
        let ask = move |shown: &Shown| {
            shown.keep(dir, &name)?;
            shown.client.rmdir(dir, &name, by)
        };
        self.wait(request, reply, ask, done);
    }

    fn rename(
        &self,
        request: &Request,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
        reply: Reply<Done>,
    ) {
        let (from, name) = (ino(from.0), from.1.to_vec());
        let (to, new_name) = (ino(to.0), to.1.to_vec());
        let by = caller(request);
        let ask = move |shown: &Shown| {
            shown.keep(to, &new_name)?;
            shown.client.rename((from, &name), (to, &new_name), flags.bits(), by)
        };
        self.wait(request, reply, ask, done);
    }

    fn create(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new: &NewNode,
        how: Opening,
        reply: Reply<Created>,
    ) {
        self.create_file(request, (parent, name), new, how, reply);
    }

    fn tmpfile(&self, ask: &Request, dir: NodeId, new: &NewNode, _: Opening, r: Reply<Created>) {
        self.create_nameless(ask, dir, new, r);
    }

    fn trim(&self, request: &Request, range: &TrimRange, reply: Reply<Trimmed>) {
        self.trim_range(request, range, reply);
    }

    fn write(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        range: &WriteRange,
        reply: Reply<Written>,
    ) {
        self.write_file(request, node, range, reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        what: &Allocation,
        reply: Reply<Done>,
    ) {
        let (ino, by, what) = (ino(node), caller(request), *what);
        let ask =
            move |shown: &Shown| shown.client.allocate(ino, what.mode, what.offset, what.len, by);
        self.wait(request, reply, ask, done);
    }

    fn setxattr(
        &self,
        request: &Request,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        how: (XattrFlags, bool),
        reply: Reply<Done>,
    ) {
        self.set_attribute(request, node, (name, value), how, reply);
    }

    fn removexattr(&self, request: &Request, node: NodeId, name: &[u8], reply: Reply<Done>) {
        if let Err(errno) = attribute_name(name) {
            return reply.error(errno);
        }
        let (ino, by, name) = (ino(node), caller(request), name.to_vec());
        let ask = move |shown: &Shown| shown.client.remove_xattr(ino, &name, by);
        self.wait(request, reply, ask, done);
    }

    fn set_flags(&self, request: &Request, node: NodeId, new: &NewFlags, r: Reply<Controlled>) {
        let (ino, by) = (ino(node), caller(request));
        let (flags, known, project) = (new.flags, new.known, new.project);
        let change = Change::SetFlags { flags, known, project };
        let waits = self.waits.get().cloned();
        let ask = move |shown: &Shown| {
            shown.client.change(ino, change, by)?;
            waits.iter().for_each(|waits| waits.attributes_changed(node));
            Ok(())
        };
        self.wait(request, r, ask, |_, result: Result<()>, reply| match result {
            Ok(()) => reply.done(),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn fsync(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        data_only: bool,
        reply: Reply<Done>,
    ) {
        if !self.shown.is_writable() {
            return reply.unsupported();
        }
        let ino = ino(node);
        let ask = move |shown: &Shown| shown.known.sync(&shown.client, ino, data_only);
        self.wait(request, reply, ask, done);
    }

    fn interrupt(&self, unique: u64) {
        if let Some(waits) = self.waits.get() {
            waits.interrupt(unique);
        }
    }
}

fn value(_: &Shown, found: Result<Vec<u8>>, reply: Reply<Value>) {
    match found {
        Ok(value) => reply.bytes(&value),
        Err(error) => reply.error(errno(&error)),
    }
}
