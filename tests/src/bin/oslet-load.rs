//! Load for tests: reads the tree of `tests::load` until it is killed, and checks every byte.
//!
//! ```text
//! oslet-load keep DIR           maps DIR/cached once and touches all its pages
//! oslet-load map DIR SEED       maps files at random, their pages not in the kernel's cache
//! oslet-load list RUN OSLET VOLUME
//!                               a native client that prints the whole tree, and ends
//! oslet-load client RUN OSLET VOLUME SEED
//!                               a native client that holds pages for random times
//! oslet-load open RUN OSLET VOLUME PATH
//!                               a native client that has a file open, and held, and does with it
//!                               what it is told line by line: read, page, write, cut, stat, sync
//! ```
//!
//! The first line that those which do not end write is `ready`. Exit status: 3 for bytes that are
//! wrong, 2 for an error; by SIGBUS for a mapped page that could not be had.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cfs::client::{Client, Page};
use oslet::sys::filemap::FileMap;
use rustix::fs::{Advice, fadvise};
use tests::fsdiff::{ClientView, Listing};
use tests::load::{self, CACHED, FILE_BYTES, FILES, Random, WRONG};

const PAGE: usize = oslet::limits::FRAME_SIZE;
/// Pages that a client holds at most, and how long one.
const HELD: usize = 100;
const HOLD_MS: usize = 400;
/// How long a client may get nothing but EIO.
const NOBODY: Duration = Duration::from_secs(40);
/// Between two pieces of work, so that a machine with few CPUs has time for others.
const PAUSE: Duration = Duration::from_millis(2);

/// Bytes that differ from what they should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}: wrong bytes")]
struct Wrong(String);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["keep", dir] => keep(Path::new(dir)),
        ["map", dir, seed] => map(Path::new(dir), seed),
        ["list", run, oslet, volume] => list(Path::new(run), oslet, volume),
        ["client", run, oslet, volume, seed] => client(Path::new(run), oslet, volume, seed),
        ["open", run, oslet, volume, path] => open(Path::new(run), oslet, volume, path),
        _ => Err(anyhow::anyhow!(
            "oslet-load keep DIR | map DIR SEED | client RUN OSLET VOLUME SEED | \
             open RUN OSLET VOLUME PATH"
        )),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("oslet-load {}: {error:#}", words.join(" "));
    ExitCode::from(if error.is::<Wrong>() { WRONG } else { 2 })
}

fn ready() -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    Ok(out.flush()?)
}

fn check(found: &[u8], expected: &[u8], what: impl FnOnce() -> String) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Wrong(what()).into()) }
}

fn random(seed: &str) -> Result<Random> {
    Ok(Random(seed.parse::<u64>().context("seed")? | 1))
}

/// What is mapped and has been touched needs nobody.
fn keep(dir: &Path) -> Result<()> {
    let expected = load::cached();
    let map = FileMap::new(&File::open(dir.join(CACHED))?)?;
    ensure!(map.len() == expected.len(), "{} bytes", map.len());
    let mut found = vec![0; expected.len()];
    let mut first = true;
    loop {
        map.copy_to(0, &mut found);
        check(&found, &expected, || CACHED.to_owned())?;
        if first {
            ready()?;
            first = false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn map(dir: &Path, seed: &str) -> Result<()> {
    let mut random = random(seed)?;
    let mut found = vec![0; FILE_BYTES];
    ready()?;
    loop {
        let number = random.below(FILES);
        // That the file cannot be opened, since its owner is dead, is no fault of a map.
        if let Ok(file) = File::open(dir.join(load::path(number))) {
            fadvise(&file, 0, None, Advice::DontNeed)?;
            let map = FileMap::new(&file)?;
            ensure!(map.len() == FILE_BYTES, "{}: {} bytes", load::path(number), map.len());
            map.copy_to(0, &mut found);
            check(&found, &load::contents(number), || load::path(number))?;
        }
        std::thread::sleep(PAUSE);
    }
}

fn list(run: &Path, oslet: &str, volume: &str) -> Result<()> {
    let client = cfs::client::join(run, oslet, volume.parse().context("volume")?)?;
    let listing = Listing::of(&ClientView::of(client))?;
    Ok(std::io::stdout().lock().write_all(listing.text().as_bytes())?)
}

fn client(run: &Path, oslet: &str, volume: &str, seed: &str) -> Result<()> {
    let client = cfs::client::join(run, oslet, volume.parse().context("volume")?)?;
    let mut random = random(seed)?;
    ready()?;
    let mut good = Instant::now();
    loop {
        match round(&client, &mut random) {
            Ok(()) => good = Instant::now(),
            // Nobody served the volume for as long as readers wait.
            Err(error) if is_eio(&error) && good.elapsed() < NOBODY => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
}

/// Answers each line with what came of it for a file that is only open, and for one that is held.
fn open(run: &Path, oslet: &str, volume: &str, path: &str) -> Result<()> {
    let client = cfs::client::join(run, oslet, volume.parse().context("volume")?)?;
    let files = [client.open(path.as_bytes())?, client.open(path.as_bytes())?];
    files[1].hold()?;
    ready()?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let answers = files.iter().map(|file| match operate(file, &line) {
            Ok(text) => text,
            Err(error) => format!("errno {}", error.errno()),
        });
        let answers: Vec<_> = answers.collect();
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", answers.join(", "))?;
        out.flush()?;
    }
    Ok(())
}

fn operate(file: &cfs::client::File, what: &str) -> cfs::Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let mut bytes = [0; 64];
    match what {
        "read" => file.read(0, &mut bytes).map(|len| text(&bytes[..len])),
        "page" => file.read_ref(0).map(|page| {
            page.iter().for_each(|page| page.copy_to(0, &mut bytes));
            text(&bytes)
        }),
        "write" => {
            let options = cfs::change::WriteOptions::default();
            file.write(0, b"native", options).map(|written| written.len.to_string())
        }
        "cut" => file.truncate(0).map(|()| "cut".into()),
        "stat" => file.stat().map(|attr| attr.links.to_string()),
        "sync" => file.sync(false).map(|()| "durable".into()),
        _ => Err(cfs::Error::Invalid(format!("{what}: no such operation"))),
    }
}

fn is_eio(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref::<cfs::Error>().map(cfs::Error::errno);
    errno == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Pages are taken one after the other, each let go of at its time: its bytes are then what they
/// were when it was pinned.
fn round(client: &Arc<Client>, random: &mut Random) -> Result<()> {
    let wanted = 1 + random.below(HELD);
    let mut files = Vec::new();
    for _ in 0..wanted {
        let number = random.below(FILES);
        let name = load::path(number);
        let file = client.open(name.as_bytes()).with_context(|| name.clone())?;
        files.push((number, name, file));
    }
    let mut held: Vec<(Instant, usize, usize, Page<'_>)> = Vec::new();
    for (number, name, file) in &files {
        let index = random.below(FILE_BYTES.div_ceil(PAGE));
        let page = file.read_ref(index as u64).with_context(|| name.clone())?;
        let Some(page) = page else { bail!("{name}: page {index} is missing") };
        verify(*number, index, &page)?;
        let until = Instant::now() + Duration::from_millis(random.below(HOLD_MS) as u64);
        held.push((until, *number, index, page));
        let now = Instant::now();
        while let Some(at) = held.iter().position(|(until, ..)| *until <= now) {
            let (_, number, index, page) = held.swap_remove(at);
            verify(number, index, &page)?;
        }
        std::thread::sleep(PAUSE);
    }
    held.iter().try_for_each(|(_, number, index, page)| verify(*number, *index, page))
}

fn verify(number: usize, index: usize, page: &Page<'_>) -> Result<()> {
    let mut found = vec![0; PAGE];
    page.copy_to(0, &mut found);
    let mut expected = load::contents(number);
    expected.resize(FILE_BYTES.next_multiple_of(PAGE), 0);
    check(&found, &expected[index * PAGE..][..PAGE], || {
        format!("{}, page {index}", load::path(number))
    })
}
