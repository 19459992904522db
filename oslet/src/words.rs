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

    /// Says that word `index` will be loaded soon.
    #[inline(always)]
    fn will_load(&self, index: usize) {
        let _ = index;
    }
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

impl WriteWords for LocalWords {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[index].store(value, order);
    }
}

#[cfg(not(loom))]
mod shared {
    use super::{Ordering, ReadWords, WriteWords};
    use crate::region::{Few, Ro, Rw};
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

        #[inline(always)]
        fn will_load(&self, index: usize) {
            Self::will_load(*self, index);
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
