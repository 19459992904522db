//! The matrix of volumes that are compared: what mke2fs can make, filled by it and by the kernel.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::populate::{Plan, populate};
use super::{Image, Scratch};

/// A volume of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// For messages.
    pub name: &'static str,
    /// For mke2fs.
    pub arguments: &'static str,
    /// For debugfs, before the kernel writes.
    pub prepare: &'static str,
    /// For tune2fs, before the kernel writes.
    pub tune: &'static str,
    /// The tree.
    pub plan: Plan,
    /// Whether every kernel can write such a volume.
    pub kernel_writes: bool,
    /// Whether e2fsck then packs and sorts all directories.
    pub rebuild: bool,
}

fn case(name: &'static str, block: u64, arguments: &'static str) -> Case {
    let plan = Plan::new(block);
    Case { name, arguments, prepare: "", tune: "", plan, kernel_writes: true, rebuild: false }
}

/// Files without extents: nothing is allocated without being written.
fn indirect(mut case: Case) -> Case {
    case.plan.indirect = true;
    // Files end before 2^32 sectors, or where three levels do.
    case.plan.large_offsets = case.plan.block <= 2048;
    case
}

/// Files that may live in their inodes.
fn inline(mut case: Case) -> Case {
    case.plan.nothing = false;
    case
}

/// Volumes without extents.
#[must_use]
pub fn ext2_and_ext3() -> Vec<Case> {
    vec![
        indirect(case("ext2, 1 KiB blocks, inodes of 128", 1024, "-t ext2 -b 1024 -I 128")),
        indirect(case("ext2, 4 KiB blocks", 4096, "-t ext2 -b 4096")),
        indirect(case("ext2 of revision 0", 1024, "-t ext2 -b 1024 -r 0 -O none")),
        indirect(case("ext3, 1 KiB blocks", 1024, "-t ext3 -b 1024")),
        indirect(case("ext3, 2 KiB blocks", 2048, "-t ext3 -b 2048 -I 128")),
        indirect(case("ext3, 4 KiB blocks", 4096, "-t ext3 -b 4096")),
    ]
}

/// All sizes of blocks and inodes.
#[must_use]
pub fn block_and_inode_sizes() -> Vec<Case> {
    vec![
        case("ext4", 4096, "-t ext4 -b 4096"),
        case("1 KiB blocks", 1024, "-t ext4 -b 1024"),
        case("2 KiB blocks", 2048, "-t ext4 -b 2048"),
        case("inodes of 128", 4096, "-t ext4 -b 4096 -I 128"),
        case("inodes of 512", 1024, "-t ext4 -b 1024 -I 512"),
        case("inodes of 1024", 4096, "-t ext4 -b 4096 -I 1024"),
        case("inodes of a block", 4096, "-t ext4 -b 4096 -I 4096 -N 6000"),
    ]
}

/// Features of groups and checksums.
#[must_use]
pub fn features_of_groups_and_checksums() -> Vec<Case> {
    let mut new_uuid = case("a seed of its own", 1024, "-t ext4 -b 1024 -O metadata_csum_seed");
    new_uuid.tune = "-U 12345678-1234-1234-1234-123456789abc";
    // It takes a kernel with quota to write it.
    let mut quota = case("quota and project", 4096, "-t ext4 -b 4096 -O quota,project");
    quota.kernel_writes = false;
    vec![
        case("^64bit", 4096, "-t ext4 -b 4096 -O ^64bit"),
        case("^flex_bg", 1024, "-t ext4 -b 1024 -O ^flex_bg"),
        case("meta_bg", 1024, "-t ext4 -b 1024 -O meta_bg,^resize_inode"),
        case("meta_bg, ^flex_bg", 1024, "-t ext4 -b 1024 -O meta_bg,^resize_inode,^flex_bg"),
        case("bigalloc", 4096, "-t ext4 -b 4096 -O bigalloc -C 16384"),
        case("bigalloc, 1 KiB blocks", 1024, "-t ext4 -b 1024 -O bigalloc -C 8192"),
        case("uninit_bg", 4096, "-t ext4 -b 4096 -O uninit_bg,^metadata_csum"),
        case("no checksums", 1024, "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg"),
        case("sparse_super2", 1024, "-t ext4 -b 1024 -O sparse_super2,^resize_inode"),
        case("^sparse_super", 1024, "-t ext4 -b 1024 -O ^sparse_super,^resize_inode"),
        case("^has_journal", 4096, "-t ext4 -b 4096 -O ^has_journal"),
        quota,
        new_uuid,
    ]
}

/// What few people make.
#[must_use]
pub fn unusual_volumes() -> Vec<Case> {
    let rebuilt = |name, block, arguments| Case { rebuild: true, ..case(name, block, arguments) };
    vec![
        case("small groups", 1024, "-t ext4 -b 1024 -g 2048 -O ^flex_bg"),
        case("groups of other sizes", 1024, "-t ext4 -b 1024 -g 5000 -N 7777"),
        case("packed", 4096, "-t ext4 -b 4096 -G 64 -E packed_meta_blocks=1,stride=8"),
        case("no backups", 1024, "-t ext4 -b 1024 -O sparse_super2 -E num_backup_sb=0"),
        case("one backup", 1024, "-t ext4 -b 1024 -O sparse_super2 -E num_backup_sb=1"),
        case("large clusters", 1024, "-t ext4 -b 1024 -O bigalloc -C 65536"),
        case("inodes of 2048", 4096, "-t ext4 -b 4096 -I 2048"),
        case("rare features", 4096, "-t ext4 -b 4096 -O encrypt,verity,stable_inodes"),
        case("orphan file", 4096, "-t ext4 -b 4096 -O orphan_file,metadata_csum_seed"),
        case("32-bit meta_bg", 4096, "-t ext4 -b 4096 -O ^64bit,meta_bg,^resize_inode"),
        indirect(case("of the Hurd", 1024, "-t ext2 -b 1024 -o hurd -I 128")),
        rebuilt("names sorted anew", 1024, "-t ext4 -b 1024"),
        rebuilt("names sorted anew, no checksums", 4096, "-t ext4 -b 4096 -O ^metadata_csum"),
        inline(rebuilt("names sorted anew, inline", 1024, "-t ext4 -b 1024 -O inline_data")),
    ]
}

/// Features of files, directories and names.
#[must_use]
pub fn features_of_files_and_names() -> Vec<Case> {
    let mut attributes = case("ea_inode", 4096, "-t ext4 -b 4096 -O ea_inode");
    attributes.plan.attributes = 50_000;
    let hash = |name, tune, prepare| Case { tune, prepare, ..case(name, 1024, "-t ext4 -b 1024") };
    vec![
        indirect(case("^extent", 1024, "-t ext4 -b 1024 -O ^extent,^64bit")),
        inline(case("inline_data", 4096, "-t ext4 -b 4096 -O inline_data")),
        inline(case("inline_data in 1024", 4096, "-t ext4 -b 4096 -I 1024 -O inline_data")),
        inline(case("inline_data alone", 1024, "-t ext4 -b 1024 -O inline_data,^metadata_csum")),
        attributes,
        case("large_dir", 1024, "-t ext4 -b 1024 -O large_dir"),
        case("^dir_index", 4096, "-t ext4 -b 4096 -O ^dir_index"),
        case("^filetype", 4096, "-t ext4 -b 4096 -O ^filetype"),
        case("^orphan_file", 4096, "-t ext4 -b 4096 -O ^orphan_file"),
        case("^huge_file, ^dir_nlink", 4096, "-t ext4 -b 4096 -O ^huge_file,^dir_nlink"),
        case("^extra_isize", 4096, "-t ext4 -b 4096 -O ^extra_isize"),
        hash("names hashed by TEA", "-E hash_alg=tea", ""),
        hash("names hashed as at first", "-E hash_alg=legacy", ""),
        hash("half MD4 of unsigned bytes", "", "set_super_value flags 2"),
        hash("TEA of unsigned bytes", "-E hash_alg=tea", "set_super_value flags 2"),
    ]
}

/// The whole matrix.
#[must_use]
pub fn all() -> Vec<Case> {
    let parts: [fn() -> Vec<Case>; 5] = [
        ext2_and_ext3,
        block_and_inode_sizes,
        features_of_groups_and_checksums,
        unusual_volumes,
        features_of_files_and_names,
    ];
    parts.iter().flat_map(|part| part()).collect()
}

/// Trees that mke2fs takes its files from, each made once.
pub struct Sources {
    scratch: Scratch,
    made: Vec<(Plan, PathBuf)>,
}

impl Sources {
    /// None yet.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn new() -> Result<Self> {
        Ok(Self { scratch: Scratch::new()?, made: Vec::new() })
    }

    /// Makes the volume of a case in a directory of its own, filled by mke2fs and by the kernel.
    ///
    /// # Errors
    /// When a program or the kernel refuses.
    pub fn volume(&mut self, case: &Case, scratch: &Scratch) -> Result<Image> {
        // The host's filesystem may have less room for attributes than the volume.
        let wanted = Plan { attributes: case.plan.attributes.min(900), ..case.plan };
        let known = self.made.iter().find(|(plan, _)| *plan == wanted);
        let source = match known {
            Some((_, source)) => source.clone(),
            None => {
                let source = self.scratch.subdir(&self.made.len().to_string())?;
                populate(&source, &wanted).context("the source")?;
                self.made.push((wanted, source.clone()));
                source
            }
        };
        fill(case, scratch, &source)
    }
}

/// Makes the volume of a case, filled by mke2fs and by the kernel.
fn fill(case: &Case, scratch: &Scratch, source: &Path) -> Result<Image> {
    let image = Image::make(&scratch.path("image"), 192, case.arguments, Some(source))?;
    image.tune(case.tune)?;
    image.debugfs_write(case.prepare)?;
    let at = scratch.subdir("mount")?;
    if !case.kernel_writes {
        return Ok(image);
    }
    let mount = image.mount(&at, "rw")?;
    let by_kernel = mount.path().join("by-kernel");
    std::fs::create_dir(&by_kernel)?;
    populate(&by_kernel, &case.plan)?;
    mount.unmount()?;
    if case.rebuild {
        image.rebuild()?;
    }
    Ok(image)
}
