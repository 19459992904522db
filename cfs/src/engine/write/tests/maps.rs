//! Maps against a model.

use std::collections::BTreeMap;

use super::*;
use crate::Caller;
use crate::disk::inode::InodeFlags;

/// Where each mapped block of a file is, and whether it is unwritten.
type Model = BTreeMap<u64, (u64, bool)>;

fn assert_same(volume: &Volume, live: &Live, model: &Model) {
    let mut found = Model::new();
    for run in volume.runs(&live.inode, 0, 1 << 33) {
        let run = run.unwrap();
        let (start, unwritten) = match run.mapping {
            Mapping::Hole => continue,
            Mapping::Data(block) => (block.0, false),
            Mapping::Unwritten(block) => (block.0, true),
        };
        for at in 0..run.len {
            found.insert(run.logical + at, (start + at, unwritten));
        }
    }
    assert!(found == *model, "found {found:?}, expected {model:?}");
}

struct Test {
    writer: Arc<Writer>,
    random: Random,
    model: Model,
    /// Blocks of the file that are played with.
    span: u64,
    extents: bool,
}

impl Test {
    fn step(&mut self, live: &mut Live) {
        match (self.random.below(20), self.extents) {
            (0..12, _) => self.insert(live),
            (12..15, true) => self.convert(live),
            (15, true) => self.shift(live),
            _ => self.remove(live),
        }
    }

    fn range(&mut self) -> std::ops::Range<u64> {
        let first = self.random.below(self.span);
        first..first + 1 + self.random.below(40)
    }

    fn insert(&mut self, live: &mut Live) {
        let range = self.range();
        let free = range.clone().take_while(|at| !self.model.contains_key(at)).count() as u32;
        if free == 0 {
            return;
        }
        let unwritten = self.extents && self.random.below(3) == 0;
        let writer = &self.writer;
        let goal = match self.random.below(3) {
            0 => any_block(&writer.volume, &mut self.random),
            _ => writer.goal(live, range.start),
        };
        writer.space.reserve(free.into(), &Caller::ROOT).unwrap();
        let claim = writer.space.claim(goal, free, true).unwrap();
        writer.space.release((free - claim.len()).into());
        let mut handle = writer.begin(writer.insert_credits(live, free.into())).unwrap();
        for at in 0..u64::from(claim.len()) {
            self.model.insert(range.start + at, (claim.start().0 + at, unwritten));
        }
        writer.insert_run(&mut handle, live, range.start, claim, unwritten).unwrap();
        self.store(&mut handle, live);
    }

    /// Stores the file with a size that covers its blocks.
    fn store(&self, handle: &mut Handle<'_>, live: &mut Live) {
        let end = self.model.last_key_value().map_or(0, |(at, _)| at + 1);
        live.inode.size = end << self.writer.volume.superblock().block_bits;
        live.disk_size = live.inode.size;
        self.writer.store(handle, live).unwrap();
    }

    fn convert(&mut self, live: &mut Live) {
        let range = self.range();
        let unwritten = self.random.below(2) == 0;
        let mut handle = self.writer.begin(8).unwrap();
        self.writer.convert(&mut handle, live, range.clone(), unwritten).unwrap();
        for (_, block) in self.model.range_mut(range) {
            block.1 = unwritten;
        }
        self.store(&mut handle, live);
    }

    fn remove(&mut self, live: &mut Live) {
        let range = match self.random.below(12) {
            0 => 0..self.span * 2,
            1 => self.random.below(self.span)..self.span * 2,
            _ => self.range(),
        };
        let mut handle = self.writer.begin(8).unwrap();
        self.writer.remove(&mut handle, live, range.clone()).unwrap();
        self.model.retain(|at, _| !range.contains(at));
        self.store(&mut handle, live);
    }

    fn shift(&mut self, live: &mut Live) {
        let range = self.range();
        let by = range.end - range.start;
        let mut handle = self.writer.begin(8).unwrap();
        let up = self.random.below(2) == 0;
        let from = if up {
            self.writer.shift_up(&mut handle, live, range.start, by).unwrap();
            range.start
        } else {
            self.writer.remove(&mut handle, live, range.clone()).unwrap();
            self.model.retain(|at, _| !range.contains(at));
            self.writer.shift_down(&mut handle, live, range.end, by).unwrap();
            range.end
        };
        let moved = self.model.split_off(&from);
        let to = |at: u64| if up { at + by } else { at - by };
        self.model.extend(moved.into_iter().map(|(at, block)| (to(at), block)));
        self.store(&mut handle, live);
    }
}

/// Asks debugfs where the blocks of the file are; returns how many are where they should be.
fn mapped_by_debugfs(image: &Path, model: &Model) -> usize {
    let commands = tempfile::NamedTempFile::new().unwrap();
    let lines: Vec<_> = model.keys().map(|at| format!("bmap /f {at}")).collect();
    std::fs::write(commands.path(), lines.join("\n")).unwrap();
    let mut debugfs = Command::new("debugfs");
    let out = debugfs.arg("-f").arg(commands.path()).arg(image).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    // The place, and for an unwritten one a word.
    let answers = text.lines().filter(|line| !line.starts_with("debugfs:"));
    let same = |(line, (block, unwritten)): (&str, &(u64, bool))| {
        let mut words = line.split_whitespace();
        let place = words.next().and_then(|word| word.parse().ok());
        place == Some(*block) && words.next().is_some() == *unwritten
    };
    answers.zip(model.values()).filter(|pair| same(*pair)).count()
}

fn run(name: &str, args: &[&str], seed: u64, span: u64, steps: usize) {
    println!("{name}, seed {seed}");
    let memory = Memory::new(image(32, args));
    let writer = memory.writer();
    let ino = file(&writer.volume);
    let cell = writer.live(ino).unwrap();
    let extents = cell.read().inode.flags.contains(InodeFlags::EXTENTS);
    let mut test =
        Test { writer: writer.clone(), random: Random(seed), model: Model::new(), span, extents };
    for step in 0..steps {
        let mut live = cell.write();
        test.step(&mut live);
        if step % 16 == 0 {
            assert_same(&writer.volume, &live, &test.model);
        }
        if step % 50 == 0 {
            writer.journal.flush_all().unwrap();
        }
    }
    assert_same(&writer.volume, &cell.read(), &test.model);
    writer.stop().unwrap();
    assert_same(&memory.volume(), &cell.read(), &test.model);
    let read = memory.volume().inode(ino).unwrap();
    let live = cell.read();
    assert_eq!((read.size, read.blocks), (live.inode.size, live.inode.blocks));
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), memory.bytes()).unwrap();
    assert_clean_file(image.path());
    assert_eq!(mapped_by_debugfs(image.path(), &test.model), test.model.len());
}

#[test]
fn maps_are_what_a_model_says() {
    for (name, args) in KINDS {
        for seed in 0..3 {
            run(name, args, seed, 3000, 700);
        }
    }
}

#[test]
fn maps_of_sparse_files_are_what_a_model_says() {
    for (name, args) in KINDS {
        // All levels of tables, and extents far apart.
        run(name, args, 9, 1 << 23, 400);
    }
}

#[test]
fn trees_grow_to_several_levels_and_shrink_into_the_inode() {
    let memory = Memory::new(image(64, &["-t", "ext4", "-b", "1024", "-J", "size=1"]));
    let writer = memory.writer();
    let cell = writer.live(file(&writer.volume)).unwrap();
    let mut live = cell.write();
    for at in 0..20_000u64 {
        // Each second block: nothing joins.
        let claim = writer.space.claim(Block(5000 + 2 * at), 1, false).unwrap();
        let mut handle = writer.begin(writer.insert_credits(&live, 1)).unwrap();
        let logical = 2 * (at * 7919 % 20_000);
        writer.insert_run(&mut handle, &mut live, logical, claim, false).unwrap();
        live.disk_size = 40_000 << 10;
        live.inode.size = live.disk_size;
        writer.store(&mut handle, &mut live).unwrap();
    }
    let depth = |live: &Live| live.inode.block[6];
    assert!(depth(&live) >= 2, "depth {}", depth(&live));
    let mapped = |live: &Live| {
        let runs = writer.volume.runs(&live.inode, 0, 50_000).map(Result::unwrap);
        runs.filter(|run| run.mapping != Mapping::Hole).map(|run| run.len).sum::<u64>()
    };
    assert_eq!(mapped(&live), 20_000);
    writer.truncate(&mut live, 3 << 10, now()).unwrap();
    assert_eq!((mapped(&live), depth(&live)), (2, 0));
    assert_eq!(live.inode.blocks, 4);
    drop(live);
    writer.stop().unwrap();
    assert_clean(&memory.bytes());
}

#[test]
fn a_tree_of_all_levels_is_full_at_the_last_one() {
    let memory = Memory::new(image(32, &["-t", "ext4", "-b", "1024"]));
    let mut writer = memory.writer();
    Arc::get_mut(&mut writer).unwrap().node_entries = 6;
    let cell = writer.live(file(&writer.volume)).unwrap();
    let mut live = cell.write();
    let (mut model, mut random) = (Model::new(), Random(3));
    let full = loop {
        let logical = 2 * random.below(1 << 20);
        if model.contains_key(&logical) {
            continue;
        }
        let claim = writer.space.claim(any_block(&writer.volume, &mut random), 1, false).unwrap();
        let start = claim.start().0;
        let mut handle = writer.begin(writer.insert_credits(&live, 1)).unwrap();
        match writer.insert_run(&mut handle, &mut live, logical, claim, false) {
            Ok(()) => drop(model.insert(logical, (start, false))),
            Err(error) => break error,
        }
        writer.store(&mut handle, &mut live).unwrap();
    };
    assert!(matches!(full, Error::FileTooBig), "{full} with {} extents", model.len());
    assert_eq!(live.inode.block[6], 5);
    assert!(model.len() > 300, "{}", model.len());
    assert_same(&writer.volume, &live, &model);
    while !model.is_empty() {
        let first = 2 * random.below(1 << 20);
        let range = first..first + random.below(1 << 18);
        let mut handle = writer.begin(8).unwrap();
        writer.remove(&mut handle, &mut live, range.clone()).unwrap();
        writer.store(&mut handle, &mut live).unwrap();
        model.retain(|at, _| !range.contains(at));
        assert_same(&writer.volume, &live, &model);
    }
    assert_eq!((live.inode.block[6], live.inode.blocks), (0, 0));
    drop(live);
    writer.stop().unwrap();
    assert_clean(&memory.bytes());
}
