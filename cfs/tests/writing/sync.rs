//! What fsync promises while a commit is under way already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs::Result;
use cfs::change::WriteOptions;
use cfs::engine::store::layer::RecordSource;
use cfs::engine::store::{BlockSource, MemSource};
use cfs::engine::write::{Writer, WriterOptions};
use cfs::engine::{Options, Volume};
use cfs::id::Ino;
use cfs::journal::JournalOptions;
use cfs::local::LocalVolume;
use parking_lot::{Condvar, Mutex};
use proxydev::layer::record::Window;
use proxydev::layer::{Event, Log, What};

use crate::image::Image;
use crate::names::{make, put};

/// By then what is to happen has happened.
const SOON: Duration = Duration::from_secs(20);

/// A disk that keeps one flush waiting.
struct Slow {
    below: MemSource,
    /// So many flushes until one waits; 0 while it does.
    left: Mutex<Option<u32>>,
    changed: Condvar,
}

impl Slow {
    /// Has a flush wait: the next one is number 1.
    fn hold(&self, number: u32) {
        *self.left.lock() = Some(number);
    }

    fn wait_until_held(&self) {
        let mut left = self.left.lock();
        let until = Instant::now() + SOON;
        while *left != Some(0) {
            let waited = self.changed.wait_until(&mut left, until);
            assert!(!waited.timed_out(), "no flush waits");
        }
    }

    fn release(&self) {
        *self.left.lock() = None;
        self.changed.notify_all();
    }
}

impl BlockSource for Slow {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.below.write_at(offset, data)
    }

    fn flush(&self) -> Result<()> {
        let mut left = self.left.lock();
        match *left {
            None => {}
            Some(flushes @ 1..) => *left = Some(flushes - 1),
            // One is enough.
            Some(0) => return Ok(()),
        }
        if *left == Some(0) {
            self.changed.notify_all();
            self.changed.wait_while(&mut left, |left| *left == Some(0));
        }
        self.below.flush()
    }
}

/// The flush of a commit under way may be earlier than what was written since: who syncs a file
/// that this commit makes durable, and that was written over in place meanwhile, flushes again.
#[test]
fn what_is_written_during_a_commit_is_flushed_behind_it() {
    const MARK: [u8; 4096] = [0x77; 4096];
    let image = Image::new(&[], "32M", 0);
    let log = Log::new();
    let below = MemSource::new(std::fs::read(image.path()).unwrap());
    let disk = Arc::new(Slow { below, left: Mutex::default(), changed: Condvar::new() });
    let source = Arc::new(RecordSource::new(Arc::clone(&disk), &log));
    let volume = Arc::new(Volume::open(source, &Options::default()).unwrap());
    let journal =
        JournalOptions { commit_interval: Duration::from_secs(3600), ..JournalOptions::default() };
    let writer = Writer::open(volume, &WriterOptions { journal, ..WriterOptions::default() });
    let volume = LocalVolume::write(writer.unwrap(), 8 << 20).unwrap();
    let client = volume.client();
    let ino = make(client, Ino::ROOT, "file");
    client.sync_all(&mut 0).unwrap();
    // It gets its blocks in the running transaction.
    put(client, ino, &[1; 8192]);
    client.seek(ino, 0, true).unwrap();
    disk.hold(2);
    std::thread::scope(|scope| {
        // One flush before the commit block, and one behind it.
        scope.spawn(|| client.sync_all(&mut 0).unwrap());
        disk.wait_until_held();
        client.write(ino, 0, &MARK, WriteOptions::default()).unwrap();
        let synced = scope.spawn(|| client.sync(ino, true, &mut 0).unwrap());
        let until = Instant::now() + SOON;
        while place(&log.events(), &MARK).is_none() {
            assert!(Instant::now() < until, "nothing was written");
            std::thread::sleep(Duration::from_millis(1));
        }
        disk.release();
        synced.join().unwrap();
        let events = log.events();
        let window = Window::at(&events, events.len());
        let written = place(&events, &MARK).unwrap();
        assert!(window.durable.contains(&written), "synced, and not flushed: {written}");
    });
    volume.close().unwrap();
}

/// What is written in sequence goes to the disk while the rest is written, in large requests and
/// all but what was written last, though nobody syncs and nothing is old; a short file stays.
#[test]
fn a_stream_is_on_its_way_before_anybody_waits_for_it() {
    /// Before pages are written for their age.
    const YOUNG: Duration = Duration::from_secs(4);
    const PAGES: usize = 3072;
    let page = |file: u8, number: usize| {
        let mut page = vec![file; 4096];
        page[..8].copy_from_slice(&(number as u64).to_le_bytes());
        page
    };
    let image = Image::new(&["-b", "4096"], "64M", 0);
    let log = Log::new();
    let disk = MemSource::new(std::fs::read(image.path()).unwrap());
    let source = Arc::new(RecordSource::new(disk, &log));
    let volume = Arc::new(Volume::open(source, &Options::default()).unwrap());
    let journal =
        JournalOptions { commit_interval: Duration::from_secs(3600), ..JournalOptions::default() };
    let writer = Writer::open(volume, &WriterOptions { journal, ..WriterOptions::default() });
    let volume = LocalVolume::write(writer.unwrap(), 256 << 20).unwrap();
    let client = volume.client();
    let (short, long) = (make(client, Ino::ROOT, "short"), make(client, Ino::ROOT, "long"));
    let started = Instant::now();
    let append = |ino, file, numbers: std::ops::Range<usize>| {
        let offset = numbers.start as u64 * 4096;
        let bytes: Vec<u8> = numbers.flat_map(|number| page(file, number)).collect();
        let written = client.write(ino, offset, &bytes, WriteOptions::default()).unwrap();
        assert_eq!(written.len, bytes.len());
    };
    for first in (0..PAGES).step_by(32) {
        if first < 512 {
            append(short, 1, first..first + 32);
        }
        append(long, 2, first..first + 32);
    }
    // How many pages of that file were written, and in how many requests.
    let written = |file: u8| {
        let of = |event: &Event| match event {
            Event::Change(change) => match &change.what {
                What::Bytes(bytes) if bytes.len() >= 16 && bytes[8..16] == [file; 8] => {
                    Some(bytes.len() / 4096)
                }
                _ => None,
            },
            _ => None,
        };
        let found: Vec<_> = log.events().iter().filter_map(of).collect();
        (found.iter().sum::<usize>(), found.len())
    };
    while written(2).0 + 256 < PAGES {
        assert!(started.elapsed() < YOUNG, "{:?} of {PAGES} pages are on their way", written(2));
        std::thread::sleep(Duration::from_millis(1));
    }
    let (pages, requests) = written(2);
    assert!(requests <= PAGES / 256, "{pages} pages in {requests} requests");
    assert!(pages < PAGES, "what is being written stays");
    assert_eq!(written(1).0, 0, "a short file stays");
    client.sync_all(&mut 0).unwrap();
    assert_eq!((written(1).0, written(2).0), (512, PAGES));
    assert!(client.file(long).read_ref(0).unwrap().unwrap().word(8) == Some(u64::MAX / 255 * 2));
    volume.close().unwrap();
}

/// Each write to a page that is dirty already shows its time, and changes nothing else that is
/// shown; what is shown behind fsync is what a later reader finds.
#[test]
fn a_page_that_is_written_over_and_over_shows_each_time() {
    let image = Image::new(&["-b", "1024"], "32M", 0);
    let volume = image.open(16 << 20);
    let client = volume.client();
    let ino = make(client, Ino::ROOT, "file");
    put(client, ino, &[1; 3 << 20]);
    let mut before = client.stat(ino).unwrap();
    for round in 0..50u8 {
        client.write(ino, 4096 + 100, &[round; 1000], WriteOptions::default()).unwrap();
        let now = client.stat(ino).unwrap();
        assert!(now.mtime > before.mtime && now.mtime == now.ctime, "{now:?} behind {before:?}");
        assert_eq!(cfs::engine::Attr { mtime: before.mtime, ctime: before.ctime, ..now }, before);
        before.mtime = now.mtime;
        before.ctime = now.mtime;
    }
    client.sync(ino, false, &mut 0).unwrap();
    let shown = client.stat(ino).unwrap();
    let mut found = [0; 1000];
    client.file(ino).read(4096 + 100, &mut found).unwrap();
    assert_eq!(found, [49; 1000]);
    volume.close().unwrap();
    let volume = image.open(16 << 20);
    assert_eq!(volume.client().stat(ino).unwrap(), shown, "as it was stored");
    volume.close().unwrap();
    image.assert_clean();
}

/// Which event wrote these bytes.
fn place(events: &[Event], bytes: &[u8]) -> Option<usize> {
    let is_it = |event: &Event| match event {
        Event::Change(change) => matches!(&change.what, What::Bytes(found) if **found == *bytes),
        _ => false,
    };
    events.iter().rposition(is_it)
}
