//! Images copied while the kernel was writing: after our replay they are clean and hold what the
//! kernel's own replay of the same copy gives.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::journal::{Report, recover_at};
use tests::cut::Failing;
use tests::kernel::{self, LoopMount, arg, assert_clean, assert_same_tree, mke2fs, run};
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
    Case {
        name: "bigalloc, orphan file",
        mke2fs: &["-t", "ext4", "-O", "bigalloc,orphan_file", "-b", "1024", "-C", "8192"],
        mount: "",
    },
    Case {
        name: "inline_data",
        mke2fs: &["-t", "ext4", "-O", "inline_data", "-b", "4096", "-J", "size=4"],
        mount: "",
    },
    Case {
        name: "ea_inode, large_dir",
        mke2fs: &["-t", "ext4", "-O", "ea_inode,large_dir", "-b", "1024", "-J", "size=8"],
        mount: "",
    },
    Case {
        name: "ea_inode, inline_data, bigalloc, orphan file",
        mke2fs: &["-t", "ext4", "-O", "ea_inode,inline_data,bigalloc,orphan_file", "-b", "4096"],
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
    let (mut found, expected) = (kernel::tree(ours.dir())?, kernel::tree(theirs.dir())?);
    // The kernel gives an inode that it cuts the time of that; like e2fsck, ours leaves it.
    let mut cut = report.orphans.cut;
    for (found, expected) in found.iter_mut().zip(&expected) {
        let untimed = |text: &str| text.split(" mtime ").next().map(str::to_owned);
        let timed = found.attributes != expected.attributes;
        if cut > 0 && timed && untimed(&found.attributes) == untimed(&expected.attributes) {
            found.attributes.clone_from(&expected.attributes);
            cut -= 1;
        }
    }
    assert_same_tree(&found, &expected)?;
    ours.unmount()?;
    theirs.unmount()?;
    Ok(report)
}

fn try_case(case: &Case, snapshots: u64) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let (image, copy) = (dir.path().join("live.img"), dir.path().join("copy.img"));
    mke2fs(&image, 48, case.mke2fs)?;
    let live = LoopMount::new(&image, &dir.path().join("live"), case.mount)?;
    let large = case.name.contains("ea_inode");
    let storm = Storm::with_values(live.dir(), 2, 7, if large { 30_000 } else { 900 })?;
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

/// An image with transactions and orphans.
fn unclean(dir: &Path, args: &[&str], mount: &str) -> Result<Arc<MemSource>> {
    let (image, copy) = (dir.join("live.img"), dir.join("copy.img"));
    mke2fs(&image, 16, args)?;
    let live = LoopMount::new(&image, &dir.join("live"), mount)?;
    let storm = Storm::start(live.dir(), 2, 11)?;
    std::thread::sleep(Duration::from_millis(300));
    storm.paused(|| live.snapshot(&image, &copy))?;
    storm.finish()?;
    live.unmount()?;
    Ok(Arc::new(MemSource::new(std::fs::read(&copy)?)))
}

const NOW: u64 = 1_800_000_000;

/// All of the volume but its journal, whose contents tell how often it was replayed.
fn contents(source: &Arc<dyn BlockSource>) -> Result<Vec<u8>> {
    let options = cfs::engine::Options { ignore_journal: true, ..Default::default() };
    let volume = cfs::engine::Volume::open(source.clone(), &options)?;
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes)?;
    let journal = volume.any_inode(cfs::id::Ino::JOURNAL)?;
    let bits = volume.superblock().block_bits;
    for run in volume.runs(&journal, 0, journal.size >> bits) {
        let run = run?;
        if let cfs::engine::Mapping::Data(start) = run.mapping {
            bytes[(start.0 << bits) as usize..((start.0 + run.len) << bits) as usize].fill(0);
        }
    }
    Ok(bytes)
}

/// The power fails at every write and flush; of what was not flushed, some reaches the disk.
#[test]
fn a_replay_cut_short_is_done_again() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = unclean(dir.path(), &["-t", "ext4", "-b", "1024"], "").unwrap();
    let whole = Arc::new(Failing::new(&base, u64::MAX));
    let source: Arc<dyn BlockSource> = whole.clone();
    let report = recover_at(&source, NOW).unwrap().unwrap();
    assert!(report.orphans.removed > 0, "{report:?}");
    let expected = contents(&source).unwrap();
    let steps = whole.done();
    let mut random = 1_u64;
    for cut in 0..steps {
        let failing = Arc::new(Failing::new(&base, cut));
        let source: Arc<dyn BlockSource> = failing.clone();
        recover_at(&source, NOW).unwrap_err();
        let disk = failing.after(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 63 == 1
        });
        let disk = disk.unwrap();
        let again = recover_at(&disk, NOW).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        assert!(contents(&disk).unwrap() == expected, "cut {cut} of {steps}: {again:?}");
        assert_eq!(recover_at(&disk, NOW).unwrap(), None, "cut {cut}");
    }
    println!("{steps} cuts, {report:?}");
}

/// Damage anywhere in the journal: an error or a replay, and after an error nothing has changed.
#[test]
fn a_damaged_journal_is_an_error_or_a_replay() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let rounds = if std::env::var_os("OSLET_FULL").is_some() { 20_000 } else { 300 };
    for args in [&["-t", "ext4", "-b", "1024"][..], &["-t", "ext3", "-b", "1024", "-J", "size=1"]] {
        let dir = tempfile::tempdir().unwrap();
        let base = unclean(dir.path(), args, "").unwrap();
        let source: Arc<dyn BlockSource> = base.clone();
        let options = cfs::engine::Options { ignore_journal: true, ..Default::default() };
        let volume = cfs::engine::Volume::open(source.clone(), &options).unwrap();
        let journal = volume.any_inode(cfs::id::Ino::JOURNAL).unwrap();
        let (mut random, mut refused, mut replayed) = (7_u64, 0, 0);
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..rounds {
            let failing = Arc::new(Failing::new(&base, u64::MAX));
            let disk: Arc<dyn BlockSource> = failing.clone();
            let mut damage = 0;
            for _ in 0..=next(4) {
                // The beginning of the journal is where the log is.
                let logical = next(1000.min(journal.size >> 10));
                let run = volume.map(&journal, logical, 1).unwrap();
                let cfs::engine::Mapping::Data(block) = run.mapping else { continue };
                let offset = (block.0 << 10) + if next(2) == 0 { next(64) } else { next(1000) };
                let bytes = [0, 1, 5, 0xff, next(256) as u8];
                disk.write_at(offset, &bytes[next(5) as usize..][..1]).unwrap();
                damage += 1;
            }
            disk.flush().unwrap();
            let before = failing.done();
            match recover_at(&disk, NOW) {
                Ok(_) => replayed += 1,
                Err(_) => {
                    assert_eq!(failing.done(), before, "written before the error, {damage}");
                    refused += 1;
                }
            }
        }
        println!("{args:?}: {replayed} replayed, {refused} refused");
    }
}

/// What fast commits hold is replayed or refused by name, never ignored.
#[test]
fn pending_fast_commits_are_refused_by_name() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, copy) = (dir.path().join("live.img"), dir.path().join("copy.img"));
    mke2fs(&image, 32, &["-t", "ext4", "-O", "fast_commit"]).unwrap();
    let live = LoopMount::new(&image, &dir.path().join("live"), "").unwrap();
    let write = |name: &str| {
        let file = std::fs::File::create(live.dir().join(name)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 9000], 0).unwrap();
        file.sync_all().unwrap();
    };
    // The first fsync is a full commit, and one that fast commits can follow.
    write("a");
    rustix::fs::syncfs(std::fs::File::open(live.dir()).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    write("b");
    rustix::fs::syncfs(std::fs::File::open(live.dir()).unwrap()).unwrap();
    live.snapshot(&image, &copy).unwrap();
    let (_, report) = recover(&copy).unwrap();
    assert!(report.is_some());
    check(dir.path(), &copy).unwrap();
    for name in ["c", "d", "e"] {
        write(name);
    }
    live.snapshot(&image, &copy).unwrap();
    live.unmount().unwrap();
    // Behind a clean unmount the feature is no obstacle, whatever is left in its area.
    assert_eq!(recover(&image).unwrap().1, None);
    let options = cfs::engine::Options::default();
    let clean = Arc::new(MemSource::new(std::fs::read(&image).unwrap()));
    let volume = cfs::engine::Volume::open(clean, &options).unwrap();
    let root = volume.inode(cfs::id::Ino::ROOT).unwrap();
    volume.lookup(&root, b"e").unwrap();

    let bytes = std::fs::read(&copy).unwrap();
    let error = recover(&copy).unwrap_err().to_string();
    let words = ["feature fast_commit", "not in place", "in 3 fast commits", "or run e2fsck"];
    assert!(words.iter().all(|words| error.contains(words)), "{error}");
    let cluster = tests::cluster::Cluster::new().unwrap();
    let at = cluster.path("at");
    std::fs::create_dir(&at).unwrap();
    for options in ["rw", "ro"] {
        let output = cluster.output(&["mount", "-o", options, arg(&copy), arg(&at)]).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(words.iter().all(|words| text.contains(words)), "{text}");
        assert!(text.contains("copy.img"), "{text}");
    }
    assert!(bytes == std::fs::read(&copy).unwrap());
}

/// What the superblock does not ask for is neither replayed nor passed over: the kernel would drop
/// it, e2fsck asks.
#[test]
fn a_journal_that_nobody_asks_for_is_refused() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("unclean.img");
    let base = unclean(dir.path(), &["-t", "ext4", "-b", "1024"], "").unwrap();
    std::fs::write(&image, Arc::into_inner(base).unwrap().into_bytes()).unwrap();
    run("debugfs", &["-w", "-R", "feature -needs_recovery", arg(&image)]).unwrap();
    let error = recover(&image).unwrap_err().to_string();
    for words in ["journal: holds transactions from ", "needs_recovery is not set", "run e2fsck"] {
        assert!(error.contains(words), "{error}");
    }
    // So it is when the superblock is lost and a copy takes its place.
    let _ = run("e2fsck", &["-fy", arg(&image)]);
    assert_clean(&image).unwrap();
    assert_eq!(recover(&image).unwrap().1, None);
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
