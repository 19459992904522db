//! What the blocks of a transaction say: tags and commits.

use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::{U16, U32};

use super::{CHECKSUM_CRC32, Incompat, RawCommit, TagFlags, UUID_SIZE};
use crate::journal::checksum::crc32_be;

/// One block of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its home.
    pub block: u64,
    /// What was done to it.
    pub flags: TagFlags,
    /// 32 bits (v3), 16 bits (v2) or nothing (0).
    pub checksum: u32,
}

/// Iterates over the tags of one descriptor block.
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    pub(super) rest: &'a [u8],
    pub(super) incompat: Incompat,
    pub(super) done: bool,
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        if self.done {
            return None;
        }
        let (raw, rest) = self.rest.split_at_checked(self.incompat.tag_size())?;
        let word =
            |at: usize| raw.get(at..at + 4).and_then(|bytes| U32::read_from_bytes(bytes).ok());
        let half =
            |at: usize| raw.get(at..at + 2).and_then(|bytes| U16::read_from_bytes(bytes).ok());
        let v3 = self.incompat.contains(Incompat::CSUM_V3);
        let (flags, checksum) = if v3 {
            (word(4)?.get(), word(12)?.get())
        } else {
            (half(6)?.get().into(), half(4)?.get().into())
        };
        let flags = TagFlags::from_bits_retain(flags);
        let high =
            if self.incompat.contains(Incompat::BITS64) { u64::from(word(8)?.get()) } else { 0 };
        self.done = flags.contains(TagFlags::LAST);
        let uuid = if flags.contains(TagFlags::SAME_UUID) { 0 } else { UUID_SIZE };
        self.rest = rest.get(uuid..).unwrap_or(&[]);
        Some(Tag { block: high << 32 | u64::from(word(0)?.get()), flags, checksum })
    }
}

/// A commit block.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Seconds since 1970.
    pub seconds: u64,
    /// The old transaction checksum: `None` when the fields say that there is none, `Some(None)`
    /// when they make no sense.
    sum: Option<Option<u32>>,
}

impl Commit {
    /// Reads a commit block; `None` when it is too short to be one.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let (raw, _) = RawCommit::read_from_prefix(block).ok()?;
        let sum = raw.checksum[0].get();
        let sum = match (raw.checksum_type, raw.checksum_size, sum) {
            (0, 0, 0) => None,
            (CHECKSUM_CRC32, 4, sum) => Some(Some(sum)),
            _ => Some(None),
        };
        Some(Self { seconds: raw.seconds.get(), sum })
    }

    /// True when the old transaction checksum is absent or is `sum`.
    #[must_use]
    pub fn transaction_is_valid(&self, sum: TransactionSum) -> bool {
        self.sum.is_none_or(|found| found == Some(sum.0))
    }
}

/// The old checksum over a transaction's descriptor and data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionSum(pub u32);

impl TransactionSum {
    /// The sum over nothing.
    pub const START: Self = Self(!0);

    /// Takes one more block in.
    #[must_use]
    pub fn then(self, block: &[u8]) -> Self {
        Self(crc32_be(self.0, block))
    }
}
