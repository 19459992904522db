//! Finds what a log says: which transactions are complete, and which blocks they leave where.
//!
//! The rules are jbd2's (the kernel's fs/jbd2/recovery.c): a scan that finds the end of the log,
//! the revoke records, and the copies. Nothing is written here, and every checksum that jbd2 looks
//! at is looked at before the caller writes the first block, so that a corrupt log leaves the
//! filesystem as it was.

use std::collections::{BTreeMap, HashMap};

use super::format::{
    BlockKind, Commit, Compat, Incompat, MAGIC, RawHeader, Superblock, Tag, TagFlags, Tid,
    TransactionSum,
};
use crate::{Error, Result};

/// Reads one block of the log, by its place in the log.
pub trait ReadLog {
    /// Fills `block`, which is as long as a block.
    fn read_log(&self, position: u32, block: &mut [u8]) -> Result<()>;
}

/// What is to be done with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The first transaction that is not in the log, or not whole.
    pub end: Tid,
    /// For each home block its last copy.
    pub copies: BTreeMap<u64, Copied>,
    /// Transactions to be replayed.
    pub transactions: u32,
    /// Copies that revoke records made void.
    pub revoked: u64,
}

/// Where the last copy of a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Its place in the log.
    pub position: u32,
    /// True when its first word was [`MAGIC`] and is not so in the log.
    pub escaped: bool,
}

impl Copied {
    /// Reads the block as it was at home.
    pub fn read<L: ReadLog>(self, log: &L, block: &mut [u8]) -> Result<()> {
        log.read_log(self.position, block)?;
        if let (true, Some(first)) = (self.escaped, block.first_chunk_mut()) {
            *first = MAGIC.to_be_bytes();
        }
        Ok(())
    }
}

/// Reads the whole log once for its end and once more for its contents.
///
/// `home_blocks` is what the device holds (a superblock in the log may be larger than the one at
/// home, after an online resize).
pub fn plan<L: ReadLog>(sb: &Superblock, home_blocks: u64, log: &L) -> Result<Plan> {
    if sb.start == 0 {
        return Ok(Plan { end: sb.sequence, copies: BTreeMap::new(), transactions: 0, revoked: 0 });
    }
    let end = find_end(sb, log)?;
    let found = collect(sb, end, log)?;
    let mut plan = Plan {
        end,
        copies: BTreeMap::new(),
        transactions: end.0.wrapping_sub(sb.sequence.0),
        revoked: 0,
    };
    let mut block = vec![0; sb.block_size as usize];
    for copy in &found.copies {
        let home = copy.tag.block;
        if found.revoked.get(&home).is_some_and(|tid| tid.at_least(copy.tid)) {
            plan.revoked += 1;
            continue;
        }
        if home >= home_blocks {
            let what = format!("block {home} is outside the device's {home_blocks}");
            return Err(corrupt(copy.tid, what));
        }
        log.read_log(copy.position, &mut block)?;
        if !sb.data_is_valid(&copy.tag, copy.tid, &block) {
            let what = format!("checksum of the copy of block {home} is wrong");
            return Err(corrupt(copy.tid, what));
        }
        let escaped = copy.tag.flags.contains(TagFlags::ESCAPED);
        plan.copies.insert(home, Copied { position: copy.position, escaped });
    }
    Ok(plan)
}

fn corrupt(tid: Tid, why: impl Into<String>) -> Error {
    Error::corrupt(format_args!("journal: transaction {tid}"), why)
}

/// Walks the log block by block. Ends after one circle whatever the blocks say: no valid log is
/// longer, and a log made of one circle of revoke blocks would otherwise never end.
struct Walk<'a, L> {
    sb: &'a Superblock,
    log: &'a L,
    position: u32,
    left: u32,
    block: Vec<u8>,
}

impl<'a, L: ReadLog> Walk<'a, L> {
    fn new(sb: &'a Superblock, log: &'a L) -> Self {
        let block = vec![0; sb.block_size as usize];
        Self { sb, log, position: sb.start, left: sb.last - sb.first, block }
    }

    /// Reads the next block into `self.block` and says where it was.
    fn step(&mut self) -> Result<Option<u32>> {
        let at = self.position;
        if !self.skip(1) {
            return Ok(None);
        }
        self.log.read_log(at, &mut self.block)?;
        Ok(Some(at))
    }

    /// The next block if it belongs to the log of transaction `tid`.
    fn header(&mut self, tid: Tid) -> Result<Option<BlockKind>> {
        if self.step()?.is_none() {
            return Ok(None);
        }
        Ok(RawHeader::parse(&self.block).filter(|(_, found)| *found == tid).map(|(kind, _)| kind))
    }

    fn skip(&mut self, count: u32) -> bool {
        let Some(left) = self.left.checked_sub(count) else { return false };
        let Some(position) = self.sb.advance(self.position, count) else { return false };
        (self.left, self.position) = (left, position);
        true
    }
}

/// The scan: returns the first transaction that is not to be replayed.
fn find_end<L: ReadLog>(sb: &Superblock, log: &L) -> Result<Tid> {
    let mut walk = Walk::new(sb, log);
    let mut tid = sb.sequence;
    // Set where an asynchronous commit has a wrong checksum: the log goes on, but not for us.
    let mut broken = None;
    // A descriptor or revoke block of this transaction has a wrong checksum. It may be a stale
    // block of an earlier life of the journal; only the time of the commit tells.
    let mut suspect = false;
    let mut last_commit = 0;
    let mut sum = TransactionSum::START;
    let transaction_sums = sb.compat.contains(Compat::CHECKSUM);
    while let Some(kind) = walk.header(tid)? {
        match kind {
            BlockKind::Descriptor => {
                suspect |= !sb.tail_is_valid(&walk.block);
                let count = u32::try_from(sb.tags(&walk.block).count()).unwrap_or(u32::MAX);
                if transaction_sums && !suspect && broken.is_none() {
                    sum = sum.then(&walk.block);
                    for _ in 0..count {
                        if walk.step()?.is_none() {
                            return Ok(broken.unwrap_or(tid));
                        }
                        sum = sum.then(&walk.block);
                    }
                } else if !walk.skip(count) {
                    break;
                }
            }
            BlockKind::Revoke => suspect |= !sb.tail_is_valid(&walk.block),
            BlockKind::Commit => {
                let Some(commit) = Commit::parse(&walk.block) else { break };
                let stale = commit.seconds < last_commit;
                if suspect {
                    if stale {
                        break;
                    }
                    let what = "checksum of a descriptor or revoke block is wrong";
                    return Err(corrupt(tid, what));
                }
                if let (true, Some(tid)) = (transaction_sums, broken) {
                    let what = "its checksum is wrong and another commit follows";
                    return Err(corrupt(tid, what));
                }
                let valid = if transaction_sums {
                    commit.transaction_is_valid(sum)
                } else {
                    sb.commit_is_valid(&walk.block)
                };
                if !valid {
                    if stale {
                        break;
                    }
                    if !sb.incompat.contains(Incompat::ASYNC_COMMIT) {
                        let what = "checksum of its commit block is wrong";
                        return Err(corrupt(tid, what));
                    }
                    broken.get_or_insert(tid);
                }
                sum = TransactionSum::START;
                last_commit = commit.seconds;
                tid = tid.next();
            }
            BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => break,
        }
    }
    Ok(broken.unwrap_or(tid))
}

/// One copy in the log.
struct Found {
    tag: Tag,
    tid: Tid,
    position: u32,
}

/// All copies in order, and the last transaction that revoked each block.
struct Contents {
    copies: Vec<Found>,
    revoked: HashMap<u64, Tid>,
}

/// A record revokes the copies of its own and of earlier transactions; so what counts is the last
/// record of each block, and both lists can be made in one pass.
fn collect<L: ReadLog>(sb: &Superblock, end: Tid, log: &L) -> Result<Contents> {
    let mut walk = Walk::new(sb, log);
    let mut tid = sb.sequence;
    let mut contents = Contents { copies: Vec::new(), revoked: HashMap::new() };
    while tid != end {
        let Some(kind) = walk.header(tid)? else {
            let what = "the log changed while it was read";
            return Err(corrupt(tid, what));
        };
        match kind {
            BlockKind::Descriptor => {
                let mut position = walk.position;
                let mut count = 0;
                for tag in sb.tags(&walk.block) {
                    contents.copies.push(Found { tag, tid, position });
                    position = sb.advance(position, 1).unwrap_or(sb.first);
                    count += 1;
                }
                if !walk.skip(count) {
                    let what = "the log changed while it was read";
                    return Err(corrupt(tid, what));
                }
            }
            BlockKind::Revoke => {
                for block in sb.revoked(&walk.block)? {
                    contents.revoked.insert(block, tid);
                }
            }
            BlockKind::Commit => tid = tid.next(),
            BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => {
                let what = "a superblock lies in the log";
                return Err(corrupt(tid, what));
            }
        }
    }
    Ok(contents)
}

#[cfg(test)]
mod tests;
