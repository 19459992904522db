//! Storage that loses power.

use std::sync::Arc;

use cfs::engine::store::{BlockSource, MemSource, Overlay};
use cfs::{Error, Result};
use std::sync::Mutex;

/// What a write did: its place and its bytes.
type Written = (u64, Vec<u8>);

/// A source that works for so many writes and flushes, and then fails each.
pub struct Failing {
    disk: Arc<dyn BlockSource>,
    state: Mutex<State>,
}

struct State {
    left: u64,
    done: u64,
    pending: Vec<Written>,
}

impl Failing {
    /// A disk with the bytes of `base`, which stays as it is.
    #[must_use]
    pub fn new(base: &Arc<MemSource>, left: u64) -> Self {
        let disk: Arc<dyn BlockSource> = Arc::new(Overlay::new(base.clone()));
        Self { disk, state: Mutex::new(State { left, done: 0, pending: Vec::new() }) }
    }

    /// Writes and flushes that were done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.lock().done
    }

    /// What the disk holds after the power came back: of the writes after the last flush those for
    /// which `kept` says so.
    pub fn after(&self, mut kept: impl FnMut() -> bool) -> Result<Arc<dyn BlockSource>> {
        for (offset, data) in std::mem::take(&mut self.lock().pending) {
            if kept() {
                self.disk.write_at(offset, &data)?;
            }
        }
        Ok(self.disk.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn step(state: &mut State) -> Result<()> {
        state.left = state.left.checked_sub(1).ok_or_else(|| Error::Io {
            what: "disk".into(),
            source: std::io::Error::other("no power"),
        })?;
        state.done += 1;
        Ok(())
    }
}

impl BlockSource for Failing {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let state = self.lock();
        self.disk.read_at(offset, buf)?;
        for (start, data) in &state.pending {
            let (from, to) =
                (offset.max(*start), (offset + buf.len() as u64).min(start + data.len() as u64));
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&data[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        Self::step(&mut state)?;
        state.pending.push((offset, data.to_vec()));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.lock();
        Self::step(&mut state)?;
        for (offset, data) in std::mem::take(&mut state.pending) {
            self.disk.write_at(offset, &data)?;
        }
        Ok(())
    }
}
