//! Asks a volume everything, a bounded number of times.

use std::ops::ControlFlow;

use cfs::disk::inode::{Inode, Kind};
use cfs::engine::Volume;
use cfs::id::Ino;

/// Inodes looked at.
const INODES: u32 = 40;
/// Names of a directory that are looked up again.
const NAMES: usize = 12;
/// Pieces of a map, and entries of a directory.
const MANY: usize = 300;

/// Looks at everything in the first inodes of a volume.
pub fn volume(volume: &Volume) {
    volume.statfs();
    for ino in 0..=volume.superblock().inodes_count.min(INODES) {
        let _ = volume.inode(Ino(ino));
        if let Ok(found) = volume.any_inode(Ino(ino)) {
            inode(volume, &found);
        }
    }
}

/// Looks at everything in one inode.
pub fn inode(volume: &Volume, inode: &Inode) {
    volume.attr(inode);
    if let Ok(names) = volume.listxattr(inode) {
        for name in names.iter().take(NAMES) {
            let _ = volume.getxattr(inode, name);
        }
    }
    match inode.kind {
        Kind::Directory => directory(volume, inode),
        Kind::Symlink => drop(volume.readlink(inode)),
        _ => contents(volume, inode),
    }
    map(volume, inode);
}

fn directory(volume: &Volume, inode: &Inode) {
    let mut names = Vec::new();
    let (mut last, mut seen) = (0, 0);
    let _ = volume.readdir(inode, 0, |entry| {
        assert!(!entry.name.is_empty() && entry.name.len() <= 255);
        assert!(entry.next > last, "positions rise");
        last = entry.next;
        seen += 1;
        if names.len() < NAMES {
            names.push((entry.name.to_vec(), entry.next));
        }
        if seen < MANY { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    for (name, next) in names {
        let _ = volume.lookup(inode, &name);
        let _ = volume.readdir(inode, next, |entry| {
            assert!(entry.next > next);
            ControlFlow::Break(())
        });
    }
    let _ = volume.lookup(inode, b"no such name");
}

fn contents(volume: &Volume, inode: &Inode) {
    let mut buf = vec![0; 3 * 4096];
    for offset in [0, 4095, inode.size / 2, inode.size.saturating_sub(100), inode.size] {
        if let Ok(read) = volume.read(inode, offset, &mut buf) {
            assert_eq!(read as u64, inode.size.saturating_sub(offset).min(buf.len() as u64));
        }
        let _ = volume.seek_data(inode, offset);
        let _ = volume.seek_hole(inode, offset);
    }
}

fn map(volume: &Volume, inode: &Inode) {
    for (first, count) in [(0, 1 << 32), (5, 1), (1 << 31, 1 << 40)] {
        let mut next = first;
        for run in volume.runs(inode, first, count).take(MANY) {
            let Ok(run) = run else { break };
            assert!(run.len > 0 && run.logical == next, "runs have no gaps: {run:?}");
            next = run.end();
        }
        assert!(next <= first + count);
    }
}
