//! Who may join the running transaction, and when it is committed.
//!
//! One lock guards a few numbers. A transaction's blocks and revocations are kept by the shards of
//! the block cache, so that handles meet here at their beginning and end alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::checkpoint::Pending;
use super::format::Tid;
use super::log::{Log, Tail};
use super::{CommitHook, mark};
use crate::engine::Volume;
use crate::id::Ino;
use crate::{Error, Result};

/// What handles, committers and the journal's thread share.
pub(super) struct Shared {
    pub(super) volume: Arc<Volume>,
    /// `None` on a volume without a journal.
    pub(super) log: Option<Log>,
    pub(super) state: Mutex<State>,
    /// Set with `State::aborted`, for those who ask often.
    pub(super) given_up: AtomicBool,
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
    handles: u32,
    /// Credits of its handles that they have not used.
    reserved: u32,
    /// Blocks that ended handles added.
    pub(super) used: u32,
    locked: bool,
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
        let state = State {
            running: Running::new(tid),
            committed: Tid(tid.0.wrapping_sub(1)),
            committing: false,
            free: blocks,
            commit_wanted: false,
            room_wanted: false,
            stopping: false,
            aborted: None,
        };
        Self {
            volume,
            log,
            state: Mutex::new(state),
            given_up: AtomicBool::new(false),
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

    /// Lets a handle join the running transaction. Waits while that is locked, full, or has no room
    /// in the log.
    pub(super) fn join(&self, credits: u32) -> Result<Tid> {
        if credits > self.max_blocks {
            let most = self.max_blocks;
            return Err(Error::Exhausted(format!(
                "an operation may change {credits} blocks, but a transaction has room for {most}"
            )));
        }
        let mut state = self.state.lock();
        loop {
            state.check()?;
            if !state.running.locked {
                match self.fits(&state, credits) {
                    Room::Enough => break,
                    Room::Full => {
                        state.commit_wanted = true;
                        self.work.notify_one();
                    }
                    Room::LogFull => {
                        state.room_wanted = true;
                        self.crowded.notify_one();
                    }
                }
            }
            self.changed.wait(&mut state);
        }
        let running = &mut state.running;
        if running.since.is_none() {
            running.since = Some(Instant::now());
        }
        running.handles += 1;
        running.reserved += credits;
        Ok(running.tid)
    }

    /// Ends a handle that added `used` blocks and has `unused` credits left.
    pub(super) fn leave(&self, used: u32, unused: u32) {
        let mut state = self.state.lock();
        let running = &mut state.running;
        running.handles -= 1;
        running.reserved = running.reserved.saturating_sub(used + unused);
        running.used += used;
        if running.locked && running.handles == 0 {
            self.idle.notify_all();
        }
    }

    pub(super) fn extend(&self, credits: u32) -> Result<bool> {
        let mut state = self.state.lock();
        state.check()?;
        // Somebody waits for the handles of a locked transaction.
        let locked = state.running.locked;
        let fits = !locked && matches!(self.fits(&state, credits), Room::Enough);
        if fits {
            state.running.reserved += credits;
        }
        Ok(fits)
    }

    /// A handle takes a credit more than it asked for.
    pub(super) fn overdraw(&self) {
        self.state.lock().running.reserved += 1;
    }

    /// Whether the running transaction can take so many more blocks.
    fn fits(&self, state: &State, credits: u32) -> Room {
        let blocks = state.running.used.saturating_add(state.running.reserved);
        let blocks = blocks.saturating_add(credits);
        if blocks > self.max_blocks {
            return Room::Full;
        }
        let Some(log) = &self.log else { return Room::Enough };
        // Each block may be a copy or a revocation, whichever takes more.
        let needed = log.needed(blocks as usize + LAST_BLOCKS as usize, 1);
        if needed > state.free { Room::LogFull } else { Room::Enough }
    }

    /// Waits until transaction `tid` is durable; commits it if nobody does.
    pub(super) fn commit(&self, mut tid: Tid) -> Result<()> {
        let mut state = self.state.lock();
        if !state.running.tid.at_least(tid) {
            return Err(Error::Invalid(format!("no transaction has the number {tid} yet")));
        }
        loop {
            if state.committed.at_least(tid) {
                return Ok(());
            }
            state.check_io()?;
            if state.is_untouched(tid) {
                // Nothing is in it; who asks wants what was done before.
                tid = Tid(tid.0.wrapping_sub(1));
            } else if state.committing {
                self.changed.wait(&mut state);
            } else {
                self.commit_running(&mut state)?;
            }
        }
    }

    /// Locks the running transaction against new handles and waits for those that it has.
    pub(super) fn lock_running(&self, state: &mut MutexGuard<'_, State>) {
        state.running.locked = true;
        while state.running.handles > 0 {
            self.idle.wait(state);
        }
    }

    /// The transaction that was locked had nothing in it: it goes on.
    pub(super) fn unlock_running(&self, state: &mut State) {
        state.running.locked = false;
        state.running.since = None;
        self.changed.notify_all();
    }

    /// The next transaction runs.
    pub(super) fn run_next(&self, state: &mut State) {
        state.running = Running::new(state.running.tid.next());
        self.changed.notify_all();
    }

    /// Nothing is written any more but the mark of the error, where there is none yet.
    pub(super) fn abort(&self, error: &Error, ino: Option<Ino>) {
        {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return;
            }
            state.aborted = Some(error.to_string().into());
            self.given_up.store(true, Ordering::Release);
            self.wake_all();
        }
        // Nobody else writes the superblock home meanwhile.
        let alone = self.checkpointing.lock();
        // The storage may be what failed: then there is nowhere to write it.
        let _ = mark::failed(&self.volume, error, ino, self.written.load(Ordering::Relaxed));
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

/// Whether blocks fit the running transaction.
enum Room {
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
const LAST_BLOCKS: u32 = 16;

impl State {
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
