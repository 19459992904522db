//! Metadata that turn out to be corrupt, whoever met them: the superblock tells of it.

use super::Owner;
use crate::engine::store::may_wait;
use crate::id::Ino;
use crate::{Error, Result};

impl Owner {
    /// Passes on how something ended that was done in an inode's service. No lock is held.
    pub(super) fn noting<T>(&self, ino: Ino, done: Result<T>) -> Result<T> {
        if let (Err(error @ Error::Corrupt { .. }), Some(writer)) = (&done, &self.writer) {
            // Who must not wait finds it once more where that is allowed.
            may_wait()?;
            writer.found_corrupt(ino, error);
        }
        done
    }

    /// Notes what the allocator has found since the last call.
    pub(super) fn note_problems(&self) {
        let Some(writer) = &self.writer else { return };
        for problem in writer.space().take_problems() {
            writer.found_corrupt(Ino(0), &problem);
        }
    }
}
