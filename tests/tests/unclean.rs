//! Images copied while the kernel was writing: after our replay they are clean and hold what the
//! kernel's own replay of the same copy gives.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::journal::Report;
use tests::kernel::{self, LoopMount, arg, assert_clean, assert_same_tree, mke2fs};
use tests::storm::Storm;

/// How an image is made and mounted.
struct Case {
    name: &'static str,
    mke2fs: &'static [&'static str],
    mount: &'static str,
}

const CASES: &[Case] = &[
    Case { name: "ext4", mke2fs: &["-t", "ext4"], mount: "" },
    Case {
        name: "ext4, 1 KiB, small log",
        mke2fs: &["-t", "ext4", "-b", "1024", "-J", "size=1"],
        mount: "",
    },
    Case {
        name: "ext3, small log",
        mke2fs: &["-t", "ext3", "-b", "4096", "-J", "size=4"],
        mount: "",
    },
    Case {
        name: "ext3, 1 KiB, data=journal",
        mke2fs: &["-t", "ext3", "-b", "1024", "-J", "size=2"],
        mount: "data=journal",
    },
    Case {
        name: "ext4, 32 bit, data=journal",
        mke2fs: &["-t", "ext4", "-O", "^64bit", "-J", "size=4"],
        mount: "data=journal",
    },
    Case {
        name: "ext4 without checksums, old journal checksum",
        mke2fs: &["-t", "ext4", "-O", "^metadata_csum", "-J", "size=4"],
        mount: "journal_checksum",
    },
    Case {
        name: "ext4, old journal checksum, async commit",
        mke2fs: &["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-b", "1024"],
        mount: "journal_async_commit,data=writeback",
    },
    Case {
        name: "ext4, async commit, orphan file",
        mke2fs: &["-t", "ext4", "-O", "orphan_file,metadata_csum_seed", "-b", "1024"],
        mount: "journal_async_commit,data=writeback",
    },
    Case {
        name: "ext4, journal by pointers",
        mke2fs: &["-t", "ext4", "-O", "^extent,^64bit", "-b", "1024", "-J", "size=8"],
        mount: "",
    },
];

fn recover(image: &Path) -> Result<(Vec<u8>, Option<Report>)> {
    let memory = Arc::new(MemSource::new(std::fs::read(image)?));
    let source: Arc<dyn BlockSource> = memory.clone();
    let report = cfs::journal::recover(&source)?;
    drop(source);
    let memory = Arc::into_inner(memory).context("somebody still reads the image")?;
    Ok((memory.into_bytes(), report))
}

fn check(dir: &Path, snapshot: &Path) -> Result<Report> {
    let (bytes, report) = recover(snapshot)?;
    let report = report.context("the image did not need recovery")?;
    let (ours, theirs) = (dir.join("ours.img"), dir.join("theirs.img"));
    std::fs::write(&ours, bytes)?;
    std::fs::copy(snapshot, &theirs)?;
    assert_clean(&ours)?;
    LoopMount::new(&theirs, &dir.join("theirs"), "")?.unmount()?;
    let (ours, theirs) = (
        LoopMount::new(&ours, &dir.join("ours"), "ro,noload")?,
        LoopMount::new(&theirs, &dir.join("theirs"), "ro,noload")?,
    );
    assert_same_tree(&kernel::tree(ours.dir())?, &kernel::tree(theirs.dir())?)?;
    ours.unmount()?;
    theirs.unmount()?;
    Ok(report)
}

fn try_case(case: &Case, snapshots: u64) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let (image, copy) = (dir.path().join("live.img"), dir.path().join("copy.img"));
    mke2fs(&image, 48, case.mke2fs)?;
    let live = LoopMount::new(&image, &dir.path().join("live"), case.mount)?;
    let storm = Storm::start(live.dir(), 2, 7)?;
    let (mut transactions, mut blocks, mut revoked, mut removed, mut cut) = (0, 0, 0, 0, 0);
    for number in 0..snapshots {
        std::thread::sleep(Duration::from_millis(200 + 50 * number));
        storm.paused(|| live.snapshot(&image, &copy))?;
        let report = check(dir.path(), &copy).or_else(|error| {
            let kept = std::env::temp_dir().join("unclean.img");
            std::fs::copy(&copy, &kept)?;
            Err(error.context(format!("the image is in {}", kept.display())))
        })?;
        transactions += report.transactions;
        blocks += report.blocks;
        revoked += report.revoked;
        removed += report.orphans.removed;
        cut += report.orphans.cut;
        ensure!(report.orphans.left.is_none(), "{:?}", report.orphans);
    }
    let steps = storm.steps();
    storm.finish()?;
    live.unmount()?;
    ensure!(transactions > 0, "nothing was replayed");
    Ok(format!(
        "{steps} steps, {transactions} transactions, {blocks} blocks, {revoked} revoked, \
         orphans: {removed} removed, {cut} cut"
    ))
}

#[test]
fn replay_gives_what_the_kernel_gives() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let snapshots = if std::env::var_os("OSLET_FULL").is_some() { 20 } else { 2 };
    let mut failed = 0;
    for case in CASES {
        match try_case(case, snapshots) {
            Ok(counts) => println!("{}: {snapshots} images, {counts}", case.name),
            Err(error) => {
                println!("{}: {error:#}", case.name);
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 0, "{failed} of {} kinds of image", CASES.len());
}

#[test]
fn a_clean_image_is_left_alone() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("clean.img");
    mke2fs(&image, 16, &["-t", "ext4"]).unwrap();
    LoopMount::new(&image, &dir.path().join("m"), "").unwrap().unmount().unwrap();
    let (bytes, report) = recover(&image).unwrap();
    assert_eq!(report, None);
    assert!(bytes == std::fs::read(&image).unwrap(), "{} was written", arg(&image));
}
