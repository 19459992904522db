//! Values of attributes in inodes of their own: shared, replaced and given back, by ours and by the
//! kernel in turns.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::write::{Effects, New, Writer, WriterOptions, XattrFlags};
use cfs::engine::{Options, Volume};
use cfs::id::Ino;
use cfs::{Caller, Error};
use tests::fsdiff::ImageFile;
use tests::kernel::{self, LoopMount};

const KINDS: [&[&str]; 3] = [
    &["-t", "ext4", "-b", "4096", "-O", "ea_inode", "-J", "size=16"],
    &["-t", "ext4", "-b", "1024", "-O", "ea_inode,orphan_file", "-J", "size=16"],
    &["-t", "ext4", "-b", "1024", "-I", "128", "-O", "ea_inode,^metadata_csum", "-J", "size=16"],
];

fn quiet(_: &Effects<'_>) {}

struct Ours(Arc<Writer>);

impl Ours {
    fn open(image: &Path) -> Result<Self> {
        let source = Arc::new(ImageFile::open(image, true)?);
        let volume = Arc::new(Volume::open(source, &Options::default())?);
        Ok(Self(Writer::open(volume, &WriterOptions::default())?))
    }

    fn find(&self, name: &str) -> cfs::Result<Ino> {
        Ok(self.0.lookup(Ino::ROOT, name.as_bytes(), |_| ())?.ino())
    }

    fn make(&self, name: &str) -> cfs::Result<Ino> {
        let new = New { mode: 0o100_644, ..New::default() };
        let cell = self.0.make(&Caller::ROOT, Ino::ROOT, name.as_bytes(), &new, &mut quiet)?;
        Ok(cell.ino())
    }

    fn set(&self, ino: Ino, name: &str, value: Option<&[u8]>) -> cfs::Result<()> {
        let flags = XattrFlags::empty();
        self.0.set_xattr(&Caller::ROOT, ino, name.as_bytes(), value, flags, &mut quiet)
    }

    fn get(&self, ino: Ino, name: &str) -> cfs::Result<Vec<u8>> {
        let cell = self.0.live(ino)?;
        let inode = cell.read().inode.clone();
        self.0.volume().getxattr(&inode, name.as_bytes())
    }

    fn unlink(&self, name: &str) -> cfs::Result<()> {
        self.0.unlink(Ino::ROOT, name.as_bytes(), &mut quiet)
    }

    fn free_inodes(&self) -> u64 {
        self.0.space().statfs().free_inodes
    }
}

fn value(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add((at / 7) as u8)).collect()
}

#[test]
fn values_are_shared_and_go_with_their_last_reference() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for arguments in KINDS {
        let dir = tempfile::Builder::new().prefix("ea-inode-").tempdir_in("/dev/shm")?;
        by_ours(dir.path(), arguments).with_context(|| arguments.join(" "))?;
    }
    Ok(())
}

fn by_ours(dir: &Path, arguments: &[&str]) -> Result<()> {
    let (image, mounted) = (dir.join("image"), dir.join("mounted"));
    kernel::mke2fs(&image, 64, arguments)?;
    let ours = Ours::open(&image)?;
    let (a, b) = (ours.make("a")?, ours.make("b")?);
    let before = ours.free_inodes();
    let (large, other) = (value(1, 65_536), value(2, 30_001));
    // One inode for the value of three entries; a replaced value and a removed one go.
    ours.set(a, "user.large", Some(&large))?;
    ours.set(a, "user.again", Some(&large))?;
    ours.set(b, "user.large", Some(&large))?;
    ensure!(ours.free_inodes() == before - 1, "{} of {before}", ours.free_inodes());
    ours.set(b, "user.large", Some(&other))?;
    ours.set(b, "user.other", Some(&other))?;
    ensure!(ours.free_inodes() == before - 2, "{} of {before}", ours.free_inodes());
    ensure!(ours.get(a, "user.again")? == large && ours.get(b, "user.other")? == other);
    ours.set(b, "user.large", Some(b"small"))?;
    ours.set(b, "user.other", None)?;
    ensure!(ours.free_inodes() == before - 1, "{} of {before}", ours.free_inodes());
    ours.unlink("a")?;
    ensure!(ours.free_inodes() == before + 1, "{} of {before}", ours.free_inodes());
    // Many on one inode, until its own block is full.
    let mut count = 0;
    let full = loop {
        match ours.set(b, &format!("user.{count:0200}"), Some(&value(count as u8, 5000))) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    ensure!(matches!(full, Error::NoSpace) && count >= 4, "{count} attributes, then: {full}");
    let a = ours.make("a")?;
    ours.set(a, "user.x", Some(&large))?;
    ours.set(a, "user.y", Some(&value(0, 5000)))?;
    ours.0.stop()?;
    drop(ours);
    kernel::assert_clean(&image)?;

    // The kernel reads them, shares blocks and values of its own, and takes some away.
    let mount = LoopMount::new(&image, &mounted, "rw")?;
    let entries = kernel::tree(mount.dir())?;
    let of = |name: &str| entries.iter().find(|entry| entry.path == Path::new(name));
    let found = of("b").context("b")?;
    ensure!(found.xattrs.len() == count + 1, "{} attributes", found.xattrs.len());
    for number in 0..count {
        let name = format!("user.{number:0200}").into_bytes();
        ensure!(found.xattrs.contains(&(name, value(number as u8, 5000))), "value {number}");
    }
    ensure!(of("a").context("a")?.xattrs[0] == (b"user.x".to_vec(), large.clone()));
    let set = |file: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(mount.dir().join(file), name, value, flags)
    };
    rustix::fs::removexattr(mount.dir().join("a"), "user.y")?;
    for file in ["c", "d", "e"] {
        std::fs::write(mount.dir().join(file), b"")?;
        // In the inode, and in a block that all three share. (Where the first value in an inode
        // makes a block that is found to be another's already, Linux 6.18 counts one reference too
        // many: "user.fill" comes first.)
        set(file, "user.fill", &[7; 60])?;
        set(file, "user.x", &large)?;
        set(file, &format!("user.{:0230}", 1), &other)?;
        set(file, &format!("user.{:0230}", 2), &value(9, 20_000))?;
    }
    mount.unmount()?;
    kernel::assert_clean(&image).context("after the kernel")?;

    let ours = Ours::open(&image)?;
    let (c, d) = (ours.find("c")?, ours.find("d")?);
    // A copy of a shared block leads to the same values; one of them is replaced there alone.
    ours.set(c, &format!("user.{:0230}", 2), Some(&large))?;
    ours.set(d, &format!("user.{:0230}", 1), None)?;
    ensure!(ours.get(c, &format!("user.{:0230}", 1))? == other);
    ensure!(ours.get(d, &format!("user.{:0230}", 2))? == value(9, 20_000));
    ours.unlink("c")?;
    ours.unlink("b")?;
    ours.0.stop()?;
    drop(ours);
    kernel::assert_clean(&image).context("after the kernel and ours")?;
    let ours = Ours::open(&image)?;
    for name in ["a", "d", "e"] {
        ours.unlink(name)?;
    }
    ours.0.stop()?;
    let left = ours.free_inodes();
    drop(ours);
    kernel::assert_clean(&image).context("when all have gone")?;
    ensure!(left == before + 2, "{left} free inodes, not {}", before + 2);
    Ok(())
}

/// Without room for a value nothing changes, and nothing is left of it.
#[test]
fn a_full_volume_takes_no_value() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("ea-inode-").tempdir_in("/dev/shm")?;
    let image = dir.path().join("image");
    kernel::mke2fs(&image, 8, &["-t", "ext4", "-b", "1024", "-O", "ea_inode", "-N", "400"])?;
    let ours = Ours::open(&image)?;
    let ino = ours.make("f")?;
    let mut count = 0u32;
    let error = loop {
        let mut bytes = value(count as u8, 65_000);
        bytes[..4].copy_from_slice(&count.to_le_bytes());
        let name = format!("user.{count}");
        match ours.set(ino, &name, Some(&bytes)) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    ensure!(matches!(error, Error::NoSpace), "{error}");
    let free = ours.free_inodes();
    ensure!(ours.set(ino, "user.z", Some(&value(200, 65_536))).is_err(), "room after all");
    ensure!(ours.free_inodes() == free, "an inode was kept for a value that there is no room for");
    ours.set(ino, "user.0", None)?;
    ours.set(ino, "user.z", Some(&value(200, 60_000)))?;
    ours.0.stop()?;
    drop(ours);
    kernel::assert_clean(&image)
}

/// What was being made when power failed is an orphan; what was made is there.
#[test]
fn a_crash_leaves_whole_values_or_none() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("ea-inode-").tempdir_in("/dev/shm")?;
    let image = dir.path().join("image");
    kernel::mke2fs(&image, 64, KINDS[1])?;
    let ours = Ours::open(&image)?;
    let ino = ours.make("f")?;
    ours.set(ino, "user.a", Some(&value(1, 60_000)))?;
    ours.set(ino, "user.b", Some(&value(2, 60_000)))?;
    ours.set(ino, "user.a", None)?;
    let journal = ours.0.journal();
    journal.commit(journal.running())?;
    drop(ours);
    kernel::run("e2fsck", &["-f", "-y", kernel::arg(&image)]).or_else(|error| {
        // 1: what a replay corrects.
        ensure!(error.to_string().contains("exit status: 1"), "{error:#}");
        Ok::<_, anyhow::Error>(String::new())
    })?;
    kernel::assert_clean(&image)?;
    let ours = Ours::open(&image)?;
    let ino = ours.find("f")?;
    ensure!(ours.get(ino, "user.b")? == value(2, 60_000));
    ensure!(matches!(ours.get(ino, "user.a"), Err(Error::NoAttribute)));
    ours.0.stop()?;
    Ok(())
}
