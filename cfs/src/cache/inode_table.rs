//! Attributes of inodes, published under sequence words.

use oslet::publish;
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::record::{InodeRecord, RECORD_VALUES, SIZE_WORD};
use super::{mix, reduce};
use crate::disk::inode::Kind;
use crate::id::Ino;

const ENTRY_WORDS: usize = 1 + RECORD_VALUES;
const WAYS: usize = 4;

/// The table over its words, to read or, by its owner under a lock, to change.
#[derive(Debug)]
pub struct InodeTable<W> {
    words: W,
    sets: usize,
}

impl InodeTable<()> {
    /// Bytes for a table of `inodes` records.
    pub fn bytes(inodes: usize) -> usize {
        inodes.div_ceil(WAYS).max(1) * WAYS * ENTRY_WORDS * 8
    }
}

impl<W: ReadWords> InodeTable<W> {
    /// The table that `len` bytes of words hold; `None` if they are too few for any.
    pub fn new(words: W, len: usize) -> Option<Self> {
        let sets = len / (WAYS * ENTRY_WORDS * 8);
        (sets > 0).then_some(Self { words, sets })
    }

    /// What is published of an inode.
    #[inline]
    pub fn find(&self, ino: Ino) -> Option<InodeRecord> {
        InodeRecord::from_words(&self.read::<RECORD_VALUES>(ino)?)
    }

    /// The bytes that a file is long, as far as it is published.
    #[inline]
    pub fn size(&self, ino: Ino) -> Option<u64> {
        Some(self.read::<{ SIZE_WORD + 1 }>(ino)?[SIZE_WORD])
    }

    /// Whether an inode is a directory, as far as it is published.
    #[inline]
    pub fn is_directory(&self, ino: Ino) -> Option<bool> {
        let [_, mode] = self.read::<2>(ino)?;
        Some(Kind::from_mode(mode as u16)? == Kind::Directory)
    }

    /// The first values of an inode's record.
    #[inline(always)]
    fn read<const N: usize>(&self, ino: Ino) -> Option<[u64; N]> {
        (0..2).find_map(|half| {
            let set = self.set(ino, half);
            // No branch on what is found: where in its set an inode lies cannot be predicted.
            let mut ways = (0..WAYS).fold(0u32, |mask, way| {
                let found = self.words.load(set + way * ENTRY_WORDS + 1, Ordering::Relaxed);
                mask | u32::from(found as u32 == ino.0) << way
            });
            while ways != 0 {
                let base = set + ways.trailing_zeros() as usize * ENTRY_WORDS;
                let values: [u64; N] = publish::read_values(&self.words, base)?;
                // The entry may have been given to another inode since the glance above.
                if values[0] as u32 == ino.0 {
                    return Some(values);
                }
                ways &= ways - 1;
            }
            None
        })
    }

    /// Where an inode's record may lie: in one of two sets.
    fn entries(&self, ino: Ino) -> impl Iterator<Item = usize> + use<W> {
        let sets = [self.set(ino, 0), self.set(ino, 1)];
        (0..2 * WAYS).map(move |way| sets[way / WAYS] + way % WAYS * ENTRY_WORDS)
    }

    /// The first word of one of those sets.
    #[inline(always)]
    fn set(&self, ino: Ino, half: usize) -> usize {
        let hash = mix(u64::from(ino.0));
        reduce((hash >> (half * 32)) as u32, self.sets) * WAYS * ENTRY_WORDS
    }
}

impl<W: WriteWords> InodeTable<W> {
    /// Publishes a record in place of the inode's last one, an empty entry, or another inode's.
    pub fn publish(&self, record: &InodeRecord) {
        let values = record.to_words();
        let ino = record.attr.ino;
        let known = |base: &usize| self.words.load(base + 1, Ordering::Relaxed) as u32;
        let entry = (self.entries(ino).find(|base| known(base) == ino.0))
            .or_else(|| self.entries(ino).find(|base| known(base) == 0))
            .unwrap_or_else(|| {
                // The owner has no idea which are in use: take turns by what the set holds now.
                let turn =
                    self.entries(ino).map(|b| u64::from(known(&b))).fold(0, u64::wrapping_add);
                let way = (mix(turn) % (2 * WAYS) as u64) as usize;
                self.entries(ino).nth(way).unwrap_or_default()
            });
        publish::write_record(&self.words, entry, &values);
    }
}
