//! Trees with everything that a filesystem of this family can hold.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags,
};

/// What a tree is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bytes of a block of the volume: places of holes follow it.
    pub block: u64,
    /// Names in the large directory.
    pub names: usize,
    /// Extents of the file with the deepest tree.
    pub extents: u64,
    /// Bytes of all attributes of one file, as far as the volume has room for them.
    pub attributes: usize,
    /// Whether allocation without writing, and punching, may be refused by the volume.
    pub indirect: bool,
    /// Blocks under a tree of three levels may be reached.
    pub large_offsets: bool,
    /// Whether there is a large file that is one hole. (ext4 cannot say where holes are in inline
    /// files, and makes such a file one.)
    pub nothing: bool,
}

impl Plan {
    /// A tree for a volume of so large blocks: two levels of index and of extents where blocks are
    /// small; with `OSLET_FULL` set, three levels of extents.
    pub fn new(block: u64) -> Self {
        let full = std::env::var_os("OSLET_FULL").is_some();
        let (names, extents) = match (full, block) {
            (true, _) => (20_000, 30_000),
            (false, ..2048) => (1800, 500),
            (false, _) => (500, 1500),
        };
        Self {
            block,
            names,
            extents,
            attributes: 900,
            indirect: false,
            large_offsets: true,
            nothing: true,
        }
    }
}

/// Fills a directory.
pub fn populate(dir: &Path, plan: &Plan) -> Result<()> {
    contents(dir, plan).context("contents")?;
    holes(dir, plan).context("holes")?;
    names(dir, plan).context("names")?;
    links(dir, plan).context("links")?;
    nodes(dir).context("nodes")?;
    attributes(dir, plan).context("attributes")?;
    times(dir).context("times")
}

/// `count` bytes that no other place has.
pub fn pattern(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn contents(dir: &Path, plan: &Plan) -> Result<()> {
    let dir = dir.join("contents");
    fs::create_dir(&dir)?;
    let block = plan.block as usize;
    for size in [0, 1, 59, 60, 61, 100, 150, 156, 160, 300, 700, block - 1, block, block + 1] {
        fs::write(dir.join(format!("{size}")), pattern(size as u64, size))?;
    }
    fs::write(dir.join("many-blocks"), pattern(1, 300 * block + 17))?;
    // Grown without being written.
    let file = File::create(dir.join("grown"))?;
    file.write_all_at(b"begin", 0)?;
    file.set_len(20 * plan.block + 5)?;
    let file = File::create(dir.join("shrunk"))?;
    file.write_all_at(&pattern(2, 40 * block), 0)?;
    file.set_len(3 * plan.block + 100)?;
    Ok(())
}

fn holes(dir: &Path, plan: &Plan) -> Result<()> {
    let dir = dir.join("holes");
    fs::create_dir(&dir)?;
    let block = plan.block;
    let pointers = block / 4;
    let double = 12 + pointers;
    let triple = double + pointers * pointers;
    let mut places = vec![0, 2, 11, 12, 14, double - 1, double, double + 1];
    places.extend([double + pointers - 1, double + pointers, double + 5 * pointers + 3]);
    if plan.large_offsets {
        places.extend([triple - 1, triple, triple + 7 * pointers + 2]);
        places.extend([triple + pointers * pointers + 9]);
    }
    let every = File::create(dir.join("every-level"))?;
    for &place in &places {
        every.write_all_at(&pattern(place, block as usize), place * block)?;
        // Each level alone.
        let alone = File::create(dir.join(format!("only-{place}")))?;
        alone.write_all_at(&pattern(place, 100), place * block + 7)?;
    }
    if plan.nothing {
        File::create(dir.join("nothing"))?.set_len(triple.min(1 << 24) * block)?;
    }

    let striped = File::create(dir.join("striped"))?;
    for i in 0..plan.extents {
        striped.write_all_at(&pattern(i, 64), 2 * i * block + 32)?;
    }
    allocated(&dir, plan)
}

/// Files with blocks that were never written, and with blocks that were taken away.
fn allocated(dir: &Path, plan: &Plan) -> Result<()> {
    let block = plan.block;
    let may_fail = |result: rustix::io::Result<()>| match result {
        Err(rustix::io::Errno::OPNOTSUPP) if plan.indirect => Ok(()),
        other => other,
    };
    let file = File::create(dir.join("allocated"))?;
    may_fail(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 50 * block))?;
    file.write_all_at(&pattern(3, block as usize), 20 * block)?;
    file.write_all_at(&pattern(4, 10), 49 * block)?;
    let file = File::create(dir.join("allocated-beyond"))?;
    file.write_all_at(b"short", 0)?;
    may_fail(rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 30 * block))?;
    let file = File::create(dir.join("punched"))?;
    file.write_all_at(&pattern(5, 400 * block as usize), 0)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for i in (1..400).step_by(3) {
        may_fail(rustix::fs::fallocate(&file, punch, i * block, block))?;
    }
    Ok(())
}

fn names(dir: &Path, plan: &Plan) -> Result<()> {
    let dir = dir.join("names");
    fs::create_dir(&dir)?;
    fs::create_dir(dir.join("empty"))?;
    fs::write(dir.join("x".repeat(255)), "255 bytes")?;
    for name in [&b"\xff\xfe not utf-8 \x80"[..], b" ", b"new\nline", "gr\u{fc}n".as_bytes()] {
        fs::write(dir.join(OsStr::from_bytes(name)), name)?;
    }
    let mut deep = dir.join("deep");
    for level in 0..12 {
        fs::create_dir(&deep)?;
        deep = deep.join(format!("level-{level}"));
    }
    for (name, keep) in [("few", 3), ("hundred", 100)] {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        for i in 0..keep * 2 {
            fs::write(dir.join(format!("name-{i}")), "")?;
        }
        for i in (0..keep * 2).step_by(2) {
            fs::remove_file(dir.join(format!("name-{i}")))?;
        }
    }
    many_names(&dir.join("many"), plan.names)
}

/// A directory of so many names for a few files: long and short ones, of all bytes.
pub fn many_names(dir: &Path, count: usize) -> Result<()> {
    fs::create_dir(dir)?;
    let mut file = dir.join("0");
    for i in 0..count {
        // Links to one file stay below the format's limit of 65,000.
        if i % 30_000 == 0 {
            file = dir.join(format!("file-{i}"));
            fs::write(&file, format!("{i}"))?;
        }
        let mut name = format!("{i:x}-").into_bytes();
        name.extend(pattern(i as u64, i * 7 % 200).into_iter().filter(|&b| b != 0 && b != b'/'));
        fs::hard_link(&file, dir.join(OsStr::from_bytes(&name)))?;
    }
    Ok(())
}

fn links(dir: &Path, plan: &Plan) -> Result<()> {
    let dir = dir.join("links");
    fs::create_dir(&dir)?;
    for len in [1, 58, 59, 60, 61, 100, 155, 156, 157, 500, (plan.block as usize).min(4096) - 1] {
        let target = "t/".repeat(len.div_ceil(2));
        symlink(&target[..len], dir.join(format!("symbolic-{len}")))?;
    }
    let file = dir.join("hard");
    fs::write(&file, "linked")?;
    for i in 0..5 {
        fs::hard_link(&file, dir.join(format!("hard-{i}")))?;
    }
    Ok(())
}

fn nodes(dir: &Path) -> Result<()> {
    let dir = dir.join("nodes");
    fs::create_dir(&dir)?;
    let node = |name: &str, kind, mode, device| {
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(mode), device)
    };
    node("fifo", FileType::Fifo, 0o640, 0)?;
    node("socket", FileType::Socket, 0o755, 0)?;
    for (major, minor) in [(1, 3), (8, 255), (255, 255), (259, 1), (4095, 1_048_575), (7, 256)] {
        let device = rustix::fs::makedev(major, minor);
        node(&format!("c-{major}-{minor}"), FileType::CharacterDevice, 0o600, device)?;
        node(&format!("b-{major}-{minor}"), FileType::BlockDevice, 0o660, device)?;
    }
    for (name, mode, owner) in [("suid", 0o4755, 0), ("sticky", 0o1777, 65_536 + 7), ("no", 0, 99)]
    {
        let path = dir.join(name);
        fs::write(&path, name)?;
        let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner + 0x10_0000));
        rustix::fs::chown(&path, Some(user), Some(group))?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

fn attributes(dir: &Path, plan: &Plan) -> Result<()> {
    let dir = dir.join("attributes");
    fs::create_dir(&dir)?;
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .with_context(|| format!("{name} of {} bytes at {}", value.len(), path.display()))
    };
    let small = dir.join("small");
    fs::write(&small, "")?;
    set(&small, "user.small", b"value")?;
    set(&small, "user.empty", b"")?;
    set(&small, "trusted.t", b"\0binary\xff")?;
    let many = dir.join("many");
    fs::write(&many, "m")?;
    let each = 40;
    for i in 0..plan.attributes.min(900) / each {
        set(&many, &format!("user.{i}"), &pattern(i as u64, i % 13))?;
    }
    for count in [50, 200, plan.attributes * 3 / 4, plan.attributes] {
        // What is shared by two files is one block.
        for copy in ["a", "b"] {
            let path = dir.join(format!("{count}-{copy}"));
            fs::write(&path, pattern(9, 70))?;
            set(&path, "user.large", &pattern(7, count))?;
            set(&path, "security.other", b"s")?;
        }
    }
    let link = dir.join("link");
    symlink("nowhere", &link)?;
    set(&link, "trusted.on-a-link", b"yes")?;
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0)?;
    set(&fifo, "trusted.on-a-fifo", b"yes")?;

    let file = dir.join("acl");
    fs::write(&file, "acl")?;
    set(&file, "system.posix_acl_access", &acl(&[1000, 100_000]))?;
    let default = dir.join("acl-default");
    fs::create_dir(&default)?;
    set(&default, "system.posix_acl_default", &acl(&[3]))?;
    fs::write(default.join("inherits"), "")?;
    Ok(())
}

/// An ACL that names users, as setxattr(2) takes it.
fn acl(users: &[u32]) -> Vec<u8> {
    let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[6, 0], &id.to_le_bytes()].concat();
    let mut value = 2u32.to_le_bytes().to_vec();
    value.extend(entry(0x01, u32::MAX));
    value.extend(users.iter().flat_map(|&user| entry(0x02, user)));
    for tag in [0x04, 0x10, 0x20] {
        value.extend(entry(tag, u32::MAX));
    }
    value
}

fn times(dir: &Path) -> Result<()> {
    let dir = dir.join("times");
    fs::create_dir(&dir)?;
    let seconds = [
        -0x8000_0000,
        -1_000_000_000,
        -1,
        0,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_8000_0000,
        0x3_7fff_ffff,
    ];
    for (i, second) in seconds.into_iter().enumerate() {
        let path = dir.join(format!("{second}"));
        fs::write(&path, "")?;
        let time = |nanoseconds| Timespec { tv_sec: second, tv_nsec: nanoseconds };
        let times = Timestamps {
            last_access: time(999_999_999 - i as i64),
            last_modification: time(i as i64),
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    }
    Ok(())
}
