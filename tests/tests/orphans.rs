//! Orphans that are cut and removed by us and by the kernel, with maps of every shape.

#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::orphan::Orphans;
use tests::kernel::{self, LoopMount, arg, assert_clean, assert_same_tree, mke2fs, run};

/// Blocks of 1 KiB at every `step`-th place, `count` of them.
struct Shape {
    count: u64,
    step: u64,
}

const SHAPES: &[Shape] = &[
    Shape { count: 5, step: 1 },
    Shape { count: 400, step: 1 },
    Shape { count: 700, step: 2 },
    Shape { count: 3000, step: 3 },
    Shape { count: 60, step: 2500 },
];

/// Bytes of files that may be in their inodes.
const SMALL: [usize; 3] = [40, 90, 150];

/// A kind of volume.
struct Kind {
    mke2fs: &'static [&'static str],
    /// Bytes of attribute values: of one that all files have, and of one for each.
    values: [usize; 2],
    /// Features that tune2fs adds when the files are there. The kernel gets the volume without
    /// them: that of the tests need not know quotas, of which e2fsck is the judge.
    tune: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        mke2fs: &["-t", "ext4", "-b", "4096", "-O", "^huge_file,^flex_bg"],
        values: [300, 20],
        tune: "",
    },
    Kind { mke2fs: &["-t", "ext4", "-b", "1024"], values: [300, 20], tune: "" },
    Kind { mke2fs: &["-t", "ext3", "-b", "1024"], values: [300, 0], tune: "" },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,uninit_bg"],
        values: [0, 0],
        tune: "",
    },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"],
        values: [300, 20],
        tune: "",
    },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "4096", "-O", "bigalloc,inline_data"],
        values: [0, 50],
        tune: "",
    },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "inline_data,^metadata_csum"],
        values: [0, 10],
        tune: "",
    },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data"],
        values: [600, 10],
        tune: "",
    },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "ea_inode"],
        values: [30_000, 1500],
        tune: "",
    },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "4096", "-O", "ea_inode,bigalloc,inline_data"],
        values: [30_000, 5000],
        tune: "",
    },
    Kind { mke2fs: &["-t", "ext4", "-b", "4096"], values: [300, 20], tune: "quota,project" },
    Kind {
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "ea_inode,large_dir"],
        values: [30_000, 1500],
        tune: "quota",
    },
];

/// Makes an image with one file of each shape and size, each with attributes.
fn files(image: &Path, dir: &Path, kind: &Kind) -> Result<Vec<u64>> {
    use std::os::unix::fs::MetadataExt;
    mke2fs(image, 48, kind.mke2fs)?;
    let mount = LoopMount::new(image, dir, "")?;
    let mut inodes = Vec::new();
    for number in 0..SHAPES.len() + SMALL.len() {
        let path = mount.dir().join(format!("file{number}"));
        let file = std::fs::File::create(&path)?;
        match SHAPES.get(number) {
            Some(shape) => {
                for at in 0..shape.count {
                    file.write_all_at(&[at as u8 | 1; 1024], at * shape.step * 1024)?;
                }
            }
            None => file.write_all_at(&vec![b'i'; SMALL[number - SHAPES.len()]], 0)?,
        }
        std::os::unix::fs::chown(&path, Some(1000 + number as u32 % 3), Some(70_000))?;
        let [common, own] = kind.values;
        for (name, value) in [("common", vec![b'c'; common]), ("own", vec![number as u8; own])] {
            if !value.is_empty() {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&path, format!("user.{name}"), &value, flags)?;
            }
        }
        file.sync_all()?;
        inodes.push(file.metadata()?.ino());
    }
    mount.unmount()?;
    if !kind.tune.is_empty() {
        run("tune2fs", &["-O", kind.tune, arg(image)])?;
        if kind.tune.contains("project") {
            run("tune2fs", &["-Q", "prjquota", arg(image)])?;
            let set = format!("sif <{}> projid 4711", inodes[0]);
            run("debugfs", &["-w", "-R", &set, arg(image)])?;
        }
        // It ends with 1 when it counted anew.
        let _ = run("e2fsck", &["-fy", arg(image)]);
    }
    assert_clean(image).context("as made")?;
    Ok(inodes)
}

/// Puts all files into the list of orphans: cut at `size`, or without names.
fn orphan(image: &Path, inodes: &[u64], size: Option<u64>) -> Result<()> {
    let mut commands = String::new();
    let next = inodes.iter().skip(1).copied().chain([0]);
    for (number, (ino, next)) in inodes.iter().zip(next).enumerate() {
        match size {
            Some(size) => commands += &format!("sif <{ino}> size {size}\n"),
            None => commands += &format!("unlink file{number}\nsif <{ino}> links_count 0\n"),
        }
        commands += &format!("sif <{ino}> dtime @{next}\n");
    }
    commands += &format!("ssv last_orphan {}\nfeature needs_recovery\n", inodes[0]);
    let script = image.with_extension("cmd");
    std::fs::write(&script, commands)?;
    run("debugfs", &["-w", "-f", arg(&script), arg(image)]).map(drop)
}

/// Recovers what the image holds and puts it into `to`, as e2fsck finds it clean: what was done
/// with the orphans, of which none is left.
fn recover(image: &Path, to: &Path) -> Result<Orphans> {
    let memory = Arc::new(MemSource::new(std::fs::read(image)?));
    let source: Arc<dyn BlockSource> = memory.clone();
    let report = cfs::journal::recover(&source)?.context("nothing to recover")?;
    drop(source);
    ensure!(report.transactions == 0, "the image was not clean: {report:?}");
    ensure!(report.orphans.left.is_none(), "{report:?}");
    let memory = Arc::into_inner(memory).context("somebody still reads the image")?;
    std::fs::write(to, memory.into_bytes())?;
    assert_clean(to)?;
    Ok(report.orphans)
}

fn compare(dir: &Path, image: &Path, kind: &Kind, files: u32, removed: bool) -> Result<()> {
    let (ours, theirs) = (dir.join("ours.img"), dir.join("theirs.img"));
    std::fs::copy(image, &theirs)?;
    let orphans = recover(image, &ours)?;
    let expected = if removed { (files, 0) } else { (0, files) };
    ensure!((orphans.removed, orphans.cut) == expected, "{orphans:?}");
    if !kind.tune.is_empty() {
        run("debugfs", &["-w", "-R", "feature -quota -project", arg(&theirs)])?;
    }
    LoopMount::new(&theirs, &dir.join("theirs"), "")?.unmount()?;
    let ours = LoopMount::new(&ours, &dir.join("ours"), "ro,noload")?;
    let theirs = LoopMount::new(&theirs, &dir.join("theirs"), "ro,noload")?;
    let mut trees = [kernel::tree(ours.dir())?, kernel::tree(theirs.dir())?];
    // Both changed these files now, each at its own time.
    for entry in trees.iter_mut().flatten() {
        let known = entry.attributes.find(" mtime").unwrap_or(entry.attributes.len());
        entry.attributes.truncate(known);
    }
    assert_same_tree(&trees[0], &trees[1])?;
    ours.unmount()?;
    theirs.unmount()
}

#[test]
fn orphans_are_cut_and_removed_as_the_kernel_does() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let (made, image) = (dir.path().join("made.img"), dir.path().join("orphans.img"));
        let name = format!("{:?} {}", kind.mke2fs, kind.tune);
        let inodes = files(&made, &dir.path().join("m"), kind).context(name.clone()).unwrap();
        let full = std::env::var_os("OSLET_FULL").is_some();
        let sizes: &[u64] = if full {
            &[0, 1, 75, 5000, 12 * 1024, 300_000, 1_000_001, 70_000_000]
        } else {
            &[75, 301_000]
        };
        for size in sizes.iter().copied().map(Some).chain([None]) {
            std::fs::copy(&made, &image).unwrap();
            orphan(&image, &inodes, size).unwrap();
            compare(dir.path(), &image, kind, inodes.len() as u32, size.is_none())
                .with_context(|| format!("{name} cut at {size:?}"))
                .unwrap();
        }
        println!("{name}: equal");
    }
}

/// Blocks larger than a page, which no kernel here mounts: e2fsck judges.
#[test]
fn orphans_in_blocks_over_a_page() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let kinds: [&[&str]; 4] = [
        &["-b", "8192"],
        &["-b", "65536", "-O", "quota"],
        &["-b", "16384", "-O", "bigalloc,quota", "-C", "65536"],
        &["-b", "32768", "-O", "^metadata_csum,inline_data"],
    ];
    let dir = tempfile::tempdir().unwrap();
    let (image, source) = (dir.path().join("image"), dir.path().join("source"));
    std::fs::create_dir(&source).unwrap();
    let contents =
        |number: usize| tests::fsdiff::populate::pattern(number as u64, number * 500_000);
    for number in 0..3 {
        std::fs::write(source.join(format!("file{number}")), contents(number)).unwrap();
    }
    for kind in kinds {
        for size in [Some(100_001), None] {
            let arguments = [&["-t", "ext4", "-d", arg(&source)], kind].concat();
            mke2fs(&image, 256, &arguments).unwrap();
            // It counts the files for the quotas, and ends with 1.
            let _ = run("e2fsck", &["-fy", arg(&image)]);
            let inodes: Vec<u64> = (0..3).map(|number| file(&image, number).0).collect();
            orphan(&image, &inodes, size).unwrap();
            let orphans = recover(&image, &image)
                .with_context(|| format!("{kind:?} cut at {size:?}"))
                .unwrap();
            assert_eq!(orphans.removed + orphans.cut, 3, "{kind:?}: {orphans:?}");
            if size.is_some() {
                let found = file(&image, 2).1;
                assert!(found == contents(2)[..100_001], "{kind:?}");
            }
        }
    }
}

/// A file's inode and contents.
fn file(image: &Path, number: usize) -> (u64, Vec<u8>) {
    let volume = tests::fsdiff::EngineView::open(image).unwrap().volume;
    let root = volume.inode(cfs::id::Ino::ROOT).unwrap();
    let ino = volume.lookup(&root, format!("file{number}").as_bytes()).unwrap();
    let inode = volume.inode(ino).unwrap();
    let mut bytes = vec![0; inode.size as usize];
    volume.read(&inode, 0, &mut bytes).unwrap();
    (ino.0.into(), bytes)
}
