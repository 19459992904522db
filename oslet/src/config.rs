//! The configuration file `oslet.toml`: read, checked, and completed with defaults.
//!
//! Everything is optional. What can be judged without the machine is judged here, and every problem
//! is reported, not the first alone; [`crate::plan`] judges the rest.
//!
//! ```toml
//! name = "main"                  # the cluster
//! oslets = 2                     # or [[oslet]] tables
//! tmp = "host"                   # /tmp in OSlets: "host", "global" or "local"
//! root = "host"
//!
//! [region]
//! size = "4G"                    # default: a sixteenth of the free memory, at most 16G
//! backing = "memfd"              # or "hugetlb", or the path of a file: "/dev/shm/x"
//! huge = false                   # huge pages
//! prefault = false               # bring all memory in at start
//!
//! [[oslet]]
//! name = "o0"
//! cpus = "0-31"                  # default: a fair part of those that no other table names
//! mem = "node0"                  # default: the nodes of its CPUs
//! kind = "namespace"
//! restart = true                 # start again when it dies
//! tmp = "local"
//!
//! [[device]]
//! name = "hda"
//! path = "disk.img"              # from the directory of this file; or ram = "1G"
//! owner = "o0"                   # default: the first OSlet
//! standby = ["o1"]
//!
//! [[volume]]
//! name = "root"
//! device = "hda"
//! mount = "/global"
//! read_only = false              # never write to it
//! ```

mod reader;
mod tables;
mod value;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::limits;
use crate::region::Backing;
use crate::topology::{CpuSet, NodeSet};

pub use value::{check_host_name, check_name, parse_size, show_size};

/// The most bytes of a configuration file.
const MAX_TEXT: u64 = 1 << 20;
/// The name of a cluster that is given none.
pub const DEFAULT_NAME: &str = "main";
/// OSlets of a cluster for which nobody says how many.
pub const DEFAULT_OSLETS: usize = 2;
/// The image that is used, and made if need be, when nobody names one.
pub const DEFAULT_IMAGE: &str = "oslet.img";
/// Where a volume is mounted in every OSlet unless its table says otherwise.
pub const DEFAULT_MOUNT: &str = "/global";

/// A value and the line of the file that it stands in; no line if it is a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// Counted from 1.
    pub line: Option<u32>,
    /// The value.
    pub value: T,
}

impl<T> At<T> {
    /// A value that nobody wrote.
    pub fn default(value: T) -> Self {
        Self { line: None, value }
    }
}

/// A whole configuration: at least one OSlet, and names that refer to each other do so rightly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file's name for messages, if there is a file.
    pub file: Option<PathBuf>,
    /// The cluster's name.
    pub name: String,
    /// The region.
    pub region: RegionConfig,
    /// The OSlets, in the order of their ids.
    pub oslets: Vec<OsletConfig>,
    /// The devices.
    pub devices: Vec<DeviceConfig>,
    /// The volumes.
    pub volumes: Vec<VolumeConfig>,
}

/// The shared memory that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionConfig {
    /// Bytes; `None` lets it follow free memory.
    pub size: Option<At<u64>>,
    /// What it is made of.
    pub backing: At<Backing>,
    /// Huge pages.
    pub huge: At<bool>,
    /// All memory brought in at start.
    pub prefault: bool,
}

/// An OSlet that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsletConfig {
    /// Its name, and the host name inside.
    pub name: At<String>,
    /// Its CPUs; `None` for a fair part of what is left.
    pub cpus: Option<At<CpuSet>>,
    /// Its nodes; `None` for those of its CPUs.
    pub mem: Option<At<NodeSet>>,
    /// What it is.
    pub kind: Kind,
    /// Whether it is started again when it dies.
    pub restart: bool,
    /// What /tmp is inside.
    pub tmp: Tmp,
}

/// What an OSlet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Namespaces and cpusets under the host's kernel.
    Namespace,
}

/// What /tmp is inside an OSlet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tmp {
    /// The host's.
    #[default]
    Host,
    /// /gtmp, which all OSlets see.
    Global,
    /// /ltmp, which is its own.
    Local,
}

/// A device that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Its name in every /dev.
    pub name: At<String>,
    /// Where its blocks are.
    pub source: Source,
    /// The OSlet that drives it.
    pub owner: String,
    /// Who may take over, the first first.
    pub standby: Vec<String>,
}

/// Where a device's blocks are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// In a file or a block device.
    Path {
        /// As it can be opened from the current directory.
        path: PathBuf,
        /// Whether it is made and filled if it is not there: only the default image is.
        create: bool,
    },
    /// In memory.
    Ram {
        /// Its size in bytes, a multiple of a frame.
        bytes: u64,
    },
}

/// A volume that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its name.
    pub name: At<String>,
    /// The device that its filesystem is on.
    pub device: String,
    /// Where it is mounted inside every OSlet: an absolute path, normalised.
    pub mount: String,
    /// Whether it is never written.
    pub read_only: bool,
}

/// What the command line says over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// How many OSlets.
    pub oslets: Option<usize>,
    /// The one image to use.
    pub image: Option<PathBuf>,
    /// The cluster's name.
    pub name: Option<String>,
    /// Volumes are never written, whatever the file says.
    pub read_only: bool,
}

/// What is wrong with a configuration: all of it, by line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    /// The file's name; empty if there is none.
    pub file: String,
    /// Line, if it is about one, and the message.
    pub list: Vec<(Option<u32>, String)>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, or [`Error::Invalid`] with a line for each problem.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(Error::file(path, "open configuration"))?;
        let read = file.take(MAX_TEXT + 1).read_to_end(&mut bytes);
        read.map_err(Error::file(path, "read configuration"))?;
        let invalid = |what: &str| Error::Invalid(format!("{}: {what}", path.display()));
        if bytes.len() as u64 > MAX_TEXT {
            return Err(invalid("longer than 1 MiB; this is no configuration"));
        }
        let text = String::from_utf8(bytes).map_err(|_| invalid("not UTF-8 text"))?;
        Ok(Self::parse(&text, Some(path), overrides)?)
    }

    /// What is used when there is no file.
    ///
    /// # Errors
    /// If the overrides do not fit.
    pub fn embedded(overrides: &Overrides) -> Result<Self> {
        Ok(Self::parse("", None, overrides)?)
    }

    /// Checks a text. `file` is named in messages, and paths start at its directory.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(
        text: &str,
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> std::result::Result<Self, Problems> {
        let mut problems = Problems {
            file: file.map(|file| file.display().to_string()).unwrap_or_default(),
            list: Vec::new(),
        };
        let config = tables::read(text, file, overrides, &mut problems);
        if problems.list.is_empty() { Ok(config) } else { Err(problems.sorted()) }
    }

    /// Problems with this configuration's file that are found later.
    pub fn problems(&self) -> Problems {
        let file = self.file.as_ref().map(|file| file.display().to_string());
        Problems { file: file.unwrap_or_default(), list: Vec::new() }
    }
}

impl Problems {
    /// Adds one.
    pub fn add(&mut self, line: Option<u32>, message: impl Into<String>) {
        /// Nobody reads more, and a hostile file shall not fill memory.
        const MAX_PROBLEMS: usize = 100;
        if self.list.len() < MAX_PROBLEMS {
            self.list.push((line, message.into()));
        }
    }

    fn sorted(mut self) -> Self {
        self.list.sort_by_key(|(line, _)| line.unwrap_or(u32::MAX));
        self.list.dedup();
        self
    }

    /// `Ok` if there is none.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a line for each.
    pub fn into_result(self) -> Result<()> {
        if self.list.is_empty() { Ok(()) } else { Err(self.sorted().into()) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (line, message)) in self.list.iter().enumerate() {
            let end = if index + 1 < self.list.len() { "\n" } else { "" };
            match line {
                Some(line) => write!(f, "{}:{line}: {message}{end}", self.file)?,
                None if self.file.is_empty() => write!(f, "{message}{end}")?,
                None => write!(f, "{}: {message}{end}", self.file)?,
            }
        }
        Ok(())
    }
}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::Invalid(problems.to_string())
    }
}

const _: () = assert!(DEFAULT_OSLETS <= limits::MAX_OSLETS);

#[cfg(test)]
mod tests;
