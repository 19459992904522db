//! Random operations, compared with a model after each, and with e2fsck.

use std::collections::BTreeMap;

use super::*;
use crate::journal::{Handle, recover};

/// What the test has of the volume.
#[derive(Clone, Default)]
struct Model {
    /// Runs of blocks, by their start.
    runs: BTreeMap<u64, u64>,
    /// Inodes, and whether they are directories.
    inodes: BTreeMap<u32, bool>,
}

impl Model {
    fn blocks(&self) -> BTreeSet<u64> {
        self.runs.iter().flat_map(|(start, len)| *start..start + len).collect()
    }

    fn any_run(&self, random: &mut Random) -> Option<(u64, u64)> {
        let at = random.below(self.runs.len().max(1) as u64) as usize;
        self.runs.iter().nth(at).map(|(start, len)| (*start, *len))
    }

    fn any_inode(&self, random: &mut Random) -> Option<(u32, bool)> {
        let at = random.below(self.inodes.len().max(1) as u64) as usize;
        self.inodes.iter().nth(at).map(|(ino, directory)| (*ino, *directory))
    }
}

/// Blocks claimed and not committed, and those freed in transactions that may not have committed.
#[derive(Default)]
struct Moment {
    claims: Vec<Claim>,
    freed: BTreeSet<u64>,
}

fn step(
    open: &Open,
    handle: &mut Handle<'_>,
    model: &mut Model,
    moment: &mut Moment,
    random: &mut Random,
) {
    let space = &open.space;
    let blocks = open.volume.superblock().blocks_count;
    match random.below(12) {
        0..4 => {
            let (goal, want) = (Block(random.below(blocks)), 1 + random.below(300) as u32);
            let reserved = random.below(2) == 0;
            if reserved && space.reserve(want.into(), &Caller::ROOT).is_err() {
                return;
            }
            let claim = if random.below(3) == 0 {
                let ino = Ino(1 + random.below(40) as u32);
                space.claim_for(ino, random.below(500), goal, want, reserved)
            } else {
                space.claim(goal, want, reserved)
            };
            let claim = match claim {
                Ok(claim) => claim,
                Err(error) => return assert!(matches!(error, Error::NoSpace), "{error}"),
            };
            if reserved {
                space.release((want - claim.len()).into());
            }
            for block in claim.start().0..claim.start().0 + u64::from(claim.len()) {
                assert!(!moment.freed.contains(&block), "{block} was freed and not committed");
            }
            moment.claims.push(claim);
        }
        4 => moment.claims.truncate(1),
        5 | 6 => {
            let Some(claim) = moment.claims.pop() else { return };
            let (claim, rest) = claim.split(1 + random.below(100) as u32);
            moment.claims.extend(rest);
            let (start, len) = (claim.start().0, u64::from(claim.len()));
            claim.commit(handle).unwrap();
            assert_eq!(model.runs.insert(start, len), None);
        }
        7 => {
            let Some((start, len)) = model.any_run(random) else { return };
            let part = 1 + random.below(len);
            space.free(handle, Block(start), part).unwrap();
            assert!(space.free(handle, Block(start), part).is_err(), "freed twice");
            model.runs.remove(&start);
            if part < len {
                model.runs.insert(start + part, len - part);
            }
            moment.freed.extend(start..start + part);
        }
        8 | 9 => {
            let directory = random.below(3) == 0;
            let parent = model.any_inode(random).map_or(Ino::ROOT, |(ino, _)| Ino(ino));
            let made = space.new_inode(handle, parent, random.below(4) == 0, directory);
            let ino = made.unwrap().0;
            assert!(ino >= open.volume.superblock().first_ino);
            assert_eq!(model.inodes.insert(ino, directory), None);
        }
        10 => {
            let Some((ino, directory)) = model.any_inode(random) else { return };
            space.free_inode(handle, Ino(ino), directory).unwrap();
            assert!(space.free_inode(handle, Ino(ino), directory).is_err(), "freed twice");
            model.inodes.remove(&ino);
        }
        _ => {
            let at = random.below(space.groups.len() as u64) as usize;
            space.groups[at].state.lock().unload();
        }
    }
}

/// Operations in transactions, and what they come to.
fn run(open: &Open, model: &mut Model, random: &mut Random, rounds: u32) {
    let before = open.space.statfs();
    let (blocks, inodes) = (model.blocks().len() as u64, model.inodes.len() as u64);
    let mut moment = Moment::default();
    for _ in 0..rounds {
        open.with(|handle| {
            for _ in 0..4 {
                step(open, handle, model, &mut moment, random);
            }
        });
        if random.below(4) == 0 {
            open.commit();
            moment.freed.clear();
        }
    }
    // Those that were reserved are so again once their claims are dropped.
    for claim in moment.claims.drain(..) {
        open.with(|handle| {
            model.runs.insert(claim.start().0, claim.len().into());
            claim.commit(handle).unwrap();
        });
    }
    open.commit();
    let now = open.space.statfs();
    assert_eq!(now.free_inodes + model.inodes.len() as u64, before.free_inodes + inodes);
    let lost = before.free + blocks - now.free - model.blocks().len() as u64;
    // What reserved claims that were dropped had been promised.
    open.space.release(lost);
}

fn assert_same(source: &MemSource, model: &Model) {
    let verdict = e2fsck(source);
    assert_eq!(verdict.blocks, model.blocks(), "{}", verdict.text);
    assert_eq!(verdict.inodes, model.inodes.keys().copied().collect(), "{}", verdict.text);
}

#[test]
fn bitmaps_and_counts_are_those_of_the_model() {
    for (seed, (name, size, args)) in KINDS.iter().enumerate() {
        println!("{name}, seed {seed}");
        let source = image(*size, args);
        let (mut model, mut random) = (Model::default(), Random(seed as u64));
        for _ in 0..2 {
            let open = Open::new(&source);
            run(&open, &mut model, &mut random, 150);
            open.stop();
            assert_same(&source, &model);
        }
        let open = Open::new(&source);
        for (start, len) in model.runs {
            open.with(|handle| open.space.free(handle, Block(start), len).unwrap());
        }
        for (ino, directory) in model.inodes {
            open.with(|handle| open.space.free_inode(handle, Ino(ino), directory).unwrap());
        }
        open.commit();
        assert_eq!(open.space.statfs(), open.volume_as_made());
        open.stop();
        assert_clean(&source);
    }
}

impl Open {
    /// The counts of a volume of which nothing is used, from its groups now.
    fn volume_as_made(&self) -> StatFs {
        let fixed = self.volume.statfs();
        let free = self.space.groups.iter().map(|group| {
            let state = group.state.lock();
            assert_eq!(state.counts.free_blocks, group.free.load(Ordering::Relaxed));
            u64::from(state.counts.free_blocks)
        });
        let free: u64 = free.sum();
        let available = free.saturating_sub(self.volume.kept_from_users());
        let inodes =
            self.space.groups.iter().map(|group| group.free_inodes.load(Ordering::Relaxed));
        let free_inodes = inodes.map(u64::from).sum();
        StatFs { free, available, free_inodes, ..fixed }
    }
}

#[test]
fn a_crash_leaves_what_was_committed() {
    for (seed, (name, size, args)) in KINDS.iter().enumerate() {
        if name.starts_with("ext2") {
            continue;
        }
        println!("{name}, seed {seed}");
        let source = image(*size, args);
        let (mut model, mut random) = (Model::default(), Random(seed as u64 + 100));
        let open = Open::new(&source);
        run(&open, &mut model, &mut random, 60);
        let committed = model.clone();
        let mut moment = Moment::default();
        for _ in 0..20 {
            open.with(|handle| step(&open, handle, &mut model, &mut moment, &mut random));
        }
        drop(moment);
        drop(open);
        let storage: Arc<dyn BlockSource> = source.clone();
        recover(&storage).unwrap().expect("the journal needs recovery");
        assert_same(&source, &committed);
    }
}
