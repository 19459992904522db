//! What a filesystem does for a mount: one trait, whatever the transport.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::reply::{
    Attributes, Data, Directory, DirectoryPlus, Done, FlagsReply, Lookup, Opened, Position, Reply,
    Statistics, StatxAttributes, Value,
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

/// A point in time: seconds since 1970, before it negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

/// What stat shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// The inode number that programs see.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// File type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Major and minor of a device node.
    pub rdev: (u32, u32),
    /// Preferred size of I/O in bytes.
    pub blksize: u32,
}

/// What statx shows beyond stat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statx {
    /// The part in common.
    pub attr: Attr,
    /// When it was created, where known.
    pub btime: Option<Time>,
    /// `STATX_ATTR_*` that are set.
    pub attributes: u64,
    /// `STATX_ATTR_*` that this filesystem knows.
    pub attributes_mask: u64,
}

/// What lsattr shows of a file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileFlags {
    /// `FS_*_FL` that are set.
    pub flags: u32,
    /// Tells two lives of the same inode number apart.
    pub generation: u32,
    /// Whose quota it is charged to.
    pub project: u32,
}

/// What a name leads to. Each one that is answered counts as one lookup, which
/// [`Filesystem::forget`] takes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The inode.
    pub node: NodeId,
    /// Tells two lives of the same node apart (for NFS handles).
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may believe the name.
    pub entry_ttl: Duration,
    /// How long the kernel may believe the attributes.
    pub attr_ttl: Duration,
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The inode number that programs see.
    pub ino: u64,
    /// Where the next `readdir` goes on after this entry: never 0, below 2^63.
    pub next: u64,
    /// Its type, or `Unknown`.
    pub kind: FileType,
    /// Any bytes but `/` and 0.
    pub name: &'a [u8],
}

/// What statfs shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Blocks in all, of `frsize` bytes.
    pub blocks: u64,
    /// Free ones.
    pub bfree: u64,
    /// Those of them that ordinary users may have.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free ones.
    pub ffree: u64,
    /// Preferred size of I/O.
    pub bsize: u32,
    /// Unit of the block counts.
    pub frsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whence {
    /// The first byte at or after the offset that is in no hole.
    Data,
    /// The first byte at or after the offset that is in a hole; the end of the file is one.
    Hole,
}

/// How much of a file.
#[derive(Clone, Copy, Debug)]
pub struct ReadRange {
    /// First byte.
    pub offset: u64,
    /// At most so many bytes; fewer only at the end of the file. Bounded by the mount's largest
    /// read.
    pub size: u32,
}

/// What the filesystem is able to do, told to the kernel when the mount begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// [`Filesystem::readdirplus`] is there.
    pub readdirplus: bool,
    /// `system.posix_acl_access` and `_default` are served as extended attributes, in the format
    /// of `linux/posix_acl_xattr.h`; the kernel then checks them.
    pub posix_acl: bool,
    /// `lookup` understands `.` and `..` of any node ever handed out, so that file handles
    /// (`open_by_handle_at`, NFS) survive a dropped cache. Otherwise there are none.
    pub export: bool,
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
}

/// A filesystem behind a mount: read-only as yet. Requests that would change something are
/// answered by the transport (EROFS; ENAMETOOLONG for names over 255 bytes).
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

    /// Opens a file for reading. After ENOSYS the kernel opens files by itself, without a message,
    /// and keeps their pages in its cache until told to drop them.
    fn open(&self, _request: &Request, _node: NodeId, _flags: OFlags, reply: Reply<Opened>) {
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

    /// A descriptor is closed; after ENOSYS it is not told any more.
    fn flush(&self, _request: &Request, _node: NodeId, _handle: Handle, reply: Reply<Done>) {
        reply.unsupported();
    }

    /// Makes a file or directory durable; after ENOSYS the kernel takes it for done.
    fn fsync(&self, _request: &Request, _node: NodeId, _handle: Handle, reply: Reply<Done>) {
        reply.unsupported();
    }

    /// The caller of a request got a signal: answer it soon (EINTR) if it may last. It may have
    /// been answered already.
    fn interrupt(&self, _unique: u64) {}
}
