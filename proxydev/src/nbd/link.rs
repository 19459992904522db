//! One connection's outgoing messages, and its thread's waiting.
//!
//! The connection's thread reads, and sends what is queued before it waits. Others queue messages:
//! completions on threads of devices, submitters of requests. While the connection's thread runs,
//! queueing is all they do; while it is parked they send as much as the socket takes, and wake it
//! only for the rest, or where it waits for just such a message.

use std::collections::VecDeque;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oslet::sys::vectored::Piece;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::stream::{self, Stream};
use crate::data::Data;
use crate::limits;

/// How long the thread looks for input before it parks, where that was worth it lately: about what
/// a wake-up costs.
const SPIN: Duration = Duration::from_micros(50);
/// If so much time is between two looks, somebody else wants the processor.
const CONTENDED: Duration = Duration::from_micros(15);
/// Where it was not, it is tried each so many times.
const SPIN_RETRY: u32 = 32;

/// Bytes to be sent in one piece.
#[derive(Default)]
pub(crate) struct Message {
    /// First these.
    pub(crate) head: Vec<u8>,
    /// Then these, from where they lie.
    pub(crate) data: Vec<Bytes>,
    /// Counts until all is sent.
    pub(crate) _held: Option<Held>,
}

/// Data of a message.
pub(crate) enum Bytes {
    /// Let go when they are sent.
    Own(Data),
    /// Kept by others as well, to be sent again.
    Shared(Arc<Data>),
}

impl Deref for Bytes {
    type Target = Data;

    fn deref(&self) -> &Data {
        match self {
            Self::Own(data) => data,
            Self::Shared(data) => data,
        }
    }
}

/// How much a connection has in hand.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
}

/// One request in hand, and its bytes.
pub(crate) struct Held {
    counts: Arc<Counts>,
    bytes: usize,
}

impl Counts {
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Held {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Held { counts: Arc::clone(self), bytes }
    }

    /// Whether a request of so many bytes has room.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        let (requests, held) =
            (self.requests.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire));
        requests == 0
            || (requests < limits::NBD_MAX_REQUESTS && held + bytes <= limits::NBD_MAX_BYTES)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counts.bytes.fetch_sub(self.bytes, Ordering::Release);
        self.counts.requests.fetch_sub(1, Ordering::Release);
    }
}

impl Message {
    fn len(&self) -> usize {
        self.head.len() + self.data.iter().map(|data| data.len()).sum::<usize>()
    }

    /// Its bytes from the one with this number on.
    fn pieces<'a>(&'a self, from: usize, out: &mut Vec<Piece<'a>>) -> Option<()> {
        let mut skip = from;
        let mut push = |piece: Piece<'a>| {
            let cut = skip.min(piece.len());
            skip -= cut;
            if cut < piece.len() {
                out.push(piece.skip(cut));
            }
        };
        push(Piece::Bytes(&self.head));
        for data in &self.data {
            for index in 0..data.slices().len() {
                push(Piece::kept(&**data, data.bytes(index)?));
            }
        }
        Some(())
    }
}

/// What the thread waits for besides room to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum For {
    /// Something to read.
    Input,
    /// A message of somebody else's, or [`Link::ring`].
    Message,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) stream: Stream,
    bell: OwnedFd,
    out: Mutex<Out>,
    spins: bool,
}

#[derive(Default)]
struct Out {
    queue: VecDeque<Message>,
    /// Bytes of the first that are sent.
    sent: usize,
    /// Somebody is sending.
    sending: bool,
    /// The socket takes nothing: the connection's thread waits until it does.
    blocked: bool,
    parked: bool,
    /// It waits for a message.
    wanted: bool,
    broken: bool,
}

impl Link {
    pub(crate) fn new(stream: Stream) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let spins = cpus > 1 && stream.is_local();
        Ok(Self { stream, bell, out: Mutex::default(), spins })
    }

    /// Queues a message, and sends it if the connection's thread does not.
    pub(crate) fn push(&self, message: Message) {
        let mut out = self.out.lock();
        if out.broken {
            return;
        }
        out.queue.push_back(message);
        if !out.parked || out.sending || out.blocked {
            if out.wanted {
                drop(out);
                self.ring();
            }
            return;
        }
        out.sending = true;
        let wanted = out.wanted;
        drop(out);
        self.drain();
        let out = self.out.lock();
        let left = out.blocked || out.broken || wanted;
        drop(out);
        if left {
            self.ring();
        }
    }

    /// Wakes the connection's thread.
    pub(crate) fn ring(&self) {
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Sends what is queued, as far as the socket takes it. By the connection's thread.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut out = self.out.lock();
        if out.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if out.sending || out.blocked || out.queue.is_empty() {
            return Ok(());
        }
        out.sending = true;
        drop(out);
        self.drain();
        Ok(())
    }

    /// Whether nothing is left to be sent.
    pub(crate) fn is_drained(&self) -> bool {
        let out = self.out.lock();
        out.broken || (out.queue.is_empty() && !out.sending && !out.blocked)
    }

    /// Nothing is sent any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.out.lock().broken
    }

    /// Gives up: what is queued is dropped.
    pub(crate) fn give_up(&self) {
        let mut out = self.out.lock();
        out.broken = true;
        let queue = std::mem::take(&mut out.queue);
        drop(out);
        drop(queue);
        self.stream.close();
        self.ring();
    }

    /// Sends until nothing is left or the socket takes no more. By whoever set `sending`.
    fn drain(&self) {
        loop {
            let (mut batch, sent) = {
                let mut out = self.out.lock();
                let count = out.queue.len().min(limits::NBD_BATCH);
                if count == 0 {
                    // With TLS something may be left in its buffer.
                    let flushed = self.stream.flush();
                    self.settle(&mut out, flushed.err());
                    out.sending = false;
                    return;
                }
                (out.queue.drain(..count).collect::<VecDeque<_>>(), out.sent)
            };
            let result = self.send(&mut batch, sent);
            let mut out = self.out.lock();
            let error = match result {
                Ok(sent) => {
                    out.sent = sent;
                    None
                }
                Err(error) => Some(error),
            };
            if !batch.is_empty() {
                while let Some(message) = batch.pop_back() {
                    out.queue.push_front(message);
                }
            }
            if error.is_some() {
                self.settle(&mut out, error);
                out.sending = false;
                return;
            }
        }
    }

    fn settle(&self, out: &mut Out, error: Option<io::Error>) {
        match error {
            None => {}
            Some(error) if error.kind() == io::ErrorKind::WouldBlock => out.blocked = true,
            Some(_) => {
                out.broken = true;
                out.queue.clear();
            }
        }
    }

    /// Sends from the front of `batch`, whose first message has `sent` bytes sent; takes out what
    /// is sent whole, and returns how much of the next one is.
    fn send(&self, batch: &mut VecDeque<Message>, sent: usize) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(batch.len() * 2);
        let mut skip = sent;
        for message in batch.iter() {
            let unmapped = || io::Error::other("data of a message are not mapped");
            message.pieces(skip, &mut pieces).ok_or_else(unmapped)?;
            skip = 0;
        }
        let mut done = sent + self.stream.send(&pieces)?;
        drop(pieces);
        while let Some(first) = batch.front() {
            let len = first.len();
            if done < len {
                break;
            }
            done -= len;
            batch.pop_front();
        }
        Ok(done)
    }

    /// Parks the thread until there is what it waits for, or the time is up
    /// ([`io::ErrorKind::TimedOut`]). What is queued is sent meanwhile.
    pub(crate) fn park(&self, what: For, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let queued = !self.out.lock().queue.is_empty();
            self.flush()?;
            let mut out = self.out.lock();
            if what == For::Message && queued && !out.blocked {
                return Ok(());
            }
            if !out.queue.is_empty() && !out.blocked && !out.sending {
                continue;
            }
            out.parked = true;
            out.wanted = what == For::Message;
            let blocked = out.blocked;
            drop(out);

            let mut interest = PollFlags::empty();
            interest.set(PollFlags::IN, what == For::Input);
            interest.set(PollFlags::OUT, blocked);
            let mut fds =
                [PollFd::new(&self.stream, interest), PollFd::new(&self.bell, PollFlags::IN)];
            let ready = stream::wait(&mut fds, deadline);
            let (socket, rung) = (fds[0].revents(), !fds[1].revents().is_empty());

            let mut out = self.out.lock();
            out.parked = false;
            out.wanted = false;
            if ready? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let over = PollFlags::ERR | PollFlags::HUP;
            if socket.intersects(PollFlags::OUT | over) {
                out.blocked = false;
            }
            drop(out);
            if rung {
                let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            }
            let input = socket.intersects(PollFlags::IN | over);
            if rung || input || (what == For::Message && socket.intersects(over)) {
                return self.flush();
            }
        }
    }
}

/// Whether looking for input before parking is worth it.
#[derive(Default)]
pub(crate) struct Spinner {
    misses: u32,
}

impl Spinner {
    /// Looks for a while; true if `look` found something.
    pub(crate) fn spin(
        &mut self,
        link: &Link,
        mut look: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<bool> {
        if !link.spins || (self.misses >= 4 && !self.misses.is_multiple_of(SPIN_RETRY)) {
            self.misses = self.misses.wrapping_add(1).max(4);
            return Ok(false);
        }
        let start = Instant::now();
        let mut last = start;
        loop {
            if look()? {
                self.misses = 0;
                return Ok(true);
            }
            std::thread::yield_now();
            let now = Instant::now();
            if now - last > CONTENDED {
                // The other side may be who waits for it: a looker is in its way.
                self.misses = self.misses.max(4);
                break;
            }
            if now - start > SPIN {
                break;
            }
            last = now;
        }
        self.misses = self.misses.wrapping_add(1);
        Ok(false)
    }
}
