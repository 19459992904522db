use super::*;
use crate::opfuzz::op::How;

const LEN: u64 = 20_000;
const BLOCK: u64 = 4096;

/// A file of contents that are durable, and what is done with its second block.
fn ops(what: Allocate) -> Vec<Op> {
    let how = How { write: true, create: Some(0o644), ..How::default() };
    vec![
        Op::Open { slot: 0, path: "f".into(), how },
        Op::Write { slot: 0, offset: 0, len: LEN, seed: 1 },
        Op::FsyncPath { path: ".".into() },
        Op::Fsync { slot: 0 },
        Op::Allocate { slot: 0, what, offset: BLOCK, len: BLOCK },
    ]
}

/// The last of the first five operations failed or not, the later ones did not.
fn history(ops: &[Op], failed: bool) -> History {
    let failed: Vec<_> = (0..ops.len()).map(|number| failed && number == 4).collect();
    History::of(ops, &failed, Traits::ext4(BLOCK))
}

/// What is wrong when the file after `state` operations is found with other bytes.
fn wrong(history: &History, state: usize, change: impl FnOnce(&mut Vec<u8>)) -> Option<String> {
    let tree = &history.states[state];
    let entry = &tree.nodes["f"];
    let mut bytes = tree.bytes(entry.ino).expect("it is a file").to_vec();
    change(&mut bytes);
    let found = FoundNode { node: entry.node.clone(), bytes };
    history.judge(&Found::from([("f".into(), found)]), history.ops.len())
}

fn zero(at: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at as usize] = 0
}

#[test]
fn a_hole_that_failed_may_be_there_in_part() {
    let history = history(&ops(Allocate::Punch), true);
    assert_eq!(wrong(&history, 5, |_| {}), None);
    assert_eq!(wrong(&history, 5, zero(BLOCK)), None);
    assert!(wrong(&history, 5, zero(BLOCK - 1)).is_some());
    assert!(wrong(&history, 5, zero(2 * BLOCK)).is_some());
    assert!(wrong(&history, 5, |bytes| bytes[BLOCK as usize] ^= 0x80).is_some());
}

#[test]
fn what_is_durable_since_is_there_in_whole() {
    let mut ops = ops(Allocate::Punch);
    ops.push(Op::Write { slot: 0, offset: BLOCK, len: 100, seed: 2 });
    ops.push(Op::Fsync { slot: 0 });
    let history = history(&ops, true);
    assert!(wrong(&history, 7, zero(BLOCK + 50)).is_some());
    assert_eq!(wrong(&history, 7, zero(BLOCK + 100)), None);
}

/// The bytes behind the begin of the range, from where they are without it.
fn shift(bytes: &mut [u8]) {
    bytes.copy_within(2 * BLOCK as usize.., BLOCK as usize);
}

#[test]
fn what_was_to_move_is_at_one_of_two_places() {
    let history = history(&ops(Allocate::Collapse), true);
    assert_eq!(wrong(&history, 5, |bytes| shift(&mut bytes[..])), None);
    assert!(wrong(&history, 5, |bytes| bytes[9000] ^= 0x80).is_some());
    assert!(wrong(&history, 5, zero(BLOCK - 1)).is_some());
}

#[test]
fn what_has_moved_durably_has_one_place() {
    let mut ops = ops(Allocate::Collapse);
    let whole = |bytes: &mut Vec<u8>| *bytes = crate::opfuzz::op::pattern(1, 0, LEN as usize);
    let some = |bytes: &mut Vec<u8>| bytes[BLOCK as usize] = whole_byte(BLOCK);
    assert_eq!(wrong(&history(&ops, false), 5, whole), None);
    assert_eq!(wrong(&history(&ops, false), 5, some), None);
    ops.push(Op::Fsync { slot: 0 });
    assert!(wrong(&history(&ops, false), 6, whole).is_some());
    assert!(wrong(&history(&ops, false), 6, some).is_some());
}

fn whole_byte(at: u64) -> u8 {
    crate::opfuzz::op::pattern(1, at, 1)[0]
}
