//! Power that fails at any moment: every state of the disk that it could leave is made from a
//! record, recovered, checked by e2fsck and held to what was promised.

pub mod check;
pub mod disk;
pub mod promise;
pub mod workload;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use proxydev::layer::Event;

use crate::opfuzz::Subject;
use crate::opfuzz::dir::{DirSubject, Ways};
use crate::opfuzz::op::{Op, Outcome};
use crate::opfuzz::volumes::Mounter;
use disk::Disk;

/// A disk as it was, and what happened to it since. [`Event::Mark`] `n` says that `n` operations
/// had completed.
pub struct Recording {
    /// What it held at first.
    pub base: Vec<u8>,
    /// What happened to it.
    pub events: Vec<Event>,
}

/// Runs a workload on a mount of a recorded disk, whose first contents are `base`, and unmounts it.
///
/// # Errors
/// The disk cannot be mounted. What operations are answered is not looked at, but for what makes
/// contents durable: that must not fail.
pub fn record(
    top: &Path,
    base: Vec<u8>,
    (mounter, ways): (&Mounter, Ways),
    ops: &[Op],
) -> Result<Recording> {
    let disk = Disk::new(&top.join("disk"), base.clone())?;
    let mounted = mounter(&disk.path(), &top.join("recorded"))?;
    let root = mounted.dir().to_owned();
    let mut subject = DirSubject::new("recorded", &root, None)?.with(ways);
    for (number, op) in ops.iter().enumerate() {
        let outcome = subject.apply(op);
        let durable = matches!(op, Op::Sync | Op::Fsync { .. } | Op::FsyncPath { .. });
        let failed = matches!(outcome, Outcome::Error(errno) if errno == EIO);
        ensure!(!(durable && failed), "{op}: {outcome:?}");
        disk.log().mark(number as u64 + 1);
    }
    subject.close_all();
    drop(subject);
    mounted.unmount().context("after the workload")?;
    Ok(Recording { base, events: disk.log().take() })
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// An image for workloads: made by `mke2fs arguments` where every byte that it leaves alone is
/// 0xdb, so that blocks are seen that were never written.
///
/// # Errors
/// What mke2fs says.
pub fn dirty_image(path: &Path, megabytes: usize, arguments: &str) -> Result<Vec<u8>> {
    std::fs::write(path, vec![0xdb; megabytes << 20])?;
    let mut all = vec!["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,root_owner=0:0"];
    all.extend(arguments.split_whitespace());
    all.push(crate::kernel::arg(path));
    crate::kernel::run("mke2fs", &all)?;
    Ok(std::fs::read(path)?)
}
