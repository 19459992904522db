//! Where shared memory comes from: memfd, files on a memory filesystem, or huge pages.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use crate::{Error, Result};

/// What a region is made of. Fixed when the cluster starts.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// One sealed anonymous file a segment: R1 is enforced by the kernel.
    Memfd,
    /// One anonymous file a segment on the machine's huge page pool; sealed as well.
    Hugetlb,
    /// The control page in this file, segments in files beside it named `<file>.<participant>`.
    /// The files can be opened by whoever may open them: R1 only stops accidents here.
    File(PathBuf),
}

impl Backing {
    /// The granularity of segment sizes.
    pub fn page_size(&self) -> usize {
        match self {
            Self::Memfd | Self::File(_) => crate::limits::FRAME_SIZE,
            Self::Hugetlb => HUGE_PAGE,
        }
    }

    /// Makes a file of `len` bytes, which [`Self::reserve`] is to reserve before it is used. `tag`
    /// names the file (`o0.0.1`), `what` names it in errors.
    pub(super) fn create(&self, tag: &str, len: usize, what: &str) -> Result<SharedFile> {
        let (file, path) = match self {
            Self::Memfd => (memfd(tag, MemfdFlags::empty(), what)?, None),
            Self::Hugetlb => (memfd(tag, MemfdFlags::HUGETLB, what)?, None),
            Self::File(base) => {
                let path = segment_path(base, tag);
                let mut options = OpenOptions::new();
                options.read(true).write(true).create_new(true).mode(0o600);
                let file = options.open(&path).map_err(Error::file(&path, "create segment"))?;
                (file, Some(path))
            }
        };
        let shared = SharedFile { file, path, sealable: !matches!(self, Self::File(_)) };
        let made = rustix::fs::ftruncate(&shared.file, len as u64);
        made.map_err(Error::io(format!("{what}: cannot have {len} bytes of {self}")))?;
        Ok(shared)
    }

    /// Reserves all of a file that [`Self::create`] has made: a full filesystem or pool is an error
    /// here and never a signal later.
    pub(super) fn reserve(&self, shared: &SharedFile, len: usize, what: &str) -> Result<()> {
        let reserved = rustix::fs::fallocate(&shared.file, FallocateFlags::empty(), 0, len as u64);
        reserved.map_err(Error::io(format!("{what}: cannot reserve {len} bytes of {self}")))
    }
}

impl std::fmt::Display for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memfd => write!(f, "memfd"),
            Self::Hugetlb => write!(f, "hugetlb"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Bytes of a huge page, as far as alignment is concerned.
pub const HUGE_PAGE: usize = 2 << 20;

/// A file made for shared memory; a named one is unlinked when this is dropped.
#[derive(Debug)]
pub(super) struct SharedFile {
    pub(super) file: File,
    path: Option<PathBuf>,
    sealable: bool,
}

impl SharedFile {
    /// After the owner has mapped it: no other process can ever map it writable or change its
    /// size, not even through mprotect. Named files cannot be sealed.
    pub(super) fn seal(&self, what: &str) -> Result<()> {
        if !self.sealable {
            return Ok(());
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&self.file, seals).map_err(Error::io(format!("{what}: seal")))
    }

    /// A description of the same file that can only be read, to give to others.
    pub(super) fn reader(&self, what: &str) -> Result<File> {
        use std::os::fd::AsRawFd;
        let own = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        File::open(&own).map_err(Error::io(format!("{what}: reopen read-only")))
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing can be done here about a file that is gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn memfd(tag: &str, extra: MemfdFlags, what: &str) -> Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | extra;
    let name = format!("oslet:{tag}");
    let fd = rustix::fs::memfd_create(name, flags).map_err(Error::io(format!(
        "{what}: memfd_create{}",
        if extra.contains(MemfdFlags::HUGETLB) { " with huge pages" } else { "" }
    )))?;
    Ok(File::from(fd))
}

fn segment_path(base: &Path, tag: &str) -> PathBuf {
    let mut name = base.as_os_str().as_bytes().to_vec();
    name.push(b'.');
    name.extend_from_slice(tag.as_bytes());
    PathBuf::from(std::ffi::OsStr::from_bytes(&name))
}
