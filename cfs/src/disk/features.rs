//! Which features are read and written, read only, or refused: the three lists, here alone.
//!
//! Names are those of `mke2fs -O`. The format's own rule for bits that nobody here knows: an
//! unknown `compat` bit is harmless, an unknown `ro_compat` bit forbids writing, an unknown
//! `incompat` bit forbids everything. Unknown `compat` bits forbid writing too here: e2fsck would
//! refuse the result.

use bitflags::bitflags;

use crate::{Error, Result};

bitflags! {
    /// Features that software may ignore.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Compat: u32 {
        /// Blocks are preallocated to directories.
        const DIR_PREALLOC = 0x1;
        /// AFS magic inodes.
        const IMAGIC_INODES = 0x2;
        /// A journal.
        const HAS_JOURNAL = 0x4;
        /// Extended attributes.
        const EXT_ATTR = 0x8;
        /// Blocks reserved for growing the group descriptors.
        const RESIZE_INODE = 0x10;
        /// Hashed directories.
        const DIR_INDEX = 0x20;
        /// Superblock backups in at most two groups.
        const SPARSE_SUPER2 = 0x200;
        /// The journal may have a fast-commit area.
        const FAST_COMMIT = 0x400;
        /// Inode numbers and UUID must not change.
        const STABLE_INODES = 0x800;
        /// Orphans are listed in a file.
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }

    /// Features without which the volume cannot be understood.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Incompat: u32 {
        /// Compressed files.
        const COMPRESSION = 0x1;
        /// Directory entries carry the file's type.
        const FILETYPE = 0x2;
        /// The journal must be replayed.
        const RECOVER = 0x4;
        /// The device is a journal of another volume.
        const JOURNAL_DEV = 0x8;
        /// Group descriptors lie in their meta-groups.
        const META_BG = 0x10;
        /// Extent trees.
        const EXTENTS = 0x40;
        /// Block numbers of more than 32 bits.
        const BITS64 = 0x80;
        /// Multi-mount protection.
        const MMP = 0x100;
        /// Bitmaps and inode tables may lie outside their group.
        const FLEX_BG = 0x200;
        /// Large attribute values live in inodes.
        const EA_INODE = 0x400;
        /// Directory entries carry extra data.
        const DIRDATA = 0x1000;
        /// The checksum seed is in the superblock.
        const CSUM_SEED = 0x2000;
        /// Directories over 2 GiB or with three levels of hash tree.
        const LARGEDIR = 0x4000;
        /// Small files live in their inode.
        const INLINE_DATA = 0x8000;
        /// Encrypted files.
        const ENCRYPT = 0x1_0000;
        /// Case-insensitive directories.
        const CASEFOLD = 0x2_0000;
        const _ = !0;
    }

    /// Features that reading software may ignore.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RoCompat: u32 {
        /// Superblock backups in some groups only.
        const SPARSE_SUPER = 0x1;
        /// Files over 2 GiB.
        const LARGE_FILE = 0x2;
        /// Never used.
        const BTREE_DIR = 0x4;
        /// Block counts of files may be in blocks.
        const HUGE_FILE = 0x8;
        /// CRC-16 of group descriptors.
        const GDT_CSUM = 0x10;
        /// Directories with more than 65,000 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes have fields beyond 128 bytes.
        const EXTRA_ISIZE = 0x40;
        /// Quota files.
        const QUOTA = 0x100;
        /// Allocation in clusters of several blocks.
        const BIGALLOC = 0x200;
        /// CRC-32C of all metadata.
        const METADATA_CSUM = 0x400;
        /// The volume is marked read-only.
        const READONLY = 0x1000;
        /// Project ids and quota.
        const PROJECT = 0x2000;
        /// Files may share blocks.
        const SHARED_BLOCKS = 0x4000;
        /// Files with a Merkle tree.
        const VERITY = 0x8000;
        /// The orphan file may hold entries.
        const ORPHAN_PRESENT = 0x1_0000;
        const _ = !0;
    }
}

/// List 1: understood well enough to be written.
pub const READ_WRITE: Features = Features {
    compat: Compat::DIR_PREALLOC
        .union(Compat::HAS_JOURNAL)
        .union(Compat::EXT_ATTR)
        .union(Compat::RESIZE_INODE)
        .union(Compat::DIR_INDEX)
        .union(Compat::SPARSE_SUPER2)
        .union(Compat::FAST_COMMIT)
        .union(Compat::STABLE_INODES)
        .union(Compat::ORPHAN_FILE),
    incompat: Incompat::FILETYPE
        .union(Incompat::RECOVER)
        .union(Incompat::META_BG)
        .union(Incompat::EXTENTS)
        .union(Incompat::BITS64)
        .union(Incompat::MMP)
        .union(Incompat::FLEX_BG)
        .union(Incompat::EA_INODE)
        .union(Incompat::CSUM_SEED)
        .union(Incompat::LARGEDIR)
        .union(Incompat::INLINE_DATA),
    ro_compat: RoCompat::SPARSE_SUPER
        .union(RoCompat::LARGE_FILE)
        .union(RoCompat::HUGE_FILE)
        .union(RoCompat::GDT_CSUM)
        .union(RoCompat::DIR_NLINK)
        .union(RoCompat::EXTRA_ISIZE)
        .union(RoCompat::METADATA_CSUM)
        .union(RoCompat::ORPHAN_PRESENT),
};

/// List 2: read, never written.
///
/// Encrypted objects keep their attributes and answer ENOKEY for names and contents. Files with
/// a Merkle tree (`verity`) are read as their data, which is not checked against the tree.
pub const READ_ONLY: Features = Features {
    compat: Compat::IMAGIC_INODES,
    incompat: Incompat::ENCRYPT,
    ro_compat: RoCompat::BTREE_DIR
        .union(RoCompat::QUOTA)
        .union(RoCompat::BIGALLOC)
        .union(RoCompat::READONLY)
        .union(RoCompat::PROJECT)
        .union(RoCompat::SHARED_BLOCKS)
        .union(RoCompat::VERITY),
};

/// Of list 2 what recovery may change for all that: who removes orphans knows what these mean.
pub const RECOVERED: Features = Features {
    compat: Compat::empty(),
    incompat: READ_ONLY.incompat,
    ro_compat: RoCompat::QUOTA
        .union(RoCompat::BIGALLOC)
        .union(RoCompat::PROJECT)
        .union(RoCompat::VERITY),
};

/// List 3: refused, with the reason. Every `incompat` bit in none of the lists is refused too.
pub const REFUSED: [(Incompat, &str); 4] = [
    (Incompat::COMPRESSION, ": no kernel ever read it"),
    (Incompat::JOURNAL_DEV, ": this is another volume's journal, not a filesystem"),
    (Incompat::DIRDATA, ": it belongs to Lustre"),
    // Exact-match lookups would deny names that exist; the kernel without Unicode tables refuses
    // such volumes for the same reason.
    (Incompat::CASEFOLD, ": names are compared by Unicode tables that are not here"),
];

/// The features of one volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// May be ignored.
    pub compat: Compat,
    /// Must be understood.
    pub incompat: Incompat,
    /// May be ignored by readers.
    pub ro_compat: RoCompat,
}

/// What may be done with a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Reading, because of these features.
    ReadOnly(Vec<String>),
}

impl Features {
    /// What the lists allow; [`Error::Refused`] names the first feature that forbids reading.
    pub fn access(&self) -> Result<Access> {
        let readable = READ_WRITE.incompat | READ_ONLY.incompat;
        if let Some(bit) = bits(self.incompat.difference(readable).bits()).next() {
            let refused = REFUSED.iter().find(|(feature, _)| feature.bits() == bit);
            return Err(Error::Refused {
                feature: name("incompat", Incompat::from_bits_retain(bit).iter_names(), bit),
                hint: refused.map_or("", |(_, why)| why).into(),
            });
        }
        let names = self.names_beyond(&READ_WRITE);
        Ok(if names.is_empty() { Access::ReadWrite } else { Access::ReadOnly(names) })
    }

    /// The names of the features that forbid the removal of orphans.
    pub fn recovery_obstacles(&self) -> Vec<String> {
        self.names_beyond(&Features {
            compat: READ_WRITE.compat | RECOVERED.compat,
            incompat: READ_WRITE.incompat | RECOVERED.incompat,
            ro_compat: READ_WRITE.ro_compat | RECOVERED.ro_compat,
        })
    }

    /// The names of the features that are not among `known`.
    fn names_beyond(&self, known: &Self) -> Vec<String> {
        let compat = self.compat.difference(known.compat).bits();
        let incompat = self.incompat.difference(known.incompat).bits();
        let ro_compat = self.ro_compat.difference(known.ro_compat).bits();
        bits(compat)
            .map(|bit| name("compat", Compat::from_bits_retain(bit).iter_names(), bit))
            .chain(
                bits(incompat)
                    .map(|bit| name("incompat", Incompat::from_bits_retain(bit).iter_names(), bit)),
            )
            .chain(
                bits(ro_compat).map(|bit| {
                    name("ro_compat", RoCompat::from_bits_retain(bit).iter_names(), bit)
                }),
            )
            .collect()
    }

    /// Whether metadata carry CRC-32C (which overrides `gdt_csum`).
    pub fn metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Whether group descriptors carry a checksum of either kind.
    pub fn group_csum(&self) -> bool {
        self.ro_compat.intersects(RoCompat::METADATA_CSUM.union(RoCompat::GDT_CSUM))
    }
}

fn bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|shift| 1 << shift).filter(move |bit| mask & bit != 0)
}

/// The name of one bit as `mke2fs -O` spells it, or the set and the bit where it has none.
fn name<T>(set: &str, mut names: impl Iterator<Item = (&'static str, T)>, bit: u32) -> String {
    match names.next() {
        Some(("BITS64", _)) => "64bit".into(),
        Some(("GDT_CSUM", _)) => "uninit_bg".into(),
        Some(("CSUM_SEED", _)) => "metadata_csum_seed".into(),
        Some(("EXTENTS", _)) => "extent".into(),
        Some(("LARGEDIR", _)) => "large_dir".into(),
        Some(("READONLY", _)) => "read-only".into(),
        Some((name, _)) => name.to_lowercase(),
        None => format!("{set} {bit:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(compat: u32, incompat: u32, ro_compat: u32) -> Features {
        Features {
            compat: Compat::from_bits_retain(compat),
            incompat: Incompat::from_bits_retain(incompat),
            ro_compat: RoCompat::from_bits_retain(ro_compat),
        }
    }

    #[test]
    fn the_lists_do_not_overlap() {
        assert!(READ_WRITE.compat.intersection(READ_ONLY.compat).is_empty());
        assert!(READ_WRITE.incompat.intersection(READ_ONLY.incompat).is_empty());
        assert!(READ_WRITE.ro_compat.intersection(READ_ONLY.ro_compat).is_empty());
        assert!(READ_ONLY.compat.contains(RECOVERED.compat));
        assert!(READ_ONLY.incompat.contains(RECOVERED.incompat));
        assert!(READ_ONLY.ro_compat.contains(RECOVERED.ro_compat));
        for (feature, _) in REFUSED {
            assert!(!(READ_WRITE.incompat | READ_ONLY.incompat).intersects(feature));
        }
    }

    #[test]
    fn the_defaults_of_mke2fs_are_writable() {
        // mke2fs 1.47 -t ext4, with orphan_file and metadata_csum_seed.
        assert_eq!(features(0x103c, 0x22c2, 0x46b).access().unwrap(), Access::ReadWrite);
    }

    #[test]
    fn a_refusal_names_the_feature() {
        let message = features(0, 0x2_0042, 0).access().unwrap_err().to_string();
        assert!(message.starts_with("feature casefold is not supported"), "{message}");
        let message = features(0, 0x8000_0042, 0).access().unwrap_err().to_string();
        assert_eq!(message, "feature incompat 0x80000000 is not supported");
    }

    #[test]
    fn unknown_bits_of_the_other_sets_forbid_writing() {
        let Access::ReadOnly(names) =
            features(0x4000_0000, 0x1_0042, 0x8000_0200).access().unwrap()
        else {
            panic!("writable");
        };
        assert_eq!(names, ["compat 0x40000000", "encrypt", "bigalloc", "ro_compat 0x80000000"]);
    }
}
