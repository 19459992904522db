//! Native clients: the own ones, and those that other runtimes announce.
//!
//! A client can pin the frames of a segment only when it has that segment, and it is given a
//! runtime's only when that runtime has said that it has mapped the client's: so no home ever looks
//! for pins without seeing all of them. Nobody waits for a client, which may be stopped. The pins
//! of one that does not say itself that it has none left end when its process has.

use std::fs::File;

use super::control::{CLIENT_PROCESS, Control, Role};
use super::quota::{LET_GO, Over};
use super::*;
use crate::control_socket::Received;
use crate::sys::pidfd::PidFd;
use crate::wire::{Process, Who};

/// Epochs of a client are its runtime's, shifted by this, plus a number in its slot.
const EPOCH_SHIFT: u32 = 16;
/// Requests for channels under way.
const MAX_FORWARDED: usize = 1024;

/// The native clients of this OSlet.
#[derive(Default)]
pub(super) struct Guests {
    by_slot: HashMap<usize, Guest>,
    /// The last number used in each slot.
    numbers: HashMap<usize, u16>,
    /// Channels asked for on behalf of clients: link and number there.
    forwarded: HashMap<u64, (u64, u64)>,
}

struct Guest {
    who: ParticipantId,
    epoch: Epoch,
    id: ProcessId,
    process: Arc<PidFd>,
    link: Option<u64>,
    segment: Option<Arc<File>>,
    admitted: bool,
    /// Which runtimes have mapped it.
    mapped_by: Vec<(OsletId, Epoch)>,
    channels: HashMap<(u32, u32), u32>,
    over: Option<Over>,
}

impl Guest {
    fn who(&self) -> Who {
        Who::new(self.who, self.epoch)
    }
}

impl Control {
    /// A process asks for a slot.
    pub(super) fn client_enters(&mut self, token: u64) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(link) = self.links.get_mut(&token) else { return Ok(()) };
        let pid = link.connection.pid();
        let serving = {
            let progress = shared.progress.lock();
            progress.alive && progress.stop.is_none()
        };
        if !serving {
            return Err(Error::Gone(format!("{}: its runtime", shared.name(shared.me))));
        }
        let full = || Error::Exhausted(format!("{}: all client slots", shared.name(shared.me)));
        let guests = &mut self.guests;
        let number = |slot: &usize| guests.numbers.get(slot).copied().unwrap_or(0);
        let slot = (1..limits::SLOTS_PER_OSLET)
            .find(|slot| !guests.by_slot.contains_key(slot) && number(slot) < u16::MAX)
            .ok_or_else(full)?;
        let number = number(&slot) + 1;
        let major = u32::from(u16::try_from(shared.epoch.0).map_err(|_| full())?);
        let epoch = Epoch(major << EPOCH_SHIFT | u32::from(number));
        let who = ParticipantId::new(shared.me, slot).ok_or_else(full)?;
        let io = || Error::io(format!("client process {pid}"));
        let id = ProcessId::of(pid).map_err(io())?;
        let process = id.open().map_err(io())?;
        let process = process.ok_or_else(|| Error::Gone(format!("process {pid}")))?;
        let control = shared.region.control().file().try_clone().map_err(io())?;
        // In the record before anybody hears of it: whoever fences us must kill it too.
        shared.change_resources(|resources| {
            resources.clients.push(id);
            Ok(())
        })?;
        link.role = Role::Client(slot);
        guests.numbers.insert(slot, number);
        let guest = Guest {
            who,
            epoch,
            id,
            process: Arc::new(process),
            link: Some(token),
            segment: None,
            admitted: false,
            mapped_by: Vec::new(),
            channels: HashMap::new(),
            over: None,
        };
        let process = Arc::clone(&guest.process);
        guests.by_slot.insert(slot, guest);
        self.watch(process.as_fd(), CLIENT_PROCESS + slot as u64)?;
        let segments = shared.region.control().oslet_ids();
        let frames = segments.filter_map(|oslet| {
            shared.region.segment(ParticipantId::runtime(oslet)).map(|segment| segment.frames())
        });
        let frames = frames.max().unwrap_or(0) * shared.spec.names.len();
        let names = shared.spec.names.clone();
        let answer = Message::Slot { who: Who::new(who, epoch), names, frames: frames as u64 };
        self.send(token, &answer, vec![control.into()]);
        Ok(())
    }

    /// One of our clients says something.
    pub(super) fn hear_client(
        &mut self,
        token: u64,
        slot: usize,
        received: Received,
    ) -> Result<()> {
        let Some(guest) = self.guests.by_slot.get_mut(&slot) else { return Ok(()) };
        let peer = format!("client {:?}", guest.who);
        let corrupt = |what: &str| Error::Corrupt { peer: peer.clone(), what: what.to_owned() };
        match received.message {
            Message::Segment if guest.segment.is_none() => {
                let [segment] = <[OwnedFd; 1]>::try_from(received.descriptors)
                    .map_err(|_| corrupt("its segment comes with other than one descriptor"))?;
                self.client_segment(slot, File::from(segment))
            }
            Message::Reach { number, to, offer } => {
                let to = to.participant().filter(|p| p.is_runtime()).map(|p| (p.oslet, to));
                let (oslet, to) = to.ok_or_else(|| corrupt("a channel to nobody"))?;
                let count = guest.channels.entry((to.index, to.epoch)).or_default();
                *count += 1;
                if *count > limits::CLIENT_CHANNELS || guest.channels.len() > MAX_FORWARDED {
                    return Err(corrupt("too many channels"));
                }
                let (who, epoch) = (guest.who, guest.epoch);
                let shared = Arc::clone(&self.shared);
                if oslet == shared.me {
                    let ours = to.epoch() == shared.epoch;
                    let answer = if ours { shared.accept(who, epoch, offer) } else { None };
                    self.send(token, &Message::Answer { number, answer }, Vec::new());
                    return Ok(());
                }
                let peer = self.peers.get(oslet.index()).filter(|peer| peer.epoch == to.epoch());
                match peer.and_then(|peer| peer.link) {
                    Some(link) if self.guests.forwarded.len() < MAX_FORWARDED => {
                        let ours = shared.next_offer.fetch_add(1, Ordering::Relaxed);
                        self.guests.forwarded.insert(ours, (token, number));
                        let who = Who::new(who, epoch);
                        self.send(link, &Message::Offer { number: ours, who, offer }, Vec::new());
                    }
                    _ => self.send(token, &Message::Answer { number, answer: None }, Vec::new()),
                }
                Ok(())
            }
            Message::Retract { who } if who == guest.who() => {
                self.end_client(slot);
                Ok(())
            }
            _ => Err(corrupt("a message that a client does not send")),
        }
    }

    fn client_segment(&mut self, slot: usize, segment: File) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(guest) = self.guests.by_slot.get_mut(&slot) else { return Ok(()) };
        shared.region.map(&segment, guest.who, guest.epoch)?;
        guest.segment = Some(Arc::new(segment));
        guest.mapped_by.push((shared.me, shared.epoch));
        let (link, who, epoch) = (guest.link, guest.who, guest.epoch);
        let own = shared.region.own().reader()?;
        if let Some(link) = link {
            let announce = Message::Announce { who: shared.who(), process: None };
            self.send(link, &announce, vec![own.into()]);
            self.pass_orphans(link, |who| Message::Announce { who, process: None });
        }
        shared.tell(Task::Event(Event::ClientJoined(who, epoch)));
        for index in 0..self.peers.len() {
            if let Some(oslet) = OsletId::new(index) {
                self.announce_client(oslet, slot);
            }
        }
        self.admit(slot);
        Ok(())
    }

    /// Tells a runtime that was linked of all our clients.
    pub(super) fn announce_clients(&mut self, oslet: OsletId) {
        let slots: Vec<usize> = self.guests.by_slot.keys().copied().collect();
        for slot in slots {
            self.announce_client(oslet, slot);
        }
    }

    fn announce_client(&mut self, oslet: OsletId, slot: usize) {
        let Some(link) = self.peers[oslet.index()].link else { return };
        let Some(guest) = self.guests.by_slot.get(&slot) else { return };
        let Some(segment) = &guest.segment else { return };
        let message =
            Message::Announce { who: guest.who(), process: Some(Process::from(guest.id)) };
        let segment = Arc::clone(segment);
        self.send_segment(link, &message, &segment);
    }

    /// Tells a client that it is in, once every runtime that is linked has mapped it.
    fn admit(&mut self, slot: usize) {
        let Some(guest) = self.guests.by_slot.get_mut(&slot) else { return };
        let Some(link) = guest.link else { return };
        let mut linked = self.peers.iter().enumerate().filter(|(_, peer)| peer.link.is_some());
        let all = linked.all(|(index, peer)| {
            guest.mapped_by.iter().any(|&(o, epoch)| o.index() == index && epoch == peer.epoch)
        });
        if all && guest.segment.is_some() && !std::mem::replace(&mut guest.admitted, true) {
            self.send(link, &Message::Admit, Vec::new());
        }
    }

    /// What runtimes say to each other of clients.
    pub(super) fn hear_of_client(
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
        // Whose client that is: the sender's, or ours.
        let client = |who: Who, home: OsletId| {
            let client = who.participant().filter(|p| !p.is_runtime() && p.oslet == home);
            client.ok_or_else(|| corrupt("names a client that it cannot speak of"))
        };
        match received.message {
            Message::Announce { who, process: Some(process) } => {
                let participant = client(who, oslet)?;
                let [segment] = <[OwnedFd; 1]>::try_from(received.descriptors)
                    .map_err(|_| corrupt("announces with other than one descriptor"))?;
                if who.epoch >> EPOCH_SHIFT != epoch.0 {
                    return Err(corrupt("announces a client of another incarnation"));
                }
                self.map_client(token, participant, who, process, File::from(segment));
                Ok(())
            }
            Message::Announced { who } => {
                let slot = client(who, shared.me)?.slot();
                self.mapped_by(slot, who, oslet, epoch);
                Ok(())
            }
            Message::Retract { who } => {
                let participant = client(who, oslet)?;
                let clients = &mut self.peers[oslet.index()].clients;
                if clients.get(&participant.slot()).is_some_and(|(e, _)| *e == who.epoch()) {
                    clients.remove(&participant.slot());
                    shared.region.end_pins(participant, who.epoch());
                    shared.tell(Task::Event(Event::ClientGone(participant, who.epoch())));
                }
                Ok(())
            }
            Message::OverQuota { who, frames } if who == shared.who() => {
                self.asked_to_let_go(oslet, epoch, frames);
                Ok(())
            }
            Message::OverQuota { who, frames } => {
                let slot = client(who, shared.me)?.slot();
                self.client_over_quota(slot, who.epoch(), frames);
                Ok(())
            }
            _ => Err(corrupt("a message that a runtime does not send")),
        }
    }

    /// Another runtime's client. One that cannot be mapped never gets our segment.
    fn map_client(
        &mut self,
        token: u64,
        participant: ParticipantId,
        who: Who,
        process: Process,
        segment: File,
    ) {
        let shared = Arc::clone(&self.shared);
        let region = &shared.region;
        let mapped = region.segment(participant).map(|segment| segment.epoch());
        let known = &self.peers[participant.oslet.index()].clients;
        let known = known.get(&participant.slot()).is_some_and(|(e, _)| *e == who.epoch());
        if !known {
            let opened = match ProcessId::from(process).open() {
                Ok(Some(opened)) => opened,
                // It has ended meanwhile: its runtime will see that too.
                Ok(None) => return,
                Err(error) => return shared.log(format_args!("{participant:?}: {error}")),
            };
            if mapped != Some(who.epoch())
                && let Err(error) = region.map(&segment, participant, who.epoch())
            {
                return shared.log(format_args!("client {participant:?}: {error}"));
            }
            let clients = &mut self.peers[participant.oslet.index()].clients;
            clients.insert(participant.slot(), (who.epoch(), Arc::new(opened)));
            shared.tell(Task::Event(Event::ClientJoined(participant, who.epoch())));
        }
        self.send(token, &Message::Announced { who }, Vec::new());
    }

    /// A runtime has mapped one of our clients, which may use that runtime's frames from now on.
    fn mapped_by(&mut self, slot: usize, who: Who, oslet: OsletId, epoch: Epoch) {
        let Some(guest) = self.guests.by_slot.get_mut(&slot) else { return };
        let peer = &self.peers[oslet.index()];
        let new = !guest.mapped_by.contains(&(oslet, epoch));
        let Some(segment) = peer.segment.as_ref().filter(|_| peer.epoch == epoch) else { return };
        if guest.who() != who || !new {
            return;
        }
        guest.mapped_by.retain(|(other, _)| *other != oslet);
        guest.mapped_by.push((oslet, epoch));
        if let Some(link) = guest.link {
            let who = Who::new(ParticipantId::runtime(oslet), epoch);
            let segment = Arc::clone(segment);
            self.send_segment(link, &Message::Announce { who, process: None }, &segment);
        }
        self.admit(slot);
    }

    /// The answer to a channel that one of our clients asked for.
    pub(super) fn pass_answer(&mut self, number: u64, answer: Option<ChannelAnswer>) {
        if let Some((token, number)) = self.guests.forwarded.remove(&number) {
            self.send(token, &Message::Answer { number, answer }, Vec::new());
        }
    }

    /// The link to a client is gone; its pins count until its process has ended.
    pub(super) fn client_cut(&mut self, slot: usize, token: u64) {
        self.guests.forwarded.retain(|_, (link, _)| *link != token);
        if let Some(guest) = self.guests.by_slot.get_mut(&slot) {
            guest.link = None;
        }
    }

    /// A client's process has ended.
    pub(super) fn client_ended(&mut self, slot: usize) {
        if self.guests.by_slot.get(&slot).is_some_and(|guest| guest.process.is_dead()) {
            self.end_client(slot);
        }
    }

    fn end_client(&mut self, slot: usize) {
        let Some(guest) = self.guests.by_slot.remove(&slot) else { return };
        let shared = Arc::clone(&self.shared);
        self.unwatch(guest.process.as_fd());
        if let Some(link) = guest.link {
            self.cut(link, &Error::Gone(format!("client {:?}", guest.who)));
        }
        shared.region.end_pins(guest.who, guest.epoch);
        self.tell_peers(&Message::Retract { who: guest.who() });
        shared.tell(Task::Event(Event::ClientGone(guest.who, guest.epoch)));
        let changed = shared.change_resources(|resources| {
            if let Some(at) = resources.clients.iter().position(|id| *id == guest.id) {
                resources.clients.swap_remove(at);
            }
            Ok(())
        });
        if let Err(error) = changed {
            shared.log(error);
        }
    }

    /// The clients of an incarnation that is gone went before it.
    pub(super) fn end_peer_clients(&mut self, oslet: OsletId) {
        for (slot, (epoch, _)) in std::mem::take(&mut self.peers[oslet.index()].clients) {
            if let Some(who) = ParticipantId::new(oslet, slot) {
                self.shared.region.end_pins(who, epoch);
                self.shared.tell(Task::Event(Event::ClientGone(who, epoch)));
            }
        }
        let slots: Vec<usize> = self.guests.by_slot.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.admit(slot));
    }

    /// Requests to that runtime will not be answered any more.
    pub(super) fn tell_clients_gone(&mut self, oslet: OsletId, epoch: Epoch) {
        let who = Who::new(ParticipantId::runtime(oslet), epoch);
        self.tell_clients(&Message::Retract { who });
    }

    pub(super) fn tell_clients(&mut self, message: &Message) {
        let links: Vec<u64> = self.guests.by_slot.values().filter_map(|guest| guest.link).collect();
        for link in links {
            self.send(link, message, Vec::new());
        }
    }

    /// The process of a client, ours or another's.
    pub(super) fn client_process(&self, who: ParticipantId, epoch: Epoch) -> Option<Arc<PidFd>> {
        if who.oslet == self.shared.me {
            let guest = self.guests.by_slot.get(&who.slot())?;
            return (guest.epoch == epoch).then(|| Arc::clone(&guest.process));
        }
        let (known, process) = self.peers.get(who.oslet.index())?.clients.get(&who.slot())?;
        (*known == epoch).then(|| Arc::clone(process))
    }

    /// One of ours keeps too many frames in limbo, of our segment or another's.
    pub(super) fn client_over_quota(&mut self, slot: usize, epoch: Epoch, frames: u64) {
        let guest = self.guests.by_slot.get_mut(&slot).filter(|guest| guest.epoch == epoch);
        let Some(guest) = guest else { return };
        let over = Over::found(&mut guest.over, Instant::now());
        let (who, link) = (guest.who, guest.link);
        if over >= LET_GO {
            self.condemn(who, epoch, &format!("keeps {frames} frames in limbo"));
        } else if let (Some(link), true) = (link, over.is_zero()) {
            self.send(link, &Message::LetGo { frames }, Vec::new());
        }
    }
}

impl Shared {
    /// Opens this side of a channel, or says in the log why not.
    pub(super) fn accept(
        &self,
        from: ParticipantId,
        epoch: Epoch,
        offer: rpc::ChannelOffer,
    ) -> Option<ChannelAnswer> {
        let server = self.server.lock().clone()?;
        match server.accept(from, epoch, offer) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.log(format_args!("channel from {from:?}: {error}"));
                None
            }
        }
    }

    /// That client's rings and segment are given back.
    pub(super) fn forget_client(&self, who: ParticipantId, epoch: Epoch) {
        let server = self.server.lock().clone();
        if let Some(server) = server {
            server.drop_peer(who, epoch);
        }
        if let Err(error) = self.region.forget(who, epoch) {
            self.log(format_args!("client {who:?}: {error}"));
        }
    }

    /// Before this runtime leaves: nobody would know any more when its clients' pins end.
    pub(super) fn end_clients(&self) -> Vec<String> {
        let clients = self.resources.lock().clients.clone();
        let mut notes = Vec::new();
        for id in clients {
            let ended = match id.open() {
                Ok(Some(process)) => {
                    // It fails only for one that has ended: the wait says so.
                    let _ = process.send(libc::SIGKILL);
                    process.wait(LET_GO)
                }
                Ok(None) => true,
                Err(_) => false,
            };
            if !ended {
                notes.push(format!("client process {}: it does not end", id.pid));
            }
        }
        notes
    }
}
