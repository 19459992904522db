//! The allocator on images of mke2fs, against a model and e2fsck.

mod model;
mod policy;
mod threads;
mod trouble;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::engine::Options;
use crate::engine::store::{BlockSource, MemSource};
use crate::journal::JournalOptions;

/// An image of `kilobytes` with these arguments of mke2fs.
fn image(kilobytes: u64, args: &[&str]) -> Arc<MemSource> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(kilobytes << 10).unwrap();
    image_in(&file, args)
}

/// An image in a file, whatever that held before.
fn image_in(file: &tempfile::NamedTempFile, args: &[&str]) -> Arc<MemSource> {
    let made = Command::new("mke2fs").args(["-q", "-F"]).args(args).arg(file.path()).status();
    assert!(made.expect("these tests need mke2fs (package e2fsprogs)").success(), "{args:?}");
    Arc::new(MemSource::new(std::fs::read(file.path()).unwrap()))
}

/// A volume that is open for writing.
struct Open {
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    space: Arc<Space>,
}

impl Open {
    fn new(source: &Arc<MemSource>) -> Self {
        Self::on(source.clone())
    }

    fn on(source: Arc<dyn BlockSource>) -> Self {
        let volume = Arc::new(Volume::open(source, &Options::default()).unwrap());
        let journal = Journal::open(&volume, &JournalOptions::default()).unwrap();
        let space = Space::open(&volume).unwrap();
        space.attach(&journal);
        Self { volume, journal, space }
    }

    /// One operation.
    fn with<T>(&self, work: impl FnOnce(&mut crate::journal::Handle<'_>) -> T) -> T {
        work(&mut self.journal.begin(16).unwrap())
    }

    fn commit(&self) {
        self.journal.flush_all().unwrap();
    }

    fn stop(self) {
        assert_eq!(self.space.take_problems().len(), 0);
        self.journal.stop().unwrap();
    }
}

/// What e2fsck finds in use that no file has, and what else it says. Nothing but the bitmaps and
/// the counts that follow from them may be wrong.
struct Verdict {
    blocks: BTreeSet<u64>,
    inodes: BTreeSet<u32>,
    clean: bool,
    text: String,
}

fn e2fsck(source: &MemSource) -> Verdict {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(source.size()).unwrap();
    let mut chunk = vec![0; 64 << 10];
    for offset in (0..source.size()).step_by(chunk.len()) {
        let len = (source.size() - offset).min(chunk.len() as u64) as usize;
        source.read_at(offset, &mut chunk[..len]).unwrap();
        if chunk[..len].iter().any(|byte| *byte != 0) {
            file.as_file().write_all_at(&chunk[..len], offset).unwrap();
        }
    }
    let out = Command::new("e2fsck").arg("-fn").arg(file.path()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let differences = |name: &str| {
        let start = text.lines().find_map(|line| line.strip_prefix(name));
        let tokens = start.unwrap_or("").split_whitespace();
        let found = tokens.flat_map(|token| {
            let range = token.strip_prefix('-').unwrap_or_else(|| panic!("{token} in {text}"));
            let range = range.trim_matches(['(', ')']);
            let (first, last) = range.split_once("--").unwrap_or((range, range));
            first.parse::<u64>().unwrap()..=last.parse::<u64>().unwrap()
        });
        found.collect::<BTreeSet<u64>>()
    };
    let blocks = differences("Block bitmap differences:");
    let inodes = differences("Inode bitmap differences:");
    let inodes = inodes.into_iter().map(|ino| ino as u32).collect();
    for line in text.lines() {
        let expected =
            ["Pass ", "Block bitmap diff", "Inode bitmap diff", "Fix? no", "Free ", "Dir"];
        let named = line.contains("********** ") || line.contains(" files (");
        let known = expected.iter().any(|start| line.starts_with(start));
        assert!(known || named || line.is_empty(), "{line}\nin\n{text}");
    }
    Verdict { blocks, inodes, clean: out.status.success(), text }
}

fn assert_clean(source: &MemSource) {
    let verdict = e2fsck(source);
    assert!(verdict.clean, "{}", verdict.text);
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Kinds of volumes: name, size in KiB, arguments of mke2fs.
const KINDS: &[(&str, u64, &[&str])] = &[
    ("ext4, 4 KiB", 140 << 10, &["-t", "ext4", "-b", "4096", "-J", "size=4"]),
    ("ext4, 2 KiB", 100 << 10, &["-t", "ext4", "-b", "2048", "-J", "size=4"]),
    ("ext4, 1 KiB", 60_001, &["-t", "ext4", "-b", "1024", "-J", "size=4"]),
    ("ext4, 32 bit", 60 << 10, &["-t", "ext4", "-b", "1024", "-O", "^64bit", "-J", "size=4"]),
    (
        "ext4, gdt_csum",
        60 << 10,
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg", "-J", "size=4"],
    ),
    (
        "ext4, gdt_csum, 32 bit",
        60 << 10,
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,uninit_bg", "-J", "size=4"],
    ),
    (
        "ext4, no checksums",
        60 << 10,
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg", "-J", "size=4"],
    ),
    (
        "ext4, meta_bg",
        140 << 10,
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-J", "size=4"],
    ),
    (
        "ext4, meta_bg, no flex_bg",
        140 << 10,
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^flex_bg", "-J", "size=4"],
    ),
    (
        "ext4, sparse_super2",
        90 << 10,
        &["-t", "ext4", "-b", "1024", "-O", "sparse_super2", "-J", "size=4"],
    ),
    (
        "ext4, flex groups of 4, small groups",
        90 << 10,
        &["-t", "ext4", "-b", "1024", "-G", "4", "-g", "1024", "-J", "size=4"],
    ),
    (
        "ext4, no flex_bg, small groups",
        90 << 10,
        &["-t", "ext4", "-b", "4096", "-O", "^flex_bg", "-g", "2048", "-J", "size=4"],
    ),
    ("ext3", 60 << 10, &["-t", "ext3", "-b", "1024", "-J", "size=4"]),
    ("ext2", 60 << 10, &["-t", "ext2", "-b", "1024"]),
    ("ext2, revision 0", 60 << 10, &["-t", "ext2", "-b", "4096", "-r", "0"]),
];

#[test]
fn every_group_of_every_kind_is_usable() {
    for (name, size, args) in KINDS {
        println!("{name}");
        let source = image(*size, args);
        let open = Open::new(&source);
        for (number, group) in open.space.groups.iter().enumerate() {
            let mut state = group.state.lock();
            state.need_blocks(&open.space, number as u32).unwrap();
            state.need_inodes(&open.space, number as u32).unwrap();
        }
        assert_eq!(open.space.statfs(), open.volume.statfs());
        open.stop();
        assert_clean(&source);
    }
}
