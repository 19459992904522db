//! Pages for answers to reads, and entries for listings.

use std::sync::Arc;

use rustix::io::Errno;

use super::VolumeFs;
use super::shown::{errno, ino};
use crate::client::{self, Client, File, Page};
use crate::id::Ino;
use crate::mount::{Data, Directory, NodeId, Piece, ReadRange, Reply, Request};
use crate::{Error, Result};

const PAGE: u64 = oslet::limits::FRAME_SIZE as u64;

impl VolumeFs {
    pub(super) fn read_file(
        &self,
        request: &Request,
        node: NodeId,
        range: ReadRange,
        reply: Reply<Data>,
    ) {
        let ino = ino(node);
        if let Some(client) = self.shown.at_once(&[node]) {
            let file = client.file(ino);
            let record = client.cached_record(ino);
            let due = !range.no_atime
                && record.as_ref().is_some_and(|record| self.shown.is_access_due(record));
            let cached = record.filter(|_| !due).and_then(|record| {
                let get = |page, _| Ok(file.cached_ref(page));
                pages(range, record.attr.size, get).ok().flatten()
            });
            if let Some(pages) = cached {
                return answer_pages(&pages, reply);
            }
        }
        let shown = Arc::clone(&self.shown);
        let read = move |take: &mut dyn FnMut() -> Option<Reply<Data>>| {
            // Pages are pinned through their file: they are handed on before it goes.
            let taken = shown.ask(&[node], |shown, client| {
                if !range.no_atime {
                    shown.accessed(client, ino);
                }
                let file = client.file(ino);
                let pages = read_pages(client, &file, ino, range)?;
                if let Some(reply) = take() {
                    answer_pages(&pages, reply);
                }
                Ok(())
            });
            if let Err(error) = taken
                && let Some(reply) = take()
            {
                reply.error(errno(&error));
            }
        };
        match self.waits.get() {
            Some(waits) => waits.run(request, reply, move |held| {
                let mut held = Some(held);
                read(&mut || held.take()?.take());
            }),
            None => {
                let mut reply = Some(reply);
                read(&mut || reply.take());
            }
        }
    }
}

/// Pages with the part of each that was asked for: first byte and bytes.
pub(super) type Parts<'f> = Vec<(Page<'f>, usize, usize)>;

/// The pages of a range of a file that has `size` bytes, each from `get`, which is given the page
/// and where the range ends. `None` if one is not to be had.
pub(super) fn pages<'f>(
    range: ReadRange,
    size: u64,
    get: impl Fn(u64, u64) -> Result<Option<Page<'f>>>,
) -> Result<Option<Parts<'f>>> {
    let end = range.offset.saturating_add(u64::from(range.size)).min(size);
    let mut pages = Vec::with_capacity(range.size.div_ceil(PAGE as u32) as usize);
    let mut at = range.offset;
    while at < end {
        let within = at % PAGE;
        let len = (end - at).min(PAGE - within);
        let Some(page) = get(at / PAGE, end.div_ceil(PAGE))? else { return Ok(None) };
        pages.push((page, within as usize, len as usize));
        at += len;
    }
    Ok(Some(pages))
}

/// The pages of a range, waited for. A file may be cut meanwhile.
pub(super) fn read_pages<'f>(
    client: &Arc<Client>,
    file: &'f File,
    ino: Ino,
    range: ReadRange,
) -> Result<Parts<'f>> {
    let mut size = client.stat(ino)?.size;
    loop {
        let found = pages(range, size, |page, end| file.read_ref_of(page, end))?;
        if let Some(found) = found {
            return Ok(found);
        }
        let now = client.stat(ino)?.size;
        if now >= size {
            return Err(Error::corrupt(ino, "shorter than its size"));
        }
        size = now;
    }
}

pub(super) fn answer_pages(pages: &Parts<'_>, reply: Reply<Data>) {
    let pieces: Option<Vec<Piece<'_>>> = pages
        .iter()
        .map(|(page, within, len)| match page {
            Page::Shared(guard) => Piece::shared(guard, *within, *len),
            Page::Copied(bytes) => bytes.get(*within..within + len).map(Piece::Bytes),
        })
        .collect();
    match pieces {
        // Copied, or handed to the kernel, before this returns: the pins last until then.
        Some(pieces) => reply.data(&pieces),
        None => reply.error(Errno::IO),
    }
}

/// How many entries from the first on there is room for, when each takes `beside` bytes more.
pub(super) fn fitting(entries: &[client::DirEntry], beside: usize, room: usize) -> usize {
    let mut left = room;
    let fits = |entry: &&client::DirEntry| {
        let size = beside + Directory::size(entry.name.len());
        left.checked_sub(size).map(|less| left = less).is_some()
    };
    entries.iter().take_while(fits).count()
}
