//! The engine's view of volumes equals the kernel's.

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
    /// The tree.
    plan: Plan,
}

fn case(name: &'static str, block: u64, arguments: &'static str) -> Case {
    Case { name, arguments, prepare: "", plan: Plan::new(block) }
}

/// Files without extents: nothing is allocated without being written.
fn indirect(mut case: Case) -> Case {
    case.plan.indirect = true;
    // Files end before 2^32 sectors, or where three levels do.
    case.plan.large_offsets = case.plan.block <= 2048;
    case
}

#[test]
fn ext2_and_ext3() -> Result<()> {
    run(vec![
        indirect(case("ext2, 1 KiB blocks, inodes of 128", 1024, "-t ext2 -b 1024 -I 128")),
        indirect(case("ext2, 4 KiB blocks", 4096, "-t ext2 -b 4096")),
        indirect(case("ext3, 1 KiB blocks", 1024, "-t ext3 -b 1024")),
        indirect(case("ext3, 2 KiB blocks", 2048, "-t ext3 -b 2048 -I 128")),
        indirect(case("ext3, 4 KiB blocks", 4096, "-t ext3 -b 4096")),
    ])
}

#[test]
fn ext4_block_and_inode_sizes() -> Result<()> {
    run(vec![
        case("ext4", 4096, "-t ext4 -b 4096"),
        case("ext4, 1 KiB blocks", 1024, "-t ext4 -b 1024"),
        case("ext4, 2 KiB blocks", 2048, "-t ext4 -b 2048"),
        case("ext4, inodes of 128", 4096, "-t ext4 -b 4096 -I 128"),
        case("ext4, inodes of 512", 1024, "-t ext4 -b 1024 -I 512"),
        case("ext4, inodes of 1024", 4096, "-t ext4 -b 4096 -I 1024"),
    ])
}

fn run(cases: Vec<Case>) -> Result<()> {
    if !is_root("fsdiff") {
        return Ok(());
    }
    for case in cases {
        let started = std::time::Instant::now();
        let objects = compare(&case).with_context(|| case.name)?;
        println!("{}: {objects} objects equal, {} ms", case.name, started.elapsed().as_millis());
    }
    Ok(())
}

/// Fills a volume by mke2fs and by the kernel, and compares what is there then.
fn compare(case: &Case) -> Result<usize> {
    let scratch = Scratch::new()?;
    let source = scratch.subdir("source")?;
    populate(&source, &case.plan)?;
    let image = Image::make(&scratch.path("image"), 256, case.arguments, Some(&source))?;
    if !case.prepare.is_empty() {
        image.debugfs_write(case.prepare)?;
    }
    let mount = image.mount(&scratch.subdir("mount")?, "rw")?;
    let by_kernel = mount.path().join("by-kernel");
    std::fs::create_dir(&by_kernel)?;
    populate(&by_kernel, &case.plan)?;
    mount.unmount()?;

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
    Ok(ours.entries.len())
}
