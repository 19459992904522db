//! Claims an image for one user at a time.
//!
//! A claim is a lock (flock, exclusive for writers, shared for readers) on the very open file
//! description that does the I/O: whoever gets the lock after its holder died knows that no write
//! of that holder is still under way. Block devices are opened exclusively too, which keeps the
//! kernel's own mounts out; a file that the kernel mounts through a loop device is found among the
//! loop devices. What is mounted on another machine only multi-mount protection tells: see
//! [`crate::mmp`].

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock, major, minor};
use rustix::io::Errno;

use crate::engine::read_superblock;
use crate::engine::store::BlockSource;
use crate::{Error, Result};

mod kind;
mod user;

/// An image that is ours until this is dropped, and that can be read, and written if so claimed.
///
/// A duplicate of its descriptor shares the lock. It is closed on exec; who forks passes it on only
/// on purpose.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
    size: u64,
    writable: bool,
}

/// Claims the image or block device at `path`, which must hold an ext2, ext3 or ext4 filesystem
/// that is all there. [`Error::Busy`] names who uses it.
pub fn claim(path: &Path, writable: bool) -> Result<Claim> {
    checked(path, lock(path, writable, writable)?)
}

/// The same to read alone, with nobody beside: as one claims what it proves the end of its I/O by.
pub fn claim_to_read_alone(path: &Path) -> Result<Claim> {
    checked(path, lock(path, false, true)?)
}

fn checked(path: &Path, claim: Claim) -> Result<Claim> {
    if claim.size == 0 {
        return Err(Error::NotExt(format!("{}: is empty", path.display())));
    }
    match read_superblock(&claim) {
        Ok(_) => Ok(claim),
        Err(Error::NotExt(why)) => {
            let hint = kind::guess(&claim).map_or(String::new(), |kind| format!(" ({kind})"));
            Err(Error::NotExt(format!("{}: {why}{hint}", path.display())))
        }
        Err(Error::Corrupt { what, why }) => {
            Err(Error::Corrupt { what: format!("{}: {what}", path.display()), why })
        }
        Err(error) => Err(error),
    }
}

/// Opens and locks, whatever the contents.
fn lock(path: &Path, writable: bool, alone: bool) -> Result<Claim> {
    let shown = path.display();
    let found = std::fs::metadata(path).map_err(Error::io(format!("{shown}: open")))?;
    let kind = found.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = if kind.is_dir() { "a directory" } else { "a special file" };
        return Err(Error::Invalid(format!(
            "{shown}: {what}, not an image file or a block device"
        )));
    }
    // A FIFO put there meanwhile does not make the open wait.
    let mut flags = OFlags::NONBLOCK;
    if kind.is_block_device() {
        flags |= OFlags::EXCL;
    }
    let flags = flags.bits().cast_signed();
    let opened = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            let device = (major(found.rdev()), minor(found.rdev()));
            let user = match (user::mounted(device), user::holder(&found)) {
                (Some(place), _) => format!("mounted on {place}"),
                (None, Some(holder)) => format!("in use by {holder}"),
                (None, None) => "in use by another device or program".into(),
            };
            return Err(Error::Busy(format!("{shown}: {user}")));
        }
        Err(error) => return Err(Error::io(format!("{shown}: open"))(error)),
    };
    // Of the file that was opened, which need not be the one that was looked at.
    let meta = file.metadata().map_err(Error::io(format!("{shown}: stat")))?;
    let operation = if alone {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match flock(&file, operation) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let holder = user::holder(&meta).unwrap_or_else(|| "another process".into());
            return Err(Error::Busy(format!("{shown}: in use by {holder}")));
        }
        Err(error) => return Err(Error::io(format!("{shown}: flock"))(error)),
    }
    if let Some(user) = user::loop_device(&meta) {
        return Err(Error::Busy(format!("{shown}: {user}")));
    }
    let size = if meta.file_type().is_block_device() {
        file.seek(SeekFrom::End(0)).map_err(Error::io(format!("{shown}: size")))?
    } else {
        meta.len()
    };
    Ok(Claim { file, path: path.to_owned(), size, writable })
}

impl Claim {
    /// The image's path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file description that holds the lock.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    fn outside(&self, offset: u64, len: usize) -> Result<()> {
        if offset.checked_add(len as u64).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let what = format!("{}: {len} bytes at {offset} of {}", self.path.display(), self.size);
        Err(Error::Io { what, source: io::ErrorKind::UnexpectedEof.into() })
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl BlockSource for Claim {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.outside(offset, buf.len())?;
        let what = || format!("{}: read at {offset}", self.path.display());
        self.file.read_exact_at(buf, offset).map_err(|error| Error::io(what())(error))
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly);
        }
        self.outside(offset, data.len())?;
        let what = || format!("{}: write at {offset}", self.path.display());
        self.file.write_all_at(data, offset).map_err(|error| Error::io(what())(error))
    }

    fn flush(&self) -> Result<()> {
        let what = || format!("{}: flush", self.path.display());
        self.file.sync_data().map_err(|error| Error::io(what())(error))
    }
}

#[cfg(test)]
mod tests;
