//! As many OSlets as there may be, in the smallest region that serves them.

#![forbid(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use oslet::region::Backing;
use tests::cluster::Cluster;
use tests::fsdiff::Image;
use tests::fsdiff::populate::pattern;
use tests::kernel;

const OSLETS: usize = oslet::limits::MAX_OSLETS;
const FILE: usize = 300_000;

/// What the region needs, and as much again for the processes.
fn too_little_memory(region: u64) -> Result<bool> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.is_none_or(|kib| kib << 10 < 2 * region))
}

#[test]
fn sixty_four_oslets_read_one_volume() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let region = oslet::runtime::least_segment(OSLETS, &Backing::Memfd) * OSLETS as u64;
    if too_little_memory(region)? {
        println!("skipped: {} bytes of memory are not free", 2 * region);
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let tree = cluster.path("tree");
    fs::create_dir(&tree)?;
    fs::write(tree.join("file"), pattern(1, FILE))?;
    Image::make(&cluster.path("disk.img"), 16, "-t ext4", Some(&tree))?;
    cluster.configure(OSLETS, "disk.img")?;
    let text = fs::read_to_string(cluster.path("oslet.toml"))?;
    // Half of it is refused, with the size that would do.
    let with = |bytes: u64| text.replace("\"192M\"", &format!("\"{}M\"", bytes >> 20));
    fs::write(cluster.path("oslet.toml"), with(region / 2))?;
    let refused = cluster.output(&["up", "-d"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let advice = format!("is too small for 64 OSlets; use {}.0 MiB or more", region >> 20);
    ensure!(refused.status.code() == Some(2) && said.contains(&advice), "{said}");

    fs::write(cluster.path("oslet.toml"), with(region))?;
    let start = Instant::now();
    cluster.ok(&["up", "-d"])?;
    let up = start.elapsed();
    let connections = cluster.connections(OSLETS)?;
    ensure!(connections.len() == OSLETS, "{} mounts", connections.len());
    let start = Instant::now();
    let read = |oslet: usize| -> Result<()> {
        let found = fs::read(cluster.inside(oslet, "/global/file")?)?;
        ensure!(found == pattern(1, FILE), "o{oslet}: wrong bytes");
        // A request to the owner, whatever is cached.
        cluster.ok(&["run", &format!("o{oslet}"), "--", "stat", "-f", "/global"]).map(drop)
    };
    (0..OSLETS).try_for_each(read)?;
    let all = start.elapsed();

    // The owner goes and comes back: everybody opens a channel to its next incarnation.
    let start = Instant::now();
    cluster.ok(&["kill", "o0"])?;
    // It takes part before its inside is ready.
    while cluster.state(0)?.is_none_or(|state| state.epoch != 2) {
        ensure!(start.elapsed() < Duration::from_secs(60), "o0 is not back");
        std::thread::sleep(Duration::from_millis(20));
    }
    let back = start.elapsed();
    (0..OSLETS).try_for_each(read)?;
    let connections = [connections, cluster.connections(OSLETS)?].concat();
    for oslet in 0..OSLETS {
        let log = fs::read_to_string(cluster.directory().join(format!("o{oslet}/log")))?;
        ensure!(!log.contains("bytes left"), "o{oslet}: {log}");
    }
    let start = Instant::now();
    cluster.ok(&["down"])?;
    let down = start.elapsed();
    cluster.assert_gone(&connections)?;
    println!(
        "ran: 64 OSlets: up {up:?}, all have read {all:?}, owner back {back:?}, down {down:?}"
    );
    Ok(())
}
