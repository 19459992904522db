//! What can go wrong in this crate.

use std::path::PathBuf;

use rustix::io::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that names the device, the value, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device could not do it.
    #[error("{device}: {what} at {offset}: {errno}")]
    Io {
        /// The device's name.
        device: String,
        /// What was tried.
        what: &'static str,
        /// The first byte that it concerned.
        offset: u64,
        /// Why not.
        errno: Errno,
    },
    /// A request reaches beyond the end.
    #[error("{device}: {what} of {len} bytes at {offset} is beyond its {size} bytes")]
    Range {
        /// The device's name.
        device: String,
        /// What was asked.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the device.
        size: u64,
    },
    /// A request does not consist of whole blocks.
    #[error("{device}: {what} of {len} bytes at {offset} is not in blocks of {block_size}")]
    Misaligned {
        /// The device's name.
        device: String,
        /// What was asked.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// A transfer is longer than the device takes at a time.
    #[error("{device}: {what} of {len} bytes; at most {max} at a time")]
    TooLong {
        /// The device's name.
        device: String,
        /// What was asked.
        what: &'static str,
        /// Bytes, or pieces of memory.
        len: u64,
        /// The most that it takes.
        max: u64,
    },
    /// A change to a device that is only read.
    #[error("{0}: read-only")]
    ReadOnly(String),
    /// The device has as many requests in hand as it keeps; try again when some have completed.
    #[error("{0}: {limit} requests are waiting already", limit = crate::limits::MAX_QUEUED)]
    Busy(String),
    /// The device's owner has left, died or was fenced. What was in flight may have been done or
    /// not; the owner's successor can be asked again.
    #[error("{0}: its owner is gone")]
    Gone(String),
    /// Time ran out; the request may have been done or not.
    #[error("{device}: no answer within {ms} ms")]
    Timeout {
        /// The device's name.
        device: String,
        /// For how long it was waited.
        ms: u64,
    },
    /// The request was dropped by whoever had to complete it.
    #[error("a request was dropped without being completed")]
    Abandoned,
    /// The file that a device is made of could not be used.
    #[error("{path}: {what}: {errno}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// What came over a connection is not NBD: the whole message.
    #[error("nbd: {0}")]
    Protocol(String),
    /// What was given does not fit: the whole message.
    #[error("{0}")]
    Invalid(String),
    /// The shared memory has no room, or something in it did not validate.
    #[error(transparent)]
    Region(#[from] oslet::Error),
}

impl Error {
    /// The number to answer a system call with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io { errno, .. } | Self::Open { errno, .. } => *errno,
            // As NBD has it: beyond the end there is no space to write, and nothing to read.
            Self::Range { what, .. } if *what == "write" || *what == "write zeroes" => Errno::NOSPC,
            Self::Range { .. } | Self::Misaligned { .. } | Self::Invalid(_) => Errno::INVAL,
            Self::TooLong { what, .. } if *what == "write" => Errno::INVAL,
            Self::TooLong { .. } => Errno::OVERFLOW,
            Self::ReadOnly(_) => Errno::PERM,
            Self::Busy(_) => Errno::AGAIN,
            Self::Gone(_) => Errno::SHUTDOWN,
            Self::Timeout { .. } => Errno::TIMEDOUT,
            Self::Abandoned | Self::Protocol(_) => Errno::IO,
            Self::Region(oslet::Error::Exhausted(_)) => Errno::NOMEM,
            Self::Region(oslet::Error::Gone(_)) => Errno::SHUTDOWN,
            Self::Region(oslet::Error::Timeout { .. }) => Errno::TIMEDOUT,
            Self::Region(oslet::Error::Io { source, .. }) => {
                Errno::from_io_error(source).unwrap_or(Errno::IO)
            }
            Self::Region(_) => Errno::IO,
        }
    }

    /// Whether the same request may succeed when it is made again - on the successor of an owner
    /// that is gone, or later. A request that may have been done ([`Self::Gone`]) is safe to repeat
    /// only where doing it twice is.
    pub fn is_retryable(&self) -> bool {
        matches!(self.errno(), Errno::SHUTDOWN | Errno::AGAIN)
    }
}
