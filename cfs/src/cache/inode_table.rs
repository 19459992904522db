//! Attributes of inodes, published under sequence words.

use oslet::publish;
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::record::{
    HEAD_VALUES, Head, InodeRecord, RECORD_VALUES, SIZE_WORD, TARGET_VALUES, changed_at, has_target,
};
use super::{fold, mix, reduce};
use crate::disk::inode::Kind;
use crate::disk::time::Timestamp;
use crate::id::Ino;

/// Words of an entry: two cache lines.
const ENTRY_WORDS: usize = 1 + HEAD_VALUES;
/// Entries of a set. Their keys lie together before them, in one line.
const WAYS: usize = 8;
const SET_WORDS: usize = WAYS + WAYS * ENTRY_WORDS;
/// A target's key is its inode's number and this.
const TARGET: u64 = 1 << 32;

/// The table over its words, to read or, by its owner under a lock, to change.
#[derive(Debug)]
pub struct InodeTable<W> {
    words: W,
    sets: usize,
}

impl InodeTable<()> {
    /// Bytes for a table of `inodes` records.
    pub fn bytes(inodes: usize) -> usize {
        inodes.div_ceil(WAYS).max(1) * SET_WORDS * 8
    }
}

impl<W: ReadWords> InodeTable<W> {
    /// The table that `len` bytes of words hold; `None` if they are too few for any.
    pub fn new(words: W, len: usize) -> Option<Self> {
        let sets = len / (SET_WORDS * 8);
        (sets > 0).then_some(Self { words, sets })
    }

    /// What is published of an inode.
    #[inline]
    pub fn find(&self, ino: Ino) -> Option<InodeRecord> {
        let mut head = Head::default();
        if !self.read(ino, &mut head) {
            return None;
        }
        if has_target(&head) { self.with_target(&head) } else { InodeRecord::from_head(&head) }
    }

    /// The record with that head and a target, which has an entry of its own.
    #[cold]
    #[inline(never)]
    fn with_target(&self, head: &Head) -> Option<InodeRecord> {
        let mut values = [0; 1 + TARGET_VALUES];
        if !self.read_key(head[0] as u32 as u64 | TARGET, &mut values) || values[0] != head[0] {
            return None;
        }
        let mut words = [0; RECORD_VALUES];
        words[..HEAD_VALUES].copy_from_slice(head);
        words[HEAD_VALUES..].copy_from_slice(&values[1..]);
        InodeRecord::from_words(&words)
    }

    /// The bytes that a file is long, as far as it is published.
    #[inline]
    pub fn size(&self, ino: Ino) -> Option<u64> {
        let mut values = [0; SIZE_WORD + 1];
        self.read(ino, &mut values).then(|| values[SIZE_WORD])
    }

    /// Whether an inode is a directory, as far as it is published.
    #[inline(always)]
    pub fn is_directory(&self, ino: Ino) -> Option<bool> {
        let mut values = [0; 2];
        let found = self.read(ino, &mut values);
        found.then(|| Kind::from_mode(values[1] as u16) == Some(Kind::Directory))
    }

    /// Copies the first values of an inode's record. Returns whether it is published; what was
    /// copied counts only then.
    #[inline(always)]
    pub fn read<const N: usize>(&self, ino: Ino, values: &mut [u64; N]) -> bool {
        self.read_key(ino.0.into(), values)
    }

    #[inline(always)]
    fn read_key<const N: usize>(&self, key: u64, values: &mut [u64; N]) -> bool {
        let hash = fold(key);
        self.read_in(self.set(hash as u32), key, values)
            || self.read_there(self.set((hash >> 32) as u32), key, values)
    }

    /// As [`Self::read_in`], for the set that few inodes are in.
    #[cold]
    #[inline(never)]
    fn read_there<const N: usize>(&self, set: usize, key: u64, values: &mut [u64; N]) -> bool {
        self.read_in(set, key, values)
    }

    #[inline(always)]
    fn read_in<const N: usize>(&self, set: usize, key: u64, values: &mut [u64; N]) -> bool {
        // No branch on what is found: where in its set an inode lies cannot be predicted.
        let mut ways = self.words.few::<WAYS>(set).which(0, key);
        while ways != 0 {
            let way = ways.trailing_zeros() as usize / 2;
            let entry = self.words.few::<ENTRY_WORDS>(set + WAYS + way * ENTRY_WORDS);
            // The entry may have been given to another inode since the glance at its key.
            if publish::read_record(&entry, 0, values) && values[0] as u32 == key as u32 {
                return true;
            }
            ways &= ways - 1;
        }
        false
    }

    /// The first word of the set for half of a hash.
    #[inline(always)]
    fn set(&self, hash: u32) -> usize {
        reduce(hash, self.sets) * SET_WORDS
    }

    /// Where a key may lie, and its entry with it: in one of two sets.
    fn places(&self, key: u64) -> impl Iterator<Item = (usize, usize)> + use<W> {
        let hash = fold(key);
        let sets = [self.set(hash as u32), self.set((hash >> 32) as u32)];
        (0..2 * WAYS).map(move |at| {
            let (set, way) = (sets[at / WAYS], at % WAYS);
            (set + way, set + WAYS + way * ENTRY_WORDS)
        })
    }
}

impl<W: WriteWords> InodeTable<W> {
    /// Publishes a record in place of the inode's last one, an empty entry, or another inode's.
    pub fn publish(&self, record: &InodeRecord) {
        let values = record.to_words();
        let (head, target) = values.split_at(HEAD_VALUES);
        let ino = u64::from(record.attr.ino.0);
        if record.target.is_some() {
            let mut with_target = [0; 1 + TARGET_VALUES];
            with_target[0] = head[0];
            with_target[1..].copy_from_slice(target);
            self.write(ino | TARGET, &with_target);
        }
        self.write(ino, head);
    }

    fn write(&self, key: u64, values: &[u64]) {
        let known = |place: &(usize, usize)| self.words.load(place.0, Ordering::Relaxed);
        let place = (self.places(key).find(|place| known(place) == key))
            .or_else(|| self.places(key).find(|place| known(place) == 0))
            .unwrap_or_else(|| {
                // The owner has no idea which are in use: take turns by what the sets hold now.
                let turn = self.places(key).map(|place| known(&place)).fold(0, u64::wrapping_add);
                let way = (mix(turn) % (2 * WAYS) as u64) as usize;
                self.places(key).nth(way).unwrap_or_default()
            });
        let (at, entry) = place;
        publish::write_record(&self.words, entry, values);
        // A hint: the entry says itself whose it is.
        self.words.store(at, key, Ordering::Relaxed);
    }

    /// Puts the time into an inode's record at which its contents have changed; nothing else has
    /// since it was published. Whether there is a record.
    pub fn publish_change(&self, ino: Ino, time: Timestamp) -> bool {
        let key = u64::from(ino.0);
        let known = |place: &(usize, usize)| self.words.load(place.0, Ordering::Relaxed) == key;
        let Some((_, entry)) = self.places(key).find(known) else { return false };
        let load = |index: usize| self.words.load(entry + 1 + index, Ordering::Relaxed);
        let same = load(0) as u32 == ino.0;
        if same {
            let changes = changed_at(time, load);
            publish::change_record(&self.words, entry, changes.into_iter());
        }
        same
    }

    /// Takes an inode's record away: who looks for it asks the owner.
    pub fn remove(&self, ino: Ino) {
        for key in [u64::from(ino.0), u64::from(ino.0) | TARGET] {
            for (at, entry) in self.places(key) {
                if self.words.load(at, Ordering::Relaxed) == key {
                    publish::clear_record(&self.words, entry, ENTRY_WORDS - 1);
                    self.words.store(at, 0, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oslet::words::LocalWords;

    fn record(ino: u32, target: Option<&[u8]>) -> InodeRecord {
        let mut words = [0; RECORD_VALUES];
        words[0] = ino.into();
        words[1] = if target.is_some() { 0o120_777 } else { 0o100_644 };
        words[SIZE_WORD] = u64::from(ino) * 3;
        let record = InodeRecord::from_words(&words).unwrap();
        InodeRecord { target: target.map(<[u8]>::to_vec), ..record }
    }

    #[test]
    fn inodes_of_a_table_that_is_far_from_full_are_all_found() {
        const INODES: u32 = 4096;
        let len = InodeTable::bytes(INODES as usize * 5);
        let table = InodeTable::new(LocalWords::new(len / 8), len).unwrap();
        let of = |n: u32| {
            let target = format!("../{n}");
            record(n, n.is_multiple_of(3).then_some(target.as_bytes()))
        };
        assert_eq!(table.find(Ino(1)), None);
        for n in (1..INODES).chain(1..100) {
            table.publish(&of(n));
        }
        for n in 1..INODES {
            assert_eq!(table.find(Ino(n)), Some(of(n)));
            assert_eq!(table.size(Ino(n)), Some(u64::from(n) * 3));
            assert_eq!(table.is_directory(Ino(n)), Some(false));
        }
        assert_eq!((table.find(Ino(INODES)), table.size(Ino(INODES))), (None, None));
    }

    #[test]
    fn a_new_time_is_put_into_a_record_that_is_there() {
        let len = InodeTable::bytes(64);
        let table = InodeTable::new(LocalWords::new(len / 8), len).unwrap();
        let time = Timestamp { seconds: 7, nanoseconds: 8 };
        assert!(!table.publish_change(Ino(12), time));
        assert_eq!(table.find(Ino(12)), None);
        let mut wanted = record(12, None);
        table.publish(&wanted);
        assert!(table.publish_change(Ino(12), time));
        (wanted.attr.mtime, wanted.attr.ctime) = (time, time);
        assert_eq!(table.find(Ino(12)), Some(wanted));
        table.remove(Ino(12));
        assert!(!table.publish_change(Ino(12), time));
        assert_eq!(table.find(Ino(12)), None);
    }

    #[test]
    fn a_record_that_is_taken_away_is_found_no_more() {
        let len = InodeTable::bytes(64);
        let table = InodeTable::new(LocalWords::new(len / 8), len).unwrap();
        table.publish(&record(12, None));
        table.publish(&record(13, Some(b"target")));
        table.remove(Ino(12));
        assert_eq!((table.find(Ino(12)), table.size(Ino(12))), (None, None));
        assert_eq!(table.find(Ino(13)), Some(record(13, Some(b"target"))));
        table.remove(Ino(13));
        assert_eq!(table.find(Ino(13)), None);
        table.publish(&record(12, None));
        assert_eq!(table.find(Ino(12)), Some(record(12, None)));
    }
}
