//! Extended attributes, set and removed: in the inode where they fit, else in a block.
//!
//! A block that several inodes use is never changed but for its count of users: who changes an
//! attribute in it gets a copy. Blocks of our own making have one user.

use bitflags::bitflags;

use super::acl;
use super::budget::Budget;
use super::names::{Effects, Report};
use super::{Live, Writer, now};
use crate::disk::features::Compat;
use crate::disk::inode::{InodeFlags, Kind};
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
pub(super) struct Layout {
    /// What follows the inode's fields.
    extra: Box<[u8]>,
    block: InBlock,
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

impl Layout {
    /// Blocks that it takes from the volume.
    pub(super) fn fresh(&self) -> u32 {
        u32::from(matches!(self.block, InBlock::New(_)))
    }
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
            let Some(layout) = self.lay_out(&live, key, value, flags)? else { return Ok(()) };
            self.change_attributes(caller, &mut live, layout, |_| ())?;
        }
        report(&Effects { inodes: &[(&cell, &live)], appeared: &[], vanished: &[] });
        Ok(())
    }

    /// Where attributes lie once one of them has this value, or none; `None` if nothing changes.
    pub(super) fn lay_out(
        &self,
        live: &Live,
        key: Key<'_>,
        value: Option<&[u8]>,
        flags: XattrFlags,
    ) -> Result<Option<Layout>> {
        let (mut here, mut there, users) = self.attributes(live)?;
        let place = |list: &[Attribute]| list.iter().position(|a| a.is(key.index, key.name));
        let (in_inode, in_block) = (place(&here), place(&there));
        let exists = in_inode.is_some() || in_block.is_some();
        if exists && flags.contains(XattrFlags::CREATE) {
            return Err(Error::Exists);
        }
        if !exists && flags.contains(XattrFlags::REPLACE) {
            return Err(Error::NoAttribute);
        }
        let old = in_inode.map(|at| here.remove(at)).or(in_block.map(|at| there.remove(at)));
        if old.as_ref().is_some_and(|old| matches!(old.value, Stored::Inode { .. })) {
            let why = "an attribute's value lies in an inode of its own";
            return Err(Error::Unsupported(format!("{}: {why}", live.inode.ino)));
        }
        let mut in_block_now = in_block.is_some();
        let room = live.inode.extra.len();
        let mut extra = None;
        if let Some(value) = value {
            let stored = Stored::Bytes(value.into());
            if old.as_ref().is_some_and(|old| old.value == stored) {
                return Ok(None);
            }
            here.push(Attribute { index: key.index, name: key.name.into(), value: stored });
            extra = edit::inode_space(&here, room);
            if extra.is_none() {
                there.extend(here.pop());
                in_block_now = true;
            }
        } else if !exists {
            return Ok(None);
        }
        let extra = match extra.or_else(|| edit::inode_space(&here, room)) {
            Some(extra) => extra,
            None => return Err(Error::corrupt(live.inode.ino, "attributes over their space")),
        };
        let block = self.lay_out_block(live, &there, in_block_now, users)?;
        Ok(Some(Layout { extra, block }))
    }

    fn lay_out_block(
        &self,
        live: &Live,
        attributes: &[Attribute],
        changed: bool,
        users: u32,
    ) -> Result<InBlock> {
        if !changed {
            return Ok(InBlock::Same);
        }
        if attributes.is_empty() {
            return Ok(InBlock::None);
        }
        let size = self.volume.superblock().block_size as usize;
        let bytes = edit::block(attributes, size).ok_or(Error::NoSpace)?;
        let alone = live.inode.xattr_block != 0 && users == 1;
        Ok(if alone { InBlock::Changed(bytes) } else { InBlock::New(bytes) })
    }

    /// The attributes in an inode, those in its block, and how many inodes use that.
    fn attributes(&self, live: &Live) -> Result<(Vec<Attribute>, Vec<Attribute>, u32)> {
        let bad = |why| Error::corrupt(live.inode.ino, why);
        let here = xattr::parse_inode(&live.inode.extra).map_err(bad)?;
        let here = here.iter().map(Attribute::from).collect();
        let Some(block) = self.volume.xattr_block(&live.inode)? else {
            return Ok((here, Vec::new(), 0));
        };
        let there = xattr::parse_block(&block.bytes).map_err(bad)?;
        let there = there.iter().map(Attribute::from).collect();
        Ok((here, there, edit::users(&block.bytes)))
    }

    /// The value of an attribute that lies with its inode.
    pub(super) fn attribute(&self, live: &Live, key: Key<'_>) -> Result<Option<Box<[u8]>>> {
        if live.inode.xattr_block == 0 && !xattr::has_attributes(&live.inode.extra) {
            return Ok(None);
        }
        let (here, there, _) = self.attributes(live)?;
        let found = here.into_iter().chain(there).find(|a| a.is(key.index, key.name));
        Ok(found.and_then(|attribute| match attribute.value {
            Stored::Bytes(bytes) => Some(bytes),
            Stored::Inode { .. } => None,
        }))
    }

    /// Puts attributes where they are to lie, in a handle of their own; `also` changes more of the
    /// inode with them.
    pub(super) fn change_attributes(
        &self,
        caller: &Caller,
        live: &mut Live,
        layout: Layout,
        also: impl FnOnce(&mut Live),
    ) -> Result<()> {
        let mut budget = Budget::new(&self.space, caller, layout.fresh())?;
        let mut handle = self.begin(Self::XATTR_CREDITS + Self::STORE_CREDITS)?;
        self.put_attributes(&mut handle, &mut budget, live, layout)?;
        live.inode.ctime = now();
        also(live);
        self.store(&mut handle, live)?;
        if live.inode.flags.contains(InodeFlags::SYNC) {
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
        layout: Layout,
    ) -> Result<()> {
        let claim = match layout.fresh() {
            0 => None,
            fresh => budget.claim(self.home(&live.inode), fresh)?.pop(),
        };
        let put = match (layout.block, claim) {
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
        put.map_err(|error| handle.fail(error))?;
        live.inode.extra = layout.extra;
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

    /// The layout of a new inode's attributes.
    pub(super) fn first_layout(&self, attributes: &[Attribute], room: usize) -> Result<Layout> {
        let size = self.volume.superblock().block_size as usize;
        if let Some(extra) = edit::inode_space(attributes, room) {
            return Ok(Layout { extra, block: InBlock::Same });
        }
        let bytes = edit::block(attributes, size).ok_or(Error::NoSpace)?;
        Ok(Layout { extra: vec![0; room].into(), block: InBlock::New(bytes) })
    }
}

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
