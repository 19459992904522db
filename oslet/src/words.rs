//! Words of memory that may be shared with other processes: what the lock-free protocols run on.

use crate::sync::Ordering;

/// Words that can be loaded atomically.
pub trait ReadWords {
    /// Loads word `index`.
    fn load(&self, index: usize, order: Ordering) -> u64;

    /// Which of the words at `base`, `base + stride` and so on, `N` of them, are `value`: bit `n`
    /// for the `n`-th. Relaxed loads: whoever acts on a word loads it again.
    #[inline(always)]
    fn equal<const N: usize>(&self, base: usize, stride: usize, value: u64) -> u32 {
        let same = |n: usize| self.load(base + n * stride, Ordering::Relaxed) == value;
        (0..N).fold(0, |mask, n| mask | u32::from(same(n)) << n)
    }
}

/// Words that this side may also store.
pub trait WriteWords: ReadWords {
    /// Stores word `index`.
    fn store(&self, index: usize, value: u64, order: Ordering);
}

#[cfg(not(loom))]
mod shared {
    use super::{Ordering, ReadWords, WriteWords};
    use crate::region::{Ro, Rw};
    use crate::sync::AtomicU64;

    impl ReadWords for Ro<AtomicU64> {
        #[inline(always)]
        fn load(&self, index: usize, order: Ordering) -> u64 {
            Self::load(self, index, order)
        }

        #[inline(always)]
        fn equal<const N: usize>(&self, base: usize, stride: usize, value: u64) -> u32 {
            Self::equal::<N>(self, base, stride, value)
        }
    }

    impl ReadWords for Rw<AtomicU64> {
        #[inline(always)]
        fn load(&self, index: usize, order: Ordering) -> u64 {
            Self::load(self, index, order)
        }
    }

    impl WriteWords for Rw<AtomicU64> {
        #[inline(always)]
        fn store(&self, index: usize, value: u64, order: Ordering) {
            Self::store(self, index, value, order);
        }
    }
}
