//! Power lost at every write and flush of a journal: what is replayed, by us, by the kernel and by
//! e2fsck, is the volume as some transaction left it, and none is missing that was promised.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cfs::engine::store::layer::RecordSource;
use cfs::engine::store::{BlockSource, MemSource};
use cfs::engine::{Options, Volume};
use cfs::id::Block;
use cfs::journal::format::{MAGIC, Tid};
use cfs::journal::{Journal, JournalOptions};
use proxydev::layer::Log;
use tests::kernel::{LoopMount, arg, assert_clean, mke2fs};
use tests::power::{Cuts, Kept};

/// How an image is made.
struct Case {
    name: &'static str,
    megabytes: u64,
    mke2fs: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "ext4, 1 KiB",
        megabytes: 8,
        mke2fs: &["-t", "ext4", "-b", "1024", "-J", "size=1"],
    },
    Case {
        name: "ext4, 2 KiB",
        megabytes: 12,
        mke2fs: &["-t", "ext4", "-b", "2048", "-J", "size=2"],
    },
    Case {
        name: "ext4, 4 KiB",
        megabytes: 16,
        mke2fs: &["-t", "ext4", "-b", "4096", "-J", "size=4"],
    },
    Case {
        name: "ext4, 32 bit",
        megabytes: 8,
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "^64bit", "-J", "size=1"],
    },
    Case {
        name: "ext4 without checksums",
        megabytes: 8,
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"],
    },
    Case {
        name: "ext4, fast commits, 4 KiB",
        megabytes: 24,
        mke2fs: &["-t", "ext4", "-b", "4096", "-O", "fast_commit", "-J", "size=8"],
    },
    Case { name: "ext3", megabytes: 8, mke2fs: &["-t", "ext3", "-b", "1024", "-J", "size=1"] },
];

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn full() -> bool {
    std::env::var_os("OSLET_FULL").is_some()
}

/// What a block holds.
#[derive(Clone, PartialEq)]
enum Contents {
    /// Metadata of a transaction.
    Journaled(Arc<[u8]>),
    /// Data written in place, durable from this event on.
    InPlace(Arc<[u8]>, usize),
}

type Model = BTreeMap<u64, Contents>;

/// What a volume must hold when its power is lost.
struct History {
    base: Vec<u8>,
    storage: Arc<RecordSource<MemSource>>,
    log: Arc<Log>,
    block_size: usize,
    /// The volume after each transaction.
    boundaries: Vec<(Tid, Model)>,
    /// From which event on which transaction was durable.
    promises: Vec<(usize, Tid)>,
}

impl History {
    /// Where the volume stands in its history; an error if nowhere, or too far back.
    fn boundary(&self, image: &dyn BlockSource, events: usize) -> Result<Tid> {
        let promised = self.promises.iter().rfind(|(at, _)| *at <= events);
        let promised = promised.map_or(self.boundaries[0].0, |(_, tid)| *tid);
        let mut buffer = vec![0; self.block_size];
        let mut first = None;
        for (tid, model) in self.boundaries.iter().filter(|(tid, _)| tid.at_least(promised)) {
            match self.difference(image, model, events, &mut buffer)? {
                None => return Ok(*tid),
                Some(block) => first = first.or(Some((*tid, block))),
            }
        }
        bail!("no transaction from {promised} on left this; first differences {first:?}")
    }

    /// The first block that is not as the model says.
    fn difference(
        &self,
        image: &dyn BlockSource,
        model: &Model,
        events: usize,
        buffer: &mut [u8],
    ) -> Result<Option<u64>> {
        for (block, contents) in model {
            let bytes = match contents {
                Contents::Journaled(bytes) => bytes,
                Contents::InPlace(bytes, since) if *since <= events => bytes,
                Contents::InPlace(..) => continue,
            };
            image.read_at(block * self.block_size as u64, buffer)?;
            if buffer != &bytes[..] {
                return Ok(Some(*block));
            }
        }
        Ok(None)
    }
}

/// A journal under a load of random transactions.
struct Load {
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    history: History,
    model: Model,
    /// Freed since the last commit: not to be used before the next one.
    freed: Vec<u64>,
    /// Free blocks of the volume, of any contents.
    blocks: std::ops::Range<u64>,
    random: Random,
}

impl Load {
    fn new(case: &Case, image: &Path, seed: u64) -> Result<Self> {
        mke2fs(image, case.megabytes, case.mke2fs)?;
        let (base, log) = (std::fs::read(image)?, Log::new());
        let storage = Arc::new(RecordSource::new(MemSource::new(base.clone()), &log));
        let volume = Volume::open(storage.clone(), &Options::default())?;
        let volume = Arc::new(volume);
        let options = JournalOptions {
            commit_interval: Duration::from_secs(3600),
            ..JournalOptions::default()
        };
        let journal = Journal::open(&volume, &options)?;
        let superblock = volume.superblock();
        let end = superblock.blocks_count;
        let history = History {
            base,
            storage,
            log,
            block_size: superblock.block_size as usize,
            boundaries: vec![(journal.committed(), Model::new())],
            promises: Vec::new(),
        };
        Ok(Self {
            blocks: end - 400..end,
            volume,
            journal,
            history,
            model: Model::new(),
            freed: Vec::new(),
            random: Random(seed),
        })
    }

    /// One handle with some changes.
    fn change(&mut self, changes: u32) -> Result<()> {
        let mut handle = self.journal.begin(2 * changes)?;
        let random = &mut self.random;
        for _ in 0..changes {
            let block = self.blocks.start + random.below(self.blocks.end - self.blocks.start);
            let byte = random.below(256) as u8;
            let journaled = matches!(self.model.get(&block), Some(Contents::Journaled(_)));
            match (journaled, random.below(5)) {
                (true, 0) => {
                    handle.forget(Block(block));
                    self.model.remove(&block);
                    self.freed.push(block);
                    if random.below(3) > 0 {
                        continue;
                    }
                    // Freed and used as metadata again within the transaction.
                }
                (true, _) => {
                    let len = 1 + random.below(40) as usize;
                    let offset = random.below((self.history.block_size - len) as u64) as usize;
                    handle.put(Block(block), offset, &vec![byte; len])?;
                    if let Some(Contents::Journaled(bytes)) = self.model.get_mut(&block) {
                        Arc::make_mut(bytes)[offset..offset + len].fill(byte);
                    }
                    continue;
                }
                (false, _) => {}
            }
            let mut bytes = vec![byte; self.history.block_size];
            if byte < 80 {
                // Looks like a block of the log.
                bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
                bytes[4..8].copy_from_slice(&(u32::from(byte) % 6).to_be_bytes());
                bytes[8..12].copy_from_slice(&handle.tid().0.to_be_bytes());
            }
            handle.create(Block(block), bytes.clone().into())?;
            self.model.insert(block, Contents::Journaled(bytes.into()));
            self.freed.retain(|freed| *freed != block);
        }
        let (tid, model) = (handle.tid(), self.model.clone());
        drop(handle);
        match self.history.boundaries.last_mut() {
            Some((last, state)) if *last == tid => *state = model,
            _ => self.history.boundaries.push((tid, model)),
        }
        Ok(())
    }

    /// All so far becomes durable; what was freed may hold data then.
    fn commit(&mut self) -> Result<()> {
        self.journal.flush_all()?;
        let (storage, log) = (&self.history.storage, &self.history.log);
        self.history.promises.push((self.history.log.now(), self.journal.committed()));
        let mut written = Vec::new();
        for block in self.freed.drain(..) {
            if self.random.below(2) == 0 {
                let bytes = vec![self.random.below(256) as u8; self.history.block_size];
                storage.write_at(block * self.history.block_size as u64, &bytes)?;
                written.push((block, bytes));
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        storage.flush()?;
        let since = log.now();
        for (block, bytes) in written {
            self.model.insert(block, Contents::InPlace(bytes.into(), since));
        }
        if let Some((_, state)) = self.history.boundaries.last_mut() {
            *state = self.model.clone();
        }
        Ok(())
    }

    fn run(mut self, commits: u64) -> Result<History> {
        for round in 0..commits {
            for _ in 0..=self.random.below(3) {
                let changes = 1 + self.random.below(8) as u32;
                self.change(changes)?;
            }
            if round % 16 == 15 {
                self.change(100)?;
            }
            self.commit()?;
        }
        self.journal.stop()?;
        let end = self.history.log.now();
        self.history.promises.push((end, self.journal.committed()));
        drop(self.volume);
        Ok(self.history)
    }
}

/// An image with what the power left of the writes that were not flushed.
fn image(cuts: &Cuts, how: u64, random: &mut Random) -> Result<Arc<dyn BlockSource>> {
    Ok(cuts.image(|| match (how, random.below(3)) {
        (0, _) => Kept::Lost,
        (1, _) => Kept::Whole,
        (_, 0) => Kept::Lost,
        (_, 1) => Kept::Whole,
        (_, _) => Kept::Torn(random.next()),
    })?)
}

fn bytes(image: &dyn BlockSource) -> Result<Vec<u8>> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn compare_with_others(dir: &Path, history: &History, cut: &[u8], events: usize) -> Result<()> {
    let (kernels, fscks) = (dir.join("kernel.img"), dir.join("e2fsck.img"));
    std::fs::write(&fscks, cut)?;
    let output = std::process::Command::new("e2fsck").args(["-f", "-y", arg(&fscks)]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code().is_some_and(|code| code <= 1), "e2fsck: {text}");
    ensure!(!text.contains("Fix?"), "e2fsck found more than a journal:\n{text}");
    assert_clean(&fscks)?;
    let memory = MemSource::new(std::fs::read(&fscks)?);
    history.boundary(&memory, events).context("replayed by e2fsck")?;
    if tests::kernel::missing().is_none() {
        std::fs::write(&kernels, cut)?;
        LoopMount::new(&kernels, &dir.join("mnt"), "")?.unmount()?;
        assert_clean(&kernels)?;
        let memory = MemSource::new(std::fs::read(&kernels)?);
        history.boundary(&memory, events).context("replayed by the kernel")?;
    }
    Ok(())
}

fn try_case(case: &Case, seed: u64) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let commits = if full() { 600 } else { 60 };
    let history = Load::new(case, &dir.path().join("base.img"), seed)?.run(commits)?;
    let mut cuts = Cuts::new(history.base.clone(), history.log.events());
    let end = history.log.now();
    let mut random = Random(seed ^ 0xfeed);
    let (mut images, mut others, mut reached) = (0, 0, history.boundaries[0].0);
    let step = end / if full() { 60 } else { 6 };
    while let Some(events) = cuts.step()? {
        let variants = if cuts.is_settled() { 1 } else { 4 };
        for how in 0..variants {
            let at = || format!("event {events} of {end}, way {how}");
            let image = image(&cuts, how, &mut random).with_context(at)?;
            let compare = how == 2 && others < images / step || events == end;
            let before = if compare { Some(bytes(&*image)?) } else { None };
            cfs::journal::recover(&image).with_context(at)?;
            reached = history.boundary(&*image, events).with_context(at)?;
            images += 1;
            if let Some(before) = before {
                others += 1;
                let ours = dir.path().join("ours.img");
                std::fs::write(&ours, bytes(&*image)?)?;
                assert_clean(&ours).with_context(at)?;
                compare_with_others(dir.path(), &history, &before, events).with_context(at)?;
            }
        }
    }
    let last = history.boundaries.last().map(|(tid, _)| *tid);
    ensure!(Some(reached) == last, "the end is {reached}, not {last:?}");
    let transactions = history.boundaries.len() - 1;
    Ok(format!("{transactions} transactions, {images} images, {others} by others too"))
}

#[test]
fn every_cut_is_a_transaction_boundary() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x51ed_u64);
    let mut failed = 0;
    for case in CASES {
        match try_case(case, seed) {
            Ok(counts) => println!("{}: {counts}", case.name),
            Err(error) => {
                println!("{} (SEED={seed}): {error:#}", case.name);
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 0, "{failed} of {} kinds of journal", CASES.len());
}
