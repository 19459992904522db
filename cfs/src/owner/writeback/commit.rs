//! What is written goes into the map; contents that go through the journal with it.

use std::ops::Range;

use proxydev::data::Data;

use super::{Page, Place, Run, slices_of};
use crate::engine::write::{Live, Writer};
use crate::id::Block;
use crate::journal::Handle;
use crate::owner::Owner;
use crate::{Error, Result};

/// Runs that one handle puts into a map, at most.
pub(super) const RUNS_AT_ONCE: usize = 64;

/// Blocks of a run that goes through the journal, at most: with what its map needs it fits the
/// transactions of the smallest journal.
pub(super) const JOURNALED_AT_ONCE: u64 = 64;

impl Owner {
    /// Puts runs into the map, and the size that they cover into the inode: one handle. They are
    /// written, or `contents` has their pages, which go into the same transaction. Those that find
    /// no way into the map are added to `failed`.
    pub(super) fn commit_runs(
        &self,
        live: &mut Live,
        runs: Vec<Run>,
        contents: Option<&[Page]>,
        failed: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let writer = self.writer.as_ref().ok_or(Error::ReadOnly)?;
        let mut handle = match writer.begin(writer.insert_credits(live, 1)) {
            Ok(handle) => handle,
            Err(error) => {
                failed.extend(runs.iter().map(Run::range));
                runs.into_iter().for_each(|run| self.give_up(run.place, run.len));
                return Err(error);
            }
        };
        let bits = self.volume.superblock().block_bits;
        let mut done = Ok(());
        for run in runs {
            let (range, promised) = (run.range(), run.promised());
            let put = match contents {
                None => commit_run(writer, &mut handle, live, run, 0),
                Some(pages) => self.commit_contents(&mut handle, live, run, pages),
            };
            match put {
                Ok(()) => {
                    let end = (range.end << bits).min(live.inode.size);
                    live.disk_size = live.disk_size.max(end);
                }
                Err(error) => {
                    // The claim went back, and so did the promise.
                    self.unreserve(promised);
                    failed.push(range);
                    done = Err(error);
                }
            }
        }
        writer.step(&mut handle, live, Writer::STORE_CREDITS)?;
        writer.store(&mut handle, live)?;
        done
    }

    /// Puts a run's contents into the transaction in which its map leads to them.
    fn commit_contents(
        &self,
        handle: &mut Handle<'_>,
        live: &mut Live,
        run: Run,
        pages: &[Page],
    ) -> Result<()> {
        let writer = self.writer.as_ref().ok_or(Error::ReadOnly)?;
        let bits = self.volume.superblock().block_bits;
        let Some(start) = run.place.start() else { return Ok(()) };
        let slices = slices_of(pages, run.range(), bits).collect();
        let contents = Data::kept(self.arena.region(), slices, Box::new(()))?.to_vec()?;
        let blocks = run.len as u32;
        let put = |handle: &mut Handle<'_>, live: &mut Live| {
            let blocks = (start.0..).zip(contents.chunks_exact(1 << bits));
            blocks.into_iter().try_for_each(|(block, bytes)| {
                handle.create(Block(block), bytes.into()).map_err(|error| handle.fail(error))
            })?;
            // Nothing of the inode may have changed; who waits for it waits for its contents.
            (live.tid, live.data_tid) = (handle.tid(), handle.tid());
            Ok(())
        };
        if let Place::Claimed(_) = run.place {
            commit_run(writer, handle, live, run, blocks)?;
            return put(handle, live);
        }
        // Blocks that count as unwritten have their contents before they count as written, which
        // may go on in another transaction.
        writer.step(handle, live, blocks + Writer::STORE_CREDITS)?;
        put(handle, live)?;
        commit_run(writer, handle, live, run, 0)
    }

    /// A run will not be written: its place and its promise go back.
    pub(super) fn give_up(&self, place: Place, len: u64) {
        if let Place::Claimed(claim) = place {
            drop(claim);
            self.unreserve(len);
        }
    }
}

/// Has the map lead to a run, in a transaction that has room for `more` blocks then.
fn commit_run(
    writer: &Writer,
    handle: &mut Handle<'_>,
    live: &mut Live,
    run: Run,
    more: u32,
) -> Result<()> {
    let range = run.range();
    match run.place {
        Place::Claimed(claim) => {
            let credits = writer.insert_credits(live, run.len);
            writer.step(handle, live, credits + more)?;
            writer.insert_run(handle, live, range.start, claim, false)
        }
        Place::Unwritten(_) => writer.convert(handle, live, range, false),
        Place::Mapped(_) | Place::None | Place::Unknown => Ok(()),
    }
}
