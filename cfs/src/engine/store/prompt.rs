//! Work that is only done if it need not wait for storage.
//!
//! A thread that serves many cannot wait for one volume's device. It tries [`promptly`]; what would
//! wait is refused in the middle and done again by a thread that may.

use std::cell::Cell;

use oslet::id::PageRef;

use super::{BlockSource, PageWrite};
use crate::{Error, Result};

/// What this thread does about an operation that has to wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Waits,
    Refuses,
    HasRefused,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Waits) };
}

/// Gives the thread back as it was, however the work ended.
struct Restore(Mode);

impl Drop for Restore {
    fn drop(&mut self) {
        MODE.set(self.0);
    }
}

/// What `work` comes to if it uses nothing but what is in memory. `None` when it wanted a volume's
/// storage: whatever it made of the refusal counts for nothing then, and it is to be done again.
pub fn promptly<T>(work: impl FnOnce() -> T) -> Option<T> {
    let _restore = Restore(MODE.replace(Mode::Refuses));
    let done = work();
    (MODE.get() == Mode::Refuses).then_some(done)
}

/// Storage that does not keep a thread waiting that works [`promptly`].
pub(crate) struct Prompt<S>(pub(crate) S);

/// Goes before every wait for storage, and before every wait for a lock that others hold while they
/// wait for storage.
///
/// # Errors
/// For who works [`promptly`], whose attempt has failed then.
pub fn may_wait() -> Result<()> {
    if MODE.get() == Mode::Waits {
        return Ok(());
    }
    MODE.set(Mode::HasRefused);
    Err(Error::WouldWait)
}

impl<S: BlockSource> BlockSource for Prompt<S> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        may_wait()?;
        self.0.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        self.0.is_writable()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        may_wait()?;
        self.0.write_at(offset, data)
    }

    fn write_many(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        may_wait()?;
        self.0.write_many(writes)
    }

    fn write_unit(&self) -> u32 {
        self.0.write_unit()
    }

    fn flush(&self) -> Result<()> {
        may_wait()?;
        self.0.flush()
    }

    fn can_discard(&self) -> bool {
        self.0.can_discard()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        may_wait()?;
        self.0.discard(offset, len)
    }

    fn write_pages(&self, writes: Vec<PageWrite>) -> Vec<Result<()>> {
        // Nothing is written on a thread that must not wait.
        self.0.write_pages(writes)
    }

    fn read_pages(&self, offset: u64, pages: usize) -> Result<Option<Vec<PageRef>>> {
        may_wait()?;
        self.0.read_pages(offset, pages)
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemSource;
    use super::*;

    #[test]
    fn only_what_needs_no_storage_is_done() {
        let storage = Prompt(MemSource::new(vec![7; 10]));
        let first = || {
            let mut byte = [0];
            storage.read_at(0, &mut byte).map(|()| byte[0])
        };
        assert_eq!(promptly(|| 3), Some(3));
        assert!(promptly(first).is_none());
        assert!(promptly(|| first().unwrap_or(1)).is_none(), "an error that is passed over");
        assert!(promptly(|| storage.write_at(0, &[1])).is_none());
        assert!(promptly(|| storage.flush()).is_none());
        assert!(promptly(|| storage.read_pages(0, 1)).is_none());
        // Behind it, and behind a panic, the thread waits again.
        let panicked = std::panic::catch_unwind(|| promptly(|| panic!("in the middle")));
        assert!(panicked.is_err());
        assert_eq!(first().unwrap(), 7);
    }
}
