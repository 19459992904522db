//! What a filesystem promises of what is there after a crash.
//!
//! Operations on names and attributes are atomic and keep their order: what is there is what was
//! there between two operations. It is not older than what was made durable. Contents that were
//! made durable are there, as far as they were not changed again; what else is in a file was once
//! written there, or is zero. Where contents go through the journal, they too are as they were
//! between two operations.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::opfuzz::Subject;
use crate::opfuzz::model::{Model, Traits, Tree, TreeNode};
use crate::opfuzz::op::{Allocate, Op, Outcome};

/// A workload and the states that it goes through.
pub struct History {
    ops: Vec<Op>,
    /// State `n` is what is there after `n` operations.
    states: Vec<Tree>,
    /// For each state: the oldest that operation `n` leaves possible once it has completed.
    oldest: Vec<usize>,
    /// Inodes whose contents were durable after so many operations: once that many have completed.
    synced: Vec<(usize, u32)>,
    /// Inodes whose contents after so many operations are there when the first number of operations
    /// is seen to have been done.
    ordered: Vec<(usize, usize, u32)>,
    /// Contents keep the order of all else.
    strict: bool,
    /// Ranges that were to become zeros and may have, though that failed.
    cleared: Vec<Part>,
    /// Ranges that were taken out or put in. Until that is durable the blocks behind them, which
    /// are written where they are, are found at either place; after a failure for good.
    moved: Vec<Part>,
}

/// A range of an inode with which an operation was to do something.
struct Part {
    /// The operation.
    step: usize,
    failed: bool,
    ino: u32,
    range: Range<u64>,
}

/// What was found on a disk: by path.
pub type Found = BTreeMap<String, FoundNode>;

/// An object that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundNode {
    /// What must be as it was in one state.
    pub node: TreeNode,
    /// A file's bytes.
    pub bytes: Vec<u8>,
}

/// Whose contents a sync has said to be lost in part.
#[derive(Default)]
struct Told {
    all: bool,
    inodes: Vec<u32>,
}

impl Told {
    fn note(&mut self, op: &Op, model: &Model) {
        match op {
            Op::FsyncPath { path } => self.inodes.extend(model.inode(path)),
            Op::Fsync { slot } => self.inodes.extend(model.open_inode(*slot)),
            Op::Sync | Op::Remount => self.all = true,
            _ => {}
        }
    }

    /// Whether nothing has been said of an inode.
    fn of(&self, ino: u32) -> bool {
        !self.all && !self.inodes.contains(&ino)
    }
}

/// The range that an operation would take out or put in.
fn moved(step: usize, op: &Op, model: &Model) -> Option<Part> {
    use Allocate::{Collapse, Insert};
    part(step, op, model, |what| matches!(what, Collapse | Insert))
}

/// The bytes that an operation would make zeros, by blocks and one after the other.
fn cleared(step: usize, op: &Op, model: &Model) -> Option<Part> {
    use Allocate::{Punch, Zero, ZeroKeepSize};
    part(step, op, model, |what| matches!(what, Punch | Zero | ZeroKeepSize))
}

fn part(step: usize, op: &Op, model: &Model, is: impl Fn(Allocate) -> bool) -> Option<Part> {
    match op {
        Op::Allocate { slot, what, offset, len } if is(*what) => Some(Part {
            step,
            failed: false,
            ino: model.open_inode(*slot)?,
            range: *offset..offset.saturating_add(*len),
        }),
        _ => None,
    }
}

impl History {
    /// Runs a workload in a model.
    #[must_use]
    pub fn new(ops: &[Op], traits: Traits) -> Self {
        Self::of(ops, &vec![false; ops.len()], traits)
    }

    /// The same where some operations failed, for the device's sake: nothing of them is there, and
    /// nobody relies any more on contents of which a sync has said that they are lost.
    #[must_use]
    pub fn of(ops: &[Op], failed: &[bool], traits: Traits) -> Self {
        let mut model = Model::new(traits);
        let mut history = Self {
            ops: ops.to_vec(),
            states: vec![model.tree()],
            oldest: vec![0],
            synced: Vec::new(),
            ordered: Vec::new(),
            strict: false,
            cleared: Vec::new(),
            moved: Vec::new(),
        };
        let (mut truncated, mut told) = (None, Told::default());
        for (number, (op, failed)) in ops.iter().zip(failed).enumerate() {
            let before = history.oldest.last().copied().unwrap_or(0);
            let moved = moved(number, op, &model);
            history.moved.extend(moved.map(|part| Part { failed: *failed, ..part }));
            let oldest = if *failed {
                told.note(op, &model);
                history.cleared.extend(cleared(number, op, &model));
                model.fail(op);
                before
            } else {
                history.step(&mut model, (number + 1, op), &mut truncated, &told).max(before)
            };
            history.oldest.push(oldest);
            history.states.push(model.tree());
        }
        history
    }

    /// The same where contents go through the journal: they change in the order of all else.
    #[must_use]
    pub fn strict(self) -> Self {
        Self { strict: true, ..self }
    }

    /// Does one operation in the model and notes what it promises; returns the oldest state that it
    /// leaves possible.
    fn step(
        &mut self,
        model: &mut Model,
        (after, op): (usize, &Op),
        truncated: &mut Option<u32>,
        told: &Told,
    ) -> usize {
        let replaced = match op {
            Op::Rename { from, to, .. } => model.inode(to).filter(|_| model.inode(from).is_some()),
            _ => None,
        };
        let was_open = model.open_inodes();
        let target = match op {
            Op::Fsync { slot } => model.open_inode(*slot),
            _ => None,
        };
        if matches!(model.apply(op), Outcome::Error(_)) {
            return 0;
        }
        let target = match op {
            Op::FsyncPath { path } => model.inode(path),
            _ => target,
        };
        match op {
            Op::FsyncPath { .. } | Op::Fsync { .. } => {
                let Some(ino) = target else { return 0 };
                self.synced.extend(told.of(ino).then_some((after, ino)));
                return model.last_change(ino);
            }
            Op::Sync => {
                let files = model.tree();
                let files = files.nodes.values().map(|entry| entry.ino);
                self.synced.extend(files.filter(|ino| told.of(*ino)).map(|ino| (after, ino)));
                return after;
            }
            // A clean stop.
            Op::Remount => return after,
            // Replace by renaming. ext4 waits for what is to be allocated: for a file that was
            // durable before, what is written over is not waited for.
            Op::Rename { to, exchange: false, .. } if replaced.is_some() => {
                let new = model.inode(to).filter(|ino| !self.was_synced(*ino));
                self.ordered.extend(new.map(|ino| (after, after, ino)));
            }
            // Replace by truncation: the contents follow when the file is closed.
            Op::Open { path, how, .. } if how.truncate => *truncated = model.inode(path),
            Op::Close { .. } => {
                if let Some(ino) = truncated.take_if(|ino| was_open.contains(ino)) {
                    self.ordered.push((after + 1, after, ino));
                }
            }
            _ => {}
        }
        0
    }

    /// Without the promises of replacements, which are kept by who can write contents.
    #[must_use]
    pub fn without_replacements(self) -> Self {
        Self { ordered: Vec::new(), ..self }
    }

    /// What is wrong with what was found after a clean stop of which nobody heard an error.
    #[must_use]
    pub fn judge_all(&self, found: &Found) -> Option<String> {
        let last = self.ops.len();
        let state = &self.states[last];
        let same = self.is_state(found, last, last, last);
        let lost = state.nodes.iter().find(|(path, entry)| {
            let bytes = state.bytes(entry.ino);
            entry.is_file && found.get(*path).map(|found| &found.bytes[..]) != bytes
        });
        let lost = || lost.map(|(path, _)| format!("{path} does not hold what was written last"));
        same.err().or_else(lost)
    }

    fn was_synced(&self, ino: u32) -> bool {
        self.synced.iter().any(|at| at.1 == ino)
    }

    /// The operations.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// What is wrong with what was found after a crash, when `completed` operations had completed
    /// and one more may have been under way; `None` if nothing is.
    #[must_use]
    pub fn judge(&self, found: &Found, completed: usize) -> Option<String> {
        let last = (completed + 1).min(self.ops.len());
        let first = self.oldest[completed];
        let mut why = String::new();
        for state in (first..=last).rev() {
            match self.is_state(found, state, completed, last) {
                Ok(()) => return None,
                // Of all that it is not, what it was to be last says most.
                Err(difference) if why.is_empty() => {
                    why = format!("after {state} operations: {difference}");
                }
                Err(_) => {}
            }
        }
        let done = completed.checked_sub(1).map(|last| &self.ops[last]);
        let done = done.map_or_else(|| "nothing".to_owned(), ToString::to_string);
        Some(format!(
            "{completed} operations had completed, the last was {done}; what is there is no state \
             from {first} to {last}. {why}"
        ))
    }

    /// Whether what was found is the state after `state` operations.
    fn is_state(
        &self,
        found: &Found,
        state: usize,
        completed: usize,
        last: usize,
    ) -> Result<(), String> {
        let tree = &self.states[state];
        for path in tree.nodes.keys().chain(found.keys()) {
            match (tree.nodes.get(path), found.get(path)) {
                (Some(_), None) => return Err(format!("{path} is missing")),
                (None, Some(_)) => return Err(format!("{path} is there")),
                (Some(expected), Some(found)) if expected.node != found.node => {
                    return Err(format!("{path} is {:?}, not {:?}", found.node, expected.node));
                }
                _ => {}
            }
        }
        for (path, expected) in tree.nodes.iter().filter(|entry| entry.1.is_file) {
            let synced = self.synced.iter().filter(|at| at.0 <= completed && at.1 == expected.ino);
            let ordered = self.ordered.iter().filter(|at| at.0 <= state && at.2 == expected.ino);
            let ordered = ordered.map(|at| at.1);
            let floor = synced.map(|at| at.0).chain(ordered).max();
            let contents = &found[path].bytes;
            // One operation may be there in part.
            let (floor, last) =
                if self.strict { (Some(state), last.min(state + 1)) } else { (floor, last) };
            self.contents(expected.ino, contents, floor, last).map_err(|why| {
                format!("{path}: {why} (contents are of step {floor:?} or later)")
            })?;
        }
        Ok(())
    }

    /// Whether a file's contents are made of what it held from state `floor` on.
    fn contents(
        &self,
        ino: u32,
        found: &[u8],
        floor: Option<usize>,
        last: usize,
    ) -> Result<(), String> {
        let states = &self.states[floor.unwrap_or(0)..=last];
        let held: Vec<&[u8]> = states.iter().filter_map(|state| state.bytes(ino)).collect();
        let len = found.len();
        let most = held.iter().map(|bytes| bytes.len()).max().unwrap_or(0);
        let least = match floor {
            Some(_) => held.iter().map(|bytes| bytes.len()).min().unwrap_or(0),
            None => 0,
        };
        let torn = Self::parts(&self.moved, ino).filter(|part| part.failed);
        let moved: usize = torn.map(Part::len).sum();
        if len + moved < least || len > most + moved {
            return Err(format!("{len} bytes, not {least} to {most}"));
        }
        for (at, byte) in found.iter().enumerate() {
            let was =
                |at: usize| held.iter().any(|bytes| bytes.get(at).copied().unwrap_or(0) == *byte);
            // What was not made durable may never have been written.
            let unwritten = floor.is_none() && *byte == 0;
            let half_done = || {
                (*byte == 0 && self.may_be_zero(ino, at, floor))
                    || self.moved(ino, floor).any(|part| part.places(at).any(was))
            };
            if !(was(at) || unwritten || half_done()) {
                return Err(format!("byte {at} of {len} is {byte:#x}, which it never was"));
            }
        }
        Ok(())
    }

    fn parts<'a>(parts: &'a [Part], ino: u32) -> impl Iterator<Item = &'a Part> + use<'a> {
        parts.iter().filter(move |part| part.ino == ino)
    }

    /// What was moved since the state from which on contents are durable, or failed to be.
    fn moved(&self, ino: u32, floor: Option<usize>) -> impl Iterator<Item = &Part> {
        let later = move |part: &&Part| floor.is_none_or(|floor| part.step >= floor);
        let strict = self.strict;
        Self::parts(&self.moved, ino).filter(move |part| part.failed || (!strict && later(part)))
    }

    /// Whether a byte may have become zero by an operation that failed, and was not written between
    /// that and the state from which on it is durable.
    fn may_be_zero(&self, ino: u32, at: usize, floor: Option<usize>) -> bool {
        let byte = |state: usize| self.states[state].bytes(ino).and_then(|bytes| bytes.get(at));
        let torn = Self::parts(&self.moved, ino).filter(|part| part.failed);
        Self::parts(&self.cleared, ino).chain(torn).any(|part| {
            let since = floor.filter(|floor| *floor > part.step);
            part.range.contains(&(at as u64))
                && since.is_none_or(|floor| byte(floor) == byte(part.step))
        })
    }
}

impl Part {
    fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// Where a byte may have come from that lies behind the range's begin.
    fn places(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        let len = self.len();
        let behind = at as u64 >= self.range.start;
        [Some(at + len), at.checked_sub(len)].into_iter().flatten().filter(move |_| behind)
    }
}

#[cfg(test)]
mod tests;
