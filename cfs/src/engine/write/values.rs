//! Values of attributes in inodes of their own: made, shared, given back.
//!
//! Such an inode counts the entries that lead to it, in the place of its version and its ctime. It
//! is made as an orphan without any; the handle that puts an entry takes a reference and a name's
//! place at once, and the one that removes the last entry makes it an orphan again. Inodes with the
//! same value share one: as with the kernel, those that were met since the volume was opened.
//!
//! The lock of such an inode is taken within handles too, below number 4 of docs/writing.md: by who
//! owns a reference or a hold, so that nobody has it who waits for a handle.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::budget::Budget;
use super::{Cell, Live, Writer, now};
use crate::disk::features::Incompat;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::disk::xattr;
use crate::id::{Block, Ino};
use crate::journal::Handle;
use crate::{Caller, Error, Result};

/// What the writer knows of inodes that hold values.
#[derive(Default)]
pub(super) struct Values {
    /// One for each hash of a value, of those that were met.
    met: Mutex<HashMap<u32, Ino>>,
    /// Taken before a handle by who changes what blocks of attributes that inodes share lead to.
    sharing: Mutex<()>,
}

/// Values that are remembered.
const MOST_MET: usize = 1 << 14;
/// Blocks of a value that go into one transaction.
const AT_ONCE: usize = 32;
const MODE: u16 = 0o100_600;

/// An inode that holds a value, held for a change of its references: as long as this lives it is
/// not given back. Dropped where no handle is held.
pub(super) struct Value<'a> {
    writer: &'a Writer,
    cell: Arc<Cell>,
}

impl Value<'_> {
    /// Its number.
    pub(super) fn ino(&self) -> Ino {
        self.cell.ino()
    }
}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // Without references it goes now. If it cannot, it is an orphan for the next to open.
        let _ = self.writer.release(&self.cell, 1);
    }
}

/// How many entries lead to the inode of a value.
fn references(inode: &Inode) -> u64 {
    u64::from(inode.ctime.seconds as u32) << 32 | inode.version & u64::from(u32::MAX)
}

fn set_references(inode: &mut Inode, count: u64) {
    inode.version = count & u64::from(u32::MAX);
    inode.ctime = Timestamp { seconds: ((count >> 32) as i32).into(), nanoseconds: 0 };
}

impl Writer {
    /// Blocks that a change of one reference may change.
    pub(super) const REFERENCE_CREDITS: u32 = Self::STORE_CREDITS + Self::ORPHAN_CREDITS;

    /// Whether values may lie in inodes of their own.
    pub(super) fn has_value_inodes(&self) -> bool {
        self.volume.superblock().features.incompat.contains(Incompat::EA_INODE)
    }

    /// Keeps others from changing how many inodes share the block of attributes of this one, where
    /// that decides about references. No handle is held.
    pub(super) fn sharing(&self, live: &Live) -> Option<MutexGuard<'_, ()>> {
        let shared = live.inode.xattr_block != 0 && self.has_value_inodes();
        shared.then(|| self.values.sharing.lock())
    }

    /// The inode of a value to which an entry of `owner` leads.
    pub(super) fn held_value(&self, owner: Ino, ino: Ino) -> Result<Value<'_>> {
        let bad = |why: &str| Error::corrupt(owner, format!("attribute value in {ino}: {why}"));
        if ino == Ino::ROOT || !self.volume.is_public(ino) {
            return Err(bad("reserved"));
        }
        let cell = match self.live(ino) {
            Err(Error::Stale(_)) => return Err(bad("not in use")),
            other => other?,
        };
        let hash = {
            let live = cell.read();
            let holds = live.inode.flags.contains(InodeFlags::EA_INODE)
                && live.inode.kind == Kind::Regular
                && !live.gone;
            if !holds || references(&live.inode) == 0 {
                return Err(bad("not in use for one"));
            }
            cell.hold(1);
            live.inode.atime.seconds as u32
        };
        self.remember(hash, ino);
        Ok(Value { writer: self, cell })
    }

    fn remember(&self, hash: u32, ino: Ino) {
        let mut met = self.values.met.lock();
        if met.len() >= MOST_MET {
            met.clear();
        }
        met.insert(hash, ino);
    }

    /// An inode that holds these bytes, and their hash: one that is there, or a new one that nobody
    /// refers to yet. No handle is held.
    pub(super) fn value(
        &self,
        caller: &Caller,
        owner: &Inode,
        bytes: &[u8],
    ) -> Result<(Value<'_>, u32)> {
        let hash = xattr::value_hash(bytes, self.volume.superblock().checksum_seed);
        if let Some(value) = self.met_value(hash, bytes) {
            return Ok((value, hash));
        }
        let value = self.new_value(caller, owner, bytes, hash)?;
        self.remember(hash, value.ino());
        Ok((value, hash))
    }

    fn met_value(&self, hash: u32, bytes: &[u8]) -> Option<Value<'_>> {
        let ino = *self.values.met.lock().get(&hash)?;
        // Its number may be another's by now.
        let cell = self.live(ino).ok()?;
        let inode = {
            let live = cell.read();
            let inode = &live.inode;
            let same = inode.flags.contains(InodeFlags::EA_INODE)
                && inode.kind == Kind::Regular
                && inode.atime.seconds as u32 == hash
                && inode.size == bytes.len() as u64;
            if !same || live.gone || references(inode) == 0 {
                return None;
            }
            cell.hold(1);
            inode.clone()
        };
        let value = Value { writer: self, cell };
        let same = self.volume.value_contents(&inode).is_ok_and(|contents| contents == bytes);
        same.then_some(value)
    }

    /// A new inode with these bytes, in as many transactions as it takes: an orphan until an entry
    /// leads to it.
    fn new_value(
        &self,
        caller: &Caller,
        owner: &Inode,
        bytes: &[u8],
        hash: u32,
    ) -> Result<Value<'_>> {
        let superblock = self.volume.superblock();
        let block_size = superblock.block_size as usize;
        let blocks = bytes.len().div_ceil(block_size);
        let mut budget = Budget::new(&self.space, caller, blocks as u32)?;
        let value = Value { writer: self, cell: self.new_value_inode(owner, hash)? };
        let mut live = value.cell.write();
        let mut done = 0;
        while done < blocks {
            let count = (blocks - done).min(AT_ONCE) as u32;
            let goal = self.goal(&live, done as u64);
            for claim in budget.claim(goal, count)? {
                let (start, len) = (claim.start().0, claim.len() as usize);
                let credits = self.insert_credits(&live, len as u64) + len as u32;
                let mut handle = self.begin(credits)?;
                budget.insert(self, &mut handle, &mut live, done as u64, vec![claim])?;
                let from = &bytes[done * block_size..];
                for (block, chunk) in (start..).zip(from.chunks(block_size).take(len)) {
                    let mut contents = vec![0; block_size].into_boxed_slice();
                    contents[..chunk.len()].copy_from_slice(chunk);
                    let put = handle.create(Block(block), contents);
                    put.map_err(|error| handle.fail(error))?;
                }
                done += len;
                let size = bytes.len().min(done * block_size) as u64;
                (live.inode.size, live.disk_size) = (size, size);
                self.store(&mut handle, &mut live)?;
            }
        }
        drop(live);
        Ok(value)
    }

    /// A new inode for a value, held once: an orphan without references.
    fn new_value_inode(&self, owner: &Inode, hash: u32) -> Result<Arc<Cell>> {
        // Number, itself, and its place among the orphans.
        let mut handle = self.begin(4 + Self::STORE_CREDITS + Self::REFERENCE_CREDITS)?;
        let ino = self.space.new_inode(&mut handle, owner.ino, false, false)?;
        let superblock = self.volume.superblock();
        let inode = Inode::fresh(ino, MODE, self.generation(ino), now(), superblock);
        let mut inode = inode.map_err(|error| handle.fail(error))?;
        inode.flags |= InodeFlags::EA_INODE;
        (inode.uid, inode.gid) = (owner.uid, owner.gid);
        // As 32 signed bits, which inodes of all sizes hold.
        inode.atime = Timestamp { seconds: (hash as i32).into(), nanoseconds: 0 };
        set_references(&mut inode, 0);
        let cell = self.adopt(&mut handle, inode)?;
        cell.hold(1);
        let mut live = cell.write();
        self.unnamed(&mut handle, &mut live)?;
        drop(live);
        Ok(cell)
    }

    /// An entry more leads to a value.
    pub(super) fn take_value(&self, handle: &mut Handle<'_>, value: &Value<'_>) -> Result<()> {
        let mut live = value.cell.write();
        let count = references(&live.inode).checked_add(1).ok_or_else(|| uncounted(&live))?;
        set_references(&mut live.inode, count);
        live.inode.links = 1;
        self.remove_orphan(handle, &mut live)?;
        self.store(handle, &mut live)
    }

    /// An entry less leads to a value; with the last one it becomes an orphan.
    pub(super) fn drop_value(&self, handle: &mut Handle<'_>, value: &Value<'_>) -> Result<()> {
        let mut live = value.cell.write();
        let count = references(&live.inode).checked_sub(1).ok_or_else(|| uncounted(&live))?;
        set_references(&mut live.inode, count);
        if count > 0 {
            return self.store(handle, &mut live);
        }
        live.inode.links = 0;
        self.unnamed(handle, &mut live)
    }

    /// An inode that goes gives its references to values back, each with the entry that is one, so
    /// that a crash between two of them finds both or none. Its block of attributes is then shared
    /// with others, or leads to no value; others do not change that while the guard lives.
    pub(super) fn give_values_back(&self, live: &mut Live) -> Result<Option<MutexGuard<'_, ()>>> {
        let any = live.inode.xattr_block != 0 || xattr::has_attributes(&live.inode.extra);
        if !any || !self.has_value_inodes() {
            return Ok(None);
        }
        loop {
            let sharing = self.sharing(live);
            let Some((index, name)) = self.owned_value(live)? else { return Ok(sharing) };
            drop(sharing);
            let key = super::xattr::Key { index, name: &name };
            self.remove_attribute(live, key)?;
        }
    }
}

fn uncounted(live: &Live) -> Error {
    Error::corrupt(live.inode.ino, "references of an attribute's value that nobody counts")
}
