//! Pages for answers to reads.

use std::sync::Arc;

use rustix::io::Errno;

use crate::client::{Client, File, Page};
use crate::id::Ino;
use crate::mount::{Data, Piece, ReadRange, Reply};
use crate::{Error, Result};

const PAGE: u64 = oslet::limits::FRAME_SIZE as u64;

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
