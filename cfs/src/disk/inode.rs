//! Inodes.

pub mod encode;

use bitflags::bitflags;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::checksum::crc32c;
use super::features::{Compat, Incompat, RoCompat};
use super::superblock::Superblock;
use super::time::Timestamp;
use crate::id::Ino;
use crate::limits::MIN_INODE_SIZE;
use crate::{Error, Result};

/// An inode as it lies on disk, as far as fields are known; small inodes end after 128 bytes, and
/// large ones say in `extra_isize` how many bytes of fields follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawInode {
    pub(crate) mode: U16,
    pub(crate) uid_lo: U16,
    pub(crate) size_lo: U32,
    pub(crate) atime: U32,
    pub(crate) ctime: U32,
    pub(crate) mtime: U32,
    pub(crate) dtime: U32,
    pub(crate) gid_lo: U16,
    pub(crate) links_count: U16,
    pub(crate) blocks_lo: U32,
    pub(crate) flags: U32,
    pub(crate) version_lo: U32,
    pub(crate) block: [u8; 60],
    pub(crate) generation: U32,
    pub(crate) file_acl_lo: U32,
    pub(crate) size_hi: U32,
    pub(crate) obso_faddr: U32,
    pub(crate) blocks_hi: U16,
    pub(crate) file_acl_hi: U16,
    pub(crate) uid_hi: U16,
    pub(crate) gid_hi: U16,
    pub(crate) checksum_lo: U16,
    pub(crate) reserved: U16,
    pub(crate) extra_isize: U16,
    pub(crate) checksum_hi: U16,
    pub(crate) ctime_extra: U32,
    pub(crate) mtime_extra: U32,
    pub(crate) atime_extra: U32,
    pub(crate) crtime: U32,
    pub(crate) crtime_extra: U32,
    pub(crate) version_hi: U32,
    pub(crate) projid: U32,
}

assert_layout!(RawInode, 160, {
    0x00 mode, 0x02 uid_lo, 0x04 size_lo, 0x08 atime, 0x0c ctime, 0x10 mtime, 0x14 dtime,
    0x18 gid_lo, 0x1a links_count, 0x1c blocks_lo, 0x20 flags, 0x24 version_lo, 0x28 block,
    0x64 generation, 0x68 file_acl_lo, 0x6c size_hi, 0x70 obso_faddr, 0x74 blocks_hi,
    0x76 file_acl_hi, 0x78 uid_hi, 0x7a gid_hi, 0x7c checksum_lo, 0x7e reserved,
    0x80 extra_isize, 0x82 checksum_hi, 0x84 ctime_extra, 0x88 mtime_extra, 0x8c atime_extra,
    0x90 crtime, 0x94 crtime_extra, 0x98 version_hi, 0x9c projid,
});

/// Bytes of every inode before the extra fields.
const BASE: usize = MIN_INODE_SIZE as usize;

bitflags! {
    /// The flags of an inode that matter to readers; the others are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct InodeFlags: u32 {
        /// For secure deletion, which nothing does.
        const SECRM = 0x1;
        /// For undeletion, which nothing does.
        const UNRM = 0x2;
        /// Compressed.
        const COMPRESSED = 0x4;
        /// Changes are durable when they are answered.
        const SYNC = 0x8;
        /// May not change.
        const IMMUTABLE = 0x10;
        /// May only grow.
        const APPEND = 0x20;
        /// Not for dump(8).
        const NODUMP = 0x40;
        /// Reading leaves the time of the last read as it is.
        const NOATIME = 0x80;
        /// Not to be compressed.
        const NOCOMPR = 0x400;
        /// Encrypted.
        const ENCRYPTED = 0x800;
        /// A directory with a hash tree.
        const INDEX = 0x1000;
        /// Contents go through the journal.
        const JOURNAL_DATA = 0x4000;
        /// The last block is not shared.
        const NOTAIL = 0x8000;
        /// A directory: changes of its names are durable when they are answered.
        const DIRSYNC = 0x1_0000;
        /// A directory: those in it are spread over the volume.
        const TOPDIR = 0x2_0000;
        /// The block count is in blocks.
        const HUGE_FILE = 0x4_0000;
        /// Mapped by extents.
        const EXTENTS = 0x8_0000;
        /// Has a Merkle tree.
        const VERITY = 0x10_0000;
        /// Holds the value of an extended attribute.
        const EA_INODE = 0x20_0000;
        /// Persistent memory is mapped directly.
        const DAX = 0x200_0000;
        /// Contents are in the inode.
        const INLINE_DATA = 0x1000_0000;
        /// A directory: what is made in it has its project.
        const PROJINHERIT = 0x2000_0000;
        /// A directory: names that differ in case are the same.
        const CASEFOLD = 0x4000_0000;
        /// What is made in a directory gets of these.
        const INHERITED = Self::SECRM.bits() | Self::UNRM.bits() | Self::COMPRESSED.bits()
            | Self::SYNC.bits() | Self::NODUMP.bits() | Self::NOATIME.bits()
            | Self::NOCOMPR.bits() | Self::JOURNAL_DATA.bits() | Self::NOTAIL.bits()
            | Self::DIRSYNC.bits() | Self::PROJINHERIT.bits() | Self::CASEFOLD.bits()
            | Self::DAX.bits();
        /// Only directories have these.
        const OF_DIRECTORIES = Self::DIRSYNC.bits() | Self::TOPDIR.bits()
            | Self::PROJINHERIT.bits() | Self::CASEFOLD.bits();
        /// chattr(1) sets these.
        const SETTABLE = Self::SECRM.bits() | Self::UNRM.bits() | Self::COMPRESSED.bits()
            | Self::SYNC.bits() | Self::IMMUTABLE.bits() | Self::APPEND.bits()
            | Self::NODUMP.bits() | Self::NOATIME.bits() | Self::JOURNAL_DATA.bits()
            | Self::NOTAIL.bits() | Self::DIRSYNC.bits() | Self::TOPDIR.bits();
        const _ = !0;
    }
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A Unix socket.
    Socket,
}

impl Kind {
    /// From the type bits of a mode.
    pub fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0x1 => Self::Fifo,
            0x2 => Self::CharDevice,
            0x4 => Self::Directory,
            0x6 => Self::BlockDevice,
            0x8 => Self::Regular,
            0xa => Self::Symlink,
            0xc => Self::Socket,
            _ => return None,
        })
    }
}

/// An inode whose checksum, where it has one, was right and whose type is known.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Type and permissions as `st_mode` has them.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project.
    pub project: u32,
    /// Bytes of contents; below 2^63.
    pub size: u64,
    /// Units of 512 bytes in use.
    pub blocks: u64,
    /// Names.
    pub links: u16,
    /// Flags.
    pub flags: InodeFlags,
    /// Which use of the number this is.
    pub generation: u32,
    /// How often it was changed.
    pub version: u64,
    /// Last read.
    pub atime: Timestamp,
    /// Last changed contents.
    pub mtime: Timestamp,
    /// Last changed at all.
    pub ctime: Timestamp,
    /// Made, in inodes large enough to say so.
    pub crtime: Option<Timestamp>,
    /// When it was removed; in an orphan the next orphan's number.
    pub dtime: u32,
    /// The block of its extended attributes, 0 for none; not checked.
    pub xattr_block: u64,
    /// The root of its map, its device number, a short link's target, or inline contents.
    pub block: [u8; 60],
    /// What follows the fields: space for extended attributes, or none.
    pub extra: Box<[u8]>,
    /// The seed of the checksums of its blocks.
    pub checksum_seed: u32,
}

impl Inode {
    /// Inode number `ino` of a volume, from its `inode_size` bytes. Whether it is in use its
    /// links say; an inode that never was has no type and is [`Error::Stale`].
    pub fn parse(bytes: &[u8], ino: Ino, superblock: &Superblock) -> Result<Self> {
        let size = superblock.inode_size as usize;
        let Some(bytes) = bytes.get(..size) else {
            return Err(Error::corrupt(ino, format!("{} of {size} bytes", bytes.len())));
        };
        let mut raw = RawInode::new_zeroed();
        let known = size.min(size_of::<RawInode>());
        raw.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
        if raw.mode.get() == 0 && raw.links_count.get() == 0 {
            return Err(Error::Stale(ino.to_string()));
        }
        let extra = if size > BASE { usize::from(raw.extra_isize.get()) } else { 0 };
        if extra % 4 != 0 || BASE + extra > size {
            return Err(Error::corrupt(ino, format!("extra_isize {extra}")));
        }
        let seed = checksum_seed(ino, raw.generation.get(), superblock);
        if superblock.features.metadata_csum() {
            verify(bytes, &raw, extra, ino, seed)?;
        }
        Self::check(&raw, ino, superblock, extra, bytes, seed)
    }

    fn check(
        raw: &RawInode,
        ino: Ino,
        superblock: &Superblock,
        extra: usize,
        bytes: &[u8],
        checksum_seed: u32,
    ) -> Result<Self> {
        let mode = raw.mode.get();
        let kind = Kind::from_mode(mode)
            .ok_or_else(|| Error::corrupt(ino, format!("mode {mode:#o} has no type")))?;
        let flags = InodeFlags::from_bits_retain(raw.flags.get());
        let dir_index = superblock.features.compat.contains(Compat::DIR_INDEX);
        if kind == Kind::Directory && flags.contains(InodeFlags::INDEX) && !dir_index {
            return Err(Error::corrupt(ino, "a hash tree without the feature dir_index"));
        }
        // An inode that never got extra fields is read as if they were there, all zero.
        let fields = match extra {
            0 if bytes.len() > BASE => size_of::<RawInode>(),
            extra => BASE + extra,
        };
        let field = |value: U32, end: usize| (end <= fields).then_some(value.get());
        let crtime = field(raw.crtime, 0x94)
            .map(|seconds| Timestamp::decode(seconds, field(raw.crtime_extra, 0x98)));
        Ok(Self {
            ino,
            kind,
            mode,
            uid: u32::from(raw.uid_hi.get()) << 16 | u32::from(raw.uid_lo.get()),
            gid: u32::from(raw.gid_hi.get()) << 16 | u32::from(raw.gid_lo.get()),
            project: field(raw.projid, 0xa0)
                .filter(|_| superblock.features.ro_compat.contains(RoCompat::PROJECT))
                .unwrap_or(0),
            size: size(raw, ino, kind, superblock)?,
            blocks: blocks(raw, flags, superblock),
            links: raw.links_count.get(),
            flags,
            generation: raw.generation.get(),
            version: u64::from(field(raw.version_hi, 0x9c).unwrap_or(0)) << 32
                | u64::from(raw.version_lo.get()),
            atime: Timestamp::decode(raw.atime.get(), field(raw.atime_extra, 0x90)),
            mtime: Timestamp::decode(raw.mtime.get(), field(raw.mtime_extra, 0x8c)),
            ctime: Timestamp::decode(raw.ctime.get(), field(raw.ctime_extra, 0x88)),
            crtime,
            dtime: raw.dtime.get(),
            xattr_block: xattr_block(raw, superblock),
            block: raw.block,
            extra: if extra == 0 { Box::default() } else { bytes[BASE + extra..].into() },
            checksum_seed,
        })
    }

    /// The device that a device node stands for: major and minor number.
    pub fn device(&self) -> (u32, u32) {
        if !matches!(self.kind, Kind::CharDevice | Kind::BlockDevice) {
            return (0, 0);
        }
        let word = |at: usize| {
            self.block[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        match word(0) {
            0 => {
                let number = word(4);
                ((number & 0xf_ff00) >> 8, (number & 0xff) | ((number >> 12) & 0xf_ff00))
            }
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

/// The seed of the checksums of an inode and its blocks.
pub fn checksum_seed(ino: Ino, generation: u32, superblock: &Superblock) -> u32 {
    let seed = crc32c(superblock.checksum_seed, &ino.0.to_le_bytes());
    crc32c(seed, &generation.to_le_bytes())
}

/// Where the halves of the checksum lie.
const CHECKSUM_LO: usize = 0x7c;
const CHECKSUM_HI: usize = 0x82;

/// What the checksum of an inode of `bytes` must be; its upper half is on disk only where
/// `extra_isize` leaves room.
pub fn checksum(bytes: &[u8], seed: u32, extra_isize: usize) -> u32 {
    let zero = [0u8; 2];
    let mut crc = crc32c(seed, &bytes[..CHECKSUM_LO]);
    crc = crc32c(crc, &zero);
    if bytes.len() <= BASE {
        return crc32c(crc, &bytes[CHECKSUM_LO + 2..]);
    }
    if extra_isize < CHECKSUM_HI + 2 - BASE {
        return crc32c(crc, &bytes[CHECKSUM_LO + 2..]);
    }
    crc = crc32c(crc, &bytes[CHECKSUM_LO + 2..CHECKSUM_HI]);
    crc = crc32c(crc, &zero);
    crc32c(crc, &bytes[CHECKSUM_HI + 2..])
}

fn verify(bytes: &[u8], raw: &RawInode, extra: usize, ino: Ino, seed: u32) -> Result<()> {
    let computed = checksum(bytes, seed, extra);
    let lo = u32::from(raw.checksum_lo.get());
    let (found, computed) = if extra < CHECKSUM_HI + 2 - BASE {
        (lo, computed & 0xffff)
    } else {
        (u32::from(raw.checksum_hi.get()) << 16 | lo, computed)
    };
    if found == computed {
        Ok(())
    } else {
        Err(Error::corrupt(ino, format!("checksum {found:#010x}, computed {computed:#010x}")))
    }
}

fn size(raw: &RawInode, ino: Ino, kind: Kind, superblock: &Superblock) -> Result<u64> {
    let large_dir = superblock.features.incompat.contains(Incompat::LARGEDIR);
    let wide = kind == Kind::Regular || (kind == Kind::Directory && large_dir);
    let hi = if wide { raw.size_hi.get() } else { 0 };
    let size = u64::from(hi) << 32 | u64::from(raw.size_lo.get());
    if size > i64::MAX as u64 {
        return Err(Error::corrupt(ino, format!("size {size}")));
    }
    Ok(size)
}

fn blocks(raw: &RawInode, flags: InodeFlags, superblock: &Superblock) -> u64 {
    let lo = u64::from(raw.blocks_lo.get());
    if !superblock.features.ro_compat.contains(RoCompat::HUGE_FILE) {
        return lo;
    }
    let blocks = u64::from(raw.blocks_hi.get()) << 32 | lo;
    if flags.contains(InodeFlags::HUGE_FILE) {
        blocks << (superblock.block_bits - 9)
    } else {
        blocks
    }
}

fn xattr_block(raw: &RawInode, superblock: &Superblock) -> u64 {
    let wide = superblock.features.incompat.contains(Incompat::BITS64);
    let hi = if wide { raw.file_acl_hi.get() } else { 0 };
    u64::from(hi) << 32 | u64::from(raw.file_acl_lo.get())
}
