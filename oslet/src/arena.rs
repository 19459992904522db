//! The frames of this process's own segment: who may fill one, and when it is reused.
//!
//! A frame is *free*, *owned* (one [`OwnedFrame`] fills it), *published* (references are handed
//! out), or in *limbo* (retired, but some participant still pins it). Retiring is: whoever linked
//! the frame removes the link; the generation advances, so that references in messages turn stale;
//! then every participant's counter is looked at. A reader does it in the opposite order - pin,
//! fence, look at the link or the generation again - so that one of the two sees the other.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::hazard;
use crate::id::{FrameNo, PageRef, ParticipantId};
use crate::region::{OwnedFrame, Region};
use crate::{Error, Result};

/// Frames looked at in one sweep of the limbo, so that an allocation's time is bounded.
const SWEEP: usize = 256;
/// Frames looked at in one tick, which delays allocations for less than a millisecond.
const TICK: usize = 4096;

/// The allocator of this process's frames.
#[derive(Debug)]
pub struct Arena {
    region: Arc<Region>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limbo: Vec<FrameNo>,
    /// Where the next sweep of the limbo starts.
    hand: usize,
}

/// How the frames are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All frames of the segment.
    pub total: usize,
    /// Ready to be owned.
    pub free: usize,
    /// Retired, still pinned by somebody when last looked at.
    pub limbo: usize,
}

impl Arena {
    /// All frames of the own segment, free. There is one arena a region.
    pub fn new(region: &Arc<Region>) -> Arc<Self> {
        let state = Mutex::new(State { limbo: Vec::new(), hand: 0 });
        Arc::new(Self { region: Arc::clone(region), state })
    }

    /// The region that the frames lie in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// A frame to fill.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when none is free and nothing in limbo has come free.
    pub fn alloc(&self) -> Result<OwnedFrame> {
        let own = self.region.own();
        if let Some(frame) = own.claim() {
            return Ok(frame);
        }
        let mut state = self.state.lock();
        self.sweep(&mut state, SWEEP);
        if let Some(frame) = own.claim() {
            return Ok(frame);
        }
        Err(Error::Exhausted(format!(
            "region: all {} frames of {:?} are in use, {} of them only pinned",
            self.region.own().frames(),
            self.region.own().participant(),
            state.limbo.len()
        )))
    }

    /// `count` frames to fill, or none.
    pub fn alloc_many(&self, count: usize) -> Result<Vec<OwnedFrame>> {
        (0..count).map(|_| self.alloc()).collect()
    }

    /// Retires published frames: no index links them any more. Each is free at once or, while
    /// somebody pins it, later.
    pub fn retire(&self, pages: &[PageRef]) {
        let own = self.region.own();
        for page in pages {
            debug_assert_eq!(page.home, own.participant(), "{page:?} has another home");
            own.advance_generation(page.frame);
        }
        hazard::before_scan();
        let mut state = self.state.lock();
        state.limbo.extend(pages.iter().map(|page| page.frame));
        let from = state.limbo.len() - pages.len();
        self.sweep_range(&mut state, from, pages.len());
    }

    /// Retires one published frame and hands it out to be filled again, if nobody pins it; else
    /// it goes to limbo and `None` is returned.
    pub fn reclaim(&self, page: PageRef) -> Option<OwnedFrame> {
        let own = self.region.own();
        debug_assert_eq!(page.home, own.participant(), "{page:?} has another home");
        own.advance_generation(page.frame);
        hazard::before_scan();
        let (index, unknown) = self.region.pin_index();
        if unknown.is_empty() && index.pinned_by(page.frame).is_none() {
            return own.claim_published(page.frame);
        }
        self.state.lock().limbo.push(page.frame);
        None
    }

    /// Looks at some of the limbo again; call it now and then. Returns how many came free.
    pub fn tick(&self) -> usize {
        self.sweep(&mut self.state.lock(), TICK)
    }

    /// Looks at all of the limbo again, in turns: when somebody's pins have ended at once. Returns
    /// how many came free.
    pub fn sweep_all(&self) -> usize {
        let turns = self.state.lock().limbo.len().div_ceil(TICK);
        (0..turns).map(|_| self.tick()).sum()
    }

    fn sweep(&self, state: &mut State, most: usize) -> usize {
        if state.hand >= state.limbo.len() {
            state.hand = 0;
        }
        let (from, count) = (state.hand, most.min(state.limbo.len() - state.hand));
        let freed = self.sweep_range(state, from, count);
        state.hand = from + count - freed;
        freed
    }

    /// Frees those of `limbo[from..from + count]` that nobody pins.
    fn sweep_range(&self, state: &mut State, from: usize, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let (index, unknown) = self.region.pin_index();
        if !unknown.is_empty() {
            // Somebody's pins cannot be read: whatever it pins must stay. Membership fences it.
            return 0;
        }
        let own = self.region.own();
        let mut freed = 0;
        // From the last one to the first: those are taken again first to last, so that what lay
        // together lies together again.
        for at in (from..from + count).rev() {
            let frame = state.limbo[at];
            if index.pinned_by(frame).is_none() && own.unpublish(frame) {
                // What takes its place has been looked at, or lies behind the range.
                state.limbo.swap_remove(at);
                freed += 1;
            }
        }
        freed
    }

    /// For each frame whether somebody pins it now, and how many ticks ago anybody last used it:
    /// what an eviction chooses by. `None` for pinned ones.
    pub fn ages(&self, frames: &[FrameNo]) -> Vec<Option<u16>> {
        let (index, unknown) = self.region.pin_index();
        let clock = self.region.own().clock();
        let age = |&frame: &FrameNo| {
            let idle = unknown.is_empty() && index.pinned_by(frame).is_none();
            idle.then(|| index.age(frame, clock))
        };
        frames.iter().map(age).collect()
    }

    /// How the frames are used now.
    pub fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            total: self.region.own().frames(),
            free: self.region.own().free_frames(),
            limbo: state.limbo.len(),
        }
    }

    /// How many limbo frames each participant keeps from being reused: the number that a quota
    /// bounds. A frame that several pin is charged to each of them. Participants whose pins cannot
    /// be read come with the reason.
    pub fn limbo_charges(&self) -> (Vec<(ParticipantId, usize)>, Vec<(ParticipantId, Error)>) {
        let limbo = self.state.lock().limbo.clone();
        let (index, bad) = self.region.pin_index();
        (index.charges(&limbo), bad)
    }
}

#[cfg(test)]
mod tests;
