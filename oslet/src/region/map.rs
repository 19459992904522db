//! Mappings of shared files and typed views into them: the only code that dereferences the region.
//!
//! A view never hands out a Rust reference to memory that a peer may write (R3): control words are
//! read as atomics by value, bytes are copied.

mod lines;
mod words;

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

pub use lines::{Line, Lines};
pub use words::{Atom, Few, One, Ro, Rw};

use super::backing::HUGE_PAGE;
use crate::limits::FRAME_SIZE;
use crate::{Error, Result};

/// Huge pages asked for at a time: 256 MiB.
const HUGE_AT_ONCE: usize = 128;
/// How long a segment is waited for whose huge pages the kernel has to put together first.
const HUGE_LIMIT: Duration = Duration::from_secs(3);

/// How memory is brought in when it is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// Ask for huge pages.
    pub huge: bool,
    /// Touch every page now, so that no later access faults one in.
    pub prefault: bool,
}

/// A shared mapping of a file, read-write for the owner and read-only for all others. A child that
/// the owner forks has nothing at these addresses.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// The addresses from which the file's were taken.
    reserved: MmapRaw,
    writable: bool,
    what: String,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`; `what` names it in errors.
    pub fn new(file: &File, len: usize, writable: bool, what: &str) -> Result<Self> {
        let actual = file.metadata().map_err(Error::io(format!("{what}: stat")))?.len();
        if actual < len as u64 || len == 0 {
            return Err(Error::Corrupt {
                peer: what.to_owned(),
                what: format!("its file has {actual} bytes, not the {len} that it should have"),
            });
        }
        let failed = || Error::io(format!("{what}: mmap of {len} bytes"));
        // Only where an address is a multiple of theirs can huge pages map what lies there. So
        // addresses are reserved with room to choose from, and the file replaces some of them.
        let spare = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let mut options = MmapOptions::new();
        options.len(len.saturating_add(spare)).no_reserve_swap();
        let reserved = MmapRaw::from(options.map_anon().map_err(failed())?);
        let start = reserved.as_mut_ptr();
        // SAFETY: at most `HUGE_PAGE - 1` bytes on, where `len` more are reserved.
        let start = unsafe { start.add(start.align_offset(spare.max(1))) };
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range is within what was just reserved and is used by nobody; it is unmapped
        // with the reservation.
        unsafe { rustix::mm::mmap(start.cast(), len, access, flags, file, 0) }
            .map_err(|e| failed()(e.into()))?;
        let start = NonNull::new(start)
            .ok_or_else(|| Error::Invalid(format!("{what}: mapped at address zero")))?;
        let mapping = Self { start, len, reserved, writable, what: what.to_owned() };
        if writable {
            // A child of this process is another one, and must not write as this one (R1).
            mapping.advise(Advice::LinuxDontFork).map_err(|e| failed()(e.into()))?;
        }
        Ok(mapping)
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Brings the memory in as asked. Returns whether huge pages were obtained where asked for.
    pub fn page_in(&self, paging: Paging) -> Result<bool> {
        let mut huge = false;
        if paging.huge {
            // Both are requests: a kernel without huge shared pages refuses, and small ones serve.
            // Collapsing comes before small pages are mapped one by one.
            let advised = self.advise(Advice::LinuxHugepage).is_ok();
            huge = self.collapse(0, self.len).is_ok() && advised;
        }
        if paging.prefault || paging.huge {
            let advice =
                if self.writable { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
            match self.advise(advice) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(e) => return Err(Error::io(format!("{}: populate", self.what))(e)),
            }
        }
        Ok(huge)
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is exactly this mapping; none of the advices used changes its contents.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, advice) }
    }

    /// Takes memory for a file that has none yet, as far as the kernel gives huge pages for it
    /// (Linux 6.1 and later, whatever its default is). Returns whether all of them are huge; what
    /// is missing is reserved otherwise.
    ///
    /// In this order they cost less than small ones. Once small pages are there, as many bytes
    /// have to be copied, and that not at all when a device has them pinned.
    pub(super) fn take_huge_pages(&self, file: &File) -> bool {
        let whole = self.len / HUGE_PAGE;
        let end = Instant::now() + HUGE_LIMIT;
        let mut all = whole > 0;
        for first in (0..whole).step_by(HUGE_AT_ONCE) {
            let count = HUGE_AT_ONCE.min(whole - first);
            for page in first..first + count {
                // Where nothing is, nothing is collapsed.
                let (flags, at) = (FallocateFlags::empty(), (page * HUGE_PAGE) as u64);
                if rustix::fs::fallocate(file, flags, at, FRAME_SIZE as u64).is_err() {
                    return false;
                }
            }
            match self.collapse(first * HUGE_PAGE, count * HUGE_PAGE) {
                Ok(()) => {}
                // Some pages were busy at that moment.
                Err(Errno::AGAIN | Errno::BUSY) => all = false,
                Err(_) => return false,
            }
            if Instant::now() > end {
                return false;
            }
        }
        all
    }

    /// Asks the kernel to replace small pages by huge ones.
    fn collapse(&self, offset: usize, len: usize) -> rustix::io::Result<()> {
        const MADV_COLLAPSE: i32 = 25;
        debug_assert!(offset + len <= self.len);
        // SAFETY: as in `advise`, for a part of the mapping; collapsing keeps the contents.
        let rc =
            unsafe { libc::madvise(self.start.as_ptr().add(offset).cast(), len, MADV_COLLAPSE) };
        match rc {
            0 => Ok(()),
            _ => {
                Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
            }
        }
    }

    /// Gives the memory back while keeping the addresses: from now on every byte reads as zero.
    /// For orphans that nothing uses any more; a late reader gets zeros, never a signal.
    pub fn forget_contents(&self) -> Result<()> {
        debug_assert!(!self.writable, "only a peer's memory is forgotten");
        // With the room around it: the kernel keeps neighbours that are alike as one.
        // SAFETY: the range is exactly this reservation, which stays mapped (and is unmapped by its
        // owner's drop); replacing it by zero pages only changes what readers see, and readers of
        // a peer's memory assume nothing of it (R3).
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                self.reserved.as_mut_ptr().cast(),
                self.reserved.len(),
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            )
        };
        mapped.map(drop).map_err(Error::io(format!("{}: remap", self.what)))
    }

    fn at(&self, offset: usize, len: usize, align: usize) -> Result<NonNull<u8>> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len());
        if !fits || !offset.is_multiple_of(align) {
            return Err(Error::Corrupt {
                peer: self.what.clone(),
                what: format!("{len} bytes at {offset} are outside its {} bytes", self.len()),
            });
        }
        // SAFETY: offset is within the mapping.
        Ok(unsafe { self.start.add(offset) })
    }

    /// The raw bytes `[offset, offset + len)`.
    pub fn slice(self: &Arc<Self>, offset: usize, len: usize) -> Result<RawSlice> {
        Ok(RawSlice { ptr: self.at(offset, len, 1)?, len })
    }

    /// `count` atomic words at `offset`, to read.
    pub fn words<A: Atom>(self: &Arc<Self>, offset: usize, count: usize) -> Result<Ro<A>> {
        let len = count.saturating_mul(size_of::<A>());
        let ptr = self.at(offset, len, align_of::<A>())?.cast();
        Ok(Ro::new(ptr, count, Arc::clone(self)))
    }

    /// `count` atomic words at `offset`, to change. Only for memory that this process owns (R1) and
    /// the control page.
    pub fn words_mut<A: Atom>(self: &Arc<Self>, offset: usize, count: usize) -> Result<Rw<A>> {
        if !self.writable {
            return Err(Error::Invalid(format!("{}: mapped read-only", self.what)));
        }
        Ok(Rw::new(self.words(offset, count)?))
    }
}

// SAFETY: a plain range of addresses, mapped as long as this lives; all access goes through atomics
// and copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Bytes of shared memory, possibly written by a peer at any moment: to copy and to hand to system
/// calls, never to reference.
///
/// Copyable like a pointer. It stays dereferenceable because a [`super::Region`] unmaps nothing
/// before it is dropped; whoever hands one out ties it to the region's life.
#[derive(Clone, Copy, Debug)]
pub struct RawSlice {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address range; every access copies through raw pointers.
unsafe impl Send for RawSlice {}
// SAFETY: as above.
unsafe impl Sync for RawSlice {}

impl RawSlice {
    /// How many bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is mapped here, for system calls.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The bytes `[offset, offset + len)` of these, or `None` if they are not inside.
    #[inline(always)]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset is within the slice.
        Some(Self { ptr: unsafe { self.ptr.add(offset) }, len })
    }

    /// Copies the bytes from `offset` on into `out`.
    ///
    /// # Panics
    /// If they are not all inside.
    #[inline]
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        assert!(offset <= self.len && out.len() <= self.len - offset, "copy out of bounds");
        // SAFETY: the source is in bounds of a live mapping and `out` is ours alone. A peer may
        // write the source meanwhile: then the copy holds a mixture, which callers validate (R3).
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.ptr.as_ptr().add(offset),
                out.as_mut_ptr(),
                out.len(),
            );
        }
    }

    /// The bytes as a vector.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        self.copy_to(0, &mut out);
        out
    }

    /// Loads the byte at `offset`; `None` outside.
    #[inline]
    pub fn byte(&self, offset: usize) -> Option<u8> {
        if offset >= self.len {
            return None;
        }
        // SAFETY: in bounds; volatile, because a peer may write it.
        Some(unsafe { self.ptr.as_ptr().add(offset).read_volatile() })
    }

    /// Loads the eight bytes at `offset` in the machine's order; `None` outside.
    #[inline]
    pub fn word(&self, offset: usize) -> Option<u64> {
        if offset.checked_add(8)? > self.len {
            return None;
        }
        // SAFETY: in bounds; unaligned reads are allowed by `read_unaligned`, and a torn value is
        // still a value.
        Some(unsafe { self.ptr.as_ptr().add(offset).cast::<u64>().read_unaligned() })
    }
}

/// The bytes of one frame, as [`RawSlice`].
#[derive(Clone, Copy, Debug)]
pub struct RawFrame(NonNull<u8>);

// SAFETY: as of `RawSlice`.
unsafe impl Send for RawFrame {}
// SAFETY: as above.
unsafe impl Sync for RawFrame {}

impl RawFrame {
    /// Its bytes.
    #[inline(always)]
    pub fn slice(self) -> RawSlice {
        RawSlice { ptr: self.0, len: FRAME_SIZE }
    }
}

impl RawSlice {
    /// Frame `index` of these; `None` if it does not lie inside.
    #[inline(always)]
    pub fn frame(&self, index: usize) -> Option<RawFrame> {
        if index >= self.len / FRAME_SIZE {
            return None;
        }
        // SAFETY: just looked at.
        Some(unsafe { self.frame_within(index) })
    }

    /// Frame `index` of these.
    ///
    /// # Safety
    /// There are more frames than that in these bytes.
    #[inline(always)]
    pub(super) unsafe fn frame_within(&self, index: usize) -> RawFrame {
        // SAFETY: within the slice, as the caller says.
        RawFrame(unsafe { self.ptr.add(index * FRAME_SIZE) })
    }
}

/// Bytes of a frame that this process owns and has not published: to fill.
#[derive(Debug)]
pub struct RawSliceMut(RawSlice);

impl RawSliceMut {
    /// # Safety
    /// The bytes are mapped writable for as long as this value lives, and no other process and no
    /// other value of this process writes them meanwhile.
    pub(crate) unsafe fn new(slice: RawSlice) -> Self {
        Self(slice)
    }

    /// The same bytes, to read.
    pub fn as_raw(&self) -> RawSlice {
        self.0
    }

    /// The bytes, exclusively.
    pub fn fill(&mut self) -> &mut [u8] {
        // SAFETY: by the contract of `new` nobody else writes them, and `&mut self` keeps this
        // process's other accesses away.
        unsafe { std::slice::from_raw_parts_mut(self.0.ptr.as_ptr(), self.0.len) }
    }
}
