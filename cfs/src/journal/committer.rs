//! Commits, and the thread that makes them when nobody waits for one.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::format::Tid;
use super::gate::{Gate, Work};
use super::handle::Handle;
use super::transaction::{LAST_BLOCKS, Room, Shared, State};
use crate::engine::cache::Changes;
use crate::{Error, Result};

impl Work for Shared {
    type Changes = Changes;

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

    fn collect(&self, tid: Tid) -> Result<Changes> {
        let hooks = self.hooks.lock().clone();
        let mut last = Handle::last(self, tid);
        hooks.iter().try_for_each(|hook| hook.locking(&mut last))?;
        Ok(self.volume.cache().take_changes(tid))
    }

    fn take_room(&self, state: &mut State, changes: &Changes) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let needed = log.needed(changes.versions.len(), changes.revoked.len());
        state.free = state.free.checked_sub(needed).ok_or_else(|| {
            let (tid, free) = (state.running.tid, state.free);
            Error::Exhausted(format!("transaction {tid} needs {needed} blocks, the log has {free}"))
        })?;
        Ok(())
    }

    fn write(&self, tid: Tid, changes: &Changes) -> Result<()> {
        self.make_durable(tid, changes)?;
        let hooks = self.hooks.lock().clone();
        hooks.iter().for_each(|hook| hook.committed(tid));
        Ok(())
    }

    fn give_up(&self, error: &Error) {
        self.abort(error);
    }
}

impl Shared {
    /// Makes a transaction durable: in the log or, where there is none, at home.
    fn make_durable(&self, tid: Tid, changes: &Changes) -> Result<()> {
        let Some(log) = &self.log else {
            let alone = self.checkpointing.lock();
            let blocks = changes.versions.iter();
            self.write_home(blocks.map(|(home, version)| (*home, &version.bytes[..])))?;
            self.volume.source().flush()?;
            changes.versions.iter().for_each(|(home, _)| self.volume.cache().clean(*home, tid));
            drop(alone);
            return Ok(());
        };
        let writes: Vec<_> =
            changes.versions.iter().map(|(home, block)| (home.0, &block.bytes[..])).collect();
        let revoked: Vec<_> = changes.revoked.iter().map(|block| block.0).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = (now.as_secs(), now.subsec_nanos());
        let places = log.append(tid, &writes, &revoked, now)?;
        let needed = log.needed(writes.len(), revoked.len());
        let bytes = u64::from(needed) << self.volume.superblock().block_bits;
        self.written.fetch_add(bytes, Ordering::Relaxed);
        self.note_committed(places, needed, changes);
        Ok(())
    }

    /// What the thread does that commits, until the journal stops.
    pub(super) fn run_commits(&self, interval: Duration) {
        let mut state = self.state.lock();
        while !state.stopping && state.aborted.is_none() {
            let now = Instant::now();
            let due = state.due(interval);
            if state.commit_wanted || due.is_some_and(|due| due <= now) {
                if state.committing {
                    self.changed.wait(&mut state);
                } else {
                    // The error is kept: the journal has been given up.
                    let _ = self.commit_running(&mut state);
                }
            } else {
                // Who joins a transaction first does not wake this thread: it looks often enough.
                self.work.wait_until(&mut state, due.unwrap_or(now + interval));
            }
        }
    }
}
