//! The inodes in use, by number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Live, Writer};
use crate::Result;
use crate::disk::inode::Inode;
use crate::id::Ino;
use crate::journal::Handle;
use crate::journal::format::Tid;

/// An inode in use: lock 2 of docs/writing.md, and who holds it.
pub struct Cell {
    ino: Ino,
    live: RwLock<Live>,
    /// Who holds it without its lock: look-ups and open files.
    holds: AtomicU32,
}

impl Cell {
    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// For who looks.
    pub fn read(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read()
    }

    /// For who looks and must not wait.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, Live>> {
        self.live.try_read()
    }

    /// For who changes.
    pub fn write(&self) -> RwLockWriteGuard<'_, Live> {
        // Who has the lock has it for microseconds, mostly, and being woken takes as long: who
        // writes a file in sequence meets who writes it back again and again.
        for _ in 0..SPINS {
            if !self.live.is_locked()
                && let Some(live) = self.live.try_write()
            {
                return live;
            }
            std::hint::spin_loop();
        }
        self.live.write()
    }

    /// Keeps the inode though it may lose its last name, until as many calls of
    /// [`Writer::release`]. Called with the directory locked in which its name was found, or by who
    /// holds it already.
    pub fn hold(&self, count: u32) {
        self.holds.fetch_add(count, Ordering::Relaxed);
    }

    /// How often it is held. Exact only under the locks of all that could lead to it.
    pub fn holds(&self) -> u32 {
        self.holds.load(Ordering::Acquire)
    }

    /// Takes holds back; returns whether it was the last one.
    pub(super) fn let_go(&self, count: u32) -> bool {
        self.holds.fetch_sub(count, Ordering::AcqRel) == count
    }
}

/// The cells, in shards, and a clock over those that nobody uses.
pub(crate) struct Table {
    shards: Box<[Mutex<Shard>]>,
    /// Cells of one shard before some are let go.
    capacity: usize,
}

#[derive(Default)]
struct Shard {
    cells: HashMap<u32, Arc<Cell>>,
    /// Numbers in the order in which they are looked at; some have no cell any more.
    ring: Vec<u32>,
    hand: usize,
    /// Counts the cells that went: what was read of an inode before may be old.
    changes: u64,
}

/// Looks at a lock that somebody has before one sleeps, of some 20 to 40 ns each.
const SPINS: usize = 1000;

const SHARDS: usize = 32;
/// Cells looked at for each that comes.
const LOOKS: usize = 4;

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, capacity: (capacity / SHARDS).max(8) }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// All cells there are.
    pub(super) fn all(&self) -> Vec<Arc<Cell>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().cells.values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Its number may be given back now.
    pub(super) fn remove(&self, ino: Ino) {
        let mut shard = self.shard(ino).lock();
        shard.cells.remove(&ino.0);
        shard.changes += 1;
    }
}

impl Shard {
    fn insert(&mut self, cell: Arc<Cell>, capacity: usize, committed: impl Fn() -> Tid) {
        if self.ring.len() >= capacity {
            self.evict(committed());
        }
        let ino = cell.ino.0;
        if self.cells.insert(ino, cell).is_none() {
            self.ring.push(ino);
        }
    }

    /// Lets cells go that nobody has and whose inodes are as they are on disk.
    fn evict(&mut self, committed: Tid) {
        for _ in 0..LOOKS.min(self.ring.len()) {
            self.hand %= self.ring.len();
            let ino = self.ring[self.hand];
            let idle = self.cells.get(&ino).is_none_or(|cell| {
                // Nobody can come by it but through this shard, which is locked.
                Arc::strong_count(cell) == 1
                    && cell.holds() == 0
                    && cell.live.try_read().is_some_and(|live| live.is_idle(committed))
            });
            if idle {
                self.cells.remove(&ino);
                self.ring.swap_remove(self.hand);
                self.changes += 1;
            } else {
                self.hand += 1;
            }
            if self.ring.is_empty() {
                break;
            }
        }
    }
}

impl Writer {
    /// An inode that has names, or has a holder.
    ///
    /// # Errors
    /// [`crate::Error::Stale`] when it has neither, and whatever reading it gives.
    pub fn live(&self, ino: Ino) -> Result<Arc<Cell>> {
        let shard = self.live.shard(ino);
        loop {
            let changes = {
                let shard = shard.lock();
                if let Some(cell) = shard.cells.get(&ino.0) {
                    return Ok(cell.clone());
                }
                shard.changes
            };
            // Read without the lock; without a cell nobody changes it.
            let live = Live::load(self, ino, self.journal.committed())?;
            let mut shard = shard.lock();
            if let Some(cell) = shard.cells.get(&ino.0) {
                return Ok(cell.clone());
            }
            if shard.changes == changes {
                let cell = Arc::new(Cell { ino, live: RwLock::new(live), holds: 0.into() });
                shard.insert(cell.clone(), self.live.capacity, || self.journal.committed());
                return Ok(cell);
            }
        }
    }

    /// Brings the orphans to life that a recovery has kept, each held once.
    pub(super) fn keep_orphans(&self) -> Result<Vec<Arc<Cell>>> {
        let listed = self.orphans.lock().listed();
        let keep = |ino: Ino| {
            let live = Live::load_listed(self, ino, self.journal.committed())?;
            let cell = Arc::new(Cell { ino, live: RwLock::new(live), holds: 1.into() });
            let mut shard = self.live.shard(ino).lock();
            shard.insert(cell.clone(), self.live.capacity, || self.journal.committed());
            Ok(cell)
        };
        listed.into_iter().map(keep).collect()
    }

    /// Brings a new inode to life, whose number this handle has taken, and stores it.
    ///
    /// # Errors
    /// When its table cannot be read; the journal has been given up then.
    pub fn adopt(&self, handle: &mut Handle<'_>, inode: Inode) -> Result<Arc<Cell>> {
        let ino = inode.ino;
        let mut live = Live::fresh(self, inode, handle.tid())?;
        self.store_new(handle, &mut live)?;
        let cell = Arc::new(Cell { ino, live: RwLock::new(live), holds: AtomicU32::new(0) });
        let mut shard = self.live.shard(ino).lock();
        shard.insert(cell.clone(), self.live.capacity, || self.journal.committed());
        Ok(cell)
    }
}
