//! Random operations on volumes of every kind, answered as a model in memory expects.

#![forbid(unsafe_code)]

use anyhow::Result;
use tests::kernel;
use tests::opfuzz::generate::Plan;
use tests::opfuzz::model::Traits;
use tests::opfuzz::run::many;
use tests::opfuzz::volumes::{Volume, Volumes, kernel_ext4};
use tests::ours::ours;

/// Kinds of volumes: arguments of mke2fs, bytes of a block.
const KINDS: [(&str, u64); 3] = [
    ("-t ext4 -b 4096", 4096),
    ("-t ext4 -b 1024", 1024),
    ("-t ext4 -b 2048 -O ^metadata_csum", 2048),
];

/// How many sequences: `OSLET_ROUNDS`, else so many by default and with `OSLET_FULL`.
fn rounds(few: u64, many: u64) -> u64 {
    let asked = std::env::var("OSLET_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let full = std::env::var_os("OSLET_FULL").is_some();
    asked.unwrap_or(if full { many } else { few })
}

/// The first seed: `OSLET_SEED` repeats a sequence.
fn seed() -> u64 {
    std::env::var("OSLET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

#[test]
fn kernel_ext4_answers_as_the_model() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("opfuzz-").tempdir_in("/dev/shm")?;
    for (arguments, block) in KINDS {
        let volume = Volume::new("ext4", dir.path(), arguments, kernel_ext4())?;
        let mut field = Volumes { traits: Traits::ext4(block), volumes: vec![volume] };
        let (first, rounds) = (seed(), rounds(30, 3500));
        let plan = Plan::new(block);
        let ops = many(&mut field, first..first + rounds, 80, &plan)?;
        for volume in &mut field.volumes {
            volume.check()?;
        }
        println!("{arguments}: seeds {first} to {}", first + rounds - 1);
        println!("ran: {rounds} sequences, {ops} operations on kernel ext4 and a model");
    }
    Ok(())
}

#[test]
fn ours_answers_as_the_model_and_kernel_ext4() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("opfuzz-").tempdir_in("/dev/shm")?;
    for (arguments, block) in KINDS {
        let theirs = Volume::new("ext4", dir.path(), arguments, kernel_ext4())?;
        let ours = Volume::new("ours", dir.path(), arguments, ours())?;
        let mut field = Volumes { traits: Traits::ext4(block), volumes: vec![theirs, ours] };
        let (first, rounds) = (seed(), rounds(30, 3500));
        let plan = Plan { unpassed: false, ..Plan::new(block) };
        let ops = many(&mut field, first..first + rounds, 80, &plan)?;
        for volume in &mut field.volumes {
            volume.check()?;
        }
        println!("{arguments}: seeds {first} to {}", first + rounds - 1);
        println!("ran: {rounds} sequences, {ops} operations on ours, kernel ext4 and a model");
    }
    Ok(())
}
