//! Which blocks and inodes are free.
//!
//! The newest state of a group (its counts, and its bitmaps once somebody needed them) is kept in
//! memory, under a lock for each group. Three steps lie between a block that is free and one that
//! is a file's: [`Space::reserve`] promises that there will be one, [`Space::claim`] chooses it in
//! memory, and [`Claim::commit`] puts it into the bitmap. Blocks that a transaction frees can be
//! claimed when it has committed.
//!
//! Bitmaps and descriptors go into a transaction when it changes them first, and once more when it
//! is locked, should it have changed them further: nobody reads them but through this module.

mod blocks;
mod claim;
mod group;
mod hook;
mod inodes;
mod load;
mod placement;
mod runs;
mod trim;
mod window;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

pub use claim::Claim;

use crate::disk::features::RoCompat;
use crate::disk::superblock::Superblock;
use crate::engine::{StatFs, Volume};
use crate::id::{Block, Ino};
use crate::journal::{self, CommitHook, Journal};
use crate::{Caller, Error, Result, limits};
use group::Group;
use hook::Freed;
use window::Windows;

/// The free blocks and inodes of a volume that is open for writing.
///
/// All methods may be called at once from any number of threads. Locks are taken below a handle;
/// nothing here waits for another handle, but [`Space::reserve`] and [`Space::reclaim`] may wait
/// for a commit.
pub struct Space {
    volume: Arc<Volume>,
    groups: Box<[Group]>,
    /// Blocks that can be claimed, less those that were promised.
    unpromised: AtomicI64,
    /// Blocks that are free in the bitmaps.
    free_on_disk: AtomicU64,
    /// Blocks freed by transactions that have not committed.
    pending: AtomicU64,
    free_inodes: AtomicU64,
    used_dirs: AtomicU64,
    /// Blocks freed, in the order of their transactions.
    freed: Mutex<Vec<Freed>>,
    /// Groups that the running transaction has changed.
    changed: Mutex<Vec<u32>>,
    windows: Windows,
    problems: Mutex<Vec<Error>>,
    /// Spreads directories below the root.
    spread: AtomicU32,
    /// Groups whose bitmaps are in memory.
    loaded: AtomicU32,
    /// Where the search for a bitmap to let go was last.
    hand: AtomicU32,
    /// Runs that are being discarded.
    trimming: AtomicU32,
    discard: AtomicBool,
    journal: OnceLock<Weak<Journal>>,
}

impl Space {
    /// The space of a volume: its descriptors at once, bitmaps when they are needed.
    ///
    /// # Errors
    /// When the volume's features or block size do not allow writing.
    pub fn open(volume: &Arc<Volume>) -> Result<Arc<Self>> {
        let superblock = volume.superblock();
        let refused = |feature: String| {
            let hint = ": the volume can only be read".into();
            Err(Error::Refused { feature, hint })
        };
        if superblock.features.ro_compat.contains(RoCompat::BIGALLOC) {
            return refused("bigalloc".into());
        }
        if superblock.block_size > limits::MAX_WRITE_BLOCK {
            return refused(format!("block size {}", superblock.block_size));
        }
        let descriptors = volume.groups();
        let groups: Box<[Group]> =
            descriptors.iter().map(|group| Group::new(group.as_ref(), superblock)).collect();
        let (mut blocks, mut inodes, mut dirs) = (0, 0, 0);
        for group in &groups {
            blocks += i64::from(group.free.load(Ordering::Relaxed));
            inodes += u64::from(group.free_inodes.load(Ordering::Relaxed));
            dirs += u64::from(group.used_dirs.load(Ordering::Relaxed));
        }
        let unknown = descriptors.iter().enumerate().filter(|(_, group)| group.is_none());
        let problems = unknown
            .take(limits::MAX_PROBLEMS)
            .map(|(number, _)| {
                Error::corrupt(format_args!("group {number}"), "has a corrupt descriptor")
            })
            .collect();
        Ok(Arc::new(Self {
            volume: Arc::clone(volume),
            groups,
            unpromised: AtomicI64::new(blocks),
            free_on_disk: AtomicU64::new(blocks as u64),
            pending: AtomicU64::new(0),
            free_inodes: AtomicU64::new(inodes),
            used_dirs: AtomicU64::new(dirs),
            freed: Mutex::default(),
            changed: Mutex::default(),
            windows: Windows::default(),
            problems: Mutex::new(problems),
            spread: AtomicU32::new(0),
            loaded: AtomicU32::new(0),
            hand: AtomicU32::new(0),
            trimming: AtomicU32::new(0),
            discard: AtomicBool::new(false),
            journal: OnceLock::new(),
        }))
    }

    /// Takes part in the journal's transactions, as it must before the first handle.
    pub fn attach(self: &Arc<Self>, journal: &Arc<Journal>) {
        // A second journal of one volume there is not.
        let _ = self.journal.set(Arc::downgrade(journal));
        journal.add_hook(Arc::clone(self) as Arc<dyn CommitHook>);
    }

    /// Whether freed blocks are discarded once their transaction has committed.
    pub fn set_discard(&self, discard: bool) {
        self.discard.store(discard, Ordering::Relaxed);
    }

    /// What was found to be corrupt since the last call: groups that are not used for it.
    pub fn take_problems(&self) -> Vec<Error> {
        std::mem::take(&mut *self.problems.lock())
    }

    /// Promises blocks to data that will be written later. What is held back for maps, and for the
    /// superuser, is not promised to others.
    ///
    /// Blocks of a map that can need more than a 100th of the data's (pointers of a sparse file)
    /// are to be reserved with the data. When it is short of blocks this waits for the commit of a
    /// transaction that has freed some, unless the thread has a handle.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when there are not so many.
    pub fn reserve(&self, blocks: u64, who: &Caller) -> Result<()> {
        if self.promise(blocks, who) {
            return Ok(());
        }
        let enough = i64::try_from(blocks).is_ok_and(|blocks| {
            let pending = self.pending.load(Ordering::Relaxed) as i64;
            self.unpromised.load(Ordering::Relaxed) + pending >= blocks + self.kept_from(who)
        });
        if !enough {
            return Err(Error::NoSpace);
        }
        // If nothing is pending any more, somebody else's commit has just brought it.
        self.reclaim()?;
        if self.promise(blocks, who) { Ok(()) } else { Err(Error::NoSpace) }
    }

    /// Takes back a promise, or what is left of it.
    pub fn release(&self, blocks: u64) {
        self.unpromised.fetch_add(blocks as i64, Ordering::Relaxed);
    }

    /// Commits what was done so far if blocks were freed by it; returns whether that was so. An
    /// operation that found no space is worth another attempt then. Does nothing in a thread that
    /// has a handle.
    ///
    /// # Errors
    /// When the journal was given up.
    pub fn reclaim(&self) -> Result<bool> {
        if journal::is_held() {
            return Ok(false);
        }
        let journal = self.journal.get().and_then(Weak::upgrade);
        let Some(journal) = journal.filter(|_| self.pending.load(Ordering::Relaxed) > 0) else {
            return Ok(false);
        };
        journal.commit(journal.running())?;
        Ok(true)
    }

    fn promise(&self, blocks: u64, who: &Caller) -> bool {
        let Ok(blocks) = i64::try_from(blocks) else { return false };
        self.take_unpromised(blocks, self.kept_from(who))
    }

    /// Takes so many blocks from those not promised if so many more are left.
    fn take_unpromised(&self, blocks: i64, left: i64) -> bool {
        let take = |free: i64| Some(free - blocks).filter(|rest| *rest >= left);
        self.unpromised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Blocks that are not promised to this caller.
    fn kept_from(&self, who: &Caller) -> i64 {
        let superblock = self.superblock();
        let reserved_for = who.privileged
            || who.uid == superblock.reserved_uid
            || (superblock.reserved_gid != 0 && who.gid == superblock.reserved_gid);
        let reserved = if reserved_for { 0 } else { superblock.reserved_blocks };
        (reserved + self.volume.held_back()) as i64
    }

    /// What statfs(2) tells now: what is reserved for data not yet written is in use, what was
    /// freed is free at once.
    pub fn statfs(&self) -> StatFs {
        let fixed = self.volume.statfs();
        let free = self.unpromised.load(Ordering::Relaxed).max(0) as u64
            + self.pending.load(Ordering::Relaxed);
        let kept = self.volume.kept_from_users();
        StatFs {
            free,
            available: free.saturating_sub(kept),
            free_inodes: self.free_inodes.load(Ordering::Relaxed),
            ..fixed
        }
    }

    /// Where the first block of an inode should be.
    pub fn goal(&self, ino: Ino, regular: bool) -> Block {
        let superblock = self.superblock();
        let group = placement::data_group(superblock, self.group_of(ino).0, regular);
        Block(superblock.group_start(group))
    }

    fn superblock(&self) -> &Superblock {
        self.volume.superblock()
    }

    /// The group of an inode, and its bit there. Numbers outside the volume count as the first.
    fn group_of(&self, ino: Ino) -> (u32, u32) {
        let superblock = self.superblock();
        let index = ino.0.saturating_sub(1);
        let index = if index < superblock.inodes_count { index } else { 0 };
        (index / superblock.inodes_per_group, index % superblock.inodes_per_group)
    }

    /// The group of a block, and its bit there. Numbers outside the volume count as the first.
    fn place(&self, block: Block) -> (u32, u32) {
        let superblock = self.superblock();
        let within = block.0.checked_sub(superblock.first_data_block.into());
        let within = within.filter(|_| block.0 < superblock.blocks_count).unwrap_or(0);
        let per_group = u64::from(superblock.blocks_per_group);
        ((within / per_group) as u32, (within % per_group) as u32)
    }

    /// Blocks of a group.
    fn group_len(&self, group: u32) -> u32 {
        let superblock = self.superblock();
        let rest = superblock.blocks_count - superblock.group_start(group);
        rest.min(superblock.blocks_per_group.into()) as u32
    }

    /// Remembers that something was found to be corrupt.
    fn report(&self, problem: Error) {
        let mut problems = self.problems.lock();
        if problems.len() < limits::MAX_PROBLEMS {
            problems.push(problem);
        }
    }
}

#[cfg(test)]
mod tests;
