//! What suites and operations at random say of the mounts of a cluster: the owner's and another's.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::cluster::{InOslet, oslet};
use tests::kernel::{self, assert_clean, mke2fs};
use tests::opfuzz::generate::Plan;
use tests::opfuzz::model::Traits;
use tests::opfuzz::run::many;
use tests::opfuzz::volumes::{Contestant, Mounted, Volume, Volumes, kernel_ext4};
use tests::suites::{FSX, Fsx, PJDFSTEST, Pjdfstest, fsx, pjdfstest};

/// Whether the suites cannot be run here: says so.
fn missing() -> bool {
    let tools = [PJDFSTEST, FSX].into_iter().find_map(|tool| tool.program().err());
    let why = kernel::missing().or_else(|| tools.map(|error| format!("{error:#}")));
    if let Some(why) = &why {
        println!("skipped: {why}");
    }
    why.is_some()
}

fn is_full() -> bool {
    std::env::var_os("OSLET_FULL").is_some()
}

/// Runs a suite in the mount of that OSlet, on a fresh volume.
fn on_fresh(number: usize, suite: impl FnOnce(&InOslet) -> Result<()>) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("suites-").tempdir_in("/dev/shm")?;
    let image = dir.path().join("ext4.img");
    mke2fs(&image, 256, &["-t", "ext4", "-b", "4096"])?;
    let mount = InOslet::new(&image, number)?;
    suite(&mount).with_context(|| format!("o{number}"))?;
    Box::new(mount).unmount()?;
    assert_clean(&image)
}

#[test]
fn pjdfstest_passes_in_the_owner_and_in_another_oslet() -> Result<()> {
    if missing() {
        return Ok(());
    }
    let elsewhere = tempfile::Builder::new().prefix("elsewhere-").tempdir()?;
    for number in [0, 1] {
        on_fresh(number, |mount| {
            let secondary = Some(elsewhere.path());
            let inside = Some((mount.cluster(), number));
            let how = Pjdfstest { secondary, remount: false, inside };
            let cases = pjdfstest(Path::new("/global"), how)?;
            for (name, why) in &cases.skipped {
                println!("in o{number} pjdfstest leaves out {name}: {why}");
            }
            for (name, why) in &cases.failed {
                println!("in o{number} pjdfstest fails {name}: {why}");
            }
            ensure!(cases.failed.is_empty(), "{} failed", cases.failed.len());
            println!("ran: {} cases of pjdfstest in o{number}", cases.passed);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn fsx_passes_in_the_owner_and_in_another_oslet() -> Result<()> {
    if missing() {
        return Ok(());
    }
    let runs = match is_full() {
        true => [(Fsx::Everything, 100_000), (Fsx::Unmapped, 1_000_000)],
        false => [(Fsx::Everything, 2000), (Fsx::Unmapped, 5000)],
    };
    for number in [0, 1] {
        on_fresh(number, |mount| {
            let dir = mount.dir();
            for (what, operations) in runs {
                [1, 2].into_iter().try_for_each(|seed| {
                    fsx(dir, what, seed, operations)?;
                    Ok::<_, anyhow::Error>(std::fs::remove_file(dir.join(format!("fsx-{seed}")))?)
                })?;
                println!("ran: 2 x {operations} operations of fsx in o{number}, {what:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn another_oslets_mount_answers_as_the_model_and_kernel_ext4() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("opfuzz-").tempdir_in("/dev/shm")?;
    let (arguments, block) = ("-t ext4 -b 4096", 4096);
    let theirs = Volume::new("ext4", dir.path(), arguments, kernel_ext4())?;
    let ours = Volume::new("ours", dir.path(), arguments, oslet(1))?;
    let volumes: Vec<Box<dyn Contestant>> = vec![Box::new(theirs), Box::new(ours)];
    let mut field = Volumes { traits: Traits::ext4(block), volumes, full: false };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("OSLET_SEED").unwrap_or(1);
    let rounds = number("OSLET_ROUNDS").unwrap_or(if is_full() { 3500 } else { 20 });
    let plan = Plan { unpassed: false, ..Plan::new(block) };
    let ops = many(&mut field, first..first + rounds, 80, &plan)?;
    for volume in &mut field.volumes {
        volume.check()?;
    }
    println!("{arguments}: seeds {first} to {}", first + rounds - 1);
    println!("ran: {rounds} sequences, {ops} operations in o1, on kernel ext4 and a model");
    Ok(())
}
