//! What can go wrong in this crate.

use std::io;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that names its object, the value, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a named object failed.
    #[error("{what}: {source}")]
    Io {
        /// The object and what was tried, in lower case.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of ours could not be used.
    #[error("{path}: {what}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What the user gave does not fit: the whole message.
    #[error("{0}")]
    Invalid(String),
    /// A peer's bytes did not validate: the peer's fault, never ours.
    #[error("{peer}: {what}")]
    Corrupt {
        /// Whose memory or message.
        peer: String,
        /// What was wrong with it.
        what: String,
    },
    /// The peer has left, died or was fenced; the wait on it is over.
    #[error("{0} is gone")]
    Gone(String),
    /// Time ran out while the peer was alive.
    #[error("{what}: no answer within {ms} ms")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        ms: u64,
    },
    /// A bounded resource is used up.
    #[error("{0}")]
    Exhausted(String),
}

impl Error {
    /// Wraps a system call's error: `map_err(Error::io("segment o0: mmap"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }

    /// Wraps an error on a file: `map_err(Error::file(path, "open"))`.
    pub fn file<E: Into<io::Error>>(path: &Path, what: &'static str) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, what, source: source.into() }
    }
}
