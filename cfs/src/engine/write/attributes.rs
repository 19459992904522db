//! The block of attributes of an inode that goes: one user less.

use super::map::Freed;
use super::{Live, Writer};
use crate::disk::checksum::crc32c;
use crate::disk::xattr;
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

const MAGIC: u32 = 0xea02_0000;
/// Where the block counts the inodes that share it, and where its checksum is.
const USERS: usize = 4;
const CHECKSUM: usize = 0x10;

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
        let cached = handle.read(place)?;
        let word = |at: usize| {
            cached.bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
        };
        let sums = superblock.features.metadata_csum();
        let sum = xattr::checksum(&cached.bytes, place, superblock.checksum_seed);
        if sums && sum.is_none_or(|(found, computed)| found != computed) {
            return Err(bad("wrong checksum"));
        }
        let users = word(USERS);
        if word(0) != MAGIC || users == 0 {
            return Err(bad("nobody has them"));
        }
        if users == 1 {
            drop(cached);
            handle.forget(place);
            let freed = Freed { start: place, len: 1 };
            self.free(handle, live, freed).map_err(|error| handle.fail(error))?;
        } else {
            let users = (users - 1).to_le_bytes();
            let bytes = &cached.bytes;
            let number = place.0.to_le_bytes();
            let parts: [&[u8]; 6] = [
                &number,
                &bytes[..USERS],
                &users,
                &bytes[USERS + 4..CHECKSUM],
                &[0; 4],
                &bytes[CHECKSUM + 4..],
            ];
            let sum = parts.iter().fold(superblock.checksum_seed, |sum, part| crc32c(sum, part));
            drop(cached);
            handle.put(place, USERS, &users).map_err(|error| handle.fail(error))?;
            if sums {
                let put = handle.put(place, CHECKSUM, &sum.to_le_bytes());
                put.map_err(|error| handle.fail(error))?;
            }
            live.discharge(1, superblock);
        }
        live.inode.xattr_block = 0;
        Ok(())
    }
}
