//! Takes what orphans used off the accounts of their owners.
//!
//! The accounts of a volume with `quota` are files in the format of the kernel's quota version 2,
//! revision 1 (include/uapi/linux/quota.h and fs/quota/quotaio_v2.h): blocks of 1 KiB, of which the
//! first holds a header and the second is the root of a tree of four levels, one for each byte of
//! an id from the highest on; below it are blocks of entries. Nothing is ever added here, so
//! entries are changed where they are.

use std::collections::BTreeMap;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::assert_layout;
use crate::disk::inode::{Inode, Kind};
use crate::engine::{Mapping, Volume};
use crate::id::Ino;
use crate::{Error, Result};

/// What an inode is charged for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// What is to be taken off, by kind of account (as in the superblock) and id.
#[derive(Default)]
pub(super) struct Charges {
    accounts: BTreeMap<(usize, u32), Usage>,
}

/// An account, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawAccount {
    id: U32,
    pad: U32,
    inodes_hard: U64,
    inodes_soft: U64,
    inodes: U64,
    /// In KiB, as the next.
    space_hard: U64,
    space_soft: U64,
    /// In bytes.
    space: U64,
    space_time: U64,
    inodes_time: U64,
}

assert_layout!(RawAccount, 72, {
    0 id, 4 pad, 8 inodes_hard, 16 inodes_soft, 24 inodes, 32 space_hard, 40 space_soft, 48 space,
    56 space_time, 64 inodes_time,
});

/// The magic numbers of the files by user, group and project.
const MAGIC: [u32; 3] = [0xd9c0_1f11, 0xd9c0_1927, 0xd9c0_3f14];
const VERSION: u32 = 1;
const BLOCK: usize = 1024;
/// The tree's root.
const ROOT: u32 = 1;
const LEVELS: u32 = 4;
/// Bytes before the entries of a block.
const ENTRIES_START: usize = 16;

impl Charges {
    /// Remembers what an inode's owners are no longer charged for.
    pub(super) fn add(&mut self, inode: &Inode, usage: Usage) {
        for (kind, id) in [inode.uid, inode.gid, inode.project].into_iter().enumerate() {
            let account = self.accounts.entry((kind, id)).or_default();
            account.bytes = account.bytes.saturating_add(usage.bytes);
            account.inodes = account.inodes.saturating_add(usage.inodes);
        }
    }

    /// Changes the files of a volume that has them.
    pub(super) fn take_back(&self, volume: &Volume) -> Result<()> {
        for (&(kind, id), usage) in &self.accounts {
            if usage.bytes == 0 && usage.inodes == 0 {
                continue;
            }
            if let Some(ino) = volume.superblock().quota_files.get(kind).copied().flatten() {
                let inode = volume.any_inode(ino)?;
                File { volume, inode, magic: MAGIC[kind] }.take_back(id, usage)?;
            }
        }
        Ok(())
    }
}

/// A file of accounts.
struct File<'a> {
    volume: &'a Volume,
    inode: Inode,
    magic: u32,
}

impl File<'_> {
    fn take_back(&self, id: u32, usage: &Usage) -> Result<()> {
        let mut bytes = [0; BLOCK];
        self.read(0, &mut bytes)?;
        if word(&bytes, 0) != self.magic || word(&bytes, 4) != VERSION {
            return Err(self.bad("is no quota file of version 2, revision 1"));
        }
        let mut block = ROOT;
        for level in (0..LEVELS).rev() {
            self.read(block, &mut bytes)?;
            let byte = (id >> (8 * level)) as u8;
            block = word(&bytes, usize::from(byte) * 4);
            if block == 0 {
                // Nothing was ever counted for the id: nothing is to be taken off.
                return Ok(());
            }
        }
        let offset = self.read(block, &mut bytes)?;
        for (at, entry) in
            (0_u64..).zip(bytes[ENTRIES_START..].chunks_exact(size_of::<RawAccount>()))
        {
            let Ok(account) = RawAccount::read_from_bytes(entry) else { break };
            // An entry of zeros is free, not that of id 0.
            if account.id.get() != id || entry.iter().all(|&byte| byte == 0) {
                continue;
            }
            let offset = offset + ENTRIES_START as u64 + at * size_of::<RawAccount>() as u64;
            let changed = account.less(usage);
            return self.volume.source().write_at(offset, changed.as_bytes());
        }
        Err(self.bad(&format!("has no entry for id {id}")))
    }

    /// Reads a block of the file and says where it is on the volume.
    fn read(&self, block: u32, bytes: &mut [u8; BLOCK]) -> Result<u64> {
        let bits = self.volume.superblock().block_bits;
        let offset = u64::from(block) * BLOCK as u64;
        if self.inode.kind != Kind::Regular || offset + BLOCK as u64 > self.inode.size {
            return Err(self.bad(&format!("has no block {block}")));
        }
        let Mapping::Data(place) = self.volume.map(&self.inode, offset >> bits, 1)?.mapping else {
            return Err(self.bad(&format!("has a hole at block {block}")));
        };
        let offset = (place.0 << bits) + (offset & ((1 << bits) - 1));
        self.volume.source().read_at(offset, bytes)?;
        Ok(offset)
    }

    fn bad(&self, why: &str) -> Error {
        let Ino(ino) = self.inode.ino;
        Error::corrupt(format_args!("quota file, inode {ino}"), why)
    }
}

impl RawAccount {
    /// With less usage. Who is below a limit has all the time again.
    fn less(mut self, usage: &Usage) -> Self {
        let space = self.space.get().saturating_sub(usage.bytes);
        let inodes = self.inodes.get().saturating_sub(usage.inodes);
        (self.space, self.inodes) = (space.into(), inodes.into());
        if space <= self.space_soft.get().saturating_mul(1024) {
            self.space_time = U64::ZERO;
        }
        if inodes <= self.inodes_soft.get() {
            self.inodes_time = U64::ZERO;
        }
        if self.as_bytes().iter().all(|&byte| byte == 0) {
            // Only so is it not a free entry.
            self.inodes_time = 1.into();
        }
        self
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: u32, space: u64, inodes: u64) -> RawAccount {
        let Ok(mut account) = RawAccount::read_from_bytes(&[0; size_of::<RawAccount>()]) else {
            unreachable!("an account has 72 bytes");
        };
        (account.id, account.space, account.inodes) = (id.into(), space.into(), inodes.into());
        account
    }

    #[test]
    fn usage_is_taken_off_and_never_below_zero() {
        let changed = account(7, 9000, 3).less(&Usage { bytes: 4096, inodes: 1 });
        assert_eq!((changed.space.get(), changed.inodes.get()), (4904, 2));
        let changed = account(7, 9000, 3).less(&Usage { bytes: 10_000, inodes: 4 });
        assert_eq!((changed.space.get(), changed.inodes.get()), (0, 0));
    }

    #[test]
    fn who_is_below_the_limits_again_has_all_the_time() {
        let mut over = account(7, 9000, 3);
        (over.space_soft, over.inodes_soft) = (8.into(), 2.into());
        (over.space_time, over.inodes_time) = (99.into(), 99.into());
        let still = over.clone().less(&Usage { bytes: 100, inodes: 0 });
        assert_eq!((still.space_time.get(), still.inodes_time.get()), (99, 99));
        let below = over.less(&Usage { bytes: 808, inodes: 1 });
        assert_eq!((below.space_time.get(), below.inodes_time.get()), (0, 0));
    }

    #[test]
    fn an_account_of_id_0_does_not_become_a_free_entry() {
        let none = account(0, 4096, 1).less(&Usage { bytes: 4096, inodes: 1 });
        assert!(none.as_bytes().iter().any(|&byte| byte != 0));
    }
}
