//! Metadata blocks in memory: those equal to their home within a budget, and the newest version of
//! each that a handle has changed.
//!
//! A block is *clean* while it equals what lies at its home; clean blocks are evicted by a clock.
//! It is *dirty* from its first change until a checkpoint has written its newest version home, and
//! stays in memory that long. A version that somebody else holds never changes: the next change
//! copies it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::Result;
use crate::id::{Block, Ino};
use crate::journal::format::Tid;

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
    fn new(bytes: Box<[u8]>) -> Self {
        Self { bytes, checked: AtomicU64::new(0) }
    }

    /// A version of its own with the same bytes.
    fn copy(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            checked: AtomicU64::new(self.checked.load(Ordering::Relaxed)),
        }
    }

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

/// Blocks in shards, each under a lock of its own.
pub(crate) struct BlockCache {
    shards: Box<[Mutex<Shard>]>,
    /// Clean blocks of one shard.
    capacity: usize,
    /// Dirty blocks of all shards.
    dirty: AtomicUsize,
}

/// What the handles of one transaction did: the newest versions in order of their homes, and the
/// blocks that were metadata and are free now.
pub(crate) struct Changes {
    pub(crate) versions: Vec<(Block, Arc<CachedBlock>)>,
    pub(crate) revoked: Vec<Block>,
}

#[derive(Default)]
struct Shard {
    clean: Clean,
    dirty: Map<Dirty>,
    /// Blocks that the running transaction changed; some more than once, some dirty no longer.
    changed: Vec<u64>,
    /// Blocks that the running transaction freed and did not create again.
    revoked: Map<()>,
    /// Counts what makes a block read from its home outdated.
    changes: u64,
}

#[derive(Default)]
struct Clean {
    slots: Vec<Slot>,
    places: Map<usize>,
    hand: usize,
}

/// A clean block.
struct Slot {
    key: u64,
    block: Arc<CachedBlock>,
    used: bool,
}

/// A block's newest version, and the last transaction that changed it.
struct Dirty {
    tid: Tid,
    block: Arc<CachedBlock>,
}

type Map<T> = HashMap<u64, T, BuildHasherDefault<BlockHasher>>;

/// Spreads block numbers; whoever chooses them owns the volume, and pays for collisions himself.
#[derive(Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        let product = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

const SHARDS: usize = 16;

impl BlockCache {
    /// A cache for `bytes` bytes of clean blocks, a few at least.
    pub(crate) fn new(bytes: usize, block_size: u32) -> Self {
        let capacity = (bytes / block_size as usize / SHARDS).max(4);
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, capacity, dirty: AtomicUsize::new(0) }
    }

    /// Neighbours spread over the shards.
    fn shard(&self, block: Block) -> &Mutex<Shard> {
        &self.shards[block.0 as usize % SHARDS]
    }

    /// The block's newest version, read by `read` unless it is here.
    pub(crate) fn get(
        &self,
        block: Block,
        read: impl Fn() -> Result<Box<[u8]>>,
    ) -> Result<Arc<CachedBlock>> {
        let shard = self.shard(block);
        let changes = {
            let mut shard = shard.lock();
            if let Some(found) = shard.find(block.0) {
                return Ok(found);
            }
            shard.changes
        };
        // Read without the lock. If two do, the first to come back is kept.
        let fresh = Arc::new(CachedBlock::new(read()?));
        let mut shard = shard.lock();
        if let Some(found) = shard.find(block.0) {
            return Ok(found);
        }
        // What was read may have been changed, written home and evicted since.
        let fresh =
            if shard.changes == changes { fresh } else { Arc::new(CachedBlock::new(read()?)) };
        shard.clean.insert(block.0, fresh.clone(), self.capacity);
        Ok(fresh)
    }

    /// The block's newest version, if that is not at its home.
    pub(crate) fn newer(&self, block: Block) -> Option<Arc<CachedBlock>> {
        let shard = self.shard(block).lock();
        shard.dirty.get(&block.0).map(|dirty| dirty.block.clone())
    }

    /// How many blocks differ from their homes.
    pub(crate) fn dirty_blocks(&self) -> usize {
        // A hint, and exact for who made the last change himself.
        self.dirty.load(Ordering::Relaxed)
    }

    /// Changes bytes within a block for transaction `tid`. Returns whether this is the
    /// transaction's first change of it; `None`, and nothing done, when the block is not here.
    pub(crate) fn put(&self, block: Block, tid: Tid, offset: usize, bytes: &[u8]) -> Option<bool> {
        let mut shard = self.shard(block).lock();
        let shard = &mut *shard;
        let (dirty, first) = match shard.dirty.entry(block.0) {
            Entry::Occupied(found) => {
                let found = found.into_mut();
                let first = found.tid != tid;
                (found, first)
            }
            Entry::Vacant(place) => {
                let clean = shard.clean.remove(block.0)?;
                self.dirty.fetch_add(1, Ordering::Relaxed);
                (place.insert(Dirty { tid, block: clean }), true)
            }
        };
        if first {
            dirty.tid = tid;
            shard.changed.push(block.0);
            shard.revoked.remove(&block.0);
            shard.changes += 1;
        }
        if Arc::get_mut(&mut dirty.block).is_none() {
            dirty.block = Arc::new(CachedBlock::copy(&dirty.block));
        }
        Arc::get_mut(&mut dirty.block)?.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        Some(first)
    }

    /// Sets the whole of a block for transaction `tid`; returns whether this is its first change.
    pub(crate) fn create(&self, block: Block, tid: Tid, bytes: Box<[u8]>) -> bool {
        let fresh = Arc::new(CachedBlock::new(bytes));
        let mut shard = self.shard(block).lock();
        shard.clean.remove(block.0);
        shard.revoked.remove(&block.0);
        let before = shard.dirty.insert(block.0, Dirty { tid, block: fresh });
        if before.is_none() {
            self.dirty.fetch_add(1, Ordering::Relaxed);
        }
        let first = before.is_none_or(|before| before.tid != tid);
        if first {
            shard.changed.push(block.0);
            shard.changes += 1;
        }
        first
    }

    /// The block is metadata no longer: its versions go, and older copies of it are revoked.
    pub(crate) fn forget(&self, block: Block) {
        let mut shard = self.shard(block).lock();
        shard.clean.remove(block.0);
        if shard.dirty.remove(&block.0).is_some() {
            self.dirty.fetch_sub(1, Ordering::Relaxed);
        }
        shard.revoked.insert(block.0, ());
        shard.changes += 1;
    }

    /// Drops a clean block, which others have written to its home.
    pub(crate) fn invalidate(&self, block: Block) {
        let mut shard = self.shard(block).lock();
        shard.clean.remove(block.0);
        shard.changes += 1;
    }

    /// What transaction `tid` did. It must be the only one that did anything since the last call,
    /// and nobody changes blocks meanwhile.
    pub(crate) fn take_changes(&self, tid: Tid) -> Changes {
        let mut changes = Changes { versions: Vec::new(), revoked: Vec::new() };
        for shard in &self.shards {
            let mut shard = shard.lock();
            let shard = &mut *shard;
            shard.changed.sort_unstable();
            shard.changed.dedup();
            for &key in &shard.changed {
                if let Some(dirty) = shard.dirty.get(&key).filter(|dirty| dirty.tid == tid) {
                    changes.versions.push((Block(key), dirty.block.clone()));
                }
            }
            shard.changed.clear();
            changes.revoked.extend(shard.revoked.drain().map(|(key, ())| Block(key)));
        }
        changes.versions.sort_unstable_by_key(|(block, _)| *block);
        changes.revoked.sort_unstable();
        changes
    }

    /// The version of transaction `tid` is at home; if it is the newest, the block is clean.
    pub(crate) fn clean(&self, block: Block, tid: Tid) {
        let mut shard = self.shard(block).lock();
        if !shard.dirty.get(&block.0).is_some_and(|dirty| dirty.tid == tid) {
            return;
        }
        if let Some(dirty) = shard.dirty.remove(&block.0) {
            self.dirty.fetch_sub(1, Ordering::Relaxed);
            shard.clean.insert(block.0, dirty.block, self.capacity);
        }
    }
}

impl Shard {
    fn find(&mut self, key: u64) -> Option<Arc<CachedBlock>> {
        if let Some(dirty) = self.dirty.get(&key) {
            return Some(dirty.block.clone());
        }
        let slot = &mut self.clean.slots[*self.clean.places.get(&key)?];
        slot.used = true;
        Some(slot.block.clone())
    }
}

impl Clean {
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

    /// Takes a clean block out.
    fn remove(&mut self, key: u64) -> Option<Arc<CachedBlock>> {
        let place = self.places.remove(&key)?;
        let slot = self.slots.swap_remove(place);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(moved.key, place);
        }
        Some(slot.block)
    }
}

#[cfg(test)]
mod tests;
