//! Reading through a mount, whoever serves it: in sequence, at random, and stat; cold and cached.
//!
//! All contestants mount copies of one image that [`image`] makes. *Cached* is a mount that has
//! been read through once. *Cold* is a fresh mount of an image none of whose pages are cached.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{AtFlags, CWD, statat};

use crate::case::Side;
use crate::corpus::{self, PAGE, WORDS, Walk};
use crate::peers::{self, Naming};
use crate::scratch::{In, Mount, Scratch, forget_pages};

/// Bytes of one read of a sequence: what cp and cat use.
pub const CHUNK: u64 = 128 << 10;
/// Pages read, and files asked for, in one cold measurement.
const COLD_OPERATIONS: u64 = 512;

const STREAM: &str = "stream";
const TREE: &str = "tree";

/// What is done through the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// A large file from its beginning to its end, in chunks of [`CHUNK`] bytes.
    Sequential,
    /// Random 4 KiB pages of the same file.
    Random,
    /// The attributes of random files of a tree.
    Stat,
}

/// Mounts the image at the path given, or says why that cannot be done here.
pub type Mounter = Rc<dyn Fn(&Path) -> Result<Mount, String>>;

/// Makes the image that is read: a file of `stream` bytes and a tree of small files.
///
/// # Errors
/// The scratch directory is full, or there is no mke2fs.
pub fn image(scratch: &Scratch, stream: u64) -> anyhow::Result<PathBuf> {
    let source = scratch.dir("source")?;
    corpus::write_pages(&source.join(STREAM), stream)?;
    corpus::write_tree(&source.join(TREE))?;
    let image = scratch.image(stream + stream / 8 + (32 << 20), Some(&source))?;
    std::fs::remove_dir_all(&source).with_context(|| source.display().to_string())?;
    Ok(image)
}

/// A side that reads what is in the caches of one mount.
///
/// # Errors
/// The mount is not like its image.
pub fn cached(access: Access, image: &Path, mounter: &Mounter) -> anyhow::Result<Side> {
    let mount = match mounter(image) {
        Ok(mount) => Rc::new(mount),
        Err(why) => return Ok(Side::absent(why)),
    };
    let (stream, tree) = (mount.dir().join(STREAM), mount.dir().join(TREE));
    match access {
        Access::Sequential => sequential(&stream, mount),
        Access::Random => {
            let bytes = stream.metadata().with_context(|| stream.display().to_string())?.len();
            peers::pread(&stream, Walk::new(bytes / PAGE as u64), mount)
        }
        Access::Stat => {
            for leaf in corpus::leaves()? {
                let path = tree.join(leaf.path.to_str()?);
                path.metadata().with_context(|| path.display().to_string())?;
            }
            peers::stat(&tree, Naming::Path, mount)
        }
    }
}

/// A side that mounts anew and reads what nobody has cached, each time.
pub fn cold(access: Access, image: &Path, mounter: &Mounter) -> Side {
    // Whether it can be mounted at all is known before the rounds.
    if let Err(why) = mounter(image) {
        return Side::absent(why);
    }
    let (image, mounter) = (image.to_owned(), Rc::clone(mounter));
    Side::probe(move || {
        forget_pages(&image)?;
        let mount = match mounter(&image) {
            Ok(mount) => mount,
            Err(why) => bail!("{why}"),
        };
        match access {
            Access::Sequential => cold_sequential(&mount.dir().join(STREAM)),
            Access::Random => cold_random(&mount.dir().join(STREAM)),
            Access::Stat => cold_stat(&mount.dir().join(TREE)),
        }
    })
}

fn sequential(stream: &Path, mount: Rc<Mount>) -> anyhow::Result<Side> {
    let name = || stream.display().to_string();
    let file = File::open(stream).with_context(name)?;
    let chunks = file.metadata().with_context(name)?.len() / CHUNK;
    ensure!(chunks > 0, "{}: shorter than one read", stream.display());
    let mut buffer = vec![0; CHUNK as usize];
    for chunk in 0..chunks {
        file.read_exact_at(&mut buffer, chunk * CHUNK).with_context(name)?;
    }
    let mut next = 0;
    let held = In { open: file, _mount: mount };
    Ok(Side::batch(move |operations| {
        let In { open: file, .. } = peers::whole(&held);
        let started = Instant::now();
        for _ in 0..operations {
            file.read_exact_at(&mut buffer, next * CHUNK)?;
            check_chunk(next, &buffer)?;
            next = (next + 1) % chunks;
        }
        Ok(started.elapsed())
    }))
}

/// Megabytes a second.
fn cold_sequential(stream: &Path) -> anyhow::Result<f64> {
    let mut buffer = vec![0; CHUNK as usize];
    let started = Instant::now();
    let mut file = File::open(stream).with_context(|| stream.display().to_string())?;
    let chunks = file.metadata()?.len() / CHUNK;
    for chunk in 0..chunks {
        file.read_exact(&mut buffer)?;
        check_chunk(chunk, &buffer)?;
    }
    let microseconds = (started.elapsed().as_micros() as f64).max(1.0);
    Ok((chunks * CHUNK) as f64 / microseconds)
}

/// Nanoseconds a page.
fn cold_random(stream: &Path) -> anyhow::Result<f64> {
    let mut buffer = vec![0; PAGE];
    let started = Instant::now();
    let file = File::open(stream).with_context(|| stream.display().to_string())?;
    let mut walk = Walk::new(file.metadata()?.len() / PAGE as u64);
    for _ in 0..COLD_OPERATIONS {
        let (page, word) = walk.step();
        file.read_exact_at(&mut buffer, page * PAGE as u64)?;
        walk.saw(page, word, corpus::word(&buffer, word));
    }
    let took = started.elapsed();
    walk.check()?;
    Ok(took.as_nanos() as f64 / COLD_OPERATIONS as f64)
}

/// Nanoseconds a file.
fn cold_stat(tree: &Path) -> anyhow::Result<f64> {
    let leaves = corpus::leaves()?;
    let paths: Vec<_> = leaves
        .iter()
        .map(|leaf| Ok(tree.join(leaf.path.to_str()?)))
        .collect::<anyhow::Result<_>>()?;
    let mut walk = Walk::new(leaves.len() as u64);
    let started = Instant::now();
    for _ in 0..COLD_OPERATIONS {
        let at = walk.step().0 as usize;
        let found = statat(CWD, &paths[at], AtFlags::empty())?;
        walk.saw_instead(found.st_size as u64, leaves[at].size);
    }
    let took = started.elapsed();
    walk.check()?;
    Ok(took.as_nanos() as f64 / COLD_OPERATIONS as f64)
}

/// Checks one word of each page of a chunk: enough to know that the right pages came.
fn check_chunk(chunk: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let first = chunk * (CHUNK / PAGE as u64);
    for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE)) {
        let index = page as usize % WORDS;
        let right = corpus::word(bytes, index) == corpus::expected(page, index);
        ensure!(right, "page {page} holds something else");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Access; 3] = [Access::Sequential, Access::Random, Access::Stat];

    fn measure(mut side: Side) {
        match &mut side {
            Side::Batch(run) => assert!(run(300).unwrap().as_nanos() > 0),
            Side::Probe(run) => assert!(run().unwrap() > 0.0),
            Side::Absent(why) => println!("skipped: {why}"),
        }
    }

    fn mounted(below: &Path) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&below.display().to_string())
    }

    #[test]
    fn mounts_are_read_cold_and_cached() {
        let scratch = Scratch::new(None).unwrap();
        let image = image(&scratch, 4 << 20).unwrap();
        let (one, two) = (scratch.clone(), scratch.clone());
        let ext4: Mounter = Rc::new(move |image| one.mount_ext4(image, &["ro", "noload"]));
        let fuse2fs: Mounter = Rc::new(move |image| two.mount_fuse2fs(image));
        for mounter in [ext4, fuse2fs] {
            for access in ALL {
                measure(cached(access, &image, &mounter).unwrap());
                measure(cold(access, &image, &mounter));
                assert!(!mounted(scratch.path()), "a side has left its mount behind");
            }
        }
    }

    #[test]
    fn wrong_contents_are_no_measurement() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(STREAM), vec![7; CHUNK as usize]).unwrap();
        let path = dir.path().to_owned();
        let mounter: Mounter = Rc::new(move |_| Ok(Mount::new(path.clone(), || {})));
        let image = dir.path().join(STREAM);
        for access in [Access::Sequential, Access::Random] {
            let Side::Probe(mut run) = cold(access, &image, &mounter) else { panic!("absent") };
            assert!(run().is_err());
            let Side::Batch(mut run) = cached(access, &image, &mounter).unwrap() else {
                panic!("absent")
            };
            assert!(run(1).is_err());
        }
    }
}
