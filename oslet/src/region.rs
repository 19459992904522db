//! The shared memory of a cluster, as one process has it mapped.
//!
//! A [`Region`] holds the control page, this process's own segment and every other participant's.
//! Pages are read through it: [`Region::pin`] turns a reference into a [`PageGuard`].
//!
//! Nothing is ever unmapped while a region lives: a segment that is gone keeps its addresses and
//! reads as zeros once [`Region::forget`] has given its memory back. So a stale pointer costs
//! address space, never a signal.

mod backing;
mod control;
mod home;
pub mod layout;
mod map;
mod pins;
mod segment;
mod space;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr};

use parking_lot::Mutex;

pub use crate::member::word::{MemberState, Membership};
pub use backing::{Backing, HUGE_PAGE};
pub use control::{ClusterId, ControlPage, OwnerWord, Ownership};
pub use home::Home;
pub use map::{
    Atom, Few, Line, Lines, Mapping, One, Paging, RawFrame, RawSlice, RawSliceMut, Ro, Rw,
};
pub use pins::Pins;
pub use segment::{
    Bytes, OwnSegment, OwnedFrame, PeerSegment, SegmentSpec, Table, put_past_caches,
};

use crate::hazard::{self, Seen};
use crate::id::{Epoch, FrameNo, PageRef, ParticipantId};
use crate::sync::{AtomicU16, Ordering, fence};
use crate::{Error, Result, limits};

/// One mapped segment and this process's pins on it.
#[derive(Debug)]
struct Mapped {
    segment: PeerSegment,
    pins: Rw<AtomicU16>,
    /// Where those lie in the own segment.
    pins_at: usize,
    /// Set before the memory is given back. Readers look at it behind their pin.
    forgotten: AtomicBool,
    /// Set when the participant has ended: what it pinned is pinned no more.
    ended: AtomicBool,
    /// Its memory has been given back. Changed with `records` locked.
    given_back: AtomicBool,
}

/// The shared memory of a cluster, as this process has it mapped.
#[derive(Debug)]
pub struct Region {
    control: ControlPage,
    own: Arc<OwnSegment>,
    paging: Paging,
    /// By participant index; null where nobody is mapped.
    slots: Box<[AtomicPtr<Mapped>]>,
    /// Every record ever made; freed when the region is dropped.
    records: Mutex<Vec<NonNull<Mapped>>>,
}

// SAFETY: the records behind the pointers are `Sync`, shared by `&`, and freed in `drop` alone.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// The region with this process's own segment mapped; others are added by [`Self::map`].
    pub fn new(control: ControlPage, own: Arc<OwnSegment>, paging: Paging) -> Result<Arc<Self>> {
        let slots = (0..limits::MAX_PARTICIPANTS).map(|_| AtomicPtr::default()).collect();
        let region = Self { control, own, paging, slots, records: Mutex::default() };
        let reader = region.own.reader()?;
        region.map(&reader, region.own.participant(), region.own.epoch())?;
        Ok(Arc::new(region))
    }

    /// The control page.
    #[inline(always)]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    /// The segment that this process writes.
    pub fn own(&self) -> &Arc<OwnSegment> {
        &self.own
    }

    /// Maps a participant's segment, in place of an earlier incarnation's if there is one, and
    /// makes the counters to pin its frames with.
    ///
    /// The participant must map *our* segment before we pin its frames, or it would not see the
    /// pins: membership exchanges both before it says that a peer is there.
    pub fn map(&self, file: &std::fs::File, who: ParticipantId, epoch: Epoch) -> Result<()> {
        // Only the first mapping of own memory has to bring pages in; tables are already there.
        let paging = if who == self.own.participant() { Paging::default() } else { self.paging };
        let segment = PeerSegment::open(file, self.control.cluster(), who, epoch, paging)?;
        let mut records = self.records.lock();
        if let Some(old) = self.mapped(who) {
            if old.segment.epoch() >= epoch {
                return Err(Error::Invalid(format!(
                    "{who:?}: epoch {} is mapped, {epoch} is not after it",
                    old.segment.epoch()
                )));
            }
            self.forget_record(who, old)?;
        }
        self.give_back(&records)?;
        let (pins, pins_at) = self.own.publish_pins(&segment)?;
        let record = Box::new(Mapped {
            segment,
            pins,
            pins_at,
            forgotten: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            given_back: AtomicBool::new(false),
        });
        let record = NonNull::from(Box::leak(record));
        records.push(record);
        // SYNC POINT: segment mapped
        self.slots[who.index()].store(record.as_ptr(), Ordering::Release);
        Ok(())
    }

    /// Gives back the memory of a participant that is fenced and whose frames nobody here uses any
    /// more. Returns false, and changes nothing, while this process has one of them pinned.
    pub fn forget(&self, who: ParticipantId, epoch: Epoch) -> Result<bool> {
        let records = self.records.lock();
        match self.mapped(who) {
            Some(record) if record.segment.epoch() == epoch => {
                if self.any_pinned(record) {
                    return Ok(false);
                }
                self.forget_record(who, record)?;
                self.give_back(&records).map(|()| true)
            }
            _ => Ok(true),
        }
    }

    /// Ends the pins of a participant that is fenced or has left. Its segment stays, to be read.
    pub fn end_pins(&self, who: ParticipantId, epoch: Epoch) {
        if let Some(record) = self.mapped(who)
            && record.segment.epoch() == epoch
        {
            record.ended.store(true, Ordering::Release);
        }
    }

    fn any_pinned(&self, record: &Mapped) -> bool {
        let pins = &record.pins;
        (0..pins.len()).filter_map(|frame| pins.get(frame)).any(hazard::is_pinned)
    }

    /// With `records` locked.
    fn forget_record(&self, who: ParticipantId, record: &Mapped) -> Result<()> {
        record.forgotten.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.slots[who.index()].store(std::ptr::null_mut(), Ordering::SeqCst);
        self.give_back_one(record)
    }

    /// Gives back what guards had kept when it was forgotten.
    fn give_back(&self, records: &[NonNull<Mapped>]) -> Result<()> {
        // SAFETY: records are freed when the region is dropped and not before.
        let records = records.iter().map(|record| unsafe { record.as_ref() });
        let forgotten = records.filter(|record| record.forgotten.load(Ordering::SeqCst));
        forgotten.into_iter().try_for_each(|record| self.give_back_one(record))
    }

    /// Gives back the memory of segments that were replaced while their frames were pinned. Call it
    /// now and then. Returns how many are pinned still.
    pub fn release_forgotten(&self) -> Result<usize> {
        let records = self.records.lock();
        self.give_back(&records)?;
        // SAFETY: as in `give_back`.
        let records = records.iter().map(|record| unsafe { record.as_ref() });
        let held = records.filter(|record| {
            record.forgotten.load(Ordering::Relaxed) && !record.given_back.load(Ordering::Relaxed)
        });
        Ok(held.count())
    }

    /// Gives a forgotten segment's memory back unless guards still use it: then a later call does.
    fn give_back_one(&self, record: &Mapped) -> Result<()> {
        if record.given_back.load(Ordering::Relaxed) || self.any_pinned(record) {
            return Ok(());
        }
        record.given_back.store(true, Ordering::Relaxed);
        self.own.retract_pins(&record.segment, record.pins_at);
        record.segment.forget_contents()
    }

    /// A participant's segment, if it is mapped.
    #[inline]
    pub fn segment(&self, who: ParticipantId) -> Option<&PeerSegment> {
        self.mapped(who).map(|record| &record.segment)
    }

    #[inline(always)]
    fn mapped(&self, who: ParticipantId) -> Option<&Mapped> {
        // SYNC POINT: segment mapped
        let record = self.slots[who.index()].load(Ordering::Acquire);
        // SAFETY: null or a record of `records`, which live as long as the region.
        unsafe { record.as_ref() }
    }

    /// Pins the frame of `page`, of its home's incarnation `epoch`, if `still` holds afterwards,
    /// and gives access to it.
    ///
    /// The incarnation is that of the table or the message that the reference was found in. When
    /// the next one is mapped, an earlier one's tables stay readable as long as anything of it is
    /// pinned here; what they name must not be looked for in the new segment.
    ///
    /// `still` re-reads what the reference was found in (a page index entry); together with the
    /// home's order - entry removed, fence, pins scanned - it guarantees that a pinned frame is
    /// not reused. Returns `None` if the reference is stale or names nothing, or the frame has as
    /// many pins as it can have: [`Self::pin`] tells. Who pins often takes a [`Home`].
    pub fn pin_if(
        &self,
        page: PageRef,
        epoch: Epoch,
        still: impl FnOnce() -> bool,
    ) -> Option<PageGuard<'_>> {
        let record = self.mapped(page.home)?;
        if record.segment.epoch() != epoch {
            return None;
        }
        let bytes = record.segment.frame_start(page.frame)?;
        let counter = record.pins.get(page.frame.0 as usize)?;
        let room = hazard::pin(counter, record.segment.clock());
        // The guard's drop takes the pin back.
        let guard = PageGuard { bytes, counter, page: page.to_word() };
        let good = room && !record.forgotten.load(Ordering::Relaxed) && still();
        good.then_some(guard)
    }

    /// Pins the frame of a reference that came in a message: it is valid while its generation is.
    ///
    /// The home's incarnation is the one that is mapped: for whoever knows that there was no other
    /// since. Else see [`Self::pin_from`].
    ///
    /// # Errors
    /// [`Error::Exhausted`] when this process pins the frame too often already.
    pub fn pin(&self, page: PageRef) -> Result<Option<PageGuard<'_>>> {
        match self.mapped(page.home) {
            Some(record) => self.pin_from(page, (page.home, record.segment.epoch())),
            None => Ok(None),
        }
    }

    /// Pins the frame of a reference that came in a message of that participant's incarnation: its
    /// own frames are of that incarnation. Generations begin anew with each, so that they tell
    /// nothing of it.
    pub fn pin_from(
        &self,
        page: PageRef,
        from: (ParticipantId, Epoch),
    ) -> Result<Option<PageGuard<'_>>> {
        let (who, epoch) = from;
        let Some(record) = self.mapped(page.home) else { return Ok(None) };
        if page.frame.0 as usize >= record.segment.frames() {
            return Ok(None);
        }
        let epoch = if page.home == who { epoch } else { record.segment.epoch() };
        let same = || record.segment.generation(page.frame) == page.generation;
        let guard = self.pin_if(page, epoch, same);
        if guard.is_none() {
            self.check_pinnable(page)?;
        }
        Ok(guard)
    }

    /// That the frame could be pinned once more, for who was refused.
    fn check_pinnable(&self, page: PageRef) -> Result<()> {
        let Some(record) = self.mapped(page.home) else { return Ok(()) };
        let Some(counter) = record.pins.get(page.frame.0 as usize) else { return Ok(()) };
        match hazard::count(counter) {
            pins if pins >= hazard::MAX_PINS_PER_FRAME => Err(Error::Exhausted(format!(
                "{page:?}: pinned {pins} times by this process; drop some of its guards"
            ))),
            _ => Ok(()),
        }
    }

    /// The bytes of a frame without a pin: only for whoever otherwise knows that it is not reused
    /// (its home, while it has not retired it).
    pub fn peek(&self, page: PageRef) -> Option<RawSlice> {
        Some(self.mapped(page.home)?.segment.frame_start(page.frame)?.slice())
    }

    /// Every other participant whose segment is mapped and that has not ended.
    pub fn present(&self) -> Vec<(ParticipantId, Epoch)> {
        let ids = (0..limits::MAX_PARTICIPANTS).filter_map(ParticipantId::from_index);
        let there = ids.filter(|who| *who != self.own.participant()).filter_map(|who| {
            let record = self.mapped(who)?;
            let ended = record.ended.load(Ordering::Acquire);
            (!ended).then(|| (who, record.segment.epoch()))
        });
        there.collect()
    }

    /// Whether that participant's segment is still one. Returns whether it lists counters for own
    /// frames: one that has said that our segment is mapped does.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when its header has changed or its pins on own frames cannot be read.
    pub fn check(&self, who: ParticipantId) -> Result<bool> {
        let Some(record) = self.mapped(who) else { return Ok(false) };
        record.segment.check_header(self.control.cluster())?;
        let own = &self.own;
        let pins = record.segment.pins_on(own.participant(), own.epoch(), own.frames())?;
        Ok(pins.is_some())
    }

    /// Where every mapped participant keeps its pins on own frames, at this moment. A participant
    /// whose directory does not validate is reported instead: its pins are unknown.
    pub(crate) fn pin_index(&self) -> (PinIndex, Vec<(ParticipantId, Error)>) {
        let (mut found, mut bad) = (Vec::new(), Vec::new());
        let (me, epoch, frames) = (self.own.participant(), self.own.epoch(), self.own.frames());
        for index in 0..limits::MAX_PARTICIPANTS {
            let Some(who) = ParticipantId::from_index(index) else { continue };
            let Some(record) = self.mapped(who) else { continue };
            if record.ended.load(Ordering::Acquire) {
                continue;
            }
            match record.segment.pins_on(me, epoch, frames) {
                Ok(Some(pins)) => found.push((who, pins)),
                Ok(None) => {}
                Err(error) => bad.push((who, error)),
            }
        }
        (PinIndex(found), bad)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for record in self.records.get_mut().drain(..) {
            // SAFETY: made by `Box::leak` in `map`, listed once; guards borrow the region, so none
            // is left.
            drop(unsafe { Box::from_raw(record.as_ptr()) });
        }
    }
}

/// Every participant's counters on this process's frames.
#[derive(Debug)]
pub(crate) struct PinIndex(Vec<(ParticipantId, Ro<AtomicU16>)>);

impl PinIndex {
    /// Somebody who pins that frame. Part of reusing it: see [`crate::arena`].
    pub(crate) fn pinned_by(&self, frame: FrameNo) -> Option<ParticipantId> {
        let pinned = |pins| hazard::is_pinned(&SeenCounter { pins, frame: frame.0 as usize });
        self.0.iter().find(|(_, pins)| pinned(pins)).map(|&(who, _)| who)
    }

    /// How many of those frames each participant pins; those that pin none are left out.
    pub(crate) fn charges(&self, frames: &[FrameNo]) -> Vec<(ParticipantId, usize)> {
        let count = |(who, pins): &(ParticipantId, _)| {
            let pinned = |frame: &&FrameNo| {
                hazard::is_pinned(&SeenCounter { pins, frame: frame.0 as usize })
            };
            (*who, frames.iter().filter(pinned).count())
        };
        self.0.iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// Ticks since anybody used that frame.
    pub(crate) fn age(&self, frame: FrameNo, clock: u16) -> u16 {
        let age = |pins| hazard::age(&SeenCounter { pins, frame: frame.0 as usize }, clock);
        self.0.iter().map(|(_, pins)| age(pins)).min().unwrap_or(hazard::CLOCK_TICKS - 1)
    }
}

/// A pinned frame: its memory is not reused while this lives.
///
/// It pins memory, not a version: what the page shows may change, as in any page cache.
#[derive(Debug)]
pub struct PageGuard<'r> {
    bytes: RawFrame,
    counter: &'r AtomicU16,
    /// The reference, packed: it stays in one register.
    page: u64,
}

impl PageGuard<'_> {
    /// Which page.
    pub fn page_ref(&self) -> PageRef {
        PageRef::named_by(self.page)
    }

    /// Its bytes, valid while the guard lives.
    #[inline(always)]
    pub fn bytes(&self) -> RawSlice {
        self.bytes.slice()
    }
}

impl Drop for PageGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        hazard::unpin(self.counter);
    }
}

/// One of another participant's counters.
struct SeenCounter<'p> {
    pins: &'p Ro<AtomicU16>,
    frame: usize,
}

impl Seen for SeenCounter<'_> {
    fn load(&self, order: Ordering) -> u16 {
        self.pins.load(self.frame, order)
    }
}

#[cfg(test)]
mod tests;
