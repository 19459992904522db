//! Random transactions, and what the volume must hold after them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use cfs::engine::store::layer::{FaultSource, RecordSource};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::engine::{Options, Volume};
use cfs::id::Block;
use cfs::journal::format::{MAGIC, Tid};
use cfs::journal::{Journal, JournalOptions};
use proxydev::layer::{Log, Rules};
use tests::kernel::mke2fs;

/// Records what succeeds.
pub(crate) type Storage = RecordSource<FaultSource<MemSource>>;

/// How an image is made.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) megabytes: u64,
    pub(crate) mke2fs: &'static [&'static str],
}

pub(crate) const CASES: &[Case] = &[
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
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What the run's random numbers begin with: the variable `SEED`, if it is set.
pub(crate) fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x51ed)
}

pub(crate) fn full() -> bool {
    std::env::var_os("OSLET_FULL").is_some()
}

/// What a block holds.
#[derive(Clone, PartialEq)]
pub(crate) enum Contents {
    /// Metadata of a transaction.
    Journaled(Arc<[u8]>),
    /// Data written in place, durable from this event on.
    InPlace(Arc<[u8]>, usize),
}

pub(crate) type Model = BTreeMap<u64, Contents>;

/// What a volume must hold when its power is lost.
pub(crate) struct History {
    pub(crate) base: Vec<u8>,
    pub(crate) storage: Arc<Storage>,
    pub(crate) log: Arc<Log>,
    pub(crate) block_size: usize,
    /// The volume after each transaction.
    pub(crate) boundaries: Vec<(Tid, Model)>,
    /// From which event on which transaction was durable.
    promises: Vec<(usize, Tid)>,
}

impl History {
    /// Where the volume stands in its history; an error if nowhere, or too far back.
    pub(crate) fn boundary(&self, image: &dyn BlockSource, events: usize) -> Result<Tid> {
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

/// The bytes of an image that mke2fs makes.
pub(crate) fn image(case: &Case) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    mke2fs(file.path(), case.megabytes, case.mke2fs)?;
    Ok(std::fs::read(file.path())?)
}

/// A volume, and its journal with that commit interval.
pub(crate) fn open(
    storage: Arc<dyn BlockSource>,
    commit_interval: Duration,
) -> Result<(Arc<Volume>, Arc<Journal>)> {
    let volume = Arc::new(Volume::open(storage, &Options::default())?);
    let options = JournalOptions { commit_interval, ..JournalOptions::default() };
    let journal = Journal::open(&volume, &options)?;
    Ok((volume, journal))
}

/// A journal under a load of random transactions.
pub(crate) struct Load {
    volume: Arc<Volume>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) history: History,
    model: Model,
    /// Freed since the last commit: not to be used before the next one.
    freed: Vec<u64>,
    /// Free blocks of the volume, of any contents.
    blocks: std::ops::Range<u64>,
    random: Random,
}

impl Load {
    pub(crate) fn new(base: Vec<u8>, seed: u64, rules: &Arc<Rules>) -> Result<Self> {
        let log = Log::new();
        let faults = FaultSource::new(MemSource::new(base.clone()), rules);
        let storage = Arc::new(RecordSource::new(faults, &log));
        let (volume, journal) = open(storage.clone(), Duration::from_secs(3600))?;
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
                // Looks like a block of the log, of a transaction that may be the one expected
                // where this copy lies when the log comes round again.
                let tid = handle.tid().0 + random.below(120) as u32;
                bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
                bytes[4..8].copy_from_slice(&(u32::from(byte) % 6).to_be_bytes());
                bytes[8..12].copy_from_slice(&tid.to_be_bytes());
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

    /// So many commits and a clean stop.
    pub(crate) fn run(mut self, commits: u64) -> Result<History> {
        self.go(commits)?;
        drop(self.volume);
        Ok(self.history)
    }

    pub(crate) fn go(&mut self, commits: u64) -> Result<()> {
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
        Ok(())
    }
}
