//! Blocks kept for files that grow, so that what is appended in small pieces lies together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Space;
use super::blocks::Found;
use super::claim::Claim;
use crate::id::{Block, Ino};
use crate::{Result, limits};

/// For some inodes, blocks after the last one that they claimed. They are nobody's: who finds no
/// other blocks has them all given back.
#[derive(Default)]
pub(super) struct Windows {
    shards: [Mutex<HashMap<Ino, Window>>; SHARDS],
    count: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Window {
    start: Block,
    len: u32,
}

const SHARDS: usize = 16;

/// Blocks that are claimed and kept together: the least, and the most.
const MIN_AHEAD: u32 = 8;
const MAX_AHEAD: u32 = 8192;

impl Space {
    /// As [`Self::claim`], for an inode that has `has` blocks and is written at its end: what is
    /// claimed next with the goal after these blocks finds that free, until
    /// [`Self::close_window`]. The window grows with the file; one without blocks has none.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_for(
        self: &Arc<Self>,
        ino: Ino,
        has: u64,
        goal: Block,
        want: u32,
        reserved: bool,
    ) -> Result<Claim> {
        let want = self.pay(want, reserved)?;
        let found = match self.windows.take(self, ino, goal, want) {
            Some(found) => Ok(found),
            None => self.search_ahead(ino, has, goal, want),
        };
        self.settle(want, reserved, found)
    }

    fn search_ahead(&self, ino: Ino, has: u64, goal: Block, want: u32) -> Result<Found> {
        if has == 0 {
            // Most files are written once, and lie together without gaps.
            return self.search(goal, want);
        }
        let has = u32::try_from(has).unwrap_or(MAX_AHEAD).saturating_add(want);
        let ahead = has.clamp(MIN_AHEAD, MAX_AHEAD).saturating_sub(want);
        let mut found = self.search(goal, want.saturating_add(ahead))?;
        if found.len > want {
            let start = Block(found.start.0 + u64::from(want));
            self.windows.put(self, ino, Window { start, len: found.len - want });
            found.len = want;
        }
        Ok(found)
    }

    /// The inode will not be written for now: others may have the blocks kept for it.
    pub fn close_window(&self, ino: Ino) {
        self.windows.close(self, ino);
    }
}

impl Windows {
    /// Takes blocks of the inode's window if it begins at the goal; else closes it.
    fn take(&self, space: &Space, ino: Ino, goal: Block, want: u32) -> Option<Found> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut shard = self.shard(ino).lock();
        let window = shard.get_mut(&ino)?;
        if window.start == goal && window.len > want {
            *window = Window { start: Block(goal.0 + u64::from(want)), len: window.len - want };
            return Some(Found { start: goal, len: want });
        }
        let window = *window;
        shard.remove(&ino);
        self.count.fetch_sub(1, Ordering::Relaxed);
        drop(shard);
        if window.start == goal {
            return Some(Found { start: goal, len: window.len });
        }
        space.give(window.start, window.len);
        None
    }

    fn put(&self, space: &Space, ino: Ino, window: Window) {
        let mut shard = self.shard(ino).lock();
        let before = if shard.len() >= limits::MAX_WINDOWS / SHARDS {
            let any = shard.keys().next().copied();
            any.and_then(|any| shard.remove(&any))
        } else {
            None
        };
        let old = shard.insert(ino, window);
        self.count.fetch_add(1, Ordering::Relaxed);
        drop(shard);
        for window in [before, old].into_iter().flatten() {
            self.count.fetch_sub(1, Ordering::Relaxed);
            space.give(window.start, window.len);
        }
    }

    fn close(&self, space: &Space, ino: Ino) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let window = self.shard(ino).lock().remove(&ino);
        if let Some(window) = window {
            self.count.fetch_sub(1, Ordering::Relaxed);
            space.give(window.start, window.len);
        }
    }

    /// Closes all; returns whether there were any.
    pub(super) fn give_back_all(&self, space: &Space) -> bool {
        let mut any = false;
        for shard in &self.shards {
            let windows = std::mem::take(&mut *shard.lock());
            for window in windows.into_values() {
                any = true;
                self.count.fetch_sub(1, Ordering::Relaxed);
                space.give(window.start, window.len);
            }
        }
        any
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Window>> {
        &self.shards[ino.0 as usize % SHARDS]
    }
}
