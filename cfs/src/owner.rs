//! The owner's side of a volume: it alone uses the device, publishes what it has cached, answers
//! what the others miss and makes the changes that they ask for.

mod again;
mod ahead;
mod answer;
mod dirty;
mod flusher;
mod frames;
mod holds;
mod names;
mod pages;
mod set;
mod show;
mod sync;
mod trouble;
mod write;
mod writeback;

use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::PageRef;
use oslet::region::{Lines, Rw};
use oslet::sync::AtomicU64;
use parking_lot::Mutex;

use crate::cache::{InodeTable, NameIndex, PageIndex, Sizes, kind};
use crate::engine::Volume;
use crate::engine::write::Writer;
use crate::{Error, Result};

use ahead::Ahead;
pub use answer::Answer;
use dirty::{Errors, Files};
use flusher::Flusher;
use frames::{Frames, States};
use holds::Holds;
use pages::Fills;

/// A volume that this OSlet owns.
pub struct Owner {
    object: u64,
    volume: Arc<Volume>,
    /// What changes it; none for a volume that is only read.
    writer: Option<Arc<Writer>>,
    arena: Arc<Arena>,
    pages: Mutex<PageIndex<Rw<AtomicU64>>>,
    /// The same as everybody reads it, without the lock.
    shown: PageIndex<Lines>,
    inodes: Mutex<InodeTable<Rw<AtomicU64>>>,
    names: Mutex<Names>,
    frames: Mutex<Frames>,
    states: States,
    fills: Fills,
    files: Files,
    errors: Errors,
    flusher: Arc<Flusher>,
    holds: Holds,
    ahead: Ahead,
    /// What holes are linked to.
    zeros: PageRef,
}

struct Names {
    short: NameIndex<Rw<AtomicU64>>,
    long: NameIndex<Rw<AtomicU64>>,
}

impl Owner {
    /// Publishes the empty tables of volume number `object`, which is only read; `frames` of the
    /// arena at most are used for its pages.
    pub fn new(
        arena: &Arc<Arena>,
        object: u64,
        volume: Volume,
        frames: usize,
    ) -> Result<Arc<Self>> {
        Self::readable(arena, object, Arc::new(volume), frames)
    }

    /// As [`Self::new`].
    pub(crate) fn readable(
        arena: &Arc<Arena>,
        object: u64,
        volume: Arc<Volume>,
        frames: usize,
    ) -> Result<Arc<Self>> {
        Self::with(arena, object, volume, None, frames)
    }

    /// The same for a volume that is written too.
    pub fn writable(
        arena: &Arc<Arena>,
        object: u64,
        writer: Arc<Writer>,
        frames: usize,
    ) -> Result<Arc<Self>> {
        let volume = Arc::clone(writer.volume());
        let owner = Self::with(arena, object, volume, Some(writer), frames)?;
        owner.end_waiting();
        Ok(owner)
    }

    /// The same for a volume that was taken over from an owner that has died: who had inodes open
    /// there can go on holding them, for [`crate::limits::RENEWAL_WAIT`] those without names too.
    pub fn successor(
        arena: &Arc<Arena>,
        object: u64,
        writer: Arc<Writer>,
        frames: usize,
    ) -> Result<Arc<Self>> {
        let volume = Arc::clone(writer.volume());
        let owner = Self::with(arena, object, volume, Some(writer), frames)?;
        owner.await_holders()?;
        Ok(owner)
    }

    fn with(
        arena: &Arc<Arena>,
        object: u64,
        volume: Arc<Volume>,
        writer: Option<Arc<Writer>>,
        frames: usize,
    ) -> Result<Arc<Self>> {
        let sizes = Sizes::of(frames);
        let own = arena.region().own();
        let table = |kind: u64, len: usize| -> Result<Rw<AtomicU64>> {
            let table = own.publish_table(kind, len, 64, object)?;
            Ok(own.words_mut(table.offset, len / 8)?)
        };
        let zeros = arena.alloc()?;
        let zeros = {
            let mut zeros = zeros;
            zeros.bytes()?.fill().fill(0);
            zeros.publish()
        };
        let small = || Error::Invalid(format!("{frames} frames are too few for a volume"));
        let pages = own.publish_table(kind::PAGES, sizes.pages, 64, object)?;
        let me = arena.region().segment(own.participant());
        let me = me.ok_or_else(|| Error::Invalid("the own segment is not mapped".into()))?;
        let shown = me.words(pages.offset, pages.len / 8)?.lines().ok_or_else(small)?;
        let pages = PageIndex::new(own.words_mut(pages.offset, pages.len / 8)?, pages.len);
        let pages = pages.ok_or_else(small)?;
        let inodes = InodeTable::new(table(kind::INODES, sizes.inodes)?, sizes.inodes);
        let inodes = inodes.ok_or_else(small)?;
        let short = table(kind::SHORT_NAMES, sizes.short_names)?;
        let long = table(kind::LONG_NAMES, sizes.long_names)?;
        let names = Names {
            short: NameIndex::new(short, sizes.short_names, false).ok_or_else(small)?,
            long: NameIndex::new(long, sizes.long_names, true).ok_or_else(small)?,
        };
        let written = if writer.is_some() { own.frames() } else { 0 };
        let kept = writer.as_ref().map(|writer| writer.take_kept()).unwrap_or_default();
        let owner = Arc::new(Self {
            object,
            volume,
            writer,
            arena: Arc::clone(arena),
            pages: Mutex::new(pages),
            shown: PageIndex::read(shown),
            inodes: Mutex::new(inodes),
            names: Mutex::new(names),
            frames: Mutex::new(Frames::new(own.frames(), frames)),
            states: States::new(written),
            fills: Fills::default(),
            files: Files::default(),
            errors: Errors::default(),
            flusher: Arc::new(Flusher::new(frames)),
            holds: Holds::waiting_for(kept),
            ahead: Ahead::new(),
            zeros,
        });
        Ahead::start(&owner)?;
        if owner.writer.is_some() {
            Flusher::start(&owner)?;
        }
        Ok(owner)
    }

    /// The volume's object number.
    pub fn object(&self) -> u64 {
        self.object
    }

    /// Whether the volume was opened to be changed.
    pub fn is_writable(&self) -> bool {
        self.writer.is_some()
    }

    /// The engine underneath.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Frames in use by the volume, and how many it may use.
    pub fn usage(&self) -> (usize, usize) {
        self.frames.lock().usage()
    }

    /// What changes the volume.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] where nothing does, or nothing any more.
    fn writer(&self) -> Result<&Arc<Writer>> {
        let writer = self.writer.as_ref().ok_or(Error::ReadOnly)?;
        if writer.journal().is_aborted() { Err(Error::ReadOnly) } else { Ok(writer) }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // The thread that drops the last reference may be one of them.
        self.flusher.end();
    }
}
