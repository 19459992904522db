//! The frames that show a volume's pages: which are linked where, which of them hold what the disk
//! has not, and taking idle ones out when the budget is used up.

use std::ops::Range;

use oslet::id::{FrameNo, PageRef};
use oslet::region::OwnedFrame;
use oslet::sync::{AtomicU64, Ordering};

use super::Owner;
use crate::cache::Key;
use crate::id::Ino;
use crate::{Error, Result};

/// Frames looked at to choose the idlest of them.
const SAMPLE: usize = 64;
/// Frames taken out at a time.
const EVICT: usize = 16;

/// What a linked frame holds, by blocks of its page: bit 0 is the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Blocks {
    /// Changed since they were last written, or since writing them began.
    pub(super) dirty: u8,
    /// Have no place on disk; room for them is reserved.
    pub(super) reserved: u8,
    /// Being written.
    pub(super) writing: u8,
}

impl Blocks {
    fn from_bits(bits: u64) -> Self {
        Self { dirty: bits as u8, reserved: (bits >> 8) as u8, writing: (bits >> 16) as u8 }
    }

    fn bits(self) -> u64 {
        u64::from(self.dirty) | u64::from(self.reserved) << 8 | u64::from(self.writing) << 16
    }

    /// Whether the frame must stay.
    pub(super) fn is_busy(self) -> bool {
        self.dirty | self.writing != 0
    }
}

/// Set while a frame is taken out of the index: nobody changes it any more.
const GONE: u64 = 1 << 24;

/// The state of each frame, in one word with the generation that it is of: a word that belongs to
/// another use of the frame changes nothing.
///
/// Blocks are changed under the lock of the page's inode. Who takes a page out has another lock;
/// between the two the word decides.
///
/// A volume that is only read has no words: its frames hold what the disk has, and the lock of who
/// takes them out is enough.
pub(super) struct States {
    words: Box<[AtomicU64]>,
    /// Frames that must stay.
    busy: AtomicU64,
}

impl States {
    /// Of that many frames; none for a volume that is only read.
    pub(super) fn new(frames: usize) -> Self {
        Self { words: (0..frames).map(|_| AtomicU64::new(GONE)).collect(), busy: AtomicU64::new(0) }
    }

    /// Frames that hold what the disk has not.
    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed) as usize
    }

    fn generation(page: PageRef) -> u64 {
        u64::from(page.generation.get()) << 32
    }

    /// Before a frame is linked.
    fn start(&self, page: PageRef, blocks: Blocks) {
        if blocks.is_busy() {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        if !self.words.is_empty() {
            let word = Self::generation(page) | blocks.bits();
            self.words[page.frame.0 as usize].store(word, Ordering::Release);
        }
    }

    /// What the frame holds; `None` once it is taken out.
    pub(super) fn get(&self, page: PageRef) -> Option<Blocks> {
        if self.words.is_empty() {
            return Some(Blocks::default());
        }
        let word = self.words.get(page.frame.0 as usize)?.load(Ordering::Acquire);
        let current = word >> 32 == u64::from(page.generation.get()) && word & GONE == 0;
        current.then(|| Blocks::from_bits(word))
    }

    /// Changes what the frame holds. What it was; `None` once it is taken out.
    pub(super) fn change(
        &self,
        page: PageRef,
        change: impl Fn(Blocks) -> Blocks,
    ) -> Option<Blocks> {
        self.replace(page, |before| Some(change(before).bits()))
    }

    /// Marks a frame as being taken out, if it may be.
    fn take_idle(&self, page: PageRef) -> bool {
        self.replace(page, |before| (!before.is_busy()).then_some(GONE)).is_some()
    }

    /// Marks a frame as being taken out, whatever it holds. What that was.
    fn take(&self, page: PageRef) -> Option<Blocks> {
        self.replace(page, |_| Some(GONE))
    }

    fn replace(&self, page: PageRef, next: impl Fn(Blocks) -> Option<u64>) -> Option<Blocks> {
        if self.words.is_empty() {
            return next(Blocks::default()).map(|_| Blocks::default());
        }
        let word = self.words.get(page.frame.0 as usize)?;
        let mut found = word.load(Ordering::Acquire);
        loop {
            let current = found >> 32 == u64::from(page.generation.get()) && found & GONE == 0;
            let before = current.then(|| Blocks::from_bits(found))?;
            let bits = next(before)?;
            let new = Self::generation(page) | bits;
            match word.compare_exchange_weak(found, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let busy = bits & GONE == 0 && Blocks::from_bits(bits).is_busy();
                    match (before.is_busy(), busy) {
                        (false, true) => drop(self.busy.fetch_add(1, Ordering::Relaxed)),
                        (true, false) => drop(self.busy.fetch_sub(1, Ordering::Relaxed)),
                        _ => {}
                    }
                    return Some(before);
                }
                Err(now) => found = now,
            }
        }
    }
}

/// Which frames show pages of the volume, and where those are linked.
pub(super) struct Frames {
    /// By frame: its slot in the page index plus one.
    slots: Box<[u32]>,
    used: usize,
    budget: usize,
    hand: usize,
    /// Frames passed by the hand since the clock last moved.
    passed: usize,
}

impl Frames {
    pub(super) fn new(total: usize, budget: usize) -> Self {
        let slots = vec![0; total].into_boxed_slice();
        Self { slots, used: 0, budget: budget.max(EVICT), hand: 0, passed: 0 }
    }

    pub(super) fn usage(&self) -> (usize, usize) {
        (self.used, self.budget)
    }

    /// The next linked frames under the hand.
    fn sample(&mut self) -> Vec<FrameNo> {
        let mut sample = Vec::with_capacity(SAMPLE);
        for _ in 0..self.slots.len() {
            if self.slots[self.hand] != 0 {
                sample.push(FrameNo(self.hand as u32));
            }
            self.hand = (self.hand + 1) % self.slots.len();
            self.passed += 1;
            if sample.len() == SAMPLE {
                break;
            }
        }
        sample
    }
}

impl Owner {
    /// A frame to fill, within the budget.
    pub(super) fn frame(&self) -> Result<OwnedFrame> {
        self.make_room(1)?;
        Ok(self.arena.alloc()?)
    }

    /// Takes idle pages out until `count` more fit into the budget and the arena has frames for
    /// them. Pins held by others can make it fall short for a while: then it tries a bounded number
    /// of times, and allocation says what is wrong.
    pub(super) fn make_room(&self, count: usize) -> Result<()> {
        const TRIES: usize = 64;
        let mut tries = 0;
        loop {
            let (used, budget) = self.usage();
            let spare = self.arena.usage().free >= count;
            if used + count <= budget.max(count) && spare || tries == TRIES {
                return Ok(());
            }
            if self.evict() == 0 {
                self.flusher.hurry();
                self.arena.tick();
                tries += 1;
                std::thread::yield_now();
            }
        }
    }

    /// Links a frame that shows what the disk has.
    pub(super) fn link(&self, key: Key, page: PageRef) -> Result<PageRef> {
        self.link_with(key, page, Blocks::default())
    }

    /// Links a frame, in place of the page of zeros if that is there.
    pub(super) fn link_with(&self, key: Key, page: PageRef, blocks: Blocks) -> Result<PageRef> {
        self.states.start(page, blocks);
        let linked = self.link_in(&mut self.frames.lock(), key, page);
        linked.inspect_err(|_| self.abandon(&[page])).map(|()| page)
    }

    /// The same for pages of a file one behind the other. How many have been linked; the others
    /// have gone.
    pub(super) fn link_row(
        &self,
        keys: &[Key],
        pages: &[PageRef],
        blocks: impl Fn(usize) -> Blocks,
    ) -> (usize, Result<()>) {
        for (index, &page) in pages.iter().enumerate() {
            self.states.start(page, blocks(index));
        }
        let mut frames = self.frames.lock();
        for (index, (&key, &page)) in keys.iter().zip(pages).enumerate() {
            if let Err(error) = self.link_in(&mut frames, key, page) {
                drop(frames);
                self.abandon(&pages[index..]);
                return (index, Err(error));
            }
        }
        (pages.len(), Ok(()))
    }

    fn link_in(&self, frames: &mut Frames, key: Key, page: PageRef) -> Result<()> {
        loop {
            let pages = self.pages.lock();
            if let Some((slot, _)) = pages.locate(key).filter(|&(_, page)| page == self.zeros) {
                pages.unlink(slot);
            }
            let linked = pages.link(key, page);
            drop(pages);
            match linked {
                Ok(slot) => {
                    frames.slots[page.frame.0 as usize] = slot as u32 + 1;
                    frames.used += 1;
                    return Ok(());
                }
                Err(taken) => self.displace(frames, &taken)?,
            }
        }
    }

    /// Takes frames back that were to be linked.
    fn abandon(&self, pages: &[PageRef]) {
        for &page in pages {
            self.states.take(page);
        }
        self.arena.retire(pages);
    }

    pub(super) fn link_zeros(&self, key: Key) -> Result<PageRef> {
        loop {
            let mut frames = self.frames.lock();
            let linked = self.pages.lock().link(key, self.zeros);
            match linked {
                Ok(_) => return Ok(self.zeros),
                Err(taken) => self.displace(&mut frames, &taken)?,
            }
        }
    }

    /// Empties one of the slots that a key could have: by moving what it links elsewhere, else a
    /// hole's if there is one, else the idlest page's that nobody pins.
    fn displace(&self, frames: &mut Frames, taken: &[usize]) -> Result<()> {
        let pages = self.pages.lock();
        if let Some((page, slot)) = pages.make_way(taken) {
            // Holes' links are not listed.
            if page != self.zeros {
                frames.slots[page.frame.0 as usize] = slot as u32 + 1;
            }
            return Ok(());
        }
        let shown: Vec<_> = taken.iter().map(|&slot| (slot, pages.at(slot))).collect();
        if let Some(&(slot, _)) = shown.iter().find(|(_, page)| *page == Some(self.zeros)) {
            pages.unlink(slot);
            return Ok(());
        }
        let numbers: Vec<_> =
            shown.iter().filter_map(|(_, page)| Some(page.as_ref()?.frame)).collect();
        let ages = self.arena.ages(&numbers);
        let mut order: Vec<_> = (0..numbers.len().min(shown.len())).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(ages[at].map_or(0, |age| age + 1)));
        for (slot, page) in order.into_iter().filter_map(|at| Some((shown[at].0, shown[at].1?))) {
            if self.states.take_idle(page) {
                pages.unlink(slot);
                drop(pages);
                frames.slots[page.frame.0 as usize] = 0;
                frames.used -= 1;
                self.arena.retire(&[page]);
                return Ok(());
            }
        }
        // All of them wait to be written: who comes again later finds room.
        self.flusher.hurry();
        Err(Error::Exhausted("page index: no slot to empty".into()))
    }

    /// Takes a file's pages in `range` out, whatever they hold; `gone` hears of each that held
    /// something. For whoever has the inode's lock and has seen to it that nothing is being
    /// written.
    pub(super) fn take_out(&self, ino: Ino, range: Range<u64>, mut gone: impl FnMut(u64, Blocks)) {
        let mut frames = self.frames.lock();
        let pages = self.pages.lock();
        let mut out = Vec::new();
        for (number, slot, page) in pages.pages_of(ino, range) {
            pages.unlink(slot);
            if page == self.zeros {
                continue;
            }
            if let Some(blocks) = self.states.take(page)
                && blocks.is_busy()
            {
                gone(number, blocks);
            }
            frames.slots[page.frame.0 as usize] = 0;
            out.push(page);
        }
        drop(pages);
        frames.used -= out.len();
        drop(frames);
        self.retire(out);
    }

    /// Takes some idle pages out. Returns how many.
    fn evict(&self) -> usize {
        let mut frames = self.frames.lock();
        let sample = frames.sample();
        if frames.passed >= (frames.budget / 8).max(SAMPLE) {
            frames.passed = 0;
            self.arena.region().own().tick_clock();
        }
        let ages = self.arena.ages(&sample);
        let mut idle: Vec<_> =
            sample.into_iter().zip(ages).filter_map(|(frame, age)| Some((age?, frame))).collect();
        idle.sort_by_key(|&(age, _)| std::cmp::Reverse(age));
        idle.truncate(EVICT);
        let pages = self.pages.lock();
        let mut out = Vec::with_capacity(idle.len());
        for (_, frame) in idle {
            let slot = frames.slots[frame.0 as usize];
            let Some(slot) = slot.checked_sub(1).map(|slot| slot as usize) else { continue };
            let Some(page) = pages.at(slot).filter(|&page| self.states.take_idle(page)) else {
                continue;
            };
            pages.unlink(slot);
            frames.slots[frame.0 as usize] = 0;
            out.push(page);
        }
        drop(pages);
        frames.used -= out.len();
        drop(frames);
        let count = out.len();
        self.retire(out);
        count
    }

    /// Retires frames that show nothing any more, in their order: they are filled again in that
    /// order, so that what follows one another in a file lies together in memory, and a device is
    /// given it as one piece.
    fn retire(&self, mut pages: Vec<PageRef>) {
        pages.sort_unstable_by_key(|page| page.frame.0);
        self.arena.retire(&pages);
    }
}

#[cfg(test)]
mod tests {
    use oslet::id::{Generation, OsletId, ParticipantId};

    use super::*;

    fn page(frame: u32, generation: u32) -> PageRef {
        let home = ParticipantId::runtime(OsletId::new(0).unwrap());
        PageRef { home, frame: FrameNo(frame), generation: Generation::new(generation) }
    }

    #[test]
    fn what_must_stay_is_not_taken_and_what_is_taken_does_not_change() {
        let states = States::new(2);
        assert_eq!(states.get(page(0, 1)), None, "never linked");
        states.start(page(0, 1), Blocks::default());
        states.start(page(1, 7), Blocks { dirty: 1, reserved: 1, writing: 0 });
        assert_eq!(states.busy(), 1);
        let dirty = |blocks: Blocks| Blocks { dirty: blocks.dirty | 4, ..blocks };
        assert_eq!(states.change(page(0, 2), dirty), None, "of another use of the frame");
        assert_eq!(states.change(page(0, 1), dirty), Some(Blocks::default()));
        assert_eq!(states.busy(), 2);
        assert!(!states.take_idle(page(0, 1)));
        assert_eq!(states.change(page(0, 1), |_| Blocks::default()).unwrap().dirty, 4);
        assert_eq!(states.busy(), 1);
        assert!(states.take_idle(page(0, 1)));
        assert_eq!(states.change(page(0, 1), dirty), None, "taken out");
        assert_eq!(states.take(page(1, 7)).unwrap().reserved, 1);
        assert_eq!((states.busy(), states.get(page(1, 7))), (0, None));
        // Nothing but the generation tells one use of a frame from the next.
        states.start(page(0, 2), Blocks::default());
        assert!(!states.take_idle(page(0, 1)));
        assert!(states.take_idle(page(0, 2)));
    }

    #[test]
    fn frames_of_a_volume_that_is_only_read_are_idle() {
        let states = States::new(0);
        states.start(page(5, 1), Blocks::default());
        assert_eq!((states.busy(), states.get(page(5, 1))), (0, Some(Blocks::default())));
        assert!(states.take_idle(page(5, 1)));
        assert_eq!(states.take(page(6, 1)), Some(Blocks::default()));
    }
}
