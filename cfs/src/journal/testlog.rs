//! Writes logs for tests, as jbd2 would: revokes, then descriptors with their copies, then a
//! commit.

use zerocopy::FromZeros;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U32, U64};

use super::format::{
    BlockKind, Compat, Incompat, MAGIC, RawCommit, RawHeader, RawSuperblock, Superblock, TagFlags,
    Tid, TransactionSum,
};
use super::replay::ReadLog;
use crate::disk::checksum::crc32c;
use crate::{Error, Result};

/// What kind of log is to be written.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) block_size: u32,
    pub(crate) len: u32,
    pub(crate) v1: bool,
    pub(crate) compat: Compat,
    pub(crate) incompat: Incompat,
    pub(crate) fast_blocks: u32,
    pub(crate) start: u32,
    pub(crate) sequence: u32,
    /// Write a UUID behind the first tag of each descriptor, as jbd2 does.
    pub(crate) uuid_first: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            block_size: 1024,
            len: 64,
            v1: false,
            compat: Compat::empty(),
            incompat: Incompat::REVOKE | Incompat::CSUM_V3 | Incompat::BITS64,
            fast_blocks: 0,
            start: 1,
            sequence: 7,
            uuid_first: true,
        }
    }
}

/// One transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transaction {
    /// Home block, contents.
    pub(crate) writes: Vec<(u64, Vec<u8>)>,
    pub(crate) revokes: Vec<u64>,
    pub(crate) seconds: u64,
}

/// A log in memory.
#[derive(Clone, Debug)]
pub(crate) struct TestLog {
    pub(crate) shape: Shape,
    pub(crate) bytes: Vec<u8>,
    /// Where the next block goes, and how many there is room for.
    pub(crate) position: u32,
    left: u32,
    pub(crate) tid: Tid,
}

const UUID: [u8; 16] = *b"0123456789abcdef";

impl TestLog {
    pub(crate) fn new(shape: Shape) -> Self {
        let mut raw = RawSuperblock::new_zeroed();
        let kind = if shape.v1 { BlockKind::SuperblockV1 } else { BlockKind::SuperblockV2 };
        raw.header = header(kind, Tid(0));
        raw.block_size = U32::new(shape.block_size);
        raw.max_len = U32::new(shape.len);
        raw.first = U32::new(1);
        raw.sequence = U32::new(shape.sequence);
        raw.start = U32::new(shape.start);
        if !shape.v1 {
            raw.compat = U32::new(shape.compat.bits());
            raw.incompat = U32::new(shape.incompat.bits());
            raw.uuid = UUID;
            raw.users = U32::new(1);
            raw.fast_commit_blocks = U32::new(shape.fast_blocks);
            if shape.incompat.checksums() {
                raw.checksum_type = 4;
                raw.checksum = U32::new(raw.compute_checksum());
            }
        }
        let mut bytes = vec![0; (shape.len * shape.block_size) as usize];
        bytes[..1024].copy_from_slice(raw.as_bytes());
        let fast =
            if shape.incompat.contains(Incompat::FAST_COMMIT) { shape.fast_blocks } else { 0 };
        let (position, tid) = (shape.start.max(1), Tid(shape.sequence));
        let left = shape.len - fast - 1;
        Self { shape, bytes, position, left, tid }
    }

    pub(crate) fn superblock(&self) -> Superblock {
        Superblock::parse(&self.bytes, self.shape.block_size, self.shape.len).unwrap()
    }

    pub(crate) fn block_mut(&mut self, position: u32) -> &mut [u8] {
        let size = self.shape.block_size as usize;
        &mut self.bytes[position as usize * size..][..size]
    }

    /// Appends a whole transaction; false, and nothing done, when there is no room.
    pub(crate) fn append(&mut self, transaction: &Transaction) -> bool {
        let before = self.clone();
        let whole = self.append_open(transaction) && self.commit(transaction.seconds);
        if !whole {
            *self = before;
        }
        whole
    }

    /// The same without a commit block: a torn transaction.
    pub(crate) fn append_open(&mut self, transaction: &Transaction) -> bool {
        self.revoke_blocks(&transaction.revokes) && self.descriptors(&transaction.writes)
    }

    fn incompat(&self) -> Incompat {
        if self.shape.v1 { Incompat::empty() } else { self.shape.incompat }
    }

    fn seed(&self) -> u32 {
        crc32c(!0, &UUID)
    }

    fn push(&mut self, mut block: Vec<u8>) -> bool {
        if self.left == 0 {
            return false;
        }
        block.resize(self.shape.block_size as usize, 0);
        let position = self.position;
        self.block_mut(position).copy_from_slice(&block);
        self.left -= 1;
        let fast = self.shape.len - 1 - self.shape.fast_blocks;
        let last =
            if self.incompat().contains(Incompat::FAST_COMMIT) { fast + 1 } else { self.shape.len };
        self.position = if position + 1 == last { 1 } else { position + 1 };
        true
    }

    fn with_tail(&self, mut block: Vec<u8>) -> Vec<u8> {
        block.resize(self.shape.block_size as usize, 0);
        if self.incompat().checksums() {
            let sum = crc32c(self.seed(), &block).to_be_bytes();
            let at = block.len() - 4;
            block[at..].copy_from_slice(&sum);
        }
        block
    }

    fn revoke_blocks(&mut self, revokes: &[u64]) -> bool {
        let wide = self.incompat().contains(Incompat::BITS64);
        let room = (self.shape.block_size as usize - 20) / if wide { 8 } else { 4 };
        revokes.chunks(room).all(|chunk| {
            let mut block = header(BlockKind::Revoke, self.tid).as_bytes().to_vec();
            let used = 16 + chunk.len() * if wide { 8 } else { 4 };
            block.extend_from_slice(&(used as u32).to_be_bytes());
            for home in chunk {
                let number = home.to_be_bytes();
                block.extend_from_slice(if wide { &number } else { &number[4..] });
            }
            let block = self.with_tail(block);
            self.push(block)
        })
    }

    fn descriptors(&mut self, writes: &[(u64, Vec<u8>)]) -> bool {
        let tag_size = self.incompat().tag_size();
        let uuids = if self.shape.uuid_first { 1 } else { usize::MAX };
        let tag_room = tag_size + if uuids == 1 { 0 } else { 16 };
        let room = (self.shape.block_size as usize - 12 - 16 - 4) / tag_room;
        writes.chunks(room).all(|chunk| {
            let mut block = header(BlockKind::Descriptor, self.tid).as_bytes().to_vec();
            let mut copies = Vec::new();
            for (at, (home, contents)) in chunk.iter().enumerate() {
                let mut copy = contents.clone();
                copy.resize(self.shape.block_size as usize, 0);
                let mut flags = TagFlags::empty();
                if copy[..4] == MAGIC.to_be_bytes() {
                    copy[..4].fill(0);
                    flags |= TagFlags::ESCAPED;
                }
                flags.set(TagFlags::SAME_UUID, at >= uuids);
                flags.set(TagFlags::LAST, at + 1 == chunk.len());
                block.extend_from_slice(&self.tag(*home, flags, &copy));
                if !flags.contains(TagFlags::SAME_UUID) {
                    block.extend_from_slice(&UUID);
                }
                copies.push(copy);
            }
            let block = self.with_tail(block);
            self.push(block) && copies.into_iter().all(|copy| self.push(copy))
        })
    }

    fn tag(&self, home: u64, flags: TagFlags, copy: &[u8]) -> Vec<u8> {
        let (incompat, mut tag) = (self.incompat(), Vec::new());
        let sum = crc32c(crc32c(self.seed(), &self.tid.0.to_be_bytes()), copy);
        let high = ((home >> 32) as u32).to_be_bytes();
        tag.extend_from_slice(&(home as u32).to_be_bytes());
        if incompat.contains(Incompat::CSUM_V3) {
            tag.extend_from_slice(&flags.bits().to_be_bytes());
            tag.extend_from_slice(&high);
            tag.extend_from_slice(&sum.to_be_bytes());
            return tag;
        }
        let sum = if incompat.contains(Incompat::CSUM_V2) { sum as u16 } else { 0 };
        tag.extend_from_slice(&sum.to_be_bytes());
        tag.extend_from_slice(&(flags.bits() as u16).to_be_bytes());
        if incompat.contains(Incompat::BITS64) {
            tag.extend_from_slice(&high);
        }
        tag.resize(incompat.tag_size(), 0);
        tag
    }

    pub(crate) fn commit(&mut self, seconds: u64) -> bool {
        let mut raw = RawCommit::new_zeroed();
        raw.header = header(BlockKind::Commit, self.tid);
        raw.seconds = U64::new(seconds);
        if self.shape.compat.contains(Compat::CHECKSUM) && !self.shape.v1 {
            raw.checksum_type = 1;
            raw.checksum_size = 4;
            raw.checksum[0] = U32::new(self.transaction_sum());
        }
        let mut block = raw.as_bytes().to_vec();
        block.resize(self.shape.block_size as usize, 0);
        if self.incompat().checksums() {
            let sum = crc32c(self.seed(), &block).to_be_bytes();
            block[16..20].copy_from_slice(&sum);
        }
        let pushed = self.push(block);
        self.tid = self.tid.next();
        pushed
    }

    /// Over all descriptors and copies of the open transaction, found by walking it.
    fn transaction_sum(&self) -> u32 {
        let sb = self.superblock();
        let (mut at, mut tid, mut sum) = (sb.start, sb.sequence, TransactionSum::START);
        let mut block = vec![0; self.shape.block_size as usize];
        while at != self.position || tid != self.tid {
            self.read_log(at, &mut block).unwrap();
            at = sb.advance(at, 1).unwrap();
            match RawHeader::parse(&block) {
                Some((BlockKind::Descriptor, found)) if found == tid => {
                    sum = sum.then(&block);
                    for _ in sb.tags(&block.clone()) {
                        self.read_log(at, &mut block).unwrap();
                        at = sb.advance(at, 1).unwrap();
                        sum = sum.then(&block);
                    }
                }
                Some((BlockKind::Commit, found)) if found == tid => {
                    (tid, sum) = (tid.next(), TransactionSum::START);
                }
                _ => {}
            }
        }
        sum.0
    }
}

fn header(kind: BlockKind, tid: Tid) -> RawHeader {
    RawHeader { magic: U32::new(MAGIC), kind: U32::new(kind as u32), sequence: U32::new(tid.0) }
}

impl ReadLog for TestLog {
    fn read_log(&self, position: u32, block: &mut [u8]) -> Result<()> {
        let size = self.shape.block_size as usize;
        let found = self.bytes.get(position as usize * size..).and_then(|rest| rest.get(..size));
        block.copy_from_slice(found.ok_or_else(|| Error::Invalid("outside the log".into()))?);
        Ok(())
    }
}
