//! A request to a file on its way through one or more operations.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oslet::arena::Arena;
use oslet::limits::FRAME_SIZE;
use oslet::sys::disk::{Buffer, Io};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result as Answer};

use super::Target;
use crate::data::Data;
use crate::device::Completion;
use crate::{Error, Result, limits};

/// A request in hand. Dropped, it completes as abandoned.
pub(crate) struct Job {
    completion: Option<Completion>,
    target: Arc<Target>,
    arena: Arc<Arena>,
    plan: Plan,
}

/// What the present operation is part of.
pub(super) enum Plan {
    /// Only until the first operation is known.
    None,
    Read {
        len: usize,
    },
    /// The data stay held until the operation has ended.
    Write {
        _data: Data,
    },
    Flush,
    Discard,
    Zeroes(Zeroes),
}

/// Making a range zero: by the best means that the file has.
pub(super) struct Zeroes {
    /// What is left of the range.
    offset: u64,
    len: u64,
    fua: bool,
    /// Never by writing.
    fast: bool,
    means: Means,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    Punch,
    ZeroRange,
    Write,
    /// All zero; being made durable.
    Sync,
}

/// The first operation of a request for zeros.
pub(super) fn zeroes(file: &Arc<File>, mut zeroes: Zeroes, may_unmap: bool) -> Result<(Io, Plan)> {
    if may_unmap {
        zeroes.means = Means::Punch;
    }
    Ok((zeroes.operation(file)?, Plan::Zeroes(zeroes)))
}

impl Zeroes {
    pub(super) fn new(offset: u64, len: u64, fua: bool, fast: bool) -> Self {
        Self { offset, len, fua, fast, means: Means::ZeroRange }
    }

    fn operation(&self, file: &Arc<File>) -> Result<Io> {
        let keep = FallocateFlags::KEEP_SIZE;
        match self.means {
            Means::Punch => {
                let mode = FallocateFlags::PUNCH_HOLE | keep;
                Ok(Io::allocate(file, mode, self.offset, self.len))
            }
            Means::ZeroRange => {
                let mode = FallocateFlags::ZERO_RANGE | keep;
                Ok(Io::allocate(file, mode, self.offset, self.len))
            }
            Means::Write => {
                let zeros = Buffer::zeroed(self.len.min(limits::ZERO_CHUNK) as usize)?;
                Ok(Io::write_buffer(file, self.offset, zeros, self.fua)?)
            }
            Means::Sync => Ok(Io::data_sync(file)),
        }
    }

    /// What comes behind an operation that ended like this; `None` when all is done.
    fn next(mut self, result: Answer<usize>) -> Answer<Option<Self>> {
        self.means = match (self.means, result) {
            (Means::Punch, Err(Errno::OPNOTSUPP | Errno::NOSYS)) => Means::ZeroRange,
            (Means::ZeroRange, Err(Errno::OPNOTSUPP | Errno::NOSYS)) if self.fast => {
                return Err(Errno::OPNOTSUPP);
            }
            (Means::ZeroRange, Err(Errno::OPNOTSUPP | Errno::NOSYS)) => Means::Write,
            (_, Err(errno)) => return Err(errno),
            (Means::Punch | Means::ZeroRange, Ok(_)) if self.fua => Means::Sync,
            (Means::Punch | Means::ZeroRange | Means::Sync, Ok(_)) => return Ok(None),
            (Means::Write, Ok(done)) => {
                self.offset += done as u64;
                self.len = self.len.saturating_sub(done as u64);
                if done == 0 {
                    return Err(Errno::IO);
                }
                if self.len == 0 {
                    return Ok(None);
                }
                Means::Write
            }
        };
        Ok(Some(self))
    }
}

impl Job {
    pub(super) fn new(target: &Arc<Target>, arena: &Arc<Arena>, completion: Completion) -> Self {
        Self {
            completion: Some(completion),
            target: Arc::clone(target),
            arena: Arc::clone(arena),
            plan: Plan::None,
        }
    }

    pub(super) fn with(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    pub(super) fn fail(mut self, error: Error) {
        self.complete(Err(error));
    }

    /// Takes note of how the present operation ended. Returns the next one, or completes.
    pub(in crate::backend) fn advance(
        mut self,
        mut io: Io,
        result: Answer<usize>,
    ) -> Option<(Io, Self)> {
        match std::mem::replace(&mut self.plan, Plan::None) {
            plan @ (Plan::Read { .. } | Plan::Write { .. }) => {
                let what = if matches!(plan, Plan::Read { .. }) { "read" } else { "write" };
                match result {
                    // Within the size of the disk that the file had: it has shrunk since.
                    Ok(0) if io.remaining() > 0 => self.failed(what, io.offset(), Errno::IO),
                    Ok(done) => {
                        io.advance(done);
                        if io.remaining() > 0 {
                            self.plan = plan;
                            return Some((io, self));
                        }
                        let data = match plan {
                            Plan::Read { len } => filled(&self.arena, io, len),
                            _ => Ok(Data::empty()),
                        };
                        self.complete(data);
                    }
                    Err(errno) => self.failed(what, io.offset(), errno),
                }
            }
            Plan::Flush => match result {
                Ok(_) => self.complete(Ok(Data::empty())),
                Err(errno) => self.failed("flush", 0, errno),
            },
            Plan::Discard => match result {
                // Only advice: a file that cannot give anything back has done its part.
                Ok(_) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.complete(Ok(Data::empty())),
                Err(errno) => self.failed("discard", io.offset(), errno),
            },
            Plan::Zeroes(zeroes) => {
                let offset = zeroes.offset;
                match zeroes.next(result) {
                    Ok(None) => self.complete(Ok(Data::empty())),
                    Ok(Some(zeroes)) => match zeroes.operation(&self.target.file) {
                        Ok(io) => {
                            self.plan = Plan::Zeroes(zeroes);
                            return Some((io, self));
                        }
                        Err(error) => self.complete(Err(error)),
                    },
                    Err(errno) => self.failed("write zeroes", offset, errno),
                }
            }
            Plan::None => {}
        }
        None
    }

    fn failed(&mut self, what: &'static str, offset: u64, errno: Errno) {
        let device = self.target.name.clone();
        self.complete(Err(Error::Io { device, what, offset, errno }));
    }

    fn complete(&mut self, result: Result<Data>) {
        if let Some(completion) = self.completion.take() {
            self.target.in_flight.fetch_sub(1, Ordering::Relaxed);
            completion.complete(result);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.complete(Err(Error::Abandoned));
    }
}

/// What was read, the rest of the last frame zeroed: others may map the whole frame.
fn filled(arena: &Arc<Arena>, io: Io, len: usize) -> Result<Data> {
    let mut frames = io.into_frames();
    if !len.is_multiple_of(FRAME_SIZE)
        && let Some(last) = frames.get_mut(len / FRAME_SIZE)
    {
        last.bytes()?.fill()[len % FRAME_SIZE..].fill(0);
    }
    Data::loan(arena, frames, len)
}
