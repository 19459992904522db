//! Who may join the running transaction, and how it is handed over to who commits it.
//!
//! The protocol alone: what is guarded and how threads wait are a [`Monitor`]'s, what a transaction
//! holds and how it is written a [`Work`]'s. So all of its interleavings can be tried
//! (`gate/model.rs`).

use std::ops::DerefMut;
use std::time::Instant;

use super::format::Tid;
use super::transaction::{Room, Running, State};
use crate::{Error, Result};

#[cfg(test)]
mod model;

/// What threads wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signal {
    /// The last handle of a locked transaction has ended.
    Idle,
    /// Anything else that somebody may wait for.
    Changed,
    /// There is work for the thread that commits.
    Work,
    /// There is work for the thread that brings versions home.
    Crowded,
}

/// A lock around the state, and those who wait.
pub(super) trait Monitor {
    /// While it lives nobody else has the state.
    type Guard<'a>: DerefMut<Target = State>
    where
        Self: 'a;

    fn lock(&self) -> Self::Guard<'_>;

    /// Lets others have the state until somebody signals, or for no reason.
    fn wait<'a>(&'a self, state: &mut Self::Guard<'a>, signal: Signal);

    /// Wakes those who wait for that.
    fn signal(&self, signal: Signal);

    /// Does something while others may have the state.
    fn unlocked<'a, T>(&'a self, state: &mut Self::Guard<'a>, work: impl FnOnce() -> T) -> T;
}

/// What transactions hold.
pub(super) trait Work {
    /// All that one changes.
    type Changes;

    /// Whether the running transaction can take so many more blocks.
    fn fits(&self, state: &State, credits: u32) -> Room;

    /// All handles of the transaction have ended: what it changes.
    fn collect(&self, tid: Tid) -> Result<Self::Changes>;

    /// Takes room in the log.
    fn take_room(&self, state: &mut State, changes: &Self::Changes) -> Result<()>;

    /// Makes it durable.
    fn write(&self, tid: Tid, changes: &Self::Changes) -> Result<()>;

    /// After an error nothing is changed any more.
    fn give_up(&self, error: &Error);
}

/// Both together.
pub(super) trait Gate: Monitor + Work {
    /// Lets a handle join the running transaction. Waits while that is locked, full, or has no room
    /// in the log.
    fn join(&self, credits: u32) -> Result<Tid> {
        let mut state = self.lock();
        loop {
            state.check()?;
            if !state.running.locked {
                match self.fits(&state, credits) {
                    Room::Enough => break,
                    Room::Full => {
                        state.commit_wanted = true;
                        self.signal(Signal::Work);
                    }
                    Room::LogFull => {
                        state.room_wanted = true;
                        self.signal(Signal::Crowded);
                    }
                }
            }
            self.wait(&mut state, Signal::Changed);
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
    fn leave(&self, used: u32, unused: u32) {
        let mut state = self.lock();
        let running = &mut state.running;
        running.handles -= 1;
        running.reserved = running.reserved.saturating_sub(used + unused);
        running.used += used;
        if running.locked && running.handles == 0 {
            self.signal(Signal::Idle);
        }
    }

    /// More blocks for a handle, if the running transaction has room for them.
    fn extend(&self, credits: u32) -> Result<bool> {
        let mut state = self.lock();
        state.check()?;
        // Somebody waits for the handles of a locked transaction.
        let locked = state.running.locked;
        let fits = !locked && matches!(self.fits(&state, credits), Room::Enough);
        if fits {
            state.running.reserved += credits;
        }
        Ok(fits)
    }

    /// Waits until transaction `tid` is durable; commits it if nobody does.
    fn commit(&self, mut tid: Tid) -> Result<()> {
        let mut state = self.lock();
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
                self.wait(&mut state, Signal::Changed);
            } else {
                self.commit_running(&mut state)?;
            }
        }
    }

    /// Commits the running transaction: who calls this saw that nobody else does. After an error
    /// the journal has been given up.
    fn commit_running<'a>(&'a self, state: &mut Self::Guard<'a>) -> Result<()> {
        state.committing = true;
        state.commit_wanted = false;
        state.running.locked = true;
        while state.running.handles > 0 {
            self.wait(state, Signal::Idle);
        }
        if state.running.used == 0 {
            // Nothing is in it: it goes on.
            state.committing = false;
            state.running.locked = false;
            state.running.since = None;
            self.signal(Signal::Changed);
            return Ok(());
        }
        let tid = state.running.tid;
        let done = self.unlocked(state, || self.collect(tid));
        let done = done.and_then(|changes| {
            // An aborted transaction may hold half an operation.
            state.check_io()?;
            self.take_room(state, &changes)?;
            // The next one runs.
            state.running = Running::new(tid.next());
            self.signal(Signal::Changed);
            self.unlocked(state, || self.write(tid, &changes))
        });
        match &done {
            Ok(()) => state.committed = tid,
            Err(error) => self.unlocked(state, || self.give_up(error)),
        }
        state.committing = false;
        self.signal(Signal::Changed);
        self.signal(Signal::Crowded);
        done
    }
}
