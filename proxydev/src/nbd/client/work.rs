//! A request of a device as steps that a server can be asked for, one after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use oslet::arena::Arena;
use oslet::limits::FRAME_SIZE;
use oslet::region::OwnedFrame;
use rustix::io::Errno;

use super::negotiate::Terms;
use crate::device::{Completion, Operation};
use crate::nbd::inbox::Target;
use crate::nbd::wire::{Command, CommandFlags, ExportFlags, Mode, Request};
use crate::{Data, Error, Result, limits};

/// Bytes of zeros sent at a time where a server has no WRITE_ZEROES.
const ZEROS: u64 = 1 << 20;

/// One request of the protocol's.
pub(super) struct Step {
    pub(super) request: Request,
    /// What a write writes; kept until it is answered, to be sent again.
    pub(super) data: Option<Arc<Data>>,
}

/// A request in hand.
pub(super) struct Work {
    pub(super) completion: Completion,
    /// What is left to be asked for; the first has been.
    pub(super) steps: VecDeque<Step>,
    /// Frames of the caller's for a read.
    into: Vec<OwnedFrame>,
    /// What has arrived of a read.
    pub(super) target: Option<Target>,
    /// What went wrong with the step that is being answered.
    pub(super) error: Option<(Errno, String)>,
    /// Chunks of the reply so far.
    pub(super) chunks: u32,
    /// When the connection broke that it was first sent over.
    pub(super) since: Option<Instant>,
}

impl Work {
    /// What has to be asked for; `None` if nothing has to, and then it is completed.
    pub(super) fn new(
        operation: Operation,
        completion: Completion,
        terms: &Terms,
        arena: &Arc<Arena>,
    ) -> Option<Self> {
        let mut into = Vec::new();
        let planned = plan(operation, terms, arena, &mut into);
        let steps = match planned {
            Ok(steps) if !steps.is_empty() => steps,
            Ok(_) => {
                completion.complete(Ok(Data::empty()));
                return None;
            }
            Err(error) => {
                completion.complete(Err(error));
                return None;
            }
        };
        let (target, error, chunks, since) = (None, None, 0, None);
        Some(Self { completion, steps, into, target, error, chunks, since })
    }

    /// Where the bytes of a read go.
    pub(super) fn target(&mut self, arena: &Arc<Arena>) -> Result<&mut Target> {
        if self.target.is_none() {
            let len = self.steps.front().map_or(0, |step| step.request.len) as usize;
            let frames = match self.into.is_empty() {
                true => arena.alloc_many(len.div_ceil(FRAME_SIZE))?,
                false => std::mem::take(&mut self.into),
            };
            self.target = Some(Target::new(frames, len));
        }
        self.target.as_mut().ok_or(Error::Abandoned)
    }

    /// Forgets what has been answered of the present step: it is to be sent anew.
    pub(super) fn rewind(&mut self) {
        self.chunks = 0;
        self.error = None;
        if let Some(target) = self.target.take() {
            self.into = target.into_frames();
        }
    }
}

fn plan(
    operation: Operation,
    terms: &Terms,
    arena: &Arc<Arena>,
    frames: &mut Vec<OwnedFrame>,
) -> Result<VecDeque<Step>> {
    let has = |flag| terms.flags.contains(flag);
    let mut steps = VecDeque::new();
    let mut ask = |command, flags, offset, len, data: Option<Data>| {
        let request = Request { command, flags, cookie: 0, offset, len };
        steps.push_back(Step { request, data: data.map(Arc::new) });
    };
    let none = CommandFlags::empty();
    let fua_flag = |fua| if fua && has(ExportFlags::SEND_FUA) { CommandFlags::FUA } else { none };
    let mut flush = false;
    match operation {
        Operation::Read { offset, len, into } => {
            *frames = into;
            ask(Command::Read, none, offset, len.into(), None);
        }
        Operation::Write { offset, data, fua } => {
            let mut flags = fua_flag(fua);
            flags.set(CommandFlags::PAYLOAD_LEN, terms.mode == Mode::Extended);
            ask(Command::Write, flags, offset, data.len() as u64, Some(data));
            flush = fua && !has(ExportFlags::SEND_FUA);
        }
        Operation::Flush => flush = true,
        Operation::Discard { offset, len } if has(ExportFlags::SEND_TRIM) => {
            for (at, part) in parts(offset, len, longest(terms)) {
                ask(Command::Trim, none, at, part, None);
            }
        }
        // Only advice.
        Operation::Discard { .. } => {}
        Operation::WriteZeroes { offset, len, may_unmap, fua, fast } => {
            let zeroes = has(ExportFlags::SEND_WRITE_ZEROES);
            if fast && !(zeroes && has(ExportFlags::SEND_FAST_ZERO)) {
                let (device, what) = ("nbd".to_owned(), "fast write zeroes");
                return Err(Error::Io { device, what, offset, errno: Errno::OPNOTSUPP });
            }
            let mut flags = fua_flag(fua);
            if zeroes {
                flags.set(CommandFlags::NO_HOLE, !may_unmap);
                flags.set(CommandFlags::FAST_ZERO, fast);
                for (at, part) in parts(offset, len, longest(terms)) {
                    ask(Command::WriteZeroes, flags, at, part, None);
                }
            } else {
                flags.set(CommandFlags::PAYLOAD_LEN, terms.mode == Mode::Extended);
                for (at, part) in parts(offset, len, ZEROS.min(terms.blocks.2.into())) {
                    let data = Data::copy_from(arena, &vec![0; part as usize])?;
                    ask(Command::Write, flags, at, part, Some(data));
                }
            }
            flush = fua && !has(ExportFlags::SEND_FUA);
        }
    }
    if flush && has(ExportFlags::SEND_FLUSH) {
        ask(Command::Flush, none, 0, 0, None);
    }
    Ok(steps)
}

/// The longest request without payload, in whole blocks.
fn longest(terms: &Terms) -> u64 {
    match terms.mode {
        Mode::Extended => u64::MAX,
        Mode::Simple | Mode::Structured => {
            u64::from(u32::MAX) + 1 - u64::from(limits::MAX_TRANSFER)
        }
    }
}

fn parts(offset: u64, len: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let part = (len - done).min(most);
        let at = offset + done;
        done += part;
        (part > 0).then_some((at, part))
    })
}
