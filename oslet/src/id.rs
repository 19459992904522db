//! Names of things, one type each, so that a frame number is never taken for an epoch.

use std::fmt;

use crate::limits;

/// A partition, by its place in the control page (0 to [`limits::MAX_OSLETS`] - 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OsletId(u8);

impl OsletId {
    /// The id with that index, if there is such a place.
    #[inline(always)]
    pub const fn new(index: usize) -> Option<Self> {
        if index < limits::MAX_OSLETS { Some(Self(index as u8)) } else { None }
    }

    /// The place in the control page.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for OsletId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oslet#{}", self.0)
    }
}

/// The incarnation of an OSlet: 1 at its first join, one more at each rejoin; 0 is "never joined".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of a place that nobody has joined yet.
    pub const NEVER: Self = Self(0);

    /// The incarnation after this one; `None` when the counter is used up.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process that takes part in the shared memory: slot 0 is an OSlet's runtime, the others are
/// its native clients. It says *where*; with an [`Epoch`] it says *who*.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParticipantId {
    /// The OSlet it runs in.
    pub oslet: OsletId,
    slot: u8,
}

impl ParticipantId {
    /// The participant in that slot of that OSlet, if there is such a slot.
    #[inline(always)]
    pub const fn new(oslet: OsletId, slot: usize) -> Option<Self> {
        if slot < limits::SLOTS_PER_OSLET { Some(Self { oslet, slot: slot as u8 }) } else { None }
    }

    /// The runtime of that OSlet.
    #[inline(always)]
    pub const fn runtime(oslet: OsletId) -> Self {
        Self { oslet, slot: 0 }
    }

    /// The slot within the OSlet; 0 is the runtime.
    #[inline(always)]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    /// Whether this is an OSlet's runtime.
    pub const fn is_runtime(self) -> bool {
        self.slot == 0
    }

    /// One number below [`limits::MAX_PARTICIPANTS`] for each participant: the segment's index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.oslet.index() * limits::SLOTS_PER_OSLET + self.slot as usize
    }

    /// The inverse of [`Self::index`].
    #[inline(always)]
    pub const fn from_index(index: usize) -> Option<Self> {
        match OsletId::new(index / limits::SLOTS_PER_OSLET) {
            Some(oslet) => Self::new(oslet, index % limits::SLOTS_PER_OSLET),
            None => None,
        }
    }
}

impl fmt::Debug for ParticipantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.oslet, self.slot)
    }
}

/// A frame's number within its home's segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameNo(pub u32);

/// How often a frame has been reused, modulo 2^24. A reference whose generation is not the frame's
/// is stale.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Generation(u32);

impl Generation {
    /// The generation with that number, taken modulo 2^24.
    #[inline(always)]
    pub const fn new(value: u32) -> Self {
        Self(value & ((1 << limits::GENERATION_BITS) - 1))
    }

    /// The number, below 2^24.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The generation after this one.
    #[inline(always)]
    pub const fn next(self) -> Self {
        Self::new(self.0.wrapping_add(1))
    }
}

/// What is passed instead of bytes: a frame of some participant's segment, in one generation.
///
/// As a word (`to_word`): bits 0-23 generation, 24-49 frame, 50-59 segment, 60-63 zero (the page
/// index keeps the high bits of a page number there). A word of zero is no reference: generation 0
/// is never handed out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRef {
    /// Whose segment.
    pub home: ParticipantId,
    /// Which frame of it.
    pub frame: FrameNo,
    /// In which generation.
    pub generation: Generation,
}

impl PageRef {
    const FRAME_SHIFT: u32 = limits::GENERATION_BITS;
    const HOME_SHIFT: u32 = Self::FRAME_SHIFT + limits::FRAME_BITS;
    /// The bits of a word that [`Self::to_word`] leaves at zero.
    pub const SPARE_SHIFT: u32 = Self::HOME_SHIFT + limits::PARTICIPANT_BITS;

    /// As one word of shared memory.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.generation.0 as u64)
            | (self.frame.0 as u64) << Self::FRAME_SHIFT
            | (self.home.index() as u64) << Self::HOME_SHIFT
    }

    /// From a word, its spare bits ignored; `None` for "no reference". Bounds against the home's
    /// segment are checked where it is used.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Option<Self> {
        let page = Self::named_by(word);
        if page.generation.0 == 0 { None } else { Some(page) }
    }

    /// The frame that a word names, whether its generation is one that is handed out or not: for
    /// words that have been looked at already.
    #[inline(always)]
    pub const fn named_by(word: u64) -> Self {
        let frame = (word >> Self::FRAME_SHIFT) & ((1 << limits::FRAME_BITS) - 1);
        let index = (word >> Self::HOME_SHIFT) as usize % limits::MAX_PARTICIPANTS;
        // All that so many bits can say are participants.
        let home = ParticipantId {
            oslet: OsletId((index / limits::SLOTS_PER_OSLET) as u8),
            slot: (index % limits::SLOTS_PER_OSLET) as u8,
        };
        Self { home, frame: FrameNo(frame as u32), generation: Generation::new(word as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_page_reference_survives_its_word(word: u64) {
            let named = PageRef::named_by(word);
            prop_assert_eq!(named.to_word(), word & ((1 << PageRef::SPARE_SHIFT) - 1));
            if let Some(page) = PageRef::from_word(word) {
                prop_assert_eq!(page, named);
                prop_assert_eq!(page.to_word(), word & ((1 << PageRef::SPARE_SHIFT) - 1));
            } else {
                prop_assert_eq!(word & ((1 << limits::GENERATION_BITS) - 1), 0);
            }
        }

        #[test]
        fn a_participant_survives_its_index(index in 0..limits::MAX_PARTICIPANTS) {
            prop_assert_eq!(ParticipantId::from_index(index).unwrap().index(), index);
        }
    }

    #[test]
    fn places_beyond_the_limits_do_not_exist() {
        assert_eq!(OsletId::new(limits::MAX_OSLETS), None);
        let last = OsletId::new(limits::MAX_OSLETS - 1).unwrap();
        assert_eq!(ParticipantId::new(last, limits::SLOTS_PER_OSLET), None);
        assert_eq!(ParticipantId::from_index(limits::MAX_PARTICIPANTS), None);
    }
}
