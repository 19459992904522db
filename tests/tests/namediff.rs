//! Names and attributes: random operations by ours and by kernel ext4 beside it.

#![forbid(unsafe_code)]

use std::sync::Mutex;

use anyhow::{Context, Result};
use tests::kernel;
use tests::namediff::{self, Shape};

/// Volumes: what is special about them, arguments of mke2fs, megabytes.
const VOLUMES: &[(&str, &[&str], u64)] = &[
    ("ext4", &["-t", "ext4", "-b", "4096"], 64),
    ("ext4, 1 KiB", &["-t", "ext4", "-b", "1024"], 32),
    ("ext4, 2 KiB", &["-t", "ext4", "-b", "2048"], 32),
    ("no checksums", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], 32),
    ("large_dir", &["-t", "ext4", "-b", "1024", "-O", "large_dir"], 32),
    ("ea_inode", &["-t", "ext4", "-b", "4096", "-O", "ea_inode", "-J", "size=16"], 64),
    ("ea_inode, 1 KiB", &["-t", "ext4", "-b", "1024", "-O", "ea_inode", "-J", "size=16"], 64),
    (
        "ea_inode, small inodes, no checksums",
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-I",
            "128",
            "-O",
            "ea_inode,^metadata_csum",
            "-J",
            "size=16",
        ],
        64,
    ),
    ("ea_inode, no journal", &["-t", "ext4", "-b", "1024", "-O", "ea_inode,^has_journal"], 32),
    ("no dir_index", &["-t", "ext4", "-b", "1024", "-O", "^dir_index"], 32),
    ("no filetype", &["-t", "ext4", "-b", "1024", "-O", "^filetype"], 32),
    ("small inodes", &["-t", "ext4", "-b", "1024", "-I", "128"], 32),
    ("no journal", &["-t", "ext4", "-b", "1024", "-O", "^has_journal"], 32),
    ("ext3", &["-t", "ext3", "-b", "1024"], 32),
    ("ext3, 4 KiB", &["-t", "ext3", "-b", "4096"], 64),
    ("ext2", &["-t", "ext2", "-b", "1024"], 16),
];

/// Volumes whose files and directories lie in their inodes as long as they are small.
const INLINE: &[(&str, &[&str], u64)] = &[
    ("inline_data", &["-t", "ext4", "-b", "4096", "-O", "inline_data"], 64),
    (
        "inline_data, large inodes",
        &["-t", "ext4", "-b", "1024", "-I", "1024", "-O", "inline_data"],
        32,
    ),
    (
        "inline_data, ea_inode, no checksums",
        &["-t", "ext4", "-b", "2048", "-O", "inline_data,ea_inode,^metadata_csum", "-J", "size=16"],
        64,
    ),
    (
        "inline_data, no extents, no journal",
        &["-t", "ext4", "-b", "1024", "-O", "inline_data,^extent,^64bit,^has_journal"],
        32,
    ),
];

/// Runs all volumes with one shape. `NAMEDIFF_SEEDS` says how many sequences for each, and
/// `NAMEDIFF_FIRST` the first seed.
fn all(test: &str, shape: &Shape) -> Result<()> {
    each(test, shape, VOLUMES)
}

fn each(test: &str, shape: &Shape, volumes: &[(&str, &[&str], u64)]) -> Result<()> {
    if let Some(missing) = kernel::missing() {
        eprintln!("{test}: skipped: {missing}");
        return Ok(());
    }
    // A process that another test makes would keep a mount busy for a moment.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|error| error.into_inner());
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (count, first) = (number("NAMEDIFF_SEEDS", 2), number("NAMEDIFF_FIRST", 1));
    for (name, arguments, megabytes) in volumes {
        for seed in first..first + count {
            let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
            namediff::run(scratch.path(), arguments, *megabytes, seed, shape)
                .with_context(|| format!("{test}: {name}, seed {seed}"))?;
        }
    }
    Ok(())
}

#[test]
fn few_names() -> Result<()> {
    all("few_names", &Shape { steps: 500, names: 6, long: false, attributes: false, before: 0 })
}

#[test]
fn many_names() -> Result<()> {
    all("many_names", &Shape { steps: 3000, names: 400, long: true, attributes: false, before: 0 })
}

#[test]
fn names_and_attributes() -> Result<()> {
    all(
        "names_and_attributes",
        &Shape { steps: 700, names: 6, long: false, attributes: true, before: 0 },
    )
}

/// What the kernel has put into inodes is changed by ours and by the kernel.
#[test]
fn contents_in_inodes() -> Result<()> {
    let shape = Shape { steps: 60, names: 5, long: false, attributes: true, before: 80 };
    each("contents_in_inodes", &shape, INLINE)?;
    let shape = Shape { steps: 150, names: 30, long: false, attributes: false, before: 40 };
    each("contents_in_inodes", &shape, INLINE)
}
