//! The engine's view of volumes equals the kernel's, over a matrix of what mke2fs can make.
//!
//! Each volume is filled by mke2fs from a tree, then by the kernel with the same tree. With
//! `OSLET_FULL` set the trees are large.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::fsdiff::compare::compare;
use tests::fsdiff::populate::{Plan, populate};
use tests::fsdiff::{Image, Scratch, is_root};

/// A volume of the matrix.
struct Case {
    /// For messages.
    name: &'static str,
    /// For mke2fs.
    arguments: &'static str,
    /// For debugfs, before the kernel writes.
    prepare: &'static str,
    /// For tune2fs, before the kernel writes.
    tune: &'static str,
    /// The tree.
    plan: Plan,
    /// Whether every kernel can write such a volume.
    kernel_writes: bool,
    /// Whether e2fsck then packs and sorts all directories.
    rebuild: bool,
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

#[test]
fn ext2_and_ext3() -> Result<()> {
    run(vec![
        indirect(case("ext2, 1 KiB blocks, inodes of 128", 1024, "-t ext2 -b 1024 -I 128")),
        indirect(case("ext2, 4 KiB blocks", 4096, "-t ext2 -b 4096")),
        indirect(case("ext2 of revision 0", 1024, "-t ext2 -b 1024 -r 0 -O none")),
        indirect(case("ext3, 1 KiB blocks", 1024, "-t ext3 -b 1024")),
        indirect(case("ext3, 2 KiB blocks", 2048, "-t ext3 -b 2048 -I 128")),
        indirect(case("ext3, 4 KiB blocks", 4096, "-t ext3 -b 4096")),
    ])
}

#[test]
fn block_and_inode_sizes() -> Result<()> {
    run(vec![
        case("ext4", 4096, "-t ext4 -b 4096"),
        case("1 KiB blocks", 1024, "-t ext4 -b 1024"),
        case("2 KiB blocks", 2048, "-t ext4 -b 2048"),
        case("inodes of 128", 4096, "-t ext4 -b 4096 -I 128"),
        case("inodes of 512", 1024, "-t ext4 -b 1024 -I 512"),
        case("inodes of 1024", 4096, "-t ext4 -b 4096 -I 1024"),
        case("inodes of a block", 4096, "-t ext4 -b 4096 -I 4096 -N 6000"),
    ])
}

#[test]
fn features_of_groups_and_checksums() -> Result<()> {
    let mut new_uuid = case("a seed of its own", 1024, "-t ext4 -b 1024 -O metadata_csum_seed");
    new_uuid.tune = "-U 12345678-1234-1234-1234-123456789abc";
    // It takes a kernel with quota to write it.
    let mut quota = case("quota and project", 4096, "-t ext4 -b 4096 -O quota,project");
    quota.kernel_writes = false;
    run(vec![
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
    ])
}

#[test]
fn unusual_volumes() -> Result<()> {
    let rebuilt = |name, block, arguments| Case { rebuild: true, ..case(name, block, arguments) };
    run(vec![
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
    ])
}

#[test]
fn features_of_files_and_names() -> Result<()> {
    let mut attributes = case("ea_inode", 4096, "-t ext4 -b 4096 -O ea_inode");
    attributes.plan.attributes = 50_000;
    let hash = |name, tune, prepare| Case { tune, prepare, ..case(name, 1024, "-t ext4 -b 1024") };
    run(vec![
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
    ])
}

/// Three levels of index: tens of thousands of long names in small blocks.
#[test]
fn a_large_directory() -> Result<()> {
    if !is_root("a_large_directory") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let image = Image::make(&scratch.path("image"), 256, "-t ext4 -b 1024 -O large_dir", None)?;
    let mount = image.mount(&scratch.subdir("mount")?, "rw")?;
    let dir = mount.path().join("large");
    tests::fsdiff::populate::many_names(&dir, 150_000)?;
    mount.unmount()?;
    let objects = compare(&scratch, &image)?;
    println!("three levels of index: {objects} objects equal");
    Ok(())
}

fn run(cases: Vec<Case>) -> Result<()> {
    if !is_root("fsdiff") {
        return Ok(());
    }
    let sources = Scratch::new()?;
    let mut made: Vec<(Plan, PathBuf)> = Vec::new();
    let mut failed = Vec::new();
    for case in &cases {
        let started = Instant::now();
        match one(case, &sources, &mut made) {
            Ok(objects) => {
                let ms = started.elapsed().as_millis();
                println!("{}: {objects} objects equal, {ms} ms", case.name);
            }
            Err(error) => failed.push(format!("{}: {error:#}", case.name)),
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    Ok(())
}

/// Makes and compares one volume. Trees that mke2fs takes its files from are made once.
fn one(case: &Case, sources: &Scratch, made: &mut Vec<(Plan, PathBuf)>) -> Result<usize> {
    // The host's filesystem may have less room for attributes than the volume.
    let wanted = Plan { attributes: case.plan.attributes.min(900), ..case.plan };
    let known = made.iter().find(|(plan, _)| *plan == wanted);
    let source = match known {
        Some((_, source)) => source.clone(),
        None => {
            let source = sources.subdir(&made.len().to_string())?;
            populate(&source, &wanted).context("the source")?;
            made.push((wanted, source.clone()));
            source
        }
    };
    let scratch = Scratch::new()?;
    let image = fill(case, &scratch, &source)?;
    compare(&scratch, &image)
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

/// Files as they are in use: several thousand, or with `OSLET_FULL` all; put there by mke2fs, and
/// by the kernel.
#[test]
fn real_trees() -> Result<()> {
    if !is_root("real_trees") {
        return Ok(());
    }
    let full = std::env::var_os("OSLET_FULL").is_some();
    let sources = Scratch::new()?;
    let source = sources.subdir("real")?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.map(|home| home.join("registry/src"));
    let mut copied = 0;
    for from in [Some(PathBuf::from("/usr/share")), registry].into_iter().flatten() {
        let limit = if full { usize::MAX } else { 2000 };
        if from.is_dir() {
            let to = source.join(from.file_name().unwrap_or(from.as_os_str()));
            copied += copy_tree(&from, &to, limit)?;
        }
    }
    ensure!(copied > 1000, "only {copied} files are here to be copied");
    let megabytes = if full { 8192 } else { 512 };
    for arguments in [
        "-t ext4 -i 4096",
        "-t ext3 -b 1024 -I 128 -i 4096",
        "-t ext4 -b 1024 -i 4096 -O inline_data,meta_bg,^resize_inode",
        "-t ext4 -b 4096 -i 16384 -O bigalloc,ea_inode,large_dir -C 16384",
    ] {
        let started = Instant::now();
        let scratch = Scratch::new()?;
        let path = scratch.path("image");
        let image = Image::make(&path, megabytes, arguments, Some(&source))?;
        let mount = image.mount(&scratch.subdir("mount")?, "rw")?;
        copy_tree(&source, &mount.path().join("by-kernel"), usize::MAX)?;
        mount.unmount()?;
        let objects = compare(&scratch, &image).context(arguments)?;
        ensure!(objects > 2 * copied, "{objects} objects of {copied} files");
        println!("{arguments}: {objects} objects equal, {} ms", started.elapsed().as_millis());
    }
    Ok(())
}

/// Copies so many files at most, with the directories above them and links as they are, and returns
/// how many there were. What goes away meanwhile is left out.
fn copy_tree(from: &Path, to: &Path, limit: usize) -> Result<usize> {
    let mut copied = 0;
    let mut pending = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        if copied >= limit {
            break;
        }
        let Ok(meta) = from.symlink_metadata() else { continue };
        if meta.is_dir() {
            std::fs::create_dir(&to)?;
            let Ok(entries) = std::fs::read_dir(&from) else { continue };
            for entry in entries {
                let entry = entry?;
                pending.push((entry.path(), to.join(entry.file_name())));
            }
        } else if meta.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&from)?, &to)?;
        } else if meta.is_file() {
            copied += usize::from(std::fs::copy(&from, &to).is_ok());
        }
    }
    Ok(copied)
}
