//! Files with pages that the disk has not: which pages, since when, who writes them, and how many
//! there may be.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oslet::id::PageRef;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::engine::write::Cell;
use crate::id::Ino;

/// Pages of a file that are written in sequence before the first of them go on their way without
/// waiting for their age: the device works while the rest is being written, not when somebody waits
/// for all of it.
const STREAM: u64 = 1024;
/// Pages of such a file that go together: one request to the device.
const UNIT: u64 = 256;

/// What the owner keeps of a file while it is changed or has pages to write.
pub(super) struct File {
    pub(super) ino: Ino,
    /// The inode, which stays in memory with this.
    pub(super) cell: Arc<Cell>,
    /// One change of contents at a time: a write, a truncation, an fallocate. Taken before all
    /// other locks of the file.
    pub(super) order: Mutex<()>,
    /// The inode has times in memory that its table has not. Changed under its lock and that of
    /// what is pending.
    stale: AtomicBool,
    pending: Mutex<Pending>,
    changed: Condvar,
}

/// The pages of a file that are to be written, and the writebacks under way.
#[derive(Default)]
pub(super) struct Pending {
    /// By number. Changed under the inode's lock as well.
    pub(super) dirty: BTreeMap<u64, PageRef>,
    /// The file was cut to nothing, to be written anew: closing it waits until that is on disk.
    pub(super) replaced: bool,
    stream: Stream,
    /// Pages before that one are to be on their way.
    due: Option<u64>,
    /// When there was something to write first.
    since: Option<Instant>,
    queued: bool,
    next: u64,
    /// Writebacks under way, by number.
    active: BTreeSet<u64>,
    /// Those who keep new ones from starting.
    barred: usize,
}

/// Pages that became dirty one behind the other.
#[derive(Default)]
struct Stream {
    /// Behind the last.
    next: u64,
    /// How many since the first, or since some were sent on their way.
    pages: u64,
    /// Some were.
    long: bool,
}

impl Stream {
    /// Another page is dirty. Where those end that are to be on their way: all before the page that
    /// is being written.
    fn add(&mut self, page: u64) -> Option<u64> {
        if page != self.next {
            *self = Self::default();
        }
        self.next = page + 1;
        self.pages += 1;
        if self.pages <= if self.long { UNIT } else { STREAM } {
            return None;
        }
        (self.pages, self.long) = (1, true);
        Some(page)
    }
}

impl Pending {
    /// A writeback begins; `None` while somebody bars them.
    pub(super) fn begin(&mut self) -> Option<u64> {
        if self.barred > 0 {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.active.insert(number);
        Some(number)
    }

    /// Whether pages from that one on would go on what has been written in sequence for long.
    pub(super) fn is_streamed(&self, page: u64) -> bool {
        self.stream.long && self.stream.next == page
    }

    /// Where pages end that are to be on their way, if there are new ones.
    pub(super) fn take_due(&mut self) -> Option<u64> {
        self.due.take()
    }

    /// A writeback has ended, for who has the lock.
    pub(super) fn end(&mut self, number: u64) {
        self.active.remove(&number);
    }
}

impl File {
    fn new(cell: Arc<Cell>) -> Self {
        let (order, pending, stale) = (Mutex::new(()), Mutex::default(), AtomicBool::new(false));
        Self { ino: cell.ino(), cell, order, stale, pending, changed: Condvar::new() }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    /// Whether the inode has times that its table has not.
    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// The inode's times are about to be stored. For who has its lock.
    pub(super) fn store_times(&self, _: &mut Pending) {
        self.stale.store(false, Ordering::Relaxed);
    }

    /// The inode goes, and its pages have gone. For who has its lock.
    pub(super) fn forget(&self) {
        let mut pending = self.pending.lock();
        self.store_times(&mut pending);
        pending.replaced = false;
        pending.dirty.clear();
    }

    /// Whether nothing is to be written and nothing is being written.
    fn is_clean(&self) -> bool {
        let pending = self.pending.lock();
        let idle = pending.dirty.is_empty() && pending.active.is_empty();
        idle && !pending.replaced && !self.is_stale()
    }

    /// Since when there has been something to write; it may be longer.
    fn since(&self, pending: &Pending) -> Option<Instant> {
        pending.since.filter(|_| self.is_stale() || !pending.dirty.is_empty())
    }

    /// Notes something to be written. Since when there is something, if the file is to be queued.
    fn note(&self, note: impl FnOnce(&mut Pending)) -> Option<Instant> {
        let mut pending = self.pending.lock();
        if self.since(&pending).is_none() {
            pending.since = Some(Instant::now());
        }
        note(&mut pending);
        let queued = std::mem::replace(&mut pending.queued, true);
        pending.since.filter(|_| !queued)
    }

    /// Writebacks have ended, however they did.
    pub(super) fn end(&self, numbers: &[u64]) {
        let mut pending = self.pending.lock();
        numbers.iter().for_each(|&number| pending.end(number));
        drop(pending);
        self.changed.notify_all();
    }

    /// Whether a writeback is under way.
    pub(super) fn is_being_written(&self) -> bool {
        !self.pending.lock().active.is_empty()
    }

    /// Waits until every writeback that has begun by now has ended.
    pub(super) fn wait(&self) {
        let mut pending = self.pending.lock();
        let until = pending.next;
        while pending.active.first().is_some_and(|&first| first < until) {
            self.changed.wait(&mut pending);
        }
    }

    /// Waits until nobody bars writebacks; false if nobody did.
    pub(super) fn wait_unbarred(&self) -> bool {
        let mut pending = self.pending.lock();
        let waits = pending.barred > 0;
        while pending.barred > 0 {
            self.changed.wait(&mut pending);
        }
        waits
    }

    /// Waits for all writebacks and lets none begin until the guard is dropped: for whoever takes
    /// pages or blocks away. Not with the inode's lock held, which they need to end.
    pub(super) fn bar(self: &Arc<Self>) -> Bar {
        let mut pending = self.pending.lock();
        pending.barred += 1;
        while !pending.active.is_empty() {
            self.changed.wait(&mut pending);
        }
        drop(pending);
        Bar(Arc::clone(self))
    }
}

/// While it lives nothing of the file is written back.
pub(super) struct Bar(Arc<File>);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.pending.lock().barred -= 1;
        self.0.changed.notify_all();
    }
}

/// Hashes inode numbers, which nobody can choose.
#[derive(Default)]
struct ByNumber(u64);

impl Hasher for ByNumber {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = crate::cache::fold(self.0 ^ u64::from(number));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// All such files of a volume.
#[derive(Default)]
pub(super) struct Files {
    known: Mutex<HashMap<Ino, Arc<File>, BuildHasherDefault<ByNumber>>>,
    /// Those with dirty pages, each once, by the time at which it got its first.
    queue: Mutex<VecDeque<(Instant, Arc<File>)>>,
}

impl Files {
    /// The file, to be changed.
    pub(super) fn get(&self, cell: &Arc<Cell>) -> Arc<File> {
        let mut known = self.known.lock();
        let new = || Arc::new(File::new(Arc::clone(cell)));
        let file = known.entry(cell.ino()).or_insert_with(new);
        if !Arc::ptr_eq(&file.cell, cell) {
            // Of an inode that has gone; its number is another's now.
            *file = new();
        }
        Arc::clone(file)
    }

    /// The file, if anything is known of it.
    pub(super) fn find(&self, ino: Ino) -> Option<Arc<File>> {
        self.known.lock().get(&ino).cloned()
    }

    /// Every file of which something is known.
    pub(super) fn all(&self) -> Vec<Arc<File>> {
        self.known.lock().values().cloned().collect()
    }

    /// Forgets a file whose inode has gone.
    pub(super) fn forget(&self, file: &Arc<File>) {
        let mut known = self.known.lock();
        if known.get(&file.ino).is_some_and(|known| Arc::ptr_eq(known, file)) {
            known.remove(&file.ino);
        }
    }

    /// Forgets a file that is clean and that nobody else uses.
    pub(super) fn put(&self, file: Arc<File>) {
        let mut known = self.known.lock();
        let same = known.get(&file.ino).is_some_and(|known| Arc::ptr_eq(known, &file));
        // One here and one in the map.
        if same && Arc::strong_count(&file) == 2 && file.is_clean() {
            known.remove(&file.ino);
        }
    }

    /// Notes dirty pages of a file, from page `first` on.
    pub(super) fn add(&self, file: &Arc<File>, first: u64, pages: &[PageRef]) {
        self.note(file, |pending| {
            for (number, &page) in (first..).zip(pages) {
                pending.dirty.insert(number, page);
                pending.due = pending.stream.add(number).or(pending.due);
            }
        });
    }

    /// Notes times of an inode that its table has not.
    /// For who has the inode's lock.
    pub(super) fn add_times(&self, file: &Arc<File>) {
        if !file.is_stale() {
            self.note(file, |_| file.stale.store(true, Ordering::Relaxed));
        }
    }

    fn note(&self, file: &Arc<File>, note: impl FnOnce(&mut Pending)) {
        if let Some(since) = file.note(note) {
            self.queue.lock().push_back((since, Arc::clone(file)));
        }
    }

    /// Puts a file back that has been taken with [`Self::oldest`] and is still dirty.
    pub(super) fn queue_again(&self, file: &Arc<File>) {
        let mut queue = self.queue.lock();
        let mut pending = file.pending();
        if let Some(since) = file.since(&pending).filter(|_| !pending.queued) {
            pending.queued = true;
            queue.push_front((since, Arc::clone(file)));
        }
    }

    /// Takes the file that has been dirty the longest, for at least `age`.
    pub(super) fn oldest(&self, age: Duration) -> Option<Arc<File>> {
        let mut queue = self.queue.lock();
        loop {
            let (noted, file) = queue.pop_front()?;
            let mut pending = file.pending();
            match file.since(&pending) {
                Some(since) if since.elapsed() >= age => {
                    pending.queued = false;
                    drop(pending);
                    return Some(file);
                }
                Some(since) if since == noted => {
                    drop(pending);
                    queue.push_front((since, file));
                    return None;
                }
                // It has been written since, and is dirty again: it moves behind older ones.
                Some(since) => {
                    drop(pending);
                    queue.push_back((since, file));
                }
                None => {
                    pending.queued = false;
                    drop(pending);
                    self.put(file);
                }
            }
        }
    }
}

/// How many pages may be dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Beyond it they are written whatever their age.
    pub(super) background: usize,
    /// Beyond it writers wait.
    pub(super) most: usize,
}

impl Limits {
    /// For a cache of so many frames.
    pub(super) fn of(budget: usize) -> Self {
        let most = (budget / 2).max(1);
        Self { background: (budget / 8).min(most), most }
    }
}

/// Errors of writebacks: each is told once to everybody who had the file open by then, and if
/// there was nobody, to the next who comes (errseq_t of the kernel).
#[derive(Default)]
pub(super) struct Errors(Mutex<HashMap<Option<Ino>, Noted>>);

/// The last error of a file, or of the volume.
struct Noted {
    sequence: u64,
    errno: i32,
    /// Whether anybody was told.
    seen: bool,
}

/// Files whose errors are remembered; those of others are told by the volume alone.
const MAX_NOTED: usize = 1 << 16;

impl Errors {
    /// Notes an error of a file, which is one of the volume too.
    pub(super) fn note(&self, ino: Ino, errno: i32) {
        let mut noted = self.0.lock();
        for who in [Some(ino), None] {
            if noted.len() >= MAX_NOTED && !noted.contains_key(&who) && who.is_some() {
                continue;
            }
            let entry = noted.entry(who).or_insert(Noted { sequence: 0, errno, seen: true });
            (entry.sequence, entry.errno, entry.seen) = (entry.sequence + 1, errno, false);
        }
    }

    /// Where somebody starts who opens the file (or uses the volume, `None`) now.
    pub(super) fn sample(&self, who: Option<Ino>) -> u64 {
        match self.0.lock().get(&who) {
            Some(noted) if noted.seen => noted.sequence,
            // Nobody has been told of the last one yet: who comes now will be.
            Some(noted) => noted.sequence - 1,
            None => 0,
        }
    }

    /// The error that has come since `since`, if one has, and where to go on.
    pub(super) fn since(&self, who: Option<Ino>, since: u64) -> (u64, Option<i32>) {
        match self.0.lock().get_mut(&who) {
            Some(noted) if noted.sequence != since => {
                noted.seen = true;
                (noted.sequence, Some(noted.errno))
            }
            Some(noted) => (noted.sequence, None),
            None => (0, None),
        }
    }

    /// The inode is gone, and its number will be another's.
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&Some(ino));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_sequence_is_noticed_and_what_is_not_is_left() {
        let mut stream = Stream::default();
        let ends: Vec<_> = (0..STREAM + 2 * UNIT).filter_map(|page| stream.add(page)).collect();
        assert_eq!(ends, [STREAM, STREAM + UNIT], "the page that is being written stays");
        assert_eq!(stream.add(5), None, "elsewhere");
        assert!(!stream.long && (6..STREAM).all(|page| stream.add(page).is_none()));
        assert!((0..4 * STREAM).all(|page| stream.add(page * 7 % (4 * STREAM)).is_none()));
    }

    #[test]
    fn an_error_is_told_once_to_everybody_who_was_there() {
        let (errors, file) = (Errors::default(), Ino(12));
        let early = errors.sample(Some(file));
        errors.note(file, 5);
        // Nobody has been told: whoever comes later is.
        let late = errors.sample(Some(file));
        let (early, told) = errors.since(Some(file), early);
        assert_eq!(told, Some(5));
        assert_eq!(errors.since(Some(file), early), (early, None));
        let (late, told) = errors.since(Some(file), late);
        assert_eq!((late, told), (early, Some(5)));
        let later = errors.sample(Some(file));
        assert_eq!(errors.since(Some(file), later), (later, None));
        errors.note(file, 28);
        assert_eq!(errors.since(Some(file), later).1, Some(28));
        assert_eq!(errors.since(None, 0).1, Some(28), "the volume's");
        assert_eq!(errors.since(Some(Ino(13)), 0), (0, None));
    }
}
