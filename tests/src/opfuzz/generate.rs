//! Random operations, for which what is there is used more often than not.

use super::model::Model;
use super::op::{ACLS, APPEND, Acl, Allocate, How, IMMUTABLE, NOATIME, NODUMP, NewTime, Op};
use super::op::{SLOTS, SYNC, acl_name};

/// Reproducible numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// One seed gives one sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

/// What sequences are to contain.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of a block, around whose multiples offsets lie.
    pub block: u64,
    /// Bytes of the largest attribute value: all of one inode's must fit.
    pub value: usize,
    /// Whether flags and attributes are used.
    pub attributes: bool,
    /// Whether what the kernel keeps to itself is used: it passes ranges taken out of files or put
    /// in not on to FUSE, and checks names before it asks whether an inode is immutable.
    pub unpassed: bool,
    /// Bytes of the farthest offset.
    pub farthest: u64,
    /// Offsets and lengths of what is read and written with O_DIRECT are multiples of this, where
    /// that is used.
    pub direct: Option<u64>,
}

impl Plan {
    /// For volumes of such blocks.
    pub fn new(block: u64) -> Self {
        Self {
            block,
            value: if block < 4096 { 100 } else { 700 },
            attributes: true,
            unpassed: true,
            farthest: 1 << 40,
            direct: None,
        }
    }
}

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "über", "f.txt"];
const MODES: [u16; 9] = [0o644, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o6777, 0o2644, 0o000];
const XATTRS: [&str; 6] =
    ["user.one", "user.two", "trusted.three", "security.four", "user.long name", "user.n"];
const IDS: [u32; 4] = [0, 1000, 70_000, 4_000_000_000];

/// The next operation where the model stands.
pub fn operation(random: &mut Random, model: &Model, plan: &Plan) -> Op {
    let mut maker = Maker { random, model, plan };
    match maker.random.below(100) {
        0..22 => maker.stat(),
        22..34 => maker.open(),
        34..62 => maker.on_slot(),
        62..86 => maker.on_names(),
        86..99 if plan.attributes => maker.attribute(),
        99 if maker.random.once_in(3) => Op::Remount,
        99 if maker.random.once_in(2) => Op::FsyncPath { path: maker.path() },
        99 => Op::Sync,
        _ => maker.stat(),
    }
}

struct Maker<'a> {
    random: &'a mut Random,
    model: &'a Model,
    plan: &'a Plan,
}

impl Maker<'_> {
    /// A name: seldom one of the longest, or longer.
    fn name(&mut self) -> String {
        match self.random.below(60) {
            0 => "n".repeat(255),
            1 => "n".repeat(256),
            _ => self.random.pick(&NAMES).to_owned(),
        }
    }

    /// Any path, in a directory that is there if possible.
    fn any_path(&mut self) -> String {
        let dirs: Vec<_> = self.model.paths().into_iter().filter(|path| path.1).collect();
        let name = self.name();
        if dirs.is_empty() || self.random.below(3) == 0 {
            return name;
        }
        let (dir, _) = self.random.pick(&dirs);
        // Paths stay short enough for system calls.
        if dir.len() > 600 { name } else { format!("{dir}/{name}") }
    }

    /// A path that most often is there.
    fn path(&mut self) -> String {
        let paths = self.model.paths();
        if paths.is_empty() || self.random.once_in(6) {
            return self.any_path();
        }
        let (path, _) = self.random.pick(&paths);
        if self.random.once_in(25) {
            let name = self.name();
            return format!("{path}/{name}");
        }
        path
    }

    fn slot(&mut self) -> (usize, u64) {
        let open = self.model.open_slots();
        if open.is_empty() || self.random.once_in(30) {
            return (self.random.below(SLOTS as u64) as usize, 0);
        }
        self.random.pick(&open)
    }

    fn mode(&mut self) -> u16 {
        self.random.pick(&MODES)
    }

    fn stat(&mut self) -> Op {
        match self.random.below(12) {
            0 => Op::StatOpen { slot: self.slot().0 },
            1 | 2 => Op::List { path: self.path() },
            _ => Op::Stat { path: self.path() },
        }
    }

    fn open(&mut self) -> Op {
        let slot = self.random.below(SLOTS as u64) as usize;
        if self.random.once_in(8) {
            return Op::Close { slot };
        }
        let create = self.random.once_in(2).then(|| self.mode());
        let write = !self.random.once_in(5);
        let mut how = How {
            write,
            create,
            exclusive: create.is_some() && self.random.once_in(6),
            truncate: write && self.random.once_in(6),
            append: self.random.once_in(7),
            nofollow: self.random.once_in(9),
            direct: false,
        };
        // Where a file ends nothing is aligned.
        how.direct = self.plan.direct.is_some() && !how.append && self.random.once_in(2);
        let path = if create.is_some() { self.any_path() } else { self.path() };
        Op::Open { slot, path, how }
    }

    /// An offset: near the end of the file, near a block's, or anywhere.
    fn offset(&mut self, size: u64) -> u64 {
        let block = self.plan.block;
        let near = self.random.below(5);
        match self.random.below(14) {
            0..4 => self.random.below(size + 1),
            4..6 => (size + near).saturating_sub(2),
            6..10 => (self.random.below(40) * block + near).saturating_sub(2),
            10..12 => self.random.below(200_000),
            12 => size + self.random.below(300_000),
            _ => {
                let far = [(1 << 31) - 3, 5 << 30, (13 * block) << 10, 1 << 40];
                self.random.pick(&far).min(self.plan.farthest)
            }
        }
    }

    fn len(&mut self) -> u64 {
        let block = self.plan.block;
        match self.random.below(8) {
            0 => self.random.below(4),
            1..4 => self.random.below(block * 2) + 1,
            4..6 => self.random.below(12) * block,
            6 => self.random.below(70_000),
            _ => block,
        }
    }

    /// A range of whole blocks, as collapse and insert want it.
    fn blocks(&mut self, size: u64) -> (u64, u64) {
        let block = self.plan.block;
        let offset = self.random.below(size / block + 2) * block;
        (offset, (self.random.below(4) + 1) * block)
    }

    fn on_slot(&mut self) -> Op {
        let (slot, size) = self.slot();
        let (mut offset, mut len) = (self.offset(size), self.len());
        if let Some(unit) = self.plan.direct.filter(|_| self.model.is_direct(slot)) {
            (offset, len) = (offset / unit * unit, len.next_multiple_of(unit));
        }
        match self.random.below(26) {
            0..9 => Op::Write { slot, offset, len, seed: self.random.below(256) as u8 },
            9..13 => Op::Read { slot, offset, len },
            13..18 => {
                use Allocate::*;
                let all = [Grow, KeepSize, Punch, Punch, Zero, ZeroKeepSize, Collapse, Insert];
                let usable = if self.plan.unpassed { &all[..] } else { &all[..6] };
                let what = self.random.pick(usable);
                if matches!(what, Collapse | Insert) && !self.random.once_in(5) {
                    (offset, len) = self.blocks(size);
                }
                Op::Allocate { slot, what, offset, len }
            }
            18..20 => Op::TruncateOpen { slot, size: offset },
            20..22 => Op::Seek { slot, offset: offset.min(size), data: self.random.once_in(2) },
            22..24 => {
                let (to, to_size) = self.slot();
                let from = (slot, offset.min(size));
                let to = (to, self.offset(to_size));
                // The kernel copies in pieces of its own, which O_DIRECT may refuse half way.
                let direct = [slot, to.0].iter().any(|slot| self.model.is_direct(*slot));
                if direct && self.plan.direct.is_some_and(|unit| unit > 1) {
                    return Op::Fsync { slot };
                }
                Op::Copy { from, to, len }
            }
            24 => Op::Fsync { slot },
            _ => Op::Close { slot },
        }
    }

    fn on_names(&mut self) -> Op {
        match self.random.below(28) {
            0..4 => Op::Mkdir { path: self.any_path(), mode: self.mode() },
            4..6 => {
                let kinds = [0o010_000, 0o020_000, 0o060_000, 0o140_000];
                let kind: u32 = self.random.pick(&kinds);
                let device = match kind {
                    0o020_000 | 0o060_000 => self.random.pick(&[(1, 3), (8, 700), (300, 70_000)]),
                    _ => (0, 0),
                };
                let mode = kind | u32::from(self.mode());
                Op::Mknod { path: self.any_path(), mode, device }
            }
            6..9 => Op::Unlink { path: self.path() },
            9..11 => Op::Rmdir { path: self.path() },
            11..14 => Op::Link { from: self.path(), to: self.any_path() },
            14..16 => {
                let target = match self.random.below(9) {
                    0 => "x".repeat(self.random.pick(&[59, 60, 61, 200])),
                    1 => vec!["y".repeat(50); self.random.pick(&[10, 20, 70, 81])].join("/"),
                    2 => String::new(),
                    3 => format!("{}/{}", self.name(), self.name()),
                    _ => self.name(),
                };
                Op::Symlink { target, path: self.any_path() }
            }
            16..18 => Op::Readlink { path: self.path() },
            18..20 => {
                let path = self.path();
                Op::Truncate { path, size: self.offset(20_000) }
            }
            _ => {
                let to = if self.random.once_in(2) { self.path() } else { self.any_path() };
                let noreplace = self.random.once_in(7);
                let exchange = self.random.once_in(5);
                Op::Rename { from: self.path(), to, noreplace, exchange }
            }
        }
    }

    fn time(&mut self) -> NewTime {
        let seconds = [0, 1, -1, 1_000_000_000, -2_147_483_647, 2_147_483_648, 15_000_000_000];
        match self.random.below(6) {
            0 => NewTime::Now,
            1 => NewTime::Omit,
            _ => NewTime::At(self.random.pick(&seconds), self.random.below(1_000_000_000) as u32),
        }
    }

    fn attribute(&mut self) -> Op {
        let path = self.path();
        let acl = if self.random.once_in(2) { Acl::Access } else { Acl::Default };
        let name = match self.random.below(40) {
            0 => format!("user.{}", "n".repeat(251)),
            1..5 => acl_name(acl).to_owned(),
            _ => self.random.pick(&XATTRS).to_owned(),
        };
        match self.random.below(24) {
            0..4 => Op::Chmod { path, mode: self.mode() },
            4..6 => {
                let id = |maker: &mut Self| {
                    let id = maker.random.pick(&IDS);
                    (!maker.random.once_in(4)).then_some(id)
                };
                Op::Chown { path, uid: id(self), gid: id(self) }
            }
            6..9 => Op::Utimens { path, atime: self.time(), mtime: self.time() },
            9..12 if !name.starts_with("system.") => {
                let len = self.random.below(self.plan.value as u64 + 1) as usize;
                let flags = self.random.pick(&[0, 0, 0, 1, 2]);
                Op::SetXattr { path, name, len, seed: self.random.below(256) as u8, flags }
            }
            9..14 => Op::GetXattr { path, name },
            14..16 => Op::RemoveXattr { path, name },
            16 => Op::ListXattr { path },
            17..20 => {
                let which = self.random.below(ACLS.len() as u64) as usize;
                Op::SetAcl { path, acl, which }
            }
            20..23 => {
                let all = [0, 0, 0, 0, SYNC, NODUMP, NOATIME, NOATIME | NODUMP, APPEND, IMMUTABLE];
                let usable = if self.plan.unpassed { &all[..] } else { &all[..8] };
                Op::SetFlags { path, flags: self.random.pick(usable) }
            }
            _ => Op::GetFlags { path },
        }
    }
}
