//! Orphans that are cut and removed by us and by the kernel, with maps of every shape.

#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::{BlockSource, MemSource};
use tests::kernel::{self, LoopMount, arg, assert_clean, assert_same_tree, mke2fs, run};

/// Blocks of 1 KiB at every `step`-th place, `count` of them.
struct Shape {
    count: u64,
    step: u64,
}

const SHAPES: &[Shape] = &[
    Shape { count: 5, step: 1 },
    Shape { count: 400, step: 1 },
    Shape { count: 700, step: 2 },
    Shape { count: 3000, step: 3 },
    Shape { count: 60, step: 2500 },
];

/// Makes an image with one file of each shape, and one of a single name that stays.
fn files(image: &Path, dir: &Path, args: &[&str]) -> Result<Vec<u64>> {
    use std::os::unix::fs::MetadataExt;
    mke2fs(image, 48, args)?;
    let mount = LoopMount::new(image, dir, "")?;
    let mut inodes = Vec::new();
    for (number, shape) in SHAPES.iter().enumerate() {
        let file = std::fs::File::create(mount.dir().join(format!("file{number}")))?;
        for at in 0..shape.count {
            file.write_all_at(&[at as u8 | 1; 1024], at * shape.step * 1024)?;
        }
        file.sync_all()?;
        inodes.push(file.metadata()?.ino());
    }
    mount.unmount()?;
    Ok(inodes)
}

/// Puts all files into the list of orphans: cut at `size`, or without names.
fn orphan(image: &Path, inodes: &[u64], size: Option<u64>) -> Result<()> {
    let mut commands = String::new();
    let next = inodes.iter().skip(1).copied().chain([0]);
    for (number, (ino, next)) in inodes.iter().zip(next).enumerate() {
        match size {
            Some(size) => commands += &format!("sif <{ino}> size {size}\n"),
            None => commands += &format!("unlink file{number}\nsif <{ino}> links_count 0\n"),
        }
        commands += &format!("sif <{ino}> dtime @{next}\n");
    }
    commands += &format!("ssv last_orphan {}\nfeature needs_recovery\n", inodes[0]);
    let script = image.with_extension("cmd");
    std::fs::write(&script, commands)?;
    run("debugfs", &["-w", "-f", arg(&script), arg(image)]).map(drop)
}

fn compare(dir: &Path, image: &Path, files: u32, removed: bool) -> Result<()> {
    let (ours, theirs) = (dir.join("ours.img"), dir.join("theirs.img"));
    std::fs::copy(image, &theirs)?;
    let memory = Arc::new(MemSource::new(std::fs::read(image)?));
    let source: Arc<dyn BlockSource> = memory.clone();
    let report = cfs::journal::recover(&source)?.context("nothing to recover")?;
    drop(source);
    let orphans = report.orphans.clone();
    ensure!(report.transactions == 0, "the image was not clean: {report:?}");
    ensure!(orphans.left.is_none(), "{orphans:?}");
    let expected = if removed { (files, 0) } else { (0, files) };
    ensure!((orphans.removed, orphans.cut) == expected, "{orphans:?}");
    let memory = Arc::into_inner(memory).context("somebody still reads the image")?;
    std::fs::write(&ours, memory.into_bytes())?;
    assert_clean(&ours)?;
    LoopMount::new(&theirs, &dir.join("theirs"), "")?.unmount()?;
    let ours = LoopMount::new(&ours, &dir.join("ours"), "ro,noload")?;
    let theirs = LoopMount::new(&theirs, &dir.join("theirs"), "ro,noload")?;
    let mut trees = [kernel::tree(ours.dir())?, kernel::tree(theirs.dir())?];
    // Both changed these files now, each at its own time.
    for entry in trees.iter_mut().flatten() {
        let known = entry.attributes.find(" mtime").unwrap_or(entry.attributes.len());
        entry.attributes.truncate(known);
    }
    assert_same_tree(&trees[0], &trees[1])?;
    ours.unmount()?;
    theirs.unmount()
}

#[test]
fn orphans_are_cut_and_removed_as_the_kernel_does() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let kinds: [&[&str]; 4] = [
        &["-t", "ext4", "-b", "4096", "-O", "^huge_file,^flex_bg"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,uninit_bg"],
    ];
    for args in kinds {
        let dir = tempfile::tempdir().unwrap();
        let (made, image) = (dir.path().join("made.img"), dir.path().join("orphans.img"));
        let inodes = files(&made, &dir.path().join("m"), args).unwrap();
        let sizes = [0, 1, 5000, 12 * 1024, 300_000, 1_000_001, 70_000_000];
        for size in sizes.map(Some).into_iter().chain([None]) {
            std::fs::copy(&made, &image).unwrap();
            orphan(&image, &inodes, size).unwrap();
            compare(dir.path(), &image, inodes.len() as u32, size.is_none())
                .with_context(|| format!("{args:?} cut at {size:?}"))
                .unwrap();
        }
    }
}
