//! When dirty pages are written: threads that look for files that have been dirty for long, and for
//! too many dirty pages, and writers that wait for room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Owner;
use super::dirty::{File, Limits};
use super::writeback::Item;
use crate::{Error, Result};

/// How long a page stays dirty when nothing else has it written.
const AGE: Duration = Duration::from_secs(5);
/// How often somebody looks.
const LOOK: Duration = Duration::from_secs(1);
/// Batches in flight: while one is being prepared or committed the device writes another.
pub(super) const THREADS: usize = 2;
/// How long a writer waits before it looks again whether there is room, or a volume to write to.
const ROOM: Duration = Duration::from_millis(100);

/// Keeps the threads going.
pub(super) struct Flusher {
    pub(super) limits: Limits,
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    /// Somebody waits for frames.
    hurry: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    /// What has been picked to be written.
    picked: VecDeque<Item>,
    stop: bool,
}

impl Flusher {
    pub(super) fn new(budget: usize) -> Self {
        Self {
            limits: Limits::of(budget),
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            hurry: AtomicBool::new(false),
            threads: Mutex::default(),
        }
    }

    /// Starts the threads, which end with the owner or by [`Self::stop`].
    pub(super) fn start(owner: &Arc<Owner>) -> Result<()> {
        let mut threads = owner.flusher.threads.lock();
        for index in 0..THREADS {
            let (flusher, owner) = (Arc::clone(&owner.flusher), Arc::downgrade(owner));
            let thread = std::thread::Builder::new()
                .name(format!("writeback-{index}"))
                .spawn(move || while once(&flusher, &owner) {})
                .map_err(Error::io("start a thread"))?;
            threads.push(thread);
        }
        Ok(())
    }

    /// Has the threads end, behind what they are writing.
    pub(super) fn end(&self) {
        self.state.lock().stop = true;
        self.work.notify_all();
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        self.end();
        for thread in self.threads.lock().drain(..) {
            // One that panicked has ended; there is nothing more to end.
            let _ = thread.join();
        }
    }

    /// Dirty pages are in somebody's way.
    pub(super) fn hurry(&self) {
        if !self.hurry.swap(true, Ordering::Relaxed) {
            // With the lock, so that no thread is between its look and its sleep.
            let _state = self.state.lock();
            self.work.notify_one();
        }
    }

    /// Has what was picked written.
    pub(super) fn write(&self, item: Item) {
        self.state.lock().picked.push_back(item);
        self.work.notify_one();
    }

    /// How much waits to be written.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().picked.len()
    }

    /// Takes what was picked of a file and waits, as one batch.
    pub(super) fn take(&self, file: &Arc<File>) -> Option<Item> {
        self.state.lock().take(Some(file))
    }

    /// Pages have been written.
    pub(super) fn made_room(&self) {
        self.room.notify_all();
    }

    /// Waits for a change of the number of dirty pages, for a short while.
    pub(super) fn wait_for_room(&self) {
        let mut state = self.state.lock();
        self.hurry.store(true, Ordering::Relaxed);
        self.work.notify_all();
        self.room.wait_for(&mut state, ROOM);
    }
}

impl State {
    /// Takes what was picked first, of that file or of any, with what follows it in the same file,
    /// up to a batch: what is one write to the device is one change of the map too.
    fn take(&mut self, file: Option<&Arc<File>>) -> Option<Item> {
        let of = |item: &Item| file.is_none_or(|file| item.is_of(file));
        let at = self.picked.iter().position(of)?;
        let mut item = self.picked.remove(at)?;
        while let Some(next) = self.picked.get(at).filter(|next| item.goes_on_with(next)) {
            debug_assert!(of(next));
            item.append(self.picked.remove(at)?);
        }
        Some(item)
    }
}

/// One round of a thread; false when it is to end.
fn once(flusher: &Flusher, owner: &Weak<Owner>) -> bool {
    let (picked, pressed) = {
        let mut state = flusher.state.lock();
        if !state.stop && state.picked.is_empty() && !flusher.hurry.load(Ordering::Relaxed) {
            flusher.work.wait_for(&mut state, LOOK);
        }
        if state.stop {
            return false;
        }
        (state.take(None), flusher.hurry.swap(false, Ordering::Relaxed))
    };
    let Some(owner) = owner.upgrade() else { return false };
    if let Some(item) = picked {
        owner.write_batch(vec![item]);
        if flusher.waiting() > 0 {
            if pressed {
                flusher.hurry();
            }
            return true;
        }
    }
    owner.note_problems();
    let mut pressed = pressed;
    loop {
        pressed |= owner.states.busy() > flusher.limits.background;
        let age = if pressed { Duration::ZERO } else { AGE };
        if !owner.flush_oldest(age) {
            return true;
        }
        pressed = false;
    }
}
