//! Where the cached pages of files are: (inode, page) to page reference.

use oslet::id::PageRef;
use oslet::publish;
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::{mix, reduce};
use crate::id::Ino;

const SLOT_WORDS: usize = 2;
const SLOTS: usize = 8;
const BUCKET_WORDS: usize = SLOTS * SLOT_WORDS;
/// Free slots that a key's first bucket should keep while there are more in its second.
const KEPT_FREE: usize = 2;

/// A page of a file: 32 bits of inode and 36 of page number (a file of ext4 has at most 2^36 pages
/// of 4 KiB). The upper four bits of the page lie in the spare bits of the reference's word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    low: u64,
    high: u64,
}

impl Key {
    /// The page that holds the bytes from `page * 4096` on; `None` beyond every file's end.
    #[inline(always)]
    pub fn new(ino: Ino, page: u64) -> Option<Self> {
        if page >> 36 != 0 {
            return None;
        }
        let low = u64::from(ino.0) << 32 | (page & 0xffff_ffff);
        Some(Self { low, high: page >> 32 << PageRef::SPARE_SHIFT })
    }

    #[inline(always)]
    fn hash(self) -> u64 {
        mix(self.low ^ self.high.rotate_left(13))
    }
}

/// A link that was found; use it behind a pin only if [`PageIndex::still`] holds.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// What the page is in.
    pub page: PageRef,
    base: usize,
    value: u64,
}

/// The index over the words of a table, to read or, by its owner under a lock, to change.
#[derive(Debug)]
pub struct PageIndex<W> {
    words: W,
    buckets: usize,
}

impl PageIndex<()> {
    /// Bytes for an index of `frames` pages with a quarter of its slots to spare.
    pub fn bytes(frames: usize) -> usize {
        let slots = frames + frames / 4;
        slots.div_ceil(SLOTS).max(2) * BUCKET_WORDS * 8
    }
}

impl<W: ReadWords> PageIndex<W> {
    /// The index that `len` bytes of words hold; `None` if they are too few for any.
    pub fn new(words: W, len: usize) -> Option<Self> {
        let buckets = len / (BUCKET_WORDS * 8);
        (buckets > 0).then_some(Self { words, buckets })
    }

    /// The link under `key`.
    #[inline(always)]
    pub fn find(&self, key: Key) -> Option<Found> {
        let hash = key.hash();
        self.find_in(reduce(hash as u32, self.buckets), key)
            .or_else(|| self.find_in(reduce((hash >> 32) as u32, self.buckets), key))
    }

    #[inline(always)]
    fn find_in(&self, bucket: usize, key: Key) -> Option<Found> {
        let first = bucket * BUCKET_WORDS;
        let mut slots = self.words.equal::<SLOTS>(first, SLOT_WORDS, key.low);
        // More than one may match: the slot of a link that is gone keeps its key.
        while slots != 0 {
            let base = first + slots.trailing_zeros() as usize * SLOT_WORDS;
            if let Some(value) = publish::linked(&self.words, base, key.low)
                && value >> PageRef::SPARE_SHIFT == key.high >> PageRef::SPARE_SHIFT
                && let Some(page) = PageRef::from_word(value)
            {
                return Some(Found { page, base, value });
            }
            slots &= slots - 1;
        }
        None
    }

    /// Whether a link is still there, behind a pin of its frame.
    #[inline(always)]
    pub fn still(&self, key: Key, found: &Found) -> bool {
        publish::still_linked(&self.words, found.base, key.low, found.value)
    }
}

impl<W: WriteWords> PageIndex<W> {
    /// Links a page under a key that has no link. Returns its slot, or the keys' slots that are all
    /// taken: empty one ([`Self::make_way`], [`Self::unlink`]) and try again.
    pub fn link(&self, key: Key, page: PageRef) -> Result<usize, Vec<usize>> {
        let [first, second] = self.homes(key).map(|bucket| self.free_slots(bucket));
        // Readers look at the first bucket first, but a full one sends later keys away.
        let spill = first.len() <= KEPT_FREE && second.len() > first.len();
        match if spill { second.first() } else { first.first() } {
            Some(&base) => {
                publish::link(&self.words, base, key.low, page.to_word() | key.high);
                Ok(base)
            }
            None => Err(self.homes(key).into_iter().flat_map(slots_of).collect()),
        }
    }

    /// Moves one of the links in `taken` to the other bucket that its key could be in, if there is
    /// room in it. Returns the page that it links, and the slot where that is linked now.
    ///
    /// A reader that has found the old slot finds it changed behind its pin, and asks the owner.
    pub fn make_way(&self, taken: &[usize]) -> Option<(PageRef, usize)> {
        taken.iter().find_map(|&slot| {
            let low = self.words.load(slot, Ordering::Relaxed);
            let value = self.words.load(slot + 1, Ordering::Relaxed);
            let high = value >> PageRef::SPARE_SHIFT << PageRef::SPARE_SHIFT;
            let here = slot / BUCKET_WORDS;
            let homes = self.homes(Key { low, high });
            let other = homes.into_iter().find(|&bucket| bucket != here)?;
            let to = *self.free_slots(other).first()?;
            let page = PageRef::from_word(value)?;
            publish::link(&self.words, to, low, value);
            publish::unlink(&self.words, slot);
            Some((page, to))
        })
    }

    fn homes(&self, key: Key) -> [usize; 2] {
        let hash = key.hash();
        [hash as u32, (hash >> 32) as u32].map(|half| reduce(half, self.buckets))
    }

    fn free_slots(&self, bucket: usize) -> Vec<usize> {
        let empty = |base: &usize| self.words.load(base + 1, Ordering::Relaxed) == 0;
        slots_of(bucket).filter(empty).collect()
    }

    /// What a slot links.
    pub fn at(&self, slot: usize) -> Option<PageRef> {
        PageRef::from_word(self.words.load(slot + 1, Ordering::Relaxed))
    }

    /// Empties a slot. Returns what it linked; retire it only behind this.
    pub fn unlink(&self, slot: usize) -> Option<PageRef> {
        let page = self.at(slot);
        publish::unlink(&self.words, slot);
        page
    }
}

fn slots_of(bucket: usize) -> impl Iterator<Item = usize> {
    (0..SLOTS).map(move |slot| bucket * BUCKET_WORDS + slot * SLOT_WORDS)
}

#[cfg(test)]
mod tests;
