//! What a block device is.

use std::fmt;

use oslet::region::OwnedFrame;

use crate::data::Data;
use crate::{Error, Result, limits};

/// A device that stores blocks, on which any number of requests may be in flight.
///
/// Requests in flight are not ordered: of two writes that overlap either may win, block by block,
/// and a read that overlaps a write in flight returns any mixture of old and new. A request that is
/// submitted after another's completion sees that one's effect. A flush makes durable every write
/// that had *completed* when it was submitted.
pub trait BlockDevice: Send + Sync {
    /// The device's name, for messages.
    fn name(&self) -> &str;

    /// Geometry and abilities, which stay the same while the device is open.
    fn info(&self) -> DeviceInfo;

    /// How the bytes from `offset` on are stored: extents that follow one another, `most` at most,
    /// which may end before `offset + len` but not before the first byte. It may wait for the
    /// device's metadata, never for data.
    ///
    /// # Errors
    /// When the range is beyond the end, or the device cannot tell for now.
    fn extents(&self, _offset: u64, len: u64, _most: usize) -> Result<Vec<Extent>> {
        // All of it may hold data: always true enough.
        Ok(vec![Extent { len, hole: false, zero: false }])
    }

    /// Starts a request. It is completed exactly once, on any thread and possibly before this
    /// returns; so no lock that the completion takes may be held here.
    fn submit(&self, request: Request);

    /// Starts several requests at once, which can cost less than one by one.
    fn submit_all(&self, requests: Vec<Request>) {
        for request in requests {
            self.submit(request);
        }
    }

    /// As [`Self::submit`], by a thread that calls [`Self::poll`] until the request has completed,
    /// or says by [`Self::stop_polling`] that it does so no longer: nobody else need be woken for
    /// it.
    fn submit_polled(&self, request: Request) {
        self.submit(request);
    }

    /// From now on requests of [`Self::submit_polled`] are to complete by themselves.
    fn stop_polling(&self) {}

    /// Completes on this thread what has ended, without waiting. Completions come without it too;
    /// a thread that has nothing better to do than wait gets them sooner. Not to be called from a
    /// completion.
    fn poll(&self) {}
}

/// Bytes that are stored in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes, at least one.
    pub len: u64,
    /// No storage is allocated for them.
    pub hole: bool,
    /// They are known to read as zeros.
    pub zero: bool,
}

/// Geometry and abilities of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Bytes, a multiple of `block_size`.
    pub size: u64,
    /// Requests consist of blocks of so many bytes: a power of two, at least
    /// [`limits::MIN_BLOCK_SIZE`].
    pub block_size: u32,
    /// Requests of multiples of so many bytes, aligned to it, cost least.
    pub optimal_size: u32,
    /// Data of a write that starts at a multiple of so many bytes of memory, in pieces of whole
    /// blocks, goes to the device without being copied.
    pub memory_alignment: u32,
    /// Bytes of one read or write; the other requests may be of any length.
    pub max_transfer: u32,
    /// Whether every change is refused.
    pub read_only: bool,
    /// Whether discarding frees anything.
    pub discard: bool,
}

/// One thing to do with a device.
#[derive(Debug)]
pub enum Operation {
    /// Reads blocks. The completion's data have exactly `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Frames for what has to be brought in: enough for `len` bytes, or none, and the device
        /// takes its own. A device that has the bytes in frames already lets these go.
        into: Vec<OwnedFrame>,
    },
    /// Writes blocks.
    Write {
        /// First byte.
        offset: u64,
        /// What to write; it is let go when the request completes.
        data: Data,
        /// Whether it has to be durable at completion (force unit access).
        fua: bool,
    },
    /// Makes durable what was written by requests that have completed.
    Flush,
    /// Declares blocks unused: they read as what they were or as zeros from now on.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes blocks read as zeros.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Whether their storage may be given back, so that writing there can fail for want of it.
        may_unmap: bool,
        /// Whether it has to be durable at completion.
        fua: bool,
        /// Whether it is to fail with EOPNOTSUPP where zeros would have to be written out.
        fast: bool,
    },
}

impl Operation {
    /// A read into frames of the device's choice.
    pub fn read(offset: u64, len: u32) -> Self {
        Self::Read { offset, len, into: Vec::new() }
    }

    /// What it is called in messages.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard { .. } => "discard",
            Self::WriteZeroes { .. } => "write zeroes",
        }
    }

    /// First byte and bytes that it concerns; none for a flush.
    pub fn extent(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, len, .. } => (*offset, u64::from(*len)),
            Self::Write { offset, data, .. } => (*offset, data.len() as u64),
            Self::Flush => (0, 0),
            Self::Discard { offset, len } | Self::WriteZeroes { offset, len, .. } => {
                (*offset, *len)
            }
        }
    }

    /// Checks that it does not reach beyond the end.
    pub(crate) fn check_range(&self, device: &str, info: &DeviceInfo) -> Result<()> {
        let (offset, len) = self.extent();
        if offset.checked_add(len).is_none_or(|end| end > info.size) {
            let (device, what) = (device.to_owned(), self.what());
            return Err(Error::Range { device, what, offset, len, size: info.size });
        }
        Ok(())
    }

    /// Checks it against a device's geometry: the same answers from every device.
    pub fn check(&self, device_name: &str, info: &DeviceInfo) -> Result<()> {
        let (what, (offset, len)) = (self.what(), self.extent());
        let device = || device_name.to_owned();
        let transfer = matches!(self, Self::Read { .. } | Self::Write { .. });
        if info.read_only && !matches!(self, Self::Read { .. } | Self::Flush) {
            return Err(Error::ReadOnly(device()));
        }
        if transfer && len > u64::from(info.max_transfer) {
            let max = u64::from(info.max_transfer);
            return Err(Error::TooLong { device: device(), what, len, max });
        }
        let block_size = info.block_size;
        if (offset | len) & u64::from(block_size - 1) != 0 {
            return Err(Error::Misaligned { device: device(), what, offset, len, block_size });
        }
        self.check_range(device_name, info)?;
        match self {
            Self::Read { into, .. } => {
                let room = (into.len() as u64).saturating_mul(oslet::limits::FRAME_SIZE as u64);
                if !into.is_empty() && room < len {
                    return Err(Error::Invalid(format!(
                        "{}: read of {len} bytes into {} frames",
                        device(),
                        into.len()
                    )));
                }
            }
            Self::Write { data, .. } if data.slices().len() > limits::MAX_SLICES => {
                let (len, max) = (data.slices().len() as u64, limits::MAX_SLICES as u64);
                return Err(Error::TooLong { device: device(), what, len, max });
            }
            _ => {}
        }
        Ok(())
    }
}

/// An operation and who is to hear of its end.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// The obligation to say how it ended.
    pub completion: Completion,
}

impl Request {
    /// A request that calls `done` when it has ended.
    pub fn new(operation: Operation, done: impl FnOnce(Result<Data>) + Send + 'static) -> Self {
        Self { operation, completion: Completion::new(done) }
    }
}

/// The obligation to complete one request, exactly once. Dropped without that it completes with
/// [`Error::Abandoned`].
pub struct Completion(Option<Box<dyn FnOnce(Result<Data>) + Send>>);

impl Completion {
    /// Calls `done` at completion: on a thread that has other requests to complete, so it should
    /// neither wait nor panic.
    pub fn new(done: impl FnOnce(Result<Data>) + Send + 'static) -> Self {
        Self(Some(Box::new(done)))
    }

    /// The request has ended. Reads bring data, all others [`Data::empty`].
    pub fn complete(mut self, result: Result<Data>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(Error::Abandoned));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}
