//! Answers to requests that change something.

use zerocopy::IntoBytes;

use super::{Piece, Reply, entry_out};
use crate::mount::abi;
use crate::mount::ops::{Entry, Handle, TrimRange};
use crate::mount::reply::OpenCache;

/// Kind of an answer: a new entry, open.
pub enum Created {}
/// Kind of an answer: how much was written.
pub enum Written {}
/// Kind of an answer: an ioctl request that tells nothing was done.
pub enum Controlled {}
/// Kind of an answer: how much was discarded.
pub enum Trimmed {}

impl Reply<Created> {
    /// The file, and its handle.
    pub fn created(self, entry: &Entry, handle: Handle, cache: OpenCache) {
        let open = abi::OpenOut { fh: handle.0, open_flags: cache.bits(), backing_id: 0 };
        let entry = entry_out(entry);
        self.pieces(&[Piece::Bytes(entry.as_bytes()), Piece::Bytes(open.as_bytes())]);
    }
}

impl Reply<Written> {
    /// What is to be written; empty for a copy.
    pub fn data(&self) -> &[u8] {
        let data = self.pending.as_ref().map_or(&[][..], |pending| pending.channel.data());
        &data[..data.len().min(self.limit)]
    }

    /// So many bytes were.
    pub fn written(self, size: u32) {
        self.value(&abi::WriteOut { size, padding: 0 });
    }
}

impl Reply<Controlled> {
    /// Done.
    pub fn done(self) {
        self.value(&abi::IoctlOut::default());
    }
}

impl Reply<Trimmed> {
    /// So many bytes were discarded of that range; of the question this is all that changes.
    pub fn trimmed(self, asked: &TrimRange, len: u64) {
        let range = abi::TrimRange { start: asked.start, len, minlen: asked.min_len };
        let head = abi::IoctlOut::default();
        self.pieces(&[Piece::Bytes(head.as_bytes()), Piece::Bytes(range.as_bytes())]);
    }
}
