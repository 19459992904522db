//! The jbd2 journal: what it looks like on disk, how it is written, and how it is replayed.

mod checkpoint;
mod checksum;
pub mod commit;
mod committer;
pub mod fast_commit;
pub mod format;
mod handle;
pub mod locate;
mod log;
pub(crate) mod mark;
pub mod recover;
pub mod replay;
#[cfg(test)]
mod testlog;
#[cfg(test)]
mod tests;
mod transaction;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

pub use handle::Handle;
pub(crate) use handle::is_held;
pub use recover::{Report, recover, recover_at, take_over};

use crate::disk::features::Access;
use crate::disk::superblock::STATE_CLEAN;
use crate::engine::Volume;
use crate::id::Ino;
use crate::{Error, Result, limits};
use format::Tid;
use log::Log;
use transaction::Shared;

/// How a volume is written.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// How long a change may wait for its commit when nobody asks for it.
    pub commit_interval: Duration,
    /// Where the volume is used, for the superblock.
    pub mount_point: Option<String>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { commit_interval: limits::COMMIT_INTERVAL, mount_point: None }
    }
}

/// Somebody who takes part in each transaction.
pub trait CommitHook: Send + Sync {
    /// The transaction takes no further handles and all of them have ended: its last changes, of a
    /// few blocks. An error gives the journal up. It must not begin handles nor wait for who does.
    fn locking(&self, handle: &mut Handle<'_>) -> Result<()>;

    /// The transaction is durable; who waits for that is woken after this.
    fn committed(&self, tid: Tid);
}

/// The journal of a volume that is open for writing; without a log (ext2) it writes transactions
/// straight to their homes.
///
/// Dropped without [`Self::stop`] it leaves the volume as a crash would.
pub struct Journal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether the volume's state was clean when it was opened.
    clean: bool,
}

impl Journal {
    /// Opens a volume for writing. Its superblock says so from here on.
    ///
    /// # Errors
    /// When its features, its storage or its journal do not allow that, or need recovery first;
    /// nothing has changed then.
    pub fn open(volume: &Arc<Volume>, options: &JournalOptions) -> Result<Arc<Self>> {
        if let Access::ReadOnly(features) = volume.access() {
            let feature = features.join(", ");
            return Err(Error::Refused { feature, hint: " for writing".into() });
        }
        let block_size = volume.superblock().block_size;
        if block_size > limits::MAX_WRITE_BLOCK {
            let feature = format!("block size {block_size}");
            return Err(Error::Refused { feature, hint: " for writing".into() });
        }
        let source = volume.source();
        if !source.is_writable() {
            return Err(Error::ReadOnly);
        }
        if source.write_unit() > block_size {
            // A block could not be written without its neighbours.
            let feature = format!("block size {block_size} on sectors of {}", source.write_unit());
            return Err(Error::Refused { feature, hint: " for writing".into() });
        }
        let raw = mark::read(volume)?;
        let log = Log::open(volume, &raw)?;
        let failed = log.as_ref().is_some_and(|log| log.errno != 0);
        mark::opened(volume, options.mount_point.as_deref(), failed)?;
        let shared = Arc::new(Shared::new(volume.clone(), log));
        let clean = raw.state.get() & STATE_CLEAN != 0;
        let journal = Self { shared: shared.clone(), threads: Mutex::default(), clean };
        let (interval, theirs) = (options.commit_interval, shared.clone());
        journal.start("commit", move || theirs.run_commits(interval))?;
        journal.start("checkpoint", move || {
            if let Some(log) = &shared.log {
                shared.run_checkpoints(log);
            }
        })?;
        Ok(Arc::new(journal))
    }

    fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        self.threads.lock().push(thread.map_err(Error::io("start a thread of the journal"))?);
        Ok(())
    }

    /// Begins an operation that changes at most `credits` blocks. Waits while the running
    /// transaction is being locked, is full, or has no room in the log.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when the journal was given up or stops.
    pub fn begin(&self, credits: u32) -> Result<Handle<'_>> {
        Handle::begin(&self.shared, credits)
    }

    /// Has somebody take part in each transaction from the next one on.
    pub fn add_hook(&self, hook: Arc<dyn CommitHook>) {
        self.shared.hooks.lock().push(hook);
    }

    /// Waits until a transaction is durable; commits it if nobody does.
    ///
    /// # Errors
    /// When the journal was given up before that.
    pub fn commit(&self, tid: Tid) -> Result<()> {
        self.shared.commit(tid)
    }

    /// Waits until a transaction is durable, and what was written beside it before this call.
    ///
    /// # Errors
    /// As [`Self::commit`], or when the storage cannot be flushed.
    pub fn sync(&self, tid: Tid) -> Result<()> {
        // The flushes of a commit under way may be earlier than those writes.
        let begins_now = self.running() == tid;
        self.commit(tid)?;
        if begins_now && self.committed().at_least(tid) {
            return Ok(());
        }
        self.shared.volume.source().flush()
    }

    /// Waits until all changes so far are durable, and what was written beside them.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn flush_all(&self) -> Result<()> {
        self.sync(self.running())
    }

    /// Waits until all changes so far are at their homes, where the log is not needed for them.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn bring_home(&self) -> Result<()> {
        let tid = self.running();
        self.commit(tid)?;
        self.shared.checkpoint_until(tid)
    }

    /// The transaction that handles join now.
    pub fn running(&self) -> Tid {
        self.shared.state.lock().running.tid
    }

    /// The last transaction that is durable.
    pub fn committed(&self) -> Tid {
        self.shared.state.lock().committed
    }

    /// Blocks that one handle may ask for at most.
    pub fn max_credits(&self) -> u32 {
        self.shared.max_blocks
    }

    /// Why the journal was given up, if it was.
    pub fn aborted(&self) -> Option<Arc<str>> {
        self.shared.state.lock().aborted.clone()
    }

    /// Whether it was given up; [`Self::aborted`] says why.
    pub fn is_aborted(&self) -> bool {
        self.shared.given_up.load(Ordering::Acquire)
    }

    /// Gives the journal up: nothing is changed any more.
    pub fn abort(&self, error: &Error) {
        self.shared.abort(error, None);
    }

    /// The same for what is wrong with an inode.
    pub fn abort_for(&self, error: &Error, ino: Ino) {
        self.shared.abort(error, Some(ino));
    }

    /// Counts bytes that were written beside the journal, for the superblock.
    pub fn count_written(&self, bytes: u64) {
        self.shared.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends writing: the last commit, everything at home, an empty log, a clean superblock. Handles
    /// that are open are waited for; new ones are refused.
    ///
    /// # Errors
    /// When the journal was given up, or is by this; the volume is then as after a crash.
    pub fn stop(&self) -> Result<()> {
        let shared = &self.shared;
        if !self.end_threads() {
            return Ok(());
        }
        let done =
            shared.commit(self.running()).and_then(|()| shared.checkpoint_all()).and_then(|()| {
                let state = shared.state.lock();
                state.check_io()?;
                let next = state.running.tid;
                drop(state);
                if let Some(log) = &shared.log {
                    log.clear(next)?;
                }
                mark::closed(&shared.volume, self.clean, shared.written.load(Ordering::Relaxed))
            });
        if let Err(error) = &done {
            shared.abort(error, None);
        }
        done
    }

    /// Returns whether this was the first call.
    fn end_threads(&self) -> bool {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.shared.state.lock().stopping = true;
        self.shared.wake_all();
        let first = !threads.is_empty();
        for thread in threads {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
        first
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end_threads();
    }
}
