//! Directories whose hash trees have three levels of index, which large_dir allows: made by ours,
//! changed by the kernel, and the other way round.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::write::{Effects, New, Writer, WriterOptions};
use cfs::engine::{Options, Volume};
use cfs::id::Ino;
use cfs::{Caller, Error};
use tests::fsdiff::ImageFile;
use tests::kernel::{self, LoopMount};

/// Names of a directory: links of one file, three of which fill a block of 1 KiB.
const NAMES: u32 = 45_000;
/// Names that the other side removes, and adds.
const CHANGED: u32 = 3_000;

const WITH: &[&str] = &["-t", "ext4", "-b", "1024", "-O", "large_dir"];
const WITHOUT: &[&str] = &["-t", "ext4", "-b", "1024", "-O", "^large_dir"];

fn name(number: u32) -> String {
    format!("{number:06}{}", "n".repeat(240 + (number % 9) as usize))
}

fn quiet(_: &Effects<'_>) {}

/// A volume that ours has open for writing.
struct Ours {
    writer: Arc<Writer>,
    dir: Ino,
    file: Ino,
}

impl Ours {
    /// Opens the image; its directory and file are made if need be.
    fn open(image: &Path) -> Result<Self> {
        let source = Arc::new(ImageFile::open(image, true)?);
        let volume = Arc::new(Volume::open(source, &Options::default())?);
        let writer = Writer::open(volume, &WriterOptions::default())?;
        let find = |dir, name: &[u8], mode| match writer.lookup(dir, name, |_| ()) {
            Err(Error::NotFound) => {
                let new = New { mode, ..New::default() };
                writer.make(&Caller::ROOT, dir, name, &new, &mut quiet).map(|cell| cell.ino())
            }
            found => found.map(|cell| cell.ino()),
        };
        let dir = find(Ino::ROOT, b"d", 0o040_755)?;
        let file = find(Ino::ROOT, b"f", 0o100_644)?;
        Ok(Self { writer, dir, file })
    }

    fn link(&self, number: u32) -> cfs::Result<()> {
        let name = name(number);
        let caller = &Caller::ROOT;
        self.writer.link(caller, self.file, self.dir, name.as_bytes(), &mut quiet).map(drop)
    }

    /// Index levels below the root of the directory's tree.
    fn levels(&self) -> Result<u8> {
        let volume = self.writer.volume();
        let inode = volume.inode(self.dir)?;
        let cfs::engine::Mapping::Data(block) = volume.map(&inode, 0, 1)?.mapping else {
            anyhow::bail!("a directory without its first block");
        };
        let mut root = vec![0; volume.superblock().block_size as usize];
        volume.source().read_at(block.0 << volume.superblock().block_bits, &mut root)?;
        Ok(root[0x1e])
    }
}

/// Every name is there that should be, and no other.
fn check(dir: &Path, expected: impl Iterator<Item = u32>) -> Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        found.push(entry?.file_name().into_string().unwrap_or_default());
    }
    found.sort();
    let mut count = 0;
    for (number, found) in expected.zip(&found) {
        ensure!(*found == name(number), "name {number} is not listed where it belongs: {found}");
        // By its hash, and not by a search of all.
        std::fs::symlink_metadata(dir.join(found)).with_context(|| found.clone())?;
        count += 1;
    }
    ensure!(count == found.len(), "{} names, not {count}", found.len());
    Ok(())
}

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("large-dir-").tempdir_in("/dev/shm")?)
}

#[test]
fn three_levels_by_ours_and_by_the_kernel() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let scratch = scratch()?;
    let (image, mounted) = (scratch.path().join("image"), scratch.path().join("mounted"));
    kernel::mke2fs(&image, 96, WITH)?;
    let ours = Ours::open(&image)?;
    for number in 0..NAMES {
        ours.link(number).with_context(|| format!("name {number}"))?;
    }
    ours.writer.stop()?;
    ensure!(ours.levels()? == 2, "{} levels below the root, not 2", ours.levels()?);
    drop(ours);
    kernel::assert_clean(&image)?;

    let mount = LoopMount::new(&image, &mounted, "rw")?;
    let dir = mount.dir().join("d");
    check(&dir, 0..NAMES)?;
    for number in 0..CHANGED {
        std::fs::remove_file(dir.join(name(number)))?;
        std::fs::hard_link(mount.dir().join("f"), dir.join(name(NAMES + number)))?;
    }
    mount.unmount()?;
    kernel::assert_clean(&image).context("after the kernel")?;

    let ours = Ours::open(&image)?;
    for number in CHANGED..2 * CHANGED {
        ours.writer.unlink(ours.dir, name(number).as_bytes(), &mut quiet)?;
        ours.link(NAMES + number)?;
    }
    ours.writer.stop()?;
    drop(ours);
    kernel::assert_clean(&image).context("after the kernel and ours")?;
    let mount = LoopMount::new(&image, &mounted, "ro")?;
    check(&mount.dir().join("d"), 2 * CHANGED..NAMES + 2 * CHANGED)?;
    mount.unmount()
}

#[test]
fn three_levels_by_the_kernel_alone_are_changed() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let scratch = scratch()?;
    let (image, mounted) = (scratch.path().join("image"), scratch.path().join("mounted"));
    kernel::mke2fs(&image, 96, WITH)?;
    let mount = LoopMount::new(&image, &mounted, "rw")?;
    let (dir, file) = (mount.dir().join("d"), mount.dir().join("f"));
    std::fs::create_dir(&dir)?;
    std::fs::write(&file, b"")?;
    for number in 0..NAMES {
        std::fs::hard_link(&file, dir.join(name(number)))?;
    }
    mount.unmount()?;
    let ours = Ours::open(&image)?;
    ensure!(ours.levels()? == 2, "{} levels below the root, not 2", ours.levels()?);
    for number in 0..NAMES {
        if number % 3 == 0 {
            ours.writer.unlink(ours.dir, name(number).as_bytes(), &mut quiet)?;
        }
    }
    for number in NAMES..NAMES + CHANGED {
        ours.link(number)?;
    }
    ours.writer.stop()?;
    drop(ours);
    kernel::assert_clean(&image)?;
    let mount = LoopMount::new(&image, &mounted, "ro")?;
    let left = (0..NAMES).filter(|number| number % 3 != 0);
    check(&mount.dir().join("d"), left.chain(NAMES..NAMES + CHANGED))?;
    mount.unmount()
}

/// Without the feature two levels are all: a name too many changes nothing, as with the kernel.
#[test]
fn without_large_dir_a_full_tree_takes_no_name() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let scratch = scratch()?;
    let (image, mounted) = (scratch.path().join("image"), scratch.path().join("mounted"));
    kernel::mke2fs(&image, 96, WITHOUT)?;
    let ours = Ours::open(&image)?;
    let full = (0..NAMES).find_map(|number| match ours.link(number) {
        Ok(()) => None,
        Err(error) => Some((number, error.errno())),
    });
    let (count, errno) = full.context("all names went into two levels")?;
    ensure!(errno == 28, "errno {errno}, not ENOSPC");
    ours.writer.stop()?;
    drop(ours);
    kernel::assert_clean(&image)?;
    let mount = LoopMount::new(&image, &mounted, "rw")?;
    let dir = mount.dir().join("d");
    check(&dir, 0..count)?;
    // The same tree, full for the kernel too.
    let linked = std::fs::hard_link(mount.dir().join("f"), dir.join(name(count)));
    let errno = linked.err().and_then(|error| error.raw_os_error());
    ensure!(errno == Some(28), "the kernel: {errno:?}, not ENOSPC");
    mount.unmount()
}
