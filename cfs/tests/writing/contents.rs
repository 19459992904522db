//! Random changes of contents against a model.

use std::sync::Arc;

use cfs::Caller;
use cfs::change::WriteOptions;
use cfs::client::Client;
use cfs::engine::write::{DataMode, WriterOptions};
use cfs::id::Ino;

use crate::image::{Image, STEP, initial};

const FILES: usize = 6;
/// Files grow to so many bytes at most.
const LARGEST: u64 = 3 << 20;

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2 | KEEP_SIZE;
const COLLAPSE_RANGE: u32 = 8;
const ZERO_RANGE: u32 = 0x10;
const INSERT_RANGE: u32 = 0x20;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// A file's name, number and what it should hold.
struct Model {
    ino: Ino,
    bytes: Vec<u8>,
}

struct World {
    client: Arc<Client>,
    files: Vec<Model>,
    random: Random,
    block: u64,
    extents: bool,
    log: Vec<String>,
}

impl World {
    fn step(&mut self) {
        let which = self.random.below(FILES as u64) as usize;
        let size = self.files[which].bytes.len() as u64;
        match self.random.below(20) {
            0..=8 => self.write(which, size),
            9 | 10 => self.append(which),
            11..=13 => self.truncate(which, size),
            14..=16 => self.allocate(which, size),
            17 => {
                self.log.push(format!("sync {which}"));
                let mut seen = 0;
                self.client.sync(self.files[which].ino, false, &mut seen).unwrap();
            }
            18 => self.check_seek(which),
            _ => {}
        }
        self.check(which);
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let seed = self.random.next();
        (0..len).map(|at| (seed >> (at % 7 * 8)) as u8 | 1).collect()
    }

    fn offset(&mut self, size: u64) -> u64 {
        let offset = match self.random.below(4) {
            0 => self.random.below(size + 1),
            1 => size.saturating_sub(self.random.below(5000)),
            2 => self.random.below(size + 20_000),
            _ => self.random.below(LARGEST),
        };
        if self.random.below(3) == 0 { offset & !4095 } else { offset }
    }

    fn write(&mut self, which: usize, size: u64) {
        let offset = self.offset(size);
        let len = match self.random.below(4) {
            0 => self.random.below(100) + 1,
            1 => 4096,
            _ => self.random.below(40_000) + 1,
        };
        let bytes = self.bytes(len);
        self.log.push(format!("write {which}: {len} at {offset}"));
        let model = &mut self.files[which];
        let done = self.client.write(model.ino, offset, &bytes, WriteOptions::default()).unwrap();
        assert_eq!((done.offset, done.len), (offset, bytes.len()));
        let end = (offset + len) as usize;
        if model.bytes.len() < end {
            model.bytes.resize(end, 0);
        }
        model.bytes[offset as usize..end].copy_from_slice(&bytes);
    }

    fn append(&mut self, which: usize) {
        let len = self.random.below(9000) + 1;
        let bytes = self.bytes(len);
        self.log.push(format!("append {which}: {len}"));
        let model = &mut self.files[which];
        let options = WriteOptions { append: true, ..WriteOptions::default() };
        let done = self.client.write(model.ino, 3, &bytes, options).unwrap();
        assert_eq!((done.offset, done.len), (model.bytes.len() as u64, bytes.len()));
        model.bytes.extend_from_slice(&bytes);
    }

    fn truncate(&mut self, which: usize, size: u64) {
        let to = if self.random.below(6) == 0 { 0 } else { self.offset(size) };
        self.log.push(format!("truncate {which}: {size} to {to}"));
        let model = &mut self.files[which];
        let record = self.client.truncate(model.ino, to).unwrap();
        assert_eq!(record.attr.size, to);
        model.bytes.resize(to as usize, 0);
    }

    fn allocate(&mut self, which: usize, size: u64) {
        let mode = [
            0,
            KEEP_SIZE,
            PUNCH_HOLE,
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
            COLLAPSE_RANGE,
            INSERT_RANGE,
        ][self.random.below(7) as usize];
        let (mut offset, mut len) = (self.offset(size), self.random.below(60_000) + 1);
        if mode == COLLAPSE_RANGE || mode == INSERT_RANGE {
            offset = offset / self.block * self.block;
            len = len.div_ceil(self.block) * self.block;
            let reaches = if mode == COLLAPSE_RANGE { offset + len } else { offset };
            if reaches >= size {
                return;
            }
        }
        self.log.push(format!("allocate {which}: mode {mode:#x}, {len} at {offset}"));
        let model = &mut self.files[which];
        let done = self.client.allocate(model.ino, mode, offset, len, Caller::ROOT);
        if !self.extents && mode != PUNCH_HOLE {
            assert_eq!(done.unwrap_err().errno(), 95, "EOPNOTSUPP");
            return;
        }
        done.unwrap();
        let (from, to) = (offset as usize, (offset + len) as usize);
        let bytes = &mut model.bytes;
        match mode {
            COLLAPSE_RANGE => drop(bytes.drain(from..to)),
            INSERT_RANGE => drop(bytes.splice(from..from, std::iter::repeat_n(0, to - from))),
            _ => {
                if mode & KEEP_SIZE == 0 && bytes.len() < to {
                    bytes.resize(to, 0);
                }
                let end = to.min(bytes.len());
                if mode & !KEEP_SIZE != 0 && from < end {
                    bytes[from..end].fill(0);
                }
            }
        }
    }

    /// Data is where bytes are that are not zero; the model knows no more of holes.
    fn check_seek(&mut self, which: usize) {
        let model = &self.files[which];
        let from = self.random.below(model.bytes.len() as u64 + 1);
        let first = model.bytes[from as usize..].iter().position(|&byte| byte != 0);
        match (self.client.seek(model.ino, from, true), first) {
            (Ok(found), Some(first)) => assert!(found <= from + first as u64),
            (Ok(_), None) => {}
            (Err(error), first) => {
                assert_eq!((error.errno(), first), (6, None), "ENXIO: seek {which} from {from}");
            }
        }
    }

    fn check(&mut self, which: usize) {
        let model = &self.files[which];
        let file = self.client.file(model.ino);
        let found = read(&file, self.client.stat(model.ino).unwrap().size);
        if found != model.bytes {
            let at = found.iter().zip(&model.bytes).position(|(a, b)| a != b);
            let (ours, theirs) = (found.len(), model.bytes.len());
            panic!(
                "file {which}: {ours} bytes, not {theirs}; first at {at:?}\n{}",
                self.log.join("\n")
            );
        }
    }
}

fn read(file: &cfs::client::File, size: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; size as usize];
    assert_eq!(file.read(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn run(arguments: &[&str], block: u64, extents: bool, seed: u64, steps: usize, cache: u64) {
    run_with(arguments, STEP, (block, extents), seed, steps, (cache, DataMode::Ordered));
}

/// From files that are each `step` bytes longer than the one before.
fn run_with(
    arguments: &[&str],
    step: usize,
    (block, extents): (u64, bool),
    seed: u64,
    steps: usize,
    (cache, data): (u64, DataMode),
) {
    println!("mke2fs {arguments:?}, seed {seed}, {data:?}");
    let image = Image::with(arguments, "64M", FILES, step);
    let volume = image.open_with(cache, WriterOptions { data, ..WriterOptions::default() });
    let client = Arc::clone(volume.client());
    let files = (0..FILES)
        .map(|index| Model {
            ino: client.resolve(index.to_string().as_bytes()).unwrap().attr.ino,
            bytes: initial(index, step),
        })
        .collect();
    let random = Random(seed * 2 + 1);
    let mut world = World { client, files, random, block, extents, log: Vec::new() };
    for _ in 0..steps {
        world.step();
    }
    let World { client, files, .. } = world;
    drop(client);
    volume.close().unwrap();
    image.assert_clean();
    for (index, model) in files.iter().enumerate() {
        // Of contents in an inode debugfs gives all of the space that they have.
        let dumped = image.dump(&index.to_string());
        let here = step < STEP && dumped.starts_with(&model.bytes);
        assert!(here || dumped == model.bytes, "{index}: e2fsprogs reads other bytes");
    }
    let volume = image.open(cache);
    for model in &files {
        let file = volume.client().file(model.ino);
        let size = volume.client().stat(model.ino).unwrap().size;
        assert!(read(&file, size) == model.bytes, "{}: other bytes on disk", model.ino);
    }
    volume.close().unwrap();
    image.assert_clean();
}

/// `CFS_WRITING_SEED` and `CFS_WRITING_STEPS` choose one long run.
fn seeds() -> (std::ops::Range<u64>, usize) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = number("CFS_WRITING_SEED").map_or(0..3, |seed| seed..seed + 1);
    (seeds, number("CFS_WRITING_STEPS").unwrap_or(300) as usize)
}

#[test]
fn random_changes_with_blocks_of_a_page() {
    let (seeds, steps) = seeds();
    seeds.for_each(|seed| run(&["-b", "4096"], 4096, true, seed, steps, 4 << 20));
}

#[test]
fn random_changes_with_small_blocks() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        run(&["-b", "1024"], 1024, true, seed, steps, 64 << 20);
        run(&["-b", "2048"], 2048, true, seed, steps, 4 << 20);
    }
}

#[test]
fn random_changes_without_extents() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        run(&["-O", "^extent,^64bit", "-b", "4096"], 4096, false, seed, steps, 4 << 20);
        run(&["-O", "^extent,^64bit", "-b", "1024"], 1024, false, seed, steps, 64 << 20);
        run(
            &["-O", "^extent,^64bit,^has_journal", "-b", "1024"],
            1024,
            false,
            seed,
            steps,
            4 << 20,
        );
    }
}

#[test]
fn random_changes_through_the_journal() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        let run = |arguments: &[&str], layout, cache| {
            run_with(arguments, STEP, layout, seed, steps, (cache, DataMode::Journal));
        };
        run(&["-b", "4096"], (4096, true), 4 << 20);
        run(&["-b", "1024", "-J", "size=1"], (1024, true), 4 << 20);
        run(&["-O", "^extent,^64bit", "-b", "1024", "-J", "size=1"], (1024, false), 64 << 20);
    }
}

#[test]
fn random_changes_of_contents_in_inodes() {
    let (seeds, steps) = seeds();
    for seed in seeds.start * 4..seeds.end * 4 {
        for data in [DataMode::Ordered, DataMode::Journal] {
            let run = |arguments: &[&str], step, layout| {
                run_with(arguments, step, layout, seed, steps / 10, (4 << 20, data));
            };
            run(&["-O", "inline_data", "-b", "4096"], 25, (4096, true));
            run(&["-O", "inline_data", "-b", "1024", "-I", "1024"], 170, (1024, true));
            let plain = "inline_data,^extent,^64bit,^metadata_csum";
            run(&["-O", plain, "-b", "1024"], 25, (1024, false));
        }
    }
}
