//! A wrapper whose requests fail by rules.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::device::{BlockDevice, DeviceInfo, Extent, Operation, Request};
use crate::{Error, Result};

/// Which requests fail, and how. A request that fails does not reach the device below.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Reads are meant.
    pub reads: bool,
    /// Writes, zeroes and discards are meant.
    pub writes: bool,
    /// Flushes are meant.
    pub flushes: bool,
    /// Only requests that touch one of these bytes are meant; flushes touch none and all.
    pub range: Range<u64>,
    /// So many of those that are meant are let through first.
    pub after: u64,
    /// And then so many fail.
    pub times: u64,
    /// With this.
    pub errno: Errno,
}

impl Rule {
    /// Every request fails with EIO.
    pub fn all() -> Self {
        Self {
            reads: true,
            writes: true,
            flushes: true,
            range: 0..u64::MAX,
            after: 0,
            times: u64::MAX,
            errno: Errno::IO,
        }
    }

    /// The change or flush with that number, counted from 0, fails once.
    pub fn nth_change(after: u64, errno: Errno) -> Self {
        Self { reads: false, after, times: 1, errno, ..Self::all() }
    }
}

/// A kind of request, as rules tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It reads.
    Read,
    /// It changes bytes.
    Write,
    /// It makes changes durable.
    Flush,
}

/// Rules that can be changed while they apply.
#[derive(Debug, Default)]
pub struct Rules {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Each with how many requests it has met.
    rules: Vec<(Rule, u64)>,
    changes: u64,
    failed: u64,
}

impl Rules {
    /// No rule: nothing fails.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Replaces all rules; counts begin anew.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        let rules = rules.into_iter().map(|rule| (rule, 0)).collect();
        *self.state.lock() = State { rules, changes: 0, failed: 0 };
    }

    /// Changes and flushes that were asked for since the rules were set.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Requests that failed since the rules were set.
    pub fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// Whether this request fails, and with what. Asked once for each.
    pub fn judge(&self, kind: Kind, offset: u64, len: u64) -> Option<Errno> {
        let mut state = self.state.lock();
        state.changes += u64::from(kind != Kind::Read);
        let mut verdict = None;
        for (rule, met) in &mut state.rules {
            let meant = match kind {
                Kind::Read => rule.reads,
                Kind::Write => rule.writes,
                Kind::Flush => rule.flushes,
            };
            let end = offset.saturating_add(len);
            let touches =
                kind == Kind::Flush || (offset < rule.range.end && end > rule.range.start);
            if meant && touches {
                let number = *met;
                *met += 1;
                let fails = number >= rule.after && number - rule.after < rule.times;
                verdict = verdict.or(fails.then_some(rule.errno));
            }
        }
        state.failed += u64::from(verdict.is_some());
        verdict
    }
}

/// A device whose requests fail by rules.
pub struct Fault {
    below: Arc<dyn BlockDevice>,
    rules: Arc<Rules>,
}

impl Fault {
    /// Applies rules to what is asked of `below` through this.
    pub fn new(below: Arc<dyn BlockDevice>, rules: &Arc<Rules>) -> Self {
        Self { below, rules: Arc::clone(rules) }
    }

    /// The request, unless it failed here.
    fn pass(&self, request: Request) -> Option<Request> {
        let kind = match request.operation {
            Operation::Read { .. } => Kind::Read,
            Operation::Flush => Kind::Flush,
            _ => Kind::Write,
        };
        let (offset, len) = request.operation.extent();
        let Some(errno) = self.rules.judge(kind, offset, len) else { return Some(request) };
        let (device, what) = (self.below.name().to_owned(), request.operation.what());
        // Frames and data of the request come home before its submitter hears of it.
        drop(request.operation);
        request.completion.complete(Err(Error::Io { device, what, offset, errno }));
        None
    }
}

impl BlockDevice for Fault {
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
        if let Some(request) = self.pass(request) {
            self.below.submit(request);
        }
    }

    fn submit_all(&self, requests: Vec<Request>) {
        let passed = requests.into_iter().filter_map(|request| self.pass(request)).collect();
        self.below.submit_all(passed);
    }

    fn submit_polled(&self, request: Request) {
        if let Some(request) = self.pass(request) {
            self.below.submit_polled(request);
        }
    }

    fn stop_polling(&self) {
        self.below.stop_polling();
    }

    fn poll(&self) {
        self.below.poll();
    }
}
