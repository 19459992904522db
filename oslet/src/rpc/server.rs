//! The serving side: threads that consume request rings and hand requests to a handler.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rkyv::util::AlignedVec;

use super::{ChannelAnswer, ChannelOffer};
use crate::id::{Epoch, ParticipantId};
use crate::region::Region;
use crate::ring::doorbell::{self, SPIN};
use crate::ring::{Descriptor, HalfOut, Incoming, Outgoing, OwnLine, RingPlace, SendError};
use crate::sync::Ordering;
use crate::{Error, Result, limits};

/// How long an idle server thread sleeps at most.
const IDLE: Duration = Duration::from_secs(1);
/// How soon replies that found no room are tried again.
const RETRY: Duration = Duration::from_millis(1);

/// A request as it arrived: nothing in it is trusted.
#[derive(Debug)]
pub struct Request {
    /// Who asks.
    pub from: ParticipantId,
    /// In which incarnation.
    pub epoch: Epoch,
    /// What is asked.
    pub kind: u16,
    /// Inline arguments.
    pub args: [u64; 3],
    /// The body, copied out; validate it by [`super::access`].
    pub body: AlignedVec,
}

/// Answers requests. Called on the thread that consumes the ring: what takes long (I/O) moves the
/// [`Replier`] elsewhere and returns.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request, now or later.
    fn handle(&self, request: Request, replier: Replier);

    /// A peer's ring cannot be what an honest peer writes; it is not listened to any more.
    fn broken(&self, peer: ParticipantId, epoch: Epoch, error: Error);
}

/// The obligation to answer one request. Dropped without an answer, it answers EIO.
#[derive(Debug)]
pub struct Replier {
    port: Arc<ReplyPort>,
    id: u64,
    kind: u16,
    answered: bool,
}

impl Replier {
    /// Answers with inline results and a body (at most [`limits::MAX_BODY`] bytes).
    pub fn ok(self, args: [u64; 3], body: &[u8]) {
        self.reply(0, args, body);
    }

    /// Answers with an errno.
    pub fn error(self, errno: i32) {
        self.reply(u16::try_from(errno).unwrap_or(EIO), [0; 3], &[]);
    }

    fn reply(mut self, status: u16, args: [u64; 3], body: &[u8]) {
        self.answered = true;
        self.send(status, args, body);
    }

    fn send(&self, status: u16, args: [u64; 3], body: &[u8]) {
        let descriptor = Descriptor {
            id: self.id,
            from_epoch: self.port.own_epoch.0,
            to_epoch: self.port.peer_epoch.0,
            kind: self.kind,
            status,
            args,
            ..Descriptor::default()
        };
        self.port.send(descriptor, body);
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if !self.answered {
            self.send(EIO, [0; 3], &[]);
        }
    }
}

const EIO: u16 = 5;

#[derive(Debug)]
struct ReplyPort {
    own_epoch: Epoch,
    peer_epoch: Epoch,
    state: Mutex<PortState>,
}

#[derive(Debug)]
struct PortState {
    outgoing: Outgoing,
    /// Replies that found no room. An honest peer has at most a ring's worth in flight.
    backlog: VecDeque<(Descriptor, Vec<u8>)>,
    broken: bool,
}

impl ReplyPort {
    fn send(&self, descriptor: Descriptor, body: &[u8]) {
        let mut state = self.state.lock();
        if state.broken {
            return;
        }
        if !state.backlog.is_empty() {
            state.queue(descriptor, body);
            return;
        }
        match state.outgoing.send(descriptor, body) {
            Ok(()) => {
                state.outgoing.ring_bell();
            }
            Err(SendError::Full) => state.queue(descriptor, body),
            // The reply cannot be sent at all; its caller must still hear something.
            Err(SendError::Failed(_)) => {
                let failed = Descriptor { status: EIO, args: [0; 3], ..descriptor };
                if state.outgoing.send(failed, &[]).is_err() {
                    state.broken = true;
                }
                state.outgoing.ring_bell();
            }
        }
    }

    /// Sends what found no room before. Returns whether some is left.
    fn drain(&self) -> bool {
        let mut state = self.state.lock();
        let PortState { outgoing, backlog, broken } = &mut *state;
        while let Some((descriptor, body)) = backlog.front() {
            match outgoing.send(*descriptor, body) {
                Ok(()) => drop(backlog.pop_front()),
                Err(SendError::Full) => break,
                Err(SendError::Failed(_)) => {
                    *broken = true;
                    backlog.clear();
                }
            }
        }
        outgoing.ring_bell();
        !backlog.is_empty()
    }
}

impl PortState {
    fn queue(&mut self, descriptor: Descriptor, body: &[u8]) {
        if self.backlog.len() >= limits::RING_CAPACITY {
            // It asks without taking answers: a bounded amount is kept for it, no more.
            self.broken = true;
            self.backlog.clear();
            return;
        }
        self.backlog.push_back((descriptor, body.to_vec()));
    }
}

/// The server of one runtime.
pub struct Server {
    region: Arc<Region>,
    handler: Arc<dyn Handler>,
    threads: Mutex<Vec<Thread>>,
}

struct Thread {
    shared: Arc<Shared>,
    join: std::thread::JoinHandle<()>,
}

/// What a serving thread shares with those that give it channels.
struct Shared {
    inbox: Mutex<Inbox>,
    /// Changed and woken with every addition to `inbox`; the thread waits for it beside the rings.
    bell: AtomicU32,
    stop: AtomicBool,
    channels: AtomicU32,
    park: OwnLine,
}

#[derive(Default)]
struct Inbox {
    changes: Vec<Change>,
    /// The thread has ended: what comes is dropped, so that nobody waits for it.
    closed: bool,
}

/// Closes the inbox however the thread ends.
struct Closing<'s>(&'s Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox.lock();
        inbox.closed = true;
        inbox.changes.clear();
    }
}

enum Change {
    Add(Serving),
    Remove(ParticipantId, Epoch, std::sync::mpsc::SyncSender<()>),
}

struct Serving {
    from: ParticipantId,
    epoch: Epoch,
    own_epoch: Epoch,
    requests: Incoming,
    port: Arc<ReplyPort>,
}

impl Shared {
    fn notify(&self, change: Change) {
        let mut inbox = self.inbox.lock();
        if !inbox.closed {
            inbox.changes.push(change);
        }
        drop(inbox);
        self.ring();
    }

    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        // Nothing to do about an error: the word is mapped, and the thread looks again by itself.
        let flags = rustix::thread::futex::Flags::empty();
        let _ = rustix::thread::futex::wake(&self.bell, flags, 1);
    }
}

impl Server {
    /// A server without channels; threads are started with the first.
    pub fn new(region: &Arc<Region>, handler: Arc<dyn Handler>) -> Arc<Self> {
        let region = Arc::clone(region);
        Arc::new(Self { region, handler, threads: Mutex::default() })
    }

    /// Opens this side of a channel that `from` offers, in its incarnation `epoch`.
    ///
    /// # Errors
    /// When its segment is not mapped in that incarnation, the places are outside it, or there is
    /// no room for another ring.
    pub fn accept(
        &self,
        from: ParticipantId,
        epoch: Epoch,
        offer: ChannelOffer,
    ) -> Result<ChannelAnswer> {
        let peer = self.region.segment(from).filter(|peer| peer.epoch() == epoch);
        let peer = peer.ok_or_else(|| Error::Gone(format!("{from:?} epoch {epoch}")))?;
        let own = self.region.own();
        let (replies, line) = (HalfOut::new(own)?, OwnLine::new(own)?);
        let answer = |park: RingPlace| ChannelAnswer {
            replies: replies.place().0,
            requests_head: line.place().0,
            requests_park: park.0,
        };
        let mut threads = self.threads.lock();
        let shared = self.thread_with_room(&mut threads)?;
        let answer = answer(shared.park.place());
        let outgoing = Outgoing::new(
            replies,
            peer,
            RingPlace(offer.replies_head),
            RingPlace(offer.replies_park),
        )?;
        let port = Arc::new(ReplyPort {
            own_epoch: own.epoch(),
            peer_epoch: epoch,
            state: Mutex::new(PortState { outgoing, backlog: VecDeque::new(), broken: false }),
        });
        let requests = Incoming::new(line, peer, RingPlace(offer.requests))?;
        shared.channels.fetch_add(1, Ordering::Relaxed);
        shared.notify(Change::Add(Serving { from, epoch, own_epoch: own.epoch(), requests, port }));
        Ok(answer)
    }

    /// Stops listening to a peer that is gone; returns when no thread looks at its rings any more.
    pub fn drop_peer(&self, who: ParticipantId, epoch: Epoch) {
        let shared: Vec<_> =
            self.threads.lock().iter().map(|thread| Arc::clone(&thread.shared)).collect();
        let (done, finished) = std::sync::mpsc::sync_channel(shared.len());
        for thread in &shared {
            thread.notify(Change::Remove(who, epoch, done.clone()));
        }
        drop(done);
        // Ends with an error when all senders are gone: each thread has answered or ended.
        while finished.recv().is_ok() {}
    }

    /// Ends all threads.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in &threads {
            thread.shared.stop.store(true, Ordering::SeqCst);
            thread.shared.ring();
        }
        for thread in threads {
            // A handler that panicked has ended its thread; there is nothing more to end.
            let _ = thread.join.join();
        }
    }

    fn thread_with_room(&self, threads: &mut Vec<Thread>) -> Result<Arc<Shared>> {
        let room = limits::RINGS_PER_THREAD as u32;
        for thread in threads.iter() {
            if thread.shared.channels.load(Ordering::Relaxed) < room {
                return Ok(Arc::clone(&thread.shared));
            }
        }
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            bell: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            channels: AtomicU32::new(0),
            park: OwnLine::new(self.region.own())?,
        });
        let (mine, handler) = (Arc::clone(&shared), Arc::clone(&self.handler));
        let join = std::thread::Builder::new()
            .name(format!("rpc-{}", threads.len()))
            .spawn(move || serve(&mine, &*handler))
            .map_err(Error::io("start a serving thread"))?;
        threads.push(Thread { shared: Arc::clone(&shared), join });
        Ok(shared)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(shared: &Shared, handler: &dyn Handler) {
    let _closing = Closing(shared);
    let mut channels: Vec<Serving> = Vec::new();
    let mut last_work = Instant::now();
    while !shared.stop.load(Ordering::SeqCst) {
        let bell = shared.bell.load(Ordering::SeqCst);
        take_changes(shared, &mut channels);
        let mut worked = false;
        channels.retain_mut(|channel| match serve_some(channel, handler) {
            Ok(some) => {
                worked |= some;
                true
            }
            Err(error) => {
                shared.channels.fetch_sub(1, Ordering::Relaxed);
                handler.broken(channel.from, channel.epoch, error);
                false
            }
        });
        if worked {
            last_work = Instant::now();
            continue;
        }
        let ready = || {
            channels.iter().any(|channel| channel.requests.ready())
                || shared.bell.load(Ordering::Relaxed) != bell
        };
        // A caller on this very CPU cannot ask anything while this thread polls.
        let here = Some(doorbell::current_cpu());
        let shared_cpu = channels.iter().any(|channel| channel.requests.producer_cpu() == here);
        let spin = if shared_cpu { Duration::ZERO } else { SPIN };
        if doorbell::spin_until(ready, last_work, spin) {
            continue;
        }
        let backlog = channels.iter().filter(|channel| channel.port.drain()).count() > 0;
        let limit = if backlog { RETRY } else { IDLE };
        let mut rings: Vec<_> = channels.iter_mut().map(|c| &mut c.requests).collect();
        doorbell::wait(&shared.park.words, &mut rings, Some((&shared.bell, bell)), limit);
        last_work = Instant::now();
    }
}

fn take_changes(shared: &Shared, channels: &mut Vec<Serving>) {
    let changes = std::mem::take(&mut shared.inbox.lock().changes);
    for change in changes {
        match change {
            Change::Add(channel) => {
                doorbell::note_cpu(&shared.park.words);
                channels.push(channel);
            }
            Change::Remove(who, epoch, done) => {
                let before = channels.len();
                channels.retain(|channel| (channel.from, channel.epoch) != (who, epoch));
                let removed = (before - channels.len()) as u32;
                shared.channels.fetch_sub(removed, Ordering::Relaxed);
                // The asker has given up waiting if this fails.
                let _ = done.send(());
            }
        }
    }
}

/// Serves a bounded number of requests, so that no peer keeps the others waiting.
fn serve_some(channel: &mut Serving, handler: &dyn Handler) -> Result<bool> {
    const TURN: usize = 16;
    for done in 0..TURN {
        let Some((descriptor, body)) = channel.requests.receive()? else {
            return Ok(done > 0);
        };
        let Descriptor { id, kind, args, from_epoch, to_epoch, .. } = descriptor;
        if (from_epoch, to_epoch) != (channel.epoch.0, channel.own_epoch.0) {
            return Err(Error::Corrupt {
                peer: format!("ring from {:?}", channel.from),
                what: format!("a request of epoch {from_epoch} to epoch {to_epoch}"),
            });
        }
        let port = Arc::clone(&channel.port);
        let replier = Replier { port, id, kind, answered: false };
        let (from, epoch) = (channel.from, channel.epoch);
        handler.handle(Request { from, epoch, kind, args, body }, replier);
    }
    Ok(true)
}
