//! A workload that has a device read, written and flushed for every reason that there is.

use crate::crash::workload::setup;
use crate::opfuzz::op::{Acl, Allocate, How, Op};

fn path(path: &str) -> String {
    path.to_owned()
}

fn open(slot: usize, name: &str) -> Op {
    let how = How { write: true, create: Some(0o644), ..How::default() };
    Op::Open { slot, path: path(name), how }
}

fn xattr(name: &str, key: &str, len: usize) -> Op {
    Op::SetXattr { path: path(name), name: path(key), len, seed: 9, flags: 0 }
}

/// Operations on names, contents and attributes, made durable in every way, with what is there read
/// again from the disk in between.
#[must_use]
pub fn everything() -> Vec<Op> {
    let mut ops = setup();
    ops.extend([
        open(0, "A/large"),
        Op::Write { slot: 0, offset: 0, len: 70_000, seed: 20 },
        Op::Fsync { slot: 0 },
        Op::Write { slot: 0, offset: 30_000, len: 5000, seed: 21 },
        Op::Write { slot: 0, offset: 200_000, len: 3000, seed: 22 },
        Op::Fsync { slot: 0 },
        Op::Allocate { slot: 0, what: Allocate::Punch, offset: 8192, len: 16_384 },
        Op::Allocate { slot: 0, what: Allocate::Collapse, offset: 4096, len: 4096 },
        Op::Allocate { slot: 0, what: Allocate::Zero, offset: 40_000, len: 9000 },
        Op::Allocate { slot: 0, what: Allocate::KeepSize, offset: 300_000, len: 50_000 },
        Op::Fsync { slot: 0 },
    ]);
    // A directory of several blocks, and its hash tree.
    ops.push(Op::Mkdir { path: path("D"), mode: 0o755 });
    for number in 0..40 {
        let name = format!("D/{number}{}", "n".repeat(80));
        ops.push(Op::Mknod { path: name, mode: 0o100_600, device: (0, 0) });
    }
    ops.push(Op::FsyncPath { path: path("D") });
    ops.extend([
        xattr("foo", "user.small", 20),
        xattr("foo", "user.large", 600),
        xattr("A/foo", "user.large", 600),
        Op::SetAcl { path: path("B"), acl: Acl::Default, which: 1 },
        Op::Symlink { target: "x".repeat(200), path: path("B/long") },
        Op::FsyncPath { path: path("foo") },
        Op::Remount,
        Op::List { path: path("D") },
        Op::GetXattr { path: path("foo"), name: path("user.large") },
        Op::Readlink { path: path("B/long") },
        open(1, "A/large"),
        Op::Read { slot: 1, offset: 0, len: 100_000 },
        Op::Write { slot: 1, offset: 1000, len: 100, seed: 23 },
        Op::Fsync { slot: 1 },
    ]);
    ops.extend([
        // Replaced, moved, linked and removed.
        open(2, "A/tmp"),
        Op::Write { slot: 2, offset: 0, len: 7000, seed: 24 },
        Op::Close { slot: 2 },
        Op::Rename { from: path("A/tmp"), to: path("foo"), noreplace: false, exchange: false },
        Op::Rename { from: path("A/C"), to: path("D/C"), noreplace: false, exchange: false },
        Op::Link { from: path("A/foo"), to: path("D/link") },
        Op::Sync,
        Op::Unlink { path: path("B/bar") },
        // Gone while it is open.
        Op::Unlink { path: path("A/large") },
        Op::Write { slot: 1, offset: 500_000, len: 2000, seed: 25 },
        Op::Read { slot: 1, offset: 490_000, len: 9000 },
        Op::Close { slot: 1 },
        Op::RemoveXattr { path: path("A/foo"), name: path("user.large") },
        Op::Truncate { path: path("foo"), size: 2500 },
        Op::Rmdir { path: path("D/C") },
        Op::Chmod { path: path("A/foo"), mode: 0o600 },
        Op::FsyncPath { path: path("A/foo") },
        open(3, "new"),
        Op::Write { slot: 3, offset: 10_000, len: 30_000, seed: 26 },
        Op::FsyncPath { path: path("foo") },
        Op::Sync,
        Op::Stat { path: path("foo") },
        Op::List { path: path("A") },
    ]);
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opfuzz::Subject;
    use crate::opfuzz::model::{Model, Traits};
    use crate::opfuzz::op::Outcome;

    #[test]
    fn all_of_it_can_be_done() {
        let mut model = Model::new(Traits::ext4(1024));
        for op in everything() {
            let outcome = model.apply(&op);
            assert!(!matches!(outcome, Outcome::Error(_)), "{op}: {outcome:?}");
        }
    }
}
