//! The jbd2 journal: what it looks like on disk, and how it is replayed.

mod checksum;
pub mod format;
pub mod replay;
#[cfg(test)]
mod testlog;
