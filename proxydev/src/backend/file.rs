//! Files and raw disks.

mod job;
mod open;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oslet::arena::Arena;
use oslet::limits::FRAME_SIZE;
use oslet::sys::disk::{Buffer, Io};
use rustix::fs::FallocateFlags;

pub(super) use job::Job;

use super::engine::Engine;
use crate::data::Data;
use crate::device::{BlockDevice, DeviceInfo, Extent, Operation, Request};
use crate::{Error, Result, limits};

/// How a file is opened.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The device's name, for messages; by default the path.
    pub name: Option<String>,
    /// Refuse every change.
    pub read_only: bool,
    /// Pass the kernel's page cache by (O_DIRECT) where the file allows it.
    pub direct: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { name: None, read_only: false, direct: true }
    }
}

/// A regular file or a block device, used as a disk.
pub struct FileDevice {
    target: Arc<Target>,
    info: DeviceInfo,
    direct: bool,
    engine: Arc<Engine>,
    arena: Arc<Arena>,
}

/// What requests in flight need.
struct Target {
    name: String,
    file: Arc<File>,
    in_flight: AtomicUsize,
}

impl FileDevice {
    /// Opens the file at `path` for use through `engine`, with frames from `arena`.
    pub fn open(
        path: &Path,
        options: FileOptions,
        engine: &Arc<Engine>,
        arena: &Arc<Arena>,
    ) -> Result<Self> {
        let file = open::open(path, options.read_only)?;
        Self::from_file(file, path, options, engine, arena)
    }

    /// Uses a file that is open already; I/O goes through this very description, so that a lock on
    /// it tells when the last of it has ended.
    pub fn from_file(
        file: File,
        path: &Path,
        options: FileOptions,
        engine: &Arc<Engine>,
        arena: &Arc<Arena>,
    ) -> Result<Self> {
        let geometry = open::probe(&file, path, &options)?;
        let name = options.name.unwrap_or_else(|| path.display().to_string());
        Ok(Self {
            target: Arc::new(Target { name, file: Arc::new(file), in_flight: AtomicUsize::new(0) }),
            info: geometry.info,
            direct: geometry.direct,
            engine: Arc::clone(engine),
            arena: Arc::clone(arena),
        })
    }

    /// The descriptor that I/O goes through: to lock (flock), which proves to a successor that no
    /// operation is in flight any more.
    pub fn file(&self) -> &Arc<File> {
        &self.target.file
    }

    /// Whether the kernel's page cache is passed by.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The first operation of a request.
    fn begin(&self, request: Request) -> Option<(Io, Job)> {
        let Request { operation, completion } = request;
        if let Err(error) = operation.check(&self.target.name, &self.info) {
            completion.complete(Err(error));
            return None;
        }
        if operation.extent().1 == 0 && !matches!(operation, Operation::Flush) {
            completion.complete(Ok(Data::empty()));
            return None;
        }
        if self.target.in_flight.fetch_add(1, Ordering::Relaxed) >= limits::MAX_QUEUED {
            self.target.in_flight.fetch_sub(1, Ordering::Relaxed);
            completion.complete(Err(Error::Busy(self.target.name.clone())));
            return None;
        }
        let job = Job::new(&self.target, &self.arena, completion);
        match self.first(operation) {
            Ok((io, plan)) => Some((io, job.with(plan))),
            Err(error) => {
                job.fail(error);
                None
            }
        }
    }

    fn first(&self, operation: Operation) -> Result<(Io, job::Plan)> {
        let file = &self.target.file;
        match operation {
            Operation::Read { offset, len, into } => {
                let len = len as usize;
                let frames = match into.is_empty() {
                    true => self.arena.alloc_many(len.div_ceil(FRAME_SIZE))?,
                    false => into,
                };
                Ok((Io::read(file, offset, len, frames)?, job::Plan::Read { len }))
            }
            Operation::Write { offset, data, fua } => self.first_write(offset, data, fua),
            Operation::Flush => Ok((Io::data_sync(file), job::Plan::Flush)),
            Operation::Discard { offset, len } => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok((Io::allocate(file, mode, offset, len), job::Plan::Discard))
            }
            Operation::WriteZeroes { offset, len, may_unmap, fua, fast } => {
                job::zeroes(file, job::Zeroes::new(offset, len, fua, fast), may_unmap)
            }
        }
    }

    fn first_write(&self, offset: u64, data: Data, fua: bool) -> Result<(Io, job::Plan)> {
        let file = &self.target.file;
        let plan = |data| job::Plan::Write { _data: data };
        let region = data.region().filter(|_| self.fits_memory(&data));
        if let Some(region) = region {
            let io = Io::write_pages(file, offset, region, data.sources(), fua)?;
            return Ok((io, plan(data)));
        }
        let mut bounce = Buffer::zeroed(data.len())?;
        data.copy_to(&mut bounce)?;
        Ok((Io::write_buffer(file, offset, bounce, fua)?, plan(Data::empty())))
    }

    /// Whether the device can take data from where they lie.
    fn fits_memory(&self, data: &Data) -> bool {
        let (address, length) = match self.direct {
            true => (self.info.memory_alignment - 1, self.info.block_size - 1),
            false => (0, 0),
        };
        data.slices().iter().all(|slice| {
            u32::from(slice.offset) & address == 0 && u32::from(slice.len) & length == 0
        })
    }
}

impl BlockDevice for FileDevice {
    fn name(&self) -> &str {
        &self.target.name
    }

    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        Operation::Discard { offset, len }.check_range(&self.target.name, &self.info)?;
        Ok(open::extents(&self.target.file, offset, len, most))
    }

    fn submit(&self, request: Request) {
        self.engine.submit(self.begin(request));
    }

    fn submit_all(&self, requests: Vec<Request>) {
        let begun: Vec<_> = requests.into_iter().filter_map(|r| self.begin(r)).collect();
        self.engine.submit(begun);
    }

    fn poll(&self) {
        self.engine.poll();
    }
}

/// The path of a file, for errors about it.
fn at(path: &Path, what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path: PathBuf = path.to_owned();
    move |errno| Error::Open { path, what, errno }
}

#[cfg(test)]
mod tests;
