//! Every kind of volume that the kernel and the engine are compared over, served by a cluster: what
//! all OSlets see at /global at once, and what native clients read at the same time, is what the
//! kernel sees. `OSLET_FULL` takes the whole matrix, else it is a sample.

#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, finish, said};
use tests::fsdiff::matrix::{self, Case, Sources};
use tests::fsdiff::{HostView, Listing, Scratch, View, VolumeInfo};
use tests::kernel;

const OSLETS: usize = 3;

/// Of each way to find a file's data, a directory's names and an inode's attributes one.
const SAMPLE: [&str; 6] = [
    "ext2, 1 KiB blocks, inodes of 128",
    "ext3, 4 KiB blocks",
    "1 KiB blocks",
    "bigalloc",
    "inline_data in 1024",
    "ea_inode",
];

#[test]
fn every_kind_of_volume_from_every_oslet_at_once() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let all = matrix::all();
    let full = std::env::var_os("OSLET_FULL").is_some();
    let taken: Vec<&Case> = all.iter().filter(|case| full || SAMPLE.contains(&case.name)).collect();
    ensure!(full || taken.len() == SAMPLE.len(), "the sample is not of the matrix");
    let mut sources = Sources::new()?;
    let (mut failed, mut objects) = (Vec::new(), 0);
    for case in &taken {
        match one(case, &mut sources) {
            Ok(count) => objects += count,
            Err(error) => failed.push(format!("{}: {error:#}", case.name)),
        }
    }
    ensure!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    let names: Vec<_> = taken.iter().map(|case| case.name).collect();
    println!(
        "ran: {} of {} kinds of volumes from {OSLETS} OSlets at once, by mount and natively, \
         {objects} objects in all: {}",
        taken.len(),
        all.len(),
        names.join("; ")
    );
    Ok(())
}

fn one(case: &Case, sources: &mut Sources) -> Result<usize> {
    let scratch = Scratch::new()?;
    let image = sources.volume(case, &scratch).context("making the volume")?;
    let cluster = Cluster::new()?;
    let path = cluster.path("disk.img");
    fs::rename(&image.path, &path)?;
    let mount = kernel::LoopMount::new(&path, &cluster.path("kernel"), "ro,noload")?;
    let host = HostView::new(mount.dir());
    let expected = Listing::of(&host).context("the kernel's view")?;
    // The kernel asks no FUSE filesystem for its number.
    let volume = VolumeInfo { id: 0, ..host.volume()? };
    mount.unmount()?;
    cluster.configure(OSLETS, "disk.img")?;
    cluster.ok(&["up", "-d", "--read-only"])?;
    let connections = cluster.connections(OSLETS)?;
    let text = expected.text();
    std::thread::scope(|scope| {
        let mut walks = Vec::new();
        for oslet in 0..OSLETS {
            let (cluster, expected, text, volume) = (&cluster, &expected, &text, &volume);
            walks.push(scope.spawn(move || {
                let host = HostView::new(&cluster.inside(oslet, "/global")?);
                let found = Listing::of(&host).with_context(|| format!("o{oslet}"))?;
                let difference = expected.difference(&found);
                ensure!(difference.is_none(), "o{oslet}: {}", difference.unwrap_or_default());
                let found = host.volume()?;
                ensure!(found == *volume, "o{oslet}: statfs: {volume:?}, ours {found:?}");
                Ok(())
            }));
            walks.push(scope.spawn(move || native(cluster, oslet, text)));
        }
        walks.into_iter().try_for_each(|walk| walk.join().expect("no panic"))
    })?;
    cluster.ok(&["down"])?;
    cluster.assert_gone(&connections)?;
    kernel::assert_clean(&path)?;
    Ok(expected.entries.len())
}

/// From inside the OSlet.
fn native(cluster: &Cluster, oslet: usize, expected: &str) -> Result<()> {
    let name = format!("o{oslet}");
    let (run, load) = (cluster.directory(), env!("CARGO_BIN_EXE_oslet-load"));
    let run = run.to_str().context("directory")?;
    let mut list = cluster.command(&["run", &name, "--", load, "list", run, &name, "0"]);
    let output = finish(&mut list)?;
    ensure!(output.status.success(), "{name}, natively: {}", said(&output));
    let found = String::from_utf8(output.stdout)?;
    for (ours, theirs) in found.lines().zip(expected.lines()) {
        let short = |line: &str| line.chars().take(2000).collect::<String>();
        ensure!(ours == theirs, "natively:\n{}\nnot\n{}", short(ours), short(theirs));
    }
    let (ours, theirs) = (found.lines().count(), expected.lines().count());
    ensure!(ours == theirs, "natively: {ours} objects, not {theirs}");
    Ok(())
}
