//! What a filesystem tells of its objects.

use std::time::Duration;

use rustix::fs::FileType;

use super::NodeId;

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
/// [`Filesystem::forget`](super::Filesystem::forget) takes back.
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
    /// The time of being read stays (O_NOATIME).
    pub no_atime: bool,
}
