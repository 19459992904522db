//! The engine's view of volumes equals the kernel's, over a matrix of what mke2fs can make.
//!
//! Each volume is filled by mke2fs from a tree, then by the kernel with the same tree. With
//! `OSLET_FULL` set the trees are large.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::fsdiff::populate::{Plan, populate};
use tests::fsdiff::{EngineView, HostView, Image, Listing, Scratch, View, is_root};

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
}

fn case(name: &'static str, block: u64, arguments: &'static str) -> Case {
    Case { name, arguments, prepare: "", tune: "", plan: Plan::new(block), kernel_writes: true }
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
    Ok(image)
}

/// Compares what the kernel and the engine see, and says how many objects that is.
fn compare(scratch: &Scratch, image: &Image) -> Result<usize> {
    let mount = image.mount(&scratch.path("mount"), "ro")?;
    let host = HostView::new(mount.path());
    let theirs = Listing::of(&host).context("the kernel's view")?;
    let their_volume = host.volume()?;
    mount.unmount()?;
    let engine = EngineView::open(&image.path)?;
    let ours = Listing::of(&engine).context("the engine's view")?;
    if let Some(difference) = theirs.difference(&ours) {
        anyhow::bail!("the kernel's view and ours: {difference}");
    }
    let our_volume = engine.volume()?;
    ensure!(their_volume == our_volume, "statfs: {their_volume:?}, ours {our_volume:?}");
    no_other_names(&engine)?;
    Ok(ours.entries.len())
}

/// Names that are not there are not found either.
fn no_other_names(engine: &EngineView) -> Result<()> {
    let mut pending = vec![engine.root()?];
    while let Some(dir) = pending.pop() {
        for (name, _, kind) in engine.names(&dir)? {
            let longer = [&name[..name.len().min(250)], b"~"].concat();
            let found = engine.volume.lookup(&dir, &longer);
            ensure!(matches!(found, Err(cfs::Error::NotFound)), "{longer:?}: {found:?}");
            if kind == 0o040_000 {
                pending.push(engine.child(&dir, &name)?);
            }
        }
    }
    Ok(())
}

/// A tree of tens of thousands of real files; the long runs alone have the time.
#[test]
fn a_real_tree() -> Result<()> {
    if std::env::var_os("OSLET_FULL").is_none() {
        println!("a_real_tree: SKIPPED, set OSLET_FULL to run it");
        return Ok(());
    }
    if !is_root("a_real_tree") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let source = Some(Path::new("/usr/share"));
    let image = Image::make(&scratch.path("image"), 4096, "-t ext4 -i 4096", source)?;
    scratch.subdir("mount")?;
    let objects = compare(&scratch, &image)?;
    println!("/usr/share: {objects} objects equal");
    Ok(())
}
