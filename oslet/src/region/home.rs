//! One incarnation of one participant as the home of frames that are pinned often: all that
//! [`Region::pin_if`] would look up for each pin, looked up once.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::map::{One, RawSlice};
use super::{Mapped, PageGuard, Region};
use crate::id::{Epoch, FrameNo, Generation, PageRef, ParticipantId};
use crate::sync::{AtomicU16, Ordering};
use crate::{hazard, limits};

/// The frames of one incarnation of one participant, to be pinned.
pub struct Home {
    /// The least word of a reference to one of its frames: the first, in the first generation.
    first: u64,
    /// What words of its frames are below, once [`Self::first`] is taken off.
    end: u64,
    /// All of its frames, of which `end` tells how many there are.
    frames: RawSlice,
    /// This process's counters on them, as many.
    pins: NonNull<AtomicU16>,
    clock: One,
    /// Freed with the region.
    record: NonNull<Mapped>,
    region: Arc<Region>,
}

// SAFETY: the counters and the record are `Sync` and live as long as the region, which is kept.
unsafe impl Send for Home {}
// SAFETY: as above.
unsafe impl Sync for Home {}

impl Region {
    /// That incarnation of a participant as a home of frames; `None` when it is not the one that
    /// is mapped, or has none.
    pub fn home(self: &Arc<Self>, who: ParticipantId, epoch: Epoch) -> Option<Home> {
        let record = self.mapped(who).filter(|record| record.segment.epoch() == epoch)?;
        let frames = record.segment.frame_bytes();
        let count = frames.len() / limits::FRAME_SIZE;
        let first = record.pins.get(0).filter(|_| record.pins.len() == count)?;
        let origin = PageRef { home: who, frame: FrameNo(0), generation: Generation::new(1) };
        Some(Home {
            first: origin.to_word(),
            end: ((count as u64) << limits::GENERATION_BITS) - 1,
            frames,
            pins: NonNull::from(first),
            clock: record.segment.clock_word(),
            record: NonNull::from(record),
            region: Arc::clone(self),
        })
    }
}

impl Home {
    /// The region that the frames lie in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Pins the frame of the reference that is this word if `still` holds afterwards, and gives
    /// access to it; as [`Region::pin_if`]. References to frames of others are refused, and so is
    /// zero. (A word whose generation alone is zero is none that anybody hands out; it pins, and
    /// gives access to, the frame before.)
    #[inline(always)]
    pub fn pin_if(&self, word: u64, still: impl FnOnce() -> bool) -> Option<PageGuard<'_>> {
        // One look at home, frame and spare bits: what is below wraps around.
        let place = word.wrapping_sub(self.first);
        if place >= self.end {
            return None;
        }
        let frame = (place >> limits::GENERATION_BITS) as usize;
        // SAFETY: below `end` lie the words of frames that are there, and there is a counter for
        // each. Counters and record live as long as `self.region`.
        let (bytes, counter, record) = unsafe {
            (self.frames.frame_within(frame), self.pins.add(frame).as_ref(), self.record.as_ref())
        };
        let room = hazard::pin(counter, self.clock.load(Ordering::Relaxed) as u16);
        // The guard's drop takes the pin back.
        let guard = PageGuard { bytes, counter, page: word };
        let good = room && !record.forgotten.load(Ordering::Relaxed) && still();
        good.then_some(guard)
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let home = PageRef::named_by(self.first).home;
        write!(f, "home {home:?} in {:?}", self.region.own().participant())
    }
}
