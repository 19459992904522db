//! Inputs to begin with: structures cut out of real images, captured machines, and the examples of
//! the documentation. Each target's file says what its input looks like.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{images, tool};
use crate::tree;

/// Inodes of each image that become seeds: the first ones and those of the files.
const INODES: std::ops::RangeInclusive<u32> = 1..=21;
/// Blocks of a journal that become a seed.
const LOG_BLOCKS: usize = 40;
/// The input's own blocks at the end of an image.
const SCRATCH_BLOCKS: usize = 8;

/// Makes all seeds below `corpus`; those of another time with the same names are replaced.
pub(super) fn make(root: &Path, corpus: &Path) -> anyhow::Result<()> {
    let scratch = tree::target(root).join("fuzz/seeds");
    let paths = images::make(&corpus.join("images"), &scratch)?;
    let seeds = Seeds { corpus };
    let of = |prefix: &str| -> Vec<&PathBuf> {
        let named = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        };
        paths.iter().filter(named).collect()
    };
    for (number, path) in of("volume-").into_iter().enumerate() {
        let image = Image::open(path, &scratch)?;
        seeds.of_volume(number as u8, &image).with_context(|| image.name.clone())?;
    }
    for (number, path) in of("journal-").into_iter().enumerate() {
        let image = Image::open(path, &scratch)?;
        let log: Vec<u8> = image
            .blocks("<8>")?
            .into_iter()
            .take(LOG_BLOCKS)
            .flat_map(|b| image.block(b))
            .collect();
        seeds.put("journal", &image.name, &[trimmed(&log)])?;
        seeds.put("recovery", &image.name, &[&[number as u8]])?;
    }
    seeds.of_text(root, &scratch)?;
    seeds.of_words()
}

/// Bytes up to the last that is not zero.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

struct Image<'a> {
    name: String,
    path: &'a str,
    bytes: Vec<u8>,
    scratch: &'a Path,
}

impl<'a> Image<'a> {
    fn open(path: &'a Path, scratch: &'a Path) -> anyhow::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let path = path.to_str().context("the repository's path is not UTF-8")?;
        Ok(Self { name, path, bytes, scratch })
    }

    fn number(&self, at: usize, len: usize) -> usize {
        let bytes = &self.bytes[at..at + len];
        bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    fn block_size(&self) -> usize {
        1024 << self.number(1024 + 0x18, 4)
    }

    fn inode_size(&self) -> usize {
        self.number(1024 + 0x58, 2)
    }

    fn block(&self, number: usize) -> Vec<u8> {
        let size = self.block_size();
        self.bytes.get(number * size..(number + 1) * size).unwrap_or_default().to_vec()
    }

    /// Where inodes lie, for as many of the numbers as there are.
    fn inodes(&self) -> anyhow::Result<Vec<(u32, usize)>> {
        let script: String = INODES.map(|number| format!("imap <{number}>\n")).collect();
        let said = images::debugfs(self.path, &script, self.scratch)?;
        let places = said.lines().filter_map(|line| {
            let (block, offset) =
                line.trim().strip_prefix("located at block ")?.split_once(", offset 0x")?;
            let offset = usize::from_str_radix(offset.trim(), 16).ok()?;
            Some(block.parse::<usize>().ok()? * self.block_size() + offset)
        });
        Ok(INODES.zip(places).collect())
    }

    /// The blocks of a file.
    fn blocks(&self, file: &str) -> anyhow::Result<Vec<usize>> {
        let said = images::debugfs(self.path, &format!("blocks {file}\n"), self.scratch)?;
        let numbers = said.lines().filter(|line| !line.starts_with("debugfs"));
        Ok(numbers.flat_map(str::split_whitespace).filter_map(|word| word.parse().ok()).collect())
    }
}

/// Bytes of a block that is edited.
const EDITED: usize = 1024;

/// Changes of a directory's block: names that come, until there is no room, and some that go.
fn edits() -> Vec<u8> {
    let mut edits = Vec::new();
    for number in 0..24u8 {
        let name = format!("name {}{}", number % 9, "x".repeat(usize::from(number)));
        edits.extend([0x10 | (number / 9), number, 0, 0, 0, name.len() as u8]);
        edits.extend(name.bytes());
    }
    edits
}

struct Seeds<'a> {
    corpus: &'a Path,
}

impl Seeds<'_> {
    fn put(&self, target: &str, name: &str, parts: &[&[u8]]) -> anyhow::Result<()> {
        let dir = self.corpus.join(target);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let path = dir.join(format!("seed-{name}"));
        fs::write(&path, parts.concat()).with_context(|| path.display().to_string())
    }

    fn of_volume(&self, number: u8, image: &Image<'_>) -> anyhow::Result<()> {
        let descriptors = if image.block_size() == 1024 { 2048 } else { image.block_size() };
        let start = &image.bytes[1024..2048];
        let groups = &image.bytes[descriptors..descriptors + 512];
        self.put("superblock", &image.name, &[start, groups])?;
        self.put("volume", &image.name, &[&[number]])?;
        for (ino, at) in image.inodes()? {
            let inode = &image.bytes[at..at + image.inode_size()];
            let name = format!("{}-{ino}", image.name);
            self.put("inode", &name, &[&[number, ino as u8], inode])?;
            self.of_inode(number, image, &name, inode)?;
        }
        for dir in ["/", "/many"] {
            let blocks = image.blocks(dir)?.into_iter().take(SCRATCH_BLOCKS);
            let contents: Vec<u8> = blocks.flat_map(|block| image.block(block)).collect();
            let name = format!("{}{}", image.name, dir.replace('/', "-"));
            for flags in [0, 1] {
                let head = [number, flags | 0x10, 12];
                let name = format!("{name}-{flags}");
                self.put("directory", &name, &[&head, b"10name-name-", &contents])?;
            }
            for (at, block) in contents.chunks_exact(EDITED).take(4).enumerate() {
                for flags in [1, 3, 7] {
                    let name = format!("{name}-{at}-{flags}");
                    self.put("directory_edit", &name, &[&[flags | 0x10], block, &edits()])?;
                }
            }
        }
        Ok(())
    }

    fn of_inode(
        &self,
        number: u8,
        image: &Image<'_>,
        name: &str,
        inode: &[u8],
    ) -> anyhow::Result<()> {
        let extra = inode.get(0x80..0x82).map_or(0, |size| usize::from(size[0]));
        let space = inode.get(0x80 + extra..).unwrap_or_default();
        if !trimmed(space).is_empty() {
            self.put("xattr", &format!("{name}-inode"), &[space])?;
            let head = b"\x00\x60\x00\x01\x03new\x05\x00value";
            self.put("xattr_edit", &format!("{name}-inode"), &[head, space])?;
        }
        let attributes = u32::from_le_bytes([0x68, 0x69, 0x6a, 0x6b].map(|at| inode[at]));
        if attributes != 0 {
            let block = image.block(attributes as usize);
            self.put("xattr", &format!("{name}-block"), &[&block])?;
            let head = b"\x01\x60\x00\x01\x03new\x05\x00value";
            self.put("xattr_edit", &format!("{name}-block"), &[head, &block])?;
        }
        let (kind, flags, root) = (inode[1] >> 4, inode[0x22], &inode[0x28..0x28 + 60]);
        let inline = inode[0x23] & 0x10 != 0;
        if inline {
            self.put("directory", name, &[&[number, 2, 1], b"x", root, space])?;
        } else if kind == 8 || kind == 4 {
            let by_extents = flags & 8 != 0;
            let how = u8::from(!by_extents);
            self.put("extent", name, &[&[number, how], root])?;
            // The same with its first block below the root among the input's own.
            let first = image.bytes.len() / image.block_size() - SCRATCH_BLOCKS;
            let below = if by_extents && root[6] > 0 { 16 } else { 48 };
            let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| root[at + i])) as usize;
            if (root[6] > 0 || !by_extents) && word(below) != 0 {
                let mut moved = root.to_vec();
                moved[below..below + 4].copy_from_slice(&(first as u32).to_le_bytes());
                let block = image.block(word(below));
                self.put("extent", &format!("{name}-own"), &[&[number, how], &moved, &block])?;
            }
        }
        Ok(())
    }

    /// Configurations from the documentation, and the smaller captured machines.
    fn of_text(&self, root: &Path, scratch: &Path) -> anyhow::Result<()> {
        let guide = root.join("docs/configuration.md");
        let text = fs::read_to_string(&guide).with_context(|| guide.display().to_string())?;
        // Its example is the indented part; each table is a seed too.
        let example = text.lines().filter_map(|line| line.strip_prefix("    "));
        let example = example.map(|line| format!("{line}\n")).collect::<String>();
        self.put("config", "all", &[example.as_bytes()])?;
        for (number, table) in example.split("\n[").enumerate() {
            let bracket: &[u8] = if number == 0 { b"" } else { b"[" };
            self.put("config", &number.to_string(), &[bracket, table.as_bytes()])?;
        }
        let archives = root.join("oslet/testdata/topologies");
        for machine in ["2arm-2c", "2i386-2t-hugepagesizecount", "offline-cpu0-node0"] {
            let archive = archives.join(format!("{machine}.tar.bz2"));
            let archive = archive.to_str().context("the repository's path is not UTF-8")?;
            let dir = scratch.join("machine");
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir)?;
            let place = dir.to_str().context("the build directory's name is not UTF-8")?;
            tool("tar", &["-xjf", archive, "-C", place, "--strip-components=1"])?;
            let mut parts = Vec::new();
            let mut files = tree::walk(&dir)?;
            files.sort();
            for file in files {
                let name = file.to_string_lossy().into_owned();
                let read = ["sys/devices/system", "proc/meminfo", "proc/self", "sys/fs/cgroup"];
                if read.iter().any(|start| name.starts_with(start)) {
                    let text = fs::read(dir.join(&file)).unwrap_or_default();
                    parts.extend([name.as_bytes(), &[0], &text, &[0]].concat());
                }
            }
            parts.truncate(super::TOPOLOGY_BYTES);
            self.put("topology", machine, &[&parts])?;
        }
        Ok(())
    }

    /// Requests of the kernel, and steps for the words that processes share.
    fn of_words(&self) -> anyhow::Result<()> {
        for opcode in 1..=53u32 {
            let mut header = [0u8; 40];
            header[4..8].copy_from_slice(&opcode.to_le_bytes());
            header[8] = 1;
            header[16] = 1;
            // The arguments with a size of 4096 in most, then names.
            let mut body = [0u8; 64];
            body[..8].copy_from_slice(&[7, 0, 0, 0, 38, 0, 0, 0]);
            body[16..18].copy_from_slice(&4096u16.to_le_bytes());
            let names: &[u8] = b"one\0two\0";
            self.put("fuse", &format!("{opcode}"), &[&[0], &header, &body, names])?;
            self.put("fuse", &format!("{opcode}-name"), &[&[1], &header, names])?;
        }
        self.put("ring", "hostile", &[&[2, 0], &[3; 40], &[6; 8], &[1, 255], &[4; 20]])?;
        self.put("ring", "honest", &[&[2, 1], &[0; 60], &[2; 8], &[0x41; 40]])?;
        self.put("region", "peer", &[&[0; 9]])?;
        self.put("region", "table", &[&[0, 9, 0, 0, 0, 0, 0, 0, 0], &[6, 0, 1, 4]])?;
        self.put("region", "control", &[&[1]])?;
        self.put("cache", "empty", &[&[0, 16, 5, 1, 4], b"name", &[1], &[2; 192]])?;
        self.put("wire", "sample", &[&[1, 0, 3, 0, 7]])?;
        self.of_nbd()
    }

    /// A handshake, a request of each command, and replies.
    fn of_nbd(&self) -> anyhow::Result<()> {
        let option = |number: u8, data: &[u8]| {
            let head = [&b"IHAVEOPT\0\0\0"[..], &[number, 0, 0, 0, data.len() as u8]].concat();
            [&head, data].concat()
        };
        let name = b"\0\0\0\x04disk";
        let meta = [&name[..], b"\0\0\0\x01\0\0\0\x0fbase:allocation"].concat();
        let go = [&name[..], b"\0\x01\0\x03"].concat();
        let mut all = vec![0, 1, 0, 0, 0, 3];
        for (number, data) in
            [(3, &b""[..]), (5, b""), (11, b""), (8, b""), (9, &meta), (10, &meta)]
        {
            all.extend(option(number, data));
        }
        self.put("nbd", "go", &[&all, &option(7, &go)])?;
        self.put("nbd", "export-name", &[&[0, 0, 0, 0, 0, 1], &option(1, b"disk")])?;
        for extended in [0, 2_u8] {
            let magic: u32 = if extended == 0 { 0x2560_9513 } else { 0x21e4_1c71 };
            let mut all = vec![1, extended | 8, 0xff, 0x0f];
            for command in [0, 1, 3, 4, 5, 6, 7, 8, 2] {
                all.extend(magic.to_be_bytes());
                all.extend([0, 1, 0, command, 1, 2, 3, 4, 5, 6, 7, 8]);
                all.extend([0; 10]);
                all.extend(if extended == 0 {
                    &[0, 0, 16, 0][..]
                } else {
                    &[0, 0, 0, 0, 0, 0, 16, 0]
                });
            }
            self.put("nbd", &format!("requests-{extended}"), &[&all])?;
        }
        let chunk = |kind: &[u8], payload: &[u8]| {
            let head = [&[0x66, 0x8e, 0x33, 0xef, 0, 1], kind, &[0; 11], &[payload.len() as u8]];
            [&head.concat()[..], payload].concat()
        };
        let status = chunk(&[0, 5], &[0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3]);
        let error = chunk(&[0x80, 1], &[0, 0, 0, 5, 0, 2, b'n', b'o']);
        self.put("nbd", "chunks", &[&[2, 1], &status, &error])
    }
}
