//! From an image or block device to a volume that can be served: claimed, protected, recovered.

mod staging;

use std::path::Path;
use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::PageRef;
use proxydev::backend::engine::Engine;
use proxydev::backend::file::{FileDevice, FileOptions};
use proxydev::device::{BlockDevice, Operation};

use crate::disk::inode::Kind;
use crate::engine::store::{BlockSource, Overlay, PageWrite};
use crate::engine::write::{Writer, WriterOptions};
use crate::engine::{Options, Volume, read_superblock};
use crate::guard::{self, Claim};
use crate::id::Ino;
use crate::journal::{self, Report};
use crate::owner::Owner;
use crate::{Error, Result, mmp};
use staging::Staging;

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Never write to it: a journal that needs recovery is replayed in memory.
    pub read_only: bool,
    /// Nobody else may read it either: the lock is to prove to a successor that all I/O has ended.
    pub alone: bool,
    /// The volume's last holder is known to be gone and its I/O ended: do not wait for signs of it.
    pub take_over: bool,
    /// Who holds the volume, for others to read.
    pub holder: String,
    /// How it is written; by default it is only read, but for its journal's replay.
    pub writer: Option<WriterOptions>,
}

/// An image that is ours until this is dropped.
pub struct Image {
    device: Arc<FileDevice>,
    volume: Option<Volume>,
    report: Option<Report>,
    held: Option<mmp::Held>,
    read_only: bool,
    take_over: bool,
    writer: Option<WriterOptions>,
    /// Keeps the lock beside the device's copy of the description.
    claim: Claim,
}

impl Image {
    /// Claims the image at `path`, replays its journal where needed, and opens the volume.
    ///
    /// # Errors
    /// Whatever keeps it from being read, naming the path; nothing is left locked then.
    pub fn open(
        path: &Path,
        engine: &Arc<Engine>,
        arena: &Arc<Arena>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let named = |error: Error| error.about(path);
        let claim = match options.read_only && options.alone {
            true => guard::claim_to_read_alone(path),
            false => guard::claim(path, !options.read_only),
        };
        let claim = claim.map_err(|error| match error {
            Error::Refused { .. } => named(error),
            other => other,
        })?;
        let file = claim.file().try_clone().map_err(Error::io("duplicate a descriptor"))?;
        let file_options = FileOptions { read_only: options.read_only, ..FileOptions::default() };
        let device = FileDevice::from_file(file, path, file_options, engine, arena);
        let device = Arc::new(device.map_err(|error| named(error.into()))?);
        let source = DeviceSource::new(Arc::clone(&device) as Arc<dyn BlockDevice>, arena);
        let disk: Arc<dyn BlockSource> = Arc::new(source);
        let superblock = read_superblock(&*disk).map_err(named)?;
        superblock.features.access().map_err(named)?;
        let protection = mmp::Options {
            node: options.holder.clone(),
            device: path.display().to_string(),
            take_over: options.take_over,
            ..mmp::Options::default()
        };
        let held = if options.read_only {
            mmp::check(&*disk, &superblock, &protection).map_err(named)?;
            None
        } else {
            mmp::hold(&disk, &superblock, &protection).map_err(named)?
        };
        let disk: Arc<dyn BlockSource> =
            if options.read_only { Arc::new(Overlay::new(disk)) } else { disk };
        let report = match options.take_over && options.writer.is_some() && !options.read_only {
            true => journal::take_over(&disk),
            false => journal::recover(&disk),
        };
        let report = report.map_err(named)?;
        let volume = Volume::open(disk, &Options::default()).map_err(named)?;
        check_root(&volume).map_err(named)?;
        let &OpenOptions { read_only, take_over, .. } = options;
        let (volume, writer) = (Some(volume), options.writer.clone());
        Ok(Self { device, volume, report, held, read_only, take_over, writer, claim })
    }

    /// Serves the volume, once: it is written if it was opened for that, unless something about it
    /// only allows reading, which is said then.
    pub fn serve(
        &mut self,
        arena: &Arc<Arena>,
        object: u64,
        frames: usize,
    ) -> Result<(Arc<Owner>, Option<String>)> {
        let volume = self.take_volume().ok_or_else(|| Error::Invalid("served twice".into()))?;
        let Some(options) = self.writer.as_ref().filter(|_| !self.read_only) else {
            return Ok((Owner::new(arena, object, volume, frames)?, None));
        };
        let volume = Arc::new(volume);
        match Writer::open(Arc::clone(&volume), options) {
            Ok(writer) if self.take_over => {
                Ok((Owner::successor(arena, object, writer, frames)?, None))
            }
            Ok(writer) => Ok((Owner::writable(arena, object, writer, frames)?, None)),
            Err(Error::Refused { feature, .. }) => {
                let owner = Owner::readable(arena, object, volume, frames)?;
                Ok((owner, Some(format!("its {feature}"))))
            }
            Err(error) => Err(error.about(self.path())),
        }
    }

    /// The volume, to serve; once.
    pub fn take_volume(&mut self) -> Option<Volume> {
        self.volume.take()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.claim.path()
    }

    /// What the recovery of its journal did; `None` if there was nothing to recover.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// The device underneath. A lock on its file proves to a successor that no operation is in
    /// flight any more.
    pub fn device(&self) -> &Arc<FileDevice> {
        &self.device
    }

    /// Gives the image up.
    ///
    /// # Errors
    /// When its protection against other hosts could not be taken off.
    pub fn close(mut self) -> Result<()> {
        match self.held.take() {
            Some(held) => held.release(),
            None => Ok(()),
        }
    }
}

/// Without a root nothing of a volume can be reached.
fn check_root(volume: &Volume) -> Result<()> {
    let root = volume.inode(Ino::ROOT).map_err(|error| match error {
        Error::Stale(what) => Error::corrupt(what, "the root directory is not in use"),
        other => other,
    })?;
    match root.kind {
        Kind::Directory => Ok(()),
        _ => Err(Error::corrupt(Ino::ROOT, "the root is no directory")),
    }
}

/// A device as the storage of a volume.
pub struct DeviceSource {
    device: Arc<dyn BlockDevice>,
    arena: Arc<Arena>,
    staging: Staging,
}

impl DeviceSource {
    /// Uses a device; `arena` is where data for writes are put.
    pub fn new(device: Arc<dyn BlockDevice>, arena: &Arc<Arena>) -> Self {
        Self { device, arena: Arc::clone(arena), staging: Staging::new(arena) }
    }
}

impl BlockSource for DeviceSource {
    fn size(&self) -> u64 {
        self.device.info().size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(proxydev::sync::read_at(&*self.device, offset, buf)?)
    }

    fn is_writable(&self) -> bool {
        !self.device.info().read_only
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_many(&[(offset, data)])
    }

    fn write_many(&self, writes: &[(u64, &[u8])]) -> Result<()> {
        let info = self.device.info();
        let block = u64::from(info.block_size);
        let whole = |&(offset, data): &(u64, &[u8])| {
            let end = offset.saturating_add(data.len() as u64);
            offset.is_multiple_of(block) && end.is_multiple_of(block) && end <= info.size
        };
        if writes.iter().all(whole) {
            return self.staging.write(&*self.device, writes);
        }
        for (offset, data) in writes {
            proxydev::sync::write_at(&*self.device, &self.arena, *offset, data)?;
        }
        Ok(())
    }

    fn write_unit(&self) -> u32 {
        self.device.info().block_size
    }

    fn flush(&self) -> Result<()> {
        Ok(proxydev::sync::flush(&*self.device)?)
    }

    fn can_discard(&self) -> bool {
        self.device.info().discard
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        // The device's whole blocks alone: what lies around them is in use.
        let block = u64::from(self.device.info().block_size);
        let end = (offset + len) / block * block;
        let offset = offset.next_multiple_of(block);
        if offset >= end {
            return Ok(());
        }
        let operation = Operation::Discard { offset, len: end - offset };
        Ok(proxydev::sync::execute(&*self.device, operation).map(drop)?)
    }

    fn write_pages(&self, writes: Vec<PageWrite>) -> Vec<Result<()>> {
        let info = self.device.info();
        let block = info.block_size as usize;
        let whole = |write: &PageWrite| {
            let len = write.data.len();
            write.offset.is_multiple_of(block as u64)
                && len.is_multiple_of(block)
                && len <= info.max_transfer as usize
        };
        if !writes.iter().all(whole) {
            let one = |write: PageWrite| self.write_at(write.offset, &write.data.to_vec()?);
            return writes.into_iter().map(one).collect();
        }
        let operation = |PageWrite { offset, data }| Operation::Write { offset, data, fua: false };
        let operations = writes.into_iter().map(operation).collect();
        let ended = proxydev::sync::execute_all(&*self.device, operations);
        ended.into_iter().map(|end| end.map(drop).map_err(Error::from)).collect()
    }

    fn read_pages(&self, offset: u64, pages: usize) -> Result<Option<Vec<PageRef>>> {
        let len = pages * oslet::limits::FRAME_SIZE;
        let info = self.device.info();
        let fits = offset.is_multiple_of(info.block_size.into())
            && offset.checked_add(len as u64).is_some_and(|end| end <= info.size);
        let Some(len) = u32::try_from(len).ok().filter(|&len| fits && len <= info.max_transfer)
        else {
            return Ok(None);
        };
        let data = proxydev::sync::execute(&*self.device, Operation::read(offset, len))?;
        Ok(data.into_pages().ok())
    }
}

#[cfg(test)]
mod tests;
