//! Changes through the native interface: in the process that owns the volume, and in one of another
//! OSlet, whose changes are messages to the owner.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use bench::changing::{self, PER_DIR, name};
use bench::corpus::{self, PAGE, Walk};
use bench::through::CHUNK;
use bench::written::{Overwriting, Stream};
use bench::{Change, Environment, Native, Side};
use cfs::Error;
use cfs::change::{Caller, NewInode, WriteOptions};
use cfs::client::Client;
use cfs::engine::write::WriterOptions;
use cfs::id::Ino;
use cfs::local::LocalVolume;
use cfs::open::OpenOptions;

use super::cluster::Reader;

/// As much as is written: the peers' caches have no bound either.
const CACHE: u64 = 512 << 20;
const FILE: NewInode = NewInode { mode: 0o100_644, umask: 0o022, device: (0, 0) };
const DIRECTORY: NewInode = NewInode { mode: 0o40_755, umask: 0o022, device: (0, 0) };

/// What a side needs while it is measured; dropped in this order.
struct Using {
    client: Arc<Client>,
    _volume: Volume,
}

/// Kept as long as it is used.
enum Volume {
    /// This process owns it.
    Own { _volume: LocalVolume },
    /// A partner does.
    Other { _reader: Reader },
}

pub(super) fn side(environment: &Environment, native: Native, change: Change) -> Result<Side> {
    let sizes = environment.sizes;
    let image = changing::image(change, sizes, &environment.scratch)?;
    let using = Using::new(&image, native)?;
    match change {
        Change::Overwrite => overwrite(using, sizes.small),
        Change::Stream => Ok(stream(using, sizes.stream)),
        Change::Untar => Ok(Side::absent("tar has no native interface")),
        _ => Ok(files(using, change)),
    }
}

impl Using {
    fn new(image: &Path, native: Native) -> Result<Self> {
        match native {
            Native::Owner => {
                let writer = Some(WriterOptions::default());
                let options = OpenOptions { writer, ..OpenOptions::default() };
                let volume = LocalVolume::open(image, CACHE, &options)?;
                ensure!(volume.is_writable(), "{}: cannot be written", image.display());
                let client = Arc::clone(volume.client());
                Ok(Self { client, _volume: Volume::Own { _volume: volume } })
            }
            Native::Other => {
                let reader = Reader::writing(image, CACHE)?;
                let client = reader.member.client()?;
                Ok(Self { client, _volume: Volume::Other { _reader: reader } })
            }
        }
    }
}

/// As [`changing`] does it by system calls: directories are made first, and everything is removed
/// at the end.
fn files(using: Using, change: Change) -> Side {
    let mut page = vec![0; PAGE];
    corpus::fill(7, &mut page);
    Side::batch(move |operations| {
        let Using { client, .. } = { &using };
        let dirs = (0..operations.div_ceil(PER_DIR)).map(|number| {
            let made = client.make(Ino::ROOT, name("", number).as_bytes(), DIRECTORY, Caller::ROOT);
            made.map(|record| record.attr.ino)
        });
        let dirs = dirs.collect::<cfs::Result<Vec<_>>>()?;
        let names: Vec<Names> = (0..operations)
            .map(|index| Names {
                dir: dirs[(index / PER_DIR) as usize],
                one: name("file", index).into_bytes(),
                other: name("other", index).into_bytes(),
            })
            .collect();
        if matches!(change, Change::Rename | Change::Unlink) {
            names.iter().try_for_each(|names| names.create(client, &page))?;
        }
        let started = Instant::now();
        for names in &names {
            names.change(client, change, &page)?;
        }
        let took = started.elapsed();
        for names in &names {
            names.check(client, change, &page)?;
            names.remove(client, change)?;
        }
        for number in 0..dirs.len() as u64 {
            client.rmdir(Ino::ROOT, name("", number).as_bytes(), Caller::ROOT)?;
        }
        Ok(took)
    })
}

struct Names {
    dir: Ino,
    one: Vec<u8>,
    other: Vec<u8>,
}

impl Names {
    fn create(&self, client: &Client, page: &[u8]) -> Result<()> {
        let ino = client.make(self.dir, &self.one, FILE, Caller::ROOT)?.attr.ino;
        let written = client.write(ino, 0, page, WriteOptions::default())?;
        ensure!(written.len == page.len(), "{} bytes of a page were written", written.len);
        Ok(client.close(ino)?)
    }

    #[inline]
    fn change(&self, client: &Client, change: Change, page: &[u8]) -> Result<()> {
        let (one, other) = ((self.dir, &*self.one), (self.dir, &*self.other));
        match change {
            Change::Create => self.create(client, page)?,
            Change::Rename => client.rename(one, other, 0, Caller::ROOT)?,
            Change::Unlink => client.unlink(self.dir, &self.one, Caller::ROOT)?,
            _ => drop(client.make(self.dir, &self.one, DIRECTORY, Caller::ROOT)?),
        }
        Ok(())
    }

    /// Whether it was done.
    fn check(&self, client: &Arc<Client>, change: Change, page: &[u8]) -> Result<()> {
        let holds = |name: &[u8]| -> Result<bool> {
            let file = client.file(client.lookup(self.dir, name)?.attr.ino);
            let mut found = vec![0; page.len() + 1];
            Ok(file.read(0, &mut found)? == page.len() && found[..page.len()] == *page)
        };
        let none = |name| matches!(client.lookup(self.dir, name), Err(Error::NotFound));
        let done = match change {
            Change::Create => holds(&self.one)?,
            Change::Rename => holds(&self.other)? && none(&self.one),
            Change::Unlink => none(&self.one),
            _ => client.readdir(client.lookup(self.dir, &self.one)?.attr.ino, 0).is_ok(),
        };
        let name = String::from_utf8_lossy(&self.one);
        ensure!(done, "{name}: {change:?} was answered and not done");
        Ok(())
    }

    fn remove(&self, client: &Client, change: Change) -> Result<()> {
        match change {
            Change::Create => client.unlink(self.dir, &self.one, Caller::ROOT)?,
            Change::Rename => client.unlink(self.dir, &self.other, Caller::ROOT)?,
            Change::Unlink => {}
            _ => client.rmdir(self.dir, &self.one, Caller::ROOT)?,
        }
        Ok(())
    }
}

fn overwrite(using: Using, bytes: u64) -> Result<Side> {
    let client = &using.client;
    let ino = client.make(Ino::ROOT, b"pages", FILE, Caller::ROOT)?.attr.ino;
    let pages = bytes / PAGE as u64;
    let mut page = vec![0; PAGE];
    for number in 0..pages {
        corpus::fill(number, &mut page);
        write(client, ino, number * PAGE as u64, &page)?;
    }
    client.sync(ino, false, &mut 0)?;
    let mut writing = Overwriting::new(Walk::new(pages));
    Ok(Side::batch(move |operations| {
        let Using { client, .. } = { &using };
        let file = client.file(ino);
        let read = |page, out: &mut [u8]| read(&file, page * PAGE as u64, out);
        writing.check(read)?;
        let started = Instant::now();
        for _ in 0..operations {
            let (page, bytes) = writing.step();
            write(client, ino, page * PAGE as u64, bytes)?;
        }
        let took = started.elapsed();
        writing.check(read)?;
        Ok(took)
    }))
}

fn stream(using: Using, bytes: u64) -> Side {
    let mut stream = Stream::new(CHUNK);
    let chunks = bytes / CHUNK;
    Side::probe(move || {
        let Using { client, .. } = { &using };
        let ino = client.make(Ino::ROOT, b"stream", FILE, Caller::ROOT)?.attr.ino;
        let mut errors = client.hold(ino)?;
        let started = Instant::now();
        for index in 0..chunks {
            write(client, ino, index * CHUNK, stream.chunk(index))?;
        }
        client.sync(ino, false, &mut errors)?;
        let took = started.elapsed();
        let file = client.file(ino);
        stream.check(chunks, |offset, out| read(&file, offset, out))?;
        client.let_go(ino, 1)?;
        client.unlink(Ino::ROOT, b"stream", Caller::ROOT)?;
        // Its blocks are free behind this.
        client.sync_all(&mut errors)?;
        Ok(Change::Stream.unit().figure(chunks, took))
    })
}

#[inline]
fn write(client: &Client, ino: Ino, offset: u64, bytes: &[u8]) -> Result<()> {
    let written = client.write(ino, offset, bytes, WriteOptions::default())?;
    if written.len != bytes.len() {
        bail!("{} of {} bytes were written", written.len, bytes.len());
    }
    Ok(())
}

fn read(file: &cfs::client::File, offset: u64, out: &mut [u8]) -> Result<()> {
    let read = file.read(offset, out)?;
    ensure!(read == out.len(), "{read} of {} bytes were read", out.len());
    Ok(())
}
