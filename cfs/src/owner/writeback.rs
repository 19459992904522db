//! Writing dirty pages to the disk: data first, metadata after, or both in one transaction
//! (docs/writing.md, "Data").

mod commit;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use oslet::id::PageRef;
use proxydev::data::{Data, Slice};

use super::Owner;
use super::dirty::File;
use super::flusher::THREADS;
use super::frames::Blocks;
use super::pages::PAGE;
use crate::alloc::Claim;
use crate::engine::Mapping;
use crate::engine::store::PageWrite;
use crate::engine::write::Live;
use crate::id::Block;
use crate::{Caller, Error, Result};

/// Pages of one batch: what is prepared, written and committed together.
const BATCH: usize = 4096;
/// Bytes of one request to the device.
const REQUEST: usize = 1 << 20;

/// Pages of one file on their way to the disk.
pub(super) struct Item {
    file: Arc<File>,
    /// The writebacks' numbers.
    numbers: Vec<u64>,
    pages: Vec<Page>,
    runs: Vec<Run>,
    /// Contents go through the journal, with the map.
    journaled: bool,
}

/// A page whose blocks are being written.
#[derive(Clone, Copy)]
struct Page {
    number: u64,
    page: PageRef,
    /// Which blocks, and which of them had no place on disk.
    blocks: u8,
    reserved: u8,
}

/// Blocks of a file that go to as many blocks of the disk in a row.
struct Run {
    /// First block of the file, and how many.
    logical: u64,
    len: u64,
    place: Place,
    result: Result<()>,
}

/// Where a run goes.
enum Place {
    /// Where the map says.
    Mapped(Block),
    /// Likewise; the map says too that nothing was written there yet.
    Unwritten(Block),
    /// Nowhere yet in the map.
    Claimed(Claim),
    /// There is no place.
    None,
    /// The map cannot be read.
    Unknown,
}

impl Item {
    pub(super) fn is_of(&self, file: &Arc<File>) -> bool {
        Arc::ptr_eq(&self.file, file)
    }

    /// Whether both can be written as one.
    pub(super) fn goes_on_with(&self, next: &Self) -> bool {
        let behind = match (self.pages.last(), next.pages.first()) {
            (Some(last), Some(first)) => last.number < first.number,
            _ => false,
        };
        let small = self.pages.len() + next.pages.len() <= BATCH;
        behind && small && self.is_of(&next.file) && self.journaled == next.journaled
    }

    /// Puts what goes on with it behind it.
    pub(super) fn append(&mut self, next: Self) {
        self.numbers.extend(next.numbers);
        self.pages.extend(next.pages);
        self.runs.extend(next.runs);
    }
}

impl Run {
    /// Its blocks of the file.
    fn range(&self) -> Range<u64> {
        self.logical..self.logical + self.len
    }

    /// Blocks for which room was promised.
    fn promised(&self) -> u64 {
        match self.place {
            Place::Claimed(_) | Place::None => self.len,
            Place::Mapped(_) | Place::Unwritten(_) | Place::Unknown => 0,
        }
    }
}

impl Place {
    fn start(&self) -> Option<Block> {
        match self {
            Self::Mapped(block) | Self::Unwritten(block) => Some(*block),
            Self::Claimed(claim) => Some(claim.start()),
            Self::None | Self::Unknown => None,
        }
    }
}

impl Owner {
    /// Writes the dirty pages of files, those first that have been dirty the longest, for at least
    /// `age`: one batch. Whether there was anything.
    pub(super) fn flush_oldest(&self, age: Duration) -> bool {
        let mut batch = Vec::new();
        let mut room = BATCH;
        while room > 0
            && let Some(file) = self.files.oldest(age)
        {
            if let Some(item) = self.pick(&file, 0..u64::MAX, room) {
                room = room.saturating_sub(item.pages.len().max(1));
                batch.push(item);
            }
            // What is left of it waits for the next batch.
            self.files.queue_again(&file);
        }
        let some = !batch.is_empty();
        self.write_batch(batch);
        some
    }

    /// Writes all pages of a file that are dirty now, and waits for those that others are writing.
    pub(super) fn flush_file(&self, file: &Arc<File>) {
        self.flush_range(file, 0..u64::MAX);
    }

    /// As [`Self::flush_file`], for some pages.
    pub(super) fn flush_range(&self, file: &Arc<File>, pages: Range<u64>) {
        // A page that somebody is writing may be dirty again: it is taken in the second round.
        for _ in 0..2 {
            let mut next = pages.start;
            loop {
                match self.pick(file, next..pages.end, BATCH) {
                    Some(item) => {
                        next = item.pages.last().map_or(next, |page| page.number) + 1;
                        // More than a batch: others prepare the next while the device has one.
                        if item.pages.len() == BATCH && self.flusher.waiting() < THREADS {
                            self.flusher.write(item);
                        } else {
                            self.write_batch(vec![item]);
                        }
                    }
                    None if file.wait_unbarred() => {}
                    None => break,
                }
            }
            while let Some(item) = self.flusher.take(file) {
                self.write_batch(vec![item]);
            }
            file.wait();
        }
    }

    /// Has pages of a file that is written in sequence written behind whoever writes it, who has
    /// the inode's lock: nobody else need wait for that.
    pub(super) fn write_behind(&self, file: &Arc<File>, live: &mut Live) {
        let Some(end) = file.pending().take_due() else { return };
        if !self.volume.is_journaled(&live.inode)
            && let Some(item) = self.pick_of(file, live, 0..end, BATCH)
        {
            self.flusher.write(item);
        }
    }

    /// Takes dirty pages of a file, `most` of them, and finds their places.
    fn pick(&self, file: &Arc<File>, range: Range<u64>, most: usize) -> Option<Item> {
        self.pick_of(file, &mut file.cell.write(), range, most)
    }

    /// The same for who has the inode's lock.
    fn pick_of(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        range: Range<u64>,
        most: usize,
    ) -> Option<Item> {
        if live.gone {
            // Somebody wrote who did not hold it.
            self.drop_pages(file, live, 0..u64::MAX);
            file.forget();
            return None;
        }
        let mut pending = file.pending();
        let number = pending.begin()?;
        let mut pages = Vec::new();
        for (&number, &page) in pending.dirty.range(range) {
            // Writes of one block are not ordered among themselves.
            if self.states.get(page).is_none_or(|held| held.writing != 0) {
                continue;
            }
            let write = |held: Blocks| Blocks { dirty: 0, reserved: 0, writing: held.dirty };
            if let Some(held) = self.states.change(page, write) {
                let (blocks, reserved) = (held.dirty, held.reserved);
                pages.push(Page { number, page, blocks, reserved });
            }
            if pages.len() == most {
                break;
            }
        }
        if pages.is_empty() && !file.is_stale() {
            pending.end(number);
            return None;
        }
        file.store_times(&mut pending);
        for page in &pages {
            pending.dirty.remove(&page.number);
        }
        drop(pending);
        let runs = self.place(live, &pages);
        let journaled = self.volume.is_journaled(&live.inode);
        Some(Item { file: Arc::clone(file), numbers: vec![number], pages, runs, journaled })
    }

    /// Finds the places of the blocks of pages: as few runs as there can be.
    fn place(&self, live: &mut Live, pages: &[Page]) -> Vec<Run> {
        let bits = self.volume.superblock().block_bits;
        let per_page = PAGE >> bits;
        let mut runs = Vec::new();
        let mut wanted: Option<Range<u64>> = None;
        for page in pages {
            for block in 0..per_page {
                if page.blocks >> block & 1 == 0 {
                    continue;
                }
                let block = page.number * per_page + block;
                match &mut wanted {
                    Some(range) if range.end == block => range.end += 1,
                    _ => {
                        if let Some(range) = wanted.replace(block..block + 1) {
                            self.place_range(live, range, &mut runs);
                        }
                    }
                }
            }
        }
        if let Some(range) = wanted {
            self.place_range(live, range, &mut runs);
        }
        let reserved: u32 = pages.iter().map(|page| page.reserved.count_ones()).sum();
        live.reserved = live.reserved.saturating_sub(reserved.into());
        let used: u64 = runs.iter().map(Run::promised).sum();
        self.unreserve(u64::from(reserved).saturating_sub(used));
        runs
    }

    fn place_range(&self, live: &mut Live, range: Range<u64>, runs: &mut Vec<Run>) {
        let most = match self.volume.is_journaled(&live.inode) {
            true => commit::JOURNALED_AT_ONCE,
            false => u64::MAX,
        };
        let mut at = range.start;
        while at < range.end {
            let left = (range.end - at).min(most);
            let run = match self.volume.map(&live.inode, at, left) {
                Ok(found) => match found.mapping {
                    Mapping::Data(block) => mapped(at, found.len, Place::Mapped(block)),
                    Mapping::Unwritten(block) => mapped(at, found.len, Place::Unwritten(block)),
                    Mapping::Hole => match self.claim(live, at, found.len.min(left), runs) {
                        Ok(claim) => mapped(at, claim.len().into(), Place::Claimed(claim)),
                        Err(error) => {
                            let len = found.len.min(left);
                            self.unreserve(len);
                            Run { logical: at, len, place: Place::None, result: Err(error) }
                        }
                    },
                },
                Err(error) => {
                    Run { logical: at, len: left, place: Place::Unknown, result: Err(error) }
                }
            };
            at += run.len;
            runs.push(run);
        }
    }

    /// Writes what was picked and tells the map of it.
    pub(super) fn write_batch(&self, mut batch: Vec<Item>) {
        let (mut writes, mut owners) = (Vec::new(), Vec::new());
        for (index, item) in batch.iter_mut().enumerate().filter(|(_, item)| !item.journaled) {
            for (run_index, run) in item.runs.iter_mut().enumerate() {
                match self.requests(&item.pages, run) {
                    Ok(requests) => {
                        owners.extend(requests.iter().map(|_| (index, run_index)));
                        writes.extend(requests);
                    }
                    Err(error) => run.result = Err(error),
                }
            }
        }
        let ended = match writes.is_empty() {
            true => Vec::new(),
            false => self.volume.source().write_pages(writes),
        };
        for ((item, run), end) in owners.into_iter().zip(ended) {
            if let Err(error) = end {
                batch[item].runs[run].result = Err(error);
            }
        }
        for item in batch {
            self.finish(item);
        }
        self.flusher.made_room();
    }

    /// The requests that write a run.
    fn requests(&self, pages: &[Page], run: &Run) -> Result<Vec<PageWrite>> {
        let Some(start) = run.place.start().filter(|_| run.result.is_ok()) else {
            return Ok(Vec::new());
        };
        let bits = self.volume.superblock().block_bits;
        let (mut requests, mut slices) = (Vec::new(), Vec::<Slice>::new());
        let (mut offset, mut bytes) = (start.0 << bits, 0);
        let mut cut = |slices: &mut Vec<Slice>, bytes: &mut usize| -> Result<()> {
            if !slices.is_empty() {
                let data = Data::kept(self.arena.region(), std::mem::take(slices), Box::new(()))?;
                requests.push(PageWrite { offset, data });
                offset += *bytes as u64;
                *bytes = 0;
            }
            Ok(())
        };
        for slice in slices_of(pages, run.range(), bits) {
            bytes += usize::from(slice.len);
            slices.push(slice);
            if bytes >= REQUEST {
                cut(&mut slices, &mut bytes)?;
            }
        }
        cut(&mut slices, &mut bytes)?;
        Ok(requests)
    }

    /// Tells the map of runs that are written, and everybody that their pages are clean.
    fn finish(&self, item: Item) {
        let Item { file, numbers, pages, runs, journaled } = item;
        let mut live = file.cell.write();
        let mut failed = Vec::new();
        let mut good = Vec::with_capacity(runs.len());
        let mut trouble = Ok(());
        for run in runs {
            match run.result {
                Ok(()) => good.push(run),
                Err(error) => {
                    self.errors.note(file.ino, error.errno());
                    failed.push(run.logical..run.logical + run.len);
                    self.give_up(run.place, run.len);
                    trouble = Err(error);
                }
            }
        }
        // Times are to be stored where there is no run, too.
        loop {
            let rest = good.split_off(good.len().min(commit::RUNS_AT_ONCE));
            let contents = journaled.then_some(&pages[..]);
            if let Err(error) = self.commit_runs(&mut live, good, contents, &mut failed) {
                self.errors.note(file.ino, error.errno());
                trouble = Err(error);
            }
            good = rest;
            if good.is_empty() {
                break;
            }
        }
        if live.inode.links > 0 && !live.gone && self.publish_live(&live).is_err() {
            // Asked for, it gives the error again.
            self.withdraw_inode(file.ino);
        }
        if failed.is_empty() {
            // All have their place in the map now, so it makes no difference to who has the
            // inode's lock whether they are being written.
            drop(live);
            for page in &pages {
                self.written(page);
            }
        } else {
            self.written_in_part(&file, &mut live, &pages, &failed);
            drop(live);
        }
        file.end(&numbers);
        // Whoever asks for it is told by the file's errors.
        let _ = self.noting(file.ino, trouble);
        self.files.put(file);
    }

    /// A page is not being written any more. What it holds; `None` once it is taken out.
    fn written(&self, page: &Page) -> Option<Blocks> {
        self.states.change(page.page, |held| Blocks { writing: 0, ..held })
    }

    /// Pages are not being written any more, and some of their blocks did not get their place.
    fn written_in_part(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        pages: &[Page],
        failed: &[Range<u64>],
    ) {
        let per_page = PAGE >> self.volume.superblock().block_bits;
        for page in pages {
            let Some(held) = self.written(page) else { continue };
            // Blocks that were changed meanwhile counted on the place that this did not get.
            let lost = (0..per_page).filter(|block| {
                let at = page.number * per_page + block;
                failed.iter().any(|range| range.contains(&at))
            });
            let lost = lost.fold(0u8, |mask, block| mask | 1 << block);
            let again = held.dirty & page.reserved & lost;
            if again != 0 {
                self.reserve_again(file, live, page.number, page.page, again);
            }
        }
    }

    /// Blocks that are dirty again have no place although they were to get one: room is reserved
    /// for them once more, or they are given up.
    fn reserve_again(
        &self,
        file: &Arc<File>,
        live: &mut Live,
        number: u64,
        page: PageRef,
        blocks: u8,
    ) {
        let count = u64::from(blocks.count_ones());
        match self.reserve(count, true) {
            Ok(()) => {
                live.reserved += count;
                self.states
                    .change(page, |held| Blocks { reserved: held.reserved | blocks, ..held });
            }
            Err(error) => {
                self.errors.note(file.ino, error.errno());
                let give_up = |held: Blocks| Blocks { dirty: held.dirty & !blocks, ..held };
                let held = self.states.change(page, give_up);
                if held.is_some_and(|held| held.dirty & !blocks == 0) {
                    file.pending().dirty.remove(&number);
                }
            }
        }
    }

    /// Where blocks without a place go: behind those before them.
    fn claim(&self, live: &Live, at: u64, len: u64, runs: &[Run]) -> Result<Claim> {
        let writer = self.writer.as_ref().ok_or(Error::ReadOnly)?;
        let before = runs.last().filter(|run| run.logical + run.len == at);
        let behind = before.and_then(|run| Some(Block(run.place.start()?.0 + run.len)));
        let goal = behind.unwrap_or_else(|| writer.goal(live, at));
        let want = len.min(writer.longest_run(live, false));
        let want = u32::try_from(want).unwrap_or(u32::MAX);
        let bits = self.volume.superblock().block_bits;
        if at << bits < live.disk_size {
            return writer.space().claim(goal, want, true);
        }
        // It grows: what comes next should go on there.
        let has = live.inode.blocks >> (bits - 9);
        writer.space().claim_for(live.inode.ino, has, goal, want, true)
    }

    /// Promises room on disk.
    pub(super) fn reserve(&self, blocks: u64, privileged: bool) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let nobody = Caller { uid: u32::MAX, gid: u32::MAX, privileged: false };
        let caller = if privileged { Caller::ROOT } else { nobody };
        self.writer.as_ref().ok_or(Error::ReadOnly)?.space().reserve(blocks, &caller)
    }

    /// Takes promises back.
    pub(super) fn unreserve(&self, blocks: u64) {
        if let Some(writer) = self.writer.as_ref().filter(|_| blocks > 0) {
            writer.space().release(blocks);
        }
    }
}

fn mapped(logical: u64, len: u64, place: Place) -> Run {
    Run { logical, len, place, result: Ok(()) }
}

/// Where in their frames the blocks of a range lie, in order.
fn slices_of(pages: &[Page], blocks: Range<u64>, bits: u32) -> impl Iterator<Item = Slice> + '_ {
    let per_page = PAGE >> bits;
    let first = pages.partition_point(|page| page.number < blocks.start / per_page);
    pages[first..].iter().map_while(move |page| {
        let from = (page.number * per_page).max(blocks.start);
        let to = ((page.number + 1) * per_page).min(blocks.end);
        let within = (from.saturating_sub(page.number * per_page) as usize) << bits;
        let len = (to.saturating_sub(from) as usize) << bits;
        if len > 0 { Slice::new(page.page, within, len) } else { None }
    })
}
