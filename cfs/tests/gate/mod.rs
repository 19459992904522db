//! A device that can be made to stop answering.

use std::time::{Duration, Instant};

use cfs::Result;
use cfs::engine::store::{BlockSource, MemSource};
use parking_lot::{Condvar, Mutex};

/// By then what is to happen has happened.
const SOON: Duration = Duration::from_secs(10);

/// A device that answers while its gate is open.
pub(crate) struct Gate {
    inner: MemSource,
    closed: Mutex<bool>,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// The volume with these bytes, its gate open.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            inner: MemSource::new(bytes),
            closed: Mutex::new(false),
            waiting: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    /// Lets nothing through from now on.
    pub(crate) fn close(&self) {
        *self.closed.lock() = true;
    }

    /// Lets all through, those that wait too.
    pub(crate) fn open(&self) {
        *self.closed.lock() = false;
        self.changed.notify_all();
    }

    /// Waits until so many operations wait.
    pub(crate) fn wait_for(&self, count: usize) {
        let until = Instant::now() + SOON;
        while *self.waiting.lock() < count {
            assert!(Instant::now() < until, "only {} operations wait", self.waiting.lock());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl BlockSource for Gate {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut closed = self.closed.lock();
        if *closed {
            *self.waiting.lock() += 1;
            self.changed.wait_while(&mut closed, |closed| *closed);
            *self.waiting.lock() -= 1;
        }
        drop(closed);
        self.inner.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<()> {
        panic!("a volume that is only read is written")
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
