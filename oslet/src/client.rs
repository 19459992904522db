//! Native clients: processes that use the shared memory themselves, through their OSlet's runtime.
//!
//! A client gets a runtime's segment only when that runtime has mapped the client's own: what it
//! pins is always seen. It may be stopped or killed at any time; its pins end with its process.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};

use crate::control_socket::{Connection, Received};
use crate::id::{Epoch, OsletId, ParticipantId};
use crate::region::{Backing, ControlPage, MemberState, OwnSegment, Paging, Region, SegmentSpec};
use crate::rpc::{Channel, ChannelAnswer, PendingChannel};
use crate::wire::{Message, PROTOCOL, Who};
use crate::{Error, Result};

/// How long joining may take: a runtime that is stopped is fenced well before.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long the opening of a channel may take.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How soon a segment that is gone and still pinned is looked at again.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Bytes of a client's segment for its half of one channel, twice: one may replace another.
const CHANNEL_SPACE: usize = 2 * (96 << 10);

/// A place among an OSlet's native clients. Dropping it gives the place back; a process that keeps
/// the region beyond that keeps the place until it ends.
///
/// A child of `fork` has no part in this: the parent's segment is not mapped there, and using the
/// handle, or what was got through it, ends the child with SIGSEGV.
///
/// ```no_run
/// # fn main() -> oslet::Result<()> {
/// let client = oslet::client::join("/run/oslet/main".as_ref(), "o1")?;
/// println!("{:?} of {} OSlets", client.participant(), client.names().len());
/// # Ok(())
/// # }
/// ```
pub struct ClientHandle {
    shared: Arc<Shared>,
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    who: ParticipantId,
    epoch: Epoch,
    names: Vec<String>,
    region: Arc<Region>,
    sending: Mutex<Connection>,
    /// One at a time: channels are scarce.
    opening: Mutex<()>,
    channels: Mutex<HashMap<OsletId, Arc<Channel>>>,
    offers: Mutex<HashMap<u64, mpsc::SyncSender<Option<ChannelAnswer>>>>,
    next_offer: AtomicU64,
    let_go: AtomicU64,
    lost: AtomicBool,
    /// Segments to be given back as soon as nothing of them is pinned here.
    gone: Mutex<Vec<(ParticipantId, Epoch)>>,
}

/// Joins as a native client of that OSlet, of the cluster whose runtime files are in `directory`.
///
/// # Errors
/// [`Error::Gone`] when no runtime listens there; when all slots are taken, memory is short, or the
/// runtimes do not answer.
pub fn join(directory: &Path, oslet: &str) -> Result<ClientHandle> {
    let mut connection = Connection::connect(&directory.join(oslet))?;
    connection.send(&Message::Enter { protocol: PROTOCOL }, Vec::new())?;
    let received = connection.wait("a slot among the clients", JOIN_LIMIT)?;
    let corrupt = |what: &str| Error::Corrupt { peer: oslet.to_owned(), what: what.to_owned() };
    let (who, names, frames) = match received.message {
        Message::Slot { who, names, frames } => (who, names, frames),
        Message::Refused { why } => return Err(Error::Invalid(format!("OSlet {oslet}: {why}"))),
        _ => return Err(corrupt("no answer to a client")),
    };
    let [control] = <[OwnedFd; 1]>::try_from(received.descriptors)
        .map_err(|_| corrupt("a slot without a control page"))?;
    let participant = who.participant().ok_or_else(|| corrupt("no such slot"))?;
    let control = ControlPage::open(File::from(control))?;
    // Pin counters of two bytes, four times: segments may be replaced while old ones are pinned.
    let pins = usize::try_from(frames).ok().and_then(|frames| frames.checked_mul(8));
    let pins = pins.ok_or_else(|| corrupt("more frames than there can be"))?;
    let space = pins + (names.len() + 1) * CHANNEL_SPACE;
    let epoch = who.epoch();
    let paging = Paging::default();
    let spec = SegmentSpec { participant, epoch, frames: 0, space, paging };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec)?;
    let segment = own.reader()?;
    let shared = Arc::new(Shared {
        who: participant,
        epoch,
        names,
        region: Region::new(control, own, paging)?,
        sending: Mutex::new(connection.duplicate()?),
        opening: Mutex::default(),
        channels: Mutex::default(),
        offers: Mutex::default(),
        next_offer: AtomicU64::new(1),
        let_go: AtomicU64::new(0),
        lost: AtomicBool::new(false),
        gone: Mutex::default(),
    });
    connection.send(&Message::Segment, vec![segment.into()])?;
    let end = Instant::now() + JOIN_LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if shared.hear(connection.wait("to be let in by all runtimes", left)?)? {
            break;
        }
    }
    let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let bell = Arc::new(bell.map_err(Error::io("eventfd"))?);
    let (listening, rung) = (Arc::clone(&shared), Arc::clone(&bell));
    let thread = std::thread::Builder::new().name("oslet-client".into());
    let thread = thread.spawn(move || listening.listen(connection, &rung));
    let thread = Some(thread.map_err(Error::io("start a client's thread"))?);
    Ok(ClientHandle { shared, bell, thread })
}

impl ClientHandle {
    /// The shared memory.
    pub fn region(&self) -> &Arc<Region> {
        &self.shared.region
    }

    /// Which client this is.
    pub fn participant(&self) -> ParticipantId {
        self.shared.who
    }

    /// In which incarnation.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// All OSlets' names, by place.
    pub fn names(&self) -> &[String] {
        &self.shared.names
    }

    /// How many frames this process was last asked to let go of, if it was since the last call: it
    /// pins too many that others need, and is killed within seconds if it keeps them.
    pub fn asked_to_let_go(&self) -> Option<u64> {
        let frames = self.shared.let_go.swap(0, Ordering::Relaxed);
        (frames > 0).then_some(frames)
    }

    /// Whether the runtime has cut this client off, or is gone.
    pub fn is_lost(&self) -> bool {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// A channel for requests to that OSlet's runtime; opened when there is none yet.
    ///
    /// # Errors
    /// [`Error::Gone`] when it does not take part, [`Error::Timeout`] when it does not answer.
    pub fn channel(&self, to: OsletId) -> Result<Arc<Channel>> {
        let shared = &self.shared;
        let server = ParticipantId::runtime(to);
        let gone = || Error::Gone(format!("{server:?}"));
        let member = shared.region.control().member(to)?;
        if member.state != MemberState::Alive || self.is_lost() {
            return Err(gone());
        }
        let _one = shared.opening.lock();
        if let Some(channel) = shared.channels.lock().get(&to)
            && !channel.is_closed()
            && channel.server().1 == member.epoch
        {
            return Ok(Arc::clone(channel));
        }
        let mapped = shared.region.segment(server).map(|segment| segment.epoch());
        if mapped != Some(member.epoch) {
            return Err(gone());
        }
        let pending = PendingChannel::new(&shared.region, server, member.epoch)?;
        let number = shared.next_offer.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::sync_channel(1);
        shared.offers.lock().insert(number, sender);
        let to_who = Who::new(server, member.epoch);
        let reach = Message::Reach { number, to: to_who, offer: pending.offer() };
        shared.sending.lock().send(&reach, Vec::new())?;
        let answer = answer.recv_timeout(OPEN_LIMIT);
        shared.offers.lock().remove(&number);
        let ms = OPEN_LIMIT.as_millis() as u64;
        let answer =
            answer.map_err(|_| Error::Timeout { what: format!("channel to {server:?}"), ms })?;
        let channel = pending.open(answer.ok_or_else(gone)?)?;
        shared.channels.lock().insert(to, Arc::clone(&channel));
        if shared.region.control().member(to)? != member || self.is_lost() {
            channel.close();
            return Err(gone());
        }
        Ok(channel)
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        for (_, channel) in self.shared.channels.lock().drain() {
            channel.close();
        }
        // It only fails when the counter is full: then it is readable as well.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended as well.
            let _ = thread.join();
        }
        if Arc::strong_count(&self.shared.region) == 1 {
            // Guards borrow the region: there is none. A runtime that is gone need not know.
            let who = Who::new(self.shared.who, self.shared.epoch);
            let _ = self.shared.sending.lock().send(&Message::Retract { who }, Vec::new());
        }
    }
}

impl Shared {
    /// What the runtime says; whether it lets us in.
    fn hear(&self, received: Received) -> Result<bool> {
        let corrupt = |what: &str| Error::Corrupt {
            peer: format!("runtime of {:?}", self.who.oslet),
            what: what.to_owned(),
        };
        match received.message {
            Message::Announce { who, .. } => {
                let runtime = who.participant().filter(|who| who.is_runtime());
                let runtime = runtime.ok_or_else(|| corrupt("announces no runtime"))?;
                let [segment] = <[OwnedFd; 1]>::try_from(received.descriptors)
                    .map_err(|_| corrupt("announces without a segment"))?;
                let mapped = self.region.segment(runtime).map(|segment| segment.epoch());
                if mapped.is_none_or(|mapped| mapped < who.epoch()) {
                    self.region.map(&File::from(segment), runtime, who.epoch())?;
                }
            }
            Message::Retract { who } => {
                self.channels_of_gone(who).iter().for_each(|channel| channel.close());
            }
            Message::Forget { who } => {
                if let Some(gone) = who.participant().filter(|gone| *gone != self.who) {
                    self.gone.lock().push((gone, who.epoch()));
                }
            }
            Message::LetGo { frames } => self.let_go.store(frames, Ordering::Relaxed),
            Message::Answer { number, answer } => {
                if let Some(waiting) = self.offers.lock().remove(&number) {
                    // Whoever waited may have given up.
                    let _ = waiting.try_send(answer);
                }
            }
            Message::Admit => return Ok(true),
            Message::Refused { why } => return Err(Error::Invalid(why)),
            _ => return Err(corrupt("a message that clients do not get")),
        }
        Ok(false)
    }

    fn channels_of_gone(&self, who: Who) -> Vec<Arc<Channel>> {
        let gone = |channel: &&Arc<Channel>| {
            let (server, epoch) = channel.server();
            Who::new(server, epoch) == who
        };
        self.channels.lock().values().filter(gone).cloned().collect()
    }

    /// Gives back segments that are gone. Says whether some are still pinned.
    fn bury(&self) -> bool {
        let mut gone = self.gone.lock();
        // One that cannot be given back costs memory until this process ends, and nothing else.
        gone.retain(|&(who, epoch)| self.region.forget(who, epoch).is_ok_and(|done| !done));
        let held = self.region.release_forgotten().unwrap_or(0);
        held > 0 || !gone.is_empty()
    }

    fn listen(&self, mut connection: Connection, bell: &OwnedFd) {
        loop {
            match connection.receive() {
                Ok(Some(received)) => match self.hear(received) {
                    Ok(_) => continue,
                    Err(_) => break,
                },
                Ok(None) => {}
                Err(_) => break,
            }
            let mut fds =
                [PollFd::new(&connection, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
            match poll(&mut fds, self.bury().then_some(&AGAIN)) {
                Ok(_) if fds[1].revents().is_empty() => {}
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
        // Cut off, or the runtime is gone: every wait ends.
        self.lost.store(true, Ordering::SeqCst);
        self.offers.lock().clear();
        let channels: Vec<_> = self.channels.lock().values().cloned().collect();
        channels.iter().for_each(|channel| channel.close());
    }
}
