//! A wrapper that writes down every change in order, so that any state that a loss of power could
//! leave behind can be made again.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{BlockDevice, DeviceInfo, Extent, Operation, Request};
use crate::{Error, Result, limits};

/// What a change does to its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// They are these now.
    Bytes(Arc<[u8]>),
    /// So many are zero now.
    Zeroes(u64),
    /// So many are what they were, or zero.
    Discard(u64),
}

impl What {
    /// Bytes that it concerns.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeroes(len) | Self::Discard(len) => *len,
        }
    }

    /// Whether it concerns none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A request that changed something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// First byte.
    pub offset: u64,
    /// What it did.
    pub what: What,
    /// Whether it was durable at its completion.
    pub fua: bool,
    /// How many events there were when it was submitted: it may have reached the disk before the
    /// later ones.
    pub submitted: usize,
}

impl Change {
    /// Sectors of [`limits::MIN_BLOCK_SIZE`] bytes that it consists of; power may fail between any
    /// two.
    pub fn sectors(&self) -> u64 {
        self.what.len().div_ceil(SECTOR)
    }

    /// Whether it concerns any of these bytes.
    pub fn touches(&self, bytes: Range<u64>) -> bool {
        self.offset < bytes.end && self.offset.saturating_add(self.what.len()) > bytes.start
    }

    /// Does sectors `part` of it to an image. What lies beyond the image is dropped, and a discard
    /// leaves what was there.
    pub fn apply(&self, image: &mut [u8], part: Range<u64>) {
        let from = (part.start * SECTOR).min(self.what.len());
        let to = (part.end * SECTOR).clamp(from, self.what.len());
        let size = image.len() as u64;
        let start = self.offset.saturating_add(from).min(size);
        let end = self.offset.saturating_add(to).clamp(start, size);
        let target = &mut image[start as usize..end as usize];
        match &self.what {
            What::Bytes(bytes) => {
                target.copy_from_slice(&bytes[from as usize..from as usize + target.len()]);
            }
            What::Zeroes(_) => target.fill(0),
            What::Discard(_) => {}
        }
    }
}

/// One thing that happened, at its completion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Bytes changed.
    Change(Change),
    /// What completed before event `covers` is durable: so many events there were when the flush
    /// was submitted.
    Flush {
        /// The first event that it says nothing of.
        covers: usize,
    },
    /// Whoever drives the device had come so far.
    Mark(u64),
}

/// What happened to a device, in order. Failed requests are not in it: the device below is asked
/// what they did.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    /// Bytes of data in them.
    bytes: u64,
}

impl Log {
    /// An empty log.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many events there are: what a request keeps from its submission to its completion.
    pub fn now(&self) -> usize {
        self.state.lock().events.len()
    }

    /// A change that was submitted at `submitted` has completed.
    ///
    /// # Errors
    /// The log has its [`limits::MAX_RECORD`] bytes: what happens from now on is lost.
    pub fn change(&self, offset: u64, what: What, fua: bool, submitted: usize) -> Result<()> {
        let mut state = self.state.lock();
        if let What::Bytes(bytes) = &what {
            state.bytes += bytes.len() as u64;
        }
        if state.bytes > limits::MAX_RECORD {
            let max = limits::MAX_RECORD;
            return Err(Error::Invalid(format!("record: more than {max} bytes; record less")));
        }
        state.events.push(Event::Change(Change { offset, what, fua, submitted }));
        Ok(())
    }

    /// A flush that was submitted at `covers` has completed.
    pub fn flushed(&self, covers: usize) {
        self.state.lock().events.push(Event::Flush { covers });
    }

    /// Marks a place for the reader.
    pub fn mark(&self, mark: u64) {
        self.state.lock().events.push(Event::Mark(mark));
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.state.lock().events.clone()
    }

    /// Takes all events so far out of the log. No request may be in flight: events count from 0
    /// again.
    pub fn take(&self) -> Vec<Event> {
        let mut state = self.state.lock();
        state.bytes = 0;
        std::mem::take(&mut state.events)
    }
}

/// Which changes power that failed after the first `crash` events has left in which state: indices
/// into the events, each in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// On the disk, whatever happens.
    pub durable: Vec<usize>,
    /// On the disk wholly, in part or not at all: completed and not flushed, or still under way.
    pub pending: Vec<usize>,
}

impl Window {
    /// Of a log whose power failed after its first `crash` events.
    pub fn at(events: &[Event], crash: usize) -> Self {
        let flushes = events[..crash].iter().filter_map(|event| match event {
            Event::Flush { covers } => Some(*covers),
            _ => None,
        });
        let covers = flushes.max().unwrap_or(0);
        let mut window = Self::default();
        for (index, event) in events.iter().enumerate() {
            let Event::Change(change) = event else { continue };
            if index < covers || (index < crash && change.fua) {
                window.durable.push(index);
            } else if change.submitted <= crash {
                window.pending.push(index);
            }
        }
        window
    }
}

/// A device, and a log of what changes it.
pub struct Record {
    below: Arc<dyn BlockDevice>,
    log: Arc<Log>,
}

impl Record {
    /// Logs what is done to `below` through this.
    pub fn new(below: Arc<dyn BlockDevice>, log: &Arc<Log>) -> Self {
        Self { below, log: Arc::clone(log) }
    }

    /// The request to make of the device below.
    fn wrap(&self, request: Request) -> Request {
        let Request { operation, completion } = request;
        let submitted = self.log.now();
        let what = match &operation {
            Operation::Read { .. } => return Request { operation, completion },
            Operation::Write { data, .. } => match data.to_vec() {
                Ok(bytes) => Some(What::Bytes(bytes.into())),
                // The device below says what is wrong with them.
                Err(_) => return Request { operation, completion },
            },
            Operation::WriteZeroes { len, .. } => Some(What::Zeroes(*len)),
            Operation::Discard { len, .. } => Some(What::Discard(*len)),
            Operation::Flush => None,
        };
        let offset = operation.extent().0;
        let fua = matches!(
            operation,
            Operation::Write { fua: true, .. } | Operation::WriteZeroes { fua: true, .. }
        );
        let log = Arc::clone(&self.log);
        Request::new(operation, move |result| {
            let result = result.and_then(|data| {
                match what {
                    Some(what) => log.change(offset, what, fua, submitted)?,
                    None => log.flushed(submitted),
                }
                Ok(data)
            });
            completion.complete(result);
        })
    }
}

impl BlockDevice for Record {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn info(&self) -> DeviceInfo {
        self.below.info()
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        self.below.extents(offset, len, most)
    }

    fn submit(&self, request: Request) {
        self.below.submit(self.wrap(request));
    }

    fn submit_all(&self, requests: Vec<Request>) {
        self.below.submit_all(requests.into_iter().map(|request| self.wrap(request)).collect());
    }

    fn submit_polled(&self, request: Request) {
        self.below.submit_polled(self.wrap(request));
    }

    fn stop_polling(&self) {
        self.below.stop_polling();
    }

    fn poll(&self) {
        self.below.poll();
    }
}

const SECTOR: u64 = limits::MIN_BLOCK_SIZE as u64;
