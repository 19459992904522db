//! Inodes that participants hold: open files, and what a kernel remembers of a mount. They stay
//! when their last name goes, until they are let go or their holder ends.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Owner;
use super::answer::Sender;
use crate::engine::write::Cell;
use crate::id::Ino;
use crate::{Error, Result};

/// What each participant holds, and how often.
#[derive(Default)]
pub(super) struct Holds(Mutex<HashMap<Sender, HashMap<Ino, Held>>>);

struct Held {
    cell: Arc<Cell>,
    times: u64,
}

/// Inodes that one participant may hold at a time.
const MAX_HELD: usize = 1 << 22;

impl Owner {
    /// A participant holds an inode once more. Returns where errors begin that it has not seen.
    pub(super) fn hold(&self, ino: Ino, who: Sender) -> Result<u64> {
        if self.writer.is_none() {
            // Nothing goes away.
            return self.volume.inode(ino).map(|_| 0);
        }
        let cell = self.cell(ino)?;
        let live = cell.read();
        let mut holds = self.holds.0.lock();
        let held = holds.entry(who).or_default();
        // Who comes by a number alone may come while the last holder leaves.
        if live.gone || (live.inode.links == 0 && !held.contains_key(&ino)) {
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

    /// A participant lets an inode go that it has held so often.
    pub(super) fn let_go(&self, ino: Ino, who: Sender, times: u64) -> Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        let last = {
            let mut holds = self.holds.0.lock();
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
        let held = self.holds.0.lock().remove(&who).unwrap_or_default();
        let released = held.into_values().map(|held| self.release(&held.cell));
        released.fold(Ok(()), Result::and)
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
                file.pending().forget();
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
