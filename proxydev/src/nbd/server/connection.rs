//! One connection of a server, from its first byte to its last.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oslet::limits::FRAME_SIZE;
use oslet::region::OwnedFrame;
use oslet::sys::vectored::Piece;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustls::{Connection as Tls, ServerConnection};

use super::pending::Pending;
use super::{Counted, Shared};
use crate::device::{Extent, Operation};
use crate::nbd::handshake::{Agreed, Handshake, Step};
use crate::nbd::inbox::{Inbox, Target};
use crate::nbd::link::{Counts, For, Link, Message, Spinner};
use crate::nbd::stream::Stream;
use crate::nbd::transmission::{Rules, Verdict};
use crate::nbd::wire::{self, Allocation, BlockDescriptor, Command, CommandFlags, Mode, Request};
use crate::{BlockDevice, Error, Result, limits};

/// How often a thread in its handshake looks whether the server ends.
const LOOK: Duration = Duration::from_millis(200);
/// How long, and how often, a write waits for frames to come free.
const FRAME_WAITS: (u32, Duration) = (100, Duration::from_millis(10));

/// Serves a connection until it ends.
pub(super) fn serve(counted: &Counted, stream: Stream) -> Result<()> {
    let shared = &counted.shared;
    stream.prepare().map_err(broken)?;
    let deadline = Instant::now() + shared.options.handshake;
    let Some((stream, inbox, agreed)) = negotiate(shared, stream, deadline)? else { return Ok(()) };
    let link = Arc::new(Link::new(stream).map_err(broken)?);
    counted.register(&link);
    let mut connection = Connection::new(shared, &link, inbox, *agreed);
    let result = connection.run();
    if result.is_ok() {
        connection.finish();
    }
    link.give_up();
    result
}

fn broken(error: io::Error) -> Error {
    Error::Protocol(format!("connection: {error}"))
}

/// The handshake: `None` where the client wanted no more.
fn negotiate(
    shared: &Shared,
    mut stream: Stream,
    deadline: Instant,
) -> Result<Option<(Stream, Inbox, Box<Agreed>)>> {
    let tls = &shared.options.tls;
    let mut handshake = Handshake::new(Arc::clone(&shared.exports), tls.policy());
    send_all(&stream, &wire::greeting(), deadline)?;
    let (mut held, mut out) = (Vec::new(), Vec::new());
    loop {
        let (taken, step) = handshake.advance(&held, &mut out)?;
        held.drain(..taken);
        if !out.is_empty() && (taken == 0 || !matches!(step, Step::More)) {
            send_all(&stream, &out, deadline)?;
            out.clear();
        }
        match step {
            Step::More if taken > 0 => {}
            Step::More => receive(shared, &stream, &mut handshake, &mut held, deadline)?,
            Step::End => return Ok(None),
            Step::StartTls => {
                // What was sent in the clear must not count as sent inside.
                let config = tls.config().filter(|_| held.is_empty());
                let config = config.ok_or_else(|| wire::bad("bytes behind STARTTLS".into()))?;
                let tls = ServerConnection::new(Arc::clone(config));
                let tls = tls.map_err(|error| wire::bad(format!("tls: {error}")))?;
                stream = stream.secure(Tls::Server(tls), deadline).map_err(broken)?;
                handshake.secured();
            }
            Step::Done(agreed) => {
                let mut inbox = Inbox::new();
                inbox.preload(&held);
                return Ok(Some((stream, inbox, agreed)));
            }
        }
    }
}

/// Adds what arrives to `held`.
fn receive(
    shared: &Shared,
    stream: &Stream,
    handshake: &mut Handshake,
    held: &mut Vec<u8>,
    deadline: Instant,
) -> Result<()> {
    let mut bytes = [0; limits::NBD_INBOX];
    loop {
        if shared.stopping() {
            handshake.stop();
        }
        match stream.recv(&mut [io::IoSliceMut::new(&mut bytes)]) {
            Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                held.extend(&bytes[..count]);
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(broken(error)),
        }
        let look = deadline.min(Instant::now() + LOOK);
        match stream.wait(PollFlags::IN, Some(look)) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && look < deadline => {
                if shared.stopping() {
                    return Err(broken(error));
                }
            }
            result => result.map_err(broken)?,
        }
    }
}

fn send_all(stream: &Stream, mut bytes: &[u8], deadline: Instant) -> Result<()> {
    loop {
        let sent = match bytes.is_empty() {
            true => stream.flush().map(|()| 0),
            false => stream.send(&[Piece::Bytes(bytes)]),
        };
        match sent {
            Ok(0) => return Ok(()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.wait(PollFlags::OUT, Some(deadline)).map_err(broken)?;
            }
            Err(error) => return Err(broken(error)),
        }
    }
}

/// A connection that makes requests.
struct Connection<'s> {
    shared: &'s Shared,
    link: Arc<Link>,
    inbox: Inbox,
    device: Arc<dyn BlockDevice>,
    rules: Rules,
    counts: Arc<Counts>,
    spinner: Spinner,
    /// How far it is read ahead.
    ahead: usize,
}

impl<'s> Connection<'s> {
    fn new(shared: &'s Shared, link: &Arc<Link>, inbox: Inbox, agreed: Agreed) -> Self {
        let Agreed { export, mode, allocation } = agreed;
        let rules = Rules { geometry: export.geometry(mode), mode, allocation };
        Self {
            shared,
            link: Arc::clone(link),
            inbox,
            device: export.device,
            rules,
            counts: Arc::default(),
            spinner: Spinner::default(),
            ahead: limits::NBD_INBOX,
        }
    }

    /// Carries out requests until there are no more.
    fn run(&mut self) -> Result<()> {
        let len = Request::header_len(self.rules.mode);
        loop {
            while self.inbox.bytes().len() >= len {
                let request = Request::decode(self.rules.mode, self.inbox.bytes())?;
                self.inbox.consume(len);
                if !self.request(request)? {
                    return Ok(());
                }
            }
            self.link.flush().map_err(broken)?;
            let idle = self.counts.requests.load(Ordering::Acquire) == 0;
            let ended = self.shared.stopping() && idle && self.link.is_drained();
            if !self.more(ended)? {
                return Ok(());
            }
        }
    }

    /// What is in hand is finished and answered, if the client takes the answers in time.
    fn finish(&mut self) {
        let limit = Instant::now() + Duration::from_millis(limits::NBD_FINISH_MS);
        while self.counts.requests.load(Ordering::Acquire) > 0 || !self.link.is_drained() {
            if self.link.park(For::Message, Some(Instant::now() + LOOK)).is_err()
                && (self.link.is_broken() || Instant::now() > limit)
            {
                return;
            }
        }
    }

    /// Waits for more bytes; false at an end between requests, or if there are none now and
    /// nothing is waited for.
    fn more(&mut self, ended: bool) -> Result<bool> {
        let begun = !self.inbox.bytes().is_empty();
        match self.inbox.fill(&self.link.stream, self.ahead) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !begun => {
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(broken(error)),
        }
        if ended {
            return Ok(false);
        }
        self.wait().map_err(broken)?;
        Ok(true)
    }

    /// Waits until there may be something to read; it may be read already.
    fn wait(&mut self) -> io::Result<()> {
        let Self { link, inbox, device, ahead, spinner, .. } = self;
        let found = spinner.spin(link, || {
            device.poll();
            link.flush()?;
            match inbox.fill(&link.stream, *ahead) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(error),
            }
        });
        match found {
            // Read again, the stream says so again.
            Ok(true) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            Err(_) => Ok(()),
            Ok(false) => self.link.park(For::Input, None),
        }
    }

    /// Carries out a request whose header was read; false if it was the last.
    fn request(&mut self, request: Request) -> Result<bool> {
        self.ahead = limits::NBD_INBOX;
        let verdict = match self.rules.judge(&request)? {
            Verdict::Do | Verdict::Nothing if self.shared.stopping() => {
                Verdict::Refuse(Errno::SHUTDOWN, "the server is about to end")
            }
            verdict => verdict,
        };
        let transfer = matches!(request.command, Command::Read | Command::Write);
        let bytes = if transfer && verdict == Verdict::Do { request.len as usize } else { 0 };
        while !self.counts.fits(bytes) {
            self.link.park(For::Message, None).map_err(broken)?;
        }
        let held = Some(self.counts.take(bytes));
        let head = match verdict {
            Verdict::Disconnect => return Ok(false),
            Verdict::Do => {
                let pending = match held {
                    Some(held) => Pending::new(request, self.rules, &self.link, held),
                    None => return Ok(true),
                };
                self.start(&request, &pending)?;
                pending.release();
                return Ok(true);
            }
            Verdict::Nothing => self.rules.done(&request),
            Verdict::Refuse(errno, message) => {
                self.skip(request.payload_len(self.rules.mode))?;
                self.rules.failed(&request, errno, message)
            }
        };
        self.link.push(Message { head, data: Vec::new(), _held: held });
        Ok(true)
    }

    fn start(&mut self, request: &Request, pending: &Arc<Pending>) -> Result<()> {
        let Request { offset, len, flags, .. } = *request;
        let fua = flags.contains(CommandFlags::FUA);
        match request.command {
            Command::Read => {
                for part in parts(offset, len, self.device.info().max_transfer) {
                    let operation = Operation::read(part.start, (part.end - part.start) as u32);
                    pending.submit(&self.device, operation);
                }
            }
            Command::Write => {
                self.write(request, pending, fua)?;
                self.ahead = Request::header_len(self.rules.mode);
            }
            Command::Flush => pending.submit(&self.device, Operation::Flush),
            Command::Trim if fua => {
                pending.submit_durably(&self.device, Operation::Discard { offset, len });
            }
            Command::Trim => pending.submit(&self.device, Operation::Discard { offset, len }),
            Command::WriteZeroes => {
                let may_unmap = !flags.contains(CommandFlags::NO_HOLE);
                let fast = flags.contains(CommandFlags::FAST_ZERO);
                let zeroes = Operation::WriteZeroes { offset, len, may_unmap, fua, fast };
                pending.submit(&self.device, zeroes);
            }
            Command::BlockStatus => self.status(request, pending),
            Command::Disconnect | Command::Cache | Command::Other(_) => {}
        }
        Ok(())
    }

    /// Receives a write's payload, each part into frames that then go to the device.
    fn write(&mut self, request: &Request, pending: &Arc<Pending>, fua: bool) -> Result<()> {
        let ahead = Request::header_len(self.rules.mode);
        let end = request.offset + request.len;
        for part in parts(request.offset, request.len, self.device.info().max_transfer) {
            let len = (part.end - part.start) as usize;
            let Some(frames) = self.frames(len.div_ceil(FRAME_SIZE))? else {
                pending.fail(Errno::NOMEM, "no memory for the data".into());
                return self.skip(end - part.start);
            };
            let mut target = Target::new(frames, len);
            while target.left() > 0 {
                // What lies behind the last part is the next header.
                let ahead = if part.end == end { ahead } else { 0 };
                match self.inbox.receive(&self.link.stream, &mut target, ahead) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.link.park(For::Input, None).map_err(broken)?;
                    }
                    Err(error) => return Err(broken(error)),
                }
            }
            match target.into_data(&self.shared.arena) {
                Ok(data) => {
                    let operation = Operation::Write { offset: part.start, data, fua };
                    pending.submit(&self.device, operation);
                }
                Err(error) => {
                    pending.fail(error.errno(), error.to_string());
                    return self.skip(end - part.end);
                }
            }
        }
        Ok(())
    }

    /// Frames for a part of a write; waits a while for some that others hold.
    fn frames(&self, count: usize) -> Result<Option<Vec<OwnedFrame>>> {
        let (waits, pause) = FRAME_WAITS;
        for _ in 0..waits {
            if let Ok(frames) = self.shared.arena.alloc_many(count) {
                return Ok(Some(frames));
            }
            match self.link.park(For::Message, Some(Instant::now() + pause)) {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(broken(error)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Passes over a payload.
    fn skip(&mut self, mut count: u64) -> Result<()> {
        loop {
            let there = count.min(self.inbox.bytes().len() as u64);
            self.inbox.consume(there as usize);
            count -= there;
            if count == 0 {
                return Ok(());
            }
            let most = count.min(limits::NBD_INBOX as u64) as usize;
            match self.inbox.fill(&self.link.stream, most) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.link.park(For::Input, None).map_err(broken)?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Answers how a range is stored.
    fn status(&self, request: &Request, pending: &Arc<Pending>) {
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let most = if one { 1 } else { limits::NBD_MAX_EXTENTS };
        match self.device.extents(request.offset, request.len, most) {
            Ok(extents) => {
                let block = self.rules.geometry.block.into();
                let blocks = descriptors(self.rules.mode, &extents, request.len, block, most);
                pending.answer(self.rules.status(request, &blocks));
            }
            Err(error) => pending.fail(error.errno(), error.to_string()),
        }
    }
}

/// What a client is told of extents: whole blocks, neighbours of one kind joined, no more than was
/// asked for, and lengths that fit.
fn descriptors(
    mode: Mode,
    extents: &[Extent],
    len: u64,
    block: u64,
    most: usize,
) -> Vec<BlockDescriptor> {
    let mut blocks: Vec<BlockDescriptor> = Vec::new();
    let (mut at, mut end) = (0, 0);
    for extent in extents {
        end = len.min(end + extent.len);
        // A block that is partly data is data.
        let to = match extent.hole && end < len {
            true => end / block * block,
            false => len.min(end.next_multiple_of(block)),
        };
        if to <= at {
            continue;
        }
        let mut status = Allocation::empty();
        status.set(Allocation::HOLE, extent.hole);
        status.set(Allocation::ZERO, extent.zero);
        let status = u64::from(status.bits());
        match blocks.last_mut().filter(|last| last.status == status) {
            Some(last) => last.len += to - at,
            None => blocks.push(BlockDescriptor { len: to - at, status }),
        }
        at = to;
    }
    if blocks.is_empty() {
        blocks.push(BlockDescriptor { len, status: 0 });
    }
    blocks.truncate(most);
    if mode != Mode::Extended {
        let largest = u64::from(u32::MAX) / block * block;
        if let Some(long) = blocks.iter().position(|block| block.len > largest) {
            blocks.truncate(long + 1);
            blocks[long].len = largest;
        }
    }
    blocks
}

/// A range in parts that a device takes.
fn parts(offset: u64, len: u64, most: u32) -> impl Iterator<Item = Range<u64>> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let part = at..end.min(at + u64::from(most));
        at = part.end;
        (!part.is_empty()).then_some(part)
    })
}
