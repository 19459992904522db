//! Names of directories, published under sequence words: what they lead to, or that they do not
//! exist.

use oslet::publish;
use oslet::sync::Ordering;
use oslet::words::{ReadWords, WriteWords};

use super::{fold, mix, reduce};
use crate::id::Ino;

const WAYS: usize = 4;
/// Words of an entry for names of up to 40 bytes: one cache line.
const SHORT_WORDS: usize = 8;
/// Words of an entry for names of up to 255 bytes.
const LONG_WORDS: usize = 40;
/// Words before the name: the sequence, (directory, inode), (hash, length).
const NAME: usize = 3;
/// Bytes of the longest short name.
const SHORT_BYTES: usize = (SHORT_WORDS - NAME) * 8;

/// A name in a directory, hashed.
#[derive(Clone, Copy, Debug)]
pub struct Name<'n> {
    dir: Ino,
    bytes: &'n [u8],
    hash: u64,
}

impl<'n> Name<'n> {
    /// A name of 1 to 255 bytes; `None` for others, which no directory has.
    #[inline]
    pub fn new(dir: Ino, bytes: &'n [u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > crate::limits::MAX_NAME {
            return None;
        }
        let mut hash = u64::from(dir.0) | (bytes.len() as u64) << 32;
        for chunk in bytes.chunks(8) {
            hash = fold(hash ^ word_of(chunk));
        }
        Some(Self { dir, bytes, hash: mix(hash) })
    }

    /// Whether it belongs into the index of long names.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.bytes.len() > SHORT_BYTES
    }

    fn tag(&self) -> u64 {
        self.hash >> 32 | (self.bytes.len() as u64) << 32
    }
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
        names.div_ceil(WAYS).max(1) * WAYS * entry_words(long) * 8
    }
}

impl<W: ReadWords> NameIndex<W> {
    /// The index that `len` bytes of words hold; `None` if they are too few for any.
    pub fn new(words: W, len: usize, long: bool) -> Option<Self> {
        let entry_words = entry_words(long);
        let sets = len / (WAYS * entry_words * 8);
        (sets > 0).then_some(Self { words, sets, entry_words })
    }

    /// What is known of a name: the inode that it leads to, or that there is none (`Some(None)`).
    #[inline]
    pub fn find(&self, name: &Name<'_>) -> Option<Option<Ino>> {
        if self.entry_words == SHORT_WORDS {
            self.find_as::<{ SHORT_WORDS - 1 }>(name)
        } else {
            self.find_as::<{ LONG_WORDS - 1 }>(name)
        }
    }

    /// With room for the `N` values of an entry.
    #[inline(always)]
    fn find_as<const N: usize>(&self, name: &Name<'_>) -> Option<Option<Ino>> {
        let mut values = [0; N];
        let values = values.get_mut(..NAME - 1 + name.bytes.len().div_ceil(8))?;
        let tag = name.tag();
        (0..2).find_map(|half| {
            let set = self.set(name, half);
            // No branch on what is found: where in its set a name lies cannot be predicted.
            let mut ways = (0..WAYS).fold(0u32, |mask, way| {
                let found = self.words.load(set + way * self.entry_words + 2, Ordering::Relaxed);
                mask | u32::from(found == tag) << way
            });
            while ways != 0 {
                let base = set + ways.trailing_zeros() as usize * self.entry_words;
                if let Some(found) = self.read(base, name, values) {
                    return Some(found);
                }
                ways &= ways - 1;
            }
            None
        })
    }

    #[inline(always)]
    fn read(&self, base: usize, name: &Name<'_>, values: &mut [u64]) -> Option<Option<Ino>> {
        publish::read_record(&self.words, base, values)?;
        let same = values[0] as u32 == name.dir.0
            && values[1] == name.tag()
            && name.bytes.chunks(8).zip(&values[NAME - 1..]).all(|(c, &w)| word_of(c) == w);
        same.then(|| Some(Ino((values[0] >> 32) as u32)).filter(|ino| ino.0 != 0))
    }

    /// Where a name may lie: in one of two sets.
    fn entries(&self, name: &Name<'_>) -> impl Iterator<Item = usize> + use<W> {
        let (sets, words) = ([self.set(name, 0), self.set(name, 1)], self.entry_words);
        (0..2 * WAYS).map(move |way| sets[way / WAYS] + way % WAYS * words)
    }

    /// The first word of one of those sets.
    #[inline(always)]
    fn set(&self, name: &Name<'_>, half: usize) -> usize {
        // The upper half is the tag already: names with equal tags are still spread.
        let hash = if half == 0 { name.hash } else { mix(name.hash) };
        reduce(hash as u32, self.sets) * WAYS * self.entry_words
    }
}

impl<W: WriteWords> NameIndex<W> {
    /// Publishes where a name leads, or that it does not exist, in place of what was known of it,
    /// an empty entry, or another name.
    pub fn publish(&self, name: &Name<'_>, ino: Option<Ino>) {
        let mut values = vec![0; self.entry_words - 1];
        values[0] = u64::from(name.dir.0) | u64::from(ino.map_or(0, |ino| ino.0)) << 32;
        values[1] = name.tag();
        for (word, chunk) in values[NAME - 1..].iter_mut().zip(name.bytes.chunks(8)) {
            *word = word_of(chunk);
        }
        let tag = |base: usize| self.words.load(base + 2, Ordering::Relaxed);
        let is_this = |base: &usize| {
            (1..self.entry_words).all(|at| {
                let found = self.words.load(base + at, Ordering::Relaxed);
                // Where it leads may have changed.
                at == 1 && found as u32 == name.dir.0 || found == values[at - 1]
            })
        };
        let entry = (self.entries(name).find(is_this))
            .or_else(|| self.entries(name).find(|&base| tag(base) == 0))
            .unwrap_or_else(|| {
                // The owner has no idea which are in use: take turns by what the set holds now.
                let turn = self.entries(name).map(tag).fold(0, u64::wrapping_add);
                let way = (mix(turn) % (2 * WAYS) as u64) as usize;
                self.entries(name).nth(way).unwrap_or_default()
            });
        publish::write_record(&self.words, entry, &values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
