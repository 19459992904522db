//! The jbd2 journal: what it looks like on disk, and how it is replayed.

mod checksum;
pub mod commit;
pub mod fast_commit;
pub mod format;
pub mod locate;
pub mod recover;
pub mod replay;
#[cfg(test)]
mod testlog;

pub use recover::{Report, recover, recover_at};
