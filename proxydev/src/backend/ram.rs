//! A disk in memory: frames of the own segment, handed out by reference.
//!
//! A frame that was handed out is never written again. A write fills another frame, puts it in the
//! old one's place and takes the old one back, at once if nobody reads it. So each block changes
//! as a whole, and readers need no lock: they pin what they find and look again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oslet::arena::Arena;
use oslet::id::PageRef;
use oslet::limits::FRAME_SIZE;
use oslet::region::{OwnedFrame, Pins};
use parking_lot::Mutex;

use crate::data::{Data, Slice};
use crate::device::{BlockDevice, DeviceInfo, Operation, Request};
use crate::{Error, Result, limits};

/// Locks for writers, by frame.
const STRIPES: usize = 64;

/// A disk in memory.
pub struct RamDevice {
    name: String,
    info: DeviceInfo,
    arena: Arc<Arena>,
    /// The frame of each page of the disk, as a word.
    table: Box<[AtomicU64]>,
    /// Held while a page's frame is replaced.
    writers: [Mutex<()>; STRIPES],
    /// Frames to fill.
    spare: Mutex<Vec<OwnedFrame>>,
}

/// A part of one page of the disk.
struct Part {
    page: usize,
    offset: usize,
    len: usize,
}

impl RamDevice {
    /// A disk of `size` bytes of zeros, all its memory taken from the arena now.
    ///
    /// # Errors
    /// When the region has no room for it.
    pub fn new(name: &str, size: u64, arena: &Arc<Arena>) -> Result<Self> {
        let block_size = limits::MIN_BLOCK_SIZE;
        if !size.is_multiple_of(u64::from(block_size)) {
            return Err(Error::Invalid(format!(
                "{name}: {size} bytes of RAM; give a multiple of {block_size}"
            )));
        }
        let pages = size.div_ceil(FRAME_SIZE as u64);
        let free = arena.usage().free as u64;
        let needed = pages.saturating_add(limits::RAM_SPARE_FRAMES as u64);
        if needed > free {
            return Err(Error::Invalid(format!(
                "{name}: {size} bytes of RAM need {needed} frames of the region, {free} are free; \
                 enlarge the region"
            )));
        }
        let spare = arena.alloc_many(limits::RAM_SPARE_FRAMES)?;
        let info = DeviceInfo {
            size,
            block_size,
            optimal_size: FRAME_SIZE as u32,
            memory_alignment: 1,
            max_transfer: limits::MAX_TRANSFER,
            read_only: false,
            discard: false,
        };
        let mut device = Self {
            name: name.to_owned(),
            info,
            arena: Arc::clone(arena),
            table: Box::default(),
            writers: [const { Mutex::new(()) }; STRIPES],
            spare: Mutex::new(spare),
        };
        let mut frames = arena.alloc_many(pages as usize)?;
        for frame in &mut frames {
            frame.bytes()?.fill().fill(0);
        }
        let words = frames.into_iter().map(|frame| AtomicU64::new(frame.publish().to_word()));
        device.table = words.collect();
        Ok(device)
    }

    fn execute(&self, operation: Operation) -> Result<Data> {
        operation.check(&self.name, &self.info)?;
        match operation {
            Operation::Read { offset, len, .. } => self.read(offset, len.into()),
            Operation::Write { offset, data, .. } => self.write(offset, &data),
            Operation::Flush => Ok(Data::empty()),
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                parts(offset, len).try_for_each(|part| {
                    self.replace(&part, |bytes| {
                        bytes.fill(0);
                        Ok(())
                    })
                })?;
                Ok(Data::empty())
            }
        }
    }

    fn read(&self, offset: u64, len: u64) -> Result<Data> {
        let count = len.div_ceil(FRAME_SIZE as u64) as usize + 1;
        let mut pins = Pins::new(self.arena.region(), count);
        let mut slices = Vec::with_capacity(count);
        for part in parts(offset, len) {
            let entry = &self.table[part.page];
            let page = loop {
                // SYNC POINT: pin or reuse
                let word = entry.load(Ordering::SeqCst);
                let page = PageRef::from_word(word).ok_or_else(|| self.lost(part.page))?;
                if pins.add_if(page, || entry.load(Ordering::SeqCst) == word)? {
                    break page;
                }
            };
            slices.extend(Slice::new(page, part.offset, part.len));
        }
        Data::pinned(pins, slices)
    }

    fn write(&self, offset: u64, data: &Data) -> Result<Data> {
        let mut source = Source { data, index: 0, at: 0 };
        parts(offset, data.len() as u64)
            .try_for_each(|part| self.replace(&part, |bytes| source.take(bytes)))?;
        Ok(Data::empty())
    }

    /// Puts a frame in a page's place that differs by what `fill` does to the part.
    fn replace(&self, part: &Part, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let entry = &self.table[part.page];
        let _writer = self.writers[part.page % STRIPES].lock();
        let mut frame = self.spare_frame()?;
        let old = PageRef::from_word(entry.load(Ordering::Relaxed));
        let old = old.ok_or_else(|| self.lost(part.page))?;
        let mut memory = frame.bytes()?;
        let bytes = memory.fill();
        if part.len < FRAME_SIZE {
            // Its home may look at it without a pin: only writers retire it, one at a time.
            let before = self.arena.region().peek(old).ok_or_else(|| self.lost(part.page))?;
            before.copy_to(0, bytes);
        }
        fill(&mut bytes[part.offset..part.offset + part.len])?;
        entry.store(frame.publish().to_word(), Ordering::SeqCst);
        // A frame that somebody still reads comes back to the arena when it is let go; the spare
        // one that is missing then is taken from there.
        if let Some(frame) = self.arena.reclaim(old) {
            self.spare.lock().push(frame);
        }
        Ok(())
    }

    fn spare_frame(&self) -> Result<OwnedFrame> {
        if let Some(frame) = self.spare.lock().pop() {
            return Ok(frame);
        }
        Ok(self.arena.alloc()?)
    }

    /// An entry without a frame: none is ever stored.
    fn lost(&self, page: usize) -> Error {
        Error::Invalid(format!("{}: page {page} has no frame", self.name))
    }
}

impl BlockDevice for RamDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn submit(&self, request: Request) {
        let Request { operation, completion } = request;
        completion.complete(self.execute(operation));
    }
}

impl Drop for RamDevice {
    fn drop(&mut self) {
        let words = self.table.iter().map(|entry| entry.load(Ordering::Relaxed));
        let pages: Vec<_> = words.filter_map(PageRef::from_word).collect();
        self.arena.retire(&pages);
    }
}

/// The pages that a range lies in. Within the device's size, which fits its table.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let start = (at % FRAME_SIZE as u64) as usize;
        let len = (FRAME_SIZE - start).min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let page = (at / FRAME_SIZE as u64) as usize;
        at += len as u64;
        Some(Part { page, offset: start, len })
    })
}

/// The bytes of a write, taken piece by piece.
struct Source<'d> {
    data: &'d Data,
    index: usize,
    at: usize,
}

impl Source<'_> {
    fn take(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let bytes = self.data.bytes(self.index);
            let bytes =
                bytes.ok_or_else(|| Error::Invalid("data of a write are missing".into()))?;
            let count = out.len().min(bytes.len() - self.at);
            let (now, later) = out.split_at_mut(count);
            bytes.copy_to(self.at, now);
            out = later;
            self.at += count;
            if self.at == bytes.len() {
                (self.index, self.at) = (self.index + 1, 0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
