//! Requests to a device that the calling thread waits for, and bytes at any offset.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oslet::arena::Arena;
use parking_lot::{Condvar, Mutex};

use crate::data::Data;
use crate::device::{BlockDevice, Operation, Request};
use crate::{Error, Result};

/// How long a waiter collects completions itself before it sleeps: about what a disk's fastest
/// answer takes. A wake-up costs as much again.
const POLL: Duration = Duration::from_micros(50);

/// Submits one operation and waits for its end. Not to be called from a completion.
pub fn execute(device: &dyn BlockDevice, operation: Operation) -> Result<Data> {
    let outcome = Arc::new(Outcome::default());
    let theirs = Arc::clone(&outcome);
    device.submit_polled(Request::new(operation, move |result| theirs.set(result)));
    let start = Instant::now();
    loop {
        if let Some(result) = outcome.value.lock().take() {
            return result;
        }
        if start.elapsed() > POLL {
            break;
        }
        device.poll();
        std::thread::yield_now();
    }
    device.stop_polling();
    // Every device completes every request, so this wait ends.
    let mut value = outcome.value.lock();
    loop {
        if let Some(result) = value.take() {
            return result;
        }
        outcome.set.wait(&mut value);
    }
}

/// Submits operations together and waits until all have ended: how each did, in their order. Not to
/// be called from a completion.
pub fn execute_all(device: &dyn BlockDevice, operations: Vec<Operation>) -> Vec<Result<Data>> {
    let count = operations.len();
    let outcomes = Arc::new(Outcomes {
        state: Mutex::new(((0..count).map(|_| None).collect(), count)),
        all: Condvar::new(),
    });
    let request = |(index, operation)| {
        let theirs = Arc::clone(&outcomes);
        Request::new(operation, move |result| theirs.set(index, result))
    };
    device.submit_all((0..).zip(operations).map(request).collect());
    // Every device completes every request, so this wait ends.
    let mut state = outcomes.state.lock();
    while state.1 > 0 {
        outcomes.all.wait(&mut state);
    }
    state.0.drain(..).map(|result| result.unwrap_or(Err(Error::Abandoned))).collect()
}

/// How operations ended, and how many have not.
struct Outcomes {
    state: Mutex<(Vec<Option<Result<Data>>>, usize)>,
    all: Condvar,
}

impl Outcomes {
    fn set(&self, index: usize, result: Result<Data>) {
        let mut state = self.state.lock();
        state.0[index] = Some(result);
        state.1 -= 1;
        if state.1 == 0 {
            self.all.notify_one();
        }
    }
}

#[derive(Default)]
struct Outcome {
    value: Mutex<Option<Result<Data>>>,
    set: Condvar,
}

impl Outcome {
    fn set(&self, result: Result<Data>) {
        *self.value.lock() = Some(result);
        self.set.notify_one();
    }
}

/// Fills `out` with the bytes from `offset` on, at any offset and of any length.
pub fn read_at(device: &dyn BlockDevice, offset: u64, out: &mut [u8]) -> Result<()> {
    let mut rest = out;
    let mut at = offset;
    while !rest.is_empty() {
        let piece = Piece::new(device, "read", at, rest.len())?;
        let data = execute(device, Operation::read(piece.start, piece.len as u32))?;
        let (now, later) = rest.split_at_mut(piece.inner);
        if piece.is_whole() {
            data.copy_to(now)?;
        } else {
            now.copy_from_slice(&data.to_vec()?[piece.skip..piece.skip + piece.inner]);
        }
        rest = later;
        at += piece.inner as u64;
    }
    Ok(())
}

/// Puts `bytes` at `offset`; they are durable after the next [`flush`]. Blocks of which only a part
/// changes are read first: whoever writes another part of the same block meanwhile must be kept
/// away by the caller.
pub fn write_at(
    device: &dyn BlockDevice,
    arena: &Arc<Arena>,
    offset: u64,
    bytes: &[u8],
) -> Result<()> {
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        let piece = Piece::new(device, "write", at, rest.len())?;
        let (now, later) = rest.split_at(piece.inner);
        let data = if piece.is_whole() {
            Data::copy_from(arena, now)?
        } else {
            let before = execute(device, Operation::read(piece.start, piece.len as u32))?;
            let mut blocks = before.to_vec()?;
            blocks[piece.skip..piece.skip + piece.inner].copy_from_slice(now);
            Data::copy_from(arena, &blocks)?
        };
        execute(device, Operation::Write { offset: piece.start, data, fua: false })?;
        rest = later;
        at += piece.inner as u64;
    }
    Ok(())
}

/// Makes durable what was written.
pub fn flush(device: &dyn BlockDevice) -> Result<()> {
    execute(device, Operation::Flush).map(drop)
}

/// The blocks of one request and the wanted bytes in them.
struct Piece {
    start: u64,
    len: usize,
    skip: usize,
    inner: usize,
}

impl Piece {
    /// As many of `len` bytes from `at` on as one request can cover.
    fn new(device: &dyn BlockDevice, what: &'static str, at: u64, len: usize) -> Result<Self> {
        let info = device.info();
        let block = u64::from(info.block_size);
        if at.checked_add(len as u64).is_none_or(|end| end > info.size) {
            let (device, size) = (device.name().to_owned(), info.size);
            return Err(Error::Range { device, what, offset: at, len: len as u64, size });
        }
        let start = at - at % block;
        let most = u64::from(info.max_transfer) - u64::from(info.max_transfer) % block;
        let end = (at + len as u64).min(start + most);
        let whole = (end - start).next_multiple_of(block) as usize;
        Ok(Self { start, len: whole, skip: (at - start) as usize, inner: (end - at) as usize })
    }

    fn is_whole(&self) -> bool {
        self.skip == 0 && self.inner == self.len
    }
}
