//! Operations on a filesystem, and what they are answered with.

use std::fmt;

/// Files that a sequence has open at a time.
pub const SLOTS: usize = 4;
/// Flags of inodes that sequences set: sync, immutable, append, nodump, noatime, as `FS_*_FL`.
pub const FLAGS: u32 = SYNC | IMMUTABLE | APPEND | NODUMP | NOATIME;
/// `FS_SYNC_FL`.
pub const SYNC: u32 = 0x8;
/// `FS_IMMUTABLE_FL`.
pub const IMMUTABLE: u32 = 0x10;
/// `FS_APPEND_FL`.
pub const APPEND: u32 = 0x20;
/// `FS_NODUMP_FL`.
pub const NODUMP: u32 = 0x40;
/// `FS_NOATIME_FL`.
pub const NOATIME: u32 = 0x80;

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewTime {
    /// `UTIME_NOW`.
    Now,
    /// `UTIME_OMIT`.
    Omit,
    /// Seconds since 1970 and nanoseconds.
    At(i64, u32),
}

/// How a file is opened. Nothing is waited for, and only regular files stay open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct How {
    /// For reading and writing, else for reading.
    pub write: bool,
    /// `O_CREAT`, with this mode.
    pub create: Option<u16>,
    /// `O_EXCL`.
    pub exclusive: bool,
    /// `O_TRUNC`, of files opened for writing.
    pub truncate: bool,
    /// `O_APPEND`.
    pub append: bool,
    /// `O_NOFOLLOW`.
    pub nofollow: bool,
    /// `O_DIRECT`.
    pub direct: bool,
}

/// What fallocate(2) does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Allocates and grows.
    Grow,
    /// Allocates.
    KeepSize,
    /// Makes a hole.
    Punch,
    /// Makes zeros and grows.
    Zero,
    /// Makes zeros.
    ZeroKeepSize,
    /// Takes a range out.
    Collapse,
    /// Puts a hole in between.
    Insert,
}

/// An extended attribute, or an access control list as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acl {
    /// `system.posix_acl_access`.
    Access,
    /// `system.posix_acl_default`.
    Default,
}

/// The name of an access control list as an extended attribute.
pub fn acl_name(acl: Acl) -> &'static str {
    match acl {
        Acl::Access => "system.posix_acl_access",
        Acl::Default => "system.posix_acl_default",
    }
}

/// One system call with its arguments. Paths are below the root of the tree and have no `.` or
/// `..`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "fields are named as the manual's arguments")]
pub enum Op {
    /// open(2) into a slot, which is closed first.
    Open { slot: usize, path: String, how: How },
    /// close(2).
    Close { slot: usize },
    /// mknod(2): the type as in modes.
    Mknod { path: String, mode: u32, device: (u32, u32) },
    /// mkdir(2).
    Mkdir { path: String, mode: u16 },
    /// rmdir(2).
    Rmdir { path: String },
    /// link(2): links are not followed.
    Link { from: String, to: String },
    /// symlink(2).
    Symlink { target: String, path: String },
    /// readlink(2).
    Readlink { path: String },
    /// unlink(2).
    Unlink { path: String },
    /// renameat2(2).
    Rename { from: String, to: String, noreplace: bool, exchange: bool },
    /// open(2) for writing, and ftruncate(2).
    Truncate { path: String, size: u64 },
    /// ftruncate(2).
    TruncateOpen { slot: usize, size: u64 },
    /// pwrite(2) of bytes that follow from the offset and `seed`.
    Write { slot: usize, offset: u64, len: u64, seed: u8 },
    /// pread(2).
    Read { slot: usize, offset: u64, len: u64 },
    /// fallocate(2).
    Allocate { slot: usize, what: Allocate, offset: u64, len: u64 },
    /// copy_file_range(2): from slot and offset, to slot and offset.
    Copy { from: (usize, u64), to: (usize, u64), len: u64 },
    /// lseek(2) to data or a hole.
    Seek { slot: usize, offset: u64, data: bool },
    /// fsync(2).
    Fsync { slot: usize },
    /// fsync(2) of a file or directory that is opened for it.
    FsyncPath { path: String },
    /// chmod(2), following links.
    Chmod { path: String, mode: u16 },
    /// lchown(2).
    Chown { path: String, uid: Option<u32>, gid: Option<u32> },
    /// utimensat(2) of a link itself.
    Utimens { path: String, atime: NewTime, mtime: NewTime },
    /// lsetxattr(2): flags of the call.
    SetXattr { path: String, name: String, len: usize, seed: u8, flags: u32 },
    /// lgetxattr(2).
    GetXattr { path: String, name: String },
    /// lremovexattr(2).
    RemoveXattr { path: String, name: String },
    /// llistxattr(2).
    ListXattr { path: String },
    /// lsetxattr(2) of list number `which` (see [`ACLS`]).
    SetAcl { path: String, acl: Acl, which: usize },
    /// The FS_IOC_SETFLAGS of an open file: those of [`FLAGS`] are these now.
    SetFlags { path: String, flags: u32 },
    /// The FS_IOC_GETFLAGS.
    GetFlags { path: String },
    /// lstat(2), and what changed since the last one of this path.
    Stat { path: String },
    /// fstat(2).
    StatOpen { slot: usize },
    /// getdents(2).
    List { path: String },
    /// syncfs(2).
    Sync,
    /// All files are closed, and the filesystem is mounted again.
    Remount,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name of 255 bytes says no more than its length does.
        let text = format!("{self:?}");
        let mut rest = text.as_str();
        while let Some(at) = rest.find(LONG) {
            let run = rest[at..].bytes().take_while(|byte| *byte == b'n').count();
            write!(f, "{}n*{run}", &rest[..at])?;
            rest = &rest[at + run..];
        }
        f.write_str(rest)
    }
}

const LONG: &str = "nnnnnnnn";

/// Extended attributes that sequences use as access control lists, in the format of
/// `linux/posix_acl_xattr.h`: entries of tag, permissions and id. The last two are not valid.
pub const ACLS: [&[(u16, u16, u32)]; 7] = [
    // As permissions have it.
    &[(1, 6, NO_ID), (4, 4, NO_ID), (32, 4, NO_ID)],
    &[(1, 7, NO_ID), (2, 7, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID)],
    &[(1, 6, NO_ID), (4, 6, NO_ID), (8, 4, 2000), (16, 6, NO_ID), (32, 4, NO_ID)],
    &[
        (1, 7, NO_ID),
        (2, 5, 1000),
        (2, 6, 1001),
        (4, 7, NO_ID),
        (8, 1, 3000),
        (16, 5, NO_ID),
        (32, 5, NO_ID),
    ],
    &[(1, 5, NO_ID), (2, 4, 70_000), (4, 0, NO_ID), (16, 4, NO_ID), (32, 7, NO_ID)],
    // A user without a mask; no owner.
    &[(1, 7, NO_ID), (2, 7, 1000), (4, 5, NO_ID), (32, 0, NO_ID)],
    &[(4, 5, NO_ID), (32, 0, NO_ID)],
];
const NO_ID: u32 = u32::MAX;

/// The bytes of an access control list as an extended attribute.
pub fn acl_bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// The bytes that a write puts at an offset.
pub fn pattern(seed: u8, offset: u64, len: usize) -> Vec<u8> {
    // Never zero, so that holes are told from data.
    let byte = |at: u64| (at % 251 + at / 4096 + u64::from(seed)) % 255 + 1;
    (offset..offset + len as u64).map(|at| byte(at) as u8).collect()
}

/// What stat shows, as far as it is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes of files and links.
    pub size: Option<u64>,
    /// Of device nodes.
    pub device: (u32, u32),
    /// Access and modification time where they were set: seconds and nanoseconds.
    pub times: [Shown; 2],
    /// Whether the times of modification and of change are others than when this path was looked
    /// at last; `None` where nobody can say.
    pub changed: [Option<bool>; 2],
}

/// A time in a [`Stat`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// This one.
    At(i64, u32),
    /// One of this run.
    Recent,
    /// Not compared.
    Any,
}

/// What an operation was answered with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Success, with nothing to tell.
    Done,
    /// An errno.
    Error(i32),
    /// A count, an offset, flags.
    Number(u64),
    /// Bytes: contents, a value, a target.
    Bytes(Vec<u8>),
    /// Names, sorted, with types as in modes.
    Names(Vec<(String, u32)>),
    /// What stat shows.
    Stat(Box<Stat>),
    /// The model cannot say.
    Any,
}

impl Outcome {
    /// Whether an answer is what the model expects.
    pub fn allows(&self, found: &Self) -> bool {
        match (self, found) {
            (Self::Any, _) => true,
            (Self::Stat(expected), Self::Stat(found)) => expected.allows(found),
            _ => self == found,
        }
    }
}

impl Stat {
    fn allows(&self, found: &Self) -> bool {
        let same = self.mode == found.mode
            && self.links == found.links
            && self.owner == found.owner
            && self.device == found.device;
        let times = self
            .times
            .iter()
            .zip(&found.times)
            .all(|(expected, found)| *expected == Shown::Any || expected == found);
        let changes =
            self.changed.iter().zip(&found.changed).all(|(expected, found)| {
                expected.is_none() || found.is_none() || expected == found
            });
        same && times && changes && (self.size.is_none() || self.size == found.size)
    }
}
