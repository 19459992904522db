//! The jbd2 log on disk: superblock, descriptor, revoke and commit blocks. All of it is big-endian.
//!
//! Codecs only: no I/O, no locks. Raw types mirror the disk; checked types come from them once
//! magic, version, features, bounds and checksums have been verified. The format is the one
//! described in the kernel's Documentation/filesystems/ext4/journal.rst.

use bitflags::bitflags;
use zerocopy::byteorder::big_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::checksum::crc32c;
use crate::{Error, Result};

mod record;

pub use record::{Commit, Tag, Tags, TransactionSum};

/// First word of every block of the log that is not a copy of a home block.
pub const MAGIC: u32 = 0xc03b_3998;
/// Bytes of the journal's superblock.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// Blocks of the longest log that mke2fs makes.
pub const MAX_LOG_BLOCKS: u32 = 10_240_000;
/// Length of the fast commit area where the superblock does not say.
pub const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;
/// Value of `checksum_type` that means crc32c (the only one in use).
pub(super) const CHECKSUM_CRC32C: u8 = 4;
/// Value of a commit block's `checksum_type` under the old transaction checksum.
const CHECKSUM_CRC32: u8 = 1;
/// Bytes of the checksum at the end of descriptor and revoke blocks.
const TAIL_SIZE: usize = 4;
pub(super) const HEADER_SIZE: usize = size_of::<RawHeader>();
pub(super) const REVOKE_HEADER_SIZE: usize = HEADER_SIZE + 4;
pub(super) const UUID_SIZE: usize = 16;

/// Number of a transaction. Numbers wrap, so they are compared by their distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tid(pub u32);

impl Tid {
    /// True when `self` is `other` or later.
    #[must_use]
    pub fn at_least(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() >= 0
    }

    /// The transaction after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl std::fmt::Display for Tid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

bitflags! {
    /// Features that an old reader may ignore.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// Commit blocks carry a crc32 over the whole transaction (the old scheme).
        const CHECKSUM = 1;
        const _ = !0;
    }

    /// Features that a reader must know.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// There may be revoke blocks.
        const REVOKE = 0x01;
        /// Block numbers have 64 bits.
        const BITS64 = 0x02;
        /// A commit block may reach the disk before the blocks that it commits.
        const ASYNC_COMMIT = 0x04;
        /// Checksums in every block of the log; 16 bits of them in a tag.
        const CSUM_V2 = 0x08;
        /// Checksums in every block of the log; 32 bits of them in a tag.
        const CSUM_V3 = 0x10;
        /// The end of the log is a fast commit area.
        const FAST_COMMIT = 0x20;
        const _ = !0;
    }

    /// Flags of a tag.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TagFlags: u32 {
        /// The block's first word was [`MAGIC`] and is zero in the log.
        const ESCAPED = 1;
        /// No UUID follows: it is the previous tag's.
        const SAME_UUID = 2;
        /// The block was deleted by this transaction.
        const DELETED = 4;
        /// The last tag of its descriptor block.
        const LAST = 8;
        const _ = !0;
    }
}

impl Incompat {
    const KNOWN: Self = Self::REVOKE
        .union(Self::BITS64)
        .union(Self::ASYNC_COMMIT)
        .union(Self::CSUM_V2)
        .union(Self::CSUM_V3)
        .union(Self::FAST_COMMIT);

    /// True when every block of the log has a checksum of its own.
    #[must_use]
    pub fn checksums(self) -> bool {
        self.intersects(Self::CSUM_V2.union(Self::CSUM_V3))
    }

    /// Bytes of a tag, without a UUID.
    #[must_use]
    pub fn tag_size(self) -> usize {
        if self.contains(Self::CSUM_V3) {
            return 16;
        }
        let high = if self.contains(Self::BITS64) { 4 } else { 0 };
        8 + high + if self.contains(Self::CSUM_V2) { 2 } else { 0 }
    }

    /// Bytes of a record in a revoke block.
    pub(super) fn revoke_size(self) -> usize {
        if self.contains(Self::BITS64) { 8 } else { 4 }
    }

    pub(super) fn tail_size(self) -> usize {
        if self.checksums() { TAIL_SIZE } else { 0 }
    }
}

/// What every block of the log begins with that is not a copy of a home block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// A [`BlockKind`].
    pub kind: U32,
    /// The transaction.
    pub sequence: U32,
}

/// The superblock, in the first block of the log.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawSuperblock {
    /// Kind 3 (version 1, no fields beyond `errno`) or 4 (version 2).
    pub header: RawHeader,
    /// Bytes of a block: the filesystem's.
    pub block_size: U32,
    /// Blocks of the log, this one included.
    pub max_len: U32,
    /// First block for transactions.
    pub first: U32,
    /// First transaction expected in the log.
    pub sequence: U32,
    /// Where it starts; 0 when the log is empty.
    pub start: U32,
    /// A negative errno when the journal was aborted.
    pub errno: I32,
    /// [`Compat`].
    pub compat: U32,
    /// [`Incompat`].
    pub incompat: U32,
    /// None is defined.
    pub ro_compat: U32,
    /// Seed of the checksums.
    pub uuid: [u8; UUID_SIZE],
    /// Filesystems that share the log.
    pub users: U32,
    /// Unused.
    pub dynamic_super: U32,
    /// Unused.
    pub max_transaction: U32,
    /// Unused.
    pub max_transaction_data: U32,
    /// 4: crc32c.
    pub checksum_type: u8,
    /// Zero.
    pub padding2: [u8; 3],
    /// Blocks of the fast commit area; 0 means [`DEFAULT_FAST_COMMIT_BLOCKS`].
    pub fast_commit_blocks: U32,
    /// Block of the log after the last transaction, kept by newer kernels over a clean unmount.
    pub head: U32,
    /// Zero.
    pub padding: [U32; 40],
    /// crc32c of these 1024 bytes with this field zero.
    pub checksum: U32,
    /// UUIDs of the filesystems that share the log.
    pub user_ids: [u8; UUID_SIZE * 48],
}

/// A commit block, from its first byte.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawCommit {
    /// Kind 2.
    pub header: RawHeader,
    /// 0 or, under [`Compat::CHECKSUM`], 1 for crc32.
    pub checksum_type: u8,
    /// 0 or, under [`Compat::CHECKSUM`], 4.
    pub checksum_size: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// The first is the block's crc32c or, under [`Compat::CHECKSUM`], the transaction's crc32.
    pub checksum: [U32; 8],
    /// Seconds since 1970.
    pub seconds: U64,
    /// And nanoseconds.
    pub nanoseconds: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == 12);
    assert!(size_of::<RawSuperblock>() == SUPERBLOCK_SIZE);
    assert!(std::mem::offset_of!(RawSuperblock, compat) == 0x24);
    assert!(std::mem::offset_of!(RawSuperblock, fast_commit_blocks) == 0x54);
    assert!(std::mem::offset_of!(RawSuperblock, checksum) == 0xfc);
    assert!(std::mem::offset_of!(RawSuperblock, user_ids) == 0x100);
    assert!(size_of::<RawCommit>() == 60);
    assert!(std::mem::offset_of!(RawCommit, seconds) == 0x30);
};

/// What a block of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Names the home of the blocks that follow it.
    Descriptor = 1,
    /// Ends a transaction.
    Commit = 2,
    /// The superblock, version 1.
    SuperblockV1 = 3,
    /// The superblock, version 2.
    SuperblockV2 = 4,
    /// Names blocks whose older copies must not be replayed.
    Revoke = 5,
}

impl RawHeader {
    /// The header of a block, if it has the magic number and a kind that is known.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<(BlockKind, Tid)> {
        let (raw, _) = Self::read_from_prefix(block).ok()?;
        if raw.magic.get() != MAGIC {
            return None;
        }
        let kind = match raw.kind.get() {
            1 => BlockKind::Descriptor,
            2 => BlockKind::Commit,
            3 => BlockKind::SuperblockV1,
            4 => BlockKind::SuperblockV2,
            5 => BlockKind::Revoke,
            _ => return None,
        };
        Some((kind, Tid(raw.sequence.get())))
    }
}

impl RawSuperblock {
    /// The checksum that belongs into these bytes.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        let mut copy = *self;
        copy.checksum = U32::ZERO;
        crc32c(!0, copy.as_bytes())
    }
}

/// The journal's superblock, checked.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// What is on the disk.
    pub raw: RawSuperblock,
    /// Empty in version 1.
    pub compat: Compat,
    /// Empty in version 1.
    pub incompat: Incompat,
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the log, the superblock and the fast commit area included.
    pub max_len: u32,
    /// First block for transactions.
    pub first: u32,
    /// The block after the last one for transactions: where the log wraps.
    pub last: u32,
    /// First transaction expected.
    pub sequence: Tid,
    /// Its place, or 0 when the log is empty.
    pub start: u32,
    /// Seed of the checksums of descriptors, tags, revokes and commits.
    pub seed: u32,
}

impl Superblock {
    /// Checks the first block of a log of `len` blocks on a filesystem with blocks of `block_size`.
    pub fn parse(block: &[u8], block_size: u32, len: u32) -> Result<Self> {
        let (raw, _) = RawSuperblock::read_from_prefix(block)
            .map_err(|_| superblock("is shorter than 1024 bytes"))?;
        let v2 = match RawHeader::parse(block) {
            Some((BlockKind::SuperblockV1, _)) => false,
            Some((BlockKind::SuperblockV2, _)) => true,
            Some((kind, _)) => {
                return Err(superblock(format!("is a {kind:?} block")));
            }
            None if raw.header.magic.get() == MAGIC => {
                return Err(unsupported(format_args!("version {}", raw.header.kind.get())));
            }
            None => {
                let magic = raw.header.magic.get();
                return Err(superblock(format!("magic {magic:#010x} is not {MAGIC:#010x}")));
            }
        };
        let (compat, incompat) =
            if v2 { check_features(&raw)? } else { (Compat::empty(), Incompat::empty()) };
        let (last, max_len) = check_geometry(&raw, incompat, block_size, len)?;
        Ok(Self {
            compat,
            incompat,
            block_size,
            max_len,
            first: raw.first.get(),
            last,
            sequence: Tid(raw.sequence.get()),
            start: raw.start.get(),
            seed: crc32c(!0, &raw.uuid),
            raw,
        })
    }

    /// The place after `position`, `count` blocks further, in the circle of transactions.
    /// `None` when `count` is more than the circle has.
    #[must_use]
    pub fn advance(&self, position: u32, count: u32) -> Option<u32> {
        let circle = self.last - self.first;
        if count > circle || position >= self.last {
            return None;
        }
        let next = u64::from(position) + u64::from(count);
        let wrapped = if next >= u64::from(self.last) { next - u64::from(circle) } else { next };
        u32::try_from(wrapped).ok()
    }

    /// The superblock of the same log with other contents: from `start` on, or nothing (0); the
    /// next or first transaction is `sequence`.
    #[must_use]
    pub fn restarted(&self, start: u32, sequence: Tid, errno: i32) -> RawSuperblock {
        let mut raw = self.raw;
        raw.start = U32::new(start);
        raw.sequence = U32::new(sequence.0);
        raw.errno = I32::new(errno);
        if raw.header.kind.get() == BlockKind::SuperblockV2 as u32 {
            // What is in the fast commit area belongs to older transactions, and `head` points at
            // them. Without the feature older readers, too, can read the log.
            raw.incompat = U32::new((self.incompat - Incompat::FAST_COMMIT).bits());
            raw.head = U32::ZERO;
        }
        if self.incompat.checksums() {
            raw.checksum = U32::new(raw.compute_checksum());
        }
        raw
    }

    /// The tags of a descriptor block whose checksum has been verified.
    #[must_use]
    pub fn tags<'a>(&self, block: &'a [u8]) -> Tags<'a> {
        let end = block.len().saturating_sub(self.incompat.tail_size());
        Tags {
            rest: block.get(HEADER_SIZE..end).unwrap_or(&[]),
            incompat: self.incompat,
            done: false,
        }
    }

    /// The blocks named by a revoke block.
    pub fn revoked<'a>(&self, block: &'a [u8]) -> Result<impl Iterator<Item = u64> + use<'a>> {
        let end = block.len().saturating_sub(self.incompat.tail_size());
        let used = block
            .get(HEADER_SIZE..REVOKE_HEADER_SIZE)
            .map_or(0, |word| u32::from_be_bytes(word.try_into().unwrap_or_default()))
            as usize;
        if used > end {
            let why = format!("{used} bytes in use of {end}");
            return Err(Error::corrupt("journal: revoke block", why));
        }
        let size = self.incompat.revoke_size();
        let records = block.get(REVOKE_HEADER_SIZE..used).unwrap_or(&[]);
        Ok(records
            .chunks_exact(size)
            .map(|record| record.iter().fold(0, |block, byte| block << 8 | u64::from(*byte))))
    }

    /// True when a descriptor or revoke block has the checksum at its end that belongs there.
    #[must_use]
    pub fn tail_is_valid(&self, block: &[u8]) -> bool {
        !self.incompat.checksums()
            || block.split_last_chunk::<TAIL_SIZE>().is_some_and(|(head, tail)| {
                let sum = crc32c(crc32c(self.seed, head), &[0; TAIL_SIZE]);
                sum == u32::from_be_bytes(*tail)
            })
    }

    /// True when a commit block has its own checksum right (not the old transaction checksum).
    #[must_use]
    pub fn commit_is_valid(&self, block: &[u8]) -> bool {
        !self.incompat.checksums()
            || RawCommit::read_from_prefix(block).is_ok_and(|(mut raw, rest)| {
                let found = raw.checksum[0].get();
                raw.checksum[0] = U32::ZERO;
                crc32c(crc32c(self.seed, raw.as_bytes()), rest) == found
            })
    }

    /// True when a block of the log, as it is there, has the checksum of its tag.
    #[must_use]
    pub fn data_is_valid(&self, tag: &Tag, tid: Tid, block: &[u8]) -> bool {
        let sum = || crc32c(crc32c(self.seed, &tid.0.to_be_bytes()), block);
        if self.incompat.contains(Incompat::CSUM_V3) {
            tag.checksum == sum()
        } else if self.incompat.contains(Incompat::CSUM_V2) {
            tag.checksum == sum() & 0xffff
        } else {
            true
        }
    }
}

fn superblock(why: impl Into<String>) -> Error {
    Error::corrupt("journal superblock", why)
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    let hint = "; let the kernel that wrote it replay it (mount and unmount)";
    Error::Refused { feature: format!("journal {what}"), hint: hint.into() }
}

fn check_features(raw: &RawSuperblock) -> Result<(Compat, Incompat)> {
    let compat = Compat::from_bits_retain(raw.compat.get());
    let incompat = Incompat::from_bits_retain(raw.incompat.get());
    let unknown = incompat - Incompat::KNOWN;
    if !unknown.is_empty() {
        return Err(unsupported(format_args!("incompatible features {:#x}", unknown.bits())));
    }
    if raw.ro_compat.get() != 0 {
        let bits = raw.ro_compat.get();
        return Err(unsupported(format_args!("read-only compatible features {bits:#x}")));
    }
    if raw.users.get() > 1 {
        let users = raw.users.get();
        return Err(unsupported(format_args!("a log shared by {users} filesystems")));
    }
    let both = incompat.contains(Incompat::CSUM_V2 | Incompat::CSUM_V3);
    if both || incompat.checksums() && compat.contains(Compat::CHECKSUM) {
        return Err(superblock("has two kinds of checksum at once"));
    }
    if incompat.checksums() {
        if raw.checksum_type != CHECKSUM_CRC32C {
            return Err(unsupported(format_args!("checksum type {}", raw.checksum_type)));
        }
        let (found, computed) = (raw.checksum.get(), raw.compute_checksum());
        if found != computed {
            let what = format!("checksum {found:#010x} should be {computed:#010x}");
            return Err(superblock(what));
        }
    }
    Ok((compat, incompat))
}

/// Returns where the log wraps and how many blocks it has.
fn check_geometry(
    raw: &RawSuperblock,
    incompat: Incompat,
    block_size: u32,
    len: u32,
) -> Result<(u32, u32)> {
    let bad = |what: String| Err(superblock(what));
    if raw.block_size.get() != block_size {
        let found = raw.block_size.get();
        return bad(format!("block size {found} is not the filesystem's {block_size}"));
    }
    let (max_len, first, start) = (raw.max_len.get(), raw.first.get(), raw.start.get());
    if max_len > MAX_LOG_BLOCKS {
        return bad(format!("length {max_len} is more than any journal has ({MAX_LOG_BLOCKS})"));
    }
    if max_len > len {
        return bad(format!("length {max_len} is more than the journal's {len} blocks"));
    }
    let fast = match (incompat.contains(Incompat::FAST_COMMIT), raw.fast_commit_blocks.get()) {
        (false, _) => 0,
        (true, 0) => DEFAULT_FAST_COMMIT_BLOCKS,
        (true, blocks) => blocks,
    };
    let Some(last) = max_len.checked_sub(fast).filter(|last| first != 0 && first < *last) else {
        return bad(format!("first block {first}, length {max_len}, {fast} for fast commits"));
    };
    if start != 0 && !(first..last).contains(&start) {
        return bad(format!("start {start} is outside the log ({first} to {last})"));
    }
    Ok((last, max_len))
}

#[cfg(test)]
mod tests;
