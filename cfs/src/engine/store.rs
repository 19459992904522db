//! Where a volume's bytes come from.

pub mod layer;
mod prompt;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oslet::id::PageRef;
use parking_lot::RwLock;
use proxydev::data::Data;

use crate::{Error, Result, limits};

pub(crate) use prompt::Prompt;
pub use prompt::{may_wait, promptly};

/// Storage that holds one volume, addressed in bytes. All methods may be called at once from any
/// number of threads.
pub trait BlockSource: Send + Sync {
    /// Bytes of the storage.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on; an error if they do not all exist.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Whether [`Self::write_at`] can succeed.
    fn is_writable(&self) -> bool;

    /// Puts `data` at `offset`; it is durable after the next [`Self::flush`].
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Puts each piece of data at its offset, in any order; after an error any may be there.
    fn write_many(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        writes.iter().try_for_each(|(offset, data)| self.write_at(*offset, data))
    }

    /// Bytes that the storage writes as a whole: who changes less writes the rest again.
    fn write_unit(&self) -> u32 {
        1
    }

    /// Makes durable what was written.
    fn flush(&self) -> Result<()>;

    /// Whether [`Self::discard`] does anything.
    fn can_discard(&self) -> bool {
        false
    }

    /// Says that nobody needs these bytes: they read as what they were or as zeros from now on.
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Puts parts of frames at their places, any number of requests in flight, and waits for all of
    /// them; how each ended, in their order. What is written is durable after the next
    /// [`Self::flush`].
    fn write_pages(&self, writes: Vec<PageWrite>) -> Vec<Result<()>> {
        let one = |write: PageWrite| self.write_at(write.offset, &write.data.to_vec()?);
        writes.into_iter().map(one).collect()
    }

    /// Reads whole pages straight into frames of the own segment, which the caller then retires;
    /// `None` where that is not possible and [`Self::read_at`] must do.
    fn read_pages(&self, _offset: u64, _pages: usize) -> Result<Option<Vec<PageRef>>> {
        Ok(None)
    }
}

/// Data in frames, and where they go.
#[derive(Debug)]
pub struct PageWrite {
    /// First byte in the storage.
    pub offset: u64,
    /// What is put there.
    pub data: Data,
}

impl<T: BlockSource + ?Sized> BlockSource for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        (**self).is_writable()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        (**self).write_at(offset, data)
    }

    fn write_many(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        (**self).write_many(writes)
    }

    fn write_unit(&self) -> u32 {
        (**self).write_unit()
    }

    fn flush(&self) -> Result<()> {
        (**self).flush()
    }

    fn can_discard(&self) -> bool {
        (**self).can_discard()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        (**self).discard(offset, len)
    }

    fn write_pages(&self, writes: Vec<PageWrite>) -> Vec<Result<()>> {
        (**self).write_pages(writes)
    }

    fn read_pages(&self, offset: u64, pages: usize) -> Result<Option<Vec<PageRef>>> {
        (**self).read_pages(offset, pages)
    }
}

/// A volume in memory.
pub struct MemSource {
    bytes: RwLock<Vec<u8>>,
}

impl MemSource {
    /// The volume with these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes) }
    }

    /// The bytes as they are now.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner()
    }
}

impl BlockSource for MemSource {
    fn size(&self) -> u64 {
        self.bytes.read().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.read();
        let range = checked_range(offset, buf.len(), bytes.len() as u64)?;
        buf.copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.write();
        let range = checked_range(offset, data.len(), bytes.len() as u64)?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut bytes = self.bytes.write();
        let range = checked_range(offset, len as usize, bytes.len() as u64)?;
        bytes[range].fill(0);
        Ok(())
    }
}

/// A layer in memory over a source that is only read: what is written stays in the layer. So a
/// journal is replayed on a read-only device.
pub struct Overlay<S> {
    below: S,
    chunks: RwLock<BTreeMap<u64, Box<[u8]>>>,
    /// Set before the first chunk is put in, never cleared: readers of a layer without writes
    /// take no lock.
    written: AtomicBool,
}

/// Bytes of one piece of an [`Overlay`]; the last piece of a source may be shorter.
const CHUNK: u64 = 4096;

impl<S: BlockSource> Overlay<S> {
    /// A layer without writes.
    pub fn new(below: S) -> Self {
        Self { below, chunks: RwLock::default(), written: AtomicBool::new(false) }
    }

    /// Bytes that the layer holds.
    pub fn memory(&self) -> u64 {
        self.chunks.read().len() as u64 * CHUNK
    }

    /// What each piece that was written holds now, with its offset, in order of offsets.
    pub fn pieces(&self) -> Vec<(u64, Box<[u8]>)> {
        let chunks = self.chunks.read();
        chunks.iter().map(|(&index, bytes)| (index * CHUNK, bytes.clone())).collect()
    }

    /// The chunk with that index, copied up from below.
    fn fill(&self, index: u64) -> Result<Box<[u8]>> {
        let start = index * CHUNK;
        let len = (self.below.size() - start).min(CHUNK);
        let mut bytes = vec![0; len as usize].into_boxed_slice();
        self.below.read_at(start, &mut bytes)?;
        Ok(bytes)
    }
}

impl<S: BlockSource> BlockSource for Overlay<S> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        checked_range(offset, buf.len(), self.size())?;
        if !self.written.load(Ordering::Acquire) {
            return self.below.read_at(offset, buf);
        }
        let chunks = self.chunks.read();
        self.below.read_at(offset, buf)?;
        let end = offset + buf.len() as u64;
        for (&index, chunk) in chunks.range(offset / CHUNK..end.div_ceil(CHUNK)) {
            let start = index * CHUNK;
            let from = offset.max(start);
            let to = end.min(start + chunk.len() as u64);
            let source = &chunk[(from - start) as usize..(to - start) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        checked_range(offset, data.len(), self.size())?;
        let end = offset + data.len() as u64;
        let mut chunks = self.chunks.write();
        self.written.store(true, Ordering::Release);
        for index in offset / CHUNK..end.div_ceil(CHUNK) {
            if !chunks.contains_key(&index) {
                if chunks.len() as u64 >= limits::MAX_OVERLAY / CHUNK {
                    return Err(Error::Exhausted(format!(
                        "more than {} bytes written over a read-only volume",
                        limits::MAX_OVERLAY
                    )));
                }
                chunks.insert(index, self.fill(index)?);
            }
            let start = index * CHUNK;
            if let Some(chunk) = chunks.get_mut(&index) {
                let from = offset.max(start);
                let to = end.min(start + chunk.len() as u64);
                let target = &mut chunk[(from - start) as usize..(to - start) as usize];
                target.copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_pages(&self, offset: u64, pages: usize) -> Result<Option<Vec<PageRef>>> {
        if self.written.load(Ordering::Acquire) {
            let end = offset.saturating_add(pages as u64 * CHUNK);
            if self.chunks.read().range(offset / CHUNK..end.div_ceil(CHUNK)).next().is_some() {
                return Ok(None);
            }
        }
        self.below.read_pages(offset, pages)
    }
}

/// The bytes `offset..offset + len` of something of `size` bytes.
fn checked_range(offset: u64, len: usize, size: u64) -> Result<std::ops::Range<usize>> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= size => Ok(offset as usize..end as usize),
        _ => Err(Error::Io {
            what: format!("{len} bytes at {offset} of a volume of {size}"),
            source: std::io::ErrorKind::UnexpectedEof.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_overlay_is_the_source_with_the_writes(
            size in 1usize..20_000,
            writes in proptest::collection::vec((0usize..20_000, 1usize..9000, any::<u8>()), 0..8),
            read in (0usize..20_000, 0usize..20_000),
        ) {
            let mut model: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let below = model.clone();
            let overlay = Overlay::new(MemSource::new(below.clone()));
            for (offset, len, byte) in writes {
                let result = overlay.write_at(offset as u64, &vec![byte; len]);
                prop_assert_eq!(result.is_ok(), offset + len <= size);
                if result.is_ok() {
                    model[offset..offset + len].fill(byte);
                }
            }
            let (offset, len) = read;
            let mut buf = vec![0; len];
            let result = overlay.read_at(offset as u64, &mut buf);
            prop_assert_eq!(result.is_ok(), offset + len <= size);
            if result.is_ok() {
                prop_assert_eq!(&buf[..], &model[offset..offset + len]);
            }
            prop_assert_eq!(overlay.below.into_bytes(), below);
        }
    }
}
