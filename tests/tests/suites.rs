//! Published suites on kernel ext4 and on ours: what they say of one they must say of the other.

#![forbid(unsafe_code)]

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, ensure};
use tests::kernel::{self, LoopMount, assert_clean, mke2fs};
use tests::opfuzz::volumes::Mounter;
use tests::program::ours;
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

/// Runs a suite on a fresh volume.
fn on_fresh(mounter: &Mounter, suite: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("suites-").tempdir_in("/dev/shm")?;
    // The users of the suite must get there.
    rustix::fs::chmod(dir.path(), rustix::fs::Mode::from_raw_mode(0o755))?;
    let image = dir.path().join("ext4.img");
    mke2fs(&image, 256, &["-t", "ext4", "-b", "4096"])?;
    let mount = mounter(&image, &dir.path().join("mounted"))?;
    suite(mount.dir())?;
    mount.unmount()?;
    assert_clean(&image)
}

/// Kernel ext4, and ours as a user would mount it for such a suite.
fn contestants() -> [(&'static str, Mounter); 2] {
    let ext4: Mounter = Rc::new(|image, dir| Ok(Box::new(LoopMount::new(image, dir, "relatime")?)));
    [("kernel ext4", ext4), ("a mount of ours", ours("suid,dev"))]
}

/// What pjdfstest leaves out, by name and reason, is as much a part of its result as what passes.
#[test]
fn pjdfstest_passes() -> Result<()> {
    if missing() {
        return Ok(());
    }
    let elsewhere = tempfile::Builder::new().prefix("elsewhere-").tempdir()?;
    for (who, mounter) in contestants() {
        // The suite cannot mount FUSE again: that ours answers EROFS is tested in mount_diff.
        let remounts: &[bool] = if who == "kernel ext4" { &[false, true] } else { &[false] };
        for &remount in remounts {
            on_fresh(&mounter, |dir| {
                let secondary = (!remount).then_some(elsewhere.path());
                let cases = pjdfstest(dir, Pjdfstest { secondary, remount, inside: None })?;
                for (name, why) in &cases.skipped {
                    println!("on {who} pjdfstest leaves out {name}: {why}");
                }
                for (name, why) in &cases.failed {
                    println!("on {who} pjdfstest fails {name}: {why}");
                }
                ensure!(cases.failed.is_empty(), "{} failed on {who}", cases.failed.len());
                println!("ran: {} cases of pjdfstest on {who}", cases.passed);
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn fsx_passes() -> Result<()> {
    if missing() {
        return Ok(());
    }
    let full = std::env::var_os("OSLET_FULL").is_some();
    let runs = if full {
        [(Fsx::Everything, 100_000), (Fsx::Unmapped, 1_000_000)]
    } else {
        [(Fsx::Everything, 2000), (Fsx::Unmapped, 20_000)]
    };
    for (who, mounter) in contestants() {
        for (what, operations) in runs {
            for seed in [1, 2] {
                on_fresh(&mounter, |dir| fsx(dir, what, seed, operations))?;
            }
            println!("ran: 2 x {operations} operations of fsx on {who}, {what:?}");
        }
    }
    Ok(())
}
