//! The FUSE kernel ABI, versions 7.31 to 7.45 (`include/uapi/linux/fuse.h`): bytes as the kernel
//! lays them out, in the machine's own byte order. Nothing here is trusted before it is parsed by
//! [`super::dispatch`].

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version of every kernel since 2.6.14.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version whose structures are written here.
pub(super) const MINOR: u32 = 45;
/// The oldest kernel that is served (Linux 5.4): all structures of INIT have their present size.
pub(super) const MINOR_MIN: u32 = 31;

/// The kernel refuses reads with a smaller buffer.
pub(super) const MIN_READ_BUFFER: usize = 8192;
/// What a request to write needs besides its data.
pub(super) const WRITE_OVERHEAD: usize = size_of::<InHeader>() + 40;

/// Request codes.
pub(super) mod op {
    macro_rules! codes {
        ($($name:ident = $value:literal),* $(,)?) => {
            $(pub(in super::super) const $name: u32 = $value;)*
        };
    }
    codes! {
        LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8,
        MKDIR = 9, UNLINK = 10, RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15,
        WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20, SETXATTR = 21, GETXATTR = 22,
        LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27, READDIR = 28,
        RELEASEDIR = 29, FSYNCDIR = 30, ACCESS = 34, CREATE = 35, INTERRUPT = 36, DESTROY = 38,
        IOCTL = 39, NOTIFY_REPLY = 41, BATCH_FORGET = 42, FALLOCATE = 43, READDIRPLUS = 44,
        RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47, TMPFILE = 51, STATX = 52,
        COPY_FILE_RANGE_64 = 53,
    }
}

/// Codes of unsolicited messages to the kernel, sent as the `error` of a header with unique 0.
pub(super) mod notify {
    pub(in super::super) const INVAL_INODE: i32 = 2;
    pub(in super::super) const INVAL_ENTRY: i32 = 3;
    pub(in super::super) const INC_EPOCH: i32 = 8;
}

/// Commands of ioctl(2), which the kernel passes on as programs give them (`linux/fs.h`).
pub(super) mod ioctl {
    /// `FS_IOC_GETFLAGS`, `_IOR('f', 1, long)`; the answer is 32 bits all the same.
    pub(in super::super) const GETFLAGS: u32 = 0x8008_6601;
    /// `FS_IOC_GETVERSION`, `_IOR('v', 1, long)`; 32 bits too.
    pub(in super::super) const GETVERSION: u32 = 0x8008_7601;
    /// ext4's own name for it, `_IOR('f', 3, long)`.
    pub(in super::super) const EXT4_GETVERSION: u32 = 0x8008_6603;
    /// `FS_IOC_FSGETXATTR`, `_IOR('X', 31, struct fsxattr)`.
    pub(in super::super) const FSGETXATTR: u32 = 0x801c_581f;
    /// `FS_IOC_SETFLAGS`, `_IOW('f', 2, long)`; 32 bits are sent.
    pub(in super::super) const SETFLAGS: u32 = 0x4008_6602;
    /// `FS_IOC_FSSETXATTR`, `_IOW('X', 32, struct fsxattr)`.
    pub(in super::super) const FSSETXATTR: u32 = 0x401c_5820;
    /// `FITRIM`, `_IOWR('X', 121, struct fstrim_range)`.
    pub(in super::super) const FITRIM: u32 = 0xc018_5879;
}

bitflags::bitflags! {
    /// What INIT negotiates: `flags` is the low half, `flags2` the high half.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct InitFlags: u64 {
        const ASYNC_READ = 1 << 0;
        const EXPORT_SUPPORT = 1 << 4;
        const BIG_WRITES = 1 << 5;
        const DONT_MASK = 1 << 6;
        const AUTO_INVAL_DATA = 1 << 12;
        const DO_READDIRPLUS = 1 << 13;
        const READDIRPLUS_AUTO = 1 << 14;
        const NO_OPEN_SUPPORT = 1 << 17;
        const PARALLEL_DIROPS = 1 << 18;
        const POSIX_ACL = 1 << 20;
        const ABORT_ERROR = 1 << 21;
        const MAX_PAGES = 1 << 22;
        const CACHE_SYMLINKS = 1 << 23;
        const NO_OPENDIR_SUPPORT = 1 << 24;
        const EXPLICIT_INVAL_DATA = 1 << 25;
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        const SETXATTR_EXT = 1 << 29;
        const INIT_EXT = 1 << 30;
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        const NO_EXPORT_SUPPORT = 1 << 38;
        const OVER_IO_URING = 1 << 41;
    }
}

macro_rules! abi {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $ty:ty),* $(,)? })*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub(super) struct $name { $(pub(super) $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )* };
}

abi! {
    /// Begins every request. `total_extlen` counts extensions at its end, in words of 8 bytes.
    InHeader, 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// Begins every reply: `error` is 0 or a negative error number.
    OutHeader, 16 { len: u32, error: i32, unique: u64 }

    InitIn, 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    InitOut, 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, max_stack_depth: u32, request_timeout: u16,
        unused: [u16; 11],
    }

    Attr, 88 {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    EntryOut, 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut, 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }

    SxTime, 16 { sec: i64, nsec: u32, reserved: i32 }
    Statx, 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16,
        spare0: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: SxTime,
        btime: SxTime, ctime: SxTime, mtime: SxTime, rdev_major: u32, rdev_minor: u32,
        dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut, 288 {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }

    ForgetIn, 8 { nlookup: u64 }
    ForgetOne, 16 { nodeid: u64, nlookup: u64 }
    BatchForgetIn, 8 { count: u32, dummy: u32 }
    OpenIn, 8 { flags: u32, open_flags: u32 }
    OpenOut, 16 { fh: u64, open_flags: u32, backing_id: i32 }
    ReleaseIn, 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    ReadIn, 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    FsyncIn, 16 { fh: u64, fsync_flags: u32, padding: u32 }
    FlushIn, 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    GetxattrIn, 8 { size: u32, padding: u32 }
    GetxattrOut, 8 { size: u32, padding: u32 }
    AccessIn, 8 { mask: u32, padding: u32 }
    InterruptIn, 8 { unique: u64 }
    IoctlIn, 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    IoctlOut, 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// `struct fsxattr` of `linux/fs.h`.
    FsXattr, 28 {
        xflags: u32, extsize: u32, nextents: u32, projid: u32, cowextsize: u32, pad: [u32; 2],
    }
    LseekIn, 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut, 8 { offset: u64 }
    Kstatfs, 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// Begins a directory record; the name follows, padded to 8 bytes.
    Dirent, 24 { ino: u64, off: u64, namelen: u32, kind: u32 }

    MknodIn, 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn, 8 { mode: u32, umask: u32 }
    RenameIn, 8 { newdir: u64 }
    Rename2In, 16 { newdir: u64, flags: u32, padding: u32 }
    LinkIn, 8 { oldnodeid: u64 }
    CreateIn, 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    SetattrIn, 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64,
        ctime: i64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32,
        uid: u32, gid: u32, unused5: u32,
    }
    WriteIn, 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    WriteOut, 8 { size: u32, padding: u32 }
    FallocateIn, 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    CopyFileRangeIn, 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    CopyFileRangeOut, 8 { bytes_copied: u64 }
    /// With `SETXATTR_EXT`; before it, the first half alone.
    SetxattrIn, 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// `struct fstrim_range` of `linux/fs.h`.
    TrimRange, 24 { start: u64, len: u64, minlen: u64 }

    NotifyInvalInode, 24 { ino: u64, off: i64, len: i64 }
    NotifyInvalEntry, 16 { parent: u64, namelen: u32, flags: u32 }
}

/// Size of one directory record with a name of `len` bytes, without padding.
pub(super) const fn dirent_len(len: usize) -> usize {
    (size_of::<Dirent>() + len).next_multiple_of(8)
}

/// `FATTR_*`: which fields of [`SetattrIn`] are set.
pub(super) mod fattr {
    pub(in super::super) const MODE: u32 = 1 << 0;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
    pub(in super::super) const CTIME: u32 = 1 << 10;
    pub(in super::super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_WRITE_CACHE`: pages written back, not a call of write(2).
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_SETXATTR_ACL_KILL_SGID`.
pub(super) const SETXATTR_KILL_SGID: u32 = 1 << 0;
/// `O_DSYNC` of open(2); the constant of rustix is that of O_SYNC.
pub(super) const O_DSYNC: u32 = 0o10000;
/// `FUSE_FSYNC_FDATASYNC`.
pub(super) const FSYNC_DATA: u32 = 1 << 0;
