//! A native client for tests and for trying things out: it reads a volume's tree by reference.
//!
//! `oslet __client DIRECTORY OSLET VOLUME read` copies nothing but to print: a line for each
//! regular
//! file, its length, the FNV-1a hash of its bytes and its path. `hold` pins the first page of every
//! file until it is killed, and `loop` reads the tree again and again; both print `ready` first.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use cfs::client::{Client, Page};
use cfs::disk::inode::Kind;
use cfs::id::Ino;

/// The argument by which the program knows that it is such a client.
pub(crate) const COMMAND: &str = "__client";

const PAGE: u64 = oslet::limits::FRAME_SIZE as u64;

pub(crate) fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(2).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let [directory, oslet, volume, what] = words else {
        bail!("{COMMAND} DIRECTORY OSLET VOLUME read|hold|loop");
    };
    let object = volume.parse().context("volume number")?;
    let client = cfs::client::join(Path::new(directory), oslet, object)?;
    let mut files = Vec::new();
    list(&client, Ino::ROOT, Vec::new(), &mut files)?;
    let mut out = std::io::stdout().lock();
    match &what[..] {
        "read" => {
            for (path, ino, size) in &files {
                let hash = hash(&client, *ino, *size)?;
                writeln!(out, "{size} {hash:016x} {}", String::from_utf8_lossy(path))?;
            }
        }
        "hold" => {
            let handles: Vec<_> = files.iter().map(|(_, ino, _)| client.file(*ino)).collect();
            let pages: Result<Vec<Option<Page<'_>>>, _> =
                handles.iter().map(|file| file.read_ref(0)).collect();
            let pages = pages?;
            let pinned = pages.iter().flatten().filter(|page| page.shared().is_some()).count();
            writeln!(out, "ready {pinned}")?;
            out.flush()?;
            loop {
                std::thread::park();
            }
        }
        "loop" => {
            writeln!(out, "ready")?;
            out.flush()?;
            loop {
                // Asks the owner every time, so that a kill comes in the middle of a request.
                client.statfs()?;
                for (_, ino, size) in &files {
                    hash(&client, *ino, *size)?;
                }
            }
        }
        other => bail!("{other}: read, hold or loop"),
    }
    Ok(())
}

/// Every regular file below: path, number, bytes.
fn list(
    client: &Arc<Client>,
    dir: Ino,
    path: Vec<u8>,
    files: &mut Vec<(Vec<u8>, Ino, u64)>,
) -> Result<()> {
    let mut position = 0;
    loop {
        let (entries, end) = client.readdir(dir, position)?;
        for entry in &entries {
            position = entry.next;
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let path = [&path[..], b"/", &entry.name].concat();
            let attr = client.stat(entry.ino)?;
            match attr.kind {
                Kind::Directory => list(client, entry.ino, path, files)?,
                Kind::Regular => files.push((path, entry.ino, attr.size)),
                _ => {}
            }
        }
        if end || entries.is_empty() {
            return Ok(());
        }
    }
}

fn hash(client: &Arc<Client>, ino: Ino, size: u64) -> Result<u64> {
    let file = client.file(ino);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut bytes = [0; PAGE as usize];
    for page in 0..size.div_ceil(PAGE) {
        let Some(read) = file.read_ref(page)? else { bail!("{ino}: page {page} is missing") };
        let len = (size - page * PAGE).min(PAGE) as usize;
        read.copy_to(0, &mut bytes[..len]);
        for byte in &bytes[..len] {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(hash)
}
