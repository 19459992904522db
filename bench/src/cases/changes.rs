//! Changing names and contents, natively and through mounts.

use std::rc::Rc;

use super::{Ours, Through, Work};
use crate::Environment;
use crate::case::{Case, Peer, Side, Target};
use crate::changing::{self, Change};
use crate::corpus::{PAGE, Walk};
use crate::peers;
use crate::through::Mounter;

/// Most rounds where each writes a whole file or tree.
const FEW_ROUNDS: u32 = 5;
const ROUNDS: u32 = 15;
/// What is asked of a mount of one image beside fuse2fs.
const BESIDE_FUSE2FS: Target = Target::TimesPeer(3.0);
/// What is asked of a file that is written natively beside its backing file.
const BESIDE_BACKING: Target = Target::TimesPeer(0.9);

/// Ours, fuse2fs and kernel ext4, each with a fresh image of its own.
pub(super) fn through_mount(
    work: Work,
    change: Change,
    environment: &Environment,
    ours: &mut Ours,
) -> anyhow::Result<Case> {
    let (scratch, sizes) = (&environment.scratch, environment.sizes);
    let alone = matches!(work, Work::MountChange(Through::Image, _));
    let our_side = match ours.writable.clone().filter(|_| alone) {
        Some(mounter) => changing::side(change, sizes, scratch, &mounter)?,
        None => ours.side(work, environment)?,
    };
    let mine = scratch.clone();
    let fuse2fs: Mounter = Rc::new(move |image| mine.mount_fuse2fs_writable(image));
    let fuse2fs = changing::side(change, sizes, scratch, &fuse2fs)?;
    // A cluster's mounts keep nothing in the kernel while there are no leases.
    let target = if alone { BESIDE_FUSE2FS } else { Target::None };
    let ext4 = ext4(change, environment)?;
    Ok(Case {
        name: work.name(),
        unit: change.unit(),
        ours: our_side,
        peers: vec![
            Peer { name: "fuse2fs", side: fuse2fs, target },
            Peer { name: "kernel ext4", side: ext4, target: Target::None },
        ],
        limit: Side::absent(""),
        max_rounds: rounds(change),
        note: change.durability(),
    })
}

/// Ours through the native interface, beside system calls on kernel ext4.
pub(super) fn native(
    work: Work,
    change: Change,
    environment: &Environment,
    ours: &mut Ours,
) -> anyhow::Result<Case> {
    let (scratch, sizes) = (&environment.scratch, environment.sizes);
    let target = match change {
        Change::Create => Target::TimesPeer(2.0),
        Change::Overwrite => Target::TimesPeer(10.0),
        Change::Stream => Target::None,
        _ => Target::TimesPeer(1.0),
    };
    let mut all = vec![Peer { name: "kernel ext4", side: ext4(change, environment)?, target }];
    let mut limit = Side::absent("");
    if change == Change::Stream {
        let side = peers::raw_stream(&scratch.dir("raw")?.join("file"), sizes.stream)?;
        all.insert(0, Peer { name: "io_uring O_DIRECT", side, target: BESIDE_BACKING });
    }
    if change == Change::Overwrite {
        limit = peers::memory_copy(Walk::new(sizes.small / PAGE as u64));
    }
    Ok(Case {
        name: work.name(),
        unit: change.unit(),
        ours: ours.side(work, environment)?,
        peers: all,
        limit,
        max_rounds: rounds(change),
        note: change.durability(),
    })
}

fn rounds(change: Change) -> u32 {
    if matches!(change, Change::Stream | Change::Untar) { FEW_ROUNDS } else { ROUNDS }
}

fn ext4(change: Change, environment: &Environment) -> anyhow::Result<Side> {
    let (scratch, sizes) = (environment.scratch.clone(), environment.sizes);
    let ext4: Mounter = Rc::new(move |image| scratch.mount_ext4(image, &["rw"]));
    changing::side(change, sizes, &environment.scratch, &ext4)
}
