//! Load on a cluster: files whose bytes follow from their numbers, and processes that read them
//! all the time and check each byte (the program `oslet-load`).

mod worker;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::fsdiff::populate::pattern;

pub use worker::{KINDS, Kind, Worker, died_of, signal, whereabouts};

/// A file that is read all the time, so that every OSlet has it cached.
pub const CACHED: &str = "cached";
/// Bytes of that file.
pub const CACHED_BYTES: usize = 200_000;
/// Bytes of every numbered file.
pub const FILE_BYTES: usize = 20_000;
/// Files that the load reads at random.
pub const FILES: usize = 400;
/// Directories that they lie in.
const DIRECTORIES: usize = 20;
/// Numbers of the files that no load reads begin here.
const FRESH: usize = 1_000_000;

/// How `oslet-load` ends when it has read other bytes than it should.
pub const WRONG: u8 = 3;

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// One of `limit` numbers from 0 on.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Where file `number` lies in the volume.
#[must_use]
pub fn path(number: usize) -> String {
    match number.checked_sub(FRESH) {
        Some(fresh) => format!("fresh-{}/{fresh}", fresh % DIRECTORIES),
        None => format!("dir-{}/{number}", number % DIRECTORIES),
    }
}

/// A file that no load reads.
#[must_use]
pub fn fresh(number: usize) -> usize {
    FRESH + number
}

/// What file `number` holds.
#[must_use]
pub fn contents(number: usize) -> Vec<u8> {
    pattern(number as u64 + 2, FILE_BYTES)
}

/// What the cached file holds.
#[must_use]
pub fn cached() -> Vec<u8> {
    pattern(1, CACHED_BYTES)
}

/// Makes the tree, with so many files that no load reads.
///
/// # Errors
/// When it cannot be written.
pub fn make(tree: &Path, fresh_files: usize) -> Result<()> {
    fs::create_dir(tree)?;
    fs::write(tree.join(CACHED), cached())?;
    for number in (0..FILES).chain((0..fresh_files).map(fresh)) {
        let file: PathBuf = tree.join(path(number));
        fs::create_dir_all(file.parent().unwrap_or(tree))?;
        fs::write(file, contents(number))?;
    }
    Ok(())
}
