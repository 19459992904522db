//! Arrays of atomic words in a mapping, by value: no reference to one leaves this file for memory
//! that a peer may write (R3).

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{Lines, Mapping};

/// An atomic integer that may lie in shared memory.
pub trait Atom: private::Sealed {
    /// Its value.
    type Int: Copy + Eq;
    /// An atomic load.
    fn load(&self, order: Ordering) -> Self::Int;
    /// An atomic store.
    fn store(&self, value: Self::Int, order: Ordering);
    /// An atomic compare-and-swap; the error is what was found.
    fn compare_exchange(
        &self,
        current: Self::Int,
        new: Self::Int,
        order: Ordering,
    ) -> std::result::Result<Self::Int, Self::Int>;
    /// Adds, wrapping; returns what was there before.
    fn fetch_add(&self, value: Self::Int, order: Ordering) -> Self::Int;
    /// Subtracts, wrapping; returns what was there before.
    fn fetch_sub(&self, value: Self::Int, order: Ordering) -> Self::Int;
}

mod private {
    /// Closed to types for which every bit pattern is a value.
    pub trait Sealed {}
}

macro_rules! atom {
    ($atomic:ty, $int:ty) => {
        impl private::Sealed for $atomic {}
        impl Atom for $atomic {
            type Int = $int;
            #[inline(always)]
            fn load(&self, order: Ordering) -> $int {
                <$atomic>::load(self, order)
            }
            #[inline(always)]
            fn store(&self, value: $int, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
            #[inline(always)]
            fn compare_exchange(
                &self,
                current: $int,
                new: $int,
                order: Ordering,
            ) -> std::result::Result<$int, $int> {
                <$atomic>::compare_exchange(self, current, new, order, Ordering::Acquire)
            }
            #[inline(always)]
            fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                <$atomic>::fetch_add(self, value, order)
            }
            #[inline(always)]
            fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                <$atomic>::fetch_sub(self, value, order)
            }
        }
    };
}
atom!(AtomicU16, u16);
atom!(AtomicU32, u32);
atom!(AtomicU64, u64);

/// An array of atomic words that this process may only read.
#[derive(Debug)]
pub struct Ro<A> {
    ptr: NonNull<A>,
    len: usize,
    /// Keeps the words mapped.
    _map: Arc<Mapping>,
    kind: PhantomData<A>,
}

impl<A> Clone for Ro<A> {
    fn clone(&self) -> Self {
        Self { ptr: self.ptr, len: self.len, _map: Arc::clone(&self._map), kind: PhantomData }
    }
}

// SAFETY: the words are atomics inside a mapping that `map` keeps alive.
unsafe impl<A: Atom> Send for Ro<A> {}
// SAFETY: as above.
unsafe impl<A: Atom> Sync for Ro<A> {}

impl<A: Atom> Ro<A> {
    /// Where they are, for what is built on them.
    pub(super) fn parts(&self) -> (NonNull<A>, usize) {
        (self.ptr, self.len)
    }

    /// The `len` words at `ptr`, which the caller has found to lie in `map`.
    pub(super) fn new(ptr: NonNull<A>, len: usize, map: Arc<Mapping>) -> Self {
        Self { ptr, len, _map: map, kind: PhantomData }
    }

    /// How many words.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Loads word `index`.
    ///
    /// # Panics
    /// If `index` is out of bounds: callers check what they take from a peer first.
    #[inline(always)]
    pub fn load(&self, index: usize, order: Ordering) -> A::Int {
        self.atom(index).load(order)
    }

    #[inline(always)]
    fn atom(&self, index: usize) -> &A {
        if index >= self.len {
            out_of_bounds(index, 1, self.len);
        }
        // SAFETY: in bounds of the words that `Mapping::words` checked; an atomic may be shared
        // with writers in other processes, and every bit pattern is a value of it.
        unsafe { self.ptr.add(index).as_ref() }
    }
}

impl Ro<AtomicU64> {
    /// The `N` words from `base` on, with one look at the bounds.
    ///
    /// # Panics
    /// If a word is out of bounds.
    #[inline(always)]
    pub fn few<const N: usize>(&self, base: usize) -> Few<'_, N> {
        // No mapping has so many words that the sum of what is in bounds could wrap.
        let end = base.wrapping_add(N);
        if base > end || end > self.len {
            out_of_bounds(base, N, self.len);
        }
        // SAFETY: in bounds as asserted above.
        Few { ptr: unsafe { self.ptr.add(base) }, words: PhantomData }
    }

    /// These words by lines; `None` if they do not begin with one or have none that is whole.
    pub fn lines(&self) -> Option<Lines> {
        Lines::of(self)
    }

    /// Word `index` by itself.
    ///
    /// # Panics
    /// If it is out of bounds.
    pub fn one(&self, index: usize) -> One {
        One { ptr: NonNull::from(self.atom(index)), _map: Arc::clone(&self._map) }
    }

    /// The half of word `index` that holds its low 32 bits, as a futex word: to wait on and to
    /// wake, which the kernel allows on memory that is mapped read-only.
    pub fn futex(&self, index: usize) -> &AtomicU32 {
        let half = if cfg!(target_endian = "little") { 0 } else { 1 };
        let word = std::ptr::from_ref(self.atom(index)).cast::<AtomicU32>();
        // SAFETY: a 64-bit word holds two aligned 32-bit halves, and `self` keeps it mapped.
        unsafe { &*word.add(half) }
    }
}

/// One atomic word that this process may only read.
#[derive(Debug)]
pub struct One {
    ptr: NonNull<AtomicU64>,
    /// Keeps the word mapped.
    _map: Arc<Mapping>,
}

// SAFETY: as of `Ro`.
unsafe impl Send for One {}
// SAFETY: as above.
unsafe impl Sync for One {}

impl One {
    /// Loads it.
    #[inline(always)]
    pub fn load(&self, order: Ordering) -> u64 {
        // SAFETY: `Ro::one` has taken it from words in bounds of a mapping that is kept.
        unsafe { self.ptr.as_ref() }.load(order)
    }
}

/// `N` words in a row, in bounds of the array that they are borrowed from.
#[derive(Clone, Copy, Debug)]
pub struct Few<'w, const N: usize> {
    ptr: NonNull<AtomicU64>,
    words: PhantomData<&'w Ro<AtomicU64>>,
}

impl<const N: usize> Few<'_, N> {
    /// Loads word `index`.
    ///
    /// # Panics
    /// If `index` is not below `N`.
    #[inline(always)]
    pub fn load(self, index: usize, order: Ordering) -> u64 {
        self.atom(index).load(order)
    }

    #[inline(always)]
    fn atom(&self, index: usize) -> &AtomicU64 {
        if index >= N {
            out_of_bounds(index, 1, N);
        }
        // SAFETY: one of the words that `Ro::few` has found in bounds.
        unsafe { self.ptr.add(index).as_ref() }
    }

    /// As [`crate::words::ReadWords::which`], without a branch on what is found: which of a
    /// bucket's slots matches cannot be predicted.
    #[inline(always)]
    pub fn which(self, base: usize, value: u64) -> u32 {
        if base >= N || N - base < 8 {
            out_of_bounds(base, 8, N);
        }
        // SAFETY: in bounds as asserted above.
        let line = unsafe { self.ptr.add(base) };
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: eight words of a live mapping are read, by instructions that the compiler knows
        // nothing of: a peer may write them meanwhile, and any mixture is a hint.
        return unsafe { which_of_line(line.as_ptr().cast(), value) };
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        (0..8).fold(0, |mask, n| {
            // SAFETY: in bounds as asserted above.
            let atom = unsafe { line.add(n).as_ref() };
            mask | u32::from(atom.load(Ordering::Relaxed) == value) << (2 * n)
        })
    }
}

/// Takes numbers, where `assert` takes references, for which they would be stored.
#[cold]
#[inline(never)]
pub(super) fn out_of_bounds(from: usize, count: usize, len: usize) -> ! {
    panic!("{count} words from {from} of {len}")
}

/// Which of the eight words at `line` are `value`, by SSE2, which every x86-64 has: halves are
/// compared, narrowed to a byte each, and both halves of a word must be the same.
///
/// # Safety
/// 64 bytes can be read there.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
unsafe fn which_of_line(line: *const u64, value: u64) -> u32 {
    let bytes: u32;
    // SAFETY: reads 64 bytes, as the caller allows; writes registers alone.
    unsafe {
        std::arch::asm!(
            "movq {v}, {value}",
            "punpcklqdq {v}, {v}",
            "movdqu {a}, [{line}]",
            "movdqu {b}, [{line} + 16]",
            "movdqu {c}, [{line} + 32]",
            "movdqu {d}, [{line} + 48]",
            "pcmpeqd {a}, {v}",
            "pcmpeqd {b}, {v}",
            "pcmpeqd {c}, {v}",
            "pcmpeqd {d}, {v}",
            "packssdw {a}, {b}",
            "packssdw {c}, {d}",
            "packsswb {a}, {c}",
            "pmovmskb {bytes:e}, {a}",
            value = in(reg) value,
            line = in(reg) line,
            v = out(xmm_reg) _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            bytes = out(reg) bytes,
            options(nostack, readonly, preserves_flags),
        );
    }
    // Two bits a word; the lower stays where both are set.
    bytes & bytes >> 1 & 0x5555
}

/// An array of atomic words that this process may change.
#[derive(Debug)]
pub struct Rw<A>(Ro<A>);

impl<A> Clone for Rw<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Rw<AtomicU64> {
    /// Brings the line of word `index` in to be written, if the processor likes; a hint without any
    /// other effect.
    #[inline(always)]
    pub fn will_store(&self, index: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(word) = self.get(index) {
            // SAFETY: a prefetch changes no memory and never faults.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{line}]",
                    line = in(reg) word,
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}

impl<A: Atom> Rw<A> {
    /// Words that are mapped to be written.
    pub(super) fn new(words: Ro<A>) -> Self {
        Self(words)
    }

    /// How many words.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The same words, to read.
    pub fn read_only(&self) -> &Ro<A> {
        &self.0
    }

    /// Loads word `index`; panics if it is out of bounds.
    #[inline(always)]
    pub fn load(&self, index: usize, order: Ordering) -> A::Int {
        self.0.load(index, order)
    }

    /// Word `index` itself; `None` out of bounds. Only this process writes it (R1).
    #[inline(always)]
    pub fn get(&self, index: usize) -> Option<&A> {
        (index < self.0.len).then(|| self.0.atom(index))
    }

    /// Stores word `index`; panics if it is out of bounds.
    #[inline(always)]
    pub fn store(&self, index: usize, value: A::Int, order: Ordering) {
        self.0.atom(index).store(value, order);
    }

    /// Compare-and-swap of word `index`; the error is what was found.
    #[inline(always)]
    pub fn compare_exchange(
        &self,
        index: usize,
        current: A::Int,
        new: A::Int,
        order: Ordering,
    ) -> std::result::Result<A::Int, A::Int> {
        self.0.atom(index).compare_exchange(current, new, order)
    }

    /// Adds to word `index`, wrapping; returns what was there before.
    #[inline(always)]
    pub fn fetch_add(&self, index: usize, value: A::Int, order: Ordering) -> A::Int {
        self.0.atom(index).fetch_add(value, order)
    }

    /// Subtracts from word `index`, wrapping; returns what was there before.
    #[inline(always)]
    pub fn fetch_sub(&self, index: usize, value: A::Int, order: Ordering) -> A::Int {
        self.0.atom(index).fetch_sub(value, order)
    }
}
