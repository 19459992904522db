//! A request that is being carried out, and its answer.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::device::{Operation, Request as DeviceRequest};
use crate::nbd::link::{Bytes, Held, Link, Message};
use crate::nbd::transmission::Rules;
use crate::nbd::wire::{Command, Request};
use crate::{BlockDevice, Data, Error, Result};

/// A request that becomes one or more operations of a device. It is answered when the last of them
/// has ended and the connection's thread has let it go.
pub(super) struct Pending {
    request: Request,
    rules: Rules,
    link: Arc<Link>,
    state: Mutex<State>,
}

struct State {
    held: Option<Held>,
    /// Operations under way, and the connection's thread while it makes some.
    left: usize,
    /// What they have read, in order.
    data: Vec<Option<Data>>,
    error: Option<(Errno, String)>,
    /// What to say on success, where that is not the usual.
    answer: Option<Vec<u8>>,
}

impl Pending {
    pub(super) fn new(request: Request, rules: Rules, link: &Arc<Link>, held: Held) -> Arc<Self> {
        let state =
            State { held: Some(held), left: 1, data: Vec::new(), error: None, answer: None };
        Arc::new(Self { request, rules, link: Arc::clone(link), state: Mutex::new(state) })
    }

    /// Gives the device one of its operations.
    pub(super) fn submit(self: &Arc<Self>, device: &Arc<dyn BlockDevice>, operation: Operation) {
        let index = {
            let mut state = self.state.lock();
            state.left += 1;
            state.data.push(None);
            state.data.len() - 1
        };
        let pending = Arc::clone(self);
        device.submit(DeviceRequest::new(operation, move |result| {
            pending.ended(index, result);
        }));
    }

    /// The same, and a flush behind it.
    pub(super) fn submit_durably(
        self: &Arc<Self>,
        device: &Arc<dyn BlockDevice>,
        operation: Operation,
    ) {
        self.state.lock().left += 1;
        let pending = Arc::clone(self);
        let below = Arc::clone(device);
        device.submit(DeviceRequest::new(operation, move |result| {
            match result {
                Ok(_) => pending.submit(&below, Operation::Flush),
                Err(error) => pending.fail(error.errno(), error.to_string()),
            }
            pending.release();
        }));
    }

    /// On success this is to be said.
    pub(super) fn answer(&self, message: Vec<u8>) {
        self.state.lock().answer = Some(message);
    }

    /// It will not succeed.
    pub(super) fn fail(&self, errno: Errno, message: String) {
        self.state.lock().error.get_or_insert((errno, message));
    }

    /// Nothing more is submitted, or an operation has ended.
    pub(super) fn release(&self) {
        let mut state = self.state.lock();
        state.left -= 1;
        if state.left > 0 {
            return;
        }
        let held = state.held.take();
        let (error, parts) = (state.error.take(), std::mem::take(&mut state.data));
        let answer = state.answer.take();
        drop(state);
        let (head, data) = match (error, answer) {
            (Some((errno, message)), _) => {
                (self.rules.failed(&self.request, errno, &message), vec![])
            }
            (None, Some(answer)) => (answer, vec![]),
            (None, None) => self.succeeded(parts),
        };
        let data = data.into_iter().map(Bytes::Own).collect();
        self.link.push(Message { head, data, _held: held });
    }

    fn ended(&self, index: usize, result: Result<Data>) {
        match result {
            Ok(data) => self.state.lock().data[index] = Some(data),
            Err(error) => self.fail(errno(&error), error.to_string()),
        }
        self.release();
    }

    fn succeeded(&self, parts: Vec<Option<Data>>) -> (Vec<u8>, Vec<Data>) {
        let request = &self.request;
        if request.command != Command::Read {
            return (self.rules.done(request), Vec::new());
        }
        let data: Vec<_> = parts.into_iter().flatten().collect();
        let len: usize = data.iter().map(Data::len).sum();
        if len as u64 != request.len {
            // Never announce what does not follow.
            return (self.rules.failed(request, Errno::IO, "the device read too little"), vec![]);
        }
        (self.rules.data(request), data)
    }
}

fn errno(error: &Error) -> Errno {
    match error {
        // What the device refuses was in order as far as the client could know.
        Error::TooLong { .. } | Error::Busy(_) | Error::Gone(_) => Errno::IO,
        error => error.errno(),
    }
}
