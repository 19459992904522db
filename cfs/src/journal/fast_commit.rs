//! The fast commit area: what the kernel logged since the last full commit, as operations.
//!
//! The area begins one block after the place where the log wraps. A fast commit is a row of records
//! (little-endian: tag, length, value), opened by a head and closed by a tail that carries the
//! checksum over the row; several may follow one another under one head. Only rows that are whole
//! and of the transaction that was running count. The format is the kernel's fs/ext4/fast_commit.h.

use super::format::{Superblock, Tid};
use super::replay::ReadLog;
use crate::disk::checksum::crc32c;
use crate::{Error, Result};

/// Records of whole fast commits that the log does not contain otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Fast commits.
    pub commits: u32,
    /// Records that change something.
    pub changes: u32,
}

const TAG_LAST_CHANGE: u16 = 6;
const TAG_PAD: u16 = 7;
const TAG_TAIL: u16 = 8;
const TAG_HEAD: u16 = 9;
const RECORD_HEADER: usize = 4;

/// Refuses a journal whose fast commit area holds changes that the rest of the log does not.
pub fn refuse_pending<L: ReadLog>(sb: &Superblock, running: Tid, log: &L) -> Result<()> {
    let pending = pending(sb, running, log)?;
    if pending.changes == 0 {
        return Ok(());
    }
    Err(Error::Refused {
        feature: "fast_commit".into(),
        hint: format!(
            " with changes that are not in place, of which there are {} in {} fast commits: mount \
             and unmount the volume with the kernel, or run e2fsck, and try again",
            pending.changes, pending.commits
        )
        .into(),
    })
}

/// Counts the records of fast commits on top of `running`, the transaction after the last in the
/// log.
pub fn pending<L: ReadLog>(sb: &Superblock, running: Tid, log: &L) -> Result<Pending> {
    let mut found = Pending::default();
    let mut open = Row { sum: 0, changes: 0, headed: false };
    let mut block = vec![0; sb.block_size as usize];
    for position in sb.last.saturating_add(1)..sb.max_len {
        log.read_log(position, &mut block)?;
        let mut rest = &block[..];
        while let Some((tag, value, record, after)) = split(rest) {
            rest = after;
            match tag {
                TAG_HEAD => {
                    let (Some(features), Some(tid)) = (word(value, 0), word(value, 4)) else {
                        return Ok(found);
                    };
                    if Tid(tid) != running {
                        return Ok(found);
                    }
                    if features != 0 {
                        let feature = format!("fast commit {features:#x}");
                        return Err(Error::Refused { feature, hint: "".into() });
                    }
                    open.headed = true;
                    open.sum = crc32c(open.sum, record);
                }
                // A pad fills the block up, whatever its length says.
                1..=TAG_PAD if open.headed => {
                    open.sum = crc32c(open.sum, record);
                    open.changes += u32::from(tag <= TAG_LAST_CHANGE);
                }
                TAG_TAIL if open.headed => {
                    let (Some(tid), Some(sum)) = (word(value, 0), word(value, 4)) else {
                        return Ok(found);
                    };
                    let covered = record.get(..RECORD_HEADER + 4).unwrap_or(record);
                    if Tid(tid) != running || crc32c(open.sum, covered) != sum {
                        return Ok(found);
                    }
                    found.commits += 1;
                    found.changes += open.changes;
                    (open.sum, open.changes) = (0, 0);
                }
                _ => return Ok(found),
            }
        }
    }
    Ok(found)
}

/// A fast commit that has not met its tail.
struct Row {
    sum: u32,
    changes: u32,
    headed: bool,
}

/// The first record of `bytes`: its tag, its value, all of it, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8], &[u8])> {
    let (header, _) = bytes.split_first_chunk::<RECORD_HEADER>()?;
    let [tag_lo, tag_hi, len_lo, len_hi] = *header;
    let len = usize::from(u16::from_le_bytes([len_lo, len_hi]));
    let (record, after) = bytes.split_at_checked(RECORD_HEADER + len)?;
    Some((u16::from_le_bytes([tag_lo, tag_hi]), record.get(RECORD_HEADER..)?, record, after))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}
