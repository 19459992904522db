//! Where bytes wait in frames for a device to take them.

use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::PageRef;
use oslet::limits::FRAME_SIZE;
use oslet::region::OwnedFrame;
use parking_lot::{Condvar, Mutex};
use proxydev::data::{Data, Slice};
use proxydev::device::{BlockDevice, Operation};

use crate::{Error, Result, limits};

/// Frames kept for writes: what has to reach the disk before other frames can be reused must not
/// wait for one of those.
pub(super) struct Staging {
    arena: Arc<Arena>,
    /// How many frames there may be.
    limit: usize,
    state: Mutex<State>,
    returned: Condvar,
}

/// Frames of one request, which the first one takes for good. One block of any device fits.
const LEAST: usize = limits::MAX_BLOCK_SIZE as usize / FRAME_SIZE;

#[derive(Default)]
struct State {
    frames: Vec<OwnedFrame>,
    /// How many there are, those in use included.
    total: usize,
}

impl Staging {
    pub(super) fn new(arena: &Arc<Arena>) -> Self {
        // A small region keeps most of its frames for its cache.
        let limit = (arena.usage().total / 8).clamp(LEAST, limits::STAGING_FRAMES);
        let (state, returned) = (Mutex::default(), Condvar::new());
        Self { arena: Arc::clone(arena), limit, state, returned }
    }

    /// Writes whole blocks of the device, many requests in flight.
    pub(super) fn write(&self, device: &dyn BlockDevice, writes: &[(u64, &[u8])]) -> Result<()> {
        let info = device.info();
        let block = info.block_size as usize;
        let most = (info.max_transfer as usize).min(LEAST * FRAME_SIZE);
        let most = (most - most % block).max(block);
        let frames: usize = writes.iter().map(|(_, data)| data.len().div_ceil(FRAME_SIZE)).sum();
        let pieces = writes.iter().flat_map(|(offset, data)| {
            let places = (*offset..).step_by(most);
            places.zip(data.chunks(most))
        });
        let mut pieces = pieces.peekable();
        while let Some((_, data)) = pieces.peek() {
            let mut batch = self.take(data.len().div_ceil(FRAME_SIZE), frames)?;
            let mut operations = Vec::new();
            while let Some((offset, data)) = pieces.next_if(|(_, data)| batch.has_room(data)) {
                let data = batch.fill(data)?;
                operations.push(Operation::Write { offset, data, fua: false });
            }
            if operations.len() == 1
                && let Some(one) = operations.pop()
            {
                // Its end is polled for, which is sooner than a wake-up.
                proxydev::sync::execute(device, one)?;
                continue;
            }
            let ended = proxydev::sync::execute_all(device, operations);
            ended.into_iter().try_for_each(|end| end.map(drop))?;
        }
        Ok(())
    }

    /// At least so many frames, and up to `wanted` if there are. Waits for others to return theirs.
    fn take(&self, least: usize, wanted: usize) -> Result<Batch<'_>> {
        let mut state = self.state.lock();
        // Half of them leave some for who writes beside this.
        let wanted = wanted.min(self.limit / 2).max(LEAST);
        loop {
            let mut refused = None;
            while state.frames.len() < wanted && state.total < self.limit {
                match self.arena.alloc() {
                    Ok(frame) => {
                        state.frames.push(frame);
                        state.total += 1;
                    }
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            if state.frames.len() >= least {
                let left = state.frames.len().saturating_sub(wanted);
                let frames = state.frames.split_off(left);
                return Ok(Batch { staging: self, frames, pages: Vec::new() });
            }
            match refused {
                Some(error) if state.total < least => return Err(error.into()),
                _ => self.returned.wait(&mut state),
            }
        }
    }
}

/// Frames in use, which return when this is dropped.
struct Batch<'a> {
    staging: &'a Staging,
    frames: Vec<OwnedFrame>,
    pages: Vec<PageRef>,
}

impl Batch<'_> {
    fn has_room(&self, data: &[u8]) -> bool {
        data.len().div_ceil(FRAME_SIZE) <= self.frames.len()
    }

    /// Copies bytes, which there is room for, into frames.
    fn fill(&mut self, data: &[u8]) -> Result<Data> {
        let mut slices = Vec::with_capacity(data.len().div_ceil(FRAME_SIZE));
        for chunk in data.chunks(FRAME_SIZE) {
            let frame = self.frames.pop();
            let mut frame = frame.ok_or_else(|| Error::Exhausted("staging frames".into()))?;
            frame.bytes()?.fill()[..chunk.len()].copy_from_slice(chunk);
            let page = frame.publish();
            self.pages.push(page);
            slices.extend(Slice::new(page, 0, chunk.len()));
        }
        // The batch outlives the requests, which are waited for.
        Ok(Data::kept(self.staging.arena.region(), slices, Box::new(()))?)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let (arena, used) = (&self.staging.arena, self.pages.len());
        let returned = self.pages.drain(..).filter_map(|page| arena.reclaim(page));
        let before = self.frames.len();
        self.frames.extend(returned);
        // What somebody pins is the arena's again.
        let lost = used - (self.frames.len() - before);
        let mut state = self.staging.state.lock();
        state.frames.append(&mut self.frames);
        state.total -= lost;
        self.staging.returned.notify_all();
    }
}
