//! What the fuzz targets share: numbers taken off an input, words that anybody may have written,
//! and the small images under `corpus/images` with the input's changes over them.
//!
//! `cargo xtask fuzz` makes the images and the seeds, builds the targets and runs them.
#![forbid(unsafe_code)]

use oslet::sync::Ordering;
use oslet::words::{LocalWords, WriteWords};

pub mod image;
pub mod walk;

/// Takes numbers and bytes off the front of an input; behind its end everything is zero.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// The next `count` bytes, or those that are left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian as all numbers here.
    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Puts a word somewhere into words that both ends of a protocol see.
pub fn put(words: &LocalWords, index: usize, value: u64) {
    words.store(index % words.len(), value, Ordering::Relaxed);
}
