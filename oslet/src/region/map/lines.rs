//! Shared words by whole lines, one of which a hash chooses: that it lies inside follows from how
//! it is chosen, and nothing has to look.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::words::{Ro, out_of_bounds};
use crate::limits;

/// Words of a line.
const WORDS: usize = limits::LINE / 8;

/// Words that this process may only read, by lines, of which there is at least one.
#[derive(Debug)]
pub struct Lines {
    first: NonNull<AtomicU64>,
    /// Not zero.
    count: u64,
    words: Ro<AtomicU64>,
}

// SAFETY: the lines are words of `words`, which is `Send` and `Sync` and keeps them mapped.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    pub(super) fn of(words: &Ro<AtomicU64>) -> Option<Self> {
        let (first, len) = words.parts();
        let count = (len / WORDS) as u64;
        let aligned = first.addr().get().is_multiple_of(limits::LINE);
        (aligned && count > 0).then(|| Self { first, count, words: words.clone() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// The words that they are made of.
    pub fn words(&self) -> &Ro<AtomicU64> {
        &self.words
    }

    /// The line that a hash chooses: each for as many hashes as any other.
    #[inline(always)]
    pub fn pick(&self, hash: u64) -> Line<'_> {
        // Less than `count`, as the hash is less than 2^64.
        let index = ((u128::from(hash) * u128::from(self.count)) >> 64) as usize;
        // SAFETY: `count` whole lines lie in `words`, and this is one of them.
        Line { ptr: unsafe { self.first.add(index * WORDS) }, words: PhantomData }
    }
}

/// Eight words in one cache line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'w> {
    ptr: NonNull<AtomicU64>,
    words: PhantomData<&'w Lines>,
}

impl Line<'_> {
    /// Loads word `index`.
    ///
    /// # Panics
    /// If `index` is not below eight.
    #[inline(always)]
    pub fn load(self, index: usize, order: Ordering) -> u64 {
        if index >= WORDS {
            out_of_bounds(index, 1, WORDS);
        }
        // SAFETY: one of the words of a line that `Lines::pick` has found; an atomic may be shared
        // with writers in other processes.
        unsafe { self.ptr.add(index).as_ref() }.load(order)
    }

    /// As [`crate::words::ReadLine::which_of_four`], without a branch on what is found: which of a
    /// bucket's slots matches cannot be predicted.
    #[inline(always)]
    pub fn which_of_four(self, low: u32) -> u32 {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: the first half of an aligned line of a live mapping is read, by instructions that
        // the compiler knows nothing of: a peer may write it meanwhile, and any mixture is a hint.
        return unsafe { which_of_four(self.ptr.as_ptr().cast(), low) };
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        (0..WORDS / 2)
            .fold(0, |mask, n| mask | u32::from(self.load(n, Ordering::Relaxed) as u32 == low) << n)
    }
}

/// Which of the four words at `line` have `low` in their low halves, by SSE2, which every x86-64
/// has: the halves are gathered and compared at once.
///
/// # Safety
/// 32 bytes can be read there, at a multiple of 16.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
unsafe fn which_of_four(line: *const u64, low: u32) -> u32 {
    let mask: u32;
    // SAFETY: reads 32 bytes, as the caller allows; writes registers alone.
    unsafe {
        std::arch::asm!(
            "movd {v}, {low:e}",
            "pshufd {v}, {v}, 0",
            "movaps {a}, [{line}]",
            "shufps {a}, [{line} + 16], 0x88",
            "pcmpeqd {a}, {v}",
            "movmskps {mask:e}, {a}",
            low = in(reg) low,
            line = in(reg) line,
            v = out(xmm_reg) _,
            a = out(xmm_reg) _,
            mask = lateout(reg) mask,
            options(nostack, readonly, preserves_flags),
        );
    }
    mask
}
