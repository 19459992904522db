//! Inodes that participants hold: open files, and what a kernel remembers of a mount. They stay
//! when their last name goes, until they are let go or their holder ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Owner;
use super::answer::Sender;
use crate::disk::inode::Inode;
use crate::engine::write::Cell;
use crate::id::Ino;
use crate::{Error, Result, limits};

/// What each participant holds, and how often.
pub(super) struct Holds {
    held: Mutex<HashMap<Sender, HashMap<Ino, Held>>>,
    /// At an owner that has taken a volume over, for a while: inodes without names, which who had
    /// them open at the last owner has not asked for yet, perhaps. Each is held once.
    waiting: Mutex<Option<HashMap<Ino, Arc<Cell>>>>,
}

impl Holds {
    /// Nobody holds anything yet; of these inodes without names each is held once.
    pub(super) fn waiting_for(kept: Vec<Arc<Cell>>) -> Self {
        let kept = kept.into_iter().map(|cell| (cell.ino(), cell)).collect();
        Self { held: Mutex::default(), waiting: Mutex::new(Some(kept)) }
    }
}

struct Held {
    cell: Arc<Cell>,
    times: u64,
}

/// Inodes that one participant may hold at a time.
const MAX_HELD: usize = 1 << 22;

impl Owner {
    /// A participant holds an inode once more; one that has that generation, if it says so. Returns
    /// where errors begin that it has not seen.
    pub(super) fn hold(&self, ino: Ino, generation: Option<u32>, who: Sender) -> Result<u64> {
        let is_other = |inode: &Inode| generation.is_some_and(|known| known != inode.generation);
        if self.writer.is_none() {
            // Nothing goes away.
            return match self.volume.inode(ino)? {
                inode if is_other(&inode) => Err(Error::Stale(ino.to_string())),
                _ => Ok(0),
            };
        }
        let cell = self.cell(ino)?;
        let live = cell.read();
        let mut holds = self.holds.held.lock();
        let held = holds.entry(who).or_default();
        // Who comes by a number alone may come while the last holder leaves.
        let awaited = || generation.is_some() && self.is_waiting(ino);
        let nameless = live.inode.links == 0 && !held.contains_key(&ino) && !awaited();
        if live.gone || nameless || is_other(&live.inode) {
            return Err(Error::Stale(ino.to_string()));
        }
        if held.len() >= MAX_HELD && !held.contains_key(&ino) {
            return Err(Error::Exhausted(format!("{who:?} holds {MAX_HELD} inodes")));
        }
        let entry = held.entry(ino).or_insert_with(|| Held { cell: Arc::clone(&cell), times: 0 });
        entry.times += 1;
        if entry.times == 1 {
            cell.hold(1);
        }
        Ok(self.errors.sample(Some(ino)))
    }

    /// Refuses a participant that holds as many inodes as one may.
    pub(super) fn check_holds(&self, who: Sender) -> Result<()> {
        let holds = self.holds.held.lock();
        match holds.get(&who).is_some_and(|held| held.len() >= MAX_HELD) {
            true => Err(Error::Exhausted(format!("{who:?} holds {MAX_HELD} inodes"))),
            false => Ok(()),
        }
    }

    /// A participant holds an inode that nobody else knows yet.
    pub(super) fn hold_new(&self, cell: &Arc<Cell>, who: Sender) {
        let held = Held { cell: Arc::clone(cell), times: 1 };
        self.holds.held.lock().entry(who).or_default().insert(cell.ino(), held);
        cell.hold(1);
    }

    /// A participant lets an inode go that it has held so often.
    pub(super) fn let_go(&self, ino: Ino, who: Sender, times: u64) -> Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        let last = {
            let mut holds = self.holds.held.lock();
            let Some(held) = holds.get_mut(&who) else { return Ok(()) };
            let Some(entry) = held.get_mut(&ino) else { return Ok(()) };
            entry.times = entry.times.saturating_sub(times);
            let last = entry.times == 0;
            last.then(|| held.remove(&ino)).flatten()
        };
        if let Some(held) = last {
            // It is let go; that an orphan could not be removed is found again at the end.
            let _ = self.release(&held.cell);
        }
        Ok(())
    }

    /// A participant has ended: it holds nothing any more.
    pub fn forget_holder(&self, who: Sender) -> Result<()> {
        let held = self.holds.held.lock().remove(&who).unwrap_or_default();
        let released = held.into_values().map(|held| self.release(&held.cell));
        released.fold(Ok(()), Result::and)
    }

    /// The volume was taken over: for [`limits::RENEWAL_WAIT`] inodes without names stay, so that
    /// those who had them open can hold them again.
    pub(super) fn await_holders(self: &Arc<Self>) -> Result<()> {
        self.holds.waiting.lock().get_or_insert_default();
        let owner = Arc::downgrade(self);
        let end = move || {
            std::thread::sleep(limits::RENEWAL_WAIT);
            if let Some(owner) = owner.upgrade() {
                owner.end_waiting();
            }
        };
        let thread = std::thread::Builder::new().name("holders".into()).spawn(end);
        thread.map(drop).map_err(Error::io("start a thread"))
    }

    /// What nobody has asked for by now goes.
    pub(super) fn end_waiting(&self) {
        let waiting = self.holds.waiting.lock().take().unwrap_or_default();
        for cell in waiting.into_values() {
            // One that cannot be removed is found again at the end.
            let _ = self.release(&cell);
        }
    }

    /// An inode that has lost its last name, and is held once: that hold goes, or is kept for
    /// those who may ask for it.
    pub(super) fn release_unnamed(&self, cell: &Arc<Cell>) {
        if let Some(waiting) = &mut *self.holds.waiting.lock()
            && let Entry::Vacant(place) = waiting.entry(cell.ino())
        {
            place.insert(Arc::clone(cell));
            return;
        }
        // That it could not be removed is nobody's error: it is an orphan until the end.
        let _ = self.release(cell);
    }

    fn is_waiting(&self, ino: Ino) -> bool {
        self.holds.waiting.lock().as_ref().is_some_and(|waiting| waiting.contains_key(&ino))
    }

    /// Takes one hold of an inode back; it goes if nothing else keeps it.
    pub(super) fn release(&self, cell: &Arc<Cell>) -> Result<()> {
        let nameless = {
            let live = cell.read();
            live.inode.links == 0 && !live.gone
        };
        let Some(writer) = &self.writer else { return Ok(()) };
        if !nameless {
            return writer.release(cell, 1);
        }
        let file = self.files.get(cell);
        {
            let _order = file.order.lock();
            let _bar = file.bar();
            let mut live = cell.write();
            // Who holds an inode without names has held it before: nobody comes any more.
            if cell.holds() == 1 && live.inode.links == 0 && !live.gone {
                self.drop_pages(&file, &mut live, 0..u64::MAX);
                file.forget();
                self.withdraw_inode(cell.ino());
                self.errors.forget(cell.ino());
            }
        }
        let done = writer.release(cell, 1);
        if cell.read().gone {
            // Its number may be another's from now on.
            self.files.forget(&file);
        }
        self.files.put(file);
        done
    }
}
