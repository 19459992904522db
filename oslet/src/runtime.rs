//! An OSlet's runtime: it joins the cluster, serves, and leaves.
//!
//! Threads: one reads the control sockets and looks at the membership words, one beats and watches
//! the others' hearts, one tells services what happened (they may take their time), those of the
//! [`crate::rpc::Server`], and one for each fence under way.

mod clients;
mod control;
mod division;
mod fencing;
mod join;
mod orphans;
mod peers;
mod quota;
mod status;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::EventfdFlags;
use serde::{Deserialize, Serialize};

use crate::arena::Arena;
use crate::cgroup::Group;
use crate::id::{Epoch, OsletId, ParticipantId};
use crate::member::Event;
use crate::member::heartbeat::Timing;
use crate::member::record::{IoFile, Record};
use crate::member::{fence, word};
use crate::procfs::ProcessId;
use crate::region::{Backing, MemberState, Region};
use crate::rpc::{self, Channel, ChannelAnswer, Handler, PendingChannel, Replier, Request};
use crate::wire::{Detail, Message};
use crate::{Error, Result, limits};

pub use control::FENCED;
pub use division::least_segment;
pub use status::ask;

/// What a runtime is told by its launcher.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The cluster's runtime files.
    pub directory: PathBuf,
    /// Its place among `names`.
    pub oslet: usize,
    /// All OSlets' names, by place.
    pub names: Vec<String>,
    /// What segments are made of.
    pub backing: Backing,
    /// Bytes of the runtime's segment.
    pub segment: u64,
    /// Ask for huge pages.
    pub huge: bool,
    /// Touch all memory at start.
    pub prefault: bool,
    /// Heartbeats.
    pub timing: Timing,
    /// How long the end of a fenced OSlet's I/O is waited for at a time, in milliseconds.
    pub io_limit_ms: u64,
}

/// How long one may take to join.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long the opening of a channel may take.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// An error of a service, in its own words.
pub type ServiceError = Box<dyn std::error::Error + Send + Sync>;

/// What a runtime does for its OSlet besides membership. Devices and filesystems are services.
pub trait Service: Send + Sync + 'static {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// The request kinds that it answers.
    fn kinds(&self) -> Range<u16>;

    /// Answers one request; see [`Handler::handle`].
    fn handle(&self, request: Request, replier: Replier);

    /// Something happened to another participant. Events come one after the other; the first ones
    /// name those that were there before.
    fn event(&self, event: Event);

    /// Removes every link to frames of that incarnation, whose segment is about to be replaced by
    /// its successor's: references to them would name other frames.
    fn release(&self, who: ParticipantId, epoch: Epoch);

    /// Gives everything back: `cluster` says that all OSlets stop, so that nothing need be handed
    /// over. Called once.
    ///
    /// # Errors
    /// What could not be given back; the runtime leaves all the same.
    fn leave(&self, cluster: bool) -> std::result::Result<(), ServiceError>;

    /// Lines for `show`.
    fn describe(&self) -> Vec<Detail>;

    /// How many volumes and devices it serves.
    fn serves(&self) -> (u32, u32);
}

/// What must be destroyed when this OSlet is fenced.
#[derive(Clone, Debug, Default)]
struct Resources {
    fuse: Vec<u32>,
    kill: Option<Arc<OwnedFd>>,
    groups: Vec<Group>,
    files: Vec<(IoFile, Arc<OwnedFd>)>,
    /// Native clients: their pins end only with them.
    clients: Vec<ProcessId>,
}

/// A running runtime; [`Runtime::leave`] ends it.
pub struct Runtime {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
    /// Held for the process's life: whoever gets it knows that the process is gone.
    _lock: std::fs::File,
    /// Held by all runtimes and the launcher together: the cluster's name is taken.
    _cluster_lock: Option<OwnedFd>,
}

/// What services work with. Clones are the same runtime.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    spec: Spec,
    me: OsletId,
    epoch: Epoch,
    process: ProcessId,
    region: Arc<Region>,
    arena: Arc<Arena>,
    server: Mutex<Option<Arc<rpc::Server>>>,
    services: RwLock<Vec<Arc<dyn Service>>>,
    inbox: Inbox,
    /// To the thread that tells services.
    events: Mutex<Option<mpsc::Sender<Task>>>,
    resources: Mutex<Resources>,
    progress: Mutex<Progress>,
    changed: Condvar,
    channels: Mutex<HashMap<OsletId, Arc<Channel>>>,
    /// One channel at a time is opened to each OSlet: the rings of a second would be lost.
    opening: Vec<Mutex<()>>,
    offers: Mutex<HashMap<u64, mpsc::SyncSender<Option<ChannelAnswer>>>>,
    next_offer: AtomicU64,
}

#[derive(Debug, Default)]
struct Progress {
    alive: bool,
    failed: Option<String>,
    /// Asked to stop; whether the whole cluster does.
    stop: Option<bool>,
}

/// For the thread that tells services.
enum Task {
    Event(Event),
    /// Let go of an old incarnation's frames, then say so.
    Release(ParticipantId, Epoch, Box<dyn FnOnce() + Send>),
    /// A service was added: tell it who is there.
    Added(Arc<dyn Service>),
}

/// For the thread that reads the control sockets.
enum Command {
    Suspect(OsletId, Epoch, &'static str),
    FenceEnded(OsletId, Epoch),
    FenceStuck(OsletId, Epoch),
    Resources,
    Offer(OsletId, Epoch, Message),
    Release(u64),
    /// Services have let go of that incarnation's frames.
    Bury(OsletId, Epoch),
    Send(u64, Message),
    Launcher(crate::control_socket::Connection),
    Leave,
}

struct Inbox {
    queue: Mutex<VecDeque<Command>>,
    bell: OwnedFd,
}

impl Inbox {
    fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = rustix::event::eventfd(0, flags).map_err(Error::io("eventfd"))?;
        Ok(Self { queue: Mutex::default(), bell })
    }

    fn post(&self, command: Command) {
        self.queue.lock().push_back(command);
        // It only fails when the counter is full: then it is readable as well.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn take(&self) -> VecDeque<Command> {
        // It only fails when nothing was posted since.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut self.queue.lock())
    }
}

impl Runtime {
    /// What services work with.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Adds a service: it answers requests from now on, and is told who is there.
    pub fn add_service(&self, service: Arc<dyn Service>) {
        let shared = &self.handle.0;
        shared.services.write().push(Arc::clone(&service));
        shared.tell(Task::Added(service));
    }

    /// Says to the launcher that this runtime serves, and obeys it from now on.
    ///
    /// # Errors
    /// When the launcher has gone; then it was told nothing, and that harms nobody.
    pub fn ready(
        &self,
        mut launcher: crate::control_socket::Connection,
        notes: Vec<String>,
    ) -> Result<()> {
        launcher.send(&Message::Ready { epoch: self.handle.0.epoch.0, notes }, Vec::new())?;
        self.handle.0.inbox.post(Command::Launcher(launcher));
        Ok(())
    }

    /// Waits until somebody asks this runtime to stop; says whether the whole cluster does.
    pub fn wait(&self) -> bool {
        let shared = &self.handle.0;
        let mut progress = shared.progress.lock();
        loop {
            if let Some(cluster) = progress.stop {
                return cluster;
            }
            shared.changed.wait(&mut progress);
        }
    }

    /// Leaves cleanly: services give everything back, last added first; then the place is vacant.
    /// Returns what could not be given back.
    ///
    /// # Errors
    /// [`Error::Gone`] when survivors have begun to fence this runtime.
    pub fn leave(mut self, cluster: bool) -> Result<Vec<String>> {
        let shared = Arc::clone(&self.handle.0);
        let services = std::mem::take(&mut *shared.services.write());
        let mut notes = Vec::new();
        for service in services.iter().rev() {
            if let Err(error) = service.leave(cluster) {
                notes.push(format!("{}: {error}", service.name()));
            }
        }
        shared.events.lock().take();
        for (_, channel) in shared.channels.lock().drain() {
            channel.close();
        }
        if let Some(server) = shared.server.lock().take() {
            server.stop();
        }
        notes.extend(shared.end_clients());
        word::leave(shared.region.control(), shared.me, shared.epoch)?;
        shared.inbox.post(Command::Leave);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                notes.push("a thread of the runtime panicked".into());
            }
        }
        join::remove_files(&shared.own_directory())?;
        Ok(notes)
    }
}

impl Handle {
    /// The shared memory.
    pub fn region(&self) -> &Arc<Region> {
        &self.0.region
    }

    /// The frames of the own segment.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.0.arena
    }

    /// Which OSlet this is.
    pub fn oslet(&self) -> OsletId {
        self.0.me
    }

    /// In which incarnation.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// What the launcher said.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// The OSlet of that name.
    pub fn find(&self, name: &str) -> Option<OsletId> {
        self.0.spec.names.iter().position(|other| other == name).and_then(OsletId::new)
    }

    /// A channel for requests to that OSlet's runtime; opened when there is none yet. It is closed
    /// when that incarnation is gone: ask again for its successor.
    ///
    /// # Errors
    /// [`Error::Gone`] when it does not take part, [`Error::Timeout`] when it does not answer.
    pub fn channel(&self, to: OsletId) -> Result<Arc<Channel>> {
        let shared = &self.0;
        let gone = || Error::Gone(shared.name(to).to_owned());
        let _one = shared.opening.get(to.index()).ok_or_else(gone)?.lock();
        let member = shared.region.control().member(to)?;
        if to == shared.me || member.state != MemberState::Alive {
            return Err(gone());
        }
        if let Some(channel) = shared.channels.lock().get(&to)
            && !channel.is_closed()
            && channel.server().1 == member.epoch
        {
            return Ok(Arc::clone(channel));
        }
        let server = ParticipantId::runtime(to);
        let pending = PendingChannel::new(&shared.region, server, member.epoch)?;
        let number = shared.next_offer.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::sync_channel(1);
        shared.offers.lock().insert(number, sender);
        let who = shared.who();
        let offer = Message::Offer { number, who, offer: pending.offer() };
        shared.inbox.post(Command::Offer(to, member.epoch, offer));
        let answer = answer.recv_timeout(OPEN_LIMIT);
        shared.offers.lock().remove(&number);
        let answer = answer.map_err(|_| Error::Timeout {
            what: format!("channel to {}", shared.name(to)),
            ms: OPEN_LIMIT.as_millis() as u64,
        })?;
        let channel = pending.open(answer.ok_or_else(gone)?)?;
        shared.channels.lock().insert(to, Arc::clone(&channel));
        if shared.region.control().member(to)? != member {
            channel.close();
            return Err(gone());
        }
        Ok(channel)
    }

    /// Publishes that this OSlet has that FUSE connection, or has it no more.
    ///
    /// # Errors
    /// When there are too many, or the record cannot be written.
    pub fn set_fuse_connection(&self, number: u32, present: bool) -> Result<()> {
        self.0.change_resources(|resources| {
            resources.fuse.retain(|other| *other != number);
            if present {
                resources.fuse.push(number);
            }
            bounded(resources.fuse.len(), limits::MAX_FUSE_CONNECTIONS, "FUSE connections")
        })
    }

    /// Publishes a file that this OSlet does I/O on: the caller holds `flock(LOCK_EX)` on the very
    /// description that the I/O goes through, and does not share that description.
    ///
    /// # Errors
    /// When there are too many, or the record cannot be written.
    pub fn add_io_file(&self, file: impl AsFd) -> Result<()> {
        let entry = (IoFile::of(&file)?, Arc::new(fence::shareable(&file)?));
        self.0.change_resources(|resources| {
            resources.files.push(entry);
            bounded(resources.files.len(), limits::MAX_IO_FILES, "I/O files")
        })
    }

    /// Takes back [`Self::add_io_file`], when nothing is in flight any more.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn remove_io_file(&self, file: impl AsFd) -> Result<()> {
        let gone = IoFile::of(&file)?;
        let key = |file: &IoFile| (file.device, file.inode);
        self.0.change_resources(|resources| {
            if let Some(at) = resources.files.iter().position(|(f, _)| key(f) == key(&gone)) {
                resources.files.swap_remove(at);
            }
            Ok(())
        })
    }

    /// Publishes the control groups that hold what runs inside.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn set_groups(&self, groups: &[Group], kill: Option<OwnedFd>) -> Result<()> {
        self.0.change_resources(|resources| {
            resources.groups = groups.to_vec();
            resources.kill = kill.map(Arc::new);
            Ok(())
        })
    }

    /// Asks this runtime to stop, as a signal would.
    pub fn stop(&self, cluster: bool) {
        self.0.stop(cluster);
    }
}

fn bounded(count: usize, most: usize, what: &str) -> Result<()> {
    match count <= most {
        true => Ok(()),
        false => Err(Error::Exhausted(format!("{count} {what}: at most {most} are possible"))),
    }
}

impl Shared {
    fn name(&self, oslet: OsletId) -> &str {
        self.spec.names.get(oslet.index()).map_or("?", String::as_str)
    }

    fn who(&self) -> crate::wire::Who {
        crate::wire::Who::new(ParticipantId::runtime(self.me), self.epoch)
    }

    fn own_directory(&self) -> PathBuf {
        self.spec.directory.join(self.name(self.me))
    }

    fn log(&self, what: impl std::fmt::Display) {
        eprintln!("{}: {what}", self.name(self.me));
    }

    fn tell(&self, task: Task) {
        if let Some(events) = &*self.events.lock() {
            // The thread ends when this sender is dropped, not before.
            let _ = events.send(task);
        }
    }

    fn stop(&self, cluster: bool) {
        let mut progress = self.progress.lock();
        progress.stop = Some(cluster || progress.stop.unwrap_or(false));
        self.changed.notify_all();
    }

    fn change_resources(&self, change: impl FnOnce(&mut Resources) -> Result<()>) -> Result<()> {
        let mut resources = self.resources.lock();
        let mut new = resources.clone();
        change(&mut new)?;
        self.record(&new).write(&self.own_directory())?;
        *resources = new;
        drop(resources);
        self.inbox.post(Command::Resources);
        Ok(())
    }

    fn record(&self, resources: &Resources) -> Record {
        Record {
            cluster: self.region.control().cluster().0,
            oslet: self.me.index(),
            epoch: self.epoch.0,
            process: self.process,
            clients: resources.clients.clone(),
            fuse: resources.fuse.clone(),
            files: resources.files.iter().map(|(file, _)| file.clone()).collect(),
            groups: resources.groups.clone(),
        }
    }

    /// Ends what waits for an incarnation that is gone.
    fn end_channels(&self, oslet: OsletId, epoch: Epoch) {
        let mut channels = self.channels.lock();
        if channels.get(&oslet).is_some_and(|channel| channel.server().1 == epoch)
            && let Some(channel) = channels.remove(&oslet)
        {
            channel.close();
        }
    }
}

/// The thread that tells services what happened.
fn tell_services(shared: &Shared, tasks: &mpsc::Receiver<Task>) {
    let mut present: Vec<(OsletId, Epoch)> = Vec::new();
    for task in tasks {
        match task {
            Task::Event(event) => {
                match event {
                    Event::Joined(oslet, epoch) => present.push((oslet, epoch)),
                    Event::Dead(oslet, epoch) | Event::Left(oslet, epoch) => {
                        present.retain(|other| *other != (oslet, epoch));
                        let server = shared.server.lock().clone();
                        if let Some(server) = server {
                            server.drop_peer(ParticipantId::runtime(oslet), epoch);
                        }
                        shared.arena.sweep_all();
                    }
                    Event::ClientGone(who, epoch) => {
                        shared.forget_client(who, epoch);
                        shared.arena.sweep_all();
                    }
                    _ => {}
                }
                let services = shared.services.read().clone();
                services.iter().for_each(|service| service.event(event));
            }
            Task::Release(who, epoch, done) => {
                let services = shared.services.read().clone();
                services.iter().for_each(|service| service.release(who, epoch));
                done();
            }
            Task::Added(service) => {
                for (oslet, epoch) in &present {
                    service.event(Event::Joined(*oslet, *epoch));
                }
            }
        }
    }
}

/// Hands requests to the service that answers their kind.
struct Dispatch(std::sync::Weak<Shared>);

impl Handler for Dispatch {
    fn handle(&self, request: Request, replier: Replier) {
        let Some(shared) = self.0.upgrade() else { return };
        let service = {
            let services = shared.services.read();
            services.iter().find(|service| service.kinds().contains(&request.kind)).cloned()
        };
        match service {
            Some(service) => service.handle(request, replier),
            None => replier.error(libc::ENOSYS),
        }
    }

    fn broken(&self, peer: ParticipantId, epoch: Epoch, error: Error) {
        let Some(shared) = self.0.upgrade() else { return };
        shared.log(format_args!("{peer:?} epoch {epoch}: {error}"));
        if peer.is_runtime() {
            shared.inbox.post(Command::Suspect(peer.oslet, epoch, "its ring is broken"));
        }
    }
}
