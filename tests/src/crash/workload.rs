//! Workloads as ACE makes them (Mohan and others, "Finding Crash-Consistency Bugs with Bounded
//! Black-Box Crash Testing", OSDI 2018): every combination of a few operations on a few names, each
//! followed by something that makes it durable, or not.

use crate::opfuzz::op::{Allocate, How, Op};

/// What is there before a workload begins, durably.
#[must_use]
pub fn setup() -> Vec<Op> {
    let mut ops = vec![
        Op::Mkdir { path: "A".into(), mode: 0o755 },
        Op::Mkdir { path: "B".into(), mode: 0o755 },
        Op::Mkdir { path: "A/C".into(), mode: 0o700 },
    ];
    for (seed, path) in [(1, "foo"), (2, "A/foo"), (3, "B/bar")] {
        ops.extend(write(path, 0, 9000, seed, false));
    }
    ops.push(Op::Sync);
    ops
}

/// A write by a descriptor of its own. `create` makes the file, which is empty then.
fn write(path: &str, offset: u64, len: u64, seed: u8, truncate: bool) -> Vec<Op> {
    let how = How { write: true, create: Some(0o644), truncate, ..How::default() };
    vec![
        Op::Open { slot: 0, path: path.into(), how },
        Op::Write { slot: 0, offset, len, seed },
        Op::Close { slot: 0 },
    ]
}

fn allocate(path: &str, what: Allocate, offset: u64, len: u64) -> Vec<Op> {
    let how = How { write: true, create: Some(0o644), ..How::default() };
    vec![
        Op::Open { slot: 0, path: path.into(), how },
        Op::Allocate { slot: 0, what, offset, len },
        Op::Close { slot: 0 },
    ]
}

fn rename(from: &str, to: &str) -> (Vec<Op>, &'static str, &'static str) {
    let parent = |path: &str| if path.starts_with('B') { "B" } else { "A" };
    let op = Op::Rename { from: from.into(), to: to.into(), noreplace: false, exchange: false };
    let target = match to {
        "A/foo" => "A/foo",
        "B/bar" => "B/bar",
        "B/new" => "B/new",
        "B/C" => "B/C",
        _ => "A/new",
    };
    (vec![op], target, parent(to))
}

/// The operations, each with the object that it changes and the directory that names it. `number`
/// tells the contents of several writes apart.
fn cores(number: u8) -> Vec<(Vec<Op>, &'static str, &'static str)> {
    let seed = 10 + number * 7;
    let path = |path: &str| path.to_owned();
    vec![
        (write("A/new", 0, 5000, seed, false), "A/new", "A"),
        (write("A/foo", 9000, 4000, seed, false), "A/foo", "A"),
        (write("A/foo", 2000, 3000, seed, false), "A/foo", "A"),
        (write("A/foo", 40_000, 3000, seed, false), "A/foo", "A"),
        // Replace by truncation.
        (write("A/foo", 0, 6000, seed, true), "A/foo", "A"),
        // Replace by renaming, without a sync in between.
        ([write("A/tmp", 0, 7000, seed, true), rename("A/tmp", "A/foo").0].concat(), "A/foo", "A"),
        rename("A/foo", "B/bar"),
        rename("A/foo", "A/new"),
        rename("A/foo", "B/new"),
        rename("A/C", "B/C"),
        (
            vec![Op::Rename {
                from: path("A/foo"),
                to: path("B/bar"),
                noreplace: false,
                exchange: true,
            }],
            "B/bar",
            "B",
        ),
        (vec![Op::Link { from: path("A/foo"), to: path("B/new") }], "B/new", "B"),
        (vec![Op::Unlink { path: path("A/foo") }], "A", "A"),
        (vec![Op::Unlink { path: path("B/bar") }], "B", "B"),
        (vec![Op::Symlink { target: path("foo"), path: path("A/new") }], "A", "A"),
        (vec![Op::Mkdir { path: path("A/new"), mode: 0o755 }], "A/new", "A"),
        (vec![Op::Rmdir { path: path("A/C") }], "A", "A"),
        (vec![Op::Mknod { path: path("A/new"), mode: 0o010_644, device: (0, 0) }], "A", "A"),
        (vec![Op::Truncate { path: path("A/foo"), size: 3000 }], "A/foo", "A"),
        (vec![Op::Truncate { path: path("A/foo"), size: 30_000 }], "A/foo", "A"),
        (allocate("A/foo", Allocate::Grow, 8000, 9000), "A/foo", "A"),
        (allocate("A/foo", Allocate::KeepSize, 9000, 20_000), "A/foo", "A"),
        (allocate("A/foo", Allocate::Punch, 1000, 6000), "A/foo", "A"),
        (allocate("A/foo", Allocate::Zero, 3000, 9000), "A/foo", "A"),
        (
            vec![Op::SetXattr {
                path: path("A/foo"),
                name: "user.one".into(),
                len: 50 + usize::from(number),
                seed,
                flags: 0,
            }],
            "A/foo",
            "A",
        ),
        (vec![Op::Chmod { path: path("A/foo"), mode: 0o600 + u16::from(number) }], "A/foo", "A"),
    ]
}

/// What may follow an operation.
const SYNCS: u64 = 4;

/// How many workloads of so many operations there are.
#[must_use]
pub fn count(length: u32) -> u64 {
    (cores(0).len() as u64 * SYNCS).pow(length)
}

/// Workload number `index` of so many operations. The last operation is always made durable.
#[must_use]
pub fn workload(length: u32, index: u64) -> Vec<Op> {
    let mut ops = setup();
    let mut rest = index;
    for number in 0..length {
        let all = cores(number as u8);
        let (core, object, parent) = all[(rest % all.len() as u64) as usize].clone();
        rest /= all.len() as u64;
        let mut sync = rest % SYNCS;
        rest /= SYNCS;
        ops.extend(core);
        if sync == 0 && number + 1 == length {
            sync = 1;
        }
        match sync {
            1 => ops.push(Op::FsyncPath { path: object.to_owned() }),
            2 => ops.push(Op::FsyncPath { path: parent.to_owned() }),
            3 => ops.push(Op::Sync),
            _ => {}
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opfuzz::Subject;
    use crate::opfuzz::model::{Model, Traits};
    use crate::opfuzz::op::Outcome;

    #[test]
    fn workloads_are_counted_and_most_of_what_they_do_succeeds() {
        assert_eq!(count(1), 104);
        let (mut done, mut all) = (0, 0);
        for index in 0..count(2) {
            let mut model = Model::new(Traits::ext4(1024));
            for op in workload(2, index) {
                all += 1;
                done += u32::from(!matches!(model.apply(&op), Outcome::Error(_)));
            }
        }
        assert!(done * 100 > all * 93, "{done} of {all}");
        assert_ne!(workload(3, 5), workload(3, 6));
    }
}
