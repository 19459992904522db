//! The owner's side of a volume: it alone reads the device, publishes what it has cached, and
//! answers what the others miss.

mod ahead;
mod answer;
mod pages;

use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::PageRef;
use oslet::region::Rw;
use oslet::sync::AtomicU64;
use parking_lot::Mutex;

use crate::cache::{InodeRecord, InodeTable, Name, NameIndex, PageIndex, Sizes, kind};
use crate::disk::inode::{Inode, Kind};
use crate::engine::Volume;
use crate::id::Ino;
use crate::{Error, Result};

use ahead::Ahead;
pub use answer::Answer;
use pages::{Fills, Frames};

/// A volume that this OSlet owns.
pub struct Owner {
    object: u64,
    volume: Volume,
    arena: Arc<Arena>,
    pages: Mutex<PageIndex<Rw<AtomicU64>>>,
    inodes: Mutex<InodeTable<Rw<AtomicU64>>>,
    names: Mutex<Names>,
    frames: Mutex<Frames>,
    fills: Fills,
    ahead: Ahead,
    /// What holes are linked to.
    zeros: PageRef,
}

struct Names {
    short: NameIndex<Rw<AtomicU64>>,
    long: NameIndex<Rw<AtomicU64>>,
}

impl Owner {
    /// Publishes the empty tables of volume number `object`; `frames` of the arena at most are used
    /// for its pages.
    pub fn new(
        arena: &Arc<Arena>,
        object: u64,
        volume: Volume,
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
        let pages = PageIndex::new(table(kind::PAGES, sizes.pages)?, sizes.pages);
        let pages = pages.ok_or_else(small)?;
        let inodes = InodeTable::new(table(kind::INODES, sizes.inodes)?, sizes.inodes);
        let inodes = inodes.ok_or_else(small)?;
        let short = table(kind::SHORT_NAMES, sizes.short_names)?;
        let long = table(kind::LONG_NAMES, sizes.long_names)?;
        let names = Names {
            short: NameIndex::new(short, sizes.short_names, false).ok_or_else(small)?,
            long: NameIndex::new(long, sizes.long_names, true).ok_or_else(small)?,
        };
        let owner = Arc::new(Self {
            object,
            volume,
            arena: Arc::clone(arena),
            pages: Mutex::new(pages),
            inodes: Mutex::new(inodes),
            names: Mutex::new(names),
            frames: Mutex::new(Frames::new(own.frames(), frames)),
            fills: Fills::default(),
            ahead: Ahead::new(),
            zeros,
        });
        Ahead::start(&owner)?;
        Ok(owner)
    }

    /// The volume's object number.
    pub fn object(&self) -> u64 {
        self.object
    }

    /// The engine underneath.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Frames in use by the volume, and how many it may use.
    pub fn usage(&self) -> (usize, usize) {
        self.frames.lock().usage()
    }

    fn inode(&self, ino: Ino) -> Result<Inode> {
        self.volume.inode(ino)
    }

    /// Makes an inode's record and publishes it.
    fn publish_inode(&self, inode: &Inode) -> Result<InodeRecord> {
        let target = match inode.kind {
            Kind::Symlink => Some(self.volume.readlink(inode)?),
            _ => None,
        };
        let has_xattr = match self.volume.listxattr(inode) {
            Ok(names) => !names.is_empty(),
            Err(Error::WouldWait) => return Err(Error::WouldWait),
            // Asked for, they give the error again; so they must be asked for.
            Err(_) => true,
        };
        let record = InodeRecord { attr: self.volume.attr(inode), has_xattr, target };
        self.inodes.lock().publish(&record);
        Ok(record)
    }

    fn publish_name(&self, name: &Name<'_>, ino: Option<Ino>) {
        let names = self.names.lock();
        let index = if name.is_long() { &names.long } else { &names.short };
        index.publish(name, ino);
    }

    /// What a name leads to; published, also when there is nothing.
    fn lookup(&self, dir: Ino, bytes: &[u8]) -> Result<InodeRecord> {
        if bytes.len() > crate::limits::MAX_NAME {
            return Err(Error::NameTooLong);
        }
        let name = Name::new(dir, bytes).ok_or(Error::NotFound)?;
        let inode = self.inode(dir)?;
        match self.volume.lookup(&inode, bytes) {
            Ok(ino) => {
                // The record first: who finds the name will want it.
                let record = self.publish_inode(&self.inode(ino)?)?;
                self.publish_name(&name, Some(ino));
                Ok(record)
            }
            Err(Error::NotFound) => {
                self.publish_name(&name, None);
                Err(Error::NotFound)
            }
            Err(error) => Err(error),
        }
    }
}
