//! Buffers that requests are read into.

use std::sync::Arc;

use parking_lot::Mutex;

/// A buffer that a request was read into, lent to its answer; it goes back to be read into again.
pub(in crate::mount) struct Loan {
    buffer: Vec<u8>,
    data: std::ops::Range<usize>,
    home: Arc<Buffers>,
}

impl Loan {
    pub(super) fn data(&self) -> &[u8] {
        self.buffer.get(self.data.clone()).unwrap_or_default()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.buffer));
    }
}

/// Buffers for requests of one session, all of one length.
pub(in crate::mount) struct Buffers {
    len: usize,
    idle: Mutex<Vec<Vec<u8>>>,
}

/// Buffers without work that are kept.
const IDLE_BUFFERS: usize = 8;

impl Buffers {
    pub(in crate::mount) fn new(len: usize) -> Arc<Self> {
        Arc::new(Self { len, idle: Mutex::default() })
    }

    /// One to read into.
    pub(in crate::mount) fn take(&self) -> Vec<u8> {
        let idle = self.idle.lock().pop();
        idle.unwrap_or_else(|| vec![0; self.len])
    }

    /// Lends `buffer`, whose bytes in the range are data, to an answer.
    pub(in crate::mount) fn lend(
        self: &Arc<Self>,
        buffer: Vec<u8>,
        data: std::ops::Range<usize>,
    ) -> Loan {
        Loan { buffer, data, home: Arc::clone(self) }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_BUFFERS {
            idle.push(buffer);
        }
    }
}
