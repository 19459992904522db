//! Reading ahead: what a reader from front to back will ask for is brought in meanwhile.
//!
//! Pages that are cached are found without the owner, so it sees of a reader only the misses: one
//! at the end of what was read ahead, or within it, means that the reader has come there, and a
//! larger window follows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::Owner;
use crate::id::Ino;
use crate::{Error, Result};

/// Pages that a thread brings in at a time.
pub(super) const CHUNK: u64 = 256;
/// Pages of the first window: small, since the reader may be one at random who hit a neighbour.
const FIRST_WINDOW: u64 = 64;
/// By so much a window is larger than the one before.
const GROWTH: u64 = 4;
/// Pages of the largest window.
const MAX_WINDOW: u64 = 8 * CHUNK;
/// Readers that are followed at a time.
const STREAMS: usize = 64;
/// Chunks that wait for a thread; beyond them nothing is read ahead.
const QUEUE: usize = 64;
/// Reads ahead in flight: while one chunk is linked the device reads another.
const THREADS: usize = 2;

/// Pages to bring in.
struct Chunk {
    ino: Ino,
    pages: Range<u64>,
}

/// What a reader did not find.
#[derive(Clone, Debug)]
pub(super) struct Miss {
    pub(super) ino: Ino,
    pub(super) pages: Range<u64>,
    /// Whether the page before it is cached.
    pub(super) follows: bool,
    /// The first page that need not be read: the file's end.
    pub(super) end: u64,
    /// Pages to read ahead at most.
    pub(super) most: u64,
}

/// A reader from front to back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stream {
    ino: Ino,
    /// The last window.
    window: Range<u64>,
}

/// Follows readers and keeps threads busy with what they will want.
pub(super) struct Ahead {
    /// The one used last is the last.
    streams: Mutex<VecDeque<Stream>>,
    queue: Sender<Chunk>,
    chunks: Receiver<Chunk>,
}

impl Ahead {
    pub(super) fn new() -> Self {
        let (queue, chunks) = bounded(QUEUE);
        Self { streams: Mutex::default(), queue, chunks }
    }

    /// Starts the threads; they end with the owner.
    pub(super) fn start(owner: &Arc<Owner>) -> Result<()> {
        for index in 0..THREADS {
            let (chunks, owner) = (owner.ahead.chunks.clone(), Arc::downgrade(owner));
            std::thread::Builder::new()
                .name(format!("ahead-{index}"))
                .spawn(move || work(&chunks, &owner))
                .map_err(Error::io("start a thread"))?;
        }
        Ok(())
    }

    /// Queues what should be there next. False where the reader does not go on from page to page,
    /// or where there is no room in the queue: then nothing of what it wants next is on its way.
    pub(super) fn missed(&self, miss: &Miss) -> bool {
        let Some(window) = self.next(miss) else { return false };
        let mut at = window.start;
        while at < window.end {
            let pages = at..(at + CHUNK).min(window.end);
            at = pages.end;
            if self.queue.try_send(Chunk { ino: miss.ino, pages }).is_err() {
                return false;
            }
        }
        true
    }

    /// The window to read now; empty while there is enough of the last one before the reader.
    fn next(&self, miss: &Miss) -> Option<Range<u64>> {
        let Miss { ino, pages: missed, follows, end, most } = miss.clone();
        let mut streams = self.streams.lock();
        let known = streams.iter().position(|stream| {
            let Stream { ino: its, window } = stream;
            *its == ino && (window.start..=window.end).contains(&missed.start)
        });
        let last = known.and_then(|at| streams.remove(at)).map(|stream| stream.window);
        if last.is_none() && !follows {
            return None;
        }
        let window = match &last {
            Some(last) if missed.start < last.start + (last.end - last.start) / 2 => {
                streams.push_back(Stream { ino, window: last.clone() });
                return Some(last.end..last.end);
            }
            Some(last) => {
                let start = last.end.max(missed.end);
                start..start + (GROWTH * (last.end - last.start)).clamp(FIRST_WINDOW, MAX_WINDOW)
            }
            None => missed.end..missed.end + FIRST_WINDOW,
        };
        let window = window.start..window.end.min(window.start + most).min(end.max(window.start));
        if streams.len() == STREAMS {
            streams.pop_front();
        }
        streams.push_back(Stream { ino, window: window.clone() });
        Some(window)
    }
}

fn work(chunks: &Receiver<Chunk>, owner: &Weak<Owner>) {
    // The receiver that the owner holds keeps no thread from ending: its sender goes with it.
    while let Ok(Chunk { ino, pages }) = chunks.recv() {
        let Some(owner) = owner.upgrade() else { return };
        // Who wants the pages reads them again, and gets the error.
        let _ = owner.bring_in(ino, pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(12);
    const PLENTY: u64 = 1 << 20;

    fn next(ahead: &Ahead, missed: Range<u64>, follows: bool, end: u64) -> Option<Range<u64>> {
        ahead.next(&Miss { ino: FILE, pages: missed, follows, end, most: PLENTY })
    }

    #[test]
    fn windows_grow_while_the_reader_follows() {
        let ahead = Ahead::new();
        assert_eq!(next(&ahead, 0..32, false, PLENTY), None);
        assert_eq!(next(&ahead, 32..64, true, PLENTY), Some(64..128));
        // In the first half: there is enough before it.
        assert_eq!(next(&ahead, 90..95, true, PLENTY), Some(128..128));
        // In the second half, or just behind.
        assert_eq!(next(&ahead, 120..130, true, PLENTY), Some(130..386));
        assert_eq!(next(&ahead, 386..400, false, PLENTY), Some(400..1424));
        assert_eq!(next(&ahead, 1424..1425, true, PLENTY), Some(1425..3473));
        assert_eq!(next(&ahead, 3473..3474, true, PLENTY), Some(3474..5522), "the largest");
        // The file's end, and beyond it nothing.
        assert_eq!(next(&ahead, 5522..5530, true, 5540), Some(5530..5540));
        assert_eq!(next(&ahead, 5540..5541, true, 5540), Some(5541..5541));
        // Elsewhere at random.
        assert_eq!(next(&ahead, 50_000..50_001, false, PLENTY), None);
    }

    #[test]
    fn a_small_cache_bounds_windows_and_many_readers_are_followed() {
        let ahead = Ahead::new();
        let next = |ino, pages, follows| {
            ahead.next(&Miss { ino: Ino(ino), pages, follows, end: PLENTY, most: 16 })
        };
        for file in 0..2 * STREAMS as u32 {
            assert_eq!(next(file, 7..8, true), Some(8..24));
        }
        assert_eq!(ahead.streams.lock().len(), STREAMS);
        // One of the last is known, one of the first is not any more.
        let last = 2 * STREAMS as u32 - 1;
        assert_eq!(next(last, 24..25, false), Some(25..41));
        assert_eq!(next(0, 24..25, false), None);
    }

    #[test]
    fn a_full_queue_is_told() {
        let ahead = Ahead::new();
        for _ in 0..QUEUE {
            ahead.queue.try_send(Chunk { ino: FILE, pages: 0..1 }).unwrap();
        }
        let miss = Miss { ino: FILE, pages: 1..2, follows: true, end: PLENTY, most: PLENTY };
        assert!(!ahead.missed(&miss));
    }
}
