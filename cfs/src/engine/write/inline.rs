//! Contents in inodes, where the volume has inline_data: names are removed and changed in place,
//! all else moves to a block first. Nothing of ours begins in an inode.

use super::budget::Budget;
use super::dir::{Site, Sought, Spot, bad};
use super::{Live, Writer};
use crate::disk::dirent::edit::{self, Format, NewEntry, Patch};
use crate::disk::extent::edit::EMPTY_ROOT;
use crate::disk::features::Incompat;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::xattr::{self, NameIndex, edit as attributes};
use crate::engine::dir::{INLINE_PARENT, inline_spaces};
use crate::id::Ino;
use crate::{Caller, Error, Result};

/// The attribute that has what does not fit where a map would be.
const DATA: (NameIndex, &[u8]) = (NameIndex::SYSTEM, b"data");

/// No contents are about to be cut.
pub(crate) const ALL: u64 = u64::MAX;

/// Whether contents lie in the inode.
pub(super) fn is_inline(inode: &Inode) -> bool {
    inode.flags.contains(InodeFlags::INLINE_DATA)
}

impl Writer {
    /// Entries in an inode: no block, so no checksum at its end.
    fn inline_format(&self) -> Format {
        Format { checksums: false, ..self.dir_format() }
    }

    /// As `seek`, in a directory that lies in its inode. There is never room: [`Self::outline`].
    pub(super) fn seek_inline(&self, dir: &Inode, name: &[u8]) -> Result<Sought> {
        let (_, spaces) = inline_spaces(dir)?;
        for (space, bytes) in spaces.into_iter().enumerate() {
            let scan = edit::scan(bytes, name, self.inline_format()).map_err(bad(dir))?;
            if let Some(found) = scan.found {
                let site = Site::Inline { space, found };
                return Ok(Sought::Found(Spot { ino: Ino(found.ino), site }));
            }
        }
        Ok(Sought::Absent(super::dir::Place::Inline))
    }

    /// Whether a directory in its inode has no names.
    pub(super) fn is_empty_inline(&self, dir: &Inode) -> Result<bool> {
        let (_, spaces) = inline_spaces(dir)?;
        for bytes in spaces {
            if !edit::is_empty(bytes, self.inline_format()).map_err(bad(dir))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The number of a directory's parent, in its inode.
    pub(super) fn inline_parent(&self, dir: &Inode) -> Result<Spot> {
        let (parent, _) = inline_spaces(dir)?;
        self.volume.check_target(dir, b"..", parent)?;
        Ok(Spot { ino: parent, site: Site::InlineParent })
    }

    /// Changes entries in an inode, which the caller stores.
    pub(super) fn edit_inline(
        dir: &mut Live,
        space: usize,
        change: impl FnOnce(&[u8]) -> std::result::Result<Patch, String>,
    ) -> Result<()> {
        let inode = &mut dir.inode;
        let (_, spaces) = inline_spaces(inode)?;
        let patch = change(spaces[space]).map_err(bad(inode))?;
        if space == 0 {
            patch.apply(&mut inode.block[INLINE_PARENT..]);
            return Ok(());
        }
        // The value lies within what follows the fields.
        let (start, len) = (spaces[1].as_ptr().addr(), spaces[1].len());
        let start = start - inode.extra.as_ptr().addr();
        patch.apply(&mut inode.extra[start..start + len]);
        Ok(())
    }

    /// Sets the number of a directory's parent in its inode, which the caller stores.
    pub(super) fn set_inline_parent(dir: &mut Live, parent: Ino) {
        dir.inode.block[..INLINE_PARENT].copy_from_slice(&parent.0.to_le_bytes());
    }

    /// Moves contents that lie in the inode to a block, as the kernel does when they grow; of a
    /// file that is about to be cut those before `size` alone. Other inodes stay as they are. No
    /// handle is held.
    ///
    /// # Errors
    /// [`Error::NoSpace`], and whatever reading the inode gives: nothing has changed then.
    pub fn outline(&self, caller: &Caller, live: &mut Live, size: u64) -> Result<()> {
        if !is_inline(&live.inode) {
            return Ok(());
        }
        let contents = self.inline_block(&live.inode, size)?;
        let extra = self.without_data(&live.inode)?;
        let blocks = u32::from(contents.is_some());
        let mut budget = Budget::new(&self.space, caller, blocks)?;
        let claim = budget.claim(self.home(&live.inode), blocks)?.pop();
        if let (Some(contents), Some(claim)) = (&contents, &claim)
            && !self.volume.is_journaled(&live.inode)
        {
            // Data first, metadata after.
            let offset = claim.start().0 << self.volume.superblock().block_bits;
            self.volume.source().write_at(offset, contents)?;
        }
        let mut handle = self.begin(Self::EDIT_CREDITS + 3)?;
        let before = live.inode.clone();
        live.inode.flags -= InodeFlags::INLINE_DATA;
        live.inode.block = [0; 60];
        if self.volume.superblock().features.incompat.contains(Incompat::EXTENTS) {
            live.inode.flags |= InodeFlags::EXTENTS;
            live.inode.block = EMPTY_ROOT;
        }
        live.inode.extra = extra;
        if let (Some(contents), Some(claim)) = (contents, claim) {
            let place = claim.start();
            if let Err(error) = budget.insert(self, &mut handle, live, 0, vec![claim]) {
                live.inode = before;
                return Err(error);
            }
            if self.volume.is_journaled(&live.inode) {
                let put = handle.create(place, contents);
                put.map_err(|error| handle.fail(error))?;
            }
        }
        if live.inode.kind == Kind::Directory {
            let size = u64::from(self.volume.superblock().block_size);
            (live.inode.size, live.disk_size) = (size, size);
        }
        self.store(&mut handle, live)
    }

    /// The block that contents of an inode move to, if they need one.
    fn inline_block(&self, inode: &Inode, size: u64) -> Result<Option<Box<[u8]>>> {
        let block_size = self.volume.superblock().block_size as usize;
        match inode.kind {
            Kind::Directory => self.inline_dir_block(inode).map(Some),
            Kind::Regular => {
                let mut contents = self.volume.inline_contents(inode)?;
                // Beyond its end there may be anything.
                contents.truncate(inode.size.min(size).min(block_size as u64) as usize);
                if contents.is_empty() {
                    return Ok(None);
                }
                contents.resize(block_size, 0);
                Ok(Some(contents.into()))
            }
            _ => Err(Error::Unsupported(format!("{}: its contents do not change", inode.ino))),
        }
    }

    fn inline_dir_block(&self, dir: &Inode) -> Result<Box<[u8]>> {
        let block_size = self.volume.superblock().block_size as usize;
        let format = self.dir_format();
        let (parent, spaces) = inline_spaces(dir)?;
        let file_type = format.file_type(Kind::Directory);
        let mut entries = vec![
            NewEntry { ino: dir.ino.0, name: b".", file_type },
            NewEntry { ino: parent.0, name: b"..", file_type },
        ];
        for bytes in spaces {
            entries.extend(edit::entries(bytes, self.inline_format()).map_err(bad(dir))?);
        }
        let len: usize = entries.iter().map(|entry| edit::needed(entry.name.len())).sum();
        if len > format.room(block_size) {
            return Err(bad(dir)("entries of over a block in its inode".into()));
        }
        let mut block = edit::pack(block_size, &entries, format);
        edit::seal(&mut block, format, dir.checksum_seed);
        Ok(block)
    }

    /// What follows an inode's fields, without contents.
    fn without_data(&self, inode: &Inode) -> Result<Box<[u8]>> {
        let bad = |why| Error::corrupt(inode.ino, why);
        let entries = xattr::parse_inode(&inode.extra).map_err(bad)?;
        let kept: Vec<attributes::Attribute> = entries
            .iter()
            .filter(|entry| (entry.index, entry.name) != DATA)
            .map(attributes::Attribute::from)
            .collect();
        attributes::inode_space(&kept, inode.extra.len())
            .ok_or_else(|| Error::corrupt(inode.ino, "attributes over their space"))
    }
}
