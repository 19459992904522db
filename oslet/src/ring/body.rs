//! Rings in shared memory, with room for message bodies behind the descriptors.

use std::collections::VecDeque;
use std::sync::Arc;

use rkyv::util::AlignedVec;

use super::spsc::{Consumer, Descriptor, Full, Producer, RingError, layout};
use crate::region::{OwnSegment, PeerSegment, RawSlice, Ro, Rw};
use crate::sync::{AtomicU64, Ordering};
use crate::{Error, Result, limits};

/// Bytes of the producer's half: words, then bodies.
pub(crate) const PRODUCER_LEN: usize =
    layout::producer_words(limits::RING_CAPACITY) * 8 + limits::RING_BODY_BYTES;
const BODY_OFFSET: usize = layout::producer_words(limits::RING_CAPACITY) * 8;
const BODY_ALIGN: usize = 16;

/// Where one participant's half of a ring lies in its segment; what the two ends tell each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingPlace(pub u64);

impl RingPlace {
    fn offset(self) -> usize {
        // One that does not fit is outside every segment, which is checked next.
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// The producer's half before the consumer's is known.
#[derive(Debug)]
pub(crate) struct HalfOut {
    own: Arc<OwnSegment>,
    offset: usize,
}

impl HalfOut {
    pub(crate) fn new(own: &Arc<OwnSegment>) -> Result<Self> {
        let offset = own.alloc(PRODUCER_LEN, limits::LINE)?;
        Ok(Self { own: Arc::clone(own), offset })
    }

    pub(crate) fn place(&self) -> RingPlace {
        RingPlace(self.offset as u64)
    }
}

impl Drop for HalfOut {
    fn drop(&mut self) {
        self.own.free(self.offset, PRODUCER_LEN);
    }
}

/// A line in one's own segment: a consumer's half, or a parking line.
#[derive(Debug)]
pub(crate) struct OwnLine {
    own: Arc<OwnSegment>,
    offset: usize,
    pub(crate) words: Rw<AtomicU64>,
}

impl OwnLine {
    pub(crate) fn new(own: &Arc<OwnSegment>) -> Result<Self> {
        let offset = own.alloc(limits::LINE, limits::LINE)?;
        let words = own.words_mut(offset, layout::LINE_WORDS)?;
        Ok(Self { own: Arc::clone(own), offset, words })
    }

    pub(crate) fn place(&self) -> RingPlace {
        RingPlace(self.offset as u64)
    }
}

impl Drop for OwnLine {
    fn drop(&mut self) {
        self.own.free(self.offset, limits::LINE);
    }
}

/// The writing end of a ring in shared memory.
#[derive(Debug)]
pub struct Outgoing {
    producer: Producer<Rw<AtomicU64>, Ro<AtomicU64>>,
    park: Ro<AtomicU64>,
    half: HalfOut,
    peer: String,
    /// Next free byte of the body space, counted without end.
    body_next: u64,
    /// First byte still in use.
    body_first: u64,
    /// (position behind the descriptor, byte behind its body) of bodies not yet taken.
    bodies: VecDeque<(u64, u64)>,
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum SendError {
    /// Descriptors or body space are used up until the consumer catches up.
    Full,
    /// It can never be sent.
    Failed(Error),
}

impl Outgoing {
    pub(crate) fn new(
        half: HalfOut,
        peer: &PeerSegment,
        head: RingPlace,
        park: RingPlace,
    ) -> Result<Self> {
        let words = layout::producer_words(limits::RING_CAPACITY);
        let out = half.own.words_mut(half.offset, words)?;
        let head = peer.words(head.offset(), layout::CONSUMER_WORDS)?;
        Ok(Self {
            producer: Producer::new(out, head, limits::RING_CAPACITY),
            park: peer.words(park.offset(), layout::PARK_WORDS)?,
            half,
            peer: format!("ring to {:?}", peer.participant()),
            body_next: 0,
            body_first: 0,
            bodies: VecDeque::new(),
        })
    }

    /// Sends one message. It is there for a polling consumer at once; [`Self::ring_bell`] wakes a
    /// parked one.
    #[inline]
    pub fn send(
        &mut self,
        mut descriptor: Descriptor,
        body: &[u8],
    ) -> std::result::Result<(), SendError> {
        let body_end = if body.is_empty() {
            descriptor.body_len = 0;
            None
        } else {
            let (at, end) = self.place_body(body)?;
            descriptor.body = at;
            descriptor.body_len = body.len() as u32;
            Some(end)
        };
        match self.producer.push(descriptor) {
            Ok(Ok(())) => {
                if let Some(end) = body_end {
                    self.bodies.push_back((self.producer.position(), end));
                    self.body_next = end;
                }
                Ok(())
            }
            Ok(Err(Full)) => Err(SendError::Full),
            Err(error) => Err(SendError::Failed(self.corrupt(error))),
        }
    }

    /// Wakes the consumer if it is parked and was not woken yet; says whether it did. Call it
    /// behind the last message of a batch.
    #[inline]
    pub fn ring_bell(&mut self) -> bool {
        let cpu = super::doorbell::current_cpu() + 1;
        self.producer.out().store(layout::PRODUCER_CPU, cpu, Ordering::Relaxed);
        let wakes = self.producer.move_tail(&self.park);
        if wakes {
            super::doorbell::wake(self.producer.out().read_only());
        }
        wakes
    }

    /// The CPU that the consumer last ran on, as far as it has told.
    pub fn consumer_cpu(&self) -> Option<u64> {
        self.park.load(layout::CONSUMER_CPU, Ordering::Relaxed).checked_sub(1)
    }

    /// Copies a body into the body space: (where, the end of it in unending bytes).
    fn place_body(&mut self, body: &[u8]) -> std::result::Result<(u64, u64), SendError> {
        const SPACE: u64 = limits::RING_BODY_BYTES as u64;
        if body.len() > limits::MAX_BODY {
            return Err(SendError::Failed(Error::Invalid(format!(
                "{}: a body of {} bytes, at most {} are possible",
                self.peer,
                body.len(),
                limits::MAX_BODY
            ))));
        }
        let len = body.len().next_multiple_of(BODY_ALIGN) as u64;
        let mut at = self.body_next;
        if at % SPACE + len > SPACE {
            at = at.next_multiple_of(SPACE);
        }
        if at + len - self.body_first > SPACE {
            let taken = self.producer.taken().map_err(|e| SendError::Failed(self.corrupt(e)))?;
            while self.bodies.front().is_some_and(|&(position, _)| position <= taken) {
                self.body_first = self.bodies.pop_front().map_or(self.body_first, |b| b.1);
            }
            if self.bodies.is_empty() {
                self.body_first = at;
            }
            if at + len - self.body_first > SPACE {
                return Err(SendError::Full);
            }
        }
        let place = BODY_OFFSET + (at % SPACE) as usize;
        self.half.own.write(self.half.offset + place, body).map_err(SendError::Failed)?;
        Ok((at % SPACE, at + len))
    }

    fn corrupt(&self, error: RingError) -> Error {
        Error::Corrupt { peer: self.peer.clone(), what: format!("{error:?}") }
    }
}

/// The reading end of a ring in shared memory.
#[derive(Debug)]
pub struct Incoming {
    consumer: Consumer<Ro<AtomicU64>, Rw<AtomicU64>>,
    bodies: RawSlice,
    _line: OwnLine,
    peer: String,
}

impl Incoming {
    pub(crate) fn new(line: OwnLine, peer: &PeerSegment, out: RingPlace) -> Result<Self> {
        let words = peer.words(out.offset(), layout::producer_words(limits::RING_CAPACITY))?;
        let bodies = out.offset().saturating_add(BODY_OFFSET);
        Ok(Self {
            consumer: Consumer::new(words, line.words.clone(), limits::RING_CAPACITY),
            bodies: peer.slice(bodies, limits::RING_BODY_BYTES)?,
            _line: line,
            peer: format!("ring from {:?}", peer.participant()),
        })
    }

    /// Takes the next message, its body copied out and aligned for rkyv.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the peer's half cannot be what an honest peer writes; the ring is of
    /// no use any more then.
    #[inline]
    pub fn receive(&mut self) -> Result<Option<(Descriptor, AlignedVec)>> {
        let descriptor = match self.consumer.pop() {
            Ok(Some(descriptor)) => descriptor,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.corrupt(format!("{error:?}"))),
        };
        let len = descriptor.body_len as usize;
        if len == 0 {
            return Ok(Some((descriptor, AlignedVec::new())));
        }
        let at = usize::try_from(descriptor.body).unwrap_or(usize::MAX);
        let bytes = self.bodies.sub(at, len).filter(|_| len <= limits::MAX_BODY);
        let Some(bytes) = bytes else {
            return Err(self.corrupt(format!("a body of {len} bytes at {at}")));
        };
        let mut body = AlignedVec::with_capacity(len);
        body.resize(len, 0);
        bytes.copy_to(0, &mut body);
        Ok(Some((descriptor, body)))
    }

    /// Whether a message is there; a broken ring is "there" as well, so that it is looked at.
    #[inline]
    pub fn ready(&self) -> bool {
        self.consumer.ready().unwrap_or(true)
    }

    /// The CPU that the producer last ran on, as far as it has told.
    pub fn producer_cpu(&self) -> Option<u64> {
        self.consumer.peer().load(layout::PRODUCER_CPU, Ordering::Relaxed).checked_sub(1)
    }

    /// Gives all room back, before waiting.
    pub fn release(&mut self) {
        self.consumer.release();
    }

    /// What to wait on: the tail's words and the value that it has while nothing new was sent.
    pub fn bell(&self) -> (&Ro<AtomicU64>, u32) {
        (self.consumer.peer(), self.consumer.awaited_tail())
    }

    fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { peer: self.peer.clone(), what }
    }
}
