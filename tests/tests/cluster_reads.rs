//! What OSlets read at /global is what the kernel reads from the same image.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, processes_of};
use tests::fsdiff::populate::{Plan, populate};
use tests::fsdiff::{HostView, Image, Listing};
use tests::kernel::{self, LoopMount};
use tests::storm::Storm;
use tests::uring::Switch;

const OSLETS: usize = 4;

/// One at a time: a namespace that one test makes keeps copies of the other's mounts.
static ONE: Mutex<()> = Mutex::new(());

/// What makes a tree large and real, of which the first that is there is taken.
const REAL: [&str; 3] = ["/usr/share/perl", "/usr/share/doc", "/usr/include"];

fn fill(dir: &Path) -> Result<()> {
    let made = dir.join("made");
    fs::create_dir(&made)?;
    populate(&made, &Plan::new(4096))?;
    let real = REAL.iter().find(|path| Path::new(path).is_dir()).context("no tree to copy")?;
    kernel::run("cp", &["-a", real, kernel::arg(&dir.join("real"))])?;
    Ok(())
}

/// The image as the kernel shows it.
fn kernel_view(image: &Path, at: &Path) -> Result<Listing> {
    let mount = LoopMount::new(image, at, "ro,noload")?;
    let listing = Listing::of(&HostView::new(mount.dir()));
    mount.unmount()?;
    listing
}

/// An image in that cluster's directory, filled by mke2fs or by the kernel.
fn image(cluster: &Cluster, by_kernel: bool) -> Result<PathBuf> {
    let path = cluster.path("disk.img");
    let tree = cluster.path("tree");
    if by_kernel {
        let image = Image::make(&path, 768, "-t ext4 -b 4096", None)?;
        let mount = LoopMount::new(&image.path, &tree, "")?;
        fill(mount.dir())?;
        mount.unmount()?;
    } else {
        fs::create_dir(&tree)?;
        fill(&tree)?;
        Image::make(&path, 768, "-t ext4 -b 4096", Some(&tree))?;
        fs::remove_dir_all(&tree)?;
    }
    Ok(path)
}

fn up(cluster: &Cluster, uring: bool, more: &[&str]) -> Result<()> {
    let _switch = Switch::set(uring)?;
    let oslets = OSLETS.to_string();
    let how = ["up", "-d", "--oslets", &oslets, "--image", "disk.img"];
    let said = cluster.ok(&[&how[..], more].concat())?;
    let served = if uring { "over io_uring" } else { "over /dev/fuse" };
    ensure!(said.matches(served).count() == OSLETS, "{said}");
    Ok(())
}

/// All OSlets at once.
fn read_everywhere(cluster: &Cluster, expected: &Listing) -> Result<()> {
    std::thread::scope(|scope| {
        let walk = |oslet: usize| {
            let root = cluster.inside(oslet, "/global")?;
            let found = Listing::of(&HostView::new(&root))?;
            let difference = expected.difference(&found);
            ensure!(difference.is_none(), "o{oslet}: {}", difference.unwrap_or_default());
            // What a program inside sees is that.
            let name = format!("o{oslet}");
            let count = cluster.ok(&["run", &name, "--", "find", "/global", "-printf", "x"])?;
            ensure!(count.len() == expected.entries.len(), "{name}: {} objects", count.len());
            Ok(())
        };
        let walks: Vec<_> = (0..OSLETS).map(|oslet| scope.spawn(move || walk(oslet))).collect();
        walks.into_iter().try_for_each(|walk| walk.join().expect("no panic"))
    })
}

fn down(cluster: &Cluster, image: &Path) -> Result<()> {
    let connections = cluster.connections(OSLETS)?;
    ensure!(connections.len() == OSLETS, "{connections:?}");
    cluster.ok(&["down"])?;
    cluster.assert_gone(&connections)?;
    kernel::assert_clean(image)
}

/// Over each transport that there is here.
fn transports() -> &'static [bool] {
    if Switch::usable() {
        return &[false, true];
    }
    println!("skipped: FUSE over io_uring: this kernel has no switch for it");
    &[false]
}

fn every_oslet(by_kernel: bool) -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::new()?;
    let image = image(&cluster, by_kernel)?;
    let expected = kernel_view(&image, &cluster.path("kernel"))?;
    ensure!(expected.entries.len() > 2000, "{} objects only", expected.entries.len());
    for &uring in transports() {
        up(&cluster, uring, &["--read-only"])?;
        // The second time from what is cached.
        read_everywhere(&cluster, &expected)?;
        read_everywhere(&cluster, &expected)?;
        down(&cluster, &image)?;
        println!("ran: {} objects compared from {OSLETS} OSlets, twice", expected.entries.len());
        standalone(&cluster, &image, &expected, uring)?;
    }
    Ok(())
}

/// `oslet mount`, without a cluster.
fn standalone(cluster: &Cluster, image: &Path, expected: &Listing, uring: bool) -> Result<()> {
    let dir = cluster.path("mounted here");
    fs::create_dir_all(&dir)?;
    let (image_text, dir_text) = (kernel::arg(image), kernel::arg(&dir));
    {
        let _switch = Switch::set(uring)?;
        // Reading would change when it was read.
        let options = if uring { "noatime,transport=auto" } else { "noatime,transport=dev" };
        cluster.ok(&["mount", "-o", options, image_text, dir_text])?;
    }
    let found = Listing::of(&HostView::new(&dir));
    kernel::run("umount", &[dir_text])?;
    let difference = expected.difference(&found?);
    ensure!(difference.is_none(), "oslet mount: {}", difference.unwrap_or_default());
    kernel::detach_copies(&dir)?;
    let end = Instant::now() + Duration::from_secs(10);
    while !processes_of(cluster.own_program()).is_empty() {
        ensure!(Instant::now() < end, "oslet mount: still there 10 s after umount");
        std::thread::sleep(Duration::from_millis(10));
    }
    kernel::assert_clean(image)
}

#[test]
fn an_image_filled_by_mke2fs() -> Result<()> {
    every_oslet(false)
}

#[test]
fn an_image_filled_by_the_kernel() -> Result<()> {
    every_oslet(true)
}

#[test]
fn an_unclean_image_is_recovered_and_read_by_all() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::new()?;
    let (live, image) = (cluster.path("live.img"), cluster.path("disk.img"));
    kernel::mke2fs(&live, 64, &["-t", "ext4"])?;
    let mount = LoopMount::new(&live, &cluster.path("live"), "commit=1")?;
    let gtmp = mount.dir().join(".gtmp");
    fs::create_dir(&gtmp)?;
    fs::set_permissions(&gtmp, fs::Permissions::from_mode(0o1777))?;
    let storm = Storm::start(mount.dir(), 2, 7)?;
    std::thread::sleep(Duration::from_millis(1500));
    mount.snapshot(&live, &image).or_else(|_| {
        // It never rests: then between two steps, with all that is committed.
        storm.paused(|| {
            kernel::run("sync", &["-f", kernel::arg(mount.dir())])?;
            mount.snapshot(&live, &image)
        })
    })?;
    storm.finish()?;
    mount.unmount()?;
    // The kernel's own recovery, of a copy.
    let copy = cluster.path("copy.img");
    fs::copy(&image, &copy)?;
    LoopMount::new(&copy, &cluster.path("kernel"), "")?.unmount()?;
    let expected = kernel_view(&copy, &cluster.path("kernel"))?;
    up(&cluster, false, &[])?;
    read_everywhere(&cluster, &expected)?;
    down(&cluster, &image)?;
    println!("ran: 1 unclean image, {} objects", expected.entries.len());
    Ok(())
}
