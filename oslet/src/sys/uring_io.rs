//! Disk operations in flight through io_uring.
//!
//! Any thread may submit (one at a time, under a lock) and any thread may collect completions. An
//! operation's memory belongs to the ring from its submission to its completion; a ring that is
//! dropped waits for what is in flight first, because the kernel goes on using that memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::disk::{Io, Kind};
use crate::region::{OwnSegment, RawSlice};
use crate::{Error, Result};

/// The kernel's largest registered buffer.
const MAX_FIXED: usize = 1 << 30;
/// The completion that only ends a wait.
const WAKE: u64 = u64::MAX;

/// A ring; `T` goes with each operation and comes back with it.
pub struct Ring<T> {
    uring: IoUring,
    table: Mutex<Table<T>>,
    /// Held while the completion queue is read; reused as the buffer to read into.
    reaping: Mutex<Vec<(u64, i32)>>,
    fixed: Option<Fixed>,
}

struct Table<T> {
    slots: Vec<Option<(Io, T)>>,
    free: Vec<usize>,
    /// Operations beyond the depth.
    waiting: VecDeque<(Io, T)>,
}

/// The own segment's frames, known to the kernel as registered buffers of [`MAX_FIXED`] bytes.
struct Fixed {
    range: RawSlice,
    vectors: bool,
    _keep: Arc<OwnSegment>,
}

/// An operation that has ended, with what came with it and the bytes transferred.
pub type Finished<T> = (Io, T, io::Result<usize>);

impl<T> Ring<T> {
    /// A ring that has up to `depth` operations in the kernel at a time.
    ///
    /// # Errors
    /// Where the kernel has no io_uring, does not permit it, or lacks an operation.
    pub fn new(depth: usize) -> Result<Self> {
        let what = "io_uring";
        let depth32 = u32::try_from(depth).ok().filter(|depth| (1..=16384).contains(depth));
        let depth32 = depth32
            .ok_or_else(|| Error::Invalid(format!("{what}: depth {depth}; use 1 to 16384")))?;
        // One more, for the entry that ends a wait. The kernel doubles it for completions.
        let uring = IoUring::new(depth32 + 1).map_err(Error::io(format!("{what}: setup")))?;
        let missing = |name: &str| Error::Io {
            what: format!("{what}: {name}"),
            source: io::ErrorKind::Unsupported.into(),
        };
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(missing("waiting with a time limit"));
        }
        let mut probe = Probe::new();
        uring
            .submitter()
            .register_probe(&mut probe)
            .map_err(Error::io(format!("{what}: probe")))?;
        let needed = [
            ("READV", opcode::Readv::CODE),
            ("WRITEV", opcode::Writev::CODE),
            ("FSYNC", opcode::Fsync::CODE),
            ("FALLOCATE", opcode::Fallocate::CODE),
        ];
        if let Some((name, _)) = needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
            return Err(missing(name));
        }
        let mut slots = Vec::new();
        slots.resize_with(depth, || None);
        let table = Table { slots, free: (0..depth).rev().collect(), waiting: VecDeque::new() };
        Ok(Self { uring, table: Mutex::new(table), reaping: Mutex::default(), fixed: None })
    }

    /// Registers the frames of the own segment, which spares the kernel from pinning their pages
    /// at each operation. Frames of others are never registered: the kernel pins registered
    /// buffers writable.
    ///
    /// # Errors
    /// Where the limit on locked memory is too low; the ring works all the same.
    pub fn register(&mut self, own: &Arc<OwnSegment>) -> Result<()> {
        let range = own.frame_range()?;
        let buffers: Vec<_> = (0..range.len())
            .step_by(MAX_FIXED)
            .filter_map(|start| range.sub(start, MAX_FIXED.min(range.len() - start)))
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast(), iov_len: part.len() })
            .collect();
        let submitter = self.uring.submitter();
        // SAFETY: the range is mapped writable for as long as the segment, which `fixed` keeps.
        unsafe { submitter.register_buffers(&buffers) }.map_err(Error::io(format!(
            "io_uring: register {} bytes of frames (see RLIMIT_MEMLOCK)",
            range.len()
        )))?;
        let mut probe = Probe::new();
        let probed = submitter.register_probe(&mut probe).is_ok();
        let vectors = probed
            && probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE);
        self.fixed = Some(Fixed { range, vectors, _keep: Arc::clone(own) });
        Ok(())
    }

    /// Submits operations; those beyond the depth start when earlier ones have ended.
    pub fn submit(&self, operations: impl IntoIterator<Item = (Io, T)>) {
        let mut table = self.table.lock();
        table.waiting.extend(operations);
        self.start(&mut table);
    }

    /// Operations submitted and not collected yet.
    pub fn in_flight(&self) -> usize {
        let table = self.table.lock();
        table.slots.len() - table.free.len() + table.waiting.len()
    }

    /// Moves what has ended to `finished`, without waiting.
    pub fn reap(&self, finished: &mut Vec<Finished<T>>) {
        let mut results = self.reaping.lock();
        // SAFETY: `reaping` is locked, so this is the only view of the completion queue.
        let completions = unsafe { self.uring.completion_shared() };
        results.extend(completions.map(|entry| (entry.user_data(), entry.result())));
        if results.is_empty() {
            return;
        }
        let mut table = self.table.lock();
        for (index, result) in results.drain(..) {
            let slot = usize::try_from(index).ok().and_then(|index| table.slots.get_mut(index));
            // The only other entry is the one that ends a wait.
            let Some((io, tag)) = slot.and_then(Option::take) else { continue };
            table.free.push(index as usize);
            let result = usize::try_from(result)
                .map_err(|_| Errno::from_raw_os_error(result.saturating_neg()).into());
            finished.push((io, tag, result));
        }
        drop(results);
        self.start(&mut table);
    }

    /// As [`Self::reap`], unless another thread is just doing it.
    pub fn try_reap(&self, finished: &mut Vec<Finished<T>>) {
        if let Some(guard) = self.reaping.try_lock() {
            drop(guard);
            self.reap(finished);
        }
    }

    /// Waits until something has ended, [`Self::wake`] was called, or the time is up.
    pub fn wait(&self, limit: Duration) {
        let limit = types::Timespec::from(limit);
        let arguments = types::SubmitArgs::new().timespec(&limit);
        // Also submits entries that the kernel could not take earlier for want of memory. Time
        // out, signals and shortage all lead to the caller's next round.
        let _ = self.uring.submitter().submit_with_args(1, &arguments);
    }

    /// Ends a wait.
    pub fn wake(&self) {
        let _table = self.table.lock();
        let entry = opcode::Nop::new().build().user_data(WAKE);
        self.push(&entry);
        self.enter();
    }

    fn start(&self, table: &mut Table<T>) {
        let mut pushed = false;
        while let Some(&index) = table.free.last() {
            let Some(operation) = table.waiting.pop_front() else { break };
            let entry = self.entry(&operation.0).user_data(index as u64);
            if !self.push(&entry) {
                table.waiting.push_front(operation);
                break;
            }
            // Moving an operation leaves its vectors and memory where they are.
            table.slots[index] = Some(operation);
            table.free.pop();
            pushed = true;
        }
        if pushed {
            self.enter();
        }
    }

    /// With `table` locked.
    fn push(&self, entry: &squeue::Entry) -> bool {
        // SAFETY: `table` is locked, so this is the only view of the submission queue.
        let mut queue = unsafe { self.uring.submission_shared() };
        // SAFETY: what the entry names is kept by the operation, which stays in the table until
        // its completion has been seen.
        unsafe { queue.push(entry) }.is_ok()
    }

    /// With `table` locked. What the kernel does not take now, for want of memory, stays queued
    /// and is submitted by the next wait.
    fn enter(&self) {
        while let Err(error) = self.uring.submit() {
            if Errno::from_io_error(&error) != Some(Errno::INTR) {
                break;
            }
        }
    }

    fn entry(&self, io: &Io) -> squeue::Entry {
        let fd = types::Fd(io.file.as_raw_fd());
        let (vectors, count) = (io.vectors.as_ptr(), io.vectors.len() as u32);
        let offset = io.offset;
        let fixed = self.fixed.as_ref().and_then(|fixed| fixed.index(&io.vectors));
        let single = io.vectors.first().filter(|_| count == 1);
        let range = single.map(|vector| (vector.iov_base.cast::<u8>(), vector.iov_len as u32));
        match (io.kind, fixed, range) {
            (Kind::Read, Some(index), Some((base, len))) => {
                opcode::ReadFixed::new(fd, base, len, index).offset(offset).build()
            }
            (Kind::Read, Some(index), None) => {
                opcode::ReadvFixed::new(fd, vectors, count, index).offset(offset).build()
            }
            (Kind::Read, None, _) => opcode::Readv::new(fd, vectors, count).offset(offset).build(),
            (Kind::Write { sync }, fixed, range) => {
                let flags = if sync { libc::RWF_DSYNC } else { 0 };
                match (fixed, range) {
                    (Some(index), Some((base, len))) => {
                        let base = base.cast_const();
                        let write = opcode::WriteFixed::new(fd, base, len, index);
                        write.offset(offset).rw_flags(flags).build()
                    }
                    (Some(index), None) => {
                        let write = opcode::WritevFixed::new(fd, vectors, count, index);
                        write.offset(offset).rw_flags(flags).build()
                    }
                    (None, _) => {
                        let write = opcode::Writev::new(fd, vectors, count);
                        write.offset(offset).rw_flags(flags).build()
                    }
                }
            }
            (Kind::DataSync, ..) => {
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
            (Kind::Allocate { mode, len }, ..) => {
                let mode = mode.bits() as i32;
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
            }
        }
    }
}

impl Fixed {
    /// The registered buffer that all vectors lie in, if one can serve them.
    fn index(&self, vectors: &[libc::iovec]) -> Option<u16> {
        let base = self.range.as_ptr().addr();
        let inside = |vector: &libc::iovec| {
            let start = vector.iov_base.addr().checked_sub(base)?;
            let last = start.checked_add(vector.iov_len.checked_sub(1)?)?;
            let chunk = start / MAX_FIXED;
            (last < self.range.len() && last / MAX_FIXED == chunk).then_some(chunk)
        };
        let (first, rest) = vectors.split_first()?;
        let index = inside(first)?;
        let usable = rest.is_empty() || self.vectors;
        let same = rest.iter().all(|vector| inside(vector) == Some(index));
        u16::try_from(index).ok().filter(|_| usable && same)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let mut finished = Vec::new();
        while self.in_flight() > 0 {
            self.wait(Duration::from_secs(1));
            self.reap(&mut finished);
        }
    }
}

#[cfg(test)]
mod tests;
