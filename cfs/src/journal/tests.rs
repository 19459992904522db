//! The journal on images of mke2fs.

mod edges;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::engine::Options;
use crate::engine::store::{BlockSource, MemSource};
use crate::id::Block;

/// An image of `kilobytes` with these arguments of mke2fs.
fn image(kilobytes: u64, args: &[&str]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(kilobytes << 10).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F"]).args(args).arg(file.path()).status();
    assert!(made.expect("these tests need mke2fs (package e2fsprogs)").success());
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

fn open(source: &Arc<dyn BlockSource>) -> (Arc<Volume>, Arc<Journal>) {
    let volume = Arc::new(Volume::open(source.clone(), &Options::default()).unwrap());
    let journal = Journal::open(&volume, &JournalOptions::default()).unwrap();
    (volume, journal)
}

/// Blocks of the volume that are free, so that any contents are right.
fn free_blocks(volume: &Volume) -> std::ops::Range<u64> {
    let superblock = volume.superblock();
    let last = superblock.groups - 1;
    superblock.blocks_count - 1000..superblock.blocks_count - u64::from(last.min(1))
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

type Model = BTreeMap<u64, Vec<u8>>;

/// One transaction's worth of random changes, and what they make of the model.
fn change(journal: &Journal, volume: &Volume, model: &mut Model, random: &mut Random) {
    let range = free_blocks(volume);
    let block_size = volume.superblock().block_size as usize;
    let mut handle = journal.begin(8).unwrap();
    for _ in 0..4 {
        let block = range.start + random.below(range.end - range.start);
        let byte = random.below(255) as u8 + 1;
        match (model.contains_key(&block), random.below(4)) {
            (true, 0) => {
                handle.forget(Block(block));
                model.remove(&block);
            }
            (true, _) => {
                let offset = random.below(block_size as u64 - 8) as usize;
                handle.put(Block(block), offset, &[byte; 8]).unwrap();
                model.get_mut(&block).unwrap()[offset..offset + 8].fill(byte);
            }
            (false, _) => {
                let mut bytes = vec![byte; block_size];
                if byte < 64 {
                    bytes[..4].copy_from_slice(&format::MAGIC.to_be_bytes());
                }
                handle.create(Block(block), bytes.clone().into()).unwrap();
                model.insert(block, bytes);
            }
        }
    }
}

fn assert_holds(source: &Arc<dyn BlockSource>, block_size: usize, model: &Model) {
    for (block, expected) in model {
        let mut found = vec![0; block_size];
        source.read_at(block * block_size as u64, &mut found).unwrap();
        assert!(found == *expected, "block {block}");
    }
}

const KINDS: &[(&str, &[&str])] = &[
    ("ext4, 4 KiB", &["-t", "ext4", "-b", "4096", "-J", "size=4"]),
    ("ext4, 2 KiB", &["-t", "ext4", "-b", "2048", "-J", "size=2"]),
    ("ext4, 1 KiB", &["-t", "ext4", "-b", "1024", "-J", "size=1"]),
    ("ext4, 32 bit", &["-t", "ext4", "-b", "1024", "-O", "^64bit", "-J", "size=1"]),
    ("ext4, no checksums", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"]),
    ("ext4, fast commits", &["-t", "ext4", "-b", "1024", "-O", "fast_commit", "-J", "size=2"]),
    ("ext3", &["-t", "ext3", "-b", "1024", "-J", "size=1"]),
    ("ext2", &["-t", "ext2", "-b", "1024"]),
];

#[test]
fn a_stopped_volume_is_clean_and_holds_everything() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Arc::new(MemSource::new(image(32 << 10, args)));
        let source: Arc<dyn BlockSource> = memory.clone();
        let (volume, journal) = open(&source);
        let (mut model, mut random) = (Model::new(), Random(7));
        for round in 0..2000 {
            change(&journal, &volume, &mut model, &mut random);
            if round % 7 == 0 {
                journal.flush_all().unwrap();
            }
        }
        journal.stop().unwrap();
        assert_holds(&source, volume.superblock().block_size as usize, &model);
        drop((journal, volume, source));
        let memory = Arc::into_inner(memory).expect("nobody else reads the image");
        assert_clean(&memory.into_bytes());
    }
}

#[test]
fn what_was_committed_is_replayed() {
    for (name, args) in KINDS.iter().filter(|(name, _)| *name != "ext2") {
        println!("{name}");
        let memory = Arc::new(MemSource::new(image(32 << 10, args)));
        let source: Arc<dyn BlockSource> = memory.clone();
        let (volume, journal) = open(&source);
        let (mut model, mut random) = (Model::new(), Random(11));
        for round in 0..1000 {
            change(&journal, &volume, &mut model, &mut random);
            if round % 7 == 0 {
                journal.flush_all().unwrap();
            }
        }
        journal.flush_all().unwrap();
        let expected = model.clone();
        change(&journal, &volume, &mut model, &mut random);
        drop(journal);
        let report = recover(&source).unwrap().expect("it needs recovery");
        assert!(report.transactions > 0, "{report:?}");
        assert_holds(&source, volume.superblock().block_size as usize, &expected);
        drop((volume, source));
        let memory = Arc::into_inner(memory).expect("nobody else reads the image");
        assert_clean(&memory.into_bytes());
    }
}
