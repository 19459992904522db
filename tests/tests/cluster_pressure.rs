//! A cache that is a fraction of what is read: all OSlets read everything at once, by mount, by map
//! and by page references that native clients hold for random times. Contents are right, nobody
//! waits for ever, and no error comes of it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise};
use tests::cluster::Cluster;
use tests::fsdiff::Image;
use tests::kernel;
use tests::load::{self, FILE_BYTES, FILES, Kind, Random, Worker};

const OSLETS: usize = 3;
/// Shared memory of the cluster: the owner of the volume has a third of it.
const REGION_MIB: usize = 18;
/// Files beside those that the workers read.
const MORE_FILES: usize = 1200;
/// How long one read may take, however full the cache is.
const READ: Duration = Duration::from_secs(30);
/// Clients of each OSlet that hold references.
const CLIENTS: usize = 2;

#[test]
fn a_cache_much_smaller_than_what_is_read() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let passes = if std::env::var_os("OSLET_FULL").is_some() { 20 } else { 2 };
    let cluster = Cluster::new()?;
    load::make(&cluster.path("tree"), MORE_FILES)?;
    Image::make(&cluster.path("disk.img"), 96, "-t ext4", Some(&cluster.path("tree")))?;
    cluster.configure_with(OSLETS, "disk.img", REGION_MIB)?;
    cluster.ok(&["up", "-d"])?;
    let connections = cluster.connections(OSLETS)?;
    let mut workers = Vec::new();
    for oslet in 0..OSLETS {
        let kinds = std::iter::repeat_n(Kind::Client, CLIENTS).chain([Kind::Map]);
        for (number, kind) in kinds.enumerate() {
            let seed = 1000 * oslet + number;
            let program = env!("CARGO_BIN_EXE_oslet-load");
            workers.push((oslet, Worker::start(&cluster, program, oslet, kind, seed)?));
        }
    }
    let start = Instant::now();
    let longest = std::thread::scope(|scope| {
        let walk = |oslet: usize| {
            let root = cluster.inside(oslet, "/global")?;
            let mut random = Random(1 + oslet as u64);
            let pass = |_| everything(&root, &mut random).with_context(|| format!("o{oslet}"));
            (0..passes).map(pass).try_fold(Duration::ZERO, |longest, took| Ok(longest.max(took?)))
        };
        let walks: Vec<_> = (0..OSLETS).map(|oslet| scope.spawn(move || walk(oslet))).collect();
        let longest = walks.into_iter().map(|walk| walk.join().expect("no panic"));
        longest.collect::<Result<Vec<_>>>()
    })?;
    let took = start.elapsed();
    for (oslet, worker) in &mut workers {
        // One that has read wrong bytes, or got an error, has ended.
        let ended = worker.ended()?;
        ensure!(ended.is_none(), "{:?} of o{oslet}: {ended:?} {}", worker.kind, worker.said());
    }
    let cached = volume_share(&cluster)?;
    let read = (load::CACHED_BYTES + (FILES + MORE_FILES) * FILE_BYTES) >> 20;
    ensure!(cached * 4 < read, "{cached} MiB of cache are no small part of {read} MiB");
    let clients = OSLETS * CLIENTS;
    drop(workers);
    cluster.ok(&["down"])?;
    cluster.assert_gone(&connections)?;
    kernel::assert_clean(&cluster.path("disk.img"))?;
    println!(
        "ran: {passes} passes over {read} MiB from {OSLETS} OSlets at once through {cached} MiB of \
         cache, in {took:.0?}, with {clients} clients that hold pages; the longest read {:.1?}",
        longest.into_iter().max().unwrap_or_default()
    );
    Ok(())
}

/// Reads every file in a random order, none of it from the kernel's cache; the longest read.
fn everything(root: &Path, random: &mut Random) -> Result<Duration> {
    let mut numbers: Vec<usize> = (0..FILES).chain((0..MORE_FILES).map(load::fresh)).collect();
    let mut longest = Duration::ZERO;
    while !numbers.is_empty() {
        let number = numbers.swap_remove(random.below(numbers.len()));
        let name = load::path(number);
        let start = Instant::now();
        let mut file = File::open(root.join(&name)).with_context(|| name.clone())?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let mut found = Vec::new();
        file.read_to_end(&mut found).with_context(|| name.clone())?;
        longest = longest.max(start.elapsed());
        ensure!(found == load::contents(number), "{name}: wrong bytes");
    }
    ensure!(fs::read(root.join(load::CACHED))? == load::cached(), "{}", load::CACHED);
    ensure!(longest < READ, "a read took {longest:?}");
    Ok(longest)
}

/// MiB of memory that the owner of the volume has for pages.
fn volume_share(cluster: &Cluster) -> Result<usize> {
    let rows: serde_json::Value = serde_json::from_str(&cluster.ok(&["ls", "--json"])?)?;
    let total = rows[0]["memory_total"].as_u64().context("oslet ls: memory_total")?;
    Ok(usize::try_from(total >> 20)?)
}
