//! Damaged volumes: errors for what is damaged, everything else readable, and no bytes that make
//! the engine panic or hang.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cfs::Error;
use cfs::disk::inode::{Inode, Kind};
use cfs::engine::store::MemSource;
use cfs::engine::{Mapping, Options, Volume};
use cfs::id::Ino;
use tests::fsdiff::populate::{Plan, populate};
use tests::fsdiff::{EngineView, Image, Listing, Scratch, View, is_root};

const EUCLEAN: i32 = 117;
const ENOKEY: i32 = 126;

fn small(scratch: &Scratch, name: &str, megabytes: u64, arguments: &str) -> Result<Image> {
    let source = scratch.path("source");
    if !source.exists() {
        std::fs::create_dir(&source)?;
        let plan = Plan { large_offsets: false, names: 300, extents: 200, ..Plan::new(1024) };
        populate(&source, &plan)?;
        std::fs::remove_file(source.join("holes/nothing"))?;
    }
    Image::make(&scratch.path(name), megabytes, arguments, Some(&source))
}

fn open(bytes: Vec<u8>) -> cfs::Result<Volume> {
    let options = Options { ignore_journal: true, metadata_cache: 1 << 20 };
    Volume::open(Arc::new(MemSource::new(bytes)), &options)
}

#[test]
fn a_damaged_object_costs_itself_alone() -> Result<()> {
    if !is_root("a_damaged_object_costs_itself_alone") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let image = small(&scratch, "image", 16, "-t ext4 -b 1024")?;
    let engine = EngineView::open(&image.path)?;
    let whole = Listing::of(&engine)?;
    let volume = &engine.volume;
    let root = volume.inode(Ino::ROOT)?;
    let names = volume.inode(volume.lookup(&root, b"names")?)?;
    let many = volume.inode(volume.lookup(&names, b"many")?)?;
    // A leaf of the large directory.
    let Mapping::Data(block) = volume.map(&many, 3, 1)?.mapping else {
        anyhow::bail!("a hole in a directory");
    };
    let mut bytes = std::fs::read(&image.path)?;
    bytes[(block.0 << 10) as usize + 9] ^= 0x40;
    let damaged = EngineView { volume: open(bytes.clone())? };
    let error = damaged.volume.readdir(&many, 0, |_| ControlFlow::Continue(())).unwrap_err();
    ensure!(error.errno() == EUCLEAN, "{error}");
    let lost = whole.entries.keys().filter(|path| path.starts_with(b"/names/many/"));
    let found = lost
        .map(|path| damaged.volume.lookup(&many, &path[b"/names/many/".len()..]))
        .collect::<Vec<_>>();
    ensure!(found.iter().any(Result::is_ok), "names in other leaves are lost");
    ensure!(found.iter().flat_map(|found| found.as_ref().err()).all(|e| e.errno() == EUCLEAN));
    // The inode of one file.
    let file = volume.lookup(&root, b"contents")?;
    let place = volume.superblock().inode_size as usize * (file.0 as usize - 1);
    let table = Image { path: image.path.clone() }.inode_table()? << 10;
    bytes[table as usize + place + 5] ^= 1;
    let damaged = EngineView { volume: open(bytes)? };
    let error = damaged.volume.inode(file).unwrap_err();
    ensure!(error.errno() == EUCLEAN, "{error}");
    for (path, entry) in &whole.entries {
        if path.starts_with(b"/names/many") || path.starts_with(b"/contents") || path.is_empty() {
            continue;
        }
        let mut node = damaged.root()?;
        for name in path[1..].split(|&byte| byte == b'/') {
            node = damaged.child(&node, name).with_context(|| format!("{path:?}"))?;
        }
        ensure!(damaged.info(&node)? == entry.info, "{path:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_is_named() -> Result<()> {
    if !is_root("what_cannot_be_read_is_named") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let casefold = "-t ext4 -O casefold -E encoding=utf8";
    let image = Image::make(&scratch.path("casefold"), 8, casefold, None)?;
    let error = EngineView::open(&image.path).err().context("casefold was not refused")?;
    ensure!(error.to_string().contains("feature casefold is not supported"), "{error}");

    let image = small(&scratch, "image", 16, "-t ext4 -b 1024 -O encrypt")?;
    let bytes = std::fs::read(&image.path)?;
    for (size, words) in [(0, "too few"), (1500, "too few"), (8 << 20, "truncated")] {
        let error = open(bytes[..size].to_vec()).err().context("a cut image was opened")?;
        ensure!(error.to_string().contains(words), "{error}");
    }
    let error = open(vec![0; 1 << 20]).err().context("zeros were opened")?;
    ensure!(matches!(error, Error::NotExt(_)), "{error}");

    image.debugfs_write("set_inode_field /contents/300 flags 0x80800")?;
    let volume = EngineView::open(&image.path)?.volume;
    let root = volume.inode(Ino::ROOT)?;
    let contents = volume.inode(volume.lookup(&root, b"contents")?)?;
    let file = volume.inode(volume.lookup(&contents, b"300")?)?;
    let error = volume.read(&file, 0, &mut [0; 10]).unwrap_err();
    ensure!(error.errno() == ENOKEY && volume.attr(&file).size == 300, "{error}");
    Ok(())
}

#[test]
fn no_bytes_make_it_panic_or_hang() -> Result<()> {
    if !is_root("no_bytes_make_it_panic_or_hang") {
        return Ok(());
    }
    let full = std::env::var_os("OSLET_FULL").is_some();
    let rounds = if full { 3000 } else { 60 };
    let scratch = Scratch::new()?;
    for arguments in [
        "-t ext4 -b 1024",
        "-t ext4 -b 1024 -O ^metadata_csum,^has_journal",
        "-t ext4 -b 4096 -O inline_data,^metadata_csum,^has_journal",
        "-t ext2 -b 1024",
    ] {
        let image = small(&scratch, "image", 16, arguments)?;
        let sound = std::fs::read(&image.path)?;
        let used: Vec<usize> = (0..sound.len() / 1024)
            .filter(|i| sound[i * 1024..][..1024].iter().any(|&byte| byte != 0))
            .collect();
        let walked = walk(&open(sound.clone())?);
        ensure!(walked.errors == 0 && walked.objects > 200, "{arguments}: {walked:?}");
        let (mut opened, mut errors, mut slowest) = (0, 0, Duration::ZERO);
        for round in 0..rounds {
            let mut random = Random(round as u64 + 1);
            let mut bytes = sound.clone();
            damage(&mut bytes, &used, &mut random);
            let started = Instant::now();
            if let Ok(volume) = open(bytes) {
                opened += 1;
                errors += walk(&volume).errors;
            }
            let took = started.elapsed();
            slowest = slowest.max(took);
            ensure!(took < Duration::from_secs(30), "{arguments}: round {round} took {took:?}");
        }
        ensure!(opened > 0 && errors > 0, "{arguments}: {opened} opened, {errors} errors");
        println!(
            "{arguments}: {rounds} damaged volumes, {opened} opened, {errors} errors, \
             slowest {slowest:?}"
        );
    }
    Ok(())
}

/// Overwrites some bytes of some blocks that are in use; often of those at the beginning, where
/// the structures are, seldom of the first ones, without which nothing can be opened.
fn damage(bytes: &mut [u8], used: &[usize], random: &mut Random) {
    for _ in 0..1 + random.below(24) {
        let among = if random.below(4) > 0 { used.len() / 3 } else { used.len() };
        let first = if random.below(8) > 0 { 4 } else { 0 };
        let at = used[first + random.below(among - first)] * 1024 + random.below(1020);
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => {
                let word = [0, u32::MAX, 1, 0x7fff_ffff, random.below(20_000) as u32];
                bytes[at..at + 4].copy_from_slice(&word[random.below(5)].to_le_bytes());
            }
            _ => {
                let from = used[random.below(used.len())] * 1024;
                bytes.copy_within(from..from + 1024, at & !1023);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Walked {
    objects: usize,
    errors: usize,
}

/// Reads everything that can be reached, and every inode by its number.
fn walk(volume: &Volume) -> Walked {
    let mut walked = Walked::default();
    let mut seen = HashSet::from([Ino::ROOT]);
    let mut pending = vec![Ino::ROOT];
    volume.statfs();
    while let Some(ino) = pending.pop() {
        walked.objects += 1;
        let inode = match volume.inode(ino) {
            Ok(inode) => inode,
            Err(_) => {
                walked.errors += 1;
                continue;
            }
        };
        let mut names = Vec::new();
        if inode.kind == Kind::Directory {
            let listed = volume.readdir(&inode, 0, |entry| {
                if entry.name != b"." && entry.name != b".." {
                    names.push(entry.name.to_vec());
                }
                ControlFlow::Continue(())
            });
            walked.errors += usize::from(listed.is_err());
        }
        for name in names {
            match volume.lookup(&inode, &name) {
                Ok(child) if seen.insert(child) => pending.push(child),
                Ok(_) => {}
                Err(_) => walked.errors += 1,
            }
        }
        walked.errors += usize::from(look_at(volume, &inode).is_err());
    }
    for ino in 1..=volume.superblock().inodes_count.min(3000) {
        if let Ok(inode) = volume.any_inode(Ino(ino)) {
            let _ = look_at(volume, &inode);
        }
    }
    walked
}

fn look_at(volume: &Volume, inode: &Inode) -> cfs::Result<()> {
    volume.attr(inode);
    for name in volume.listxattr(inode)? {
        volume.getxattr(inode, &name)?;
    }
    match inode.kind {
        Kind::Symlink => drop(volume.readlink(inode)?),
        Kind::Regular => {
            let mut buf = vec![0; 65536];
            volume.read(inode, 0, &mut buf)?;
            volume.read(inode, inode.size.saturating_sub(1000), &mut buf)?;
            let mut at = 0;
            for _ in 0..50 {
                let Ok(start) = volume.seek_data(inode, at) else { break };
                at = volume.seek_hole(inode, start)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
