//! Writing to frames that are published: readers see the change come, as in any page cache.

use super::{OwnSegment, OwnedFrame, PUBLISHED};
use crate::id::PageRef;
use crate::limits::FRAME_SIZE;
use crate::region::map::RawSlice;
use crate::sync::Ordering;
use crate::{Error, Result};

/// The claim of a published frame while bytes of it are replaced: it is neither reused nor replaced
/// by another thread meanwhile.
const OVERWRITTEN: u8 = 3;

/// What bytes of a frame are replaced by.
#[derive(Clone, Copy, Debug)]
pub enum Bytes<'b> {
    /// Bytes of this process.
    Own(&'b [u8]),
    /// Bytes of shared memory, perhaps a pinned frame's of a peer: copied once, as they are then.
    Shared(RawSlice),
    /// So many zeros.
    Zeros(usize),
}

impl Bytes<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len(),
            Self::Zeros(len) => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from `offset` on, `len` of them; `None` if there are fewer.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        Some(match self {
            Self::Own(bytes) => Self::Own(bytes.get(offset..end)?),
            Self::Shared(bytes) => Self::Shared(bytes.sub(offset, len)?),
            Self::Zeros(all) => Self::Zeros((end <= *all).then_some(len)?),
        })
    }

    /// Copies them into memory that is ours alone.
    ///
    /// # Panics
    /// If `out` is not as long as they are.
    pub fn copy_to(&self, out: &mut [u8]) {
        match self {
            Self::Own(bytes) => out.copy_from_slice(bytes),
            Self::Shared(bytes) => {
                assert!(out.len() == bytes.len(), "{} bytes of {}", out.len(), bytes.len());
                bytes.copy_to(0, out);
            }
            Self::Zeros(len) => {
                assert!(out.len() == *len, "{} bytes of {len}", out.len());
                out.fill(0);
            }
        }
    }
}

impl OwnSegment {
    /// Replaces bytes of a published frame of this segment, from `offset` on. Who reads it
    /// meanwhile gets a mixture of old and new, byte by byte; who begins to read behind this gets
    /// the new ones.
    ///
    /// # Errors
    /// When the bytes do not fit in, or the reference is stale, or another thread replaces bytes
    /// of this very frame: callers have a lock for each page.
    pub fn overwrite(&self, page: PageRef, offset: usize, bytes: Bytes<'_>) -> Result<()> {
        let wrong = |why: &str| Error::Invalid(format!("{page:?}: {why}"));
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= FRAME_SIZE);
        let claim = self.claims.get(page.frame.0 as usize);
        let Some(claim) = claim.filter(|_| fits && page.home == self.participant) else {
            return Err(wrong("no such bytes to replace"));
        };
        claim
            .compare_exchange(PUBLISHED, OVERWRITTEN, Ordering::Acquire, Ordering::Relaxed)
            .map_err(|_| wrong("not published, or being written"))?;
        let current = self.generation(page.frame) == page.generation;
        if current {
            let target = self.frame_bytes(page.frame)?.sub(offset, bytes.len());
            let target = target.ok_or_else(|| wrong("no such bytes to replace"))?;
            // SAFETY: inside a frame of our own writable mapping. The claim keeps `OwnedFrame`s,
            // and so every `&mut` to these bytes, away; others reach them by raw copies alone.
            unsafe { put(target.as_ptr(), bytes) };
        }
        claim.store(PUBLISHED, Ordering::Release);
        if current { Ok(()) } else { Err(wrong("stale")) }
    }
}

impl OwnedFrame {
    /// Puts bytes into the frame, from `offset` on.
    ///
    /// # Errors
    /// When they do not fit in.
    pub fn put(&mut self, offset: usize, bytes: Bytes<'_>) -> Result<()> {
        let frame = self.bytes()?.as_raw();
        let target = frame.sub(offset, bytes.len()).ok_or_else(|| {
            Error::Invalid(format!("{} bytes at {offset} of a frame", bytes.len()))
        })?;
        // SAFETY: inside a frame of our own writable mapping, which `&mut self` keeps for us.
        unsafe { put(target.as_ptr(), bytes) };
        Ok(())
    }
}

/// Fills frames with bytes, one behind the other, by stores that leave the caches to others: of
/// more bytes than caches hold, which nobody reads soon, each then passes through memory once
/// instead of twice.
///
/// # Errors
/// When there are not as many bytes as the frames hold.
pub fn put_past_caches(frames: &mut [OwnedFrame], bytes: Bytes<'_>) -> Result<()> {
    if bytes.len() != frames.len() * FRAME_SIZE {
        let (bytes, frames) = (bytes.len(), frames.len());
        return Err(Error::Invalid(format!("{bytes} bytes into {frames} frames")));
    }
    for (index, frame) in frames.iter_mut().enumerate() {
        let target = frame.bytes()?.as_raw();
        if let Some(part) = bytes.part(index * FRAME_SIZE, FRAME_SIZE) {
            // SAFETY: a whole frame of our own writable mapping, which `&mut` keeps for us; frames
            // start at multiples of their size.
            unsafe { put_frame_past_caches(target.as_ptr(), part) };
        }
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: an instruction that every processor of the architecture has. Such stores are ordered
    // with no others but by this: whoever publishes the frames does it behind them.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    Ok(())
}

/// Puts a frame's worth of bytes past the caches.
///
/// # Safety
/// As [`put`]; the target is that of a whole frame.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn put_frame_past_caches(target: *mut u8, bytes: Bytes<'_>) {
    let source = match bytes {
        Bytes::Own(bytes) => bytes.as_ptr(),
        Bytes::Shared(bytes) => bytes.as_ptr().cast_const(),
        // SAFETY: as the caller allows.
        Bytes::Zeros(_) => return unsafe { put(target, bytes) },
    };
    // SAFETY: writes a frame at `target`, as the caller allows, which is aligned; as many bytes can
    // be read at `source`.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [rsi]",
            "movdqu {b}, [rsi + 16]",
            "movdqu {c}, [rsi + 32]",
            "movdqu {d}, [rsi + 48]",
            "movntdq [rdi], {a}",
            "movntdq [rdi + 16], {b}",
            "movntdq [rdi + 32], {c}",
            "movntdq [rdi + 48], {d}",
            "add rsi, 64",
            "add rdi, 64",
            "dec {lines}",
            "jnz 2b",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            lines = inout(reg) FRAME_SIZE / 64 => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack),
        );
    }
}

/// As [`put`].
///
/// # Safety
/// As there.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn put_frame_past_caches(target: *mut u8, bytes: Bytes<'_>) {
    // SAFETY: as the caller allows.
    unsafe { put(target, bytes) };
}

/// Puts bytes where readers may be copying: by instructions that the compiler knows nothing of.
///
/// Sixteen bytes at a time. `rep movsb` is a fifth faster where it is fast, and twenty times slower
/// on some processors when the target lies less than a line behind the source, modulo 4 KiB: with
/// what a heap returns for a page and a frame that is nearly always so.
///
/// # Safety
/// As many bytes as there are can be written at `target`, and nobody has a reference to them.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn put(target: *mut u8, bytes: Bytes<'_>) {
    let len = bytes.len();
    let (lines, rest) = (len / 64, len % 64);
    let source = match bytes {
        Bytes::Own(bytes) => bytes.as_ptr(),
        Bytes::Shared(bytes) => bytes.as_ptr().cast_const(),
        Bytes::Zeros(_) => {
            // SAFETY: writes `len` bytes at `target`, as the caller allows; the direction flag is
            // clear at every entry to assembly.
            unsafe {
                std::arch::asm!(
                    "pxor {zero}, {zero}",
                    "test {lines}, {lines}",
                    "jz 3f",
                    "2:",
                    "movdqu [rdi], {zero}",
                    "movdqu [rdi + 16], {zero}",
                    "movdqu [rdi + 32], {zero}",
                    "movdqu [rdi + 48], {zero}",
                    "add rdi, 64",
                    "dec {lines}",
                    "jnz 2b",
                    "3:",
                    "rep stosb",
                    zero = out(xmm_reg) _,
                    lines = inout(reg) lines => _,
                    inout("rcx") rest => _,
                    inout("rdi") target => _,
                    in("al") 0u8,
                    options(nostack),
                );
            }
            return;
        }
    };
    // SAFETY: as above, and `len` bytes can be read at `source`: a slice of this process, or a
    // mapped range that is never unmapped.
    unsafe {
        std::arch::asm!(
            "test {lines}, {lines}",
            "jz 3f",
            "2:",
            "movdqu {a}, [rsi]",
            "movdqu {b}, [rsi + 16]",
            "movdqu {c}, [rsi + 32]",
            "movdqu {d}, [rsi + 48]",
            "movdqu [rdi], {a}",
            "movdqu [rdi + 16], {b}",
            "movdqu [rdi + 32], {c}",
            "movdqu [rdi + 48], {d}",
            "add rsi, 64",
            "add rdi, 64",
            "dec {lines}",
            "jnz 2b",
            "3:",
            "rep movsb",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            lines = inout(reg) lines => _,
            inout("rcx") rest => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack),
        );
    }
}

/// As above, a byte at a time.
///
/// # Safety
/// As above.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn put(target: *mut u8, bytes: Bytes<'_>) {
    let byte = |at: usize| match bytes {
        Bytes::Own(bytes) => bytes[at],
        Bytes::Shared(bytes) => bytes.byte(at).unwrap_or_default(),
        Bytes::Zeros(_) => 0,
    };
    for at in 0..bytes.len() {
        // SAFETY: in bounds, as the caller allows; volatile, because others may be reading.
        unsafe { target.add(at).write_volatile(byte(at)) };
    }
}
