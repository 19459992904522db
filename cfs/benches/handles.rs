//! What a handle costs without a device: `cargo bench -p cfs --bench handles`.
#![forbid(unsafe_code)]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs::engine::store::MemSource;
use cfs::engine::{Options, Volume};
use cfs::id::Block;
use cfs::journal::{Journal, JournalOptions};

const BLOCK_SIZE: usize = 4096;
const ROUNDS: u32 = 200_000;
const REPEATS: usize = 5;

fn main() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(64 << 20).expect("its length");
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=16"])
        .arg(file.path())
        .status();
    assert!(made.expect("this needs mke2fs (package e2fsprogs)").success());
    let image = std::fs::read(file.path()).expect("the image");
    let volume = Volume::open(Arc::new(MemSource::new(image)), &Options::default());
    let volume = Arc::new(volume.expect("a volume"));
    let options =
        JournalOptions { commit_interval: Duration::from_secs(3600), ..Default::default() };
    let journal = Journal::open(&volume, &options).expect("a journal");
    let first = volume.superblock().blocks_count - 2000;
    println!("begin, 4 puts of 16 bytes, drop:");
    for threads in [1, 2] {
        let median = median(|| handles(&journal, first, threads));
        println!("  {threads} threads: {median:.0} ns each");
    }
    for blocks in [8, 500] {
        let median = median(|| commit(&journal, first, blocks));
        println!("  commit of {blocks} blocks to memory: {:.1} us", median / 1000.0);
    }
    journal.stop().expect("a clean stop");
}

fn median(run: impl Fn() -> f64) -> f64 {
    let mut runs: Vec<f64> = (0..REPEATS).map(|_| run()).collect();
    runs.sort_by(f64::total_cmp);
    runs[REPEATS / 2]
}

/// Nanoseconds of a thread's handle.
fn handles(journal: &Journal, first: u64, threads: u64) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut handle = journal.begin(4).expect("a handle");
                    for place in 0..4 {
                        let block = Block(first + 40 * thread + place);
                        let offset = 16 * (round as usize % (BLOCK_SIZE / 16));
                        handle.put(block, offset, &[round as u8; 16]).expect("a block");
                    }
                }
            });
        }
    });
    start.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
}

/// Nanoseconds of a commit alone.
fn commit(journal: &Journal, first: u64, blocks: u64) -> f64 {
    let rounds = 40;
    let mut spent = Duration::ZERO;
    for round in 0..rounds {
        let mut handle = journal.begin(blocks as u32).expect("a handle");
        for block in first..first + blocks {
            handle.put(Block(block), 0, &[round; 8]).expect("a block");
        }
        let tid = handle.tid();
        drop(handle);
        let start = Instant::now();
        journal.commit(tid).expect("a commit");
        spent += start.elapsed();
    }
    spent.as_nanos() as f64 / f64::from(rounds)
}
