//! A filesystem in memory, as simple as can be: what root is answered by Linux and ext4.

mod acl;
mod attributes;
mod contents;
mod files;
mod names;
mod tree;

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

use super::op::{APPEND, IMMUTABLE, Op, Outcome, SLOTS, Shown, Stat};
use super::{Contents, Subject};
pub use tree::{Tree, TreeEntry, TreeNode};

use acl::List;
use contents::Blocks;

pub(super) type Result<T> = std::result::Result<T, Errno>;

/// What a volume is like, as far as answers depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Bytes of a block.
    pub block: u64,
    /// Files have extents: ranges can be taken out and in, and allocated without being written.
    pub extents: bool,
    /// Bytes of the largest file.
    pub largest: u64,
}

impl Traits {
    /// ext4 with extents, in blocks of so many bytes.
    pub const fn ext4(block: u64) -> Self {
        Self { block, extents: true, largest: u32::MAX as u64 * block }
    }

    /// Files whose maps are trees of pointers, as ext2 and ext3 have them. (Those of 4 KiB blocks
    /// end earlier, for the count of their sectors: no operation comes there.)
    pub const fn pointers(block: u64) -> Self {
        let per_block = block / 4;
        let blocks = 12 + per_block + per_block.pow(2) + per_block.pow(3);
        Self { block, extents: false, largest: blocks * block }
    }
}

/// A time that an inode has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Time {
    /// It was set.
    Set(i64, u32),
    /// Of that step.
    Step(u64),
    /// What implementations need not agree on.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    File(Blocks),
    Dir(BTreeMap<String, u32>),
    Link(String),
    /// Type, major and minor number.
    Special(u32, (u32, u32)),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Permissions with set-id bits.
    pub(super) mode: u16,
    pub(super) owner: (u32, u32),
    pub(super) links: u32,
    pub(super) times: [Time; 2],
    pub(super) ctime: Time,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    pub(super) acl: Option<List>,
    pub(super) default_acl: Option<List>,
    pub(super) flags: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFile {
    pub(super) ino: u32,
    pub(super) write: bool,
    pub(super) append: bool,
    pub(super) direct: bool,
}

/// A filesystem in memory.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) traits: Traits,
    pub(super) nodes: HashMap<u32, Node>,
    last: u32,
    pub(super) slots: [Option<OpenFile>; SLOTS],
    /// The operation that is being done.
    step: u64,
    /// Inode and times by path, as last looked at.
    seen: HashMap<String, (u32, [Time; 2])>,
}

pub(super) const ROOT: u32 = 1;
const NAME_MAX: usize = 255;
const MAX_FOLLOWED: u32 = 40;

/// Where a path leads: its last name in a directory, and what that is.
pub(super) struct Found {
    pub(super) dir: u32,
    pub(super) name: String,
    pub(super) ino: Option<u32>,
}

impl Model {
    /// An empty directory of root's, mode 755.
    pub fn new(traits: Traits) -> Self {
        let mut model = Self {
            traits,
            nodes: HashMap::new(),
            last: ROOT,
            slots: [None; SLOTS],
            step: 0,
            seen: HashMap::new(),
        };
        let mut root = model.node(Kind::Dir(BTreeMap::new()), 0o755);
        root.links = 2;
        model.nodes.insert(ROOT, root);
        model
    }

    /// An operation was tried and failed for reasons that no model knows: nothing of it was done,
    /// but what it closes first is closed.
    pub fn fail(&mut self, op: &Op) {
        self.step += 1;
        match op {
            Op::Open { slot, .. } | Op::Close { slot } => {
                if let Some(file) = self.slots[*slot].take() {
                    self.drop_unused(file.ino);
                }
            }
            Op::Remount => self.close_all(),
            _ => {}
        }
    }

    pub(super) fn now(&self) -> Time {
        Time::Step(self.step)
    }

    fn node(&self, kind: Kind, mode: u16) -> Node {
        Node {
            kind,
            mode,
            owner: (0, 0),
            links: 1,
            times: [self.now(); 2],
            ctime: self.now(),
            xattrs: BTreeMap::new(),
            acl: None,
            default_acl: None,
            flags: 0,
        }
    }

    pub(super) fn add(&mut self, node: Node) -> u32 {
        self.last += 1;
        self.nodes.insert(self.last, node);
        self.last
    }

    /// An inode that something leads to.
    pub(super) fn at(&self, ino: u32) -> &Node {
        &self.nodes[&ino]
    }

    pub(super) fn at_mut(&mut self, ino: u32) -> &mut Node {
        self.nodes.get_mut(&ino).expect("names and slots lead to inodes")
    }

    pub(super) fn entries(&self, ino: u32) -> Result<&BTreeMap<String, u32>> {
        match &self.at(ino).kind {
            Kind::Dir(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Where a path leads; a link at its end is followed with `follow`.
    pub(super) fn find(&self, path: &str, follow: bool) -> Result<Found> {
        let mut followed = 0;
        self.walk(ROOT, path, follow, &mut followed)
    }

    fn walk(&self, from: u32, path: &str, follow: bool, followed: &mut u32) -> Result<Found> {
        let mut dir = from;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let entries = self.entries(dir)?;
            if part.len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            let ino = entries.get(part).copied();
            let target = ino.and_then(|ino| match &self.at(ino).kind {
                Kind::Link(target) => Some(target.as_str()),
                _ => None,
            });
            let mut found = Found { dir, name: part.to_owned(), ino };
            if let Some(target) = target
                && (!last || follow)
            {
                *followed += 1;
                if *followed > MAX_FOLLOWED {
                    return Err(Errno::LOOP);
                }
                // Targets are relative to the link's directory.
                found = self.walk(dir, target, true, followed)?;
            }
            if last {
                return Ok(found);
            }
            dir = found.ino.ok_or(Errno::NOENT)?;
        }
        Err(Errno::NOENT)
    }

    /// The inode that a path leads to.
    pub(super) fn lookup(&self, path: &str, follow: bool) -> Result<u32> {
        if path == "." {
            return Ok(ROOT);
        }
        self.find(path, follow)?.ino.ok_or(Errno::NOENT)
    }

    /// Whether an inode may be written to, as permissions have it for root.
    pub(super) fn may_write(&self, ino: u32) -> Result<()> {
        if self.at(ino).flags & IMMUTABLE != 0 { Err(Errno::PERM) } else { Ok(()) }
    }

    /// Whether what is not contents may be changed.
    pub(super) fn may_set(&self, ino: u32) -> Result<()> {
        let fixed = self.at(ino).flags & (IMMUTABLE | APPEND) != 0;
        if fixed { Err(Errno::PERM) } else { Ok(()) }
    }

    pub(super) fn changed(&mut self, ino: u32) {
        let now = self.now();
        self.at_mut(ino).ctime = now;
    }

    /// Contents changed: of a file, or of a directory.
    pub(super) fn modified(&mut self, ino: u32) {
        let now = self.now();
        let node = self.at_mut(ino);
        (node.times[1], node.ctime) = (now, now);
    }

    /// Takes one name from an inode. It is kept while it is open.
    pub(super) fn unlinked(&mut self, ino: u32) {
        self.changed(ino);
        let node = self.at_mut(ino);
        node.links = match node.kind {
            Kind::Dir(_) => 0,
            _ => node.links - 1,
        };
        self.drop_unused(ino);
    }

    pub(super) fn drop_unused(&mut self, ino: u32) {
        let open = self.slots.iter().flatten().any(|file| file.ino == ino);
        if !open && self.at(ino).links == 0 {
            self.nodes.remove(&ino);
        }
    }

    fn stat(&mut self, path: &str, ino: u32) -> Outcome {
        let node = self.at(ino);
        let (kind, device, size) = match &node.kind {
            Kind::File(blocks) => (0o100_000, (0, 0), Some(blocks.size)),
            Kind::Dir(_) => (0o040_000, (0, 0), None),
            Kind::Link(target) => (0o120_000, (0, 0), Some(target.len() as u64)),
            Kind::Special(kind, device) => (*kind, *device, None),
        };
        let shown = |time: Time| match time {
            Time::Set(seconds, nanoseconds) => Shown::At(seconds, nanoseconds),
            Time::Step(_) => Shown::Recent,
            Time::Unknown => Shown::Any,
        };
        let now = [node.times[1], node.ctime];
        let before = self.seen.get(path).copied();
        let changed = |index: usize| {
            let (same, before): (u32, [Time; 2]) = before?;
            let known =
                same == ino && before[index] != Time::Unknown && now[index] != Time::Unknown;
            known.then(|| before[index] != now[index])
        };
        let stat = Stat {
            mode: kind | u32::from(node.mode),
            links: node.links,
            owner: node.owner,
            size,
            device,
            times: [shown(node.times[0]), shown(node.times[1])],
            changed: [changed(0), changed(1)],
        };
        self.seen.insert(path.to_owned(), (ino, now));
        Outcome::Stat(Box::new(stat))
    }

    fn execute(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Stat { path } => {
                let ino = self.lookup(path, false)?;
                Ok(self.stat(path, ino))
            }
            Op::StatOpen { slot } => {
                let ino = self.slot(*slot)?.ino;
                let unnamed = format!("slot {slot}");
                self.seen.remove(&unnamed);
                Ok(self.stat(&unnamed, ino))
            }
            Op::Open { .. }
            | Op::Close { .. }
            | Op::Write { .. }
            | Op::Read { .. }
            | Op::Allocate { .. }
            | Op::Copy { .. }
            | Op::Seek { .. }
            | Op::Truncate { .. }
            | Op::TruncateOpen { .. }
            | Op::Fsync { .. } => self.file(op),
            Op::FsyncPath { path } => self.flagged(path).map(|_| Outcome::Done),
            Op::Sync => Ok(Outcome::Done),
            Op::Remount => {
                self.close_all();
                Ok(Outcome::Done)
            }
            Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::Utimens { .. }
            | Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::ListXattr { .. }
            | Op::SetAcl { .. }
            | Op::SetFlags { .. }
            | Op::GetFlags { .. } => self.attributes(op),
            _ => self.names(op),
        }
    }

    /// All paths, with whether each is a directory.
    pub fn paths(&self) -> Vec<(String, bool)> {
        let mut found = Vec::new();
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = pending.pop() {
            let Ok(entries) = self.entries(ino) else { continue };
            for (name, ino) in entries {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                let is_dir = matches!(self.at(*ino).kind, Kind::Dir(_));
                found.push((path.clone(), is_dir));
                if is_dir {
                    pending.push((path, *ino));
                }
            }
        }
        found.sort();
        found
    }

    /// Whether the file in a slot was opened with O_DIRECT.
    pub fn is_direct(&self, slot: usize) -> bool {
        self.slots[slot].is_some_and(|file| file.direct)
    }

    /// The slots that have an open file, with its size.
    pub fn open_slots(&self) -> Vec<(usize, u64)> {
        let size = |ino: u32| match &self.at(ino).kind {
            Kind::File(blocks) => blocks.size,
            _ => 0,
        };
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, file)| Some((slot, size((*file)?.ino)))).collect()
    }
}

impl Subject for Model {
    fn name(&self) -> &str {
        "model"
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        self.step += 1;
        match self.execute(op) {
            Ok(outcome) => outcome,
            Err(errno) => Outcome::Error(errno.raw_os_error()),
        }
    }

    fn contents(&mut self, path: &str) -> anyhow::Result<Contents> {
        let ino = self.lookup(path, false)?;
        match &self.at(ino).kind {
            Kind::File(blocks) => Ok(blocks.contents()),
            _ => anyhow::bail!("{path}: no file"),
        }
    }

    fn close_all(&mut self) {
        for slot in 0..SLOTS {
            if let Some(file) = self.slots[slot].take() {
                self.drop_unused(file.ino);
            }
        }
    }
}
