//! Words of memory that may be shared with other processes: what the lock-free protocols run on.

use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering};

/// Words that can be loaded atomically.
pub trait ReadWords {
    /// Loads word `index`.
    fn load(&self, index: usize, order: Ordering) -> u64;

    /// Which of the eight words from `base` on, a multiple of eight, are `value`: bit `2 * n`
    /// for the `n`-th. A hint, of relaxed loads: whoever acts on a word loads it again.
    #[inline(always)]
    fn which(&self, base: usize, value: u64) -> u32 {
        let same = |n: usize| self.load(base + n, Ordering::Relaxed) == value;
        (0..8).fold(0, |mask, n| mask | u32::from(same(n)) << (2 * n))
    }

    /// The `N` words from `base` on, in bounds: of shared memory the bounds are looked at here and
    /// not at each word.
    #[inline(always)]
    fn few<const N: usize>(&self, base: usize) -> impl ReadWords + Copy {
        Part { words: self, base }
    }
}

/// Words by lines of eight, of which there is at least one.
pub trait ReadLines {
    /// How many whole lines there are.
    fn count(&self) -> usize;

    /// The line that a hash chooses: each for as many hashes as any other.
    fn pick(&self, hash: u64) -> impl ReadLine;
}

/// The eight words of a line.
pub trait ReadLine: ReadWords + Copy {
    /// Which of the first four words have that low half: bit `n` for the `n`-th. A hint, of relaxed
    /// loads: whoever acts on a word loads it again.
    #[inline(always)]
    fn which_of_four(self, low: u32) -> u32 {
        let same = |n: usize| self.load(n, Ordering::Relaxed) as u32 == low;
        (0..4).fold(0, |mask, n| mask | u32::from(same(n)) << n)
    }
}

/// Which of `count` lines a hash chooses.
#[inline(always)]
pub fn line_of(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// Some of a set of words.
struct Part<'w, W: ?Sized> {
    words: &'w W,
    base: usize,
}

impl<W: ?Sized> Clone for Part<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W: ?Sized> Copy for Part<'_, W> {}

impl<W: ReadWords + ?Sized> ReadWords for Part<'_, W> {
    #[inline(always)]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words.load(self.base + index, order)
    }
}

impl<W: ReadWords + ?Sized> ReadLine for Part<'_, W> {}

/// Words that this side may also store.
pub trait WriteWords: ReadWords {
    /// Stores word `index`.
    fn store(&self, index: usize, value: u64, order: Ordering);

    /// Says that the line of word `index` will be stored to soon.
    #[inline(always)]
    fn will_store(&self, index: usize) {
        let _ = index;
    }
}

/// Words of this process alone, which all clones show: for models, tests and fuzzing of what else
/// runs on shared memory.
#[derive(Clone, Debug)]
pub struct LocalWords(Arc<[AtomicU64]>);

impl LocalWords {
    /// So many words, all zero.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What they are now.
    pub fn to_vec(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }
}

impl ReadWords for LocalWords {
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0[index].load(order)
    }
}

impl ReadLines for LocalWords {
    fn count(&self) -> usize {
        self.len() / 8
    }

    fn pick(&self, hash: u64) -> impl ReadLine {
        Part { words: self, base: line_of(hash, ReadLines::count(self)) * 8 }
    }
}

impl WriteWords for LocalWords {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[index].store(value, order);
    }
}

#[cfg(not(loom))]
mod shared {
    use super::{Ordering, ReadLine, ReadLines, ReadWords, WriteWords};
    use crate::region::{Few, Line, Lines, Ro, Rw};
    use crate::sync::AtomicU64;

    impl ReadWords for Ro<AtomicU64> {
        #[inline(always)]
        fn load(&self, index: usize, order: Ordering) -> u64 {
            Self::load(self, index, order)
        }

        #[inline(always)]
        fn few<const N: usize>(&self, base: usize) -> impl ReadWords + Copy {
            Self::few::<N>(self, base)
        }
    }

    impl<const N: usize> ReadWords for Few<'_, N> {
        #[inline(always)]
        fn load(&self, index: usize, order: Ordering) -> u64 {
            Self::load(*self, index, order)
        }

        #[inline(always)]
        fn which(&self, base: usize, value: u64) -> u32 {
            Self::which(*self, base, value)
        }
    }

    impl ReadWords for Line<'_> {
        #[inline(always)]
        fn load(&self, index: usize, order: Ordering) -> u64 {
            Self::load(*self, index, order)
        }
    }

    impl ReadLine for Line<'_> {
        #[inline(always)]
        fn which_of_four(self, low: u32) -> u32 {
            Self::which_of_four(self, low)
        }
    }

    impl ReadLines for Lines {
        fn count(&self) -> usize {
            Self::count(self)
        }

        #[inline(always)]
        fn pick(&self, hash: u64) -> impl ReadLine {
            Self::pick(self, hash)
        }
    }

    impl ReadWords for Rw<AtomicU64> {
        #[inline(always)]
        fn load(&self, index: usize, order: Ordering) -> u64 {
            Self::load(self, index, order)
        }

        #[inline(always)]
        fn few<const N: usize>(&self, base: usize) -> impl ReadWords + Copy {
            self.read_only().few::<N>(base)
        }
    }

    impl WriteWords for Rw<AtomicU64> {
        #[inline(always)]
        fn store(&self, index: usize, value: u64, order: Ordering) {
            Self::store(self, index, value, order);
        }

        #[inline(always)]
        fn will_store(&self, index: usize) {
            Self::will_store(self, index);
        }
    }
}
