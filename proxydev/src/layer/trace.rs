//! A wrapper that tells of each request when it has completed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::Result;
use crate::device::{BlockDevice, DeviceInfo, Extent, Request};

/// A request that has completed. Displayed it is one line.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    /// What was asked.
    pub what: &'static str,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Why it failed, if it did.
    pub error: Option<Errno>,
    /// From submission to completion.
    pub took: Duration,
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, offset, len, error, took } = self;
        write!(f, "{what} {len} at {offset}: ")?;
        match error {
            None => write!(f, "ok")?,
            Some(error) => write!(f, "{error}")?,
        }
        write!(f, " in {} us", took.as_micros())
    }
}

/// Who hears of requests: called at each completion, on its thread, so it should not wait.
pub type Listener = Arc<dyn Fn(&Traced) + Send + Sync>;

/// A device that tells of its requests.
pub struct Trace {
    below: Arc<dyn BlockDevice>,
    listener: Listener,
}

impl Trace {
    /// Tells `listener` what is asked of `below` through this.
    pub fn new(below: Arc<dyn BlockDevice>, listener: Listener) -> Self {
        Self { below, listener }
    }

    fn wrap(&self, request: Request) -> Request {
        let Request { operation, completion } = request;
        let (what, (offset, len)) = (operation.what(), operation.extent());
        let (started, listener) = (Instant::now(), Arc::clone(&self.listener));
        Request::new(operation, move |result| {
            let error = result.as_ref().err().map(crate::Error::errno);
            listener(&Traced { what, offset, len, error, took: started.elapsed() });
            completion.complete(result);
        })
    }
}

impl BlockDevice for Trace {
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
