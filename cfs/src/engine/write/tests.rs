//! The writer on images of mke2fs.

mod crash;
mod files;
mod many;
mod maps;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::disk::inode::Inode;
use crate::engine::store::{BlockSource, MemSource};
use crate::engine::{Mapping, Options};
use crate::id::{Block, Ino};

/// Kinds of volumes: a name, and arguments of mke2fs.
const KINDS: &[(&str, &[&str])] = &[
    ("ext4, 4 KiB", &["-t", "ext4", "-b", "4096", "-J", "size=4"]),
    ("ext4, 2 KiB", &["-t", "ext4", "-b", "2048", "-J", "size=4"]),
    ("ext4, 1 KiB", &["-t", "ext4", "-b", "1024", "-J", "size=1"]),
    ("ext4, no checksums", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"]),
    ("ext4, list", &["-t", "ext4", "-b", "1024", "-O", "^orphan_file,uninit_bg", "-I", "128"]),
    ("ext4, no journal", &["-t", "ext4", "-b", "1024", "-O", "^has_journal"]),
    ("ext3, 4 KiB", &["-t", "ext3", "-b", "4096", "-J", "size=4"]),
    ("ext3, 1 KiB", &["-t", "ext3", "-b", "1024", "-J", "size=1"]),
    ("ext2, 4 KiB", &["-t", "ext2", "-b", "4096"]),
    ("ext2, 2 KiB", &["-t", "ext2", "-b", "2048"]),
    ("ext2, 1 KiB", &["-t", "ext2", "-b", "1024"]),
];

/// An image of `megabytes` with an empty file `f`.
fn image(megabytes: u64, args: &[&str]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("f"), []).unwrap();
    file.as_file().set_len(megabytes << 20).unwrap();
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-E", "lazy_itable_init=1"]).args(args);
    command.arg("-d").arg(tree.path()).arg(file.path());
    let made = command.output().expect("these tests need mke2fs (package e2fsprogs)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(file.path()).unwrap()
}

fn assert_clean(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    assert_clean_file(file.path());
}

fn assert_clean_file(path: &Path) {
    let out = Command::new("e2fsck").args(["-fn"]).arg(path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

/// A volume in memory.
struct Memory(Arc<MemSource>);

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(MemSource::new(bytes)))
    }

    fn volume(&self) -> Arc<Volume> {
        let source: Arc<dyn BlockSource> = self.0.clone();
        Arc::new(Volume::open(source, &Options::default()).unwrap())
    }

    fn writer(&self) -> Arc<Writer> {
        Writer::open(self.volume(), &WriterOptions::default()).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.0.size() as usize];
        self.0.read_at(0, &mut bytes).unwrap();
        bytes
    }
}

/// The number of the file `f`.
fn file(volume: &Volume) -> Ino {
    let root = volume.inode(Ino::ROOT).unwrap();
    volume.lookup(&root, b"f").unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Blocks that a group of files may have, for goals all over the volume.
fn any_block(volume: &Volume, random: &mut Random) -> Block {
    Block(random.below(volume.superblock().blocks_count))
}

/// Takes an inode without names, as a file that is opened and unlinked; `blocks` of it are mapped.
fn unnamed(writer: &Arc<Writer>, blocks: u64) -> Arc<Cell> {
    let cell = {
        let mut handle = writer.begin(16).unwrap();
        let ino = writer.space.new_inode(&mut handle, Ino::ROOT, true, false).unwrap();
        let superblock = writer.volume.superblock();
        let inode = Inode::fresh(ino, 0o100_600, 5, now(), superblock).unwrap();
        let cell = writer.adopt(&mut handle, inode).unwrap();
        writer.unnamed(&mut handle, &mut cell.write()).unwrap();
        cell
    };
    fill(writer, &mut cell.write(), blocks);
    cell
}

/// Maps each second block of a file to blocks all over the volume.
fn fill(writer: &Arc<Writer>, live: &mut Live, blocks: u64) {
    let bits = writer.volume.superblock().block_bits;
    let mut random = Random(blocks);
    for at in (0..blocks).map(|at| 2 * at) {
        let goal = any_block(&writer.volume, &mut random);
        let claim = writer.space.claim(goal, 1, false).unwrap();
        let mut handle = writer.begin(writer.insert_credits(live, 1)).unwrap();
        writer.insert_run(&mut handle, live, at, claim, false).unwrap();
        (live.inode.size, live.disk_size) = ((at + 1) << bits, (at + 1) << bits);
        writer.store(&mut handle, live).unwrap();
    }
}
