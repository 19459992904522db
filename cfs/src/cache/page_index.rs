//! Where the cached pages of files are: (inode, page) to page reference.

use std::ops::Range;

use oslet::id::PageRef;
use oslet::publish::{self, Slot};
use oslet::sync::Ordering;
use oslet::words::{ReadLine, ReadLines, ReadWords, WriteWords, line_of};

use super::{fold, mix};
use crate::id::Ino;

const SLOTS: usize = 4;
/// The keys of a bucket, then its references: one line.
const BUCKET_WORDS: usize = SLOTS * 2;
/// 2^64 divided by the golden ratio: multiples of it, modulo 2^64, keep away from one another.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the keys of one file's pages have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileKey {
    /// The key of its first page: no other file's pages have these low halves but by chance.
    low: u64,
    /// The hash of its first page.
    first: u64,
}

impl FileKey {
    /// Of the file with that number.
    #[inline]
    pub fn new(ino: Ino) -> Self {
        let mixed = mix(ino.0.into());
        Self { low: u64::from(ino.0) << 32 | mixed >> 32, first: mixed.rotate_right(32) }
    }

    /// Of one of its first 2^32 pages.
    #[inline(always)]
    pub fn near(self, page: u32) -> Key {
        let page = u64::from(page);
        let hash = self.first.wrapping_add(page.wrapping_mul(GOLDEN));
        Key { low: self.low ^ page, high: 0, hash }
    }

    /// Of any of its pages; `None` beyond every file's end.
    pub fn page(self, page: u64) -> Option<Key> {
        let high = page >> 32;
        let near = self.near(page as u32);
        let hash = near.hash.wrapping_add(fold(high));
        let key = Key { high: high << PageRef::SPARE_SHIFT, hash, ..near };
        match high {
            0 => Some(near),
            1..16 => Some(key),
            _ => None,
        }
    }
}

/// A page of a file: 32 bits of inode and 36 of page number (a file of ext4 has at most 2^36 pages
/// of 4 KiB). The upper four bits of the page lie in the spare bits of the reference's word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    low: u64,
    high: u64,
    /// Chooses the first bucket. Of pages that follow one another none come close, so that a
    /// file's pages fill all buckets alike.
    hash: u64,
}

impl Key {
    /// The page that holds the bytes from `page * 4096` on; `None` beyond every file's end.
    pub fn new(ino: Ino, page: u64) -> Option<Self> {
        FileKey::new(ino).page(page)
    }

    /// Of the page with that key and that reference's word in its slot.
    fn in_slot(low: u64, value: u64) -> Self {
        let (ino, page) = named(low, value);
        let near = FileKey::new(ino).near(page as u32);
        Self::new(ino, page).unwrap_or(near)
    }

    /// Chooses the second bucket.
    fn other_hash(self) -> u64 {
        fold(self.low ^ self.high)
    }
}

/// The inode and the page that a slot's words name.
fn named(low: u64, value: u64) -> (Ino, u64) {
    let ino = Ino((low >> 32) as u32);
    let page = (low ^ FileKey::new(ino).low) & 0xffff_ffff;
    (ino, page | value >> PageRef::SPARE_SHIFT << 32)
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

impl<W: ReadLines> PageIndex<W> {
    /// The index in lines, to read it.
    pub fn read(lines: W) -> Self {
        let buckets = lines.count();
        Self { words: lines, buckets }
    }

    /// What is linked in the first slot that looks like that key's, in the first bucket that it
    /// could be in: most pages are there. No branch but on that; what is returned need not be a
    /// reference, nor the key's, before [`Found::still`] says so.
    #[inline(always)]
    pub fn glance(&self, key: Key) -> Option<Found<impl ReadWords + Copy>> {
        let bucket = self.words.pick(key.hash);
        let at = bucket.which_of_four(key.low as u32).trailing_zeros() as usize;
        if at >= SLOTS {
            return None;
        }
        let word = publish::linked(&bucket, slot(at)) ^ key.high;
        Some(Found { word, slot: slot(at), bucket, key })
    }

    /// The link under `key`.
    pub fn find(&self, key: Key) -> Option<Found<impl ReadWords + Copy>> {
        [key.hash, key.other_hash()].into_iter().find_map(|hash| {
            let bucket = self.words.pick(hash);
            // More than one may match: the slot of a link that is gone keeps its key.
            (0..SLOTS).find_map(|at| {
                if bucket.load(at, Ordering::Relaxed) != key.low {
                    return None;
                }
                let word = publish::linked(&bucket, slot(at)) ^ key.high;
                // Without its spare bits a reference, or an empty slot.
                let good = word >> PageRef::SPARE_SHIFT == 0 && word != 0;
                good.then_some(Found { word, slot: slot(at), bucket, key })
            })
        })
    }
}

impl<W: ReadWords> PageIndex<W> {
    /// The index that `len` bytes of words hold; `None` if they are too few for any.
    pub fn new(words: W, len: usize) -> Option<Self> {
        let buckets = len / (BUCKET_WORDS * 8);
        (buckets > 0).then_some(Self { words, buckets })
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
    /// room in it; else one of the links that are in the way there. Returns the page that was
    /// linked in that slot, and the slot where it is linked now: try again.
    ///
    /// A reader that has found the old slot finds it changed behind its pin, and asks the owner.
    pub fn make_way(&self, taken: &[usize]) -> Option<(PageRef, usize)> {
        let moved = taken.iter().find_map(|&at| self.move_away(at));
        moved.or_else(|| {
            let others = taken.iter().filter_map(|&at| self.other_bucket(at));
            others.flat_map(slots_of).find_map(|at| self.move_away(at))
        })
    }

    /// The other bucket that what is linked in a slot could be in.
    fn other_bucket(&self, at: usize) -> Option<usize> {
        let low = self.words.load(slot(at).key, Ordering::Relaxed);
        let value = self.words.load(slot(at).value, Ordering::Relaxed);
        let here = at / BUCKET_WORDS;
        self.homes(Key::in_slot(low, value)).into_iter().find(|&bucket| bucket != here)
    }

    fn move_away(&self, at: usize) -> Option<(PageRef, usize)> {
        let to = self.free_slot(self.other_bucket(at)?)?;
        let low = self.words.load(slot(at).key, Ordering::Relaxed);
        let value = self.words.load(slot(at).value, Ordering::Relaxed);
        let page = PageRef::from_word(value)?;
        publish::link(&self.words, slot(to), low, value);
        publish::unlink(&self.words, slot(at));
        Some((page, to))
    }

    fn homes(&self, key: Key) -> [usize; 2] {
        [key.hash, key.other_hash()].map(|hash| line_of(hash, self.buckets))
    }

    fn free_slot(&self, bucket: usize) -> Option<usize> {
        slots_of(bucket).find(|&at| self.words.load(slot(at).value, Ordering::Relaxed) == 0)
    }

    /// The slot of a key's link, and what it links.
    pub fn locate(&self, key: Key) -> Option<(usize, PageRef)> {
        let links = |at: usize| {
            if self.words.load(slot(at).key, Ordering::Relaxed) != key.low {
                return None;
            }
            let value = self.words.load(slot(at).value, Ordering::Relaxed);
            let same = value >> PageRef::SPARE_SHIFT == key.high >> PageRef::SPARE_SHIFT;
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
            if low >> 32 != u64::from(ino.0) {
                return None;
            }
            let (_, page) = named(low, value);
            Some((page, at, PageRef::from_word(value).filter(|_| range.contains(&page))?))
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
