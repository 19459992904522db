//! The owner's engine: what the on-disk structures of a volume mean.
//!
//! All methods take `&self` and may be called at once from any number of threads. An object whose
//! bytes contradict the format answers [`Error::Corrupt`]; the rest of the volume stays readable.

mod attr;
pub(crate) mod cache;
mod dir;
mod file;
mod map;
pub mod store;
pub mod write;
mod xattr;
mod zones;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use attr::{Attr, StatFs};
pub use dir::DirEntry;
pub use map::{Mapping, Run, Runs};

use crate::disk::features::{Access, Compat, Incompat};
use crate::disk::group::Group;
use crate::disk::inode::{Inode, InodeFlags, Kind};
use crate::disk::superblock::{self, Superblock};
use crate::id::{Block, Ino};
use crate::{Error, Result, limits};
use cache::{BlockCache, CachedBlock};
use store::{BlockSource, Prompt};
use zones::Zones;

/// How to open a volume.
#[derive(Clone, Debug)]
pub struct Options {
    /// Open even if the journal needs recovery, and read what is in place: for who replays it.
    pub ignore_journal: bool,
    /// Bytes of metadata blocks kept in memory.
    pub metadata_cache: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { ignore_journal: false, metadata_cache: limits::METADATA_CACHE }
    }
}

/// An open volume.
pub struct Volume {
    source: Arc<dyn BlockSource>,
    superblock: Superblock,
    access: Access,
    /// `None` for a group whose descriptor is corrupt.
    groups: Box<[Option<Group>]>,
    zones: Zones,
    cache: BlockCache,
    overhead: u64,
    /// The contents of all files go through the journal.
    journals_data: AtomicBool,
}

impl Volume {
    /// Opens the volume that the source holds.
    pub fn open(source: Arc<dyn BlockSource>, options: &Options) -> Result<Self> {
        let superblock = read_superblock(&*source)?;
        let access = superblock.features.access()?;
        if superblock.features.incompat.contains(Incompat::RECOVER) && !options.ignore_journal {
            return Err(Error::NeedsRecovery);
        }
        let groups = read_groups(&*source, &superblock)?;
        let zones = Zones::new(&superblock, &groups);
        let cache = BlockCache::new(options.metadata_cache, superblock.block_size);
        let source = Arc::new(Prompt(source));
        let journals_data = AtomicBool::new(false);
        let mut volume =
            Self { source, superblock, access, groups, zones, cache, overhead: 0, journals_data };
        volume.overhead = volume.count_overhead();
        Ok(volume)
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// What the volume's features allow.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The contents of all files go through the journal from now on, as `data=journal` has it.
    /// Nobody writes yet.
    pub(crate) fn journal_data(&self) {
        self.journals_data.store(true, Ordering::Relaxed);
    }

    /// Whether an inode's contents go through the journal as metadata do: the newest may be in
    /// memory alone, and are not to come back over what their blocks hold later.
    pub(crate) fn is_journaled(&self, inode: &Inode) -> bool {
        let chosen = || {
            self.superblock.features.compat.contains(Compat::HAS_JOURNAL)
                && (inode.flags.contains(InodeFlags::JOURNAL_DATA)
                    || self.journals_data.load(Ordering::Relaxed))
        };
        inode.kind != Kind::Regular || inode.flags.contains(InodeFlags::EA_INODE) || chosen()
    }

    /// The storage under the volume.
    pub fn source(&self) -> &Arc<dyn BlockSource> {
        &self.source
    }

    /// The descriptors as they were when the volume was opened; `None` for corrupt ones.
    pub(crate) fn groups(&self) -> &[Option<Group>] {
        &self.groups
    }

    /// Where the volume keeps its own structures.
    pub(crate) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// An inode that is in use and no internal one of the volume.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        if !self.is_public(ino) {
            return Err(Error::Stale(ino.to_string()));
        }
        let inode = self.any_inode(ino)?;
        if inode.links == 0 { Err(Error::Stale(ino.to_string())) } else { Ok(inode) }
    }

    /// An inode that is or was in use: internal ones and orphans too.
    pub fn any_inode(&self, ino: Ino) -> Result<Inode> {
        let superblock = &self.superblock;
        let offset = self.inode_offset(ino)?;
        let within = (offset % u64::from(superblock.block_size)) as usize;
        let block = self.block(Block(offset >> superblock.block_bits))?;
        let bytes = &block.bytes[within..within + superblock.inode_size as usize];
        Inode::parse(bytes, ino, superblock)
    }

    /// Where an inode lies, in bytes from the volume's start.
    pub(crate) fn inode_offset(&self, ino: Ino) -> Result<u64> {
        let superblock = &self.superblock;
        if ino.0 == 0 || ino.0 > superblock.inodes_count {
            return Err(Error::Stale(ino.to_string()));
        }
        let index = ino.0 - 1;
        let group = index / superblock.inodes_per_group;
        let Some(Some(descriptor)) = self.groups.get(group as usize) else {
            return Err(Error::corrupt(ino, format!("the descriptor of group {group} is corrupt")));
        };
        let offset =
            u64::from(index % superblock.inodes_per_group) * u64::from(superblock.inode_size);
        Ok((descriptor.inode_table.0 << superblock.block_bits) + offset)
    }

    /// Whether names may lead to an inode: the root's or a number that is not reserved.
    pub(crate) fn is_public(&self, ino: Ino) -> bool {
        let superblock = &self.superblock;
        let internal =
            superblock.orphan_file == Some(ino) || superblock.quota_files.contains(&Some(ino));
        ino == Ino::ROOT
            || (ino.0 >= superblock.first_ino && ino.0 <= superblock.inodes_count && !internal)
    }

    /// The blocks of metadata in memory.
    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// A block of metadata in its newest version, from memory if it is there.
    pub(crate) fn block(&self, block: Block) -> Result<Arc<CachedBlock>> {
        self.cache.get(block, || {
            let mut bytes = vec![0; self.superblock.block_size as usize].into_boxed_slice();
            self.source.read_at(block.0 << self.superblock.block_bits, &mut bytes)?;
            Ok(bytes)
        })
    }
}

/// Reads and checks the superblock, and that the source is as large as it says.
pub fn read_superblock(source: &dyn BlockSource) -> Result<Superblock> {
    let mut bytes = [0; superblock::SIZE];
    let size = source.size();
    if size < superblock::OFFSET + superblock::SIZE as u64 {
        return Err(Error::NotExt(format!(
            "no ext2, ext3 or ext4 filesystem: {size} bytes are too few for one"
        )));
    }
    source.read_at(superblock::OFFSET, &mut bytes)?;
    let superblock = Superblock::parse(&bytes)?;
    if superblock.volume_size() > size {
        return Err(Error::NotExt(format!(
            "truncated: the filesystem has {} bytes, its storage {size}",
            superblock.volume_size()
        )));
    }
    Ok(superblock)
}

fn read_groups(source: &dyn BlockSource, superblock: &Superblock) -> Result<Box<[Option<Group>]>> {
    let mut groups = Vec::with_capacity(superblock.groups as usize);
    let mut bytes = vec![0; superblock.block_size as usize];
    for index in 0..superblock.desc_blocks() {
        let block = superblock.desc_block(index);
        let known = block.0 < superblock.blocks_count;
        if known {
            source.read_at(block.0 << superblock.block_bits, &mut bytes)?;
        }
        for descriptor in bytes.chunks_exact(superblock.desc_size as usize) {
            let group = groups.len() as u32;
            if group == superblock.groups {
                break;
            }
            // A corrupt descriptor costs the inodes of its group, not the volume.
            let parsed = Group::parse(descriptor, group, superblock);
            groups.push(parsed.ok().filter(|_| known));
        }
    }
    Ok(groups.into_boxed_slice())
}

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Volume>();
};
