//! Extended attributes.

use std::sync::Arc;

use crate::disk::acl;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::xattr::{self, Entry, NameIndex, Value};
use crate::id::{Block, Ino};
use crate::limits::MAX_XATTR_VALUE;
use crate::{Error, Result};

use super::cache::{CachedBlock, Role};
use super::{Mapping, Volume};

impl Volume {
    /// The names of an inode's attributes with their prefixes, `trusted.` ones too.
    pub fn listxattr(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let block = self.xattr_block(inode)?;
        let entries = xattr_entries(inode, block.as_deref())?;
        let visible = entries.iter().filter_map(|entry| {
            let prefix = entry.index.prefix()?;
            let name = if entry.index.is_acl() { &[] } else { entry.name };
            Some([prefix, name].concat())
        });
        Ok(visible.collect())
    }

    /// Whether an inode has any such attribute.
    pub fn has_xattr(&self, inode: &Inode) -> Result<bool> {
        let block = self.xattr_block(inode)?;
        let entries = xattr_entries(inode, block.as_deref())?;
        Ok(entries.iter().any(|entry| entry.index.prefix().is_some()))
    }

    /// The value of an attribute as getxattr(2) returns it.
    pub fn getxattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        let (index, name) = NameIndex::split(name).ok_or(Error::NoAttribute)?;
        let block = self.xattr_block(inode)?;
        let entries = xattr_entries(inode, block.as_deref())?;
        let entry = entries
            .iter()
            .find(|entry| entry.index == index && entry.name == name)
            .ok_or(Error::NoAttribute)?;
        let value = match entry.value {
            Value::Bytes(bytes) => bytes.to_vec(),
            Value::Inode { ino, size } => self.value_in_inode(inode, entry, ino, size)?,
        };
        if index.is_acl() {
            return acl::to_attribute(&value).map_err(|why| Error::corrupt(inode.ino, why));
        }
        Ok(value)
    }

    /// The block of an inode's attributes, if it has one.
    pub(super) fn xattr_block(&self, inode: &Inode) -> Result<Option<Arc<CachedBlock>>> {
        let place = Block(inode.xattr_block);
        if place.0 == 0 {
            return Ok(None);
        }
        let bad = |why: String| Error::corrupt(inode.ino, format!("attributes in {place}: {why}"));
        if !self.zones.allow(place, 1) {
            return Err(bad("no such block".into()));
        }
        let block = self.block(place)?;
        // Many inodes may share it, and its checksum knows none of them.
        block.check(Role::Xattrs, Ino(0), |bytes| {
            xattr::parse_block(bytes).map_err(bad)?;
            if !self.superblock.features.metadata_csum() {
                return Ok(());
            }
            match xattr::checksum(bytes, place, self.superblock.checksum_seed) {
                Some((found, computed)) if found == computed => Ok(()),
                Some((found, computed)) => {
                    Err(bad(format!("checksum {found:#010x}, computed {computed:#010x}")))
                }
                None => Err(bad("no checksum".into())),
            }
        })?;
        Ok(Some(block))
    }

    /// A value that is the contents of an inode of its own.
    pub(super) fn value_in_inode(
        &self,
        owner: &Inode,
        entry: &Entry<'_>,
        ino: Ino,
        size: u32,
    ) -> Result<Vec<u8>> {
        let bad = |why: &str| Error::corrupt(owner.ino, format!("attribute value in {ino}: {why}"));
        let inode = match self.any_inode(ino) {
            Err(Error::Stale(_)) => return Err(bad("not in use")),
            other => other?,
        };
        let holds = inode.flags.contains(InodeFlags::EA_INODE) && inode.kind == Kind::Regular;
        if !holds || inode.size != u64::from(size) {
            return Err(bad(&format!("{} bytes where {size} are due", inode.size)));
        }
        if size as usize > MAX_XATTR_VALUE {
            return Err(Error::TooBig(format!("attribute value in {ino} of {size} bytes")));
        }
        let value = self.value_contents(&inode)?;
        let hash = xattr::value_hash(&value, self.superblock.checksum_seed);
        let entry_hash = |signed| xattr::entry_hash(entry.name, hash, signed);
        let sound = inode.atime.seconds as u32 == hash
            && (entry_hash(false) == entry.hash || entry_hash(true) == entry.hash);
        // Lustre's values have no hash but name their owner.
        let lustre =
            inode.mtime.seconds as u32 == owner.ino.0 && inode.generation == owner.generation;
        if sound || lustre { Ok(value) } else { Err(bad("its hash is wrong")) }
    }

    /// All of an inode that holds a value. Like metadata it goes through the journal: its blocks
    /// may be newer in memory than in their places.
    pub(super) fn value_contents(&self, inode: &Inode) -> Result<Vec<u8>> {
        let (bits, size) = (self.superblock.block_bits, inode.size as usize);
        let count = inode.size.div_ceil(self.superblock.block_size.into());
        let mut value = Vec::with_capacity((count << bits) as usize);
        for run in self.runs(inode, 0, count) {
            let run = run?;
            match run.mapping {
                Mapping::Data(start) => {
                    for block in start.0..start.0 + run.len {
                        value.extend_from_slice(&self.block(Block(block))?.bytes);
                    }
                }
                Mapping::Hole | Mapping::Unwritten(_) => {
                    value.resize(value.len() + (run.len << bits) as usize, 0);
                }
            }
        }
        value.truncate(size);
        Ok(value)
    }
}

/// The attributes in an inode, then those in its block.
fn xattr_entries<'a>(inode: &'a Inode, block: Option<&'a CachedBlock>) -> Result<Vec<Entry<'a>>> {
    let bad = |why| Error::corrupt(inode.ino, why);
    let mut entries = xattr::parse_inode(&inode.extra).map_err(bad)?;
    if let Some(block) = block {
        entries.extend(xattr::parse_block(&block.bytes).map_err(bad)?);
    }
    Ok(entries)
}
