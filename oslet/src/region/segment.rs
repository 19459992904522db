//! Segments: made and written by one participant, mapped read-only by all others.

mod overwrite;
mod peer;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use parking_lot::Mutex;

pub use overwrite::{Bytes, put_past_caches};
pub use peer::PeerSegment;

use super::backing::{Backing, SharedFile};
use super::control::ClusterId;
use super::layout::{self, segment as at};
use super::map::{Mapping, Paging, RawSlice, RawSliceMut, Rw};
use super::space::Space;
use crate::id::{Epoch, FrameNo, Generation, ParticipantId};
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::{Error, Result, limits};

/// How a segment is made.
#[derive(Clone, Debug)]
pub struct SegmentSpec {
    /// Whose it is.
    pub participant: ParticipantId,
    /// In which incarnation.
    pub epoch: Epoch,
    /// Data frames.
    pub frames: usize,
    /// Bytes for rings, pin counters and published tables.
    pub space: usize,
    /// How its memory is brought in.
    pub paging: Paging,
}

/// A published table's place, as its owner or a reader knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// What it is; never zero. The crates above choose the numbers.
    pub kind: u64,
    /// Where it starts in the segment.
    pub offset: usize,
    /// How many bytes.
    pub len: usize,
    /// For whoever published it: which volume, how many entries.
    pub argument: u64,
}

/// The segment that this process writes.
#[derive(Debug)]
pub struct OwnSegment {
    shared: SharedFile,
    map: Arc<Mapping>,
    participant: ParticipantId,
    epoch: Epoch,
    words: Rw<AtomicU64>,
    frame_table: Rw<AtomicU32>,
    frames_offset: usize,
    /// One byte a frame, private to this process: [`FREE`], [`CLAIMED`] or [`PUBLISHED`], or
    /// published and being overwritten.
    claims: Box<[AtomicU8]>,
    /// The frames whose claim is [`FREE`].
    free: Mutex<Free>,
    space: Mutex<Space>,
    /// Pin counters that are not in use: where, and for how many frames.
    spare_pins: Mutex<Vec<(usize, usize)>>,
    huge: bool,
}

/// Free frames.
#[derive(Debug)]
struct Free {
    /// Taken first: a little-used segment touches little.
    returned: Vec<FrameNo>,
    /// Never taken so far; no list of them takes memory.
    unused: Range<u32>,
}

impl Free {
    fn take(&mut self) -> Option<FrameNo> {
        self.returned.pop().or_else(|| self.unused.next().map(FrameNo))
    }

    fn len(&self) -> usize {
        self.returned.len() + self.unused.len()
    }
}

const FREE: u8 = 0;
const CLAIMED: u8 = 1;
const PUBLISHED: u8 = 2;

/// Where the variable parts of a segment lie.
struct Parts {
    frame_table: usize,
    space: usize,
    frames: usize,
    len: usize,
}

impl Parts {
    fn of(spec: &SegmentSpec, page: usize) -> Option<Self> {
        let frame_table = at::FIXED_LEN;
        let space = frame_table
            .checked_add(spec.frames.checked_mul(at::FRAME_ENTRY)?)?
            .checked_next_multiple_of(limits::FRAME_SIZE)?;
        // Huge pages map the whole file, wherever in it frames begin.
        let data = spec.frames.checked_mul(limits::FRAME_SIZE)?;
        let frames = space.checked_add(spec.space)?.checked_next_multiple_of(limits::FRAME_SIZE)?;
        let len = frames.checked_add(data)?.checked_next_multiple_of(page)?;
        // What rounding adds belongs to the table space.
        Some(Self { frame_table, space, frames, len })
    }
}

impl SegmentSpec {
    /// Bytes that such a segment takes; `None` when no number says it.
    pub(crate) fn bytes(&self, backing: &Backing) -> Option<usize> {
        Parts::of(self, backing.page_size()).map(|parts| parts.len)
    }
}

impl OwnSegment {
    /// Makes, reserves, maps and seals a segment.
    ///
    /// # Errors
    /// When the memory cannot be reserved, or the sizes exceed [`limits`].
    pub fn create(backing: &Backing, cluster: ClusterId, spec: &SegmentSpec) -> Result<Arc<Self>> {
        let what = format!("segment of {:?} epoch {}", spec.participant, spec.epoch);
        let parts = Parts::of(spec, backing.page_size());
        let Some(parts) = parts.filter(|_| spec.frames <= limits::MAX_FRAMES) else {
            return Err(Error::Invalid(format!(
                "{what}: {} frames are too many; at most {} are possible",
                spec.frames,
                limits::MAX_FRAMES
            )));
        };
        let oslet = spec.participant.oslet.index();
        let tag = format!("{oslet}.{}.{}", spec.participant.slot(), spec.epoch);
        let shared = backing.create(&tag, parts.len, &what)?;
        let anonymous = *backing == Backing::Memfd;
        if !anonymous {
            backing.reserve(&shared, parts.len, &what)?;
        }
        let map = Arc::new(Mapping::new(&shared.file, parts.len, true, &what)?);
        // Memory of the pool is never anything else.
        let mut huge = *backing == Backing::Hugetlb;
        if anonymous {
            // The kernel has all CPUs empty lists of pages for it, one caller after another:
            // on a busy machine that takes long, and who comes back is waited for.
            if spec.epoch == Epoch(1) {
                huge = map.take_huge_pages(&shared.file);
            }
            backing.reserve(&shared, parts.len, &what)?;
        }
        huge = map.page_in(spec.paging)? || huge;
        shared.seal(&what)?;
        let words = map.words_mut::<AtomicU64>(0, at::FIXED_LEN / 8)?;
        let frame_table = map.words_mut::<AtomicU32>(parts.frame_table, spec.frames)?;
        for frame in 0..spec.frames {
            frame_table.store(frame, 1, Ordering::Relaxed);
        }
        let set = |offset: usize, value: u64| words.store(offset / 8, value, Ordering::Relaxed);
        set(at::VERSION, layout::version_word());
        set(at::CLUSTER, cluster.0[0]);
        set(at::CLUSTER + 8, cluster.0[1]);
        set(at::PARTICIPANT, participant_word(spec.participant, spec.epoch));
        set(at::LENGTH, parts.len as u64);
        set(at::FRAMES, spec.frames as u64);
        set(at::FRAMES_OFFSET, parts.frames as u64);
        set(at::FRAME_TABLE, parts.frame_table as u64);
        set(at::SPACE_OFFSET, parts.space as u64);
        set(at::SPACE_LENGTH, (parts.frames - parts.space) as u64);
        set(at::PID, u64::from(std::process::id()));
        // SYNC POINT: segment made
        words.store(at::MAGIC / 8, layout::SEGMENT_MAGIC, Ordering::Release);
        Ok(Arc::new(Self {
            participant: spec.participant,
            epoch: spec.epoch,
            words,
            frame_table,
            frames_offset: parts.frames,
            claims: (0..spec.frames).map(|_| AtomicU8::new(FREE)).collect(),
            free: Mutex::new(Free { returned: Vec::new(), unused: 0..spec.frames as u32 }),
            space: Mutex::new(Space::new(parts.space, parts.frames - parts.space)),
            spare_pins: Mutex::default(),
            shared,
            map,
            huge,
        }))
    }

    /// Whose it is.
    pub fn participant(&self) -> ParticipantId {
        self.participant
    }

    /// In which incarnation.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Data frames.
    pub fn frames(&self) -> usize {
        self.claims.len()
    }

    /// Bytes of the whole segment, all of it reserved.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: a segment has at least its header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the kernel granted huge pages.
    pub fn huge(&self) -> bool {
        self.huge
    }

    /// A descriptor for others, which can only be read.
    pub fn reader(&self) -> Result<File> {
        self.shared.reader("own segment")
    }

    /// Tells the others that this process still makes progress.
    pub fn beat(&self) {
        self.words.fetch_add(at::HEARTBEAT / 8, 1, Ordering::Relaxed);
    }

    /// Moves the clock by which readers date their use of this segment's frames.
    pub fn tick_clock(&self) {
        self.words.fetch_add(at::CLOCK / 8, 1, Ordering::Relaxed);
    }

    /// The clock's present tick.
    pub fn clock(&self) -> u16 {
        self.words.load(at::CLOCK / 8, Ordering::Relaxed) as u16
    }

    /// Words of the table space, to write.
    pub fn words_mut(&self, offset: usize, count: usize) -> Result<Rw<AtomicU64>> {
        self.map.words_mut(offset, count)
    }

    /// 16-bit words of the table space, to write.
    pub fn halfwords_mut(&self, offset: usize, count: usize) -> Result<Rw<AtomicU16>> {
        self.map.words_mut(offset, count)
    }

    /// Bytes of the segment, to read.
    pub fn slice(&self, offset: usize, len: usize) -> Result<RawSlice> {
        self.map.slice(offset, len)
    }

    /// Copies `bytes` to `offset` of the table space.
    ///
    /// # Errors
    /// If they do not fit inside the table space: frames are written through [`OwnedFrame`] only.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len());
        if offset < at::FIXED_LEN || end.is_none_or(|end| end > self.frames_offset) {
            return Err(Error::Invalid(format!(
                "own segment: {} bytes at {offset} are outside the table space",
                bytes.len()
            )));
        }
        let target = self.map.slice(offset, bytes.len())?;
        // SAFETY: in bounds of our own writable mapping; only this process writes it (R1), other
        // threads of it reach these bytes as atomics or raw copies, never through references.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.as_ptr(), bytes.len());
        }
        Ok(())
    }

    /// Reserves zeroed bytes of the table space.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when there is no room.
    pub fn alloc(&self, len: usize, align: usize) -> Result<usize> {
        let len = len.max(1).next_multiple_of(limits::LINE);
        let align = align.max(limits::LINE);
        let offset = self.space.lock().alloc(len, align).ok_or_else(|| {
            Error::Exhausted(format!(
                "segment of {:?}: no {len} bytes left for rings and tables; enlarge the region",
                self.participant
            ))
        })?;
        let words = self.words_mut(offset, len / 8)?;
        for index in 0..words.len() {
            words.store(index, 0, Ordering::Relaxed);
        }
        Ok(offset)
    }

    /// Gives back what [`Self::alloc`] returned for `len`. Nothing may refer to it any more.
    pub fn free(&self, offset: usize, len: usize) {
        self.space.lock().free(offset, len.max(1).next_multiple_of(limits::LINE));
    }

    /// Reserves a table and lists it in the directory, where all others find it. It stays until
    /// the segment ends: readers keep no count on it.
    pub fn publish_table(
        &self,
        kind: u64,
        len: usize,
        align: usize,
        argument: u64,
    ) -> Result<Table> {
        let mut entry = None;
        for index in 0..at::TABLES {
            let word = (at::TABLE_DIRECTORY + index * at::TABLE_ENTRY) / 8;
            if self.words.load(word, Ordering::Relaxed) == 0 {
                entry = Some(word);
                break;
            }
        }
        let Some(word) = entry.filter(|_| kind != 0) else {
            return Err(Error::Exhausted(format!(
                "segment of {:?}: all {} tables are taken",
                self.participant,
                at::TABLES
            )));
        };
        let offset = self.alloc(len, align)?;
        self.words.store(word + 1, offset as u64, Ordering::Relaxed);
        self.words.store(word + 2, len as u64, Ordering::Relaxed);
        self.words.store(word + 3, argument, Ordering::Relaxed);
        // SYNC POINT: table published
        self.words.store(word, kind, Ordering::Release);
        Ok(Table { kind, offset, len, argument })
    }

    /// Makes pin counters for every frame of `home`'s segment and lists them in the pin directory.
    /// Also where they lie, for [`Self::retract_pins`].
    pub(super) fn publish_pins(&self, home: &PeerSegment) -> Result<(Rw<AtomicU16>, usize)> {
        let spare = {
            let mut spare = self.spare_pins.lock();
            let fits = spare.iter().position(|(_, frames)| *frames == home.frames());
            fits.map(|at| spare.swap_remove(at).0)
        };
        let offset = match spare {
            Some(offset) => offset,
            None => self.alloc(home.frames() * 2, limits::LINE)?,
        };
        let counters = self.halfwords_mut(offset, home.frames())?;
        let word = pin_entry_word(home.participant());
        self.words.store(word + 1, offset as u64, Ordering::Relaxed);
        let first = u64::from(home.epoch().0) << 32 | home.frames() as u64;
        // SYNC POINT: pins published
        self.words.store(word, first, Ordering::SeqCst);
        Ok((counters, offset))
    }

    /// Takes the pin counters for a segment that is gone, none of which counts anything, out of
    /// the directory.
    ///
    /// They are used again, but as pin counters only and as they are: a thread that has found the
    /// segment still mapped may be about to add to one, and to take that back.
    pub(super) fn retract_pins(&self, home: &PeerSegment, offset: usize) {
        let word = pin_entry_word(home.participant());
        // The entry may be that of the home's next incarnation already.
        let first = u64::from(home.epoch().0) << 32 | home.frames() as u64;
        if self.words.load(word, Ordering::Relaxed) == first {
            self.words.store(word, 0, Ordering::SeqCst);
        }
        self.spare_pins.lock().push((offset, home.frames()));
    }

    /// The generation that frame is in now.
    pub(super) fn generation(&self, frame: FrameNo) -> Generation {
        Generation::new(self.frame_table.load(frame.0 as usize, Ordering::Relaxed))
    }

    /// Makes every reference to the frame's present contents stale. Zero is skipped: it would read
    /// as "no reference".
    pub(crate) fn advance_generation(&self, frame: FrameNo) {
        let next = match self.generation(frame).next() {
            next if next.get() == 0 => next.next(),
            next => next,
        };
        // SYNC POINT: pin or reuse
        self.frame_table.store(frame.0 as usize, next.get(), Ordering::SeqCst);
    }

    /// Takes a free frame to fill; `None` if there is none.
    pub(crate) fn claim(self: &Arc<Self>) -> Option<OwnedFrame> {
        let frame = self.free.lock().take()?;
        self.claims[frame.0 as usize].store(CLAIMED, Ordering::Relaxed);
        Some(OwnedFrame { segment: Arc::clone(self), frame })
    }

    /// How many frames are free.
    pub(crate) fn free_frames(&self) -> usize {
        self.free.lock().len()
    }

    /// Makes a published frame free again: nobody may refer to it or pin it any more. Returns
    /// whether it was published.
    pub(crate) fn unpublish(&self, frame: FrameNo) -> bool {
        self.give_back(frame, PUBLISHED)
    }

    /// Gives a published frame to fill again: nobody may refer to it or pin it any more. `None` if
    /// it was not published.
    pub(crate) fn claim_published(self: &Arc<Self>, frame: FrameNo) -> Option<OwnedFrame> {
        let claim = &self.claims[frame.0 as usize];
        claim.compare_exchange(PUBLISHED, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some(OwnedFrame { segment: Arc::clone(self), frame })
    }

    /// All data frames as one range, for the kernel to know.
    pub(crate) fn frame_range(&self) -> Result<RawSlice> {
        self.map.slice(self.frames_offset, self.frames() * limits::FRAME_SIZE)
    }

    fn give_back(&self, frame: FrameNo, from: u8) -> bool {
        let claim = &self.claims[frame.0 as usize];
        let ours = claim.compare_exchange(from, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if ours {
            self.free.lock().returned.push(frame);
        }
        ours
    }

    fn frame_bytes(&self, frame: FrameNo) -> Result<RawSlice> {
        let offset = self.frames_offset + frame.0 as usize * limits::FRAME_SIZE;
        self.map.slice(offset, limits::FRAME_SIZE)
    }
}

/// A frame that one value of this process owns: nobody refers to it yet, so it may be written.
/// Dropping it makes it free again.
#[derive(Debug)]
pub struct OwnedFrame {
    segment: Arc<OwnSegment>,
    frame: FrameNo,
}

impl OwnedFrame {
    /// Which frame.
    pub fn number(&self) -> FrameNo {
        self.frame
    }

    /// The reference that [`Self::publish`] will make valid.
    pub fn page_ref(&self) -> crate::id::PageRef {
        crate::id::PageRef {
            home: self.segment.participant,
            frame: self.frame,
            generation: self.segment.generation(self.frame),
        }
    }

    /// Its memory, to fill directly or through a system call.
    pub fn bytes(&mut self) -> Result<RawSliceMut> {
        let slice = self.segment.frame_bytes(self.frame)?;
        // SAFETY: the claim byte admits one `OwnedFrame` a frame, `&mut self` one user at a time,
        // and the segment is sealed against other writers (or shared by trust, see `Backing`).
        // The mapping outlives the frame through `self.segment`.
        Ok(unsafe { RawSliceMut::new(slice) })
    }

    /// Gives up the right to write and returns the reference to hand out. From now on the frame is
    /// reused only through [`crate::arena::Arena::retire`].
    pub fn publish(self) -> crate::id::PageRef {
        let page = self.page_ref();
        self.segment.claims[self.frame.0 as usize].store(PUBLISHED, Ordering::Release);
        page
    }
}

impl Drop for OwnedFrame {
    fn drop(&mut self) {
        // A published frame is left as it is: nobody has its reference yet, so none can have
        // retired and claimed it again before `publish` returns.
        self.segment.give_back(self.frame, CLAIMED);
    }
}

fn participant_word(participant: ParticipantId, epoch: Epoch) -> u64 {
    participant.index() as u64 | u64::from(epoch.0) << 32
}

fn pin_entry_word(home: ParticipantId) -> usize {
    (at::PIN_DIRECTORY + home.index() * at::PIN_ENTRY) / 8
}
