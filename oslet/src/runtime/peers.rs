//! Links between runtimes: descriptors are exchanged, segments mapped.
//!
//! Both greet with their segment. Whoever has mapped the other's says so; only when both have may
//! a frame of the one be pinned by the other, and a joiner serves only when that holds for
//! everybody who was there.

use std::fs::File;

use super::control::{Control, Role, runtime_of};
use super::quota::Over;
use super::*;
use crate::control_socket::{Connection, Received};
use crate::member::fence::Kit;
use crate::sys::pidfd::PidFd;
use crate::wire::{PROTOCOL, Process, Who};

/// How soon a peer that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long a peer may be unreachable, or silent to a greeting, before its process is looked at.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// What is known of another runtime.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) epoch: Epoch,
    pub(super) process: Option<Arc<PidFd>>,
    pub(super) link: Option<u64>,
    /// It has said that our segment is mapped.
    pub(super) maps_us: bool,
    /// Its segment, to be passed to native clients.
    pub(super) segment: Option<Arc<File>>,
    /// Its native clients, by slot.
    pub(super) clients: HashMap<usize, (Epoch, Arc<PidFd>)>,
    kill: Option<Arc<OwnedFd>>,
    fuse: Vec<u32>,
    files: Vec<Arc<OwnedFd>>,
    tried: Option<Instant>,
    /// It keeps too many of our frames in limbo.
    pub(super) over: Option<Over>,
    /// Since when nobody answers there.
    unreachable: Option<Instant>,
}

impl Peer {
    pub(super) fn is_linked(&self, epoch: Epoch) -> bool {
        self.epoch == epoch && self.process.is_some() && self.maps_us
    }

    /// The link is gone; what is known of the process stays.
    pub(super) fn unlink(&mut self) {
        self.link = None;
    }

    pub(super) fn kit(&self, name: String) -> Kit {
        Kit {
            name,
            process: self.process.clone(),
            kill: self.kill.clone(),
            fuse: self.fuse.clone(),
            files: self.files.clone(),
            clients: self.clients.values().map(|(_, process)| Arc::clone(process)).collect(),
            ..Kit::default()
        }
    }
}

impl Control {
    /// Connects to every runtime that is there and not linked. Of two that could connect to each
    /// other the first in order does; a joiner connects to all.
    pub(super) fn connect_missing(&mut self) {
        let shared = Arc::clone(&self.shared);
        let control = shared.region.control();
        let joining = control.member(shared.me).is_ok_and(|m| m.state == MemberState::Joining);
        for oslet in control.oslet_ids().filter(|oslet| *oslet != shared.me) {
            let Ok(member) = control.member(oslet) else { continue };
            let there = matches!(member.state, MemberState::Joining | MemberState::Alive);
            let peer = &self.peers[oslet.index()];
            let linked = peer.link.is_some() && peer.epoch == member.epoch;
            let greeted = self
                .links
                .values()
                .any(|link| matches!(link.role, Role::Greeted(to, _) if to == oslet));
            let early = peer.tried.is_some_and(|tried| tried.elapsed() < RETRY);
            if !there || linked || greeted || early || !(joining || shared.me < oslet) {
                continue;
            }
            self.peers[oslet.index()].tried = Some(Instant::now());
            let directory = shared.spec.directory.join(shared.name(oslet));
            match Connection::connect(&directory) {
                Ok(connection) => {
                    self.peers[oslet.index()].unreachable = None;
                    let role = Role::Greeted(oslet, Instant::now());
                    match self.add_link(connection, role) {
                        Ok(token) => self.greet(token),
                        Err(error) => shared.log(error),
                    }
                }
                Err(_) => self.unreachable(oslet, member.epoch),
            }
        }
    }

    /// Nobody listens there. If its process is gone, it is fenced.
    fn unreachable(&mut self, oslet: OsletId, epoch: Epoch) {
        let since = *self.peers[oslet.index()].unreachable.get_or_insert_with(Instant::now);
        if since.elapsed() < UNREACHABLE {
            return;
        }
        let directory = self.shared.spec.directory.join(self.shared.name(oslet));
        match join::try_lock(&directory) {
            Ok(Some(_lock)) => self.suspect(oslet, epoch, "nobody listens there, and it has ended"),
            Ok(None) => {}
            Err(error) => self.shared.log(error),
        }
    }

    fn greet(&mut self, token: u64) {
        let shared = Arc::clone(&self.shared);
        let segment = match shared.region.own().reader() {
            Ok(segment) => segment,
            Err(error) => return self.cut(token, &error),
        };
        let hello = Message::Hello {
            protocol: PROTOCOL,
            cluster: shared.region.control().cluster().0,
            who: shared.who(),
            process: shared.process.into(),
        };
        self.send(token, &hello, vec![segment.into()]);
    }

    /// A runtime greets. When an incarnation before is still mapped, services first let go of its
    /// frames, and this is called again.
    pub(super) fn greeted(&mut self, token: u64, received: Received) {
        if let Err(error) = self.try_greeted(token, received) {
            self.cut(token, &error);
        }
    }

    fn try_greeted(&mut self, token: u64, received: Received) -> Result<()> {
        let Some(link) = self.links.get(&token) else { return Ok(()) };
        let (role, pid) = (link.role, link.connection.pid());
        let Message::Hello { protocol, cluster, who, process } = received.message else {
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let control = shared.region.control();
        let corrupt = |what: String| Error::Corrupt { peer: format!("process {pid}"), what };
        if protocol != PROTOCOL || cluster != control.cluster().0 {
            return Err(corrupt("greets with another version, or from another cluster".into()));
        }
        let oslet = runtime_of(who, control.oslets()).filter(|oslet| *oslet != shared.me);
        let oslet = oslet.ok_or_else(|| corrupt(format!("greets as {who:?}")))?;
        let expected = matches!(role, Role::Greeted(to, _) if to != oslet);
        let member = control.member(oslet)?;
        let there = matches!(member.state, MemberState::Joining | MemberState::Alive);
        if expected || process.pid != pid || !there || member.epoch != who.epoch() {
            return Err(corrupt(format!("greets as {who:?}, which it is not")));
        }
        let participant = ParticipantId::runtime(oslet);
        let mapped = shared.region.segment(participant).map(|segment| segment.epoch());
        let released = self.peers[oslet.index()].epoch == who.epoch();
        if let Some(old) = mapped
            && old != who.epoch()
            && !released
        {
            self.end_peer_clients(oslet);
            self.peers[oslet.index()] = Peer { epoch: who.epoch(), ..Peer::default() };
            let again = Arc::clone(&shared);
            self.waiting.insert(token, received);
            let done = Box::new(move || again.inbox.post(Command::Release(token)));
            shared.tell(Task::Release(participant, old, done));
            return Ok(());
        }
        let [segment] = <[OwnedFd; 1]>::try_from(received.descriptors)
            .map_err(|fds| corrupt(format!("greets with {} descriptors", fds.len())))?;
        let segment = File::from(segment);
        if mapped != Some(who.epoch()) {
            shared.region.map(&segment, participant, who.epoch())?;
        }
        self.linked(token, who, process, matches!(role, Role::Unknown(_)))?;
        self.peers[oslet.index()].segment = Some(Arc::new(segment));
        self.announce_clients(oslet);
        Ok(())
    }

    /// Its segment is mapped.
    fn linked(&mut self, token: u64, who: Who, process: Process, answer: bool) -> Result<()> {
        let oslets = self.peers.len();
        let Some(oslet) = runtime_of(who, oslets) else { return Ok(()) };
        let peer = &self.peers[oslet.index()];
        if peer.epoch != who.epoch() || peer.process.is_none() {
            let opened = crate::procfs::ProcessId::from(process).open();
            let opened = opened.map_err(Error::io(format!("process {}", process.pid)))?;
            let opened = opened.ok_or_else(|| Error::Gone(format!("process {}", process.pid)))?;
            if let Some(old) = self.peers[oslet.index()].process.take() {
                self.unwatch(old.as_fd());
            }
            self.watch_process(oslet, opened.as_fd())?;
            self.end_peer_clients(oslet);
            let process = Some(Arc::new(opened));
            self.peers[oslet.index()] = Peer { epoch: who.epoch(), process, ..Peer::default() };
        }
        self.peers[oslet.index()].link = Some(token);
        if let Some(link) = self.links.get_mut(&token) {
            link.role = Role::Peer(oslet, who.epoch());
        }
        if answer {
            self.greet(token);
        }
        self.send_resources(token);
        self.pass_orphans(token, |who| Message::Orphan { who });
        self.send(token, &Message::Mapped, Vec::new());
        Ok(())
    }

    pub(super) fn send_resources(&mut self, token: u64) {
        let resources = self.shared.resources.lock().clone();
        let files = resources.files.iter().map(|(_, file)| file);
        let descriptors: rustix::io::Result<Vec<OwnedFd>> = resources
            .kill
            .iter()
            .chain(files)
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 0))
            .collect();
        let message = Message::Resources {
            kill: resources.kill.is_some(),
            files: resources.files.len() as u32,
            fuse: resources.fuse,
        };
        match descriptors {
            Ok(descriptors) => self.send(token, &message, descriptors),
            Err(error) => self.cut(token, &Error::io("dup")(error)),
        }
    }

    pub(super) fn hear_peer(
        &mut self,
        token: u64,
        oslet: OsletId,
        epoch: Epoch,
        received: Received,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let corrupt = |what: &str| Error::Corrupt {
            peer: shared.name(oslet).to_owned(),
            what: what.to_owned(),
        };
        match received.message {
            Message::Mapped => {
                if self.peers[oslet.index()].epoch == epoch {
                    self.peers[oslet.index()].maps_us = true;
                }
                self.look()
            }
            Message::Changed => self.look(),
            Message::Orphan { who } => {
                let [segment] = <[OwnedFd; 1]>::try_from(received.descriptors)
                    .map_err(|_| corrupt("an orphan with other than one descriptor"))?;
                self.take_orphan(who, File::from(segment))
            }
            Message::Resources { fuse, kill, files } => {
                let many = fuse.len() > limits::MAX_FUSE_CONNECTIONS;
                let count = files as usize + usize::from(kill);
                if many || received.descriptors.len() != count {
                    return Err(corrupt("resources and descriptors do not agree"));
                }
                let peer = &mut self.peers[oslet.index()];
                if peer.epoch == epoch {
                    let mut descriptors = received.descriptors.into_iter().map(Arc::new);
                    peer.kill = if kill { descriptors.next() } else { None };
                    peer.files = descriptors.collect();
                    peer.fuse = fuse;
                }
                Ok(())
            }
            Message::Offer { number, who, offer } => {
                let from = who.participant().filter(|from| from.oslet == oslet);
                // Of clients the server checks that they are mapped in that epoch.
                let from = from.filter(|from| !from.is_runtime() || who.epoch() == epoch);
                let from = from.ok_or_else(|| corrupt("offers a channel as another"))?;
                let answer = shared.accept(from, who.epoch(), offer);
                self.send(token, &Message::Answer { number, answer }, Vec::new());
                Ok(())
            }
            Message::Answer { number, answer } => {
                if let Some(waiting) = shared.offers.lock().remove(&number) {
                    // Whoever waited may have given up.
                    let _ = waiting.try_send(answer);
                } else {
                    self.pass_answer(number, answer);
                }
                Ok(())
            }
            _ => self.hear_of_client(token, oslet, epoch, received),
        }
    }

    /// That incarnation is gone.
    pub(super) fn forget_peer(&mut self, oslet: OsletId, epoch: Epoch) {
        let peer = &mut self.peers[oslet.index()];
        if peer.epoch != epoch {
            return;
        }
        self.end_peer_clients(oslet);
        let old = std::mem::take(&mut self.peers[oslet.index()]);
        if let Some(process) = old.process {
            self.unwatch(process.as_fd());
        }
        if let Some(token) = old.link {
            self.cut(token, &Error::Gone(self.shared.name(oslet).to_owned()));
        }
    }
}
