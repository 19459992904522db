//! Pins that are owned: they may be kept, sent to another thread and dropped there.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::map::RawSlice;
use super::{PageGuard, Region};
use crate::id::{Epoch, PageRef, ParticipantId};
use crate::sync::AtomicU16;
use crate::{Result, hazard};

/// A set of pinned frames that keeps its region alive: for what outlives a borrow, such as I/O in
/// flight. One [`PageGuard`] is cheaper where a borrow will do.
pub struct Pins {
    pinned: Vec<Pinned>,
    region: Arc<Region>,
}

struct Pinned {
    page: PageRef,
    bytes: RawSlice,
    /// In the own segment, which stays mapped while the region lives.
    pin: NonNull<AtomicU16>,
}

// SAFETY: the counters are atomics in a `Sync` record of the region, which `Pins` keeps alive.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pins {
    /// No pins yet, with room for so many.
    pub fn new(region: &Arc<Region>, capacity: usize) -> Self {
        Self { pinned: Vec::with_capacity(capacity), region: Arc::clone(region) }
    }

    /// Pins one more frame, as [`Region::pin`] does. Returns false if the reference is stale.
    pub fn add(&mut self, page: PageRef) -> Result<bool> {
        let guard = self.region.pin(page)?;
        Ok(Self::keep(&mut self.pinned, guard))
    }

    /// Pins one more frame, as [`Region::pin_from`] does.
    pub fn add_from(&mut self, page: PageRef, from: (ParticipantId, Epoch)) -> Result<bool> {
        let guard = self.region.pin_from(page, from)?;
        Ok(Self::keep(&mut self.pinned, guard))
    }

    /// Pins one more frame of the home's incarnation that is mapped if `still` holds afterwards,
    /// as [`Region::pin_if`] does.
    ///
    /// # Errors
    /// As of [`Region::pin`].
    pub fn add_if(&mut self, page: PageRef, still: impl FnOnce() -> bool) -> Result<bool> {
        let Some(home) = self.region.segment(page.home) else { return Ok(false) };
        let guard = self.region.pin_if(page, home.epoch(), still);
        if guard.is_none() {
            self.region.check_pinnable(page)?;
        }
        Ok(Self::keep(&mut self.pinned, guard))
    }

    fn keep(pinned: &mut Vec<Pinned>, guard: Option<PageGuard<'_>>) -> bool {
        let Some(guard) = guard else { return false };
        let (page, bytes, pin) = (guard.page_ref(), guard.bytes(), NonNull::from(guard.counter));
        pinned.push(Pinned { page, bytes, pin });
        // The pin is now the set's to take back.
        std::mem::forget(guard);
        true
    }

    /// How many pins.
    pub fn len(&self) -> usize {
        self.pinned.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pinned.is_empty()
    }

    /// The page of pin `index`, in the order of adding.
    pub fn page(&self, index: usize) -> Option<PageRef> {
        Some(self.pinned.get(index)?.page)
    }

    /// The bytes of pin `index`, valid while the set lives.
    pub fn bytes(&self, index: usize) -> Option<&RawSlice> {
        Some(&self.pinned.get(index)?.bytes)
    }

    /// The region that the frames lie in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for Pinned { pin, .. } in self.pinned.drain(..) {
            // What the guard would do that was forgotten in `keep`.
            // SAFETY: the counter is of the own segment, mapped as long as `self.region` lives.
            hazard::unpin(unsafe { pin.as_ref() });
        }
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pinned.iter().map(|pinned| pinned.page)).finish()
    }
}
