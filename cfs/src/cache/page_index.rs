//! Where the cached pages of files are: (inode, page) to page reference.

use std::ops::Range;

use oslet::id::PageRef;
use oslet::publish::{self, Slot};
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::{fold, reduce};
use crate::id::Ino;

const SLOTS: usize = 8;
/// The keys of a bucket, then its references: a line each.
const BUCKET_WORDS: usize = SLOTS * 2;

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
        fold(self.low ^ self.high)
    }
}

/// A link that was found; use it behind a pin only if [`Found::still`] holds.
#[derive(Clone, Copy, Debug)]
pub struct Found<B> {
    /// What the page is in, in the word of a reference.
    pub word: u64,
    /// Of the bucket.
    slot: Slot,
    bucket: B,
    key: Key,
}

impl<B: ReadWords> Found<B> {
    /// What the page is in.
    pub fn page(&self) -> PageRef {
        PageRef::named_by(self.word)
    }

    /// Whether the link is there, behind a pin of its frame.
    #[inline(always)]
    pub fn still(&self) -> bool {
        let value = self.word ^ self.key.high;
        publish::still_linked(&self.bucket, self.slot, self.key.low, value)
    }
}

/// The index over the words of a table, to read or, by its owner under a lock, to change.
#[derive(Debug)]
pub struct PageIndex<W> {
    words: W,
    buckets: usize,
}

// The owner keeps the place of a slot in 32 bits.
const _: () = assert!(PageIndex::bytes(oslet::limits::MAX_FRAMES) / 8 < u32::MAX as usize);

impl PageIndex<()> {
    /// Bytes for an index of `frames` pages with a fifth of its slots to spare.
    pub const fn bytes(frames: usize) -> usize {
        let buckets = (frames + frames / 4).div_ceil(SLOTS);
        (if buckets < 2 { 2 } else { buckets }) * BUCKET_WORDS * 8
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
    pub fn find(&self, key: Key) -> Option<Found<impl ReadWords + Copy>> {
        let hash = key.hash();
        let mut bucket = self.bucket(reduce(hash as u32, self.buckets));
        let mut found = Self::find_in(bucket, key);
        if found.0 == 0 {
            let other = reduce((hash >> 32) as u32, self.buckets);
            bucket = self.bucket(other);
            found = self.find_there(other, key);
        }
        let (word, at) = found;
        (word != 0).then(|| Found { word, slot: slot(at % SLOTS), bucket, key })
    }

    /// The word of the reference that a bucket links under `key`, zero for none, and its slot. Two
    /// numbers, not an option of a structure: what is returned in memory is waited for.
    #[inline(always)]
    fn find_in(bucket: impl ReadWords + Copy, key: Key) -> (u64, usize) {
        bucket.will_load(SLOTS);
        let mut slots = bucket.which(0, key.low);
        // More than one may match: the slot of a link that is gone keeps its key.
        while slots != 0 {
            let at = slots.trailing_zeros() as usize / 2 % SLOTS;
            let word = publish::linked(&bucket, slot(at)) ^ key.high;
            // Without its spare bits a reference, or an empty slot.
            if word >> PageRef::SPARE_SHIFT == 0 && word != 0 {
                return (word, at);
            }
            slots &= slots - 1;
        }
        (0, 0)
    }

    /// As [`Self::find_in`], for the bucket that few keys are in.
    #[cold]
    #[inline(never)]
    fn find_there(&self, bucket: usize, key: Key) -> (u64, usize) {
        Self::find_in(self.bucket(bucket), key)
    }

    #[inline(always)]
    fn bucket(&self, bucket: usize) -> impl ReadWords + Copy {
        self.words.few::<BUCKET_WORDS>(bucket * BUCKET_WORDS)
    }
}

impl<W: WriteWords> PageIndex<W> {
    /// Links a page under a key that has no link. Returns its slot, or the keys' slots that are all
    /// taken: empty one ([`Self::make_way`], [`Self::unlink`]) and try again.
    pub fn link(&self, key: Key, page: PageRef) -> Result<usize, Vec<usize>> {
        // Readers look at the first bucket first: the other serves when that one is full.
        let free = self.homes(key).into_iter().find_map(|bucket| self.free_slot(bucket));
        match free {
            Some(at) => {
                publish::link(&self.words, slot(at), key.low, page.to_word() | key.high);
                Ok(at)
            }
            None => Err(self.homes(key).into_iter().flat_map(slots_of).collect()),
        }
    }

    /// Moves one of the links in `taken` to the other bucket that its key could be in, if there is
    /// room in it. Returns the page that it links, and the slot where that is linked now.
    ///
    /// A reader that has found the old slot finds it changed behind its pin, and asks the owner.
    pub fn make_way(&self, taken: &[usize]) -> Option<(PageRef, usize)> {
        taken.iter().find_map(|&at| {
            let from = slot(at);
            let low = self.words.load(from.key, Ordering::Relaxed);
            let value = self.words.load(from.value, Ordering::Relaxed);
            let high = value >> PageRef::SPARE_SHIFT << PageRef::SPARE_SHIFT;
            let here = at / BUCKET_WORDS;
            let homes = self.homes(Key { low, high });
            let other = homes.into_iter().find(|&bucket| bucket != here)?;
            let to = self.free_slot(other)?;
            let page = PageRef::from_word(value)?;
            publish::link(&self.words, slot(to), low, value);
            publish::unlink(&self.words, from);
            Some((page, to))
        })
    }

    fn homes(&self, key: Key) -> [usize; 2] {
        let hash = key.hash();
        [hash as u32, (hash >> 32) as u32].map(|half| reduce(half, self.buckets))
    }

    fn free_slot(&self, bucket: usize) -> Option<usize> {
        slots_of(bucket).find(|&at| self.words.load(slot(at).value, Ordering::Relaxed) == 0)
    }

    /// The slot of a key's link, and what it links.
    pub fn locate(&self, key: Key) -> Option<(usize, PageRef)> {
        let links = |at: usize| {
            let low = self.words.load(slot(at).key, Ordering::Relaxed);
            let value = self.words.load(slot(at).value, Ordering::Relaxed);
            let same =
                low == key.low && value >> PageRef::SPARE_SHIFT == key.high >> PageRef::SPARE_SHIFT;
            Some((at, PageRef::from_word(value).filter(|_| same)?))
        };
        self.homes(key).into_iter().flat_map(slots_of).find_map(links)
    }

    /// The pages of a file in `range` that are linked: number, slot, reference. Looks each up, or
    /// goes through the whole index where that is less.
    pub fn pages_of(&self, ino: Ino, range: Range<u64>) -> Vec<(u64, usize, PageRef)> {
        let slots = (self.buckets * SLOTS) as u64;
        if range.end.saturating_sub(range.start) <= slots / 8 {
            let known = |page| {
                let (at, found) = self.locate(Key::new(ino, page)?)?;
                Some((page, at, found))
            };
            return range.filter_map(known).collect();
        }
        let of_slot = |at: usize| {
            let low = self.words.load(slot(at).key, Ordering::Relaxed);
            let value = self.words.load(slot(at).value, Ordering::Relaxed);
            let page = low & 0xffff_ffff | value >> PageRef::SPARE_SHIFT << 32;
            let wanted = low >> 32 == u64::from(ino.0) && range.contains(&page);
            Some((page, at, PageRef::from_word(value).filter(|_| wanted)?))
        };
        (0..self.buckets).flat_map(slots_of).filter_map(of_slot).collect()
    }

    /// What a slot links.
    pub fn at(&self, at: usize) -> Option<PageRef> {
        PageRef::from_word(self.words.load(slot(at).value, Ordering::Relaxed))
    }

    /// Empties a slot. Returns what it linked; retire it only behind this.
    pub fn unlink(&self, at: usize) -> Option<PageRef> {
        let page = self.at(at);
        publish::unlink(&self.words, slot(at));
        page
    }
}

/// The slots of a bucket, each told by its key's place.
fn slots_of(bucket: usize) -> Range<usize> {
    bucket * BUCKET_WORDS..bucket * BUCKET_WORDS + SLOTS
}

#[inline(always)]
fn slot(at: usize) -> Slot {
    Slot { key: at, value: at + SLOTS }
}

#[cfg(test)]
mod tests;
