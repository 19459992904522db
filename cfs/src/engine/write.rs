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
mod inline;
mod inode;
mod link;
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
use crate::disk::features::{Compat, RoCompat};
use crate::disk::inode::{Inode, InodeFlags};
use crate::disk::time::Timestamp;
use crate::engine::Volume;
use crate::id::Ino;
use crate::journal::{Handle, Journal, JournalOptions, mark};
use crate::{Error, Result, limits};

pub(crate) use inline::ALL;
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

/// When contents of files become durable beside the metadata that lead to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DataMode {
    /// In place, and before the metadata.
    #[default]
    Ordered,
    /// Through the journal, in the order in which all else is changed.
    Journal,
    /// In place, at any time. Served as [`Self::Ordered`], which costs nothing more here.
    Writeback,
}

/// What is done when metadata turn out to be corrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// It is noted in the superblock.
    Continue,
    /// And nothing is changed any more.
    ReadOnly,
}

/// When the time of the last reading is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AccessTimes {
    /// When it is not newer than the last change, or older than a day.
    #[default]
    Relative,
    /// At each reading.
    Strict,
    /// Not at all.
    Never,
}

/// Seconds after which a time of reading is renewed anyway.
const A_DAY: i64 = 24 * 3600;

impl AccessTimes {
    /// Whether somebody who reads at `now` changes the time of what was last read, changed in its
    /// contents, and changed at all at these times.
    #[must_use]
    pub fn is_due(self, [read, contents, all]: [Timestamp; 3], now: Timestamp) -> bool {
        match self {
            Self::Never => false,
            Self::Strict => read != now,
            Self::Relative => {
                read <= contents || read <= all || now.seconds - read.seconds >= A_DAY
            }
        }
    }
}

/// How a volume is written.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// What is done about corrupt metadata, if not what the superblock says.
    pub on_error: Option<OnError>,
    /// When reading changes something.
    pub access_times: AccessTimes,
    /// Directories are left out of that.
    pub no_dir_times: bool,
    /// Each change of files and directories is durable when it is answered.
    pub sync: bool,
    /// Each change of directories is.
    pub dir_sync: bool,
    /// Blocks that are freed are discarded.
    pub discard: bool,
    /// What becomes of contents.
    pub data: DataMode,
    /// How its journal is kept.
    pub journal: JournalOptions,
    /// Inodes kept in memory while nobody uses them.
    pub live_inodes: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            on_error: None,
            access_times: AccessTimes::default(),
            no_dir_times: false,
            sync: false,
            dir_sync: false,
            discard: false,
            data: DataMode::default(),
            journal: JournalOptions::default(),
            live_inodes: limits::LIVE_INODES,
        }
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
    /// Orphans that were there already.
    kept: Mutex<Vec<Arc<Cell>>>,
    /// Entries of a new node of an extent tree: as many as its block has room for, but in tests.
    node_entries: usize,
    /// Whether the volume says that it has files over 2 GiB.
    large_file: AtomicBool,
    options: WriterOptions,
}

impl Writer {
    /// Opens a volume for writing. Its journal has been replayed, and its orphans are cleared or
    /// kept ([`Self::take_kept`]).
    ///
    /// # Errors
    /// When its features, its storage or its journal do not allow that; nothing has changed then.
    pub fn open(volume: Arc<Volume>, options: &WriterOptions) -> Result<Arc<Self>> {
        let superblock = volume.superblock();
        if options.data == DataMode::Journal {
            if !superblock.features.compat.contains(Compat::HAS_JOURNAL) {
                let why = "data=journal: the volume has no journal; leave the option away, or make \
                           one: tune2fs -j";
                return Err(Error::Invalid(why.into()));
            }
            volume.journal_data();
        }
        let orphans = Orphans::open(&volume)?;
        let node_entries = capacity(superblock.block_size);
        let large_file = superblock.features.ro_compat.contains(RoCompat::LARGE_FILE);
        let space = Space::open(&volume)?;
        let journal = Journal::open(&volume, &options.journal)?;
        space.attach(&journal);
        space.set_discard(options.discard && volume.source().can_discard());
        let writer = Arc::new(Self {
            live: Table::new(options.live_inodes),
            orphans: Mutex::new(orphans),
            renames: Mutex::new(()),
            values: Values::default(),
            kept: Mutex::default(),
            node_entries,
            large_file: AtomicBool::new(large_file),
            options: options.clone(),
            volume,
            journal,
            space,
        });
        *writer.kept.lock() = writer.keep_orphans()?;
        Ok(writer)
    }

    /// Inodes without names that a recovery has kept for those who may have them open: each is held
    /// once, until it is released. They are given once.
    pub fn take_kept(&self) -> Vec<Arc<Cell>> {
        std::mem::take(&mut *self.kept.lock())
    }

    /// How the volume is written.
    pub fn options(&self) -> &WriterOptions {
        &self.options
    }

    /// Whether changes of an inode are to be durable when they are answered.
    pub fn is_sync(&self, inode: &Inode) -> bool {
        self.options.sync || inode.flags.contains(InodeFlags::SYNC)
    }

    /// Whether changes of a directory's names are.
    pub(crate) fn is_dir_sync(&self, dir: &Inode) -> bool {
        let flags = InodeFlags::SYNC | InodeFlags::DIRSYNC;
        self.options.sync || self.options.dir_sync || dir.flags.intersects(flags)
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

    /// Metadata are corrupt that an inode needs: noted in the superblock, and perhaps nothing is
    /// changed any more. For who holds neither handles nor locks.
    pub fn found_corrupt(&self, ino: Ino, error: &Error) {
        let said = match self.volume.superblock().on_error {
            CONTINUE => OnError::Continue,
            _ => OnError::ReadOnly,
        };
        if self.options.on_error.unwrap_or(said) == OnError::ReadOnly {
            return self.journal.abort_for(error, ino);
        }
        // A journal that was given up has an error noted already.
        let Ok(mut handle) = self.begin(1) else { return };
        let _orphans = self.orphans.lock();
        let noted =
            self.edit_superblock(&mut handle, |raw| mark::note_error(raw, error, Some(ino)));
        // The next one is noted, perhaps.
        drop(noted);
    }

    /// Begins an operation that changes at most `credits` blocks.
    pub fn begin(&self, credits: u32) -> Result<Handle<'_>> {
        self.journal.begin(credits)
    }
}

/// What the superblock calls [`OnError::Continue`].
const CONTINUE: u16 = 1;

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
