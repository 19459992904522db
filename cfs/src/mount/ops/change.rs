//! What requests that change something carry.

use rustix::fs::OFlags;

use super::Time;

/// What is to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewNode {
    /// File type and permissions, to which the umask has not been applied.
    pub mode: u32,
    /// The caller's umask; where the directory has a default ACL, that takes its place.
    pub umask: u32,
    /// Major and minor of a device node.
    pub rdev: (u32, u32),
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Flags of open(2); permissions have been checked.
    pub flags: OFlags,
    /// With O_TRUNC: set-user-ID and set-group-ID are to go.
    pub kill_privileges: bool,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Time),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Permissions, with the file type as it is.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last changed contents.
    pub mtime: Option<SetTime>,
    /// Last changed at all; only a kernel that keeps times itself sets it.
    pub ctime: Option<Time>,
    /// Set-user-ID and set-group-ID are to go, as after a write by somebody without privileges.
    pub kill_privileges: bool,
}

/// Where and how a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteRange {
    /// First byte.
    pub offset: u64,
    /// Bytes; never more than came with the request.
    pub size: u32,
    /// Opened with O_APPEND: the end of the file counts, not the offset.
    pub append: bool,
    /// Opened with O_SYNC (`Some(false)`) or O_DSYNC (`Some(true)`): durable before the answer.
    pub sync: Option<bool>,
    /// Pages of a mapping that are written back, by whomever.
    pub write_back: bool,
    /// Set-user-ID and set-group-ID are to go.
    pub kill_privileges: bool,
}

bitflags::bitflags! {
    /// `RENAME_*` of renameat2(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RenameFlags: u32 {
        /// The new name must not exist.
        const NOREPLACE = 1;
        /// Both names exist and change places.
        const EXCHANGE = 2;
        /// A whiteout stays in the old place.
        const WHITEOUT = 4;
        const _ = !0;
    }

    /// `XATTR_*` of setxattr(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct XattrFlags: u32 {
        /// It must not exist.
        const CREATE = 1;
        /// It must exist.
        const REPLACE = 2;
        const _ = !0;
    }
}

/// What fallocate(2) is to do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// First byte.
    pub offset: u64,
    /// Bytes; at least one.
    pub len: u64,
    /// `FALLOC_FL_*`.
    pub mode: u32,
}

/// What is copied within the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRange {
    /// First byte of the source.
    pub from: u64,
    /// First byte of the destination.
    pub to: u64,
    /// Bytes.
    pub len: u64,
}

/// Flags to set, as chattr does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewFlags {
    /// `FS_*_FL`: all of them, not only what changes.
    pub flags: u32,
    /// Those of `flags` that the caller knows of; others stay as they are.
    pub known: u32,
    /// Whose quota it is to be charged to, where that was said.
    pub project: Option<u32>,
}

/// Which free space is to be discarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrimRange {
    /// First byte of the volume.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Shorter extents are left alone.
    pub min_len: u64,
}
