//! The block of attributes of an inode that goes: one user less.

use super::map::Freed;
use super::{Live, Writer};
use crate::disk::xattr::{self, edit};
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

const MAGIC: u32 = 0xea02_0000;
/// Bytes of the block's head, where it counts the inodes that share it and has its checksum.
const HEAD: usize = 32;

impl Writer {
    /// Takes an inode's reference off its block of attributes, which goes with the last one. Up to
    /// three blocks change; the caller stores the inode afterwards.
    ///
    /// # Errors
    /// When the block cannot be read or is no such block; nothing has changed then.
    pub(super) fn release_attributes(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
    ) -> Result<()> {
        if live.inode.xattr_block == 0 {
            return Ok(());
        }
        let superblock = self.volume.superblock();
        let place = Block(live.inode.xattr_block);
        let bad =
            |why: &str| Error::corrupt(live.inode.ino, format!("attributes at {place}: {why}"));
        if !self.volume.may_claim(&live.inode, place, 1) {
            return Err(bad("no such block"));
        }
        // Another inode may take its reference off at the same time.
        let _counts = self.orphans.lock();
        let cached = handle.read(place)?;
        let sums = superblock.features.metadata_csum();
        let sum = xattr::checksum(&cached.bytes, place, superblock.checksum_seed);
        if sums && sum.is_none_or(|(found, computed)| found != computed) {
            return Err(bad("wrong checksum"));
        }
        let users = edit::users(&cached.bytes);
        if cached.bytes.first_chunk() != Some(&MAGIC.to_le_bytes()) || users == 0 {
            return Err(bad("nobody has them"));
        }
        if users == 1 {
            drop(cached);
            handle.forget(place);
            let freed = Freed { start: place, len: 1 };
            self.free(handle, live, freed).map_err(|error| handle.fail(error))?;
        } else {
            let mut bytes = edit::with_users(&cached.bytes, users - 1);
            if sums {
                edit::seal(&mut bytes, place, superblock.checksum_seed);
            }
            drop(cached);
            let put = handle.put(place, 0, &bytes[..HEAD]);
            put.map_err(|error| handle.fail(error))?;
            live.discharge(1, superblock);
        }
        live.inode.xattr_block = 0;
        Ok(())
    }
}
