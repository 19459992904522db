//! The thread of one connection: takes answers in, and connects anew when the connection breaks.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::negotiate;
use super::work::Work;
use super::{Shared, message, name_of};
use crate::nbd::inbox::Inbox;
use crate::nbd::link::{For, Link, Message, Spinner};
use crate::nbd::wire::{
    self, Chunk, ChunkFlags, Command, CommandFlags, Header, Mode, Payload, chunk,
};
use crate::{Error, Result, limits};

/// How often a waiting thread looks around.
const LOOK: Duration = Duration::from_millis(200);
/// The shortest and the longest time between two tries to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Bytes that are read ahead: some headers, and little enough of data to be copied.
const AHEAD: usize = 256;
/// Chunks of one reply.
const MAX_CHUNKS: u32 = 1 << 16;

/// Serves one lane until the device is dropped.
pub(super) fn run(shared: &Shared, index: usize, first: Option<Arc<Link>>) {
    let mut link = first;
    let mut since = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        if let Some(link) = link.take() {
            let began = Instant::now();
            let served = Receiver::new(shared, index, &link).run();
            disconnect(shared, index, &link);
            if served.is_ok() {
                break;
            }
            since = Instant::now();
            // One that hangs up again and again is asked less and less often.
            if began.elapsed() >= PAUSES.1 {
                pause = PAUSES.0;
            }
        }
        expire(shared, index, since);
        if shared.stopping() && shared.lanes[index].state.lock().work.is_empty() {
            break;
        }
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(PAUSES.1);
        link = connect(shared, index);
    }
    let left = std::mem::take(&mut shared.lanes[index].state.lock().work);
    left.into_values().for_each(|work| shared.lost(work));
}

/// What was sent over a connection that broke is to be sent anew.
fn disconnect(shared: &Shared, index: usize, link: &Link) {
    link.give_up();
    let mut state = shared.lanes[index].state.lock();
    state.link = None;
    for work in state.work.values_mut() {
        work.since.get_or_insert_with(Instant::now);
        work.rewind();
    }
}

/// Fails what has waited for too long; all of it when the server has been gone for so long.
fn expire(shared: &Shared, index: usize, since: Instant) {
    let mut state = shared.lanes[index].state.lock();
    state.given_up = since.elapsed() >= shared.limit;
    let all = state.given_up;
    let over = |work: &mut Work| all || work.since.is_some_and(|at| at.elapsed() >= shared.limit);
    let lost: Vec<_> = state.work.extract_if(|_, work| over(work)).collect();
    drop(state);
    lost.into_iter().for_each(|(_, work)| shared.lost(work));
}

/// Connects anew, if it is the same disk, and sends what is in hand.
fn connect(shared: &Shared, index: usize) -> Option<Arc<Link>> {
    let longest = Duration::from_millis(limits::NBD_HANDSHAKE_MS).min(shared.limit.max(LOOK));
    let deadline = Instant::now() + longest;
    let connected =
        negotiate::connect(&shared.uri, shared.tls.as_ref(), shared.effort, deadline).ok();
    // With another size or other abilities it is another disk.
    let (stream, _) = connected.filter(|(_, terms)| *terms == shared.terms)?;
    let link = Arc::new(Link::new(stream).ok()?);
    let mut state = shared.lanes[index].state.lock();
    state.given_up = false;
    state.link = Some(Arc::clone(&link));
    for (cookie, work) in &state.work {
        link.push(message(&shared.terms, work, *cookie));
    }
    drop(state);
    link.flush().ok()?;
    Some(link)
}

struct Receiver<'s> {
    shared: &'s Shared,
    index: usize,
    link: &'s Link,
    inbox: Inbox,
    spinner: Spinner,
    /// When something last arrived, or nothing was waited for.
    heard: Instant,
    /// In the middle of an answer.
    busy: bool,
}

impl<'s> Receiver<'s> {
    fn new(shared: &'s Shared, index: usize, link: &'s Link) -> Self {
        let (inbox, spinner) = (Inbox::new(), Spinner::default());
        Self { shared, index, link, inbox, spinner, heard: Instant::now(), busy: false }
    }

    /// Takes answers in. Ends well when the device is dropped and nothing is in hand.
    fn run(mut self) -> Result<()> {
        let mode = self.shared.terms.mode;
        loop {
            while let Some((header, len)) = Header::decode(mode, self.inbox.bytes())? {
                self.inbox.consume(len);
                self.answer(header)?;
            }
            self.link.flush().map_err(broken)?;
            if self.shared.stopping() && self.is_idle() {
                self.farewell();
                return Ok(());
            }
            self.fill(AHEAD)?;
        }
    }

    fn is_idle(&self) -> bool {
        !self.busy && self.shared.lanes[self.index].state.lock().work.is_empty()
    }

    fn farewell(&self) {
        let mut head = Vec::new();
        let (command, flags) = (Command::Disconnect, CommandFlags::empty());
        let request = wire::Request { command, flags, cookie: 0, offset: 0, len: 0 };
        request.encode(self.shared.terms.mode, &mut head);
        self.link.push(Message { head, data: Vec::new(), _held: None });
        // The server sees the end of the stream as well.
        let _ = self.link.flush();
    }

    /// Receives until there are `most` bytes at most; returns early when the device is dropped.
    fn fill(&mut self, most: usize) -> Result<()> {
        let Self { inbox, link, spinner, .. } = self;
        let mut look = || match inbox.fill(&link.stream, most) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        };
        let found = look().and_then(|found| match found {
            true => Ok(true),
            false => spinner.spin(link, || {
                link.flush()?;
                look()
            }),
        });
        match found.map_err(broken)? {
            true => {
                self.heard = Instant::now();
                Ok(())
            }
            false => self.park(),
        }
    }

    /// Waits for input; an error when the server has been silent for too long.
    fn park(&mut self) -> Result<()> {
        match self.link.park(For::Input, Some(Instant::now() + LOOK)) {
            Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(broken(error)),
            Err(_) if self.is_idle() => self.heard = Instant::now(),
            Err(_) if self.heard.elapsed() >= self.shared.limit => {
                return Err(wire::bad("the server does not answer".into()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Exactly so many bytes of a payload that is not data.
    fn payload(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > limits::NBD_MAX_CHUNK as u64 {
            return Err(wire::bad(format!("a chunk of {len} bytes")));
        }
        let mut payload = Vec::new();
        while payload.len() < len as usize {
            let missing = len as usize - payload.len();
            if self.inbox.bytes().is_empty() {
                self.fill(missing)?;
            }
            let bytes = self.inbox.bytes();
            let count = bytes.len().min(missing);
            payload.extend(&bytes[..count]);
            self.inbox.consume(count);
        }
        Ok(payload)
    }

    fn answer(&mut self, header: Header) -> Result<()> {
        let (Header::Simple { cookie, .. } | Header::Chunk(Chunk { cookie, .. })) = header;
        let lane = &self.shared.lanes[self.index];
        let work = lane.state.lock().work.remove(&cookie);
        let mut work = work.ok_or_else(|| wire::bad(format!("an answer to nothing, {cookie}")))?;
        self.busy = true;
        let done = match header {
            Header::Simple { error, .. } => self.simple(&mut work, error),
            Header::Chunk(chunk) => self.chunk(&mut work, chunk),
        };
        self.busy = false;
        match done {
            Ok(true) => self.step_done(work, cookie),
            Ok(false) => drop(lane.state.lock().work.insert(cookie, work)),
            Err(error) => {
                // It is sent anew with the others.
                lane.state.lock().work.insert(cookie, work);
                return Err(error);
            }
        }
        Ok(())
    }

    fn simple(&mut self, work: &mut Work, error: u32) -> Result<bool> {
        let request = work.steps.front().map(|step| step.request);
        let Some(request) = request else { return Ok(true) };
        if error != 0 {
            work.error = Some((failure(error)?, String::new()));
        } else if request.command == Command::Read {
            if self.shared.terms.mode != Mode::Simple {
                return Err(wire::bad("a simple reply to a read".into()));
            }
            self.data(work, 0, request.len)?;
        }
        Ok(true)
    }

    /// Takes a chunk in; whether it was the last of its reply.
    fn chunk(&mut self, work: &mut Work, chunk: Chunk) -> Result<bool> {
        let request = work.steps.front().map(|step| step.request);
        let Some(request) = request else { return Ok(true) };
        work.chunks += 1;
        if work.chunks > MAX_CHUNKS {
            return Err(wire::bad("a reply without end".into()));
        }
        let place = |offset: u64, len: u64| {
            let from = offset
                .checked_sub(request.offset)
                .filter(|from| from.checked_add(len).is_some_and(|end| end <= request.len));
            let from = from.filter(|_| request.command == Command::Read);
            from.ok_or_else(|| {
                wire::bad(format!("{len} bytes at {offset}, which were not asked for"))
            })
        };
        if chunk.kind == chunk::OFFSET_DATA {
            let offset = self.payload(8.min(chunk.len))?;
            let offset = offset.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            let offset = offset.ok_or_else(|| wire::bad("data without a place".into()))?;
            let len = chunk.len - 8;
            self.data(work, place(offset, len)?, len)?;
        } else {
            let payload = self.payload(chunk.len)?;
            match wire::decode_payload(chunk.kind, &payload)? {
                Payload::Hole { offset, len } => {
                    let from = place(offset, len.into())?;
                    let target = work.target(&self.shared.arena)?;
                    target.window(from as usize, len as usize).map_err(broken)?;
                    target.zero().map_err(broken)?;
                }
                Payload::Error { error, message, .. } => {
                    work.error = Some((failure(error)?, message));
                }
                Payload::None => {}
                Payload::Status { .. } => return Err(wire::bad("a status unasked".into())),
            }
        }
        Ok(chunk.flags.contains(ChunkFlags::DONE))
    }

    /// Receives bytes of a read.
    fn data(&mut self, work: &mut Work, from: u64, len: u64) -> Result<()> {
        match work.target(&self.shared.arena) {
            Ok(target) => {
                target.window(from as usize, len as usize).map_err(broken)?;
                while target.left() > 0 {
                    match self.inbox.receive(&self.link.stream, target, AHEAD) {
                        Ok(()) => self.heard = Instant::now(),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.park()?,
                        Err(error) => return Err(broken(error)),
                    }
                }
            }
            Err(error) => {
                // There is no room for it: the bytes are passed over.
                work.error = Some((error.errno(), error.to_string()));
                let mut left = len;
                while left > 0 {
                    let part = left.min(limits::NBD_INBOX as u64);
                    self.payload(part)?;
                    left -= part;
                }
            }
        }
        Ok(())
    }

    /// The present step is answered: the next one, or the end.
    fn step_done(&mut self, mut work: Work, cookie: u64) {
        let step = work.steps.pop_front();
        let (what, offset) = step
            .as_ref()
            .map_or(("request", 0), |step| (name_of(step.request.command), step.request.offset));
        let read = step.as_ref().is_some_and(|step| step.request.command == Command::Read);
        drop(step);
        let shared = self.shared;
        if let Some((errno, _)) = work.error.take() {
            return shared.complete(work, Err((errno, what, offset)));
        }
        if read {
            let target = work.target.take().filter(|target| target.is_whole());
            let data = target.map(|target| target.into_data(&shared.arena));
            // A server that sends less than was asked for has not read it.
            let data = data.and_then(std::result::Result::ok).ok_or((Errno::IO, what, offset));
            return shared.complete(work, data);
        }
        if work.steps.is_empty() {
            return shared.complete(work, Ok(crate::Data::empty()));
        }
        work.chunks = 0;
        let next = message(&shared.terms, &work, cookie);
        shared.lanes[self.index].state.lock().work.insert(cookie, work);
        self.link.push(next);
    }
}

/// What a server answers. One that is shutting down has done nothing: what was asked is asked again
/// where the next one listens.
fn failure(error: u32) -> Result<Errno> {
    match wire::error_from_wire(error) {
        Errno::SHUTDOWN => Err(wire::bad("the server is shutting down".into())),
        errno => Ok(errno),
    }
}

fn broken(error: io::Error) -> Error {
    Error::Protocol(format!("connection: {error}"))
}
