//! Changing a directory, whoever serves it: files made, renamed, removed and written, and a tree
//! unpacked.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::Sizes;
use crate::case::{Batch, Side, Unit};
use crate::corpus::{self, PAGE, Walk};
use crate::peers;
use crate::scratch::{In, Mount, Scratch};
use crate::through::{CHUNK, Mounter};
use crate::written::{Overwriting, Stream};

/// Files of each directory of the tree that is unpacked.
const TREE_FANOUT: u64 = 16;
/// Files of one directory that a batch works in.
pub const PER_DIR: u64 = 1000;
/// What an image has room for beside a file that is written in sequence.
const ROOM: u64 = 512 << 20;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Change {
    /// A new file, 4 KiB written, closed.
    Create,
    /// A file gets another name in its directory.
    Rename,
    /// A file of 4 KiB is removed.
    Unlink,
    /// A new directory.
    Mkdir,
    /// A random page of a cached file is written over.
    Overwrite,
    /// A large file is written in chunks of [`CHUNK`] bytes, and made durable at the end.
    Stream,
    /// tar unpacks a tree of small files.
    Untar,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Create,
        Self::Rename,
        Self::Unlink,
        Self::Mkdir,
        Self::Overwrite,
        Self::Stream,
        Self::Untar,
    ];

    /// Its name in the table, behind who does it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create, write 4 KiB, close",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::Mkdir => "mkdir",
            Self::Overwrite => "overwrite a cached 4 KiB page",
            Self::Stream => "sequential write and fsync",
            Self::Untar => "a file of an unpacked tree",
        }
    }

    /// What its figures mean; of an unpacked tree: each file.
    pub fn unit(self) -> Unit {
        match self {
            Self::Stream => Unit::Megabytes { operation: CHUNK },
            _ => Unit::Nanoseconds,
        }
    }

    /// What is durable when it is done: the same on all sides.
    pub fn durability(self) -> &'static str {
        match self {
            Self::Stream => {
                "sequential write: on all sides the time ends with fsync (of a file beneath: flush)"
            }
            Self::Overwrite => "overwrite: into the cache on all sides, nobody waits for the disk",
            _ => "changes of names: nothing is synced on any side, commits are 5 s apart",
        }
    }
}

/// A fresh image that has room for a change again and again.
///
/// # Errors
/// It cannot be made.
pub fn image(change: Change, sizes: Sizes, scratch: &Scratch) -> anyhow::Result<PathBuf> {
    match change {
        // Blocks of a file that is removed are free when that is committed. Who writes a whole disk
        // is to find it stored: else the filesystem beneath is measured as well.
        Change::Stream => scratch.image_to_write(2 * sizes.stream + (64 << 20), true),
        _ => scratch.image_to_write(ROOM, false),
    }
}

/// A side that changes what is in a fresh image, mounted by `mounter`.
///
/// # Errors
/// The image cannot be made.
pub fn side(
    change: Change,
    sizes: Sizes,
    scratch: &Scratch,
    mounter: &Mounter,
) -> anyhow::Result<Side> {
    let image = image(change, sizes, scratch)?;
    let mount = match mounter(&image) {
        Ok(mount) => Rc::new(mount),
        Err(why) => return Ok(Side::absent(why)),
    };
    in_directory(change, sizes, scratch, mount)
}

/// A side that changes what is in a mount.
///
/// # Errors
/// The mount cannot be written to.
pub fn in_directory(
    change: Change,
    sizes: Sizes,
    scratch: &Scratch,
    mount: Rc<Mount>,
) -> anyhow::Result<Side> {
    let top = mount.dir().join("changing");
    fs::create_dir(&top).with_context(|| top.display().to_string())?;
    Ok(match change {
        Change::Overwrite => Side::Batch(overwrite(&top, sizes, mount)?),
        Change::Stream => stream(top, sizes, mount),
        Change::Untar => untar(&top, sizes, scratch, mount)?,
        _ => Side::Batch(files(change, top, mount)),
    })
}

/// The name of file number `index` of a batch.
pub fn name(prefix: &str, index: u64) -> String {
    format!("{prefix}{index}")
}

/// Directories are made first, and everything is removed at the end: neither is timed. Names are
/// those of an open directory, as the native interface has them.
fn files(change: Change, top: PathBuf, mount: Rc<Mount>) -> Batch {
    let mut page = vec![0; PAGE];
    corpus::fill(7, &mut page);
    Box::new(move |operations| {
        let _held = &mount;
        let directory = |number: u64| -> anyhow::Result<OwnedFd> {
            let path = top.join(number.to_string());
            fs::create_dir(&path).with_context(|| path.display().to_string())?;
            Ok(File::open(&path)?.into())
        };
        let dirs = (0..operations.div_ceil(PER_DIR)).map(directory);
        let dirs = dirs.collect::<anyhow::Result<Vec<_>>>()?;
        // The names, so that making them is not timed.
        let names: Vec<_> = (0..operations)
            .map(|index| (&dirs[(index / PER_DIR) as usize], name("file", index)))
            .zip((0..operations).map(|index| name("other", index)))
            .collect();
        if matches!(change, Change::Rename | Change::Unlink) {
            names.iter().try_for_each(|((dir, one), _)| create(dir, one, &page))?;
        }
        let started = Instant::now();
        for ((dir, one), other) in &names {
            match change {
                Change::Create => create(dir, one, &page)?,
                Change::Rename => renameat(dir, one, dir, other)?,
                Change::Unlink => unlinkat(dir, one, AtFlags::empty())?,
                _ => mkdirat(dir, one, Mode::from_raw_mode(0o755))?,
            }
        }
        let took = started.elapsed();
        for (index, ((_, one), other)) in (0..).zip(&names) {
            let dir = top.join((index / PER_DIR).to_string());
            let (one, other) = (dir.join(one), dir.join(other));
            check(change, &one, &other)?;
            if index + 1 == operations {
                check_contents(change, &one, &other, &page)?;
            }
        }
        drop(names);
        drop(dirs);
        clear(&top)?;
        Ok(took)
    })
}

fn create(dir: &OwnedFd, name: &str, page: &[u8]) -> anyhow::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::from_raw_mode(0o644))?;
    Ok(File::from(file).write_all(page)?)
}

/// Whether it was done, by the names.
fn check(change: Change, one: &Path, other: &Path) -> anyhow::Result<()> {
    let size = |path: &Path| path.symlink_metadata().map(|found| found.len()).ok();
    let whole = Some(PAGE as u64);
    let done = match change {
        Change::Create => size(one) == whole,
        Change::Rename => size(other) == whole && size(one).is_none(),
        Change::Unlink => size(one).is_none(),
        _ => one.is_dir(),
    };
    ensure!(done, "{}: {change:?} was answered and not done", one.display());
    Ok(())
}

/// Whether the file that was left holds what was written to it.
fn check_contents(change: Change, one: &Path, other: &Path, page: &[u8]) -> anyhow::Result<()> {
    let left = match change {
        Change::Create => one,
        Change::Rename => other,
        _ => return Ok(()),
    };
    ensure!(fs::read(left)? == page, "{}: does not hold what was written", left.display());
    Ok(())
}

fn clear(top: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(top)? {
        let path = entry?.path();
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn overwrite(top: &Path, sizes: Sizes, mount: Rc<Mount>) -> anyhow::Result<Batch> {
    let path = top.join("pages");
    let name = || path.display().to_string();
    corpus::write_pages(&path, sizes.small)?;
    let file = File::options().read(true).write(true).open(&path).with_context(name)?;
    let mut writing = Overwriting::new(Walk::new(sizes.small / PAGE as u64));
    let held = In { open: file, _mount: mount };
    Ok(Box::new(move |operations| {
        let In { open: file, .. } = peers::whole(&held);
        // The kernel may have dropped pages since the last time.
        writing.check(|page, out| Ok(file.read_exact_at(out, page * PAGE as u64)?))?;
        let started = Instant::now();
        for _ in 0..operations {
            let (page, bytes) = writing.step();
            file.write_all_at(bytes, page * PAGE as u64)?;
        }
        let took = started.elapsed();
        writing.check(|page, out| Ok(file.read_exact_at(out, page * PAGE as u64)?))?;
        Ok(took)
    }))
}

/// A whole new file is one measurement.
fn stream(top: PathBuf, sizes: Sizes, mount: Rc<Mount>) -> Side {
    let path = top.join("stream");
    let mut stream = Stream::new(CHUNK);
    let chunks = sizes.stream / CHUNK;
    Side::probe(move || {
        let _held = &mount;
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let started = Instant::now();
        for index in 0..chunks {
            file.write_all_at(stream.chunk(index), index * CHUNK)?;
        }
        file.sync_all()?;
        let took = started.elapsed();
        stream.check(chunks, |offset, out| Ok(file.read_exact_at(out, offset)?))?;
        drop(file);
        clear(&top)?;
        // Its blocks are free behind this.
        File::open(&top)?.sync_all()?;
        Ok(Change::Stream.unit().figure(chunks, took))
    })
}

/// Nanoseconds a file: probes, because a whole tree is one measurement.
fn untar(top: &Path, sizes: Sizes, scratch: &Scratch, mount: Rc<Mount>) -> anyhow::Result<Side> {
    let archive = archive(sizes.tree, scratch)?;
    let top = top.to_owned();
    Ok(Side::probe(move || {
        let _held = &mount;
        let took = unpack(&archive, &top)?;
        let mut files = 0;
        for dir in fs::read_dir(top.join("tree"))? {
            for entry in fs::read_dir(dir?.path())? {
                let bytes = fs::read(entry?.path())?;
                ensure!(bytes == contents(files_index(&bytes)?), "a file holds something else");
                files += 1;
            }
        }
        ensure!(files == sizes.tree, "{files} of {} files were unpacked", sizes.tree);
        clear(&top)?;
        Ok(took.as_nanos() as f64 / sizes.tree as f64)
    }))
}

fn unpack(archive: &Path, top: &Path) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let output = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(top).output();
    let took = started.elapsed();
    let output = output.context("tar")?;
    if !output.status.success() {
        bail!("tar: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(took)
}

/// An archive of a tree that is like a program's source: most files are of a few KiB.
fn archive(files: u64, scratch: &Scratch) -> anyhow::Result<PathBuf> {
    let source = scratch.dir("source")?;
    for index in 0..files {
        let dir = source.join(format!("tree/{}", index / TREE_FANOUT));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        fs::write(dir.join(format!("file{index}.c")), contents(index))?;
    }
    let archive = scratch.dir("archive")?.join("tree.tar");
    let mut command = Command::new("tar");
    command.arg("-cf").arg(&archive).arg("-C").arg(&source).arg("tree");
    let output = command.output().context("tar")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&source).with_context(|| source.display().to_string())?;
    Ok(archive)
}

/// What file number `index` holds: its number, and so many words that sizes are from 100 bytes to
/// 100 KiB, 7 KiB on average.
fn contents(index: u64) -> Vec<u8> {
    let spread = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let words = match spread % 32 {
        0 => 1000 + spread % 12_000,
        1..8 => 500 + spread % 2000,
        _ => 12 + spread % 700,
    };
    let words = (0..words).flat_map(|word| corpus::expected(index, word as usize).to_le_bytes());
    index.to_le_bytes().into_iter().chain(words).collect()
}

/// Which file it is.
fn files_index(bytes: &[u8]) -> anyhow::Result<u64> {
    let head = bytes.get(..8).context("a file is too short")?;
    Ok(u64::from_le_bytes(head.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { small: 1 << 20, large: 0, stream: 4 << 20, tree: 64 };

    #[test]
    fn directories_are_changed_and_left_empty() {
        let scratch = Scratch::new(None).unwrap();
        for change in Change::ALL {
            let dir = scratch.dir("files").unwrap();
            let mount = Rc::new(Mount::new(dir.clone(), || {}));
            match in_directory(change, SIZES, &scratch, mount).unwrap() {
                Side::Batch(mut run) => {
                    assert!(run(3).unwrap().as_nanos() > 0);
                    run(1100).unwrap();
                }
                Side::Probe(mut run) => assert!(run().unwrap() > 0.0 && run().unwrap() > 0.0),
                Side::Absent(why) => panic!("{why}"),
            }
            let left = fs::read_dir(dir.join("changing")).unwrap().count();
            assert_eq!(left, usize::from(change == Change::Overwrite), "{change:?}");
        }
    }

    #[test]
    fn what_was_not_done_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for change in [Change::Create, Change::Rename, Change::Mkdir] {
            assert!(check(change, &one, &other).is_err(), "{change:?}");
        }
        check(Change::Unlink, &one, &other).unwrap();
        let page = vec![7; PAGE];
        fs::write(&one, &page).unwrap();
        check(Change::Create, &one, &other).unwrap();
        check_contents(Change::Create, &one, &other, &page).unwrap();
        assert!(check_contents(Change::Create, &one, &other, &[8; PAGE]).is_err());
        assert!(check(Change::Unlink, &one, &other).is_err());
        assert!(check(Change::Rename, &one, &other).is_err());
    }

    #[test]
    fn an_unpacked_tree_is_like_a_program() {
        let sizes: Vec<_> = (0..5120).map(|index| contents(index).len()).collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((4000..12_000).contains(&mean), "{mean}");
        assert_eq!(files_index(&contents(77)).unwrap(), 77);
    }

    #[test]
    fn peers_are_changed_by_their_mounts() {
        let scratch = Scratch::new(None).unwrap();
        let (one, two) = (scratch.clone(), scratch.clone());
        let ext4: Mounter = Rc::new(move |image| one.mount_ext4(image, &["rw"]));
        let fuse2fs: Mounter = Rc::new(move |image| two.mount_fuse2fs_writable(image));
        for mounter in [ext4, fuse2fs] {
            for change in Change::ALL {
                match side(change, SIZES, &scratch, &mounter).unwrap() {
                    Side::Batch(mut run) => assert!(run(20).unwrap().as_nanos() > 0),
                    Side::Probe(mut run) => assert!(run().unwrap() > 0.0),
                    Side::Absent(why) => println!("skipped: {why}"),
                }
            }
        }
    }
}
