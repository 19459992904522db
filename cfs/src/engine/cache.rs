//! Metadata blocks in memory, within a budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::Result;
use crate::id::{Block, Ino};

/// What a block was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Extents = 1,
    Directory,
    Index,
    Xattrs,
}

/// A block's bytes, and as what they were checked last.
pub(crate) struct CachedBlock {
    pub(crate) bytes: Box<[u8]>,
    /// A role and the inode in whose service it was checked; 0 for never. A block that two inodes
    /// claim is checked at each change between them, and is wrong for one.
    checked: AtomicU64,
}

impl CachedBlock {
    /// Runs `check` unless the block passed it before, in the same role for the same inode.
    pub(crate) fn check(
        &self,
        role: Role,
        ino: Ino,
        check: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let token = (role as u64) << 32 | u64::from(ino.0);
        // The bytes never change, so the word publishes nothing but itself.
        if self.checked.load(Ordering::Relaxed) != token {
            check(&self.bytes)?;
            self.checked.store(token, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Blocks under a budget, evicted by a clock; in shards, each under a lock of its own.
pub(crate) struct BlockCache {
    shards: Box<[Mutex<Shard>]>,
    /// Blocks of one shard.
    capacity: usize,
}

#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    places: HashMap<u64, usize>,
    hand: usize,
}

struct Slot {
    key: u64,
    block: Arc<CachedBlock>,
    used: bool,
}

const SHARDS: usize = 16;

impl BlockCache {
    /// A cache for `bytes` bytes of blocks, a few at least.
    pub(crate) fn new(bytes: usize, block_size: u32) -> Self {
        let capacity = (bytes / block_size as usize / SHARDS).max(4);
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), capacity }
    }

    /// The block, read by `read` unless it is here.
    pub(crate) fn get(
        &self,
        block: Block,
        read: impl FnOnce() -> Result<Box<[u8]>>,
    ) -> Result<Arc<CachedBlock>> {
        // Neighbours spread over the shards.
        let shard = &self.shards[block.0 as usize % SHARDS];
        if let Some(found) = shard.lock().find(block.0) {
            return Ok(found);
        }
        // Read without the lock. If two do, the first to come back is kept.
        let fresh = Arc::new(CachedBlock { bytes: read()?, checked: AtomicU64::new(0) });
        let mut shard = shard.lock();
        if let Some(found) = shard.find(block.0) {
            return Ok(found);
        }
        shard.insert(block.0, fresh.clone(), self.capacity);
        Ok(fresh)
    }
}

impl Shard {
    fn find(&mut self, key: u64) -> Option<Arc<CachedBlock>> {
        let slot = &mut self.slots[*self.places.get(&key)?];
        slot.used = true;
        Some(slot.block.clone())
    }

    fn insert(&mut self, key: u64, block: Arc<CachedBlock>, capacity: usize) {
        let slot = Slot { key, block, used: false };
        if self.slots.len() < capacity {
            self.places.insert(key, self.slots.len());
            self.slots.push(slot);
            return;
        }
        // Ends within two rounds: the first clears every mark.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % capacity;
        }
        self.places.remove(&self.slots[self.hand].key);
        self.places.insert(key, self.hand);
        self.slots[self.hand] = slot;
        self.hand = (self.hand + 1) % capacity;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_budget_holds_and_used_blocks_stay() {
        let cache = BlockCache::new(SHARDS * 8 * 1024, 1024);
        let reads = Cell::new(0);
        let get = |block: u64| {
            let read = || {
                reads.set(reads.get() + 1);
                Ok(block.to_le_bytes().into())
            };
            let found = cache.get(Block(block), read).unwrap();
            assert_eq!(found.bytes[..], block.to_le_bytes());
        };
        for block in 0..10_000 {
            get(block);
            get(0);
        }
        assert_eq!(reads.get(), 10_000, "block 0 was read again although it was in use");
        let held: usize = cache.shards.iter().map(|shard| shard.lock().slots.len()).sum();
        assert_eq!(held, SHARDS * 8);
    }

    #[test]
    fn a_check_is_done_once_for_each_claim() {
        let cache = BlockCache::new(0, 1024);
        let block = cache.get(Block(1), || Ok(Box::new([0]))).unwrap();
        let checks = Cell::new(0);
        let check = |role, ino| {
            block.check(role, Ino(ino), |_| {
                checks.set(checks.get() + 1);
                Ok(())
            })
        };
        check(Role::Extents, 12).unwrap();
        check(Role::Extents, 12).unwrap();
        assert_eq!(checks.get(), 1);
        check(Role::Extents, 13).unwrap();
        check(Role::Directory, 13).unwrap();
        assert_eq!(checks.get(), 3);
    }
}
