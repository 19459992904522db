//! Who may join the running transaction, and when it is committed.
//!
//! One lock guards a few numbers. A transaction's blocks and revocations are kept by the shards of
//! the block cache, so that handles meet here at their beginning and end alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::checkpoint::Pending;
use super::format::Tid;
use super::gate::{Gate, Monitor, Signal};
use super::log::{Log, Tail};
use super::{CommitHook, mark};
use crate::engine::Volume;
use crate::{Error, Result};

/// What handles, committers and the journal's thread share.
pub(super) struct Shared {
    pub(super) volume: Arc<Volume>,
    /// `None` on a volume without a journal.
    pub(super) log: Option<Log>,
    pub(super) state: Mutex<State>,
    /// The last handle of a locked transaction has ended.
    idle: Condvar,
    /// Anything else that somebody may wait for.
    pub(super) changed: Condvar,
    /// There is work for the thread that commits.
    pub(super) work: Condvar,
    /// There is work for the thread that brings versions home.
    pub(super) crowded: Condvar,
    pub(super) hooks: Mutex<Vec<Arc<dyn CommitHook>>>,
    pub(super) pending: Mutex<Pending>,
    /// Held while versions are written home.
    pub(super) checkpointing: Mutex<()>,
    /// Bytes written since the volume was opened.
    pub(super) written: AtomicU64,
    /// Blocks that one transaction may change.
    pub(super) max_blocks: u32,
}

pub(super) struct State {
    pub(super) running: Running,
    /// The last transaction that is durable.
    pub(super) committed: Tid,
    /// Whether somebody commits.
    pub(super) committing: bool,
    /// Blocks of the log that no transaction takes.
    pub(super) free: u32,
    /// The running transaction is to be committed though nobody waits for that.
    pub(super) commit_wanted: bool,
    /// Somebody waits for room in the log.
    pub(super) room_wanted: bool,
    pub(super) stopping: bool,
    pub(super) aborted: Option<Arc<str>>,
}

/// The transaction that handles join.
pub(super) struct Running {
    pub(super) tid: Tid,
    /// When the first handle joined it.
    pub(super) since: Option<Instant>,
    pub(super) handles: u32,
    /// Credits of its handles that they have not used.
    pub(super) reserved: u32,
    /// Blocks that ended handles added.
    pub(super) used: u32,
    /// It takes no handle any more.
    pub(super) locked: bool,
}

impl Running {
    pub(super) fn new(tid: Tid) -> Self {
        Self { tid, since: None, handles: 0, reserved: 0, used: 0, locked: false }
    }
}

impl Shared {
    pub(super) fn new(volume: Arc<Volume>, log: Option<Log>) -> Self {
        let first = log.as_ref().map_or(Tail { start: 0, tid: Tid(1) }, Log::begin);
        let blocks = log.as_ref().map_or(u32::MAX, Log::blocks);
        let tid = first.tid;
        let state = State::new(tid, blocks);
        Self {
            volume,
            log,
            state: Mutex::new(state),
            idle: Condvar::new(),
            changed: Condvar::new(),
            work: Condvar::new(),
            crowded: Condvar::new(),
            hooks: Mutex::default(),
            pending: Mutex::new(Pending::new(first)),
            checkpointing: Mutex::default(),
            written: AtomicU64::new(0),
            max_blocks: (blocks / 4).min(MAX_BLOCKS),
        }
    }

    /// A handle takes a credit more than it asked for.
    pub(super) fn overdraw(&self) {
        self.state.lock().running.reserved += 1;
    }

    /// Nothing is written any more but the mark of the error, where there is none yet.
    pub(super) fn abort(&self, error: &Error) {
        {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return;
            }
            state.aborted = Some(error.to_string().into());
            self.wake_all();
        }
        // Nobody else writes the superblock home meanwhile.
        let alone = self.checkpointing.lock();
        // The storage may be what failed: then there is nowhere to write it.
        let _ = mark::failed(&self.volume, error, self.written.load(Ordering::Relaxed));
        if let Some(log) = &self.log {
            let _ = log.set_errno(error.errno());
        }
        drop(alone);
    }

    /// For who waits for something that may not come any more.
    pub(super) fn wake_all(&self) {
        self.changed.notify_all();
        self.work.notify_all();
        self.crowded.notify_all();
    }
}

impl Monitor for Shared {
    type Guard<'a> = MutexGuard<'a, State>;

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn wait<'a>(&'a self, state: &mut MutexGuard<'a, State>, signal: Signal) {
        self.condition(signal).wait(state);
    }

    fn signal(&self, signal: Signal) {
        // One thread at most waits for work of either kind.
        self.condition(signal).notify_all();
    }

    fn unlocked<'a, T>(&'a self, state: &mut MutexGuard<'a, State>, work: impl FnOnce() -> T) -> T {
        MutexGuard::unlocked(state, work)
    }
}

impl Shared {
    fn condition(&self, signal: Signal) -> &Condvar {
        match signal {
            Signal::Idle => &self.idle,
            Signal::Changed => &self.changed,
            Signal::Work => &self.work,
            Signal::Crowded => &self.crowded,
        }
    }
}

impl Gate for Shared {}

/// Whether blocks fit the running transaction.
pub(super) enum Room {
    Enough,
    /// It has to commit first.
    Full,
    /// Older transactions have to leave the log first.
    LogFull,
}

/// Blocks of the longest transaction, whatever the log's length: 256 MiB of them in memory are
/// enough for any operation.
const MAX_BLOCKS: u32 = 1 << 16;

/// Blocks that may be added when a transaction is locked.
pub(super) const LAST_BLOCKS: u32 = 16;

impl State {
    /// Nothing has happened; the first transaction will be `tid`, and so many blocks of the log are
    /// free.
    pub(super) fn new(tid: Tid, free: u32) -> Self {
        Self {
            running: Running::new(tid),
            committed: Tid(tid.0.wrapping_sub(1)),
            committing: false,
            free,
            commit_wanted: false,
            room_wanted: false,
            stopping: false,
            aborted: None,
        }
    }

    /// For who would change something.
    pub(super) fn check(&self) -> Result<()> {
        if self.aborted.is_some() || self.stopping { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// For who wants something to be durable.
    pub(super) fn check_io(&self) -> Result<()> {
        match &self.aborted {
            Some(why) => Err(Error::Io {
                what: format!("the journal was given up: {why}"),
                source: std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
            }),
            None => Ok(()),
        }
    }

    /// Whether that transaction is the running one and no handle ever joined it.
    pub(super) fn is_untouched(&self, tid: Tid) -> bool {
        self.running.tid == tid && self.running.since.is_none()
    }

    /// When the running transaction is to be committed at the latest.
    pub(super) fn due(&self, interval: Duration) -> Option<Instant> {
        self.running.since.map(|since| since + interval)
    }
}
