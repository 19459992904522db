//! The walk of a view, and what it finds.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::hash::{DefaultHasher, Hasher};

use anyhow::{Context, Result};

/// A filesystem that can be walked.
pub trait View {
    /// An open or named object of it.
    type Node;

    /// The directory that the walk begins in.
    fn root(&self) -> Result<Self::Node>;
    /// What statx(2) tells.
    fn info(&self, node: &Self::Node) -> Result<FileInfo>;
    /// The names in a directory with the inodes and the types (as in modes) that it gives for
    /// them; 0 for a type that it does not give. Without "." and "..".
    fn names(&self, dir: &Self::Node) -> Result<Vec<(Vec<u8>, u64, u32)>>;
    /// What a name in a directory means.
    fn child(&self, dir: &Self::Node, name: &[u8]) -> Result<Self::Node>;
    /// Names and values of the extended attributes.
    fn xattrs(&self, node: &Self::Node) -> Result<BTreeMap<Vec<u8>, Vec<u8>>>;
    /// A symbolic link's target.
    fn readlink(&self, node: &Self::Node) -> Result<Vec<u8>>;
    /// Bytes of a file.
    fn read(&self, node: &Self::Node, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The first data, or the first hole, at or after an offset; `None` for ENXIO.
    fn seek(&self, node: &Self::Node, offset: u64, data: bool) -> Result<Option<u64>>;
    /// What statfs(2) tells.
    fn volume(&self) -> Result<VolumeInfo>;
}

/// What is compared of an object's attributes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileInfo {
    /// Number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes in use.
    pub blocks: u64,
    /// Preferred bytes of one transfer.
    pub block_size: u32,
    /// Seconds and nanoseconds of the last reading.
    pub atime: (i64, u32),
    /// Of the last change of contents.
    pub mtime: (i64, u32),
    /// Of the last change.
    pub ctime: (i64, u32),
    /// Of the making, where it is known.
    pub btime: Option<(i64, u32)>,
    /// The attributes of statx(2): append, immutable, nodump, encrypted.
    pub attributes: u64,
}

/// What is compared of statfs(2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks, free ones, available ones.
    pub blocks: [u64; 3],
    /// Inodes, free ones.
    pub inodes: [u64; 2],
    /// `f_fsid`.
    pub id: u64,
    /// Bytes of the longest name.
    pub name_max: u64,
}

/// Everything that a walk finds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// The objects by their paths.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

/// An object by one of its names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Attributes.
    pub info: FileInfo,
    /// The inode and the type that the directory gives for the name.
    pub named: (u64, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A symbolic link's target.
    pub target: Option<Vec<u8>>,
    /// A file's data: the ranges between holes.
    pub data: Vec<(u64, u64)>,
    /// A hash of a file's bytes (of holes only what lies at their ends).
    pub hash: u64,
}

/// A part of an entry that two views need not agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// Numbers of inodes.
    Ino,
    /// Units in use, preferred bytes of a transfer.
    Blocks,
    /// Bytes and names of directories.
    Directories,
    /// Change, read and birth time.
    OtherTimes,
    /// Time of the last change of contents.
    Mtime,
    /// Nanoseconds.
    Nanoseconds,
    /// Extended attributes.
    Xattrs,
    /// Holes.
    Holes,
    /// The types that directories give.
    NamedType,
}

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
/// Bytes that one walk reads at once.
const CHUNK: usize = 1 << 20;
/// Bytes read at each end of a hole.
const HOLE_SAMPLE: u64 = 8192;

impl Listing {
    /// Walks a view from its root.
    pub fn of<V: View>(view: &V) -> Result<Self> {
        Self::walk(view, true)
    }

    /// Walks a view from its root and reads holes as the zeros that they stand for, so that views
    /// with blocks of different sizes compare equal. No file may be large.
    pub fn without_holes<V: View>(view: &V) -> Result<Self> {
        Self::walk(view, false)
    }

    fn walk<V: View>(view: &V, holes: bool) -> Result<Self> {
        let mut listing = Self::default();
        let root = view.root()?;
        let found = entry(view, &root, holes).context("root")?;
        listing.entries.insert(Vec::new(), found);
        let mut pending = vec![(Vec::new(), root)];
        while let Some((path, dir)) = pending.pop() {
            let shown = || String::from_utf8_lossy(&path).into_owned();
            let names = view.names(&dir).with_context(|| format!("names in {:?}", shown()))?;
            for (name, ino, kind) in names {
                let path = [&path[..], b"/", &name].concat();
                let shown = || String::from_utf8_lossy(&path).into_owned();
                let node =
                    view.child(&dir, &name).with_context(|| format!("find {:?}", shown()))?;
                let mut found =
                    entry(view, &node, holes).with_context(|| format!("{:?}", shown()))?;
                found.named = (ino, kind);
                let is_dir = found.info.mode & S_IFMT == S_IFDIR;
                if listing.entries.insert(path.clone(), found).is_some() {
                    anyhow::bail!("{:?} is listed twice", shown());
                }
                if is_dir {
                    pending.push((path, node));
                }
            }
        }
        Ok(listing)
    }

    /// The listing as text: a line for each object.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (path, entry) in &self.entries {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{} {entry:?}", path.escape_ascii());
        }
        text
    }

    /// Takes out of the comparison what two views need not agree on.
    pub fn forget(&mut self, fields: &[Field]) {
        for entry in self.entries.values_mut() {
            for field in fields {
                entry.forget(*field);
            }
        }
    }

    /// Takes out a subtree.
    pub fn remove(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        self.entries.retain(|key, _| key != path && !key.starts_with(&below));
    }

    /// What differs, in words; the first few objects. `None` if nothing does.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let mut paths: Vec<&Vec<u8>> = self.entries.keys().chain(other.entries.keys()).collect();
        paths.sort();
        paths.dedup();
        let mut words = String::new();
        let mut count = 0;
        for path in paths {
            let (a, b) = (self.entries.get(path), other.entries.get(path));
            if a == b {
                continue;
            }
            count += 1;
            if count <= 5 {
                let shown = String::from_utf8_lossy(path);
                let _ = match (a, b) {
                    (Some(a), Some(b)) => writeln!(words, "{shown}: {}", a.difference(b)),
                    (Some(_), None) => writeln!(words, "{shown}: only in the first"),
                    _ => writeln!(words, "{shown}: only in the second"),
                };
            }
        }
        (count > 0).then(|| format!("{count} objects differ:\n{words}"))
    }
}

impl Entry {
    /// The fields that differ, each of both.
    fn difference(&self, other: &Self) -> String {
        let (a, b) = (&self.info, &other.info);
        let fields = [
            field("ino", &a.ino, &b.ino),
            field("mode", &a.mode, &b.mode),
            field("links", &a.links, &b.links),
            field("owner", &a.owner, &b.owner),
            field("device", &a.device, &b.device),
            field("size", &a.size, &b.size),
            field("blocks", &a.blocks, &b.blocks),
            field("block size", &a.block_size, &b.block_size),
            field("atime", &a.atime, &b.atime),
            field("mtime", &a.mtime, &b.mtime),
            field("ctime", &a.ctime, &b.ctime),
            field("btime", &a.btime, &b.btime),
            field("attributes", &a.attributes, &b.attributes),
            field("named", &self.named, &other.named),
            field("target", &self.target, &other.target),
            field("data", &self.data, &other.data),
            field("hash", &self.hash, &other.hash),
            field("xattrs", &self.xattrs, &other.xattrs),
        ];
        fields.concat()
    }

    fn forget(&mut self, field: Field) {
        let info = &mut self.info;
        match field {
            Field::Ino => (info.ino, self.named.0) = (0, 0),
            Field::Blocks => (info.blocks, info.block_size) = (0, 0),
            Field::Directories if info.mode & S_IFMT == S_IFDIR => {
                (info.size, info.blocks, info.links) = (0, 0, 0);
            }
            Field::Directories => {}
            Field::OtherTimes => (info.atime, info.ctime, info.btime) = ((0, 0), (0, 0), None),
            Field::Mtime => info.mtime = (0, 0),
            Field::Nanoseconds => {
                for time in [&mut info.atime, &mut info.mtime, &mut info.ctime] {
                    time.1 = 0;
                }
            }
            Field::Xattrs => self.xattrs.clear(),
            Field::Holes => self.data.clear(),
            Field::NamedType => self.named.1 = 0,
        }
    }
}

/// One field of two entries, where it differs: the beginning of each.
fn field<T: PartialEq + Debug>(name: &str, a: &T, b: &T) -> String {
    if a == b {
        return String::new();
    }
    let short = |value: &T| format!("{value:?}").chars().take(120).collect::<String>();
    format!("{name} {} / {}; ", short(a), short(b))
}

fn entry<V: View>(view: &V, node: &V::Node, holes: bool) -> Result<Entry> {
    let info = view.info(node)?;
    let xattrs = view.xattrs(node).context("attributes")?;
    let mut entry = Entry { xattrs, ..Entry::default() };
    match info.mode & S_IFMT {
        S_IFLNK => entry.target = Some(view.readlink(node).context("target")?),
        S_IFREG => {
            let ranges = if holes { ranges(view, node, info.size)? } else { vec![(0, info.size)] };
            entry.hash = contents(view, node, info.size, &ranges).context("contents")?;
            entry.data = ranges;
        }
        _ => {}
    }
    entry.info = info;
    Ok(entry)
}

/// The ranges of data between a file's holes.
fn ranges<V: View>(view: &V, node: &V::Node, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = view.seek(node, at, true)? else { break };
        let end = view.seek(node, start, false)?.unwrap_or(size);
        anyhow::ensure!(start >= at && end > start, "data from {start} to {end} after {at}");
        ranges.push((start, end));
        at = end;
    }
    Ok(ranges)
}

fn contents<V: View>(view: &V, node: &V::Node, size: u64, ranges: &[(u64, u64)]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut last = 0;
    for &(start, end) in ranges.iter().chain(&[(size, size)]) {
        // Of a hole both ends, of data everything.
        hash_range(view, node, last, start.min(last + HOLE_SAMPLE), &mut hasher)?;
        let tail = start.saturating_sub(HOLE_SAMPLE).max(last);
        hash_range(view, node, tail, start, &mut hasher)?;
        hash_range(view, node, start, end, &mut hasher)?;
        last = end;
    }
    // Nothing lies beyond the end.
    anyhow::ensure!(view.read(node, size, &mut [0; 16])? == 0, "bytes beyond the end");
    Ok(hasher.finish())
}

fn hash_range<V: View>(
    view: &V,
    node: &V::Node,
    mut at: u64,
    end: u64,
    hasher: &mut DefaultHasher,
) -> Result<()> {
    let mut buf = vec![0; CHUNK.min(end.saturating_sub(at) as usize)];
    while at < end {
        let want = buf.len().min((end - at) as usize);
        let got = view.read(node, at, &mut buf[..want])?;
        anyhow::ensure!(got == want, "{got} of {want} bytes at {at}");
        hasher.write(&buf[..want]);
        at += want as u64;
    }
    Ok(())
}
