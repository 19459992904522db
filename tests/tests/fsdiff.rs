//! The engine's view of volumes equals the kernel's, over a matrix of what mke2fs can make.
//!
//! Each volume is filled by mke2fs from a tree, then by the kernel with the same tree. With
//! `OSLET_FULL` set the trees are large.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::fsdiff::compare::compare;
use tests::fsdiff::matrix::{self, Sources};
use tests::fsdiff::{Image, Scratch, is_root};

#[test]
fn ext2_and_ext3() -> Result<()> {
    run(matrix::ext2_and_ext3())
}

#[test]
fn block_and_inode_sizes() -> Result<()> {
    run(matrix::block_and_inode_sizes())
}

#[test]
fn features_of_groups_and_checksums() -> Result<()> {
    run(matrix::features_of_groups_and_checksums())
}

#[test]
fn unusual_volumes() -> Result<()> {
    run(matrix::unusual_volumes())
}

#[test]
fn features_of_files_and_names() -> Result<()> {
    run(matrix::features_of_files_and_names())
}

/// Three levels of index: tens of thousands of long names in small blocks.
#[test]
fn a_large_directory() -> Result<()> {
    if !is_root("a_large_directory") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let image = Image::make(&scratch.path("image"), 256, "-t ext4 -b 1024 -O large_dir", None)?;
    let mount = image.mount(&scratch.subdir("mount")?, "rw")?;
    let dir = mount.path().join("large");
    tests::fsdiff::populate::many_names(&dir, 150_000)?;
    mount.unmount()?;
    let objects = compare(&scratch, &image)?;
    println!("three levels of index: {objects} objects equal");
    Ok(())
}

fn run(cases: Vec<matrix::Case>) -> Result<()> {
    if !is_root("fsdiff") {
        return Ok(());
    }
    let mut sources = Sources::new()?;
    let mut failed = Vec::new();
    for case in &cases {
        let started = Instant::now();
        let scratch = Scratch::new()?;
        let image = sources.volume(case, &scratch);
        match image.and_then(|image| compare(&scratch, &image)) {
            Ok(objects) => {
                let ms = started.elapsed().as_millis();
                println!("{}: {objects} objects equal, {ms} ms", case.name);
            }
            Err(error) => failed.push(format!("{}: {error:#}", case.name)),
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    let names: Vec<_> = cases.iter().map(|case| case.name).collect();
    println!("ran: {} kinds of volumes compared: {}", names.len(), names.join("; "));
    Ok(())
}

/// Files as they are in use: several thousand, or with `OSLET_FULL` all; put there by mke2fs, and
/// by the kernel.
#[test]
fn real_trees() -> Result<()> {
    if !is_root("real_trees") {
        return Ok(());
    }
    let full = std::env::var_os("OSLET_FULL").is_some();
    let sources = Scratch::new()?;
    let source = sources.subdir("real")?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.map(|home| home.join("registry/src"));
    let mut copied = 0;
    for from in [Some(PathBuf::from("/usr/share")), registry].into_iter().flatten() {
        let limit = if full { usize::MAX } else { 2000 };
        if from.is_dir() {
            let to = source.join(from.file_name().unwrap_or(from.as_os_str()));
            copied += copy_tree(&from, &to, limit)?;
        }
    }
    ensure!(copied > 1000, "only {copied} files are here to be copied");
    let megabytes = if full { 8192 } else { 512 };
    for arguments in [
        "-t ext4 -i 4096",
        "-t ext3 -b 1024 -I 128 -i 4096",
        "-t ext4 -b 1024 -i 4096 -O inline_data,meta_bg,^resize_inode",
        "-t ext4 -b 4096 -i 16384 -O bigalloc,ea_inode,large_dir -C 16384",
    ] {
        let started = Instant::now();
        let scratch = Scratch::new()?;
        let path = scratch.path("image");
        let image = Image::make(&path, megabytes, arguments, Some(&source))?;
        let mount = image.mount(&scratch.subdir("mount")?, "rw")?;
        copy_tree(&source, &mount.path().join("by-kernel"), usize::MAX)?;
        mount.unmount()?;
        let objects = compare(&scratch, &image).context(arguments)?;
        ensure!(objects > 2 * copied, "{objects} objects of {copied} files");
        println!("{arguments}: {objects} objects equal, {} ms", started.elapsed().as_millis());
    }
    Ok(())
}

/// Copies so many files at most, with the directories above them and links as they are, and returns
/// how many there were. What goes away meanwhile is left out.
fn copy_tree(from: &Path, to: &Path, limit: usize) -> Result<usize> {
    let mut copied = 0;
    let mut pending = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        if copied >= limit {
            break;
        }
        let Ok(meta) = from.symlink_metadata() else { continue };
        if meta.is_dir() {
            std::fs::create_dir(&to)?;
            let Ok(entries) = std::fs::read_dir(&from) else { continue };
            for entry in entries {
                let entry = entry?;
                pending.push((entry.path(), to.join(entry.file_name())));
            }
        } else if meta.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&from)?, &to)?;
        } else if meta.is_file() {
            copied += usize::from(std::fs::copy(&from, &to).is_ok());
        }
    }
    Ok(copied)
}
