//! Blocks that an operation was promised before it began.

use std::sync::Arc;

use super::{Live, Writer};
use crate::alloc::{Claim, Space};
use crate::id::Block;
use crate::journal::Handle;
use crate::{Caller, Result};

/// A promise of blocks. What is not used is given back.
pub(super) struct Budget<'a> {
    space: &'a Arc<Space>,
    left: u64,
    /// Blocks for maps, which are not claimed from the promise but are there for it.
    spare: u64,
}

/// Blocks of a directory's map that one operation may need.
const SPARE: u64 = 4;

impl<'a> Budget<'a> {
    /// Promises blocks, and some more for the maps that they go into. No handle may be held.
    pub(super) fn new(space: &'a Arc<Space>, caller: &Caller, blocks: u32) -> Result<Self> {
        let (left, spare) = (u64::from(blocks), if blocks == 0 { 0 } else { SPARE });
        if blocks > 0 {
            space.reserve(left + spare, caller)?;
        }
        Ok(Self { space, left, spare })
    }

    /// Claims that many of the blocks, in as few runs as there are.
    pub(super) fn claim(&self, goal: Block, blocks: u32) -> Result<Vec<Claim>> {
        let (mut claims, mut left, mut goal) = (Vec::new(), blocks, goal);
        while left > 0 {
            let claim = self.space.claim(goal, left, true)?;
            left -= claim.len();
            goal = Block(claim.start().0 + u64::from(claim.len()));
            claims.push(claim);
        }
        Ok(claims)
    }

    /// Maps claimed blocks from `logical` on; returns where they end.
    pub(super) fn insert(
        &mut self,
        writer: &Writer,
        handle: &mut Handle<'_>,
        live: &mut Live,
        mut logical: u64,
        claims: Vec<Claim>,
    ) -> Result<u64> {
        // Maps take from what is promised to nobody.
        self.space.release(std::mem::take(&mut self.spare));
        for claim in claims {
            let len = u64::from(claim.len());
            writer.insert_run(handle, live, logical, claim, false)?;
            self.left -= len;
            logical += len;
        }
        Ok(logical)
    }

    /// Takes a claimed block into use that no map has.
    pub(super) fn commit(&mut self, handle: &mut Handle<'_>, claim: Claim) -> Result<()> {
        let len = u64::from(claim.len());
        claim.commit(handle)?;
        self.left -= len;
        Ok(())
    }
}

impl Drop for Budget<'_> {
    fn drop(&mut self) {
        self.space.release(self.left + self.spare);
    }
}
