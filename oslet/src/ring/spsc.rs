//! The ring itself, over any memory that offers atomic words: shared memory in a cluster, `loom`'s
//! atomics in a model.

use crate::limits;
use crate::sync::{Ordering, fence};
use crate::words::{ReadWords, WriteWords};

/// Where the words of a ring's two halves lie.
pub mod layout {
    use crate::limits::LINE;

    /// Words of a cache line.
    pub const LINE_WORDS: usize = LINE / 8;
    /// Words of a descriptor.
    pub const ENTRY_WORDS: usize = LINE_WORDS;

    /// Producer's half: the tail, in a line of its own.
    pub const TAIL: usize = 0;
    /// Producer's half: the CPU that the producer last ran on, plus one.
    pub const PRODUCER_CPU: usize = 1;
    /// Producer's half: the first descriptor.
    pub const ENTRIES: usize = LINE_WORDS;

    /// Consumer's half: the head, in a line of its own.
    pub const HEAD: usize = 0;
    /// Consumer's half: words.
    pub const CONSUMER_WORDS: usize = LINE_WORDS;

    /// Parking line (one for all rings that one thread consumes): how often the consumer has begun
    /// and ended to be parked. Odd while it is; a number of this word names one parking.
    pub const PARKED: usize = 0;
    /// Parking line: the CPU that the consumer last ran on, plus one.
    pub const CONSUMER_CPU: usize = 1;
    /// Parking line: words.
    pub const PARK_WORDS: usize = LINE_WORDS;

    /// Words of the producer's half without bodies.
    pub const fn producer_words(capacity: usize) -> usize {
        ENTRIES + capacity * ENTRY_WORDS
    }
}

/// What a descriptor carries beside its sequence number: seven words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Descriptor {
    /// Request id, chosen by the requester, repeated in the reply.
    pub id: u64,
    /// The sender's epoch.
    pub from_epoch: u32,
    /// The receiver's epoch as the sender knows it.
    pub to_epoch: u32,
    /// What is asked; the number ranges belong to the crates above.
    pub kind: u16,
    /// Zero, or an errno in replies.
    pub status: u16,
    /// Bytes of the body; zero for none.
    pub body_len: u32,
    /// Where the body starts in the sender's body space.
    pub body: u64,
    /// Inline arguments.
    pub args: [u64; 3],
}

impl Descriptor {
    fn to_words(self) -> [u64; 7] {
        [
            self.id,
            u64::from(self.from_epoch) | u64::from(self.to_epoch) << 32,
            u64::from(self.kind) | u64::from(self.status) << 16 | u64::from(self.body_len) << 32,
            self.body,
            self.args[0],
            self.args[1],
            self.args[2],
        ]
    }

    fn from_words(words: [u64; 7]) -> Self {
        Self {
            id: words[0],
            from_epoch: words[1] as u32,
            to_epoch: (words[1] >> 32) as u32,
            kind: words[2] as u16,
            status: (words[2] >> 16) as u16,
            body_len: (words[2] >> 32) as u32,
            body: words[3],
            args: [words[4], words[5], words[6]],
        }
    }
}

/// The peer's side of a ring says what cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// The head is not between what was known of it and the tail.
    Head(u64),
    /// A descriptor's sequence number is neither this lap's nor the last one's.
    Sequence(u64),
}

/// There is no room; the consumer has to catch up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// The writing end.
#[derive(Debug)]
pub struct Producer<W, R> {
    /// The producer's half, in one's own segment.
    out: W,
    /// The consumer's half, in the peer's.
    peer: R,
    capacity: u64,
    next: u64,
    /// The head when last looked at.
    head: u64,
    /// The parking that the consumer was last woken from.
    woken: u64,
}

impl<W: WriteWords, R: ReadWords> Producer<W, R> {
    /// A new ring of `capacity` descriptors, which must be a power of two; both halves are zero.
    pub fn new(out: W, peer: R, capacity: usize) -> Self {
        assert!(capacity.is_power_of_two() && capacity <= limits::RING_CAPACITY);
        Self { out, peer, capacity: capacity as u64, next: 0, head: 0, woken: 0 }
    }

    /// How many descriptors have been pushed.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// How many the consumer is known to have taken; looks again.
    pub fn taken(&mut self) -> Result<u64, RingError> {
        // SYNC POINT: ring head
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        if head < self.head || head > self.next {
            return Err(RingError::Head(head));
        }
        self.head = head;
        Ok(head)
    }

    /// Whether a descriptor fits.
    #[inline]
    pub fn has_room(&mut self) -> Result<bool, RingError> {
        if self.next - self.head < self.capacity {
            return Ok(true);
        }
        Ok(self.next - self.taken()? < self.capacity)
    }

    /// Puts one descriptor where a polling consumer finds it at once. A parked one is woken by
    /// [`Self::move_tail`] and the bell behind it.
    #[inline]
    pub fn push(&mut self, descriptor: Descriptor) -> Result<Result<(), Full>, RingError> {
        if !self.has_room()? {
            return Ok(Err(Full));
        }
        let entry = self.entry(self.next);
        for (index, word) in descriptor.to_words().into_iter().enumerate() {
            self.out.store(entry + 1 + index, word, Ordering::Relaxed);
        }
        // SYNC POINT: ring publish
        self.out.store(entry, self.next + 1, Ordering::Release);
        self.next += 1;
        // The consumer had the next line a lap ago.
        self.out.will_store(self.entry(self.next));
        Ok(Ok(()))
    }

    /// Puts a whole batch, published by the store of its first descriptor's sequence number, or as
    /// many of it as fit. Returns how many.
    pub fn push_batch(&mut self, batch: &[Descriptor]) -> Result<usize, RingError> {
        let mut room = self.capacity - (self.next - self.head);
        if room < batch.len() as u64 {
            room = self.capacity - (self.next - self.taken()?);
        }
        let count = (room as usize).min(batch.len());
        for (index, descriptor) in batch[..count].iter().enumerate().rev() {
            let position = self.next + index as u64;
            let entry = self.entry(position);
            for (at, word) in descriptor.to_words().into_iter().enumerate() {
                self.out.store(entry + 1 + at, word, Ordering::Relaxed);
            }
            // SYNC POINT: ring publish
            self.out.store(entry, position + 1, Ordering::Release);
        }
        self.next += count as u64;
        Ok(count)
    }

    /// Moves the tail behind all that was pushed and says whether the consumer, whose parking line
    /// is `park`, must be woken: once for each time that it parks, however much is pushed before
    /// it runs.
    #[inline]
    pub fn move_tail(&mut self, park: &impl ReadWords) -> bool {
        // SYNC POINT: park or publish
        self.out.store(layout::TAIL, self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        let parking = park.load(layout::PARKED, Ordering::Acquire);
        parking & 1 != 0 && parking != self.woken && self.wakes(parking)
    }

    /// Whether the tail has moved past what the consumer waits for in this parking. From then on it
    /// cannot sleep in it again: the kernel compares the tail.
    #[cold]
    fn wakes(&mut self, parking: u64) -> bool {
        // Stored before the parking began, or later if it has ended.
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        if head == self.next {
            // It took everything before the tail came by; what it waits for is still to be pushed.
            return false;
        }
        self.woken = parking;
        true
    }

    /// The producer's half.
    pub fn out(&self) -> &W {
        &self.out
    }

    fn entry(&self, position: u64) -> usize {
        layout::ENTRIES + (position & (self.capacity - 1)) as usize * layout::ENTRY_WORDS
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<R, W> {
    /// The producer's half, in the peer's segment.
    peer: R,
    /// The consumer's half, in one's own.
    own: W,
    capacity: u64,
    next: u64,
    /// The head as last stored.
    head: u64,
}

impl<R: ReadWords, W: WriteWords> Consumer<R, W> {
    /// The other end of [`Producer::new`].
    pub fn new(peer: R, own: W, capacity: usize) -> Self {
        assert!(capacity.is_power_of_two() && capacity <= limits::RING_CAPACITY);
        Self { peer, own, capacity: capacity as u64, next: 0, head: 0 }
    }

    /// Takes the next descriptor. What came with the one before (its body) must have been read: its
    /// room may be given back here.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Descriptor>, RingError> {
        if !self.ready()? {
            self.release();
            return Ok(None);
        }
        if self.next - self.head >= self.capacity / 4 {
            self.release();
        }
        let entry = self.entry();
        let mut words = [0; 7];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.peer.load(entry + 1 + index, Ordering::Relaxed);
        }
        self.next += 1;
        Ok(Some(Descriptor::from_words(words)))
    }

    /// Whether a descriptor is there.
    #[inline(always)]
    pub fn ready(&self) -> Result<bool, RingError> {
        // SYNC POINT: ring publish
        let sequence = self.peer.load(self.entry(), Ordering::Acquire);
        if sequence == self.next + 1 {
            return Ok(true);
        }
        // A batch is written from its end: what lies here is the last lap's, or never written.
        let last_lap = (self.next + 1).saturating_sub(self.capacity);
        if sequence != last_lap {
            return Err(RingError::Sequence(sequence));
        }
        Ok(false)
    }

    /// Gives the room of everything taken so far back to the producer.
    #[inline]
    pub fn release(&mut self) {
        if self.head != self.next {
            self.head = self.next;
            // SYNC POINT: ring head
            self.own.store(layout::HEAD, self.head, Ordering::Release);
        }
    }

    /// The low half of the tail to wait for a change from. A descriptor is there for who polls
    /// before the tail has moved behind it: then the tail is awaited as it is, not as it will be.
    pub fn awaited_tail(&self) -> u32 {
        self.peer.load(layout::TAIL, Ordering::Relaxed).min(self.next) as u32
    }

    /// The producer's half.
    pub fn peer(&self) -> &R {
        &self.peer
    }

    fn entry(&self) -> usize {
        layout::ENTRIES + (self.next & (self.capacity - 1)) as usize * layout::ENTRY_WORDS
    }
}

/// The consumer says that it is about to wait. It must have released what it took from every ring,
/// and look at each once more behind this.
#[inline]
pub(super) fn announce_parking(park: &impl WriteWords) {
    let parking = park.load(layout::PARKED, Ordering::Relaxed).wrapping_add(1) | 1;
    // SYNC POINT: park or publish
    park.store(layout::PARKED, parking, Ordering::Release);
    fence(Ordering::SeqCst);
}

/// The consumer runs again.
#[inline]
pub(super) fn retract_parking(park: &impl WriteWords) {
    let running = park.load(layout::PARKED, Ordering::Relaxed).wrapping_add(1) & !1;
    park.store(layout::PARKED, running, Ordering::Relaxed);
}
