//! Random operations on names and attributes, done by ours and by kernel ext4 beside it: each must
//! come to the same result, and in the end both trees must be the same.

mod ours;
mod theirs;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::write::{Writer, WriterOptions};
use cfs::engine::{Options, Volume};

use crate::fsdiff::ImageFile;
use crate::kernel::{self, LoopMount};

use ours::Ours;
use theirs::Theirs;

/// One operation. Paths have no slash at their beginning; "" is the root.
#[derive(Clone, Debug)]
enum Op {
    /// `mknod` with type and permissions and a device.
    Make { path: String, mode: u16, umask: u16, device: (u32, u32) },
    /// `symlink`.
    Symlink { path: String, target: String },
    /// `link`.
    Link { from: String, to: String },
    /// `unlink`.
    Unlink { path: String },
    /// `rmdir`.
    Rmdir { path: String },
    /// `renameat2`.
    Rename { from: String, to: String, flags: u32 },
    /// `chmod`.
    Chmod { path: String, mode: u16 },
    /// `chown` of user and group.
    Chown { path: String, uid: u32, gid: u32 },
    /// `truncate`.
    Truncate { path: String, size: u64 },
    /// `lsetxattr`.
    Set { path: String, name: String, value: Vec<u8>, flags: u32 },
    /// `lremovexattr`.
    Remove { path: String, name: String },
    /// `FS_IOC_SETFLAGS` of the flags that chattr(1) names; regular files and directories only.
    Flags { path: String, flags: u32 },
}

/// A generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % limit
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// What a sequence draws from.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Operations.
    pub steps: usize,
    /// Different names in a directory.
    pub names: u64,
    /// Whether names are long as a rule, so that few fill a block.
    pub long: bool,
    /// Whether attributes and flags are changed too.
    pub attributes: bool,
    /// Operations that the kernel does alone, before there are two images. Files that are made then
    /// get some contents.
    pub before: usize,
}

fn name(random: &mut Random, shape: &Shape) -> String {
    let number = random.below(shape.names);
    match random.below(60) {
        0 => "x".repeat(256),
        1 => "y".repeat(255),
        2 => ".".into(),
        3 => "..".into(),
        _ if shape.long => format!("{number:x}{}", "n".repeat(180 + (number % 70) as usize)),
        _ => format!("n{number}"),
    }
}

fn path(random: &mut Random, shape: &Shape) -> String {
    let last = name(random, shape);
    match random.below(6) {
        // Not out of the volume.
        0 | 1 if last.starts_with('.') => "n0".into(),
        0 | 1 => last,
        2 | 3 => format!("d{}/{last}", random.below(3)),
        4 => format!("d{}/d{}/{last}", random.below(3), random.below(3)),
        _ => format!("d{}", random.below(3)),
    }
}

/// A path of something deeper, where directories are rather than files.
fn directory(random: &mut Random) -> String {
    match random.below(3) {
        0 => format!("d{}", random.below(3)),
        1 => format!("d{}/d{}", random.below(3), random.below(3)),
        _ => format!("d{}/d{}/d{}", random.below(3), random.below(3), random.below(3)),
    }
}

/// The next operation of a sequence.
fn draw(random: &mut Random, shape: &Shape) -> Op {
    let kinds = if shape.attributes { 24 } else { 15 };
    let umask = random.pick(&[&0u16, &0o022, &0o077]);
    match random.below(kinds) {
        0..=3 => {
            let kind =
                random.pick(&[&0o100_000u16, &0o100_000, &0o010_000, &0o020_000, &0o140_000]);
            let device = if *kind == 0o020_000 { (random.below(300) as u32, 7) } else { (0, 0) };
            let mode = kind | random.below(0o10000) as u16;
            Op::Make { path: path(random, shape), mode, umask: *umask, device }
        }
        4 | 5 => {
            let mode = 0o040_000 | random.pick(&[&0o755u16, &0o777, &0o2770, &0o1777]);
            Op::Make { path: directory(random), mode, umask: *umask, device: (0, 0) }
        }
        6 => {
            let len = random.pick(&[&0u64, &1, &59, &60, &400, &1023, &1024, &4095]);
            Op::Symlink { path: path(random, shape), target: "t".repeat(*len as usize) }
        }
        7 => Op::Link { from: path(random, shape), to: path(random, shape) },
        8 | 9 => Op::Unlink { path: path(random, shape) },
        10 => Op::Rmdir { path: directory(random) },
        11 => Op::Rename { from: directory(random), to: directory(random), flags: flags(random) },
        12 | 13 => {
            Op::Rename { from: path(random, shape), to: path(random, shape), flags: flags(random) }
        }
        14 => Op::Rename { from: path(random, shape), to: directory(random), flags: flags(random) },
        _ => draw_attributes(random, shape),
    }
}

fn flags(random: &mut Random) -> u32 {
    *random.pick(&[&0u32, &0, &0, &1, &2, &2, &3, &4, &4, &5, &6])
}

fn draw_attributes(random: &mut Random, shape: &Shape) -> Op {
    let path = if random.below(2) == 0 { path(random, shape) } else { directory(random) };
    match random.below(10) {
        0 => Op::Chmod { path, mode: random.below(0o10000) as u16 },
        1 => Op::Chown { path, uid: random.below(3) as u32, gid: 70_000 + random.below(3) as u32 },
        2 => {
            // Who cuts contents zeroes what is left of their last block; here nobody does.
            let least = if shape.before > 0 { MOST_CONTENTS } else { 0 };
            Op::Truncate { path, size: least + random.below(100_000) }
        }
        3 => {
            let flags = random.pick(&[&0u32, &0, &0, &0x10, &0x20, &0x40, &0x80, &0x10_0c8]);
            Op::Flags { path, flags: *flags }
        }
        4 => Op::Remove { path, name: attribute(random) },
        5 | 6 => {
            let name = random.pick(&["system.posix_acl_access", "system.posix_acl_default"]);
            Op::Set { path, name: name.into(), value: acl(random), flags: 0 }
        }
        _ => {
            let lens: &[&u64] =
                &[&0, &1, &20, &60, &300, &900, &968, &2000, &3900, &4040, &9000, &65_536, &70_000];
            // Few values, so that some are the same.
            let len = *random.pick(lens) as usize;
            let value = vec![*random.pick(&[&b'v', &b'w']); len];
            let flags = *random.pick(&[&0u32, &0, &1, &2]);
            Op::Set { path, name: attribute(random), value, flags }
        }
    }
}

fn attribute(random: &mut Random) -> String {
    let names = [
        "user.a",
        "user.bb",
        "user.",
        "trusted.t",
        "security.capability.x",
        "user.long-long-name",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "nothing.x",
        "user.third",
    ];
    random.pick(&names).into()
}

/// A valid ACL, or one that is not.
fn acl(random: &mut Random) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    let mut entry = |tag: u16, rights: u64, id: u32| {
        value.extend(tag.to_le_bytes());
        value.extend((rights as u16).to_le_bytes());
        value.extend(id.to_le_bytes());
    };
    if random.below(8) == 0 {
        return value;
    }
    entry(1, random.below(8), u32::MAX);
    let users = random.below(3);
    for user in 0..users {
        entry(2, random.below(8), user as u32 + 100);
    }
    entry(4, random.below(8), u32::MAX);
    if users > 0 || random.below(3) == 0 {
        entry(0x10, random.below(8), u32::MAX);
    }
    entry(0x20, random.below(8) + 8 * u64::from(random.below(20) == 0), u32::MAX);
    value
}

/// What both sides must agree on in the end.
fn comparable(root: &Path) -> Result<Vec<kernel::Entry>> {
    let mut entries = kernel::tree(root)?;
    for entry in &mut entries {
        let words: Vec<_> = entry.attributes.split(' ').collect();
        let directory = words[3].starts_with('4');
        let kept: Vec<_> = words
            .chunks(2)
            .filter(|pair| match pair[0] {
                "mode" | "links" | "uid" | "gid" | "rdev" => true,
                "size" => !directory,
                _ => false,
            })
            .map(|pair| pair.join(" "))
            .collect();
        entry.attributes = kept.join(" ");
    }
    entries.retain(|entry| entry.path != Path::new("lost+found"));
    Ok(entries)
}

/// Bytes that files get at first, at most: some more than small inodes hold.
const MOST_CONTENTS: u64 = 160;

/// What the kernel does alone.
fn prepare(dir: &Path, random: &mut Random, shape: &Shape) -> Result<()> {
    let mut contents = |path: &Path| {
        let len = random.below(MOST_CONTENTS) as usize;
        std::fs::write(path, vec![len as u8 | 1; len])
    };
    for below in ["", "d0", "d1", "d0/d1"] {
        std::fs::create_dir_all(dir.join(below))?;
        (0..4).try_for_each(|number| contents(&dir.join(below).join(format!("n{number}"))))?;
    }
    let mut theirs = Theirs::new(dir)?;
    for _ in 0..shape.before {
        let op = draw(random, shape);
        let done = theirs.apply(&op) == 0;
        if let Op::Make { path, mode, .. } = &op
            && done
            && mode >> 12 == 8
        {
            let len = random.below(MOST_CONTENTS) as usize;
            std::fs::write(dir.join(path), vec![len as u8 | 1; len])?;
        }
    }
    Ok(())
}

/// Does a random sequence on two images of the same kind, and compares.
pub fn run(
    scratch: &Path,
    arguments: &[&str],
    megabytes: u64,
    seed: u64,
    shape: &Shape,
) -> Result<()> {
    let (a, b) = (scratch.join("ours"), scratch.join("theirs"));
    kernel::mke2fs(&a, megabytes, arguments)?;
    let mut random = Random(seed);
    if shape.before > 0 {
        let mount = LoopMount::new(&a, &scratch.join("mounted"), "rw")?;
        prepare(mount.dir(), &mut random, shape)?;
        mount.unmount()?;
    }
    std::fs::copy(&a, &b)?;
    let mount = LoopMount::new(&b, &scratch.join("mounted"), "rw")?;
    // Linux 6.18 shows zeros of contents in an inode that grows while they are not in its cache,
    // until the volume is mounted anew; on disk they are right.
    kernel::tree(mount.dir())?;
    let mut theirs = Theirs::new(mount.dir())?;
    let source = Arc::new(ImageFile::open(&a, true)?);
    let volume = Arc::new(Volume::open(source, &Options::default())?);
    let writer = Writer::open(volume, &WriterOptions::default())?;
    let mut ours = Ours::new(&writer);
    for step in 0..shape.steps {
        let op = draw(&mut random, shape);
        let (here, there) = (ours.apply(&op), theirs.apply(&op));
        ensure!(here == there, "step {step}: errno {here} here, {there} of the kernel: {op:?}");
    }
    writer.stop().context("stop")?;
    drop((ours, theirs));
    let expected = comparable(mount.dir())?;
    mount.unmount()?;
    kernel::assert_clean(&a).with_context(|| format!("seed {seed}"))?;
    let mount = LoopMount::new(&a, &scratch.join("mounted"), "rw")?;
    let found = comparable(mount.dir())?;
    kernel::assert_same_tree(&found, &expected).with_context(|| format!("seed {seed}"))?;
    mount.unmount()?;
    kernel::assert_clean(&a).with_context(|| format!("seed {seed}, after the kernel"))
}
