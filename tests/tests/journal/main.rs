//! Power lost at every write and flush of a journal: what is replayed, by us, by the kernel and by
//! e2fsck, is the volume as some transaction left it, and none is missing that was promised.

#![forbid(unsafe_code)]

mod faults;
mod load;
mod threads;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::{BlockSource, MemSource};
use load::{CASES, Case, History, Load, Random, full, image};
use proxydev::layer::Rules;
use tests::kernel::{LoopMount, arg, assert_clean};
use tests::power::{Cuts, Kept};

/// An image with what the power left of the writes that were not flushed.
fn lose_power(cuts: &Cuts, how: u64, random: &mut Random) -> Result<Arc<dyn BlockSource>> {
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
    let history = Load::new(image(case)?, seed, &Rules::new())?.run(commits)?;
    let mut cuts = Cuts::new(history.base.clone(), history.log.events(), history.block_size);
    let end = history.log.now();
    let mut random = Random(seed ^ 0xfeed);
    let (mut images, mut others, mut reached) = (0, 0, history.boundaries[0].0);
    let step = end / if full() { 60 } else { 6 };
    while let Some(events) = cuts.step()? {
        let variants = if cuts.is_settled() { 1 } else { 4 };
        for how in 0..variants {
            let at = || format!("event {events} of {end}, way {how}");
            let image = lose_power(&cuts, how, &mut random).with_context(at)?;
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
    let seed = load::seed();
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
