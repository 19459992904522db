//! Many threads with handles: each operation is there as a whole or not at all after a loss of
//! power, and none is missing whose commit was waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::layer::RecordSource;
use cfs::engine::store::{BlockSource, MemSource};
use cfs::id::Block;
use cfs::journal::Journal;
use proxydev::layer::Log;

use crate::load::{CASES, Random, full, image, open, seed};
use crate::lose_power;
use tests::power::Cuts;

const THREADS: u64 = 6;

/// What one thread does: block `shared` holds a word for each thread, and each has a block of its
/// own that holds the same word many times.
struct Worker<'a> {
    journal: &'a Journal,
    log: &'a Log,
    number: u64,
    shared: u64,
    block_size: usize,
}

impl Worker<'_> {
    fn own(&self) -> Block {
        Block(self.shared + 1 + self.number)
    }

    /// Returns the events after which a count was durable.
    fn run(&self, rounds: u64) -> Result<Vec<(usize, u64)>> {
        let mut random = Random(seed() ^ (self.number + 1) << 20);
        let mut promises = Vec::new();
        for count in 1..=rounds {
            let mut handle = self.journal.begin(4)?;
            let word = count.to_le_bytes();
            handle.put(Block(self.shared), 8 * self.number as usize, &word)?;
            if random.below(8) == 0 {
                std::thread::yield_now();
            }
            let at = random.below(self.block_size as u64 / 8 - 1) as usize;
            handle.put(self.own(), 8 * at + 8, &word)?;
            handle.put(self.own(), 0, &word)?;
            if random.below(10) == 0 && handle.extend(3)? {
                handle.put(self.own(), 8 * at + 8, &word)?;
            }
            let tid = handle.tid();
            let sync = random.below(20) == 0;
            if sync {
                handle.sync();
            }
            drop(handle);
            if random.below(20) == 0 {
                self.journal.commit(tid)?;
                promises.push((self.log.now(), count));
            } else if sync {
                promises.push((self.log.now(), count));
            }
        }
        Ok(promises)
    }

    /// The count that the volume has, which all places must agree about.
    fn count(&self, volume: &dyn BlockSource) -> Result<u64> {
        let mut shared = [0; 8];
        let place = self.shared * self.block_size as u64 + 8 * self.number;
        volume.read_at(place, &mut shared)?;
        let shared = u64::from_le_bytes(shared);
        let mut bytes = vec![0; self.block_size];
        volume.read_at(self.own().0 * self.block_size as u64, &mut bytes)?;
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map_or(u64::MAX, u64::from_le_bytes))
            .collect();
        let newest = words[1..].iter().max().copied();
        ensure!(words[0] == shared, "thread {}: {shared} and {}", self.number, words[0]);
        ensure!(newest <= Some(shared), "thread {}: {shared} and {newest:?}", self.number);
        Ok(shared)
    }
}

#[test]
fn operations_of_many_threads_are_whole() -> Result<()> {
    for case in &CASES[..2] {
        let (base, log) = (image(case)?, Log::new());
        let storage = Arc::new(RecordSource::new(MemSource::new(base.clone()), &log));
        let (volume, journal) = open(storage, Duration::from_millis(3))?;
        let block_size = volume.superblock().block_size as usize;
        let shared = volume.superblock().blocks_count - 100;
        let workers: Vec<_> = (0..THREADS)
            .map(|number| Worker { journal: &journal, log: &log, number, shared, block_size })
            .collect();
        let mut first = journal.begin(THREADS as u32 + 1)?;
        for block in shared..=shared + THREADS {
            first.create(Block(block), vec![0; block_size].into())?;
        }
        let tid = first.tid();
        drop(first);
        journal.commit(tid)?;
        let start = log.now();
        let rounds = if full() { 20_000 } else { 1500 };
        let promises: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                workers.iter().map(|worker| scope.spawn(|| worker.run(rounds))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread panicked")).collect()
        });
        let promises = promises.into_iter().collect::<Result<Vec<_>>>()?;
        journal.stop()?;
        let events = log.events();
        let mut cuts = Cuts::new(base, events, block_size);
        let (mut random, mut images) = (Random(seed()), 0);
        while let Some(at) = cuts.step()? {
            if at < start || random.below(3) > 0 && at + 50 < log.now() {
                continue;
            }
            let image = lose_power(&cuts, random.below(3), &mut random)?;
            cfs::journal::recover(&image)?;
            images += 1;
            for (worker, promises) in workers.iter().zip(&promises) {
                let promised = promises.iter().rfind(|(event, _)| *event <= at);
                let count = worker.count(&*image).with_context(|| format!("event {at}"))?;
                ensure!(count >= promised.map_or(0, |(_, count)| *count), "{promised:?}: {count}");
            }
        }
        let whole = MemSource::new(crate::bytes(&**volume.source())?);
        for worker in &workers {
            ensure!(worker.count(&whole)? == rounds);
        }
        println!("{}: {} events, {images} images", case.name, log.now());
    }
    Ok(())
}

/// Handles that fill transactions as fast as they can, in a log that must be emptied all the time.
#[test]
fn a_full_log_holds_up_handles_and_loses_none() -> Result<()> {
    let storage: Arc<dyn BlockSource> = Arc::new(MemSource::new(image(&CASES[0])?));
    let (volume, journal) = open(storage.clone(), Duration::from_secs(3600))?;
    let end = volume.superblock().blocks_count;
    let (sum, most) = (AtomicU64::new(0), journal.max_credits());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (journal, sum) = (&journal, &sum);
            scope.spawn(move || {
                let blocks = end - 800 + 200 * thread..end - 600 + 200 * thread;
                for round in 1..=200_u64 {
                    let mut handle = journal.begin(most / 2).expect("the journal works");
                    for block in blocks.clone().take(most as usize / 2) {
                        let bytes = vec![round as u8; 1024].into();
                        handle.create(Block(block), bytes).expect("a block's bytes");
                    }
                    if round % 10 == 0 {
                        handle.restart(most / 2).expect("the journal works");
                        handle.put(Block(blocks.start), 0, &[7]).expect("the block is there");
                    }
                    sum.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    journal.stop()?;
    ensure!(sum.load(Ordering::Relaxed) == 800);
    let mut found = [0; 1024];
    for thread in 0..4 {
        let start = (end - 800 + 200 * thread) * 1024;
        storage.read_at(start, &mut found)?;
        ensure!(found[0] == 7 && found[1..] == [200; 1023]);
        storage.read_at(start + 1024, &mut found)?;
        ensure!(found == [200; 1024]);
    }
    Ok(())
}
