//! What can go wrong in this crate.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;

use rustix::io::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that names its object, the value, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage underneath failed.
    #[error("{what}: {source}")]
    Io {
        /// The object and what was tried.
        what: String,
        /// The answer of the storage.
        source: io::Error,
    },
    /// Bytes of the volume that contradict the format; what does not depend on them stays usable.
    #[error("{what}: {why} (run e2fsck)")]
    Corrupt {
        /// The object.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// No filesystem that this crate could read: the whole message.
    #[error("{0}")]
    NotExt(String),
    /// The volume uses a feature that this crate does not support.
    #[error("feature {feature} is not supported{hint}")]
    Refused {
        /// The feature's name as in `mke2fs -O`, and its bit.
        feature: String,
        /// Why, and what to do.
        hint: Cow<'static, str>,
    },
    /// The journal holds transactions that are not in place yet.
    #[error("the journal needs recovery: replay it first")]
    NeedsRecovery,
    /// Somebody else uses the volume.
    #[error("{0}")]
    Busy(String),
    /// An argument that no volume could honour.
    #[error("{0}")]
    Invalid(String),
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// An inode number or generation that is not in use.
    #[error("{0} is not in use")]
    Stale(String),
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// Something other than a directory was needed.
    #[error("is a directory")]
    IsADirectory,
    /// The name is there already.
    #[error("file exists")]
    Exists,
    /// A directory with names in it.
    #[error("directory not empty")]
    NotEmpty,
    /// An inode with as many names, or a directory with as many directories, as there can be.
    #[error("too many links")]
    TooManyLinks,
    /// What this inode's flags or this caller's rights forbid.
    #[error("operation not permitted")]
    NotPermitted,
    /// What the inode's kind forbids everybody.
    #[error("permission denied")]
    AccessDenied,
    /// An extended attribute's name of no byte or of more than 255.
    #[error("attribute name of a length that cannot be")]
    NameRange,
    /// A name of more than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// More bytes than a system call could return.
    #[error("{0}")]
    TooBig(String),
    /// No data, or no hole, at or after the offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// The object is encrypted: its names and contents need a key.
    #[error("{0} is encrypted and there is no key")]
    Encrypted(String),
    /// The volume or its storage is read-only.
    #[error("read-only filesystem")]
    ReadOnly,
    /// A file of more bytes or blocks than its map or the volume can have.
    #[error("file too large")]
    FileTooBig,
    /// What this kind of file or volume cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// The volume has no free block or inode for the caller.
    #[error("no space left on the volume")]
    NoSpace,
    /// A bounded resource is used up.
    #[error("{0}")]
    Exhausted(String),
    /// Storage would have to be waited for by who must not wait.
    #[error("the answer is not in memory")]
    WouldWait,
    /// What the volume's owner answered: an errno.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Owner(i32),
    /// The volume has another owner, or another incarnation of it, than the one that was to be
    /// asked. Nothing has been asked.
    #[error("the volume's owner is another than before")]
    Moved,
    /// The volume has no owner that serves it.
    #[error("{0}")]
    NoOwner(String),
    /// The device under the volume.
    #[error(transparent)]
    Device(#[from] proxydev::Error),
    /// The shared memory, or another OSlet.
    #[error(transparent)]
    Cluster(#[from] oslet::Error),
}

impl Error {
    /// Wraps the storage's error: `map_err(Error::io("disk.img: read"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }

    /// What another OSlet answered for us.
    pub(crate) fn from_owner(errno: i32) -> Self {
        match Errno::from_raw_os_error(errno) {
            Errno::NOENT => Self::NotFound,
            Errno::NOTDIR => Self::NotADirectory,
            Errno::ISDIR => Self::IsADirectory,
            Errno::NAMETOOLONG => Self::NameTooLong,
            Errno::NODATA => Self::NoAttribute,
            Errno::NXIO => Self::NoSuchOffset,
            Errno::ROFS => Self::ReadOnly,
            _ => Self::Owner(errno),
        }
    }

    /// An object whose bytes contradict the format.
    pub fn corrupt(what: impl Display, why: impl Into<String>) -> Self {
        Self::Corrupt { what: what.to_string(), why: why.into() }
    }

    /// Says which image the error is about, where it does not say so itself.
    pub fn about(self, path: &std::path::Path) -> Self {
        let path = path.display();
        match self {
            Self::Corrupt { what, why } => Self::Corrupt { what: format!("{path}: {what}"), why },
            Self::NotExt(why) => Self::NotExt(format!("{path}: {why}")),
            Self::Refused { feature, hint } => {
                Self::Refused { feature: format!("{feature} of {path}"), hint }
            }
            Self::Busy(why) => Self::Busy(format!("{path}: {why}")),
            Self::Invalid(why) => Self::Invalid(format!("{path}: {why}")),
            Self::Io { what, source } => Self::Io { what: format!("{path}: {what}"), source },
            other => other,
        }
    }

    /// The number that a system call would return for this.
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Io { source, .. } => return source.raw_os_error().unwrap_or(EIO),
            Self::Corrupt { .. } => Errno::UCLEAN,
            Self::NotExt(_) | Self::Refused { .. } | Self::Invalid(_) => Errno::INVAL,
            Self::NeedsRecovery | Self::ReadOnly => Errno::ROFS,
            Self::Busy(_) => Errno::BUSY,
            Self::NotFound => Errno::NOENT,
            Self::Stale(_) | Self::Moved => Errno::STALE,
            Self::NotADirectory => Errno::NOTDIR,
            Self::IsADirectory => Errno::ISDIR,
            Self::Exists => Errno::EXIST,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::TooManyLinks => Errno::MLINK,
            Self::NotPermitted => Errno::PERM,
            Self::AccessDenied => Errno::ACCESS,
            Self::NameRange => Errno::RANGE,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::NoAttribute => Errno::NODATA,
            Self::TooBig(_) => Errno::TOOBIG,
            Self::NoSuchOffset => Errno::NXIO,
            Self::Encrypted(_) => Errno::NOKEY,
            Self::FileTooBig => Errno::FBIG,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::NoSpace => Errno::NOSPC,
            Self::Exhausted(_) => Errno::NOMEM,
            Self::WouldWait => Errno::AGAIN,
            Self::Owner(errno) => return *errno,
            Self::Device(error) => error.errno(),
            Self::Cluster(oslet::Error::Exhausted(_)) => Errno::NOMEM,
            Self::NoOwner(_) | Self::Cluster(_) => Errno::IO,
        };
        errno.raw_os_error()
    }
}

const EIO: i32 = Errno::IO.raw_os_error();
