//! One operation's part of a transaction.

use std::cell::Cell;
use std::sync::Arc;

use super::format::Tid;
use super::gate::Gate;
use super::transaction::Shared;
use crate::engine::cache::CachedBlock;
use crate::id::Block;
use crate::{Error, Result};

/// The right to change metadata blocks in the running transaction, which does not commit before
/// this is dropped. A thread has one at a time.
pub struct Handle<'a> {
    shared: &'a Shared,
    tid: Tid,
    /// Blocks that it may still add to the transaction.
    credits: u32,
    /// Blocks that it added.
    used: u32,
    /// Whether it is its transaction's last one, which none of the others' limits apply to.
    last: bool,
    sync: bool,
}

thread_local! {
    static HELD: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread has a handle, and so must not wait for a commit.
pub(crate) fn is_held() -> bool {
    HELD.get() > 0
}

impl<'a> Handle<'a> {
    pub(super) fn begin(shared: &'a Shared, credits: u32) -> Result<Self> {
        let tid = shared.join(credits)?;
        HELD.set(HELD.get() + 1);
        Ok(Self { shared, tid, credits, used: 0, last: false, sync: false })
    }

    /// For what is done when a transaction is locked.
    pub(super) fn last(shared: &'a Shared, tid: Tid) -> Self {
        HELD.set(HELD.get() + 1);
        Self { shared, tid, credits: 0, used: 0, last: true, sync: false }
    }

    /// The transaction.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// The newest version of a block.
    pub(crate) fn read(&self, block: Block) -> Result<Arc<CachedBlock>> {
        self.shared.volume.block(block)
    }

    /// Changes bytes of a metadata block, which is read if need be.
    ///
    /// # Errors
    /// When it cannot be read; nothing has changed then.
    ///
    /// # Panics
    /// When `bytes` reach beyond the block.
    pub fn put(&mut self, block: Block, offset: usize, bytes: &[u8]) -> Result<()> {
        loop {
            match self.shared.volume.cache().put(block, self.tid, offset, bytes) {
                Some(true) => {
                    self.charge();
                    return Ok(());
                }
                Some(false) => return Ok(()),
                // It may be evicted again before the next round: then that reads it again.
                None => drop(self.read(block)?),
            }
        }
    }

    /// Sets the whole of a block that was free; nothing is read.
    ///
    /// # Errors
    /// When `bytes` are not one block.
    pub fn create(&mut self, block: Block, bytes: Box<[u8]>) -> Result<()> {
        let block_size = self.shared.volume.superblock().block_size as usize;
        if bytes.len() != block_size {
            let len = bytes.len();
            return Err(Error::Invalid(format!("{block}: {len} bytes, not {block_size}")));
        }
        if self.shared.volume.cache().create(block, self.tid, bytes) {
            self.charge();
        }
        Ok(())
    }

    /// A block is metadata no longer. What a replay finds of it in older transactions is void, and
    /// so is what this one did to it.
    pub fn forget(&mut self, block: Block) {
        self.shared.volume.cache().forget(block);
        self.charge();
    }

    /// Asks for more credits in the same transaction; false when it has no room for them.
    ///
    /// # Errors
    /// When the journal was given up.
    pub fn extend(&mut self, credits: u32) -> Result<bool> {
        let granted = self.last || self.shared.extend(credits)?;
        if granted {
            self.credits += credits;
        }
        Ok(granted)
    }

    /// Ends this transaction's part, which must leave the volume consistent, and goes on in the
    /// transaction that runs then.
    ///
    /// # Errors
    /// When the journal was given up; the handle can only be dropped then.
    pub fn restart(&mut self, credits: u32) -> Result<()> {
        if self.last {
            return Err(Error::Invalid("a transaction's last handle has no next one".into()));
        }
        self.shared.leave(self.used, self.credits);
        // Until it has joined again there is nothing for the drop to end.
        (self.used, self.credits, self.last) = (0, 0, true);
        self.tid = self.shared.join(credits)?;
        (self.credits, self.last) = (credits, false);
        Ok(())
    }

    /// Gives the journal up for an error after the first change, which cannot be taken back;
    /// returns the error.
    #[must_use]
    pub fn fail(&self, error: Error) -> Error {
        self.shared.abort(&error);
        error
    }

    /// The transaction is to be durable when this handle has been dropped.
    pub fn sync(&mut self) {
        self.sync = true;
    }

    /// Credits that are left.
    pub fn credits(&self) -> u32 {
        self.credits
    }

    fn charge(&mut self) {
        self.used += 1;
        if self.last {
            return;
        }
        match self.credits.checked_sub(1) {
            Some(left) => self.credits = left,
            None => {
                debug_assert!(false, "a handle changes more blocks than it asked for");
                self.shared.overdraw();
            }
        }
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // The thread that began it, unless it gave the handle away: then it waits for nothing.
        HELD.set(HELD.get().saturating_sub(1));
        if std::thread::panicking() {
            let why = "an operation panicked between its changes";
            self.shared.abort(&Error::corrupt("journal", why));
        }
        if !self.last {
            self.shared.leave(self.used, self.credits);
        }
        if self.sync {
            // Who wants to know asks the journal: it has been given up then.
            let _ = self.shared.commit(self.tid);
        }
    }
}
