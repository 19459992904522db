//! The thread that reads the control sockets, watches processes, and looks at the words.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::clients::Guests;
use super::fencing;
use super::orphans::Orphan;
use super::peers::Peer;
use super::quota::Quotas;
use super::*;
use crate::control_socket::{Connection, Listener, Received};
use crate::member::fence::Kit;
use crate::member::table::Table;
use crate::member::word::Fencer;
use crate::sys::process::{SignalFd, SignalSet, block};
use crate::wire::{PROTOCOL, Who};

/// How often the words are looked at unasked.
const LOOK: Duration = Duration::from_millis(100);
/// How long a connection may stay without saying what it is.
const SILENT: Duration = Duration::from_secs(10);

const LISTENER: u64 = 0;
const BELL: u64 = 1;
const SIGNALS: u64 = 2;
/// Processes of OSlets: this plus the OSlet's place.
const PROCESS: u64 = 16;
/// Processes of own native clients: this plus the slot.
pub(super) const CLIENT_PROCESS: u64 = 1 << 10;
/// Connections are numbered from here on.
const CONNECTION: u64 = 1 << 16;

/// What the other end of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Has said nothing yet, since then.
    Unknown(Instant),
    /// A runtime that we have greeted and that has not answered yet.
    Greeted(OsletId, Instant),
    /// That incarnation's runtime.
    Peer(OsletId, Epoch),
    /// The native client in that slot.
    Client(usize),
    /// A command.
    Command,
    /// The launcher: its end is no event.
    Launcher,
}

pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) role: Role,
    behind: bool,
}

pub(super) struct Control {
    pub(super) shared: Arc<Shared>,
    epoll: OwnedFd,
    listener: Listener,
    signals: SignalFd,
    pub(super) links: HashMap<u64, Link>,
    next_link: u64,
    pub(super) peers: Vec<Peer>,
    /// Greetings that wait until services have let go of the incarnation before.
    pub(super) waiting: HashMap<u64, Received>,
    table: Table,
    fences: HashMap<OsletId, Epoch>,
    pub(super) guests: Guests,
    pub(super) quotas: Quotas,
    pub(super) orphans: Vec<Orphan>,
    leaving: bool,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>, listener: Listener) -> Result<Self> {
        let signals = SignalSet::of(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
        // In the thread that starts all others, which inherit the mask.
        block(&signals).map_err(Error::io("block signals"))?;
        let signals = SignalFd::new(&signals).map_err(Error::io("signalfd"))?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(Error::io("epoll"))?;
        let peers = shared.spec.names.iter().map(|_| Peer::default()).collect();
        let control = Self {
            epoll,
            listener,
            signals,
            links: HashMap::new(),
            next_link: CONNECTION,
            peers,
            waiting: HashMap::new(),
            table: Table::default(),
            fences: HashMap::new(),
            guests: Guests::default(),
            quotas: Quotas::default(),
            orphans: Vec::new(),
            leaving: false,
            shared,
        };
        control.watch(control.listener.as_fd(), LISTENER)?;
        control.watch(control.shared.inbox.bell.as_fd(), BELL)?;
        control.watch(control.signals.as_fd(), SIGNALS)?;
        Ok(control)
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN)
            .map_err(Error::io("epoll: add"))
    }

    pub(super) fn watch_process(&self, oslet: OsletId, fd: BorrowedFd<'_>) -> Result<()> {
        self.watch(fd, PROCESS + oslet.index() as u64)
    }

    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>) {
        // It fails only when it is not watched.
        let _ = epoll::delete(&self.epoll, fd);
    }

    pub(super) fn run(mut self) {
        if let Err(error) = self.serve() {
            self.shared.log(format_args!("control sockets: {error}"));
            let mut progress = self.shared.progress.lock();
            progress.failed = Some(error.to_string());
            progress.stop.get_or_insert(false);
            self.shared.changed.notify_all();
        }
    }

    fn serve(&mut self) -> Result<()> {
        let mut looked = Instant::now();
        self.look()?;
        self.connect_missing();
        while !self.leaving {
            let wait = LOOK.saturating_sub(looked.elapsed());
            let timeout = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            let mut events = Vec::with_capacity(64);
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("epoll: wait")(error)),
            }
            for event in events {
                self.dispatch(event.data.u64(), event.flags)?;
            }
            for command in self.shared.inbox.take() {
                self.obey(command);
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look()?;
                self.connect_missing();
                self.drop_silent();
                self.mind_pins();
                self.bury();
            }
        }
        self.tell_peers(&Message::Changed);
        Ok(())
    }

    fn dispatch(&mut self, token: u64, flags: EventFlags) -> Result<()> {
        match token {
            LISTENER => {
                while let Some(connection) = self.listener.accept()? {
                    if self.links.len() < limits::MAX_CONNECTIONS {
                        self.add_link(connection, Role::Unknown(Instant::now()))?;
                    }
                }
            }
            // What it announces is taken in every round.
            BELL => {}
            SIGNALS => {
                while let Ok(Some(_)) = self.signals.read() {
                    self.shared.stop(false);
                }
            }
            CONNECTION.. => self.read_link(token, flags),
            CLIENT_PROCESS.. => self.client_ended((token - CLIENT_PROCESS) as usize),
            process => {
                let index = usize::try_from(process.saturating_sub(PROCESS)).unwrap_or(usize::MAX);
                if let Some(oslet) = OsletId::new(index) {
                    self.process_ended(oslet)?;
                }
            }
        }
        Ok(())
    }

    fn process_ended(&mut self, oslet: OsletId) -> Result<()> {
        let Some(peer) = self.peers.get_mut(oslet.index()) else { return Ok(()) };
        if let Some(process) = peer.process.take() {
            self.unwatch(process.as_fd());
            let peer = &mut self.peers[oslet.index()];
            let epoch = peer.epoch;
            peer.process = Some(process);
            self.look()?;
            self.suspect(oslet, epoch, "its process has ended");
        }
        Ok(())
    }

    pub(super) fn add_link(&mut self, connection: Connection, role: Role) -> Result<u64> {
        let token = self.next_link;
        self.next_link += 1;
        self.watch(connection.as_fd(), token)?;
        self.links.insert(token, Link { connection, role, behind: false });
        Ok(token)
    }

    /// Sends on a link; one that is broken is cut.
    pub(super) fn send(&mut self, token: u64, message: &Message, descriptors: Vec<OwnedFd>) {
        let Some(link) = self.links.get_mut(&token) else { return };
        match link.connection.send(message, descriptors) {
            Ok(()) => self.update_interest(token),
            Err(error) => self.cut(token, &error),
        }
    }

    /// Sends a message that a segment comes with.
    pub(super) fn send_segment(&mut self, token: u64, message: &Message, segment: &File) {
        match segment.try_clone() {
            Ok(segment) => self.send(token, message, vec![segment.into()]),
            Err(error) => self.cut(token, &Error::io("dup")(error)),
        }
    }

    fn update_interest(&mut self, token: u64) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let behind = link.connection.is_behind();
        if behind != link.behind {
            link.behind = behind;
            let flags = if behind { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let data = EventData::new_u64(token);
            // It fails only when it is not watched.
            let _ = epoll::modify(&self.epoll, link.connection.as_fd(), data, flags);
        }
    }

    fn read_link(&mut self, token: u64, flags: EventFlags) {
        if flags.contains(EventFlags::OUT)
            && let Some(link) = self.links.get_mut(&token)
        {
            match link.connection.flush() {
                Ok(()) => self.update_interest(token),
                Err(error) => self.cut(token, &error),
            }
        }
        // Bounded, so that no peer keeps the others waiting.
        for _ in 0..64 {
            let Some(link) = self.links.get_mut(&token) else { return };
            match link.connection.receive() {
                Ok(Some(received)) => self.receive(token, received),
                Ok(None) => return,
                Err(error) => return self.cut(token, &error),
            }
        }
    }

    /// Closes a connection: it costs its other end that connection and nothing else.
    pub(super) fn cut(&mut self, token: u64, why: &Error) {
        self.waiting.remove(&token);
        let Some(link) = self.links.remove(&token) else { return };
        self.unwatch(link.connection.as_fd());
        if let Role::Peer(oslet, _) = link.role
            && let Some(peer) = self.peers.get_mut(oslet.index())
            && peer.link == Some(token)
        {
            peer.unlink();
        }
        if let Role::Client(slot) = link.role {
            self.client_cut(slot, token);
        }
        if !matches!(why, Error::Gone(_)) {
            self.shared.log(format_args!("connection closed: {why}"));
        }
    }

    fn receive(&mut self, token: u64, received: Received) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let role = link.role;
        let unexpected = |message: &Message| Error::Corrupt {
            peer: format!("{role:?}"),
            what: format!("unexpected: {:.60}", format!("{message:?}")),
        };
        let greeting = matches!(received.message, Message::Hello { .. });
        if greeting && matches!(role, Role::Unknown(_) | Role::Greeted(..)) {
            return self.greeted(token, received);
        }
        match (role, received.message) {
            (Role::Peer(oslet, epoch), message) => {
                let received = Received { message, descriptors: received.descriptors };
                if let Err(error) = self.hear_peer(token, oslet, epoch, received) {
                    self.cut(token, &error);
                }
            }
            (Role::Unknown(_), Message::Enter { protocol }) => {
                let entered = match protocol == PROTOCOL {
                    true => self.client_enters(token),
                    false => Err(Error::Invalid("another version of the messages".into())),
                };
                if let Err(error) = entered {
                    let why = error.to_string();
                    self.send(token, &Message::Refused { why }, Vec::new());
                    self.cut(token, &error);
                }
            }
            (Role::Client(slot), message) => {
                let received = Received { message, descriptors: received.descriptors };
                if let Err(error) = self.hear_client(token, slot, received) {
                    self.cut(token, &error);
                }
            }
            (Role::Unknown(_) | Role::Command, Message::Ask { protocol, details }) => {
                link.role = Role::Command;
                match protocol == PROTOCOL {
                    true => status::answer(&self.shared, token, details),
                    false => self.send(token, &other_version(), Vec::new()),
                }
            }
            (Role::Unknown(_) | Role::Command | Role::Launcher, Message::Stop { cluster }) => {
                if role != Role::Launcher {
                    link.role = Role::Command;
                }
                self.shared.stop(cluster);
            }
            (_, message) => self.cut(token, &unexpected(&message)),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Suspect(oslet, epoch, why) => self.suspect(oslet, epoch, why),
            Command::FenceEnded(oslet, epoch) => {
                if self.fences.get(&oslet) == Some(&epoch) {
                    self.fences.remove(&oslet);
                }
                self.tell_peers(&Message::Changed);
                if let Err(error) = self.look() {
                    self.shared.log(error);
                }
            }
            Command::FenceStuck(oslet, epoch) => {
                self.shared.tell(Task::Event(Event::Stuck(oslet, epoch)));
            }
            Command::Resources => {
                for oslet in 0..self.peers.len() {
                    if let Some(token) = self.peers[oslet].link {
                        self.send_resources(token);
                    }
                }
            }
            Command::Offer(oslet, epoch, message) => {
                let peer = self.peers.get(oslet.index()).filter(|peer| peer.epoch == epoch);
                // Without a link there will be no answer: whoever waits has a time limit.
                if let Some(token) = peer.and_then(|peer| peer.link) {
                    self.send(token, &message, Vec::new());
                }
            }
            Command::Release(token) => {
                if let Some(received) = self.waiting.remove(&token) {
                    self.greeted(token, received);
                }
            }
            Command::Bury(oslet, epoch) => self.may_bury(oslet, epoch),
            Command::Send(token, message) => self.send(token, &message, Vec::new()),
            Command::Launcher(connection) => {
                if let Err(error) = self.add_link(connection, Role::Launcher) {
                    self.shared.log(error);
                }
            }
            Command::Leave => self.leaving = true,
        }
    }

    pub(super) fn tell_peers(&mut self, message: &Message) {
        for oslet in 0..self.peers.len() {
            if let Some(token) = self.peers[oslet].link {
                self.send(token, message, Vec::new());
            }
        }
    }

    fn drop_silent(&mut self) {
        let late: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| match link.role {
                Role::Unknown(since) | Role::Greeted(_, since) => since.elapsed() >= SILENT,
                _ => false,
            })
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.cut(token, &Error::Gone("silent".into()));
        }
    }

    /// Looks at every word: what has changed is told, what is ours to do is begun.
    pub(super) fn look(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let control = shared.region.control();
        for oslet in control.oslet_ids() {
            let now = control.member(oslet)?;
            if oslet == shared.me {
                self.check_own(now);
                continue;
            }
            let participant = ParticipantId::runtime(oslet);
            let mapped = shared.region.segment(participant).map(|segment| segment.epoch());
            self.adopt(oslet, now, mapped);
            for event in self.table.observe(oslet, now, mapped) {
                match event {
                    Event::Fencing(oslet, epoch) => {
                        shared.end_channels(oslet, epoch);
                        self.tell_clients_gone(oslet, epoch);
                    }
                    Event::Dead(oslet, epoch) | Event::Left(oslet, epoch) => {
                        shared.end_channels(oslet, epoch);
                        self.tell_clients_gone(oslet, epoch);
                        self.forget_peer(oslet, epoch);
                    }
                    _ => {}
                }
                shared.tell(Task::Event(event));
            }
            if now.state == MemberState::Fencing {
                self.take_fence(oslet, now.epoch);
            }
        }
        self.try_serve()
    }

    /// Whoever is fenced must not do anything any more; the kill may be on its way.
    fn check_own(&self, now: crate::region::Membership) {
        let own = matches!(now.state, MemberState::Joining | MemberState::Alive);
        let left = now.state == MemberState::Vacant;
        if now.epoch != self.shared.epoch || !(own || left) {
            self.shared.log("fenced by the others: ending at once");
            std::process::exit(FENCED);
        }
    }

    /// From `Joining` to `Alive` once each peer that was there has mapped our segment and we
    /// theirs.
    fn try_serve(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let control = shared.region.control();
        if control.member(shared.me)?.state != MemberState::Joining {
            return Ok(());
        }
        for oslet in control.oslet_ids().filter(|oslet| *oslet != shared.me) {
            let member = control.member(oslet)?;
            let there = matches!(member.state, MemberState::Joining | MemberState::Alive);
            if there && !self.peers[oslet.index()].is_linked(member.epoch) {
                return Ok(());
            }
        }
        word::serve(control, shared.me, shared.epoch)?;
        self.tell_peers(&Message::Changed);
        shared.progress.lock().alive = true;
        shared.changed.notify_all();
        self.look()
    }

    /// Begins the fence of an incarnation unless somebody has it.
    pub(super) fn suspect(&mut self, oslet: OsletId, epoch: Epoch, why: &str) {
        let control = self.shared.region.control();
        let present = control.member(oslet).is_ok_and(|member| {
            member.epoch == epoch
                && matches!(member.state, MemberState::Joining | MemberState::Alive)
        });
        if present {
            let name = self.shared.name(oslet).to_owned();
            self.shared.log(format_args!("{name} epoch {epoch}: {why}"));
            self.take_fence(oslet, epoch);
        }
    }

    fn take_fence(&mut self, oslet: OsletId, epoch: Epoch) {
        if self.fences.get(&oslet) == Some(&epoch) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let control = shared.region.control();
        let gone = |who: OsletId| {
            let lives = |state| matches!(state, MemberState::Alive | MemberState::Joining);
            !control.member(who).is_ok_and(|member| lives(member.state))
        };
        match word::begin_fence(control, shared.me, oslet, epoch, gone) {
            Ok(Fencer::Me) => {}
            Ok(_) => return,
            Err(error) => return shared.log(error),
        }
        self.tell_peers(&Message::Changed);
        let kit = match self.kit(oslet, epoch) {
            Ok(kit) => kit,
            Err(error) => {
                shared.log(error);
                return shared.tell(Task::Event(Event::Stuck(oslet, epoch)));
            }
        };
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("fence".into());
        match thread.spawn(move || fencing::run(&worker, oslet, epoch, &kit)) {
            Ok(_) => drop(self.fences.insert(oslet, epoch)),
            // The word says that it is ours: the next look tries again.
            Err(error) => shared.log(format_args!("start fence: {error}")),
        }
    }

    fn kit(&self, oslet: OsletId, epoch: Epoch) -> Result<Kit> {
        let spec = &self.shared.spec;
        let recorded = fencing::recorded_kit(&spec.directory, &spec.names, oslet, epoch);
        let peer = &self.peers[oslet.index()];
        if peer.epoch != epoch || peer.process.is_none() {
            return recorded;
        }
        // Descriptors are better than names; the groups' names come from the record alone.
        let name = format!("{} epoch {epoch}", self.shared.name(oslet));
        let mut kit = peer.kit(name);
        // A client is in the record before anybody hears of it.
        let recorded = recorded?;
        kit.groups = recorded.groups;
        kit.clients.extend(recorded.clients);
        Ok(kit)
    }
}

/// The exit status of a runtime that finds itself fenced.
pub const FENCED: i32 = 3;

pub(super) fn other_version() -> Message {
    Message::Refused { why: format!("this runtime speaks version {PROTOCOL} of its messages") }
}

/// Whether that can be a peer's name for itself.
pub(super) fn runtime_of(who: Who, oslets: usize) -> Option<OsletId> {
    let participant = who.participant()?;
    let known = participant.is_runtime() && participant.oslet.index() < oslets;
    known.then_some(participant.oslet)
}
