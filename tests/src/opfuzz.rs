//! Random operations on several filesystems at once, all of which must answer the same.
//!
//! A model in memory says what the answers are. Every [`Subject`] is held to it, step by step; at
//! the end their trees are. What failed is made short before it is shown, and the seed printed with
//! it makes the same again.

pub mod dir;
pub mod generate;
pub mod model;
pub mod native;
pub mod op;
pub mod run;
pub mod volumes;

use std::collections::BTreeMap;

use op::{Op, Outcome};

/// A filesystem that does operations, beginning with an empty directory of root's, mode 755.
pub trait Subject {
    /// For messages.
    fn name(&self) -> &str;

    /// Does one operation.
    fn apply(&mut self, op: &Op) -> Outcome;

    /// What a file holds.
    fn contents(&mut self, path: &str) -> anyhow::Result<Contents>;

    /// Closes all files.
    fn close_all(&mut self);
}

/// A file's size, its bytes that are not zero and where its data lie.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// Bytes.
    pub size: u64,
    /// Pieces of 1024 bytes that are not all zero, by number.
    pub bytes: BTreeMap<u64, Vec<u8>>,
    /// Ranges that are no holes, in order, as far as they do not touch.
    pub data: Vec<(u64, u64)>,
    /// Ranges among them that may be holes as well.
    pub open: Vec<(u64, u64)>,
}

/// Bytes that are compared at a time.
const PIECE: u64 = 1024;

impl Contents {
    /// More bytes, behind those that are there.
    pub fn add(&mut self, start: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = start + bytes.len() as u64;
        match self.data.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.data.push((start, end)),
        }
        let mut at = start;
        while at < end {
            let index = at / PIECE;
            let to = end.min((index + 1) * PIECE);
            let part = &bytes[(at - start) as usize..(to - start) as usize];
            if part.iter().any(|byte| *byte != 0) {
                let piece = self.bytes.entry(index).or_insert_with(|| vec![0; PIECE as usize]);
                let from = (at % PIECE) as usize;
                piece[from..from + part.len()].copy_from_slice(part);
            }
            at = to;
        }
    }

    /// What is wrong with `found`, if anything, where this is expected.
    pub fn difference(&self, found: &Self) -> Option<String> {
        if self.size != found.size {
            return Some(format!("{} bytes, not {}", found.size, self.size));
        }
        for index in self.bytes.keys().chain(found.bytes.keys()) {
            let (a, b) = (self.bytes.get(index), found.bytes.get(index));
            if a != b {
                let zeros = vec![0; PIECE as usize];
                let (a, b) = (a.unwrap_or(&zeros), b.unwrap_or(&zeros));
                let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
                let (a, b, at) = (a[at], b[at], index * PIECE + at as u64);
                return Some(format!("byte {at} is {b:#x}, not {a:#x}"));
            }
        }
        let without = |ranges: &[(u64, u64)]| {
            let mut left = ranges.to_vec();
            for open in &self.open {
                left = left.into_iter().flat_map(|range| subtract(range, *open)).collect();
            }
            left
        };
        let (ours, theirs) = (without(&self.data), without(&found.data));
        (joined(ours.clone()) != joined(theirs.clone()))
            .then(|| format!("data at {theirs:?}, not {ours:?} (either at {:?})", self.open))
    }
}

fn subtract(range: (u64, u64), gone: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let left = (range.0, range.1.min(gone.0));
    let right = (range.0.max(gone.1), range.1);
    [left, right].into_iter().filter(|part| part.0 < part.1)
}

fn joined(ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.1 == range.0 => last.1 = range.1,
            _ => out.push(range),
        }
    }
    out
}
