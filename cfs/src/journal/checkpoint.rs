//! Brings committed versions home, so that their transactions can leave the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::format::Tid;
use super::log::{Log, Tail};
use super::transaction::Shared;
use crate::engine::cache::{CachedBlock, Changes};
use crate::id::Block;
use crate::{Result, limits};

/// Committed transactions that are still needed for a replay.
pub(super) struct Pending {
    /// Where the transaction after the newest one begins, whether it is being written or not.
    next: Tail,
    /// Oldest first.
    transactions: VecDeque<Committed>,
    /// The newest committed version of each block that is not at home.
    versions: HashMap<Block, (Tid, Arc<CachedBlock>)>,
}

/// A transaction in the log.
struct Committed {
    tail: Tail,
    /// Blocks of the log that it takes.
    blocks: u32,
    /// What it changed.
    homes: Vec<Block>,
}

impl Pending {
    pub(super) fn new(next: Tail) -> Self {
        Self { next, transactions: VecDeque::new(), versions: HashMap::new() }
    }

    /// The oldest transactions that take `wanted` blocks of the log, or all.
    fn oldest(&self, wanted: u32) -> Batch {
        let mut batch = Batch { transactions: 0, blocks: 0, versions: Vec::new() };
        for transaction in &self.transactions {
            if batch.blocks >= wanted || batch.versions.len() >= MAX_BATCH {
                break;
            }
            batch.transactions += 1;
            batch.blocks += transaction.blocks;
            let tid = transaction.tail.tid;
            let mine = transaction.homes.iter().filter_map(|home| {
                let (newest, version) = self.versions.get(home)?;
                (*newest == tid).then(|| (*home, tid, version.clone()))
            });
            batch.versions.extend(mine);
        }
        batch.versions.sort_unstable_by_key(|(home, ..)| *home);
        batch
    }

    /// A batch is at home. Returns where the oldest transaction begins that is still needed.
    fn finish(&mut self, batch: &Batch) -> Tail {
        self.transactions.drain(..batch.transactions);
        for (home, tid, _) in &batch.versions {
            if self.versions.get(home).is_some_and(|(newest, _)| newest == tid) {
                self.versions.remove(home);
            }
        }
        self.transactions.front().map_or(self.next, |oldest| oldest.tail)
    }
}

/// What is brought home at once.
struct Batch {
    /// How many of the oldest transactions.
    transactions: usize,
    /// Blocks of the log that they take.
    blocks: u32,
    /// In order of their homes.
    versions: Vec<(Block, Tid, Arc<CachedBlock>)>,
}

impl Shared {
    /// Takes note of a transaction that is durable in the log.
    pub(super) fn note_committed(
        &self,
        (tail, next): (Tail, Tail),
        blocks: u32,
        changes: &Changes,
    ) {
        // Blocks revoked may be given new contents as soon as this transaction is known to be
        // durable: no older version may be on its way home then.
        let idle = (!changes.revoked.is_empty()).then(|| self.checkpointing.lock());
        let mut pending = self.pending.lock();
        for block in &changes.revoked {
            pending.versions.remove(block);
        }
        for (home, version) in &changes.versions {
            pending.versions.insert(*home, (tail.tid, version.clone()));
        }
        let homes = changes.versions.iter().map(|(home, _)| *home).collect();
        pending.transactions.push_back(Committed { tail, blocks, homes });
        pending.next = next;
        drop(idle);
    }

    fn has_pending(&self) -> bool {
        !self.pending.lock().transactions.is_empty()
    }

    /// What the thread does that brings versions home, until the journal stops.
    pub(super) fn run_checkpoints(&self, log: &Log) {
        let mut state = self.state.lock();
        while !state.stopping && state.aborted.is_none() {
            let dirty = self.volume.cache().dirty_blocks() << self.volume.superblock().block_bits;
            let crowded = state.free < log.blocks() / 2 || dirty > limits::MAX_DIRTY;
            // What is not committed yet cannot go home: whoever commits wakes this thread.
            if (state.room_wanted || crowded) && self.has_pending() {
                state.room_wanted = false;
                MutexGuard::unlocked(&mut state, || {
                    if let Err(error) = self.checkpoint(log, log.blocks() / 4) {
                        self.abort(&error, None);
                    }
                });
            } else {
                self.crowded.wait(&mut state);
            }
        }
    }

    /// Brings home all that is committed.
    pub(super) fn checkpoint_all(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        while self.has_pending() {
            self.checkpoint(log, u32::MAX)?;
        }
        Ok(())
    }

    /// Brings home a transaction and what was committed before it.
    pub(super) fn checkpoint_until(&self, tid: Tid) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let is_there = || {
            let pending = self.pending.lock();
            pending.transactions.front().is_some_and(|oldest| tid.at_least(oldest.tail.tid))
        };
        while is_there() {
            self.checkpoint(log, 1)?;
        }
        Ok(())
    }

    /// Brings home the oldest transactions that take `wanted` blocks of the log, or all.
    fn checkpoint(&self, log: &Log, wanted: u32) -> Result<()> {
        let alone = self.checkpointing.lock();
        self.state.lock().check_io()?;
        let batch = self.pending.lock().oldest(wanted);
        if batch.transactions == 0 {
            return Ok(());
        }
        self.write_home(
            batch.versions.iter().map(|(home, _, version)| (*home, &version.bytes[..])),
        )?;
        self.volume.source().flush()?;
        let tail = self.pending.lock().finish(&batch);
        log.set_tail(tail)?;
        for (home, tid, _) in &batch.versions {
            self.volume.cache().clean(*home, *tid);
        }
        self.state.lock().free += batch.blocks;
        self.changed.notify_all();
        drop(alone);
        Ok(())
    }

    /// Writes blocks, which come in order of their homes, in as few pieces as these allow.
    pub(super) fn write_home<'a>(
        &self,
        blocks: impl Iterator<Item = (Block, &'a [u8])>,
    ) -> Result<()> {
        let bits = self.volume.superblock().block_bits;
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        for (home, bytes) in blocks {
            let place = home.0 << bits;
            match pieces.last_mut() {
                Some((start, piece))
                    if *start + piece.len() as u64 == place && piece.len() < MAX_PIECE =>
                {
                    piece.extend_from_slice(bytes);
                }
                _ => pieces.push((place, bytes.to_vec())),
            }
        }
        let written: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        let pieces: Vec<_> = pieces.iter().map(|(start, piece)| (*start, &piece[..])).collect();
        self.volume.source().write_many(&pieces)
    }
}

/// Bytes that are written at once.
const MAX_PIECE: usize = 1 << 20;

/// Versions that are brought home between two moves of the log's tail: a transaction with
/// revocations waits for those.
const MAX_BATCH: usize = 1024;
