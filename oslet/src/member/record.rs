//! What a runtime leaves on disk so that others can fence it when no descriptor of it is left:
//! `<directory>/<oslet>/member.json`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::procfs::ProcessId;
use crate::{Error, Result};

/// The file's name in the OSlet's directory.
pub const NAME: &str = "member.json";

/// A runtime and what must be destroyed with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The cluster's identity: another run's record is a leftover.
    pub cluster: [u64; 2],
    /// The OSlet's place.
    pub oslet: usize,
    /// The incarnation.
    pub epoch: u32,
    /// The runtime's process.
    pub process: ProcessId,
    /// Its native clients.
    #[serde(default)]
    pub clients: Vec<ProcessId>,
    /// Numbers of its FUSE connections.
    #[serde(default)]
    pub fuse: Vec<u32>,
    /// The files whose flock proves that its I/O has ended.
    #[serde(default)]
    pub files: Vec<IoFile>,
    /// Its control groups.
    #[serde(default)]
    pub groups: Vec<Group>,
}

/// A file by path and by number: the path may since name another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IoFile {
    /// Where it was when it was opened.
    pub path: PathBuf,
    /// Its filesystem.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl IoFile {
    /// The file behind that descriptor.
    pub fn of(file: impl AsFd) -> Result<Self> {
        let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let path = fs::read_link(&link).map_err(Error::io("I/O file: name"))?;
        let stat = rustix::fs::fstat(&file).map_err(Error::file(&path, "stat"))?;
        Ok(Self { path, device: stat.st_dev, inode: stat.st_ino })
    }
}

impl Record {
    /// Writes it in that directory; a reader sees the old one or this one, whole.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| {
            Error::Invalid(format!("{}: {error}", directory.join(NAME).display()))
        })?;
        let (path, new) = (directory.join(NAME), directory.join(format!("{NAME}.new")));
        fs::write(&new, text).map_err(Error::file(&new, "write"))?;
        fs::rename(&new, &path).map_err(Error::file(&path, "rename"))
    }

    /// Reads that directory's; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is no record.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(NAME);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::file(&path, "read"))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Error::Invalid(format!("{}: {error}: remove it if no cluster runs", path.display()))
        })
    }

    /// Removes that directory's, if there is one.
    pub fn remove(directory: &Path) -> Result<()> {
        let path = directory.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file(&path, "remove")(error))
            }
            _ => Ok(()),
        }
    }
}
