//! A file's bytes, in blocks.

use std::collections::BTreeMap;

use crate::opfuzz::Contents;

/// A block that is not a hole.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    bytes: Box<[u8]>,
    /// Written; else it is zeros, and whether it is shown as a hole is left open.
    written: bool,
}

/// A file's size and blocks.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    pub(crate) size: u64,
    block: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Blocks {
    pub(crate) fn new(block: u64) -> Self {
        Self { size: 0, block, blocks: BTreeMap::new() }
    }

    fn fresh(&self, written: bool) -> Block {
        Block { bytes: vec![0; self.block as usize].into(), written }
    }

    /// The parts of blocks that a range consists of: index, first byte and byte behind the last.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> + use<> {
        let (block, end) = (self.block, offset + len);
        (offset / block..end.div_ceil(block)).map(move |index| {
            let start = index * block;
            let from = offset.max(start) - start;
            let to = end.min(start + block) - start;
            (index, from as usize, to as usize)
        })
    }

    /// Without growing the file.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        for (index, from, to) in self.parts(offset, bytes.len() as u64) {
            let fresh = self.fresh(true);
            let block = self.blocks.entry(index).or_insert(fresh);
            block.written = true;
            block.bytes[from..to].copy_from_slice(&bytes[done..done + to - from]);
            done += to - from;
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.put(offset, bytes);
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    pub(crate) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let len = len.min(self.size.saturating_sub(offset));
        let mut bytes = Vec::new();
        for (index, from, to) in self.parts(offset, len) {
            match self.blocks.get(&index) {
                Some(block) => bytes.extend_from_slice(&block.bytes[from..to]),
                None => bytes.resize(bytes.len() + to - from, 0),
            }
        }
        bytes
    }

    pub(crate) fn truncate(&mut self, size: u64) {
        if size <= self.size {
            self.blocks.retain(|index, _| index * self.block < size);
            self.zero_in_place(size, self.block - 1 - (size + self.block - 1) % self.block);
        }
        self.size = size;
    }

    /// Zeros, in blocks that are there.
    fn zero_in_place(&mut self, offset: u64, len: u64) {
        for (index, from, to) in self.parts(offset, len) {
            if let Some(block) = self.blocks.get_mut(&index) {
                block.bytes[from..to].fill(0);
            }
        }
    }

    pub(crate) fn allocate(&mut self, offset: u64, len: u64) {
        for (index, ..) in self.parts(offset, len) {
            let fresh = self.fresh(false);
            self.blocks.entry(index).or_insert(fresh);
        }
    }

    pub(crate) fn punch(&mut self, offset: u64, len: u64) {
        self.zero_in_place(offset, len);
        let whole = offset.div_ceil(self.block)..(offset + len) / self.block;
        self.blocks.retain(|index, _| !whole.contains(index));
    }

    /// Makes zeros of a range, allocated where they were a hole.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) {
        self.zero_in_place(offset, len);
        let whole = offset.div_ceil(self.block)..(offset + len) / self.block;
        for (index, ..) in self.parts(offset, len) {
            let fresh = self.fresh(false);
            let block = self.blocks.entry(index).or_insert(fresh);
            block.written &= !whole.contains(&index);
        }
    }

    /// Takes whole blocks out.
    pub(crate) fn collapse(&mut self, offset: u64, len: u64) {
        let (from, gone) = (offset / self.block, len / self.block);
        let blocks = std::mem::take(&mut self.blocks).into_iter();
        let moved = blocks.filter_map(|(index, block)| match index {
            index if index < from => Some((index, block)),
            index if index < from + gone => None,
            index => Some((index - gone, block)),
        });
        self.blocks = moved.collect();
        self.size -= len;
    }

    /// Puts a hole of whole blocks in.
    pub(crate) fn insert(&mut self, offset: u64, len: u64) {
        let (from, new) = (offset / self.block, len / self.block);
        let blocks = std::mem::take(&mut self.blocks).into_iter();
        let moved = blocks.map(|(index, block)| match index {
            index if index < from => (index, block),
            index => (index + new, block),
        });
        self.blocks = moved.collect();
        self.size += len;
    }

    /// Bytes of another file, or of this one, that copy_file_range(2) puts here. Whether its holes
    /// become holes is left open.
    pub(crate) fn copy(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        for (index, from, to) in self.parts(offset, bytes.len() as u64) {
            let part = &bytes[done..done + to - from];
            let fresh = self.fresh(false);
            let block = self.blocks.entry(index).or_insert(fresh);
            block.written |= part.iter().any(|byte| *byte != 0);
            block.bytes[from..to].copy_from_slice(part);
            done += to - from;
        }
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    /// The first data, or hole, at or after an offset within the file. `None` when implementations
    /// may differ.
    pub(crate) fn seek(&self, offset: u64, data: bool) -> Option<Option<u64>> {
        let end = self.size.div_ceil(self.block);
        let open = self.blocks.range(offset / self.block..end).any(|(_, block)| !block.written);
        if open {
            return None;
        }
        let mut index = offset / self.block;
        if data {
            let found = self.blocks.range(index..end).next().map(|(index, _)| index * self.block);
            return Some(found.map(|at| at.max(offset)));
        }
        while index < end && self.blocks.contains_key(&index) {
            index += 1;
        }
        Some(Some((index * self.block).clamp(offset, self.size)))
    }

    pub(crate) fn contents(&self) -> Contents {
        let mut contents = Contents { size: self.size, ..Contents::default() };
        for (index, block) in &self.blocks {
            let start = index * self.block;
            let len = self.block.min(self.size.saturating_sub(start));
            contents.add(start, &block.bytes[..len as usize]);
            if !block.written && len > 0 {
                contents.open.push((start, start + len));
            }
        }
        contents
    }
}
