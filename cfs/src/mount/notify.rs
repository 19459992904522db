//! Telling the kernel to drop what it has cached.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use oslet::sys::vectored::{self, Piece};
use oslet::{Error, Result};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{self, notify};
use super::dispatch::NAME_MAX;
use super::ops::NodeId;

/// What of an inode is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidate {
    /// Attributes alone; never waits.
    Attributes,
    /// Attributes and cached pages that lie in the range. Waits for reads of them in flight.
    Data {
        /// First byte.
        offset: u64,
        /// Bytes; `None` is to the end of the file.
        len: Option<u64>,
    },
}

/// Sends notifications of one connection. Any thread may, but one that answers requests: the kernel
/// may not return before requests in flight have been answered.
#[derive(Clone, Debug)]
pub struct Notifier {
    device: Weak<OwnedFd>,
}

impl Notifier {
    pub(super) fn new(device: Weak<OwnedFd>) -> Self {
        Self { device }
    }

    /// Drops what is cached of an inode. `false`: the kernel had nothing of it.
    pub fn inode(&self, node: NodeId, what: Invalidate) -> Result<bool> {
        let (off, len) = match what {
            Invalidate::Attributes => (-1, 0),
            Invalidate::Data { offset, len } => (
                i64::try_from(offset).unwrap_or(i64::MAX),
                // Not above 0 means all.
                len.map_or(0, |len| i64::try_from(len).unwrap_or(0)),
            ),
        };
        self.may_wait()?;
        let message = abi::NotifyInvalInode { ino: node.0, off, len };
        self.send(notify::INVAL_INODE, &[message.as_bytes()])
    }

    /// Drops the attributes that are cached of an inode. Never waits, so that threads that answer
    /// requests may do it.
    pub(super) fn attributes(&self, node: NodeId) -> Result<bool> {
        let message = abi::NotifyInvalInode { ino: node.0, off: -1, len: 0 };
        self.send(notify::INVAL_INODE, &[message.as_bytes()])
    }

    /// Forgets a name. Waits while a create, mkdir, rename or the like is unanswered in that
    /// directory: the kernel keeps it locked meanwhile. `false`: the kernel did not know the name.
    pub fn entry(&self, parent: NodeId, name: &[u8]) -> Result<bool> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::Invalid(format!("a name of {} bytes cannot exist", name.len())));
        }
        self.may_wait()?;
        let message =
            abi::NotifyInvalEntry { parent: parent.0, namelen: name.len() as u32, flags: 0 };
        self.send(notify::INVAL_ENTRY, &[message.as_bytes(), name, b"\0"])
    }

    /// Makes the kernel ask again for every name before it is used; never waits. Needs Linux 6.17.
    pub fn all_entries(&self) -> Result<bool> {
        self.may_wait()?;
        self.send(notify::INC_EPOCH, &[])
    }

    fn may_wait(&self) -> Result<()> {
        if SERVES.get() {
            return Err(Error::Invalid(
                "a notification may wait for an answer of the thread that sends it: send it from \
                 one that serves no requests"
                    .into(),
            ));
        }
        Ok(())
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> Result<bool> {
        let Some(device) = self.device.upgrade() else {
            return Err(Error::Gone("the mount".into()));
        };
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len = (size_of::<abi::OutHeader>() + len) as u32;
        let header = abi::OutHeader { len, error: code, unique: 0 };
        let pieces: Vec<_> = parts.iter().map(|part| Piece::Bytes(part)).collect();
        match vectored::write(&*device, header.as_bytes(), &pieces) {
            Ok(_) => Ok(true),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => Ok(false),
                Some(Errno::NODEV | Errno::NOTCONN | Errno::CONNABORTED) => {
                    Err(Error::Gone("the mount".into()))
                }
                _ => Err(Error::io(format!("/dev/fuse: notification {code}"))(error)),
            },
        }
    }
}

thread_local! {
    static SERVES: Cell<bool> = const { Cell::new(false) };
}

/// Marks the calling thread as one that answers requests.
pub(super) fn this_thread_serves() {
    SERVES.set(true);
}
