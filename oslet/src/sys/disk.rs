//! Input and output between files and frames, at an offset: one operation with all that the kernel
//! uses while it runs, so that it can be run at once ([`Io::run`]) or be in flight
//! ([`super::uring_io`]).

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use memmap2::MmapMut;
use rustix::fs::FallocateFlags;

use crate::id::PageRef;
use crate::limits::FRAME_SIZE;
use crate::region::{OwnedFrame, Pins, RawSlice, Region};
use crate::{Error, Result};

/// Memory ranges of one operation (`UIO_MAXIOV`).
pub const MAX_VECTORS: usize = 1024;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write { sync: bool },
    DataSync,
    Allocate { mode: FallocateFlags, len: u64 },
}

/// The memory of an operation, kept mapped and ours for as long as it exists.
enum Memory {
    None,
    Frames(Vec<OwnedFrame>),
    Region { _keep: Arc<Region> },
    Buffer { _keep: Buffer },
}

/// One operation on a file. It may be repeated: a failed one as it is, a short one after
/// [`Self::advance`].
pub struct Io {
    pub(super) file: Arc<File>,
    pub(super) kind: Kind,
    pub(super) offset: u64,
    /// Ranges of `memory`: what is left to transfer.
    pub(super) vectors: Vec<libc::iovec>,
    memory: Memory,
}

// SAFETY: `vectors` points into `memory` alone, which is `Send`.
unsafe impl Send for Io {}
// SAFETY: nothing is reached through `&Io` but plain values.
unsafe impl Sync for Io {}

impl Io {
    /// Fills frames, each from its start, with `len` bytes of the file from `offset` on.
    pub fn read(
        file: &Arc<File>,
        offset: u64,
        len: usize,
        mut frames: Vec<OwnedFrame>,
    ) -> Result<Self> {
        if len > frames.len().saturating_mul(FRAME_SIZE) {
            return Err(Error::Invalid(format!("{len} bytes into {} frames", frames.len())));
        }
        let mut vectors = Vec::with_capacity(frames.len());
        let mut left = len;
        for frame in &mut frames {
            let bytes = frame.bytes()?.as_raw();
            push(&mut vectors, bytes.as_ptr(), left.min(bytes.len()));
            left -= left.min(bytes.len());
        }
        Self::new(file, Kind::Read, offset, vectors, Memory::Frames(frames))
    }

    /// Writes parts of frames - which, offset in it, bytes - to the file from `offset` on; with
    /// `sync` they are durable when it is done. The caller sees to it that the frames are not
    /// reused meanwhile.
    pub fn write_pages<'a>(
        file: &Arc<File>,
        offset: u64,
        region: &Arc<Region>,
        slices: impl Iterator<Item = (Source<'a>, usize, usize)>,
        sync: bool,
    ) -> Result<Self> {
        let mut vectors = Vec::with_capacity(slices.size_hint().0);
        for (source, at, len) in slices {
            let bytes = source.resolve(region).and_then(|bytes| bytes.sub(at, len));
            let bytes = bytes.ok_or_else(|| {
                Error::Invalid(format!("{source:?}: no bytes {at} to {at} + {len} are mapped"))
            })?;
            push(&mut vectors, bytes.as_ptr(), bytes.len());
        }
        let memory = Memory::Region { _keep: Arc::clone(region) };
        Self::new(file, Kind::Write { sync }, offset, vectors, memory)
    }

    /// Writes a buffer to the file from `offset` on; with `sync` it is durable when it is done.
    pub fn write_buffer(file: &Arc<File>, offset: u64, buffer: Buffer, sync: bool) -> Result<Self> {
        let mut vectors = Vec::with_capacity(1);
        push(&mut vectors, buffer.0.as_ptr().cast_mut(), buffer.0.len());
        Self::new(file, Kind::Write { sync }, offset, vectors, Memory::Buffer { _keep: buffer })
    }

    /// Makes durable what was written to the file.
    pub fn data_sync(file: &Arc<File>) -> Self {
        Self {
            file: Arc::clone(file),
            kind: Kind::DataSync,
            offset: 0,
            vectors: Vec::new(),
            memory: Memory::None,
        }
    }

    /// Changes how a range of the file is stored (fallocate).
    pub fn allocate(file: &Arc<File>, mode: FallocateFlags, offset: u64, len: u64) -> Self {
        Self { kind: Kind::Allocate { mode, len }, offset, ..Self::data_sync(file) }
    }

    fn new(
        file: &Arc<File>,
        kind: Kind,
        offset: u64,
        vectors: Vec<libc::iovec>,
        memory: Memory,
    ) -> Result<Self> {
        if vectors.len() > MAX_VECTORS {
            return Err(Error::Invalid(format!(
                "{} separate ranges of memory in one operation; at most {MAX_VECTORS} are possible",
                vectors.len()
            )));
        }
        Ok(Self { file: Arc::clone(file), kind, offset, vectors, memory })
    }

    /// Bytes left to transfer.
    pub fn remaining(&self) -> usize {
        self.vectors.iter().map(|vector| vector.iov_len).sum()
    }

    /// Where in the file the rest starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Leaves out the first `done` bytes, which have been transferred.
    pub fn advance(&mut self, done: usize) {
        let mut left = done.min(self.remaining());
        self.offset += left as u64;
        let whole = self.vectors.iter().take_while(|vector| {
            let covered = vector.iov_len <= left;
            if covered {
                left -= vector.iov_len;
            }
            covered
        });
        let whole = whole.count();
        self.vectors.drain(..whole);
        if let Some(first) = self.vectors.first_mut() {
            // SAFETY: `left` is less than the range's length.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(left) }.cast();
            first.iov_len -= left;
        }
    }

    /// The frames that a read was to fill.
    pub fn into_frames(self) -> Vec<OwnedFrame> {
        match self.memory {
            Memory::Frames(frames) => frames,
            Memory::None | Memory::Region { .. } | Memory::Buffer { .. } => Vec::new(),
        }
    }

    /// Runs it on this thread. Returns the bytes transferred, possibly fewer than asked for.
    pub fn run(&self) -> io::Result<usize> {
        let (fd, offset) = (self.file.as_raw_fd(), self.offset as libc::off64_t);
        let (vectors, count) = (self.vectors.as_ptr(), self.vectors.len() as libc::c_int);
        let result = match self.kind {
            // SAFETY: the vectors cover frames that `memory` owns exclusively.
            Kind::Read => unsafe { libc::preadv2(fd, vectors, count, offset, 0) },
            Kind::Write { sync } => {
                let flags = if sync { libc::RWF_DSYNC } else { 0 };
                // SAFETY: the vectors cover memory that `memory` keeps mapped; it is only read.
                unsafe { libc::pwritev2(fd, vectors, count, offset, flags) }
            }
            Kind::DataSync => {
                rustix::fs::fdatasync(&*self.file)?;
                0
            }
            Kind::Allocate { mode, len } => {
                rustix::fs::fallocate(&*self.file, mode, self.offset, len)?;
                0
            }
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// A frame to write from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The one that this pin of the set is on.
    Pin(&'a Pins, usize),
    /// One of the own segment, kept from reuse by other means.
    Own(PageRef),
}

impl Source<'_> {
    /// Its bytes, mapped for as long as `region` lives. Own ones through the writable mapping,
    /// which rings may have registered; those of others as they were pinned, whoever is mapped in
    /// their home's place by now.
    fn resolve(self, region: &Arc<Region>) -> Option<RawSlice> {
        let own = region.own();
        let page = match self {
            Self::Pin(pins, index) => {
                let page = pins.page(index).filter(|_| Arc::ptr_eq(pins.region(), region))?;
                if page.home != own.participant() {
                    return pins.bytes(index).copied();
                }
                page
            }
            Self::Own(page) => page,
        };
        let start = (page.frame.0 as usize).checked_mul(FRAME_SIZE)?;
        let ours = page.home == own.participant();
        own.frame_range().ok().filter(|_| ours)?.sub(start, FRAME_SIZE)
    }
}

/// Adds a range, joined to the one before it where they touch.
fn push(vectors: &mut Vec<libc::iovec>, base: *mut u8, len: usize) {
    if len == 0 {
        return;
    }
    if let Some(last) = vectors.last_mut()
        && last.iov_base.addr() + last.iov_len == base.addr()
    {
        last.iov_len += len;
        return;
    }
    vectors.push(libc::iovec { iov_base: base.cast(), iov_len: len });
}

/// Private memory that starts on a page, for what frames cannot hold: misaligned data on its way
/// to a device, zeros.
pub struct Buffer(MmapMut);

impl Buffer {
    /// `len` bytes of zeros; untouched ones cost no memory.
    pub fn zeroed(len: usize) -> Result<Self> {
        let mapped = MmapMut::map_anon(len);
        mapped.map(Self).map_err(Error::io(format!("buffer of {len} bytes: mmap")))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
