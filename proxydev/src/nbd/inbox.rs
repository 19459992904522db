//! What has arrived on a connection: headers in a small buffer, payloads in frames.

use std::io::{self, IoSliceMut};

use std::sync::Arc;

use oslet::arena::Arena;
use oslet::limits::FRAME_SIZE;
use oslet::region::{OwnedFrame, RawSliceMut};

use super::stream::Stream;
use crate::{Data, Result, limits};

/// A buffer in front of a stream.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; limits::NBD_INBOX].into(), start: 0, end: 0 }
    }

    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Passes over bytes that are there.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Puts bytes there that came earlier.
    pub(crate) fn preload(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes().is_empty() && bytes.len() <= self.buffer.len());
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        (self.start, self.end) = (0, bytes.len());
    }

    /// Receives until there are `most` bytes here at most; what arrives.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] at the end of the stream.
    pub(crate) fn fill(&mut self, stream: &Stream, most: usize) -> io::Result<()> {
        let most = most.min(self.buffer.len());
        if self.start + most > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = &mut self.buffer[self.end..self.start + most];
        debug_assert!(!room.is_empty(), "there is more than is asked for");
        let count = stream.recv(&mut [IoSliceMut::new(room)])?;
        self.end += ended(count)?;
        Ok(())
    }

    /// Receives into `target` as far as it goes, and behind it up to `ahead` bytes into this
    /// buffer. What is in the buffer comes first.
    pub(crate) fn receive(
        &mut self,
        stream: &Stream,
        target: &mut Target,
        ahead: usize,
    ) -> io::Result<()> {
        while !self.bytes().is_empty() && target.left() > 0 {
            let count = target.copy_in(self.bytes())?;
            self.consume(count);
        }
        if target.left() == 0 {
            return Ok(());
        }
        // The buffer is empty.
        let missing = target.left();
        let mut memory = target.memory()?;
        let mut slices = Vec::with_capacity(memory.len() + 1);
        for (bytes, from, to) in &mut memory {
            slices.push(IoSliceMut::new(&mut bytes.fill()[*from..*to]));
        }
        slices.push(IoSliceMut::new(&mut self.buffer[..ahead]));
        let count = ended(stream.recv(&mut slices)?)?;
        drop(slices);
        drop(memory);
        target.at += count.min(missing);
        self.end = count.saturating_sub(missing);
        Ok(())
    }
}

/// Frames for a payload that is on its way.
pub(crate) struct Target {
    frames: Vec<OwnedFrame>,
    len: usize,
    /// Where the next byte goes, and the end of what is expected.
    at: usize,
    end: usize,
    /// Parts that were expected so far, in order.
    parts: Vec<(usize, usize)>,
}

impl Target {
    /// For `len` bytes, for which there are enough frames; all of them are expected.
    pub(crate) fn new(frames: Vec<OwnedFrame>, len: usize) -> Self {
        debug_assert!(len <= frames.len() * FRAME_SIZE);
        Self { frames, len, at: 0, end: len, parts: Vec::new() }
    }

    /// Expects `len` bytes for the place `from`, none of which were expected before.
    pub(crate) fn window(&mut self, from: usize, len: usize) -> io::Result<()> {
        let end = from.checked_add(len).filter(|end| *end <= self.len);
        let index = self.parts.partition_point(|part| part.0 < from);
        let before = index.checked_sub(1).and_then(|index| self.parts.get(index));
        let free = before.is_none_or(|part| part.1 <= from)
            && end.is_some_and(|end| self.parts.get(index).is_none_or(|part| end <= part.0));
        let Some(end) = end.filter(|_| free && len > 0) else {
            return Err(io::Error::other(format!("{len} bytes at {from} once more")));
        };
        self.parts.insert(index, (from, end));
        (self.at, self.end) = (from, end);
        Ok(())
    }

    /// Whether all bytes have been expected, and have come.
    pub(crate) fn is_whole(&self) -> bool {
        let covered: usize = self.parts.iter().map(|(from, to)| to - from).sum();
        covered == self.len && self.left() == 0
    }

    /// Zeros for what is expected.
    pub(crate) fn zero(&mut self) -> io::Result<()> {
        while self.left() > 0 {
            self.copy_in(&[0; FRAME_SIZE])?;
        }
        Ok(())
    }

    /// The frames, to be filled anew.
    pub(crate) fn into_frames(self) -> Vec<OwnedFrame> {
        self.frames
    }

    /// Bytes that are missing.
    pub(crate) fn left(&self) -> usize {
        self.end - self.at
    }

    /// Takes the payload's next bytes, as many as there is room for; how many that is.
    pub(crate) fn copy_in(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.left());
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let at = self.at % FRAME_SIZE;
            let (now, later) = rest.split_at(rest.len().min(FRAME_SIZE - at));
            let frame = &mut self.frames[self.at / FRAME_SIZE];
            let mut memory = frame.bytes().map_err(io::Error::other)?;
            memory.fill()[at..at + now.len()].copy_from_slice(now);
            self.at += now.len();
            rest = later;
        }
        Ok(count)
    }

    /// Where the missing bytes go: the part of each frame.
    fn memory(&mut self) -> io::Result<Vec<(RawSliceMut, usize, usize)>> {
        let (first, mut at) = (self.at / FRAME_SIZE, self.at % FRAME_SIZE);
        let mut left = self.left();
        let mut memory = Vec::with_capacity(left / FRAME_SIZE + 2);
        for frame in &mut self.frames[first..] {
            let count = left.min(FRAME_SIZE - at);
            if count == 0 {
                break;
            }
            memory.push((frame.bytes().map_err(io::Error::other)?, at, at + count));
            left -= count;
            at = 0;
        }
        Ok(memory)
    }

    /// The whole payload. What is left of its last frame is zeroed: others may map all of it.
    pub(crate) fn into_data(mut self, arena: &Arc<Arena>) -> Result<Data> {
        if let Some(last) = self.frames.get_mut(self.len / FRAME_SIZE) {
            last.bytes()?.fill()[self.len % FRAME_SIZE..].fill(0);
        }
        Data::loan(arena, self.frames, self.len)
    }
}

fn ended(count: usize) -> io::Result<usize> {
    match count {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}
