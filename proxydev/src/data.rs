//! The data of a request: references to parts of frames, and what keeps those frames from reuse.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::PageRef;
use oslet::limits::FRAME_SIZE;
use oslet::region::{OwnedFrame, Pins, RawSlice, Region};
use oslet::sys::disk::Source;

use crate::{Error, Result};

/// A part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Which frame.
    pub page: PageRef,
    /// First byte in it.
    pub offset: u16,
    /// Bytes, at least one.
    pub len: u16,
}

impl Slice {
    /// Bytes `offset` to `offset + len` of the frame, if there are any and it has them all.
    pub fn new(page: PageRef, offset: usize, len: usize) -> Option<Self> {
        let inside = len > 0 && offset.checked_add(len).is_some_and(|end| end <= FRAME_SIZE);
        inside.then_some(Self { page, offset: offset as u16, len: len as u16 })
    }
}

/// Bytes that lie in frames, in order, with a hold that keeps the frames from reuse while it
/// lives.
///
/// What is read does not change while it is held: a device never fills a frame again that it has
/// handed out. What is written may change under the device until the write completes, as in any
/// page cache; then the device has some mixture.
pub struct Data {
    slices: Vec<Slice>,
    hold: Hold,
}

enum Hold {
    /// Nothing to hold: there are no slices.
    None,
    /// Pin `i` is on the frame of slice `i`.
    Pins(Pins),
    /// Frames of the own segment that nobody else has linked: retired when they are let go.
    Loan(Loan),
    /// Frames of the own segment that somebody keeps from being retired.
    Kept { region: Arc<Region>, _keeper: Box<dyn Any + Send + Sync> },
}

struct Loan {
    arena: Arc<Arena>,
    pages: Vec<PageRef>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.pages.is_empty() {
            self.arena.retire(&self.pages);
        }
    }
}

impl Data {
    /// No bytes.
    pub fn empty() -> Self {
        Self { slices: Vec::new(), hold: Hold::None }
    }

    /// The first `len` bytes of frames that have been filled; they are retired when this is let go,
    /// unless [`Self::into_pages`] takes them over.
    pub fn loan(arena: &Arc<Arena>, frames: Vec<OwnedFrame>, len: usize) -> Result<Self> {
        let used = len.div_ceil(FRAME_SIZE);
        if used > frames.len() {
            return Err(Error::Invalid(format!("{len} bytes of {} frames", frames.len())));
        }
        let mut left = len;
        let mut slices = Vec::with_capacity(used);
        let mut pages = Vec::with_capacity(used);
        // Frames beyond the last byte go back at once.
        for frame in frames.into_iter().take(used) {
            let page = frame.publish();
            let part = left.min(FRAME_SIZE);
            slices.extend(Slice::new(page, 0, part));
            pages.push(page);
            left -= part;
        }
        Ok(Self { slices, hold: Hold::Loan(Loan { arena: Arc::clone(arena), pages }) })
    }

    /// A copy of bytes, in frames of the own segment.
    pub fn copy_from(arena: &Arc<Arena>, bytes: &[u8]) -> Result<Self> {
        let mut frames = arena.alloc_many(bytes.len().div_ceil(FRAME_SIZE))?;
        for (frame, chunk) in frames.iter_mut().zip(bytes.chunks(FRAME_SIZE)) {
            frame.bytes()?.fill()[..chunk.len()].copy_from_slice(chunk);
        }
        Self::loan(arena, frames, bytes.len())
    }

    /// Parts of pinned frames: slice `i` of the frame of pin `i`.
    pub fn pinned(pins: Pins, slices: Vec<Slice>) -> Result<Self> {
        let fits = (0..pins.len()).all(|i| pins.page(i) == slices.get(i).map(|s| s.page));
        if pins.len() != slices.len() || !fits {
            return Err(Error::Invalid(format!("{} pins for {slices:?}", pins.len())));
        }
        Ok(Self { slices, hold: Hold::Pins(pins) })
    }

    /// Parts of the own segment's frames, which are not retired before `keeper` is dropped.
    pub fn kept(
        region: &Arc<Region>,
        slices: Vec<Slice>,
        keeper: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let own = region.own().participant();
        if let Some(slice) = slices.iter().find(|slice| slice.page.home != own) {
            return Err(Error::Invalid(format!("{:?} is not of the own segment", slice.page)));
        }
        Ok(Self { slices, hold: Hold::Kept { region: Arc::clone(region), _keeper: keeper } })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.slices.iter().map(|slice| usize::from(slice.len)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The parts, in order.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The bytes of part `index`, valid while this lives.
    pub fn bytes(&self, index: usize) -> Option<RawSlice> {
        let slice = self.slices.get(index)?;
        let frame = match &self.hold {
            Hold::None => None,
            Hold::Pins(pins) => pins.bytes(index).copied(),
            Hold::Loan(loan) => loan.arena.region().peek(slice.page),
            Hold::Kept { region, .. } => region.peek(slice.page),
        };
        frame?.sub(usize::from(slice.offset), usize::from(slice.len))
    }

    /// Copies the first bytes out, as many as `out` takes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn copy_to(&self, out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        for index in 0..self.slices.len() {
            let bytes = self.bytes(index).ok_or_else(|| self.unmapped(index))?;
            let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
            bytes.copy_to(0, now);
            rest = later;
        }
        if !rest.is_empty() {
            return Err(Error::Invalid(format!("{} bytes are missing", rest.len())));
        }
        Ok(())
    }

    /// All bytes, copied out.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.len()];
        self.copy_to(&mut out)?;
        Ok(out)
    }

    /// Takes over frames that were read for nobody else: the caller retires them from now on. What
    /// else keeps frames of its own (a RAM device, a peer) does not give them up, and the data come
    /// back as they are.
    pub fn into_pages(self) -> std::result::Result<Vec<PageRef>, Self> {
        match self.hold {
            Hold::Loan(mut loan) => Ok(std::mem::take(&mut loan.pages)),
            hold => Err(Self { hold, ..self }),
        }
    }

    /// What the parts are written from, for a system call: (region, frame, first byte, bytes).
    pub(crate) fn sources(&self) -> impl Iterator<Item = (Source<'_>, usize, usize)> {
        self.slices.iter().enumerate().map(|(index, slice)| {
            let source = match &self.hold {
                Hold::Pins(pins) => Source::Pin(pins, index),
                Hold::None | Hold::Loan(_) | Hold::Kept { .. } => Source::Own(slice.page),
            };
            (source, usize::from(slice.offset), usize::from(slice.len))
        })
    }

    /// The region that the frames lie in; `None` when there are none.
    pub(crate) fn region(&self) -> Option<&Arc<Region>> {
        match &self.hold {
            Hold::None => None,
            Hold::Pins(pins) => Some(pins.region()),
            Hold::Loan(loan) => Some(loan.arena.region()),
            Hold::Kept { region, .. } => Some(region),
        }
    }

    fn unmapped(&self, index: usize) -> Error {
        Error::Invalid(format!("{:?} is not mapped", self.slices.get(index)))
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hold = match &self.hold {
            Hold::None => "none",
            Hold::Pins(_) => "pins",
            Hold::Loan(_) => "loan",
            Hold::Kept { .. } => "kept",
        };
        f.debug_struct("Data").field("slices", &self.slices).field("hold", &hold).finish()
    }
}
