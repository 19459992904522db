//! A wrapper whose completions come later, and in another order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::device::{BlockDevice, Completion, DeviceInfo, Extent, Request};
use crate::{Data, Error, Result};

/// A device that takes its time. A request reaches the device below at once; that it has completed
/// is told after a time between two bounds, chosen anew for each.
pub struct Delay {
    below: Arc<dyn BlockDevice>,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    shortest: Duration,
    spread: Duration,
}

struct State {
    /// By the time when it is told, and a number that tells those of one time apart.
    waiting: BTreeMap<(Instant, u64), (Completion, Result<Data>)>,
    random: u64,
    count: u64,
    /// Requests that the device below has in hand.
    below: u64,
    closed: bool,
}

impl Delay {
    /// Delays what `below` completes, by `shortest` to `longest`. One seed gives one sequence of
    /// times.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new(
        below: Arc<dyn BlockDevice>,
        shortest: Duration,
        longest: Duration,
        seed: u64,
    ) -> Result<Self> {
        let state =
            State { waiting: BTreeMap::new(), random: seed | 1, count: 0, below: 0, closed: false };
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            changed: Condvar::new(),
            shortest,
            spread: longest.saturating_sub(shortest),
        });
        let theirs = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("delay".into());
        let thread = thread.spawn(move || theirs.tell());
        let thread =
            thread.map_err(|error| Error::Invalid(format!("delay: no thread: {error}")))?;
        Ok(Self { below, queue, thread: Some(thread) })
    }

    fn wrap(&self, request: Request) -> Request {
        let Request { operation, completion } = request;
        let queue = Arc::clone(&self.queue);
        queue.state.lock().below += 1;
        Request::new(operation, move |result| queue.put(completion, result))
    }
}

impl Queue {
    fn put(&self, completion: Completion, result: Result<Data>) {
        let mut state = self.state.lock();
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        let spread = self.spread.mul_f64((state.random >> 11) as f64 / (1_u64 << 53) as f64);
        let at = Instant::now() + self.shortest + spread;
        state.count += 1;
        let key = (at, state.count);
        state.below -= 1;
        state.waiting.insert(key, (completion, result));
        self.changed.notify_one();
    }

    /// Completes what has waited long enough, until the device is closed and nothing is left.
    fn tell(&self) {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            match state.waiting.first_key_value().map(|((at, _), _)| *at) {
                Some(at) if at <= now || state.closed => {
                    if let Some((_, (completion, result))) = state.waiting.pop_first() {
                        // A completion may submit: nothing is locked meanwhile.
                        parking_lot::MutexGuard::unlocked(&mut state, || {
                            completion.complete(result);
                        });
                    }
                }
                Some(at) => drop(self.changed.wait_until(&mut state, at)),
                None if state.closed && state.below == 0 => return,
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl BlockDevice for Delay {
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

    // What is polled for comes late as well, so that the device below is not left without a poll:
    // the default submits.

    fn poll(&self) {
        self.below.poll();
    }
}

impl Drop for Delay {
    /// What is waiting is told now; what the device below still has in hand is waited for.
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // The thread only completes requests; if a completion panicked that was told already.
            let _ = thread.join();
        }
    }
}
