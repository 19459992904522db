//! Writes one transaction into an empty log.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::format::{BlockKind, Incompat, MAGIC, RawCommit, RawHeader, Superblock, TagFlags, Tid};
use crate::disk::checksum::crc32c;

/// The blocks of a log, from its first place for transactions on, that make up one transaction;
/// `None` when they do not fit. `now` is in seconds since 1970, `writes` are whole blocks with
/// their homes.
#[must_use]
pub fn transaction(
    sb: &Superblock,
    tid: Tid,
    writes: &[(u64, Vec<u8>)],
    now: u64,
) -> Option<Vec<Vec<u8>>> {
    let block_size = sb.block_size as usize;
    let tag_size = sb.incompat.tag_size();
    // Room for the header, the UUID behind the first tag, and the checksum.
    let tags = (block_size - size_of::<RawHeader>() - 16 - 4) / tag_size;
    let needed = writes.len() + writes.len().div_ceil(tags) + 1;
    if needed >= (sb.last - sb.first) as usize {
        return None;
    }
    let mut blocks = Vec::with_capacity(needed);
    for writes in writes.chunks(tags) {
        let mut descriptor = header(BlockKind::Descriptor, tid).as_bytes().to_vec();
        let mut copies = Vec::with_capacity(writes.len());
        for (at, (home, contents)) in writes.iter().enumerate() {
            let mut copy = contents.clone();
            let mut flags = TagFlags::empty();
            if let Some(first) =
                copy.first_chunk_mut().filter(|first| **first == MAGIC.to_be_bytes())
            {
                *first = [0; 4];
                flags |= TagFlags::ESCAPED;
            }
            flags.set(TagFlags::SAME_UUID, at > 0);
            flags.set(TagFlags::LAST, at + 1 == writes.len());
            tag(sb, tid, *home, flags, &copy, &mut descriptor);
            if at == 0 {
                descriptor.extend_from_slice(&sb.raw.uuid);
            }
            copies.push(copy);
        }
        descriptor.resize(block_size, 0);
        if sb.incompat.checksums() {
            let sum = crc32c(sb.seed, &descriptor);
            descriptor[block_size - 4..].copy_from_slice(&sum.to_be_bytes());
        }
        blocks.push(descriptor);
        blocks.append(&mut copies);
    }
    let mut commit = RawCommit::new_zeroed();
    commit.header = header(BlockKind::Commit, tid);
    commit.seconds = U64::new(now);
    let mut commit = commit.as_bytes().to_vec();
    commit.resize(block_size, 0);
    if sb.incompat.checksums() {
        let sum = crc32c(sb.seed, &commit);
        commit[COMMIT_SUM..COMMIT_SUM + 4].copy_from_slice(&sum.to_be_bytes());
    }
    blocks.push(commit);
    Some(blocks)
}

const COMMIT_SUM: usize = std::mem::offset_of!(RawCommit, checksum);

fn header(kind: BlockKind, tid: Tid) -> RawHeader {
    RawHeader { magic: U32::new(MAGIC), kind: U32::new(kind as u32), sequence: U32::new(tid.0) }
}

fn tag(sb: &Superblock, tid: Tid, home: u64, flags: TagFlags, copy: &[u8], to: &mut Vec<u8>) {
    let sum = crc32c(crc32c(sb.seed, &tid.0.to_be_bytes()), copy);
    let high = ((home >> 32) as u32).to_be_bytes();
    let start = to.len();
    to.extend_from_slice(&(home as u32).to_be_bytes());
    if sb.incompat.contains(Incompat::CSUM_V3) {
        to.extend_from_slice(&flags.bits().to_be_bytes());
        to.extend_from_slice(&high);
        to.extend_from_slice(&sum.to_be_bytes());
        return;
    }
    let sum = if sb.incompat.contains(Incompat::CSUM_V2) { sum as u16 } else { 0 };
    to.extend_from_slice(&sum.to_be_bytes());
    to.extend_from_slice(&(flags.bits() as u16).to_be_bytes());
    if sb.incompat.contains(Incompat::BITS64) {
        to.extend_from_slice(&high);
    }
    to.resize(start + sb.incompat.tag_size(), 0);
}
