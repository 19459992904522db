//! From an inode to its bytes.

use zerocopy::{FromZeros, IntoBytes};

use super::{BASE, Inode, InodeFlags, Kind, RawInode, checksum, checksum_seed};
use crate::disk::extent;
use crate::disk::features::{Incompat, RoCompat};
use crate::disk::superblock::Superblock;
use crate::disk::time::Timestamp;
use crate::id::Ino;
use crate::{Error, Result};

/// Blocks that an inode can count, in its two fields.
const COUNTED: u64 = (1 << 48) - 1;

impl Inode {
    /// An inode that nobody used before, of the type and with the permissions of `mode`: without
    /// names, owner 0, all times `now`, with an empty map of the kind that the volume prefers.
    pub fn fresh(
        ino: Ino,
        mode: u16,
        generation: u32,
        now: Timestamp,
        superblock: &Superblock,
    ) -> Result<Self> {
        let kind = Kind::from_mode(mode)
            .ok_or_else(|| Error::Invalid(format!("mode {mode:#o} has no type")))?;
        let extra_isize = superblock.new_extra_isize as usize;
        let fits = |end: usize| end <= BASE + extra_isize;
        let now = now.clamped(fits(0x90));
        let mapped = matches!(kind, Kind::Regular | Kind::Directory | Kind::Symlink);
        let extents = mapped && superblock.features.incompat.contains(Incompat::EXTENTS);
        Ok(Self {
            ino,
            kind,
            mode,
            uid: 0,
            gid: 0,
            project: 0,
            size: 0,
            blocks: 0,
            links: 0,
            flags: if extents { InodeFlags::EXTENTS } else { InodeFlags::empty() },
            generation,
            version: 1,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: fits(0x98).then_some(now),
            dtime: 0,
            xattr_block: 0,
            block: if extents { extent::edit::EMPTY_ROOT } else { [0; 60] },
            extra: vec![0; superblock.inode_size as usize - BASE - extra_isize].into(),
            checksum_seed: checksum_seed(ino, generation, superblock),
        })
    }

    /// Puts the fields into `bytes`, which hold the inode as it is in its table (zeros for a new
    /// one) and keep what is not known here; `size` is what the inode says of its contents on disk.
    ///
    /// # Errors
    /// `EFBIG` when the file has more blocks than the volume can count; `bytes` are as before.
    pub fn encode(&self, bytes: &mut [u8], size: u64, superblock: &Superblock) -> Result<()> {
        let (blocks, huge) = self.counted(superblock)?;
        let mut raw = RawInode::new_zeroed();
        let known = bytes.len().min(size_of::<RawInode>());
        raw.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
        let extra_isize = bytes.len().saturating_sub(BASE + self.extra.len());
        let flags = if huge {
            self.flags | InodeFlags::HUGE_FILE
        } else {
            self.flags - InodeFlags::HUGE_FILE
        };
        raw.mode = self.mode.into();
        (raw.uid_lo, raw.uid_hi) = ((self.uid as u16).into(), ((self.uid >> 16) as u16).into());
        (raw.gid_lo, raw.gid_hi) = ((self.gid as u16).into(), ((self.gid >> 16) as u16).into());
        (raw.size_lo, raw.size_hi) = ((size as u32).into(), ((size >> 32) as u32).into());
        raw.dtime = self.dtime.into();
        raw.links_count = self.links.into();
        raw.blocks_lo = (blocks as u32).into();
        if superblock.features.ro_compat.contains(RoCompat::HUGE_FILE) {
            raw.blocks_hi = ((blocks >> 32) as u16).into();
        }
        raw.flags = flags.bits().into();
        raw.block = self.block;
        raw.generation = self.generation.into();
        raw.file_acl_lo = (self.xattr_block as u32).into();
        if !superblock.hurd {
            raw.version_lo = (self.version as u32).into();
            raw.file_acl_hi = ((self.xattr_block >> 32) as u16).into();
        }
        self.encode_times(&mut raw, BASE + extra_isize);
        if bytes.len() > BASE {
            raw.extra_isize = (extra_isize as u16).into();
            if extra_isize >= 0x9c - BASE && !superblock.hurd {
                raw.version_hi = ((self.version >> 32) as u32).into();
            }
            let project = superblock.features.ro_compat.contains(RoCompat::PROJECT);
            if extra_isize >= 0xa0 - BASE && project {
                raw.projid = self.project.into();
            }
        }
        // A field that does not fit lies where attributes are, which come last.
        bytes[..known].copy_from_slice(&raw.as_bytes()[..known]);
        if !self.extra.is_empty() {
            bytes[BASE + extra_isize..].copy_from_slice(&self.extra);
        }
        self.seal(bytes, extra_isize, superblock);
        Ok(())
    }

    fn encode_times(&self, raw: &mut RawInode, end: usize) {
        let set = |time: Timestamp, seconds: &mut _, extra: &mut _, extra_end: usize| {
            let wide = extra_end <= end;
            let (low, high) = time.encode(wide);
            *seconds = low.into();
            if wide {
                *extra = high.into();
            }
        };
        set(self.ctime, &mut raw.ctime, &mut raw.ctime_extra, 0x88);
        set(self.mtime, &mut raw.mtime, &mut raw.mtime_extra, 0x8c);
        set(self.atime, &mut raw.atime, &mut raw.atime_extra, 0x90);
        if let Some(crtime) = self.crtime
            && end >= 0x94
        {
            set(crtime, &mut raw.crtime, &mut raw.crtime_extra, 0x98);
        }
    }

    /// Puts the checksum into the bytes, where the volume has checksums.
    fn seal(&self, bytes: &mut [u8], extra_isize: usize, superblock: &Superblock) {
        if superblock.features.metadata_csum() {
            seal(bytes, self.checksum_seed, extra_isize);
        }
    }

    /// The number of blocks as it is recorded, and whether that is in blocks and not in units of
    /// 512 bytes.
    fn counted(&self, superblock: &Superblock) -> Result<(u64, bool)> {
        let huge_file = superblock.features.ro_compat.contains(RoCompat::HUGE_FILE);
        let limit = if huge_file { COUNTED } else { u32::MAX.into() };
        if self.blocks <= limit {
            return Ok((self.blocks, false));
        }
        let blocks = self.blocks >> (superblock.block_bits - 9);
        if huge_file && blocks <= COUNTED { Ok((blocks, true)) } else { Err(Error::FileTooBig) }
    }

    /// Makes a device node stand for a device.
    pub fn set_device(&mut self, major: u32, minor: u32) {
        let old = major < 256 && minor < 256;
        let first = if old { major << 8 | minor } else { 0 };
        let second = if old { 0 } else { (minor & 0xff) | major << 8 | (minor & !0xff) << 12 };
        self.block = [0; 60];
        self.block[..4].copy_from_slice(&first.to_le_bytes());
        self.block[4..8].copy_from_slice(&second.to_le_bytes());
    }

    /// Whether times have fractions, and years after 2038.
    pub fn has_wide_times(&self, superblock: &Superblock) -> bool {
        superblock.inode_size as usize >= 0x90 + self.extra.len()
    }
}

/// Puts the checksum into an inode's bytes.
pub fn seal(bytes: &mut [u8], seed: u32, extra_isize: usize) {
    let sum = checksum(bytes, seed, extra_isize).to_le_bytes();
    bytes[super::CHECKSUM_LO..super::CHECKSUM_LO + 2].copy_from_slice(&sum[..2]);
    if bytes.len() > BASE && extra_isize >= super::CHECKSUM_HI + 2 - BASE {
        bytes[super::CHECKSUM_HI..super::CHECKSUM_HI + 2].copy_from_slice(&sum[2..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::superblock::{RawSuperblock, Superblock};

    const NOW: Timestamp = Timestamp { seconds: 5_000_000_000, nanoseconds: 123_456_789 };

    /// A volume of one group with checksums, and inodes of `inode_size` bytes.
    fn volume(inode_size: u16) -> Superblock {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = crate::disk::superblock::MAGIC.into();
        raw.rev_level = 1.into();
        raw.log_block_size = 2.into();
        raw.log_cluster_size = 2.into();
        (raw.blocks_count_lo, raw.blocks_per_group) = (10_000.into(), 32_768.into());
        raw.clusters_per_group = 32_768.into();
        (raw.inodes_count, raw.inodes_per_group) = (64.into(), 64.into());
        (raw.first_ino, raw.inode_size) = (11.into(), inode_size.into());
        raw.feature_incompat = (Incompat::EXTENTS | Incompat::FILETYPE).bits().into();
        let features = RoCompat::METADATA_CSUM | RoCompat::HUGE_FILE | RoCompat::EXTRA_ISIZE;
        raw.feature_ro_compat = features.bits().into();
        raw.checksum_type = 1;
        raw.want_extra_isize = 32.into();
        raw.update_checksum();
        Superblock::try_from(&raw).unwrap()
    }

    #[test]
    fn an_inode_reads_as_it_was_written() {
        for (inode_size, wide) in [(128, false), (256, true), (1024, true)] {
            let superblock = volume(inode_size);
            let mut inode = Inode::fresh(Ino(12), 0o100_644, 77, NOW, &superblock).unwrap();
            assert_eq!(inode.has_wide_times(&superblock), wide);
            (inode.uid, inode.gid, inode.links) = (70_000, 80_000, 3);
            (inode.blocks, inode.xattr_block, inode.version) = (1 << 33, 1 << 20, (1 << 31) + 5);
            inode.extra.fill(0xab);
            let mut bytes = vec![0; inode_size.into()];
            inode.encode(&mut bytes, 1 << 40, &superblock).unwrap();
            let read = Inode::parse(&bytes, Ino(12), &superblock).unwrap();
            assert_eq!((read.uid, read.gid, read.links), (70_000, 80_000, 3));
            assert_eq!((read.size, read.blocks), (1 << 40, 1 << 33));
            assert_eq!((read.xattr_block, read.version), (1 << 20, (1 << 31) + 5));
            assert_eq!((read.mtime, read.crtime), (inode.mtime, inode.crtime));
            assert_eq!(read.mtime == NOW, wide);
            assert_eq!((read.extra, read.block), (inode.extra, inode.block));
        }
    }

    #[test]
    fn unknown_bytes_stay_and_counts_have_their_limits() {
        let superblock = volume(256);
        let mut inode = Inode::fresh(Ino(13), 0o040_755, 1, NOW, &superblock).unwrap();
        let mut bytes = vec![0; 256];
        bytes[0x70..0x74].fill(0x5a);
        inode.encode(&mut bytes, 0, &superblock).unwrap();
        assert_eq!(bytes[0x70..0x74], [0x5a; 4]);
        inode.blocks = COUNTED + 8;
        inode.encode(&mut bytes, 0, &superblock).unwrap();
        let read = Inode::parse(&bytes, Ino(13), &superblock).unwrap();
        assert!(read.flags.contains(InodeFlags::HUGE_FILE));
        assert_eq!(read.blocks, (COUNTED + 8) & !7);
        inode.blocks = u64::MAX;
        assert!(matches!(inode.encode(&mut bytes, 0, &superblock), Err(Error::FileTooBig)));
    }

    #[test]
    fn device_numbers_of_both_kinds() {
        let superblock = volume(256);
        let mut inode = Inode::fresh(Ino(14), 0o060_600, 1, NOW, &superblock).unwrap();
        for device in [(8, 1), (255, 255), (256, 0), (259, 1_000_000), (4095, 0xf_ffff)] {
            inode.set_device(device.0, device.1);
            assert_eq!(inode.device(), device);
        }
    }
}
