//! Names of directories, published under sequence words: what they lead to, or that they do not
//! exist.

use oslet::publish;
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::{fold, mix, reduce};
use crate::id::Ino;

/// Entries of a set. Their tags lie together before them, in one line.
const WAYS: usize = 8;
/// Words before the name: the sequence, (directory, inode).
const NAME: usize = 2;
/// Words of a short name, and of its entry: one cache line.
const SHORT_NAME: usize = 6;
const SHORT_WORDS: usize = NAME + SHORT_NAME;
/// Words of a long name, and of its entry.
const LONG_NAME: usize = 32;
const LONG_WORDS: usize = NAME + LONG_NAME;

/// A name in a directory, hashed.
#[derive(Clone, Copy, Debug)]
pub struct Name<'n> {
    dir: Ino,
    bytes: &'n [u8],
    hash: u64,
    /// As it lies in an entry, if it is short.
    words: [u64; SHORT_NAME],
}

impl<'n> Name<'n> {
    /// A name of 1 to 255 bytes; `None` for others, which no directory has.
    #[inline(always)]
    pub fn new(dir: Ino, bytes: &'n [u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > crate::limits::MAX_NAME {
            return None;
        }
        // Spread over all bits, or the directory's and the name's would undo each other.
        let seed = u64::from(dir.0) | (bytes.len() as u64) << 32;
        let mut hash = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let words = words_of(bytes, |word| hash = fold(hash ^ word));
        Some(Self { dir, bytes, hash, words })
    }

    /// Whether it belongs into the index of long names.
    #[inline(always)]
    pub fn is_long(&self) -> bool {
        self.bytes.len() >= SHORT_NAME * 8
    }

    #[inline(always)]
    fn tag(&self) -> u64 {
        self.hash >> 32 | (self.bytes.len() as u64) << 32
    }
}

/// A name as it lies in an entry, each of its words shown to `see` before: zeros behind it, in the
/// last byte its length. Of one that is too long for `N` words nothing but what was shown counts.
#[inline(always)]
fn words_of<const N: usize>(name: &[u8], mut see: impl FnMut(u64)) -> [u64; N] {
    let mut words = [0; N];
    for (at, chunk) in name.chunks(8).enumerate() {
        let word = word_of(chunk);
        see(word);
        if let Some(place) = words.get_mut(at) {
            *place = word;
        }
    }
    words[N - 1] |= (name.len() as u64) << 56;
    words
}

/// Up to eight bytes as a word, the first lowest, zero above the last.
#[inline(always)]
fn word_of(chunk: &[u8]) -> u64 {
    if let Ok(whole) = chunk.try_into() {
        return u64::from_le_bytes(whole);
    }
    // What is read twice falls on itself.
    let at = |index: usize| u64::from(chunk[index]) << (index * 8);
    match (chunk.first_chunk::<4>(), chunk.last_chunk::<4>()) {
        (Some(first), Some(last)) => {
            let shift = (chunk.len() - 4) * 8;
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << shift
        }
        _ if chunk.is_empty() => 0,
        _ => at(0) | at(chunk.len() / 2) | at(chunk.len() - 1),
    }
}

/// The index over its words, to read or, by its owner under a lock, to change.
#[derive(Debug)]
pub struct NameIndex<W> {
    words: W,
    sets: usize,
    entry_words: usize,
}

const fn entry_words(long: bool) -> usize {
    if long { LONG_WORDS } else { SHORT_WORDS }
}

impl NameIndex<()> {
    /// Bytes for an index of `names`.
    pub fn bytes(names: usize, long: bool) -> usize {
        names.div_ceil(WAYS).max(1) * set_words(entry_words(long)) * 8
    }
}

const fn set_words(entry_words: usize) -> usize {
    WAYS + WAYS * entry_words
}

impl<W: ReadWords> NameIndex<W> {
    /// The index that `len` bytes of words hold; `None` if they are too few for any.
    pub fn new(words: W, len: usize, long: bool) -> Option<Self> {
        let entry_words = entry_words(long);
        let sets = len / (set_words(entry_words) * 8);
        (sets > 0).then_some(Self { words, sets, entry_words })
    }

    /// What is known of a name: the inode that it leads to, or that there is none (`Some(None)`).
    #[inline(always)]
    pub fn find(&self, name: &Name<'_>) -> Option<Option<Ino>> {
        if self.entry_words == SHORT_WORDS {
            match self.find_in(name, name.hash as u32, SHORT_WORDS, Self::read_short) {
                None => self.find_there(name),
                found => found,
            }
        } else {
            self.find_long(name)
        }
    }

    /// A short name in the set that few names are in.
    #[cold]
    #[inline(never)]
    fn find_there(&self, name: &Name<'_>) -> Option<Option<Ino>> {
        self.find_in(name, second(name), SHORT_WORDS, Self::read_short)
    }

    #[inline(never)]
    fn find_long(&self, name: &Name<'_>) -> Option<Option<Ino>> {
        let find = |hash| self.find_in(name, hash, LONG_WORDS, Self::read_long);
        find(name.hash as u32).or_else(|| find(second(name)))
    }

    #[inline(always)]
    fn find_in(
        &self,
        name: &Name<'_>,
        hash: u32,
        entry_words: usize,
        read: impl Fn(&Self, usize, &Name<'_>) -> Option<u64>,
    ) -> Option<Option<Ino>> {
        let set = reduce(hash, self.sets) * set_words(entry_words);
        // No branch on what is found: where in its set a name lies cannot be predicted.
        let mut ways = self.words.few::<WAYS>(set).which(0, name.tag());
        while ways != 0 {
            let way = ways.trailing_zeros() as usize / 2;
            if let Some(dir_and_ino) = read(self, set + WAYS + way * entry_words, name)
                && dir_and_ino as u32 == name.dir.0
            {
                let ino = (dir_and_ino >> 32) as u32;
                return Some((ino != 0).then_some(Ino(ino)));
            }
            ways &= ways - 1;
        }
        None
    }

    /// The first value of an entry if it has that name in some directory.
    #[inline(always)]
    fn read_short(&self, base: usize, name: &Name<'_>) -> Option<u64> {
        let entry = self.words.few::<SHORT_WORDS>(base);
        let mut values = [0; SHORT_WORDS - 1];
        if !publish::read_record(&entry, 0, &mut values) {
            return None;
        }
        // All words, without a branch on how many the name has.
        let pairs = values[NAME - 1..].iter().zip(&name.words);
        let differ = pairs.fold(0, |differ, (a, b)| differ | (a ^ b));
        (differ == 0).then_some(values[0])
    }

    fn read_long(&self, base: usize, name: &Name<'_>) -> Option<u64> {
        let mut values = [0; LONG_WORDS - 1];
        if !publish::read_record(&self.words, base, &mut values) {
            return None;
        }
        let words: [u64; LONG_NAME] = words_of(name.bytes, |_| ());
        (values[NAME - 1..] == words).then_some(values[0])
    }

    /// Where a name's tag may lie, and its entry with it: in one of two sets.
    fn places(&self, name: &Name<'_>) -> impl Iterator<Item = (usize, usize)> + use<W> {
        let words = self.entry_words;
        let sets = [name.hash as u32, second(name)];
        let sets = sets.map(|hash| reduce(hash, self.sets) * set_words(words));
        (0..2 * WAYS).map(move |at| {
            let (set, way) = (sets[at / WAYS], at % WAYS);
            (set + way, set + WAYS + way * words)
        })
    }
}

/// What a name's second set is told by. The upper half of its hash is its tag already: names with
/// equal tags are still spread.
fn second(name: &Name<'_>) -> u32 {
    mix(name.hash) as u32
}

impl<W: WriteWords> NameIndex<W> {
    /// Publishes where a name leads, or that it does not exist, in place of what was known of it,
    /// an empty entry, or another name.
    pub fn publish(&self, name: &Name<'_>, ino: Option<Ino>) {
        let mut values = vec![0; self.entry_words - 1];
        values[0] = u64::from(name.dir.0) | u64::from(ino.map_or(0, |ino| ino.0)) << 32;
        if self.entry_words == SHORT_WORDS {
            values[NAME - 1..].copy_from_slice(&name.words);
        } else {
            values[NAME - 1..].copy_from_slice(&words_of::<LONG_NAME>(name.bytes, |_| ()));
        }
        let load = |at: usize| self.words.load(at, Ordering::Relaxed);
        let is_this = |&(tag, entry): &(usize, usize)| {
            // Where it leads may have changed.
            let dir = load(entry + 1) as u32;
            let mut rest = (1..values.len()).map(|at| load(entry + 1 + at) == values[at]);
            load(tag) == name.tag() && dir == name.dir.0 && rest.all(|same| same)
        };
        let place = (self.places(name).find(is_this))
            .or_else(|| self.places(name).find(|&(tag, _)| load(tag) == 0))
            .unwrap_or_else(|| {
                // The owner has no idea which are in use: take turns by what the sets hold now.
                let tags = self.places(name).map(|(tag, _)| load(tag));
                let way = (mix(tags.fold(0, u64::wrapping_add)) % (2 * WAYS) as u64) as usize;
                self.places(name).nth(way).unwrap_or_default()
            });
        let (tag, entry) = place;
        publish::write_record(&self.words, entry, &values);
        // A hint: the entry holds the whole name.
        self.words.store(tag, name.tag(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oslet::words::LocalWords;

    /// Names of all lengths, each one with a zero behind it too, which is another.
    #[test]
    fn names_are_found_as_they_were_published_last() {
        const DIR: Ino = Ino(77);
        for long in [false, true] {
            let lengths = if long { SHORT_NAME * 8..256 } else { 1..SHORT_NAME * 8 };
            let count = lengths.len() * 4;
            let len = NameIndex::bytes(count * 2, long);
            let index = NameIndex::new(LocalWords::new(len / 8), len, long).unwrap();
            let bytes: Vec<u8> = (0..255).map(|at| b'a' + at % 26).collect();
            for len in lengths {
                let mut with_zero = bytes[..len].to_vec();
                with_zero[len - 1] = 0;
                let names = [&bytes[..len], &with_zero];
                let names = names.map(|bytes| Name::new(DIR, bytes).unwrap());
                for (name, ino) in names.iter().zip([Some(Ino(5)), None]) {
                    assert!(name.is_long() == long && index.find(name).is_none());
                    for ino in [None, Some(Ino(9)), ino] {
                        index.publish(name, ino);
                        assert_eq!(index.find(name), Some(ino), "{len} bytes");
                    }
                    let elsewhere = Name::new(Ino(78), name.bytes).unwrap();
                    assert_eq!(index.find(&elsewhere), None);
                }
            }
        }
    }

    #[test]
    fn names_in_many_directories_do_not_displace_one_another() {
        const NAMES: u32 = 4096;
        let len = NameIndex::bytes(NAMES as usize * 4, false);
        let index = NameIndex::new(LocalWords::new(len / 8), len, false).unwrap();
        let of = |n: u32| (Ino(64 + n % 64), format!("{}", n / 64));
        for n in 0..NAMES {
            let (dir, name) = of(n);
            index.publish(&Name::new(dir, name.as_bytes()).unwrap(), Some(Ino(n + 1)));
        }
        for n in 0..NAMES {
            let (dir, name) = of(n);
            let found = index.find(&Name::new(dir, name.as_bytes()).unwrap());
            assert_eq!(found, Some(Some(Ino(n + 1))), "{name} in {dir}");
        }
    }

    #[test]
    fn words_of_fewer_bytes_are_padded_with_zeros() {
        let bytes = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        for len in 0..=8 {
            let mut padded = [0; 8];
            padded[..len].copy_from_slice(&bytes[..len]);
            assert_eq!(word_of(&bytes[..len]), u64::from_le_bytes(padded), "{len} bytes");
        }
    }
}
