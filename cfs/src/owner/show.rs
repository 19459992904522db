//! Publishing: what lies in the tables is what the volume holds, at each moment that counts.
//!
//! An inode's record is made and published under the inode's lock, a name under its directory's: so
//! what one has found is not published behind what another has changed, and the last one
//! published is the newest.

use std::sync::Arc;

use parking_lot::RwLockReadGuard;

use super::Owner;
use crate::cache::{InodeRecord, Name};
use crate::disk::inode::{Inode, Kind};
use crate::engine::store::may_wait;
use crate::engine::write::{Cell, Effects, Live};
use crate::id::Ino;
use crate::{Error, Result};

impl Owner {
    /// An inode that names may lead to, or somebody holds.
    pub(super) fn cell(&self, ino: Ino) -> Result<Arc<Cell>> {
        if !self.volume.is_public(ino) {
            return Err(Error::Stale(ino.to_string()));
        }
        self.writer.as_ref().ok_or(Error::ReadOnly)?.live(ino)
    }

    /// Looks at an inode as it is now, which it stays meanwhile.
    pub(super) fn with_inode<T>(
        &self,
        ino: Ino,
        look: impl FnOnce(&Inode) -> Result<T>,
    ) -> Result<T> {
        if self.writer.is_none() {
            return look(&self.volume.inode(ino)?);
        }
        self.with_live(ino, |live| look(&live.inode))
    }

    fn with_live<T>(&self, ino: Ino, look: impl FnOnce(&Live) -> Result<T>) -> Result<T> {
        let cell = self.cell(ino)?;
        look(&*read(&cell)?)
    }

    /// Publishes an inode's record.
    pub(super) fn publish_inode(&self, ino: Ino) -> Result<InodeRecord> {
        if self.writer.is_none() {
            return self.publish(&self.volume.inode(ino)?, 0);
        }
        self.with_live(ino, |live| self.publish_live(live))
    }

    /// The same for who has the inode's lock.
    pub(super) fn publish_live(&self, live: &Live) -> Result<InodeRecord> {
        self.publish(&live.inode, live.reserved)
    }

    fn publish(&self, inode: &Inode, reserved: u64) -> Result<InodeRecord> {
        let target = match inode.kind {
            Kind::Symlink => Some(self.volume.readlink(inode)?),
            _ => None,
        };
        let mut attr = self.volume.attr(inode);
        // Blocks that are sure to come are counted, as the kernel does it.
        attr.blocks += reserved << (self.volume.superblock().block_bits - 9);
        let record = InodeRecord {
            attr,
            // Asked for, they give the error again; so they must be asked for.
            has_xattr: self.volume.has_xattr(inode).unwrap_or(true),
            target,
        };
        self.inodes.lock().publish(&record);
        Ok(record)
    }

    /// Takes an inode's record away.
    pub(super) fn withdraw_inode(&self, ino: Ino) {
        self.inodes.lock().remove(ino);
    }

    /// Publishes where a name leads, or that there is none. For who has the directory's stripe.
    pub(super) fn publish_name(&self, name: &Name<'_>, ino: Option<Ino>) {
        let names = self.names.lock();
        let index = if name.is_long() { &names.long } else { &names.short };
        index.publish(name, ino);
    }

    /// Reports of a change are published here: first what changed of inodes, then names that
    /// appeared, then those that vanished. Inodes that lost their last name are held and noted.
    pub(super) fn publish_effects(&self, effects: &Effects<'_>, unnamed: &mut Vec<Arc<Cell>>) {
        for &(cell, live) in effects.inodes {
            if live.inode.links == 0 {
                self.withdraw_inode(cell.ino());
                cell.hold(1);
                unnamed.push(Arc::clone(cell));
            } else if self.publish_live(live).is_err() {
                // Asked for, it gives the error again.
                self.withdraw_inode(cell.ino());
            }
        }
        let appeared = effects.appeared.iter().map(|&(dir, name, ino)| (dir, name, Some(ino)));
        let vanished = effects.vanished.iter().map(|&(dir, name)| (dir, name, None));
        for (dir, name, ino) in appeared.chain(vanished) {
            if let Some(name) = Name::new(dir, name) {
                self.publish_name(&name, ino);
            }
        }
    }

    /// What a name leads to; published, also when there is nothing.
    pub(super) fn lookup(&self, dir: Ino, bytes: &[u8]) -> Result<InodeRecord> {
        if bytes.len() > crate::limits::MAX_NAME {
            return Err(Error::NameTooLong);
        }
        let name = Name::new(dir, bytes).ok_or(Error::NotFound)?;
        if matches!(bytes, b"." | b"..") {
            // These change without anybody's being told.
            let ino = self.with_inode(dir, |inode| self.volume.lookup(inode, bytes))?;
            return self.publish_inode(ino);
        }
        self.with_inode(dir, |inode| match self.volume.lookup(inode, bytes) {
            Ok(ino) => {
                // The record first: who finds the name will want it.
                let record = self.publish_inode(ino)?;
                self.publish_name(&name, Some(ino));
                Ok(record)
            }
            Err(Error::NotFound) => {
                self.publish_name(&name, None);
                Err(Error::NotFound)
            }
            Err(error) => Err(error),
        })
    }
}

/// An inode to look at, unless it has gone.
pub(super) fn read(cell: &Cell) -> Result<RwLockReadGuard<'_, Live>> {
    let live = match cell.try_read() {
        Some(live) => live,
        None => may_wait().map(|()| cell.read())?,
    };
    if live.gone { Err(Error::Stale(cell.ino().to_string())) } else { Ok(live) }
}
