//! The writer of a volume: inodes and what they map, inside handles of the journal.
//!
//! A [`Writer`] owns the journal, the allocator and the inodes that are in use, each as a [`Live`]
//! under its own lock. Functions that take a [`Handle`] change metadata and leave the volume as
//! consistent as the handle's end needs it; those that take none begin handles themselves, so their
//! callers have none. What the layers may assume of each other is in docs/writing.md.

mod acl;
mod attributes;
mod budget;
mod dir;
mod extents;
mod inode;
mod make;
mod map;
mod names;
mod orphans;
mod pointers;
mod remove;
mod rename;
mod setattr;
mod table;
mod truncate;
mod values;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use crate::alloc::Space;
use crate::disk::extent::edit::capacity;
use crate::disk::features::RoCompat;
use crate::disk::time::Timestamp;
use crate::engine::Volume;
use crate::journal::{Handle, Journal, JournalOptions};
use crate::{Error, Result, limits};

pub use inode::Live;
pub use make::New;
pub use names::{Effects, Report};
use orphans::Orphans;
pub use rename::{At, RenameFlags};
pub use setattr::{SetAttr, SetTime};
pub use table::Cell;
use table::Table;
pub use truncate::Allocate;
use values::Values;
pub use xattr::XattrFlags;

/// How a volume is written.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// How its journal is kept.
    pub journal: JournalOptions,
    /// Inodes kept in memory while nobody uses them.
    pub live_inodes: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { journal: JournalOptions::default(), live_inodes: limits::LIVE_INODES }
    }
}

/// A volume that is open for writing.
///
/// Dropped without [`Self::stop`] it leaves the volume as a crash would.
pub struct Writer {
    pub(crate) volume: Arc<Volume>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) space: Arc<Space>,
    pub(crate) live: Table,
    pub(crate) orphans: Mutex<Orphans>,
    renames: Mutex<()>,
    values: Values,
    /// Entries of a new node of an extent tree: as many as its block has room for, but in tests.
    node_entries: usize,
    /// Whether the volume says that it has files over 2 GiB.
    large_file: AtomicBool,
}

impl Writer {
    /// Opens a volume for writing. Its journal has been replayed and its orphans are cleared.
    ///
    /// # Errors
    /// When its features, its storage or its journal do not allow that; nothing has changed then.
    pub fn open(volume: Arc<Volume>, options: &WriterOptions) -> Result<Arc<Self>> {
        let superblock = volume.superblock();
        if superblock.last_orphan.is_some() {
            return Err(Error::NeedsRecovery);
        }
        let orphans = Orphans::open(&volume)?;
        let node_entries = capacity(superblock.block_size);
        let large_file = superblock.features.ro_compat.contains(RoCompat::LARGE_FILE);
        let space = Space::open(&volume)?;
        let journal = Journal::open(&volume, &options.journal)?;
        space.attach(&journal);
        Ok(Arc::new(Self {
            live: Table::new(options.live_inodes),
            orphans: Mutex::new(orphans),
            renames: Mutex::new(()),
            values: Values::default(),
            node_entries,
            large_file: AtomicBool::new(large_file),
            volume,
            journal,
            space,
        }))
    }

    /// The volume, to read it: what handles have changed is seen.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// What is free.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Locks out other moves of directories to other directories: lock 1 of docs/writing.md.
    pub fn lock_renames(&self) -> MutexGuard<'_, ()> {
        self.renames.lock()
    }

    /// Ends writing: inodes without names go, whoever holds them; then everything is brought home.
    /// Contents that are not written back yet are lost, and nobody else uses the writer any more.
    ///
    /// # Errors
    /// When the storage fails; the volume is then as after a crash.
    pub fn stop(&self) -> Result<()> {
        self.reap_all()?;
        self.journal.stop()
    }

    /// Begins an operation that changes at most `credits` blocks.
    pub fn begin(&self, credits: u32) -> Result<Handle<'_>> {
        self.journal.begin(credits)
    }
}

/// The time for the fields of inodes.
pub fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => {
            Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
        }
        Err(_) => Timestamp::default(),
    }
}

#[cfg(test)]
mod tests;

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Writer>();
};
