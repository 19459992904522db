//! What a filesystem promises of what is there after a crash.
//!
//! Operations on names and attributes are atomic and keep their order: what is there is what was
//! there between two operations. It is not older than what was made durable. Contents that were
//! made durable are there, as far as they were not changed again; what else is in a file was once
//! written there, or is zero. Where contents go through the journal, they too are as they were
//! between two operations.

use std::collections::BTreeMap;

use crate::opfuzz::Subject;
use crate::opfuzz::model::{Model, Traits, Tree, TreeNode};
use crate::opfuzz::op::{Op, Outcome};

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

impl History {
    /// Runs a workload in a model.
    #[must_use]
    pub fn new(ops: &[Op], traits: Traits) -> Self {
        let mut model = Model::new(traits);
        let mut history = Self {
            ops: ops.to_vec(),
            states: vec![model.tree()],
            oldest: vec![0],
            synced: Vec::new(),
            ordered: Vec::new(),
            strict: false,
        };
        let mut truncated = None;
        for (number, op) in ops.iter().enumerate() {
            let after = number + 1;
            let replaced = match op {
                Op::Rename { from, to, .. } => {
                    model.inode(to).filter(|_| model.inode(from).is_some())
                }
                _ => None,
            };
            let was_open = model.open_inodes();
            let done = !matches!(model.apply(op), Outcome::Error(_));
            let mut oldest = *history.oldest.last().unwrap_or(&0);
            match op {
                Op::FsyncPath { path } if done => {
                    if let Some(ino) = model.inode(path) {
                        oldest = oldest.max(model.last_change(ino));
                        history.synced.push((after, ino));
                    }
                }
                Op::Sync if done => {
                    oldest = after;
                    let files = model.tree();
                    let files = files.nodes.values().map(|entry| (after, entry.ino));
                    history.synced.extend(files);
                }
                // Replace by renaming. ext4 waits for what is to be allocated: for a file that was
                // durable before, what is written over is not waited for.
                Op::Rename { to, exchange: false, .. } if done && replaced.is_some() => {
                    let new = model.inode(to).filter(|ino| !history.was_synced(*ino));
                    history.ordered.extend(new.map(|ino| (after, after, ino)));
                }
                // Replace by truncation: the contents follow when the file is closed.
                Op::Open { path, how, .. } if done && how.truncate => {
                    truncated = model.inode(path);
                }
                Op::Close { .. } if done => {
                    if let Some(ino) = truncated.take_if(|ino| was_open.contains(ino)) {
                        history.ordered.push((after + 1, after, ino));
                    }
                }
                _ => {}
            }
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
        if len < least || len > most {
            return Err(format!("{len} bytes, not {least} to {most}"));
        }
        for (at, byte) in found.iter().enumerate() {
            let once = held.iter().any(|bytes| bytes.get(at).copied().unwrap_or(0) == *byte);
            // What was not made durable may never have been written.
            let unwritten = floor.is_none() && *byte == 0;
            if !(once || unwritten) {
                return Err(format!("byte {at} of {len} is {byte:#x}, which it never was"));
            }
        }
        Ok(())
    }
}
