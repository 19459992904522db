//! Attributes of inodes, published under sequence words.

use oslet::publish;
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::record::{InodeRecord, RECORD_VALUES, SIZE_WORD};
use super::{mix, reduce};
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
        let mut values = [0; RECORD_VALUES];
        self.entries(ino).find_map(|base| {
            if self.words.load(base + 1, Ordering::Relaxed) as u32 != ino.0 {
                return None;
            }
            publish::read_record(&self.words, base, &mut values)?;
            // The entry may have been given to another inode since the glance above.
            InodeRecord::from_words(&values).filter(|record| record.attr.ino == ino)
        })
    }

    /// The bytes that a file is long, as far as it is published.
    #[inline]
    pub fn size(&self, ino: Ino) -> Option<u64> {
        let mut values = [0; SIZE_WORD + 1];
        self.entries(ino).find_map(|base| {
            if self.words.load(base + 1, Ordering::Relaxed) as u32 != ino.0 {
                return None;
            }
            publish::read_record(&self.words, base, &mut values)?;
            (values[0] as u32 == ino.0).then_some(values[SIZE_WORD])
        })
    }

    /// Where an inode's record may lie: in one of two sets.
    #[inline(always)]
    fn entries(&self, ino: Ino) -> impl Iterator<Item = usize> + use<W> {
        let (hash, sets) = (mix(u64::from(ino.0)), self.sets);
        (0..2 * WAYS).map(move |way| {
            let set = reduce((hash >> (way / WAYS * 32)) as u32, sets);
            (set * WAYS + way % WAYS) * ENTRY_WORDS
        })
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
