//! Segments of others: read, and never believed.

use std::fs::File;
use std::sync::Arc;

use super::{Table, participant_word, pin_entry_word};
use crate::id::{Epoch, FrameNo, Generation, ParticipantId};
use crate::region::control::{ClusterId, check_version};
use crate::region::layout::{self, segment as at};
use crate::region::map::{Mapping, One, Paging, RawFrame, RawSlice, Ro};
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::{Error, Result, limits};

/// A segment as it is read: everything in it is checked before it is used.
#[derive(Debug)]
pub struct PeerSegment {
    map: Arc<Mapping>,
    participant: ParticipantId,
    epoch: Epoch,
    words: Ro<AtomicU64>,
    frame_table: Ro<AtomicU32>,
    frames: RawSlice,
}

impl PeerSegment {
    /// Maps a segment read-only and checks its header against who it should belong to.
    pub fn open(
        file: &File,
        cluster: ClusterId,
        participant: ParticipantId,
        epoch: Epoch,
        paging: Paging,
    ) -> Result<Self> {
        let what = format!("segment of {participant:?} epoch {epoch}");
        let corrupt = |detail: String| Error::Corrupt { peer: what.clone(), what: detail };
        let len = file.metadata().map_err(Error::io(format!("{what}: stat")))?.len();
        let len = usize::try_from(len).map_err(|_| corrupt(format!("{len} bytes long")))?;
        if len < at::FIXED_LEN {
            return Err(corrupt(format!("only {len} bytes long")));
        }
        let map = Arc::new(Mapping::new(file, len, false, &what)?);
        let words = map.words::<AtomicU64>(0, at::FIXED_LEN / 8)?;
        let get = |offset: usize| words.load(offset / 8, Ordering::Relaxed);
        // SYNC POINT: segment made
        if words.load(at::MAGIC / 8, Ordering::Acquire) != layout::SEGMENT_MAGIC {
            return Err(corrupt("no segment of oslet".into()));
        }
        check_version(get(at::VERSION), &what)?;
        if [get(at::CLUSTER), get(at::CLUSTER + 8)] != cluster.0 {
            return Err(corrupt("belongs to another cluster".into()));
        }
        if get(at::PARTICIPANT) != participant_word(participant, epoch) {
            return Err(corrupt(format!("says it is {:#x}", get(at::PARTICIPANT))));
        }
        let frames = usize::try_from(get(at::FRAMES)).ok().filter(|&n| n <= limits::MAX_FRAMES);
        let frames = frames.ok_or_else(|| corrupt(format!("{} frames", get(at::FRAMES))))?;
        let place = |offset: usize| usize::try_from(get(offset)).unwrap_or(usize::MAX);
        let frames_offset = place(at::FRAMES_OFFSET);
        if !frames_offset.is_multiple_of(limits::FRAME_SIZE) {
            return Err(corrupt(format!("frames at {frames_offset}")));
        }
        map.page_in(paging)?;
        Ok(Self {
            frame_table: map.words(place(at::FRAME_TABLE), frames)?,
            frames: map.slice(frames_offset, frames * limits::FRAME_SIZE)?,
            participant,
            epoch,
            words,
            map,
        })
    }

    /// Whose it is.
    pub fn participant(&self) -> ParticipantId {
        self.participant
    }

    /// In which incarnation.
    #[inline(always)]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Data frames.
    #[inline(always)]
    pub fn frames(&self) -> usize {
        self.frame_table.len()
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: a segment has at least its header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The process that says it made this segment.
    pub fn pid(&self) -> u32 {
        self.words.load(at::PID / 8, Ordering::Relaxed) as u32
    }

    /// The heartbeat counter.
    pub fn heartbeat(&self) -> u64 {
        self.words.load(at::HEARTBEAT / 8, Ordering::Relaxed)
    }

    /// The tick by which uses of its frames are dated.
    #[inline(always)]
    pub(in crate::region) fn clock(&self) -> u16 {
        self.words.load(at::CLOCK / 8, Ordering::Relaxed) as u16
    }

    /// The word of [`Self::clock`], to look at it often.
    pub(in crate::region) fn clock_word(&self) -> One {
        self.words.one(at::CLOCK / 8)
    }

    /// Words of the segment, to read; the place is checked against the segment's length.
    pub fn words(&self, offset: usize, count: usize) -> Result<Ro<AtomicU64>> {
        self.map.words(offset, count)
    }

    /// Bytes of the segment, to copy; the place is checked against the segment's length.
    pub fn slice(&self, offset: usize, len: usize) -> Result<RawSlice> {
        self.map.slice(offset, len)
    }

    /// The published table of that kind and argument, if there is one that lies inside.
    pub fn table(&self, kind: u64, argument: u64) -> Option<Table> {
        (0..at::TABLES).find_map(|index| {
            let word = (at::TABLE_DIRECTORY + index * at::TABLE_ENTRY) / 8;
            // SYNC POINT: table published
            let found = self.words.load(word, Ordering::Acquire);
            let rest = |n: usize| self.words.load(word + n, Ordering::Relaxed);
            if found != kind || rest(3) != argument {
                return None;
            }
            let offset = usize::try_from(rest(1)).ok()?;
            let len = usize::try_from(rest(2)).ok()?;
            self.map.slice(offset, len).ok()?;
            Some(Table { kind, offset, len, argument })
        })
    }

    /// The generation that frame is in now.
    #[inline(always)]
    pub(in crate::region) fn generation(&self, frame: FrameNo) -> Generation {
        // SYNC POINT: pin or reuse
        Generation::new(self.frame_table.load(frame.0 as usize, Ordering::SeqCst))
    }

    /// The bytes of all frames.
    pub(in crate::region) fn frame_bytes(&self) -> RawSlice {
        self.frames
    }

    /// The bytes of that frame; `None` beyond the last.
    #[inline(always)]
    pub(in crate::region) fn frame_start(&self, frame: FrameNo) -> Option<RawFrame> {
        self.frames.frame(frame.0 as usize)
    }

    /// Whether the header is what it was when the segment was mapped. An honest participant never
    /// changes it.
    pub(in crate::region) fn check_header(&self, cluster: ClusterId) -> Result<()> {
        let get = |offset: usize| self.words.load(offset / 8, Ordering::Relaxed);
        let same = get(at::MAGIC) == layout::SEGMENT_MAGIC
            && get(at::VERSION) == layout::version_word()
            && [get(at::CLUSTER), get(at::CLUSTER + 8)] == cluster.0
            && get(at::PARTICIPANT) == participant_word(self.participant, self.epoch)
            && get(at::FRAMES) == self.frames() as u64;
        if same {
            return Ok(());
        }
        Err(Error::Corrupt {
            peer: format!("segment of {:?} epoch {}", self.participant, self.epoch),
            what: "its header has changed".into(),
        })
    }

    /// The counters in which this participant pins the frames of `home`, if it says that it does.
    pub(in crate::region) fn pins_on(
        &self,
        home: ParticipantId,
        epoch: Epoch,
        frames: usize,
    ) -> Result<Option<Ro<AtomicU16>>> {
        let word = pin_entry_word(home);
        // SYNC POINT: pins published
        let first = self.words.load(word, Ordering::SeqCst);
        let named = Epoch((first >> 32) as u32);
        // It may not have heard yet that `home` is back.
        if first == 0 || named < epoch {
            return Ok(None);
        }
        if first as u32 as usize != frames || named != epoch {
            return Err(Error::Corrupt {
                peer: format!("pin directory of {:?}", self.participant),
                what: format!(
                    "{} counters for epoch {named} of {home:?}, which has {frames} frames in epoch \
                     {epoch}",
                    first as u32
                ),
            });
        }
        let offset = usize::try_from(self.words.load(word + 1, Ordering::Relaxed));
        self.map.words(offset.unwrap_or(usize::MAX), frames).map(Some)
    }

    /// Gives the memory back; the addresses stay, and read as zero.
    pub(in crate::region) fn forget_contents(&self) -> Result<()> {
        self.map.forget_contents()
    }
}
