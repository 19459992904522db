//! The limit of what is written through a filesystem: its backing file, by io_uring and O_DIRECT.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, PageRef, ParticipantId};
use oslet::limits::FRAME_SIZE;
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};
use proxydev::backend::engine::{Engine, EngineOptions};
use proxydev::backend::file::{FileDevice, FileOptions};
use proxydev::data::{Data, Slice};
use proxydev::device::{BlockDevice as _, Operation, Request};
use proxydev::sync::execute;

use crate::case::{Side, Unit};
use crate::corpus::{self, PAGE, WORDS};

/// Bytes of a request.
const REQUEST: usize = 1 << 20;
/// Requests in flight.
const DEPTH: u64 = 8;
/// Requests that differ in what they write: where a request went astray is seen.
const PATTERNS: u64 = DEPTH + 1;
const PAGES: usize = REQUEST / PAGE;

/// A file, and memory that it is written from.
struct Raw {
    path: PathBuf,
    device: FileDevice,
    arena: Arc<Arena>,
    patterns: Vec<Vec<PageRef>>,
    requests: u64,
    // Last: it waits for what is in flight.
    _engine: Arc<Engine>,
}

/// Writes a file of `bytes` bytes whose blocks have their places already, in sequence, and
/// flushes it: megabytes a second.
///
/// # Errors
/// The file cannot be made.
pub fn raw_stream(path: &Path, bytes: u64) -> anyhow::Result<Side> {
    corpus::write_pages(path, bytes)?;
    let arena = Arena::new(&region(PATTERNS as usize * PAGES + 64)?);
    let engine = Engine::new(arena.region(), EngineOptions::default())?;
    let device = FileDevice::open(path, FileOptions::default(), &engine, &arena)?;
    if !(engine.abilities().0 && device.is_direct()) {
        let name = path.display();
        return Ok(Side::absent(format!("{name}: no io_uring, or no O_DIRECT here")));
    }
    let pattern = |number: u64| -> anyhow::Result<Vec<PageRef>> {
        let mut frames = arena.alloc_many(PAGES)?;
        for (page, frame) in (number * PAGES as u64..).zip(&mut frames) {
            corpus::fill(page, frame.bytes()?.fill());
        }
        Ok(frames.into_iter().map(|frame| frame.publish()).collect())
    };
    let patterns = (0..PATTERNS).map(pattern).collect::<anyhow::Result<_>>()?;
    let requests = bytes / REQUEST as u64;
    ensure!(requests > 0, "{}: shorter than one request", path.display());
    let (path, arena) = (path.to_owned(), Arc::clone(&arena));
    let raw = Raw { path, device, arena, patterns, requests, _engine: engine };
    Ok(Side::probe(move || {
        let took = raw.write()?;
        raw.check()?;
        Ok(Unit::Megabytes { operation: REQUEST as u64 }.figure(raw.requests, took))
    }))
}

impl Raw {
    fn write(&self) -> anyhow::Result<Duration> {
        let (ended, end) = mpsc::channel();
        let started = Instant::now();
        for index in 0..self.requests {
            if index >= DEPTH {
                let result: proxydev::Result<()> = end.recv().context("a request is lost")?;
                result?;
            }
            let pages = &self.patterns[(index % PATTERNS) as usize];
            let slices = pages.iter().filter_map(|&page| Slice::new(page, 0, PAGE)).collect();
            let data = Data::kept(self.arena.region(), slices, Box::new(()))?;
            let operation = Operation::Write { offset: index * REQUEST as u64, data, fua: false };
            let ended = ended.clone();
            self.device.submit(Request::new(operation, move |result| {
                // Nobody waits for it any more when another has failed.
                let _ = ended.send(result.map(drop));
            }));
        }
        for _ in 0..self.requests.min(DEPTH) {
            end.recv().context("a request is lost")??;
        }
        execute(&self.device, Operation::Flush)?;
        Ok(started.elapsed())
    }

    /// A word of each page.
    fn check(&self) -> anyhow::Result<()> {
        let file = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        let mut found = vec![0; REQUEST];
        for index in 0..self.requests {
            file.read_exact_at(&mut found, index * REQUEST as u64)?;
            let first = index % PATTERNS * PAGES as u64;
            for (page, bytes) in (first..).zip(found.chunks_exact(PAGE)) {
                let word = page as usize % WORDS;
                let right = corpus::word(bytes, word) == corpus::expected(page, word);
                ensure!(right, "request {index} was answered and not done");
            }
        }
        Ok(())
    }
}

/// Memory of a process that shares it with nobody.
fn region(frames: usize) -> anyhow::Result<Arc<Region>> {
    let control = ControlPage::create(&Backing::Memfd, "raw", 1)?;
    let spec = SegmentSpec {
        participant: ParticipantId::runtime(OsletId::new(0).context("no OSlet 0")?),
        epoch: Epoch(1),
        frames,
        space: 2 * frames + FRAME_SIZE,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec)?;
    Ok(Region::new(control, own, Paging::default())?)
}
