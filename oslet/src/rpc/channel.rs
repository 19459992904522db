//! The calling side of a channel.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rkyv::util::AlignedVec;

use super::{ChannelAnswer, ChannelOffer};
use crate::id::{Epoch, ParticipantId};
use crate::region::{OwnSegment, Region, Ro};
use crate::ring::doorbell::{self, SPIN};
use crate::ring::{Descriptor, Incoming, Outgoing, RingPlace, SendError};
use crate::ring::{HalfOut, OwnLine};
use crate::sync::{AtomicU64, Ordering};
use crate::{Error, Result, limits};

/// How often a parked caller looks whether the channel was closed behind its back. Closing wakes
/// it; this bounds the wait if that wake-up came just before it slept.
const RECHECK: Duration = Duration::from_millis(50);

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Zero, or an errno.
    pub status: u16,
    /// Inline results.
    pub args: [u64; 3],
    /// The body, copied out; validate it by [`super::access`].
    pub body: AlignedVec,
}

/// Called once with the answer to a request, or with why there is none: on a thread that has other
/// answers to hand out, so it should not wait.
pub type Done = Box<dyn FnOnce(Result<Reply>) + Send>;

/// A channel that was offered and not answered yet.
#[derive(Debug)]
pub struct PendingChannel {
    region: Arc<Region>,
    server: ParticipantId,
    epoch: Epoch,
    requests: HalfOut,
    replies: OwnLine,
    park: OwnLine,
}

impl PendingChannel {
    /// Reserves this side of a channel to the runtime `server` in its incarnation `epoch`.
    pub fn new(region: &Arc<Region>, server: ParticipantId, epoch: Epoch) -> Result<Self> {
        let own: &Arc<OwnSegment> = region.own();
        Ok(Self {
            region: Arc::clone(region),
            server,
            epoch,
            requests: HalfOut::new(own)?,
            replies: OwnLine::new(own)?,
            park: OwnLine::new(own)?,
        })
    }

    /// What to send to the server.
    pub fn offer(&self) -> ChannelOffer {
        ChannelOffer {
            requests: self.requests.place().0,
            replies_head: self.replies.place().0,
            replies_park: self.park.place().0,
        }
    }

    /// The channel, once the server has answered.
    pub fn open(self, answer: ChannelAnswer) -> Result<Arc<Channel>> {
        let gone = || Error::Gone(format!("{:?} epoch {}", self.server, self.epoch));
        let peer = self.region.segment(self.server).ok_or_else(gone)?;
        if peer.epoch() != self.epoch {
            return Err(gone());
        }
        let outgoing = Outgoing::new(
            self.requests,
            peer,
            RingPlace(answer.requests_head),
            RingPlace(answer.requests_park),
        )?;
        let incoming = Incoming::new(self.replies, peer, RingPlace(answer.replies))?;
        let bell = incoming.bell().0.clone();
        doorbell::note_cpu(&self.park.words);
        Ok(Arc::new(Channel {
            own_epoch: self.region.own().epoch(),
            server: self.server,
            epoch: self.epoch,
            sending: Mutex::new(Sending { outgoing, next_id: 1 }),
            waiting: Mutex::new(Waiting { done: HashMap::new(), replies: Some(incoming) }),
            changed: Condvar::new(),
            park: self.park,
            bell,
            closed: AtomicBool::new(false),
        }))
    }
}

/// An open channel. Any number of threads may call at once, up to [`limits::RING_CAPACITY`]
/// requests in flight; more wait for their turn.
#[derive(Debug)]
pub struct Channel {
    own_epoch: Epoch,
    server: ParticipantId,
    epoch: Epoch,
    sending: Mutex<Sending>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    park: OwnLine,
    /// The words of the reply ring's tail, to wake our own waiter.
    bell: Ro<AtomicU64>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Sending {
    outgoing: Outgoing,
    next_id: u64,
}

#[derive(Debug)]
struct Waiting {
    /// The requests in flight that somebody cares for.
    done: HashMap<u64, Place>,
    /// The reply ring; one waiting thread at a time takes it and receives for all.
    replies: Option<Incoming>,
}

/// Who is to hear of a request's end.
enum Place {
    /// A thread in [`Channel::call`], which finds the reply here.
    Caller(Option<Reply>),
    /// Whoever passed this to [`Channel::try_start`].
    Later(Later),
}

struct Later {
    done: Done,
    kind: u16,
    deadline: Instant,
    limit: Duration,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Caller(_) => "Caller",
            Self::Later(_) => "Later",
        })
    }
}

impl Channel {
    /// The runtime at the other end.
    pub fn server(&self) -> (ParticipantId, Epoch) {
        (self.server, self.epoch)
    }

    /// Sends a request and waits for its reply, for at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::Gone`] when the peer was fenced or the channel closed - whether
    /// the request was carried out is then unknown - or its ring broke.
    pub fn call(&self, kind: u16, args: [u64; 3], body: &[u8], limit: Duration) -> Result<Reply> {
        let start = Instant::now();
        let deadline = start + limit;
        let id = self.send(kind, args, body, deadline, limit)?;
        let reply = self.wait(id, start, deadline);
        let leftover = self.waiting.lock().done.remove(&id);
        match (reply, leftover) {
            (Ok(reply), _) | (Err(_), Some(Place::Caller(Some(reply)))) => Ok(reply),
            (Err(Error::Timeout { .. }), _) => Err(self.timed_out(kind, limit)),
            (Err(error), _) => Err(error),
        }
    }

    /// Sends a request and returns; `done` is called once, when the reply has come, the time is up
    /// or the peer is gone, by whichever thread then receives: one in [`Self::call`],
    /// [`Self::poll`] or [`Self::attend`]. Somebody must, or nothing is noticed.
    ///
    /// Gives `done` back, uncalled, when there is no room for another request now.
    pub fn try_start(
        &self,
        kind: u16,
        args: [u64; 3],
        body: &[u8],
        limit: Duration,
        done: Done,
    ) -> Option<Done> {
        let deadline = Instant::now() + limit;
        let place = Place::Later(Later { done, kind, deadline, limit });
        match self.try_send(kind, args, body, place) {
            Err((Place::Later(later), None)) => Some(later.done),
            Err((Place::Later(later), Some(error))) => {
                (later.done)(Err(error));
                None
            }
            Ok(_) | Err((Place::Caller(_), _)) => None,
        }
    }

    /// Hands out the replies that are there, without waiting.
    pub fn poll(&self) {
        let mut waiting = self.waiting.lock();
        if let Some(mut replies) = waiting.replies.take_if(|replies| replies.ready()) {
            drop(waiting);
            let now = Instant::now();
            let received = self.receive(&mut replies, 0, now, now);
            self.hand_out(replies, received, 0);
        }
    }

    /// Waits until some replies were handed out or `limit` has passed, and ends the requests of
    /// [`Self::try_start`] whose time is up.
    pub fn attend(&self, limit: Duration) {
        let start = Instant::now();
        let mut waiting = self.waiting.lock();
        let deadlines = waiting.done.values().filter_map(|place| match place {
            Place::Later(later) => Some(later.deadline),
            Place::Caller(_) => None,
        });
        let deadline = deadlines.fold(start + limit, Instant::min);
        match waiting.replies.take() {
            Some(mut replies) => {
                drop(waiting);
                let received = self.receive(&mut replies, 0, start, deadline);
                self.hand_out(replies, received, 0);
            }
            None => {
                self.changed.wait_until(&mut waiting, deadline);
                drop(waiting);
            }
        }
        let now = Instant::now();
        let expired = self.take_later(|later| later.deadline <= now);
        for Later { done, kind, limit, .. } in expired {
            done(Err(self.timed_out(kind, limit)));
        }
    }

    /// Ends every wait on this channel; membership calls it when the peer is gone.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let waiting = self.waiting.lock();
        self.changed.notify_all();
        drop(waiting);
        // Whoever is parked on the reply ring's tail looks at `closed` when it is woken.
        doorbell::wake(&self.bell);
        self.fail_later();
    }

    /// Whether [`Self::close`] was called or the ring broke.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn fail_later(&self) {
        for later in self.take_later(|_| true) {
            (later.done)(Err(self.gone()));
        }
    }

    fn take_later(&self, matching: impl Fn(&Later) -> bool) -> Vec<Later> {
        let mut waiting = self.waiting.lock();
        let taken = waiting.done.extract_if(|_, place| match place {
            Place::Later(later) => matching(later),
            Place::Caller(_) => false,
        });
        let later = taken.filter_map(|(_, place)| match place {
            Place::Later(later) => Some(later),
            Place::Caller(_) => None,
        });
        later.collect()
    }

    /// Sends a request on behalf of `place`, which comes back when there is no room now (no error)
    /// or never will be.
    fn try_send(
        &self,
        kind: u16,
        args: [u64; 3],
        body: &[u8],
        place: Place,
    ) -> std::result::Result<u64, (Place, Option<Error>)> {
        let mut sending = self.sending.lock();
        let id = sending.next_id;
        {
            let mut waiting = self.waiting.lock();
            // Under the lock: whoever closes the channel looks at the places behind it.
            if self.is_closed() {
                return Err((place, Some(self.gone())));
            }
            if waiting.done.len() >= limits::RING_CAPACITY {
                return Err((place, None));
            }
            waiting.done.insert(id, place);
        }
        let descriptor = Descriptor {
            id,
            from_epoch: self.own_epoch.0,
            to_epoch: self.epoch.0,
            kind,
            args,
            ..Descriptor::default()
        };
        let error = match sending.outgoing.send(descriptor, body) {
            Ok(()) => {
                sending.next_id += 1;
                sending.outgoing.ring_bell();
                return Ok(id);
            }
            Err(SendError::Full) => None,
            Err(SendError::Failed(error)) => Some(error),
        };
        match self.waiting.lock().done.remove(&id) {
            Some(place) => Err((place, error)),
            // The channel was closed meanwhile, and the place has heard of it.
            None => Ok(id),
        }
    }

    fn send(
        &self,
        kind: u16,
        args: [u64; 3],
        body: &[u8],
        deadline: Instant,
        limit: Duration,
    ) -> Result<u64> {
        loop {
            match self.try_send(kind, args, body, Place::Caller(None)) {
                Ok(id) => return Ok(id),
                Err((_, Some(error))) => return Err(error),
                Err((_, None)) if Instant::now() >= deadline => {
                    return Err(self.timed_out(kind, limit));
                }
                Err((_, None)) => {
                    // Back-pressure: the server is behind by a whole ring, or answers to started
                    // requests wait for somebody to receive them; nothing wakes us for room.
                    self.poll();
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
    }

    fn wait(&self, id: u64, start: Instant, deadline: Instant) -> Result<Reply> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(Place::Caller(reply)) = waiting.done.get_mut(&id)
                && let Some(reply) = reply.take()
            {
                return Ok(reply);
            }
            if self.is_closed() {
                return Err(self.gone());
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { what: String::new(), ms: 0 });
            }
            match waiting.replies.take() {
                Some(mut replies) => {
                    drop(waiting);
                    let received = self.receive(&mut replies, id, start, deadline);
                    if let Some(own) = self.hand_out(replies, received, id) {
                        return Ok(own);
                    }
                    waiting = self.waiting.lock();
                }
                None => drop(self.changed.wait_until(&mut waiting, deadline)),
            }
        }
    }

    /// Gives the reply ring back and replies to those that they are for. Returns the one for `id`.
    fn hand_out(
        &self,
        replies: Incoming,
        received: Result<Vec<(Descriptor, AlignedVec)>>,
        id: u64,
    ) -> Option<Reply> {
        let mut later = Vec::new();
        let mut own = None;
        {
            let mut waiting = self.waiting.lock();
            waiting.replies = Some(replies);
            match received {
                Ok(batch) => own = waiting.file(batch, id, &mut later),
                // Every waiter finds the channel closed.
                Err(_) => self.closed.store(true, Ordering::SeqCst),
            }
            self.changed.notify_all();
        }
        for (done, reply) in later {
            done(Ok(reply));
        }
        if self.is_closed() {
            self.fail_later();
        }
        own
    }

    /// Receives until at least one reply is there, or the time is up. Without any lock.
    fn receive(
        &self,
        replies: &mut Incoming,
        id: u64,
        start: Instant,
        deadline: Instant,
    ) -> Result<Vec<(Descriptor, AlignedVec)>> {
        let mut batch = Vec::new();
        loop {
            while let Some(message) = replies.receive()? {
                let own = message.0.id == id;
                batch.push(message);
                if own || batch.len() == limits::RING_CAPACITY {
                    break;
                }
            }
            let now = Instant::now();
            if !batch.is_empty() || self.is_closed() || now >= deadline {
                return Ok(batch);
            }
            let spin = if self.may_spin() { SPIN } else { Duration::ZERO };
            if doorbell::spin_until(|| replies.ready(), start.max(now - SPIN), spin) {
                continue;
            }
            let limit = deadline.saturating_duration_since(now).min(RECHECK);
            doorbell::wait(&self.park.words, &mut [replies], None, limit);
        }
    }

    /// Spinning on the CPU that the server needs would only delay it.
    fn may_spin(&self) -> bool {
        self.sending.lock().outgoing.consumer_cpu() != Some(doorbell::current_cpu())
    }

    fn gone(&self) -> Error {
        Error::Gone(format!("{:?} epoch {}", self.server, self.epoch))
    }

    fn timed_out(&self, kind: u16, limit: Duration) -> Error {
        let what = format!("request {kind:#x} to {:?}", self.server);
        Error::Timeout { what, ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        self.fail_later();
        doorbell::leave(&self.park.words);
    }
}

impl Waiting {
    /// Files replies under the requests that wait for them; those nobody waits for any more are
    /// dropped. Returns the one for `id`; those to be handed out at once are added to `later`.
    fn file(
        &mut self,
        batch: Vec<(Descriptor, AlignedVec)>,
        id: u64,
        later: &mut Vec<(Done, Reply)>,
    ) -> Option<Reply> {
        let mut own = None;
        for (descriptor, body) in batch {
            let reply = Reply { status: descriptor.status, args: descriptor.args, body };
            if descriptor.id == id {
                own = Some(reply);
                continue;
            }
            match self.done.remove(&descriptor.id) {
                Some(Place::Later(place)) => later.push((place.done, reply)),
                Some(Place::Caller(_)) => {
                    self.done.insert(descriptor.id, Place::Caller(Some(reply)));
                }
                None => {}
            }
        }
        own
    }
}
