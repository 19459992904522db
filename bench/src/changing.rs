//! Changing a directory, whoever serves it: files made, renamed, removed and written, and a tree
//! unpacked.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::case::{Batch, Side, Unit};
use crate::corpus::{self, PAGE};
use crate::scratch::{Mount, Scratch};
use crate::through::{CHUNK, Mounter};

/// Files of the tree that is unpacked.
pub const TREE_FILES: u64 = 5120;
/// Directories of it.
const TREE_DIRS: u64 = 320;
/// Files of one directory that a batch works in.
const PER_DIR: u64 = 1000;
/// Bytes that a sequence of writes goes through before it begins again.
const STREAM: u64 = 256 << 20;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A new file, 4 KiB written, closed.
    Create,
    /// A file gets another name in its directory.
    Rename,
    /// A file of 4 KiB is removed.
    Unlink,
    /// A new directory.
    Mkdir,
    /// A large file is written in chunks of [`CHUNK`] bytes, and made durable at the end.
    Stream,
    /// tar unpacks a tree of [`TREE_FILES`] small files.
    Untar,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Create, Self::Rename, Self::Unlink, Self::Mkdir, Self::Stream, Self::Untar];

    /// What its figures mean; of an unpacked tree: each file.
    pub fn unit(self) -> Unit {
        match self {
            Self::Stream => Unit::Megabytes { operation: CHUNK },
            _ => Unit::Nanoseconds,
        }
    }
}

/// Bytes of an image that has room for all of it.
pub fn image_bytes() -> u64 {
    STREAM + (512 << 20)
}

/// A side that changes what is in a fresh image, mounted by `mounter`.
///
/// # Errors
/// The image cannot be made.
pub fn side(change: Change, scratch: &Scratch, mounter: &Mounter) -> anyhow::Result<Side> {
    let image = scratch.image(image_bytes(), None)?;
    let mount = match mounter(&image) {
        Ok(mount) => Rc::new(mount),
        Err(why) => return Ok(Side::absent(why)),
    };
    in_directory(change, scratch, mount)
}

/// A side that changes what is in a mount.
///
/// # Errors
/// The mount cannot be written to.
pub fn in_directory(change: Change, scratch: &Scratch, mount: Rc<Mount>) -> anyhow::Result<Side> {
    let top = mount.dir().join("changing");
    fs::create_dir(&top).with_context(|| top.display().to_string())?;
    Ok(match change {
        Change::Stream => Side::Batch(stream(&top, mount)?),
        Change::Untar => untar(&top, scratch, mount)?,
        _ => Side::Batch(files(change, top, mount)),
    })
}

/// The name of file number `index` of a batch.
fn name(top: &Path, prefix: &str, index: u64) -> PathBuf {
    top.join(format!("{}/{prefix}{index}", index / PER_DIR))
}

/// Directories are made first, and everything is removed at the end: neither is timed.
fn files(change: Change, top: PathBuf, mount: Rc<Mount>) -> Batch {
    let mut page = vec![0; PAGE];
    corpus::fill(7, &mut page);
    Box::new(move |operations| {
        let _held = &mount;
        for dir in 0..operations.div_ceil(PER_DIR) {
            let dir = top.join(dir.to_string());
            fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        }
        let make = |index: u64| -> anyhow::Result<()> {
            let path = name(&top, "file", index);
            let mut file = File::create_new(&path).with_context(|| path.display().to_string())?;
            Ok(file.write_all(&page)?)
        };
        if matches!(change, Change::Rename | Change::Unlink) {
            (0..operations).try_for_each(make)?;
        }
        // The names, so that making them is not timed.
        let paths: Vec<_> = (0..operations)
            .map(|index| (name(&top, "file", index), name(&top, "other", index)))
            .collect();
        let started = Instant::now();
        for (one, other) in &paths {
            match change {
                Change::Create => {
                    let mut file = File::create_new(one)?;
                    file.write_all(&page)?;
                }
                Change::Rename => fs::rename(one, other)?,
                Change::Unlink => fs::remove_file(one)?,
                _ => fs::create_dir(one)?,
            }
        }
        let took = started.elapsed();
        if let Some((one, other)) = paths.last() {
            check(change, one, other, &page)?;
        }
        clear(&top)?;
        Ok(took)
    })
}

/// Whether it was done.
fn check(change: Change, one: &Path, other: &Path, page: &[u8]) -> anyhow::Result<()> {
    let done = match change {
        Change::Create => fs::read(one)? == page,
        Change::Rename => fs::read(other)? == page && !one.exists(),
        Change::Unlink => !one.exists(),
        _ => one.is_dir(),
    };
    ensure!(done, "{}: {change:?} was answered and not done", one.display());
    Ok(())
}

fn clear(top: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(top)? {
        let path = entry?.path();
        fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn stream(top: &Path, mount: Rc<Mount>) -> anyhow::Result<Batch> {
    let path = top.join("stream");
    let name = || path.display().to_string();
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(name)?;
    let mut chunk = vec![0; CHUNK as usize];
    for (page, bytes) in chunk.chunks_exact_mut(PAGE).enumerate() {
        corpus::fill(page as u64, bytes);
    }
    let chunks = STREAM / CHUNK;
    let mut found = chunk.clone();
    Ok(Box::new(move |operations| {
        let _held = &mount;
        file.set_len(0)?;
        let started = Instant::now();
        for index in 0..operations {
            file.write_all_at(&chunk, index % chunks * CHUNK)?;
        }
        file.sync_all()?;
        let took = started.elapsed();
        file.read_exact_at(&mut found, (operations - 1) % chunks * CHUNK)?;
        ensure!(found == chunk, "what was written is not there");
        Ok(took)
    }))
}

/// Nanoseconds a file: probes, because a whole tree is one measurement.
fn untar(top: &Path, scratch: &Scratch, mount: Rc<Mount>) -> anyhow::Result<Side> {
    let archive = archive(scratch)?;
    let top = top.to_owned();
    Ok(Side::probe(move || {
        let _held = &mount;
        let took = unpack(&archive, &top)?;
        let mut files = 0;
        for dir in 0..TREE_DIRS {
            for entry in fs::read_dir(top.join(format!("tree/{dir}")))? {
                let bytes = fs::read(entry?.path())?;
                ensure!(bytes == contents(files_index(&bytes)?), "a file holds something else");
                files += 1;
            }
        }
        ensure!(files == TREE_FILES, "{files} of {TREE_FILES} files were unpacked");
        clear(&top)?;
        Ok(took.as_nanos() as f64 / TREE_FILES as f64)
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
fn archive(scratch: &Scratch) -> anyhow::Result<PathBuf> {
    let source = scratch.dir("source")?;
    for index in 0..TREE_FILES {
        let dir = source.join(format!("tree/{}", index % TREE_DIRS));
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

    #[test]
    fn directories_are_changed_and_left_empty() {
        let scratch = Scratch::new(None).unwrap();
        for change in Change::ALL {
            let dir = scratch.dir("files").unwrap();
            let mount = Rc::new(Mount::new(dir.clone(), || {}));
            match in_directory(change, &scratch, mount).unwrap() {
                Side::Batch(mut run) => {
                    assert!(run(3).unwrap().as_nanos() > 0);
                    run(1100).unwrap();
                }
                Side::Probe(mut run) => assert!(run().unwrap() > 0.0),
                Side::Absent(why) => panic!("{why}"),
            }
            let left = fs::read_dir(dir.join("changing")).unwrap().count();
            assert_eq!(left, usize::from(change == Change::Stream), "{change:?}");
        }
    }

    #[test]
    fn an_unpacked_tree_is_checked() {
        let sizes: Vec<_> = (0..TREE_FILES).map(|index| contents(index).len()).collect();
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
            match side(Change::Create, &scratch, &mounter).unwrap() {
                Side::Batch(mut run) => assert!(run(20).unwrap().as_nanos() > 0),
                Side::Probe(_) => panic!("a probe"),
                Side::Absent(why) => println!("skipped: {why}"),
            }
        }
    }
}
