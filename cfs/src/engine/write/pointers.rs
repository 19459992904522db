//! Maps by pointers, as ext2 and ext3 have them: twelve blocks in the inode, then trees of tables
//! of one, two and three levels.

use std::sync::Arc;

use super::map::{Freed, Groups};
use super::{Live, Writer};
use crate::alloc::Claim;
use crate::disk::indirect::{DIRECT, MAX_LEVELS, Path};
use crate::engine::cache::CachedBlock;
use crate::id::Block;
use crate::journal::Handle;
use crate::{Error, Result};

/// Where a table is: in the inode, or in a block.
#[derive(Clone, Copy)]
enum Table {
    Inode,
    Block(Block),
}

/// A subtree of which blocks are removed.
#[derive(Clone, Copy)]
struct Subtree {
    table: Table,
    /// Tables below each of its pointers.
    levels: u32,
    /// The block of the file below its first pointer.
    start: u64,
    /// Its pointers that are looked at.
    from: u32,
    to: u32,
}

/// Runs that are given back in one step.
const RUNS_AT_ONCE: usize = 64;

impl Writer {
    /// Maps a run of blocks that is mapped nowhere yet.
    pub(super) fn insert_pointers(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        logical: u64,
        claim: Claim,
    ) -> Result<()> {
        let (start, len) = (claim.start(), u64::from(claim.len()));
        let bits = self.volume.superblock().block_bits - 2;
        let last = start.0 + len - 1;
        if u32::try_from(last).is_err() {
            let why = format!("cannot map {} without extents", Block(last));
            return Err(Error::Invalid(format!("{} {why}", live.inode.ino)));
        }
        let mut tables = self.missing_tables(live, logical, len)?;
        claim.commit(handle).map_err(|error| handle.fail(error))?;
        live.charge(len, self.volume.superblock());
        (live.tid, live.data_tid) = (handle.tid(), handle.tid());
        let mut done = 0;
        while done < len {
            let path = Path::new(logical + done, bits).ok_or(Error::FileTooBig)?;
            let part = path.together(self.volume.superblock().block_size / 4).min(len - done);
            self.put_pointers(handle, live, &path, start.0 + done, part, &mut tables)
                .map_err(|error| handle.fail(error))?;
            done += part;
        }
        Ok(())
    }

    /// Claims a block for each table that a run needs and that is not there; the run's own pointers
    /// must be zeros.
    fn missing_tables(&self, live: &Live, logical: u64, len: u64) -> Result<Vec<Claim>> {
        let superblock = self.volume.superblock();
        let bits = superblock.block_bits - 2;
        let mut claims = Vec::new();
        let mut before: Option<Path> = None;
        let mut done = 0;
        while done < len {
            let path = Path::new(logical + done, bits).ok_or(Error::FileTooBig)?;
            let part = path.together(superblock.block_size / 4).min(len - done);
            let found = self.walk(live, &path, part)?;
            // The tables on the way to the run's part before this one are there by then.
            let shared = before.map_or(0, |before| {
                let same = before.indexes().iter().zip(path.indexes());
                same.take_while(|(a, b)| a == b).count() + 1
            });
            let goal = self.goal(live, logical);
            for _ in found.max(shared)..path.indexes().len() {
                claims.push(self.claim_map_block(goal)?);
            }
            before = Some(path);
            done += part;
        }
        // The first one is taken first.
        claims.reverse();
        Ok(claims)
    }

    /// Goes along a path; returns how many of its tables are there, the inode's included. `len`
    /// pointers from its end on must be zeros.
    fn walk(&self, live: &Live, path: &Path, len: u64) -> Result<usize> {
        let indexes = path.indexes();
        let mut block: Option<Arc<CachedBlock>> = None;
        for (level, &index) in indexes.iter().enumerate() {
            let table: &[u8] = match &block {
                None => &live.inode.block,
                Some(block) => &block.bytes,
            };
            if level + 1 == indexes.len() {
                let taken = (index..index + len as u32).any(|at| pointer(table, at) != 0);
                if taken {
                    let why = "a block would be mapped twice";
                    return Err(Error::corrupt(live.inode.ino, why));
                }
                break;
            }
            match pointer(table, index) {
                0 => return Ok(level + 1),
                next => block = Some(self.read_table(live, Block(next.into()))?),
            }
        }
        Ok(indexes.len())
    }

    fn read_table(&self, live: &Live, block: Block) -> Result<Arc<CachedBlock>> {
        if !self.volume.may_claim(&live.inode, block, 1) {
            return Err(Error::corrupt(live.inode.ino, format!("has a table at {block}")));
        }
        self.volume.block(block)
    }

    /// Puts pointers to a run into one table, and the tables that are missing above it.
    fn put_pointers(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        path: &Path,
        start: u64,
        len: u64,
        tables: &mut Vec<Claim>,
    ) -> Result<()> {
        let indexes = path.indexes();
        let superblock = self.volume.superblock();
        let mut table = Table::Inode;
        for (level, &index) in indexes.iter().enumerate() {
            if level + 1 == indexes.len() {
                let pointers: Vec<u8> =
                    (start..start + len).flat_map(|block| (block as u32).to_le_bytes()).collect();
                return self.put_words(handle, live, table, index, &pointers);
            }
            let next = match self.word(handle, live, table, index)? {
                0 => {
                    let claim = tables.pop().ok_or_else(|| {
                        Error::Exhausted("more tables of a map than were prepared for".into())
                    })?;
                    let block = claim.start();
                    claim.commit(handle)?;
                    live.charge(1, superblock);
                    handle.create(block, vec![0; superblock.block_size as usize].into())?;
                    self.put_words(handle, live, table, index, &(block.0 as u32).to_le_bytes())?;
                    block
                }
                next => Block(next.into()),
            };
            table = Table::Block(next);
        }
        Ok(())
    }

    /// Removes what is mapped between two blocks of a file, from the end on, and the tables that
    /// are empty then.
    pub(super) fn remove_pointers(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        first: u64,
        end: u64,
    ) -> Result<()> {
        let bits = self.volume.superblock().block_bits - 2;
        // The trees of one, two and three levels, the last one first; then the direct pointers.
        for levels in (1..MAX_LEVELS as u32).rev() {
            let below: u64 = (1..levels).map(|level| 1u64 << (bits * level)).sum();
            let at = DIRECT as u32 + levels - 1;
            let start = DIRECT + below;
            let tree = Subtree { table: Table::Inode, levels, start, from: at, to: at + 1 };
            self.remove_below(handle, live, &tree, first, end)?;
        }
        let direct = Subtree {
            table: Table::Inode,
            levels: 0,
            start: 0,
            from: first.min(DIRECT) as u32,
            to: end.min(DIRECT) as u32,
        };
        self.remove_data(handle, live, &direct)
    }

    /// Removes what lies in a range below the pointers of a table to tables. The first one that is
    /// looked at leads to the subtree's start.
    fn remove_below(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        tree: &Subtree,
        first: u64,
        end: u64,
    ) -> Result<()> {
        let bits = self.volume.superblock().block_bits - 2;
        let per_block = 1u32 << bits;
        let reach = 1u64 << (bits * tree.levels);
        for at in (tree.from..tree.to).rev() {
            let start = tree.start + u64::from(at - tree.from) * reach;
            if start >= end || start + reach <= first {
                continue;
            }
            let block = match self.word(handle, live, tree.table, at)? {
                0 => continue,
                block => Block(block.into()),
            };
            drop(self.read_table(live, block)?);
            let table = Table::Block(block);
            let levels = tree.levels - 1;
            if levels > 0 {
                let below = Subtree { table, levels, start, from: 0, to: per_block };
                self.remove_below(handle, live, &below, first, end)?;
            } else {
                let from = first.saturating_sub(start) as u32;
                let to = (end - start).min(per_block.into()) as u32;
                let below = Subtree { table, levels, start, from, to };
                self.remove_data(handle, live, &below)?;
            }
            self.step(handle, live, Self::EDIT_CREDITS)?;
            if handle.read(block)?.bytes.iter().all(|&byte| byte == 0) {
                self.put_words(handle, live, tree.table, at, &[0; 4])
                    .and_then(|()| self.free_map_block(handle, live, block))
                    .map_err(|error| handle.fail(error))?;
            }
        }
        Ok(())
    }

    /// Removes blocks of data that a table names.
    fn remove_data(&self, handle: &mut Handle<'_>, live: &mut Live, tree: &Subtree) -> Result<()> {
        let mut to = tree.to;
        while to > tree.from {
            let most = self.step_back(handle, live)?.min(to.into()) as u32;
            let tree = Subtree { from: tree.from.max(to - most), ..*tree };
            let mut runs = [Freed { start: Block(0), len: 0 }; RUNS_AT_ONCE];
            let (from, count) = self.last_runs(handle, live, &tree, to, &mut runs)?;
            if count > 0 {
                (live.tid, live.data_tid) = (handle.tid(), handle.tid());
                let zeros = vec![0; (to - from) as usize * 4];
                self.put_words(handle, live, tree.table, from, &zeros)
                    .map_err(|error| handle.fail(error))?;
                for &run in &runs[..count] {
                    self.free_contents(handle, live, run).map_err(|error| handle.fail(error))?;
                }
            }
            to = from;
        }
        Ok(())
    }

    /// Gathers the last runs that a table names before `to`, as many as one step can give back;
    /// returns from where on, and how many.
    fn last_runs(
        &self,
        handle: &Handle<'_>,
        live: &Live,
        tree: &Subtree,
        to: u32,
        runs: &mut [Freed; RUNS_AT_ONCE],
    ) -> Result<(u32, usize)> {
        let block;
        let table: &[u8] = match tree.table {
            Table::Inode => &live.inode.block,
            Table::Block(at) => {
                block = handle.read(at)?;
                &block.bytes
            }
        };
        let mut groups = Groups::default();
        let (mut from, mut count) = (to, 0);
        while from > tree.from {
            let start = match pointer(table, from - 1) {
                0 => {
                    from -= 1;
                    continue;
                }
                block => u64::from(block),
            };
            let run = Freed { start: Block(start), len: 1 };
            if !self.volume.may_claim(&live.inode, run.start, 1) {
                return Err(Error::corrupt(live.inode.ino, format!("maps {}", run.start)));
            }
            if let Some(last) = runs[..count].last_mut()
                && last.start.0 == start + 1
                && groups.add(self.volume.superblock(), run)
            {
                *last = Freed { start: run.start, len: last.len + 1 };
            } else if count < runs.len() && groups.add(self.volume.superblock(), run) {
                runs[count] = run;
                count += 1;
            } else {
                break;
            }
            from -= 1;
        }
        Ok((from, count))
    }

    fn word(&self, handle: &Handle<'_>, live: &Live, table: Table, index: u32) -> Result<u32> {
        Ok(match table {
            Table::Inode => pointer(&live.inode.block, index),
            Table::Block(block) => pointer(&handle.read(block)?.bytes, index),
        })
    }

    fn put_words(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        table: Table,
        index: u32,
        words: &[u8],
    ) -> Result<()> {
        let at = index as usize * 4;
        match table {
            Table::Inode => {
                live.inode.block[at..at + words.len()].copy_from_slice(words);
                Ok(())
            }
            Table::Block(block) => handle.put(block, at, words),
        }
    }
}

fn pointer(table: &[u8], index: u32) -> u32 {
    let at = index as usize * 4;
    table.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
