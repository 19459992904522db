//! The blocks of one transaction as they lie in the log.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::format::{
    BlockKind, HEADER_SIZE, Incompat, MAGIC, REVOKE_HEADER_SIZE, RawCommit, RawHeader, Superblock,
    TagFlags, Tid, UUID_SIZE,
};
use crate::disk::checksum::crc32c;

/// Seconds and nanoseconds since 1970.
pub type Time = (u64, u32);

/// How the features of a journal shape the blocks of its transactions.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    block_size: usize,
    incompat: Incompat,
    seed: u32,
    uuid: [u8; UUID_SIZE],
}

impl Shape {
    /// The shape that a journal's superblock asks for.
    #[must_use]
    pub fn new(sb: &Superblock) -> Self {
        Self {
            block_size: sb.block_size as usize,
            incompat: sb.incompat,
            seed: sb.seed,
            uuid: sb.raw.uuid,
        }
    }

    /// Copies that one descriptor block names.
    fn tags(&self) -> usize {
        // Room for the header, the UUID behind the first tag, and the checksum.
        (self.block_size - HEADER_SIZE - UUID_SIZE - self.incompat.tail_size())
            / self.incompat.tag_size()
    }

    /// Numbers in one revoke block.
    fn revokes(&self) -> usize {
        (self.block_size - REVOKE_HEADER_SIZE - self.incompat.tail_size())
            / self.incompat.revoke_size()
    }

    /// Blocks of the log that a transaction takes, its commit block included.
    #[must_use]
    pub fn blocks(&self, copies: usize, revoked: usize) -> usize {
        copies + copies.div_ceil(self.tags()) + revoked.div_ceil(self.revokes()) + 1
    }

    /// All blocks of a transaction but its commit block, one behind the other: blocks of which
    /// older copies are void, then whole blocks by their homes.
    #[must_use]
    pub fn body(&self, tid: Tid, writes: &[(u64, &[u8])], revoked: &[u64]) -> Vec<u8> {
        let blocks = self.blocks(writes.len(), revoked.len()) - 1;
        let mut to = Vec::with_capacity(blocks * self.block_size);
        for revoked in revoked.chunks(self.revokes()) {
            self.revoke_block(tid, revoked, &mut to);
        }
        for writes in writes.chunks(self.tags()) {
            self.described(tid, writes, &mut to);
        }
        to
    }

    /// The commit block.
    #[must_use]
    pub fn commit(&self, tid: Tid, now: Time) -> Vec<u8> {
        let mut commit = RawCommit::new_zeroed();
        commit.header = header(BlockKind::Commit, tid);
        commit.seconds = U64::new(now.0);
        commit.nanoseconds = U32::new(now.1);
        let mut block = commit.as_bytes().to_vec();
        block.resize(self.block_size, 0);
        if self.incompat.checksums() {
            let sum = crc32c(self.seed, &block);
            block[COMMIT_SUM..COMMIT_SUM + 4].copy_from_slice(&sum.to_be_bytes());
        }
        block
    }

    fn revoke_block(&self, tid: Tid, revoked: &[u64], to: &mut Vec<u8>) {
        let start = to.len();
        let used = REVOKE_HEADER_SIZE + revoked.len() * self.incompat.revoke_size();
        to.extend_from_slice(header(BlockKind::Revoke, tid).as_bytes());
        to.extend_from_slice(&(used as u32).to_be_bytes());
        for block in revoked {
            let number = block.to_be_bytes();
            to.extend_from_slice(&number[8 - self.incompat.revoke_size()..]);
        }
        self.finish(start, to);
    }

    /// A descriptor block and the copies that it names.
    fn described(&self, tid: Tid, writes: &[(u64, &[u8])], to: &mut Vec<u8>) {
        let start = to.len();
        to.resize(start + self.block_size, 0);
        for (_, contents) in writes {
            to.extend_from_slice(contents);
        }
        let (head, copies) = to[start..].split_at_mut(self.block_size);
        let mut tags = Vec::with_capacity(self.block_size);
        tags.extend_from_slice(header(BlockKind::Descriptor, tid).as_bytes());
        let seed = crc32c(self.seed, &tid.0.to_be_bytes());
        for (at, ((home, _), copy)) in
            writes.iter().zip(copies.chunks_exact_mut(self.block_size)).enumerate()
        {
            let mut flags = TagFlags::empty();
            if let Some(first) =
                copy.first_chunk_mut().filter(|first| **first == MAGIC.to_be_bytes())
            {
                *first = [0; 4];
                flags |= TagFlags::ESCAPED;
            }
            flags.set(TagFlags::SAME_UUID, at > 0);
            flags.set(TagFlags::LAST, at + 1 == writes.len());
            let sum = if self.incompat.checksums() { crc32c(seed, copy) } else { 0 };
            self.tag(*home, flags, sum, &mut tags);
            if at == 0 {
                tags.extend_from_slice(&self.uuid);
            }
        }
        head[..tags.len()].copy_from_slice(&tags);
        self.sum_tail(head);
    }

    fn tag(&self, home: u64, flags: TagFlags, sum: u32, to: &mut Vec<u8>) {
        let high = ((home >> 32) as u32).to_be_bytes();
        let start = to.len();
        to.extend_from_slice(&(home as u32).to_be_bytes());
        if self.incompat.contains(Incompat::CSUM_V3) {
            to.extend_from_slice(&flags.bits().to_be_bytes());
            to.extend_from_slice(&high);
            to.extend_from_slice(&sum.to_be_bytes());
            return;
        }
        let sum = if self.incompat.contains(Incompat::CSUM_V2) { sum as u16 } else { 0 };
        to.extend_from_slice(&sum.to_be_bytes());
        to.extend_from_slice(&(flags.bits() as u16).to_be_bytes());
        if self.incompat.contains(Incompat::BITS64) {
            to.extend_from_slice(&high);
        }
        to.resize(start + self.incompat.tag_size(), 0);
    }

    /// Completes the block from `start` on with zeros and its checksum.
    fn finish(&self, start: usize, to: &mut Vec<u8>) {
        to.resize(start + self.block_size, 0);
        self.sum_tail(&mut to[start..]);
    }

    fn sum_tail(&self, block: &mut [u8]) {
        if self.incompat.checksums() {
            let sum = crc32c(self.seed, block);
            if let Some(tail) = block.last_chunk_mut() {
                *tail = sum.to_be_bytes();
            }
        }
    }
}

const COMMIT_SUM: usize = std::mem::offset_of!(RawCommit, checksum);

fn header(kind: BlockKind, tid: Tid) -> RawHeader {
    RawHeader { magic: U32::new(MAGIC), kind: U32::new(kind as u32), sequence: U32::new(tid.0) }
}

#[cfg(test)]
mod tests;
