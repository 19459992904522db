//! Blocks that are somebody's, but not on disk yet.

use std::fmt;
use std::sync::Arc;

use super::Space;
use crate::Result;
use crate::id::Block;
use crate::journal::Handle;

/// Contiguous blocks that nobody else can claim. It is committed, or dropped, which gives the
/// blocks back; those that were reserved are reserved again then.
#[must_use = "a claim that is dropped is given back"]
pub struct Claim {
    space: Arc<Space>,
    start: Block,
    /// 0 when there is nothing to give back.
    len: u32,
    reserved: bool,
}

impl Claim {
    pub(super) fn new(space: Arc<Space>, start: Block, len: u32, reserved: bool) -> Self {
        Self { space, start, len, reserved }
    }

    /// The first block.
    pub fn start(&self) -> Block {
        self.start
    }

    /// Blocks: at least 1.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` blocks, and the rest where that is not all of them.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn split(mut self, len: u32) -> (Self, Option<Self>) {
        assert!(len > 0, "a claim of no blocks");
        let rest = self.len.saturating_sub(len);
        self.len -= rest;
        let start = Block(self.start.0 + u64::from(self.len));
        let rest =
            (rest > 0).then(|| Self::new(Arc::clone(&self.space), start, rest, self.reserved));
        (self, rest)
    }

    /// Puts the blocks into the bitmap, in the handle's transaction. This takes up to two credits:
    /// the bitmap's and the descriptor's.
    ///
    /// # Errors
    /// Those of the handle's puts, after which the handle's operation has failed.
    pub fn commit(mut self, handle: &mut Handle<'_>) -> Result<()> {
        let len = std::mem::take(&mut self.len);
        self.space.put_used(self.start, len, handle)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.len > 0 {
            self.space.give(self.start, self.len);
            if !self.reserved {
                self.space.release(self.len.into());
            }
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, len, reserved, .. } = self;
        f.debug_struct("Claim")
            .field("start", start)
            .field("len", len)
            .field("reserved", reserved)
            .finish_non_exhaustive()
    }
}
