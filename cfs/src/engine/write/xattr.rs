//! Extended attributes, set and removed: in the inode where they fit, else in a block.
//!
//! A block that several inodes use is never changed but for its count of users: who changes an
//! attribute in it gets a copy. Blocks of our own making have one user. Values that fit neither
//! place lie in inodes of their own where the volume has ea_inode (`values.rs`).

use bitflags::bitflags;
use parking_lot::MutexGuard;

use super::acl;
use super::budget::Budget;
use super::names::{Effects, Report};
use super::values::Value;
use super::{Live, Writer, now};
use crate::disk::features::Compat;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::xattr::edit::{self, Attribute, Stored};
use crate::disk::xattr::{self, NameIndex};
use crate::id::{Block, Ino};
use crate::journal::Handle;
use crate::limits::{MAX_NAME, MAX_XATTR_VALUE};
use crate::{Caller, Error, Result};

bitflags! {
    /// `XATTR_*` of setxattr(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct XattrFlags: u32 {
        /// It must not exist.
        const CREATE = 1;
        /// It must exist.
        const REPLACE = 2;
        const _ = !0;
    }
}

/// An attribute by its namespace and the rest of its name.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) index: NameIndex,
    pub(super) name: &'a [u8],
}

/// Where an inode's attributes are to lie.
pub(super) struct Layout<'a> {
    /// Keeps the number of those who use the block as it was found.
    _sharing: Option<MutexGuard<'a, ()>>,
    /// What follows the inode's fields.
    extra: Box<[u8]>,
    block: InBlock,
    /// Inodes with values to which an entry more leads, one for each.
    taken: Vec<Value<'a>>,
    /// The one to which an entry less leads.
    dropped: Option<Value<'a>>,
    /// Blocks of values in inodes that this one is charged for, as if it had them alone: those of
    /// the new value, and those of the old.
    charges: (u64, u64),
}

enum InBlock {
    /// As it is, or none.
    Same,
    /// No attribute is left there.
    None,
    /// These, in the block that the inode has alone.
    Changed(Box<[u8]>),
    /// These, in a block of its own.
    New(Box<[u8]>),
}

impl Layout<'_> {
    /// Blocks that it takes from the volume.
    pub(super) fn fresh(&self) -> u32 {
        u32::from(matches!(self.block, InBlock::New(_)))
    }

    /// Blocks that its references to other inodes may change.
    pub(super) fn credits(&self) -> u32 {
        let count = self.taken.len() + usize::from(self.dropped.is_some());
        count as u32 * Writer::REFERENCE_CREDITS
    }
}

/// The attributes of an inode while it is decided where they lie.
#[derive(Default)]
struct Lists {
    here: Vec<Attribute>,
    room: usize,
    there: Vec<Attribute>,
    /// How many inodes use the block; 0 without one.
    users: u32,
    /// Whether those in the block are other ones than those that lie there.
    changed: bool,
}

impl Writer {
    /// Blocks that setting attributes changes beside the inode's: the old block with its bitmap and
    /// descriptor, a new one with these, and the superblock.
    pub(super) const XATTR_CREDITS: u32 = 3 + 3 + 1;

    /// Sets an attribute, or removes it without a value.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a namespace that there is not, `EPERM` for one that is not the caller's or
    /// not this inode's, `EEXIST` and `ENODATA` as the flags want it, `ERANGE`, `E2BIG`, `ENOSPC`.
    pub fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        flags: XattrFlags,
        report: Report<'_>,
    ) -> Result<()> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Error::NameRange);
        }
        if value.is_some_and(|value| value.len() > MAX_XATTR_VALUE) {
            return Err(Error::TooBig(format!("attribute value of over {MAX_XATTR_VALUE} bytes")));
        }
        let cell = self.live(ino)?;
        let mut live = cell.write();
        if live.inode.links == 0 && live.gone {
            return Err(Error::Stale(ino.to_string()));
        }
        // In the order in which the kernel looks: the first complaint counts.
        let is_acl = NameIndex::split(name).is_some_and(|(index, _)| index.is_acl());
        let acl = if is_acl { acl::parse(value)? } else { None };
        may_set(caller, &live, name)?;
        let (index, rest) = split(name)?;
        if index.is_acl() {
            self.set_acl(caller, &mut live, index, acl)?;
        } else {
            let key = Key { index, name: rest };
            let flags = if value.is_none() { flags | XattrFlags::REPLACE } else { flags };
            let layout = self.lay_out(caller, &live, key, value, flags)?;
            let Some(layout) = layout else { return Ok(()) };
            self.change_attributes(caller, &mut live, layout, |_| ())?;
        }
        report(&Effects { inodes: &[(&cell, &live)], appeared: &[], vanished: &[] });
        Ok(())
    }

    /// Where attributes lie once one of them has this value, or none; `None` if nothing changes.
    /// A value that lies in an inode of its own then is there already. No handle is held.
    pub(super) fn lay_out(
        &self,
        caller: &Caller,
        live: &Live,
        key: Key<'_>,
        value: Option<&[u8]>,
        flags: XattrFlags,
    ) -> Result<Option<Layout<'_>>> {
        let sharing = self.sharing(live);
        let mut lists = self.attributes(live)?;
        let place = |list: &[Attribute]| list.iter().position(|a| a.is(key.index, key.name));
        let (in_inode, in_block) = (place(&lists.here), place(&lists.there));
        let exists = in_inode.is_some() || in_block.is_some();
        if exists && flags.contains(XattrFlags::CREATE) {
            return Err(Error::Exists);
        }
        if !exists && flags.contains(XattrFlags::REPLACE) {
            return Err(Error::NoAttribute);
        }
        let old = in_inode.map(|at| lists.here.remove(at));
        let old = old.or(in_block.map(|at| lists.there.remove(at)));
        lists.changed = in_inode.is_none() && in_block.is_some();
        // Of a block that others use as well all references stay.
        let alone = lists.users == 1;
        let owned = !lists.changed || alone;
        let (mut dropped, mut charges) = (None, (0, 0));
        match (&old, value) {
            (None, None) => return Ok(None),
            (Some(Attribute { value: Stored::Bytes(old), .. }), Some(new)) if **old == *new => {
                return Ok(None);
            }
            (Some(Attribute { value: Stored::Inode { ino, size, .. }, .. }), _) => {
                charges.1 = self.charge_of(*size as usize);
                if owned {
                    dropped = Some(self.held_value(live.inode.ino, *ino)?);
                }
            }
            _ => {}
        }
        let mut taken = Vec::new();
        if lists.changed && !alone {
            taken = self.values_of(live.inode.ino, &lists.there)?;
        }
        if let Some(value) = value {
            let moved = !lists.changed;
            let new = self.place(caller, &live.inode, &mut lists, key, value)?;
            if lists.changed && moved && lists.users > 1 {
                // Those that were there lie in a copy as well.
                let kept = lists.there.iter().filter(|a| !a.is(key.index, key.name)).cloned();
                taken.extend(self.values_of(live.inode.ino, &kept.collect::<Vec<_>>())?);
            }
            charges.0 = new.as_ref().map_or(0, |_| self.charge_of(value.len()));
            taken.extend(new);
        }
        let extra = edit::inode_space(&lists.here, lists.room)
            .ok_or_else(|| Error::corrupt(live.inode.ino, "attributes over their space"))?;
        let block = self.lay_out_block(&lists)?;
        Ok(Some(Layout { _sharing: sharing, extra, block, taken, dropped, charges }))
    }

    /// The inodes to which these lead.
    fn values_of(&self, owner: Ino, attributes: &[Attribute]) -> Result<Vec<Value<'_>>> {
        let mut values = Vec::new();
        for attribute in attributes {
            if let Stored::Inode { ino, .. } = attribute.value {
                values.push(self.held_value(owner, ino)?);
            }
        }
        Ok(values)
    }

    /// Adds an attribute where there is room for it, as the kernel chooses: in the inode, in the
    /// block, and with its value in an inode of its own, which is the answer then.
    fn place(
        &self,
        caller: &Caller,
        owner: &Inode,
        lists: &mut Lists,
        key: Key<'_>,
        value: &[u8],
    ) -> Result<Option<Value<'_>>> {
        let block_size = self.volume.superblock().block_size as usize;
        let apart = self.has_value_inodes() && !value.is_empty();
        // What leaves no room beside it for another with a short name.
        let large = value.len().next_multiple_of(4) > block_size - SMALLEST_REST;
        let attribute = |value| Attribute { index: key.index, name: key.name.into(), value };
        if !(apart && large) {
            let limit = if apart { block_size - (block_size / 8).min(1024) } else { block_size };
            if lists.add(attribute(Stored::Bytes(value.into())), block_size, limit) {
                return Ok(None);
            }
        }
        let size = value.len() as u32;
        let stored = |ino, hash| Stored::Inode { ino, size, hash };
        // Whether there is room at all, before an inode is made.
        if !apart || !lists.add(attribute(stored(Ino(0), 0)), block_size, block_size) {
            return Err(Error::NoSpace);
        }
        let (made, hash) = self.value(caller, owner, value)?;
        let hash = xattr::entry_hash(key.name, hash, false);
        let all = lists.here.iter_mut().chain(&mut lists.there);
        for entry in all.filter(|entry| entry.is(key.index, key.name)) {
            entry.value = stored(made.ino(), hash);
        }
        Ok(Some(made))
    }

    /// Blocks that an inode is charged for a value of so many bytes in another.
    fn charge_of(&self, len: usize) -> u64 {
        len.div_ceil(self.volume.superblock().block_size as usize) as u64
    }

    fn lay_out_block(&self, lists: &Lists) -> Result<InBlock> {
        if !lists.changed {
            return Ok(InBlock::Same);
        }
        if lists.there.is_empty() {
            return Ok(InBlock::None);
        }
        let size = self.volume.superblock().block_size as usize;
        let bytes = edit::block(&lists.there, size).ok_or(Error::NoSpace)?;
        Ok(if lists.users == 1 { InBlock::Changed(bytes) } else { InBlock::New(bytes) })
    }

    /// The attributes in an inode, and those in its block.
    fn attributes(&self, live: &Live) -> Result<Lists> {
        let bad = |why| Error::corrupt(live.inode.ino, why);
        let here = xattr::parse_inode(&live.inode.extra).map_err(bad)?;
        let here = here.iter().map(Attribute::from).collect();
        let mut lists = Lists { here, room: live.inode.extra.len(), ..Lists::default() };
        if let Some(block) = self.volume.xattr_block(&live.inode)? {
            let there = xattr::parse_block(&block.bytes).map_err(bad)?;
            lists.there = there.iter().map(Attribute::from).collect();
            lists.users = edit::users(&block.bytes);
        }
        Ok(lists)
    }

    /// The value of an attribute.
    pub(super) fn attribute(&self, live: &Live, key: Key<'_>) -> Result<Option<Box<[u8]>>> {
        if live.inode.xattr_block == 0 && !xattr::has_attributes(&live.inode.extra) {
            return Ok(None);
        }
        let lists = self.attributes(live)?;
        let found = lists.here.into_iter().chain(lists.there).find(|a| a.is(key.index, key.name));
        match found.map(|attribute| attribute.value) {
            None => Ok(None),
            Some(Stored::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Stored::Inode { ino, size, hash }) => {
                let value = xattr::Value::Inode { ino, size };
                let entry = xattr::Entry { index: key.index, name: key.name, value, hash };
                self.volume.value_in_inode(&live.inode, &entry, ino, size).map(|v| Some(v.into()))
            }
        }
    }

    /// An attribute whose value lies in an inode to which only this one's entry leads.
    pub(super) fn owned_value(&self, live: &Live) -> Result<Option<(NameIndex, Box<[u8]>)>> {
        let lists = self.attributes(live)?;
        let there = lists.there.into_iter().filter(|_| lists.users == 1);
        let apart = |a: &Attribute| matches!(a.value, Stored::Inode { .. });
        let found = lists.here.into_iter().chain(there).find(apart);
        Ok(found.map(|attribute| (attribute.index, attribute.name)))
    }

    /// Removes an attribute of an inode that goes.
    pub(super) fn remove_attribute(&self, live: &mut Live, key: Key<'_>) -> Result<()> {
        let caller = &Caller::ROOT;
        match self.lay_out(caller, live, key, None, XattrFlags::REPLACE)? {
            Some(layout) => self.change_attributes(caller, live, layout, |_| ()),
            None => Ok(()),
        }
    }

    /// Puts attributes where they are to lie, in a handle of their own; `also` changes more of the
    /// inode with them.
    pub(super) fn change_attributes(
        &self,
        caller: &Caller,
        live: &mut Live,
        mut layout: Layout<'_>,
        also: impl FnOnce(&mut Live),
    ) -> Result<()> {
        let mut budget = Budget::new(&self.space, caller, layout.fresh())?;
        let credits = Self::XATTR_CREDITS + Self::STORE_CREDITS + layout.credits();
        let mut handle = self.begin(credits)?;
        self.put_attributes(&mut handle, &mut budget, live, &mut layout)?;
        live.inode.ctime = now();
        also(live);
        self.store(&mut handle, live)?;
        if self.is_sync(&live.inode) {
            handle.sync();
        }
        Ok(())
    }

    /// Puts attributes where they are to lie; the caller stores the inode. After an error that is
    /// not [`Error::NoSpace`] the journal has been given up.
    pub(super) fn put_attributes(
        &self,
        handle: &mut Handle<'_>,
        budget: &mut Budget<'_>,
        live: &mut Live,
        layout: &mut Layout<'_>,
    ) -> Result<()> {
        let claim = match layout.fresh() {
            0 => None,
            fresh => budget.claim(self.home(&live.inode), fresh)?.pop(),
        };
        let block = std::mem::replace(&mut layout.block, InBlock::Same);
        let put = match (block, claim) {
            (InBlock::Same, _) => Ok(()),
            (InBlock::None, _) => self.release_attributes(handle, live),
            (InBlock::Changed(bytes), _) => {
                let place = Block(live.inode.xattr_block);
                handle.put(place, 0, &self.sealed(bytes, place))
            }
            (InBlock::New(bytes), Some(claim)) => {
                // Its other users keep the old one.
                let released = self.release_attributes(handle, live);
                released.and_then(|()| self.put_new_block(handle, budget, live, bytes, claim))
            }
            (InBlock::New(_), None) => Err(Error::NoSpace),
        };
        // The same inode may be both: taken first it is no orphan in between.
        put.and_then(|()| layout.taken.iter().try_for_each(|value| self.take_value(handle, value)))
            .and_then(|()| layout.dropped.iter().try_for_each(|v| self.drop_value(handle, v)))
            .map_err(|error| handle.fail(error))?;
        live.inode.extra = std::mem::take(&mut layout.extra);
        let superblock = self.volume.superblock();
        live.charge(layout.charges.0, superblock);
        live.discharge(layout.charges.1, superblock);
        Ok(())
    }

    fn put_new_block(
        &self,
        handle: &mut Handle<'_>,
        budget: &mut Budget<'_>,
        live: &mut Live,
        bytes: Box<[u8]>,
        claim: crate::alloc::Claim,
    ) -> Result<()> {
        let superblock = self.volume.superblock();
        let place = claim.start();
        budget.commit(handle, claim)?;
        handle.create(place, self.sealed(bytes, place))?;
        live.inode.xattr_block = place.0;
        live.charge(1, superblock);
        if !superblock.features.compat.contains(Compat::EXT_ATTR) {
            let _orphans = self.orphans.lock();
            self.edit_superblock(handle, |raw| {
                let bits = raw.feature_compat.get() | Compat::EXT_ATTR.bits();
                raw.feature_compat = bits.into();
            })?;
        }
        Ok(())
    }

    fn sealed(&self, mut bytes: Box<[u8]>, place: Block) -> Box<[u8]> {
        let superblock = self.volume.superblock();
        if superblock.features.metadata_csum() {
            edit::seal(&mut bytes, place, superblock.checksum_seed);
        }
        bytes
    }

    /// The layout of a new inode's attributes, which is made in `dir`.
    pub(super) fn first_layout(
        &self,
        caller: &Caller,
        dir: &Inode,
        attributes: &[(Key<'_>, Vec<u8>)],
        room: usize,
    ) -> Result<Layout<'_>> {
        let mut lists = Lists { room, ..Lists::default() };
        let (mut taken, mut charged) = (Vec::new(), 0);
        for (key, value) in attributes {
            let new = self.place(caller, dir, &mut lists, *key, value)?;
            charged += new.as_ref().map_or(0, |_| self.charge_of(value.len()));
            taken.extend(new);
        }
        let extra = edit::inode_space(&lists.here, room).ok_or(Error::NoSpace)?;
        let block = self.lay_out_block(&lists)?;
        let charges = (charged, 0);
        Ok(Layout { _sharing: None, extra, block, taken, dropped: None, charges })
    }
}

impl Lists {
    /// Adds an attribute in the inode, or else in the block where the values may have so many
    /// bytes; false if there is room in neither.
    fn add(&mut self, attribute: Attribute, block_size: usize, limit: usize) -> bool {
        self.here.push(attribute);
        if edit::inode_space(&self.here, self.room).is_some() {
            return true;
        }
        self.there.extend(self.here.pop());
        let fits = edit::block(&self.there, block_size).is_some()
            && edit::values_len(&self.there) <= limit;
        if fits {
            self.changed = true;
        } else {
            self.there.pop();
        }
        fits
    }
}

/// Bytes that a value must leave of a block for the block's head, an entry with a name of three
/// bytes, and the end of the entries: else it goes into an inode.
const SMALLEST_REST: usize = 32 + 20 + 4;

/// The namespace of a name, and the rest of it.
fn split(name: &[u8]) -> Result<(NameIndex, &[u8])> {
    if matches!(name, b"user." | b"trusted." | b"security.") {
        return Err(Error::Invalid("an attribute's name ends with its namespace".into()));
    }
    NameIndex::split(name).ok_or_else(|| {
        let name = String::from_utf8_lossy(name);
        Error::Unsupported(format!("there is no namespace for attribute {name:?}"))
    })
}

/// Refuses an attribute that this inode cannot have, or that this caller may not set.
fn may_set(caller: &Caller, live: &Live, name: &[u8]) -> Result<()> {
    let fixed = live.inode.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND);
    let ordinary = matches!(live.inode.kind, Kind::Regular | Kind::Directory);
    let refused = (name.starts_with(b"user.") && !ordinary)
        || (name.starts_with(b"trusted.") && !caller.privileged);
    if fixed || refused { Err(Error::NotPermitted) } else { Ok(()) }
}
