//! Random operations on volumes of every kind, answered as a model in memory expects.

#![forbid(unsafe_code)]

use anyhow::Result;
use tests::kernel;
use tests::opfuzz::generate::Plan;
use tests::opfuzz::model::Traits;
use tests::opfuzz::native::NativeVolume;
use tests::opfuzz::run::many;
use tests::opfuzz::volumes::{Contestant, Image, Volume, Volumes, kernel_ext3, kernel_ext4};
use tests::ours::ours;

/// Kinds of volumes: arguments of mke2fs, bytes of a block.
const KINDS: [(&str, u64); 3] = [
    ("-t ext4 -b 4096", 4096),
    ("-t ext4 -b 1024", 1024),
    ("-t ext4 -b 2048 -O ^metadata_csum", 2048),
];

/// Kinds of volumes for the native interface: journals from which transactions soon have to go,
/// checksums of groups alone, maps of pointers, no journal.
const NATIVE: [(&str, Traits); 9] = [
    ("-t ext4 -b 4096", Traits::ext4(4096)),
    ("-t ext4 -b 1024", Traits::ext4(1024)),
    ("-t ext4 -b 2048 -O ^metadata_csum", Traits::ext4(2048)),
    ("-t ext4 -b 4096 -J size=4", Traits::ext4(4096)),
    ("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -J size=1", Traits::ext4(1024)),
    ("-t ext3 -b 4096", Traits::pointers(4096)),
    ("-t ext3 -b 1024 -J size=1", Traits::pointers(1024)),
    ("-t ext2 -b 4096", Traits::pointers(4096)),
    ("-t ext2 -b 1024", Traits::pointers(1024)),
];

/// Volumes with little room: arguments of mke2fs, mebibytes.
const FULL: [(&str, u64, Traits); 3] = [
    ("-t ext4 -b 1024 -J size=1 -N 400", 4, Traits::ext4(1024)),
    ("-t ext4 -b 4096 -J size=4 -N 400", 10, Traits::ext4(4096)),
    ("-t ext2 -b 1024 -N 400", 1, Traits::pointers(1024)),
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
        let mut field =
            Volumes { traits: Traits::ext4(block), volumes: vec![Box::new(volume)], full: false };
        let (first, rounds) = (seed(), rounds(20, 3500));
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
        let mut field = Volumes {
            traits: Traits::ext4(block),
            volumes: vec![Box::new(theirs), Box::new(ours)],
            full: false,
        };
        let (first, rounds) = (seed(), rounds(20, 3500));
        let plan = Plan { unpassed: false, direct: Some(512), ..Plan::new(block) };
        let ops = many(&mut field, first..first + rounds, 80, &plan)?;
        for volume in &mut field.volumes {
            volume.check()?;
        }
        println!("{arguments}: seeds {first} to {}", first + rounds - 1);
        println!("ran: {rounds} sequences, {ops} operations on ours, kernel ext4 and a model");
    }
    Ok(())
}

/// O_DIRECT that is not aligned: FUSE has no block that it would have to be aligned to.
#[test]
fn ours_answers_direct_access_of_any_alignment() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("opfuzz-").tempdir_in("/dev/shm")?;
    let (arguments, block) = KINDS[1];
    let ours = Volume::new("ours", dir.path(), arguments, ours())?;
    let mut field =
        Volumes { traits: Traits::ext4(block), volumes: vec![Box::new(ours)], full: false };
    let (first, rounds) = (seed(), rounds(10, 500));
    let plan = Plan { unpassed: false, direct: Some(1), attributes: false, ..Plan::new(block) };
    let ops = many(&mut field, first..first + rounds, 80, &plan)?;
    for volume in &mut field.volumes {
        volume.check()?;
    }
    println!("ran: {rounds} sequences, {ops} operations with unaligned O_DIRECT");
    Ok(())
}

/// The native interface, with all that the kernel does not pass on to FUSE.
#[test]
fn the_native_interface_answers_as_the_model_and_kernel_ext4() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("opfuzz-").tempdir_in("/dev/shm")?;
    let kernel = kernel::missing();
    if let Some(why) = &kernel {
        println!("without kernel ext4: {why}");
    }
    for (arguments, traits) in NATIVE {
        let mut volumes: Vec<Box<dyn Contestant>> = Vec::new();
        if kernel.is_none() {
            let mounter = if traits.extents { kernel_ext4() } else { kernel_ext3() };
            let theirs = Volume::new("ext4", dir.path(), arguments, mounter)?;
            volumes.push(Box::new(theirs));
        }
        volumes.push(Box::new(NativeVolume::new("native", dir.path(), arguments)?));
        let mut field = Volumes { traits, volumes, full: false };
        let (first, rounds) = (seed(), rounds(4, 1200));
        let plan = Plan::new(traits.block);
        let ops = many(&mut field, first..first + rounds, 80, &plan)?;
        for volume in &mut field.volumes {
            volume.check()?;
        }
        println!("{arguments}: seeds {first} to {}", first + rounds - 1);
        println!("ran: {rounds} sequences, {ops} operations natively, on kernel ext4 and a model");
    }
    Ok(())
}

/// A volume so small that most sequences fill it: what is refused has changed nothing.
#[test]
fn a_full_volume_answers_as_the_model_without_what_it_refuses() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("opfuzz-").tempdir_in("/dev/shm")?;
    for (arguments, megabytes, traits) in FULL {
        let image = Image::new("full", dir.path(), arguments).of(megabytes);
        let volumes: Vec<Box<dyn Contestant>> = vec![Box::new(NativeVolume::on(image)?)];
        let mut field = Volumes { traits, volumes, full: true };
        let (first, rounds) = (seed(), rounds(10, 2000));
        let plan = Plan { farthest: 1 << 33, ..Plan::new(traits.block) };
        let ops = many(&mut field, first..first + rounds, 80, &plan)?;
        for volume in &mut field.volumes {
            volume.check()?;
        }
        println!("ran: {rounds} sequences, {ops} operations on a full volume, {arguments}");
    }
    Ok(())
}
