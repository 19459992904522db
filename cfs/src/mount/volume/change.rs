//! What changes a volume through a mount.

use std::sync::atomic::Ordering;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::known::Work;
use super::shown::{attribute_name, errno, ino};
use super::{Sharing, Shown, VolumeFs};
use crate::cache::InodeRecord;
use crate::change::{self, Caller, NewInode, SetAttr, WriteOptions};
use crate::disk::inode::{InodeFlags, Kind};
use crate::mount::{
    Attributes, Changes, Created, Done, Handle, Lookup, NewNode, NodeId, OpenCache, Opened,
    Opening, Reply, Request, SetTime, TrimRange, Trimmed, WriteRange, Written, XattrFlags,
};
use crate::{Error, Result};

/// The handle of a file that was opened for writing.
pub(super) const WRITES: Handle = Handle(1);
const READS: Handle = Handle(0);

const SET_GROUP_ID: u16 = 0o2000;

impl VolumeFs {
    pub(super) fn open_file(
        &self,
        request: &Request,
        node: NodeId,
        how: Opening,
        reply: Reply<Opened>,
    ) {
        if !self.shown.is_writable() {
            // The kernel opens files by itself from now on.
            return reply.unsupported();
        }
        let ino = ino(node);
        let by = caller(request);
        if let Some(record) = self.shown.client.cached_record(ino)
            && !how.flags.contains(OFlags::TRUNC)
        {
            let opened =
                may_open(&record, how).map(|handle| (handle, self.shown.reads(&record, how)));
            return answer_open(&self.shown, opened, reply);
        }
        let ask = move |shown: &Shown| {
            let record = shown.client.record(ino)?;
            let handle = may_open(&record, how)?;
            if how.flags.contains(OFlags::TRUNC) {
                shown.known.cut(ino);
                let kill_privileges = how.kill_privileges;
                let empty = SetAttr { size: Some(0), kill_privileges, ..SetAttr::default() };
                shown.client.set_attr(ino, empty, by)?;
                return Ok((handle, false));
            }
            Ok((handle, shown.reads(&record, how)))
        };
        self.wait(request, reply, ask, answer_open);
    }

    pub(super) fn set_attributes(
        &self,
        request: &Request,
        node: NodeId,
        changes: &Changes,
        reply: Reply<Attributes>,
    ) {
        let (ino, by, mut attr) = (ino(node), caller(request), set_attr(changes));
        let ask = move |shown: &Shown| {
            // Nothing to set is what a change of owner to no other comes to: privileges go.
            if attr == SetAttr::default() {
                let directory = shown.client.record(ino)?.attr.kind == Kind::Directory;
                attr.kill_privileges = !directory;
            }
            if attr.size == Some(0) {
                shown.known.cut(ino);
            }
            shown.client.set_attr(ino, attr, by)
        };
        self.wait(request, reply, ask, Shown::answer_attributes);
    }

    pub(super) fn make(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new: &NewNode,
        reply: Reply<Lookup>,
    ) {
        let (dir, by, name, inode) = (ino(parent), caller(request), name.to_vec(), new_inode(new));
        let ask = move |shown: &Shown| shown.client.make(dir, &name, inode, by);
        self.wait(request, reply, ask, Shown::answer_lookup);
    }

    pub(super) fn create_file(
        &self,
        request: &Request,
        (parent, name): (NodeId, &[u8]),
        new: &NewNode,
        how: Opening,
        reply: Reply<Created>,
    ) {
        let (dir, by, name) = (ino(parent), caller(request), name.to_vec());
        let inode = NewInode {
            mode: new_inode(new).mode & 0o7777 | FileType::RegularFile.as_raw_mode() as u16,
            ..new_inode(new)
        };
        let ask = move |shown: &Shown| match shown.client.make(dir, &name, inode, by) {
            // Somebody else was quicker. Looked up once more it is opened as what it is, with its
            // permissions checked, which the kernel does not do for what it takes for new.
            Err(error) if is_exists(&error) && !how.flags.contains(OFlags::EXCL) => {
                Err(Error::Stale("a name that was free".into()))
            }
            made => made,
        };
        self.wait(request, reply, ask, |shown, made: Result<InodeRecord>, reply| {
            match made.and_then(|record| shown.entry(&record)) {
                Ok(entry) => reply.created(&entry, WRITES, shown.created_cache()),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    pub(super) fn create_nameless(
        &self,
        request: &Request,
        parent: NodeId,
        new: &NewNode,
        reply: Reply<Created>,
    ) {
        let (dir, by) = (ino(parent), caller(request));
        let inode = NewInode {
            mode: new_inode(new).mode & 0o7777 | FileType::RegularFile.as_raw_mode() as u16,
            ..new_inode(new)
        };
        let ask = move |shown: &Shown| shown.client.make_nameless(dir, inode, by);
        self.wait(request, reply, ask, |shown, made: Result<InodeRecord>, reply| match made {
            Ok(record) => {
                shown.known.adopt(record.attr.ino);
                reply.created(&shown.plain_entry(&record), WRITES, shown.created_cache());
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    /// close(2) waits for the answer, as it does for no RELEASE: what replaces old contents is
    /// written when it returns.
    pub(super) fn close_descriptor(
        &self,
        request: &Request,
        node: NodeId,
        handle: Handle,
        reply: Reply<Done>,
    ) {
        if !self.shown.is_writable() {
            return reply.unsupported();
        }
        let ino = ino(node);
        if handle != WRITES || !self.shown.known.is_cut(ino) {
            return reply.done();
        }
        // It may be one of several: a shell closes one before its program writes to the other.
        self.wait(request, reply, move |shown| shown.client.close_one(ino, false), done);
    }

    /// The last descriptor was closed, and the last mapping has gone.
    pub(super) fn close_file(&self, node: NodeId, handle: Handle) {
        let ino = ino(node);
        if handle != WRITES {
            return;
        }
        let cut = self.shown.known.take_cut(ino);
        match Work::Close(ino) {
            // The owner is here, and has nothing to write.
            work if self.shown.sharing == Sharing::Alone && !cut => work.run(&self.shown.client),
            work => self.later(work),
        }
    }

    pub(super) fn trim_range(&self, request: &Request, range: &TrimRange, reply: Reply<Trimmed>) {
        if !caller(request).privileged {
            return reply.error(Errno::PERM);
        }
        let range = *range;
        let ask = move |shown: &Shown| shown.client.trim(range.start, range.len, range.min_len);
        self.wait(request, reply, ask, move |_, trimmed, reply| match trimmed {
            Ok(len) => reply.trimmed(&range, len),
            Err(error) => reply.error(errno(&error)),
        });
    }

    pub(super) fn write_file(
        &self,
        request: &Request,
        node: NodeId,
        range: &WriteRange,
        reply: Reply<Written>,
    ) {
        let (ino, offset) = (ino(node), range.offset);
        let options = WriteOptions {
            append: range.append,
            sync: range.sync == Some(false),
            data_sync: range.sync == Some(true),
            kill_privileges: range.kill_privileges,
            privileged: caller(request).privileged,
        };
        let shown = std::sync::Arc::clone(&self.shown);
        let write = move |reply: Reply<Written>| match shown.client.write(
            ino,
            offset,
            reply.data(),
            options,
        ) {
            Ok(written) => reply.written(written.len as u32),
            Err(error) => reply.error(errno(&error)),
        };
        match self.waits.get() {
            // The data are with the reply: whoever is killed waits for the write, as on a disk.
            Some(waits) => waits.run(request, reply, move |held| {
                if let Some(reply) = held.take() {
                    write(reply);
                }
            }),
            None => write(reply),
        }
    }

    pub(super) fn set_attribute(
        &self,
        request: &Request,
        node: NodeId,
        (name, value): (&[u8], &[u8]),
        (flags, kill_sgid): (XattrFlags, bool),
        reply: Reply<Done>,
    ) {
        if let Err(errno) = attribute_name(name) {
            return reply.error(errno);
        }
        let (ino, by) = (ino(node), caller(request));
        let (name, value) = (name.to_vec(), value.to_vec());
        let ask = move |shown: &Shown| {
            let client = &shown.client;
            client.set_xattr(ino, &name, &value, flags.bits(), by)?;
            if kill_sgid {
                let mode = client.record(ino)?.attr.mode;
                if mode & SET_GROUP_ID != 0 {
                    let mode = Some(mode & 0o7777 & !SET_GROUP_ID);
                    client.set_attr(ino, SetAttr { mode, ..SetAttr::default() }, by)?;
                }
            }
            Ok(())
        };
        self.wait(request, reply, ask, done);
    }
}

impl Shown {
    /// Whether what is read of a file that is opened so is to be asked for.
    fn reads(&self, record: &InodeRecord, how: Opening) -> bool {
        let writes = how.flags.intersection(OFlags::ACCMODE) == OFlags::WRONLY;
        !writes && !how.flags.contains(OFlags::NOATIME) && self.reads_again(record)
    }

    /// What the kernel keeps of a file from one opening to the next.
    fn open_cache(&self) -> OpenCache {
        match self.sharing {
            Sharing::Shared if self.direct.load(Ordering::Relaxed) => OpenCache::DIRECT_IO,
            Sharing::Shared => OpenCache::empty(),
            Sharing::ReadOnly | Sharing::Alone => OpenCache::KEEP_CACHE,
        }
    }

    /// The same of one that is new: it has no old contents that could be replaced, so nobody waits
    /// when it is closed.
    fn created_cache(&self) -> OpenCache {
        self.open_cache() | OpenCache::NO_FLUSH
    }
}

/// What a file allows that permissions do not tell.
fn may_open(record: &InodeRecord, how: Opening) -> Result<Handle> {
    let flags = record.attr.flags;
    let writes = how.flags.intersection(OFlags::ACCMODE) != OFlags::RDONLY;
    let truncates = how.flags.contains(OFlags::TRUNC);
    let appends = how.flags.contains(OFlags::APPEND);
    if flags.contains(InodeFlags::IMMUTABLE) && (writes || truncates) {
        return Err(Error::Owner(Errno::PERM.raw_os_error()));
    }
    if flags.contains(InodeFlags::APPEND) && (truncates || writes && !appends) {
        return Err(Error::Owner(Errno::PERM.raw_os_error()));
    }
    Ok(if writes { WRITES } else { READS })
}

fn answer_open(shown: &Shown, opened: Result<(Handle, bool)>, reply: Reply<Opened>) {
    match opened {
        Ok((handle, reads)) => {
            let mut cache = if reads { OpenCache::empty() } else { shown.open_cache() };
            cache.set(OpenCache::NO_FLUSH, handle != WRITES);
            reply.opened(handle, cache);
        }
        Err(error) => reply.error(errno(&error)),
    }
}

/// Answers with success or the error.
pub(super) fn done(_: &Shown, result: Result<()>, reply: Reply<Done>) {
    match result {
        Ok(()) => reply.done(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn is_exists(error: &Error) -> bool {
    error.errno() == Errno::EXIST.raw_os_error()
}

/// In whose name a request is done. The kernel has checked permissions.
pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid, gid: request.gid, privileged: request.uid == 0 }
}

fn new_inode(new: &NewNode) -> NewInode {
    NewInode { mode: new.mode as u16, umask: (new.umask & 0o777) as u16, device: new.rdev }
}

fn set_attr(changes: &Changes) -> SetAttr {
    let time = |time: SetTime| match time {
        SetTime::Now => change::SetTime::Now,
        SetTime::At(at) => change::SetTime::At(at.secs, at.nanos),
    };
    SetAttr {
        mode: changes.mode.map(|mode| (mode & 0o7777) as u16),
        uid: changes.uid,
        gid: changes.gid,
        size: changes.size,
        atime: changes.atime.map(time),
        mtime: changes.mtime.map(time),
        ctime: changes.ctime.map(|at| change::SetTime::At(at.secs, at.nanos)),
        kill_privileges: changes.kill_privileges,
    }
}
