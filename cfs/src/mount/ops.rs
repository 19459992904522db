//! What a filesystem does for a mount: one trait, whatever the transport.

use std::sync::Arc;

use rustix::io::Errno;

mod change;
mod types;

pub use types::{Attr, DirEntry, Entry, FileFlags, ReadRange, StatFs, Statx, Time, Whence};

pub use change::{
    Allocation, Changes, CopyRange, NewFlags, NewNode, Opening, RenameFlags, SetTime, TrimRange,
    WriteRange, XattrFlags,
};

use super::reply::{
    Attributes, Controlled, Created, Data, Directory, DirectoryPlus, Done, FlagsReply, Lookup,
    Opened, Position, Reply, Statistics, StatxAttributes, Trimmed, Value, Written,
};
use super::waits::Waits;

/// An inode as the mount names it, chosen by the filesystem. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// What `open` or `opendir` returned; 0 where they were answered with ENOSYS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(pub u64);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Names this request in [`Filesystem::interrupt`].
    pub unique: u64,
    /// The caller's user, in the user namespace of the mount.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's thread, in the PID namespace of the mount; 0 for the kernel itself.
    pub pid: u32,
}

/// What the filesystem is able to do, told to the kernel when the mount begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// [`Filesystem::readdirplus`] is there.
    pub readdirplus: bool,
    /// `system.posix_acl_access` and `_default` are served as extended attributes, in the format
    /// of `linux/posix_acl_xattr.h`; the kernel then checks them.
    pub posix_acl: bool,
    /// `lookup` understands `.` and `..` of any node ever handed out, so that file handles
    /// (`open_by_handle_at`, NFS) survive a dropped cache. Otherwise there are none.
    pub export: bool,
    /// Files may be changed. Otherwise what would change something is answered with EROFS.
    pub writable: bool,
    /// Files change without the kernel's knowing: it drops a file's pages when it finds other
    /// attributes.
    pub shared: bool,
}

/// What was agreed with the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The kernel's minor version of the ABI (the major one is 7).
    pub kernel_minor: u32,
    /// Bytes of the largest read or directory listing.
    pub max_read: u32,
    /// Bytes that the kernel reads ahead.
    pub max_readahead: u32,
    /// Whether POSIX ACLs are checked by the kernel.
    pub posix_acl: bool,
    /// Whether a file that is read past the page cache ([`super::OpenCache::DIRECT_IO`]) can be
    /// mapped all the same (Linux 6.6).
    pub direct_mappings: bool,
}

/// A filesystem behind a mount. Names over 255 bytes are refused by the transport (ENAMETOOLONG),
/// and what would change something where [`Features::writable`] is not set (EROFS).
///
/// Methods are called from many threads at once. Each is given a [`Reply`], which may be answered
/// at once or moved to another thread: a method that blocks holds up its CPU's other requests, and
/// [`Waits`] is for those that may. A
/// reply that is dropped answers EIO. Names are bytes.
pub trait Filesystem: Send + Sync + 'static {
    /// Asked once, before [`Self::init`].
    fn features(&self) -> Features;

    /// The mount begins; what may wait is to be given to `waits`.
    fn init(&self, _agreed: &Agreed, _waits: &Arc<Waits>) {}

    /// The mount has ended; no other method runs any more, but replies may be outstanding.
    fn destroy(&self) {}

    /// Resolves one name.
    fn lookup(&self, request: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>);

    /// Takes back `count` lookups of a node.
    fn forget(&self, _node: NodeId, _count: u64) {}

    /// Attributes.
    fn getattr(&self, request: &Request, node: NodeId, reply: Reply<Attributes>);

    /// Attributes with birth time; the kernel does without after ENOSYS.
    fn statx(&self, _request: &Request, _node: NodeId, reply: Reply<StatxAttributes>) {
        reply.unsupported();
    }

    /// Where a symbolic link points.
    fn readlink(&self, request: &Request, node: NodeId, reply: Reply<Data>);

    /// Opens a file; O_TRUNC among the flags is to be obeyed. After ENOSYS the kernel opens files
    /// by itself, without a message, and keeps their pages in its cache until told to drop them.
    fn open(&self, _request: &Request, _node: NodeId, _how: Opening, reply: Reply<Opened>) {
        reply.unsupported();
    }

    /// The last descriptor of an `open` is closed.
    fn release(&self, _node: NodeId, _handle: Handle) {}

    /// Opens a directory; ENOSYS as for [`Self::open`], and the kernel caches its listing.
    fn opendir(&self, _request: &Request, _node: NodeId, reply: Reply<Opened>) {
        reply.unsupported();
    }

    /// The last descriptor of an `opendir` is closed.
    fn releasedir(&self, _node: NodeId, _handle: Handle) {}

    /// Reads a file: all of the range, or up to the end of the file.
    fn read(
        &self,
        request: &Request,
        node: NodeId,
        handle: Handle,
        range: ReadRange,
        reply: Reply<Data>,
    );

    /// Lists a directory from a position: 0 or some entry's `next`.
    fn readdir(
        &self,
        request: &Request,
        node: NodeId,
        handle: Handle,
        from: u64,
        reply: Reply<Directory>,
    );

    /// The same with each entry looked up; asked only with [`Features::readdirplus`].
    fn readdirplus(
        &self,
        _request: &Request,
        _node: NodeId,
        _handle: Handle,
        _from: u64,
        reply: Reply<DirectoryPlus>,
    ) {
        reply.unsupported();
    }

    /// The value of an extended attribute (ENODATA where there is none).
    fn getxattr(&self, _request: &Request, _node: NodeId, _name: &[u8], reply: Reply<Value>) {
        reply.unsupported();
    }

    /// The names of all extended attributes, each ended by a zero byte.
    fn listxattr(&self, _request: &Request, _node: NodeId, reply: Reply<Value>) {
        reply.unsupported();
    }

    /// Checks permissions; not asked where the kernel does (`default_permissions`).
    fn access(&self, _request: &Request, _node: NodeId, _mask: u32, reply: Reply<Done>) {
        reply.unsupported();
    }

    /// Space and inodes.
    fn statfs(&self, request: &Request, node: NodeId, reply: Reply<Statistics>);

    /// Flags, generation and project; not asked for special files.
    fn flags(&self, _request: &Request, _node: NodeId, reply: FlagsReply) {
        reply.error(Errno::NOTTY);
    }

    /// Finds data or a hole (ENXIO beyond the end); after ENOSYS files have none.
    fn lseek(
        &self,
        _request: &Request,
        _node: NodeId,
        _handle: Handle,
        _offset: u64,
        _whence: Whence,
        reply: Reply<Position>,
    ) {
        reply.unsupported();
    }

    /// A descriptor is closed, and close(2) waits for the answer; others may lead to the same open
    /// file. After ENOSYS it is not told any more.
    fn flush(&self, _request: &Request, _node: NodeId, _handle: Handle, reply: Reply<Done>) {
        reply.unsupported();
    }

    /// Makes a file or directory durable; with `data_only` what is not needed to read it may wait.
    /// After ENOSYS the kernel takes it for done.
    fn fsync(
        &self,
        _request: &Request,
        _node: NodeId,
        _handle: Handle,
        _data_only: bool,
        reply: Reply<Done>,
    ) {
        reply.unsupported();
    }

    /// Changes attributes.
    fn setattr(
        &self,
        _request: &Request,
        _node: NodeId,
        _changes: &Changes,
        reply: Reply<Attributes>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Makes a file of any type but a directory or a symbolic link. The answer counts as a lookup.
    fn mknod(
        &self,
        _request: &Request,
        _parent: NodeId,
        _name: &[u8],
        _new: &NewNode,
        reply: Reply<Lookup>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Makes a directory. The answer counts as a lookup.
    fn mkdir(
        &self,
        _request: &Request,
        _parent: NodeId,
        _name: &[u8],
        _new: &NewNode,
        reply: Reply<Lookup>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Makes a symbolic link. The answer counts as a lookup.
    fn symlink(
        &self,
        _request: &Request,
        _parent: NodeId,
        _name: &[u8],
        _target: &[u8],
        reply: Reply<Lookup>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Gives a file a further name. The answer counts as a lookup.
    fn link(
        &self,
        _request: &Request,
        _node: NodeId,
        _parent: NodeId,
        _name: &[u8],
        reply: Reply<Lookup>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Takes a name away.
    fn unlink(&self, _request: &Request, _parent: NodeId, _name: &[u8], reply: Reply<Done>) {
        reply.error(Errno::ROFS);
    }

    /// Removes an empty directory.
    fn rmdir(&self, _request: &Request, _parent: NodeId, _name: &[u8], reply: Reply<Done>) {
        reply.error(Errno::ROFS);
    }

    /// Renames: directory and name, before and after.
    fn rename(
        &self,
        _request: &Request,
        _from: (NodeId, &[u8]),
        _to: (NodeId, &[u8]),
        _flags: RenameFlags,
        reply: Reply<Done>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Makes a file, or finds the one there is (an error with O_EXCL), and opens it. The answer
    /// counts as a lookup. After ENOSYS the kernel uses `mknod` and `open`.
    fn create(
        &self,
        _request: &Request,
        _parent: NodeId,
        _name: &[u8],
        _new: &NewNode,
        _how: Opening,
        reply: Reply<Created>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Makes a file without a name and opens it. The answer counts as a lookup.
    fn tmpfile(
        &self,
        _request: &Request,
        _parent: NodeId,
        _new: &NewNode,
        _how: Opening,
        reply: Reply<Created>,
    ) {
        reply.error(Errno::OPNOTSUPP);
    }

    /// Writes [`Reply::data`] to a file.
    fn write(
        &self,
        _request: &Request,
        _node: NodeId,
        _handle: Handle,
        _range: &WriteRange,
        reply: Reply<Written>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Allocates, frees or zeroes a range of a file.
    fn fallocate(
        &self,
        _request: &Request,
        _node: NodeId,
        _handle: Handle,
        _what: &Allocation,
        reply: Reply<Done>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Copies between files of the volume. After EOPNOTSUPP the caller reads and writes.
    fn copy(
        &self,
        _request: &Request,
        _from: NodeId,
        _to: NodeId,
        _range: &CopyRange,
        reply: Reply<Written>,
    ) {
        reply.error(Errno::OPNOTSUPP);
    }

    /// Sets an extended attribute. With `kill_sgid` an access ACL takes set-group-ID away.
    fn setxattr(
        &self,
        _request: &Request,
        _node: NodeId,
        _name: &[u8],
        _value: &[u8],
        _how: (XattrFlags, bool),
        reply: Reply<Done>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Removes an extended attribute.
    fn removexattr(&self, _request: &Request, _node: NodeId, _name: &[u8], reply: Reply<Done>) {
        reply.error(Errno::ROFS);
    }

    /// Sets flags, and where asked for the project.
    fn set_flags(
        &self,
        _request: &Request,
        _node: NodeId,
        _new: &NewFlags,
        reply: Reply<Controlled>,
    ) {
        reply.error(Errno::ROFS);
    }

    /// Discards free space; answers how many bytes.
    fn trim(&self, _request: &Request, _range: &TrimRange, reply: Reply<Trimmed>) {
        reply.error(Errno::NOTTY);
    }

    /// The caller of a request got a signal: answer it soon (EINTR) if it may last. It may have
    /// been answered already.
    fn interrupt(&self, _unique: u64) {}
}
