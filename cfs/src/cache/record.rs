//! An inode's attributes as words of a published record.

use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::engine::Attr;
use crate::id::Ino;

/// Words of a record with a target.
pub const RECORD_VALUES: usize = 23;
/// Words of it that all inodes have: with the sequence word, two cache lines.
pub(super) const HEAD_VALUES: usize = TARGET;
/// Words of a target.
pub(super) const TARGET_VALUES: usize = RECORD_VALUES - HEAD_VALUES;
/// The part of a record that all inodes have.
pub type Head = [u64; HEAD_VALUES];

/// The word of a record that is the size.
pub(super) const SIZE_WORD: usize = 3;

/// Longest target that a record carries; longer ones are asked for.
const TARGET_BYTES: usize = 64;
const TARGET: usize = 15;

const HAS_XATTR: u64 = 1;
const HAS_CRTIME: u64 = 2;
const HAS_TARGET: u64 = 4;

/// What is published of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeRecord {
    /// Its attributes.
    pub attr: Attr,
    /// Whether it has extended attributes at all; if not, nobody need ask for one.
    pub has_xattr: bool,
    /// A symbolic link's target, where it fits.
    pub target: Option<Vec<u8>>,
}

impl InodeRecord {
    /// As words.
    pub fn to_words(&self) -> [u64; RECORD_VALUES] {
        let attr = &self.attr;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let target = self.target.as_deref().filter(|target| target.len() <= TARGET_BYTES);
        let mut bits = 0;
        if self.has_xattr {
            bits |= HAS_XATTR;
        }
        if attr.crtime.is_some() {
            bits |= HAS_CRTIME;
        }
        if target.is_some() {
            bits |= HAS_TARGET;
        }
        let crtime = attr.crtime.unwrap_or_default();
        let target = target.unwrap_or_default();
        let mut words = [0; RECORD_VALUES];
        words[0] = pair(attr.ino.0, attr.generation);
        words[1] = u64::from(attr.mode)
            | bits << 16
            | (target.len() as u64) << 24
            | u64::from(attr.links) << 32;
        words[2] = pair(attr.uid, attr.gid);
        words[SIZE_WORD] = attr.size;
        words[4] = attr.blocks;
        words[5] = pair(attr.device.0, attr.device.1);
        words[6] = pair(attr.flags.bits(), attr.project);
        for (word, time) in (7..).zip([attr.atime, attr.mtime, attr.ctime, crtime]) {
            words[word] = time.seconds as u64;
        }
        words[11] = pair(attr.atime.nanoseconds, attr.mtime.nanoseconds);
        words[12] = pair(attr.ctime.nanoseconds, crtime.nanoseconds);
        words[13] = attr.version;
        words[14] = u64::from(attr.block_size);
        for (word, chunk) in (TARGET..).zip(target.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            words[word] = u64::from_ne_bytes(bytes);
        }
        words
    }

    /// From words that an owner wrote; `None` if they are none that an owner writes.
    pub fn from_words(words: &[u64; RECORD_VALUES]) -> Option<Self> {
        let head = words.first_chunk()?;
        let mut record = Self::from_head(head)?;
        let len = (words[1] >> 24) as u8 as usize;
        if len > TARGET_BYTES {
            return None;
        }
        // Only symbolic links pay for an allocation.
        record.target = has_target(head).then(|| {
            let bytes = words[TARGET..].iter().flat_map(|word| word.to_ne_bytes());
            bytes.take(len).collect()
        });
        Some(record)
    }

    /// From the first of such words, without a target.
    #[inline(always)]
    pub fn from_head(words: &Head) -> Option<Self> {
        let (low, high) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
        let mode = words[1] as u16;
        let bits = words[1] >> 16;
        let time = |seconds: usize, nanoseconds: u32| Timestamp {
            seconds: words[seconds] as i64,
            nanoseconds,
        };
        let nanoseconds = [low(words[11]), high(words[11]), low(words[12]), high(words[12])];
        let late = nanoseconds.iter().fold(false, |late, &n| late | (n >= 1_000_000_000));
        if late | (low(words[0]) == 0) | (words[SIZE_WORD] > i64::MAX as u64) {
            return None;
        }
        let attr = Attr {
            ino: Ino(low(words[0])),
            generation: high(words[0]),
            kind: Kind::from_mode(mode)?,
            mode,
            links: high(words[1]),
            uid: low(words[2]),
            gid: high(words[2]),
            project: high(words[6]),
            device: (low(words[5]), high(words[5])),
            size: words[SIZE_WORD],
            blocks: words[4],
            block_size: low(words[14]),
            atime: time(7, nanoseconds[0]),
            mtime: time(8, nanoseconds[1]),
            ctime: time(9, nanoseconds[2]),
            crtime: (bits & HAS_CRTIME != 0).then_some(time(10, nanoseconds[3])),
            flags: InodeFlags::from_bits_retain(low(words[6])),
            version: words[13],
        };
        Some(Self { attr, has_xattr: bits & HAS_XATTR != 0, target: None })
    }
}

/// The words of a record that change with its contents' time, and with them its own, of which
/// `load` tells what they are now.
pub(super) fn changed_at(time: Timestamp, load: impl Fn(usize) -> u64) -> [(usize, u64); 4] {
    let (seconds, nanoseconds) = (time.seconds as u64, u64::from(time.nanoseconds));
    let [reading, making] = [load(11) & 0xffff_ffff, load(12) >> 32];
    [
        (8, seconds),
        (9, seconds),
        (11, reading | nanoseconds << 32),
        (12, nanoseconds | making << 32),
    ]
}

/// Whether a target follows these words of a record.
#[inline(always)]
pub fn has_target(words: &Head) -> bool {
    words[1] >> 16 & HAS_TARGET != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_time_changes_what_it_is_of_and_nothing_else() {
        let mut words = [0; RECORD_VALUES];
        (words[0], words[1]) = (12, 0o100_644);
        (words[7], words[8], words[9], words[10]) = (1, 2, 3, 4);
        (words[11], words[12]) = (5 | 6 << 32, 7 | 8 << 32);
        let mut wanted = InodeRecord::from_words(&words).unwrap();
        let time = Timestamp { seconds: 1_000_000, nanoseconds: 999_999_999 };
        for (word, value) in changed_at(time, |word| words[word]) {
            words[word] = value;
        }
        (wanted.attr.mtime, wanted.attr.ctime) = (time, time);
        assert_eq!(InodeRecord::from_words(&words), Some(wanted));
    }

    proptest! {
        #[test]
        fn words_that_parse_survive(mut words: [u64; RECORD_VALUES], len in 0usize..64) {
            // Mostly valid ones, so that most of the cases test something.
            words[1] = words[1] & !0xff00_f000 | 0x8000 | (len as u64) << 24;
            words[3] >>= 1;
            for word in [11, 12] {
                words[word] &= 0x1fff_ffff_1fff_ffff;
            }
            let record = InodeRecord::from_words(&words).unwrap();
            let again = InodeRecord::from_words(&record.to_words()).unwrap();
            prop_assert_eq!(again, record);
        }

        #[test]
        fn any_words_are_survived(words: [u64; RECORD_VALUES]) {
            let _ = InodeRecord::from_words(&words);
        }
    }
}
