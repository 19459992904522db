//! The owner's side: requests of other participants on devices that this process drives.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oslet::id::{Epoch, ParticipantId};
use oslet::region::{Pins, Region};
use oslet::rpc::{Handler, Replier, Request as Message};
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::wire::{self, DeviceId};
use crate::data::{Data, Slice};
use crate::device::{BlockDevice, Operation, Request};
use crate::{Error, Result, limits};

/// The devices that this process serves to others. Requests come to it as a [`Handler`], directly
/// or from a runtime's own that sorts by [`wire::KINDS`].
pub struct Exports {
    region: Arc<Region>,
    devices: RwLock<HashMap<DeviceId, Arc<dyn BlockDevice>>>,
    peers: Mutex<HashMap<(ParticipantId, Epoch), Arc<Peer>>>,
}

/// What one participant, in one incarnation, has in hand here.
#[derive(Default)]
struct Peer {
    in_flight: AtomicUsize,
    loans: Mutex<Loans>,
}

/// Data that a peer was told of and has not pinned yet, as far as is known.
#[derive(Default)]
struct Loans {
    last: u64,
    /// In order of age.
    held: BTreeMap<u64, (Instant, Data)>,
    pages: usize,
}

impl Exports {
    /// No devices yet.
    pub fn new(region: &Arc<Region>) -> Arc<Self> {
        let region = Arc::clone(region);
        Arc::new(Self { region, devices: RwLock::default(), peers: Mutex::default() })
    }

    /// Serves a device under that number from now on; returns the one served so before.
    pub fn add(&self, id: DeviceId, device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        self.devices.write().insert(id, device)
    }

    /// Serves it no more: its clients find its owner gone. What is in flight still ends.
    pub fn remove(&self, id: DeviceId) -> Option<Arc<dyn BlockDevice>> {
        self.devices.write().remove(&id)
    }

    /// Ends all loans to a participant that is gone.
    pub fn drop_peer(&self, who: ParticipantId, epoch: Epoch) {
        let peer = self.peers.lock().remove(&(who, epoch));
        let ended = peer.map(|peer| peer.loans.lock().end_while(|_, _| true));
        drop(ended);
    }

    /// Ends loans that are older than [`limits::LOAN_MS`]; to be called now and then.
    pub fn tick(&self) {
        let peers: Vec<_> = self.peers.lock().values().cloned().collect();
        for peer in peers {
            let ended = peer.loans.lock().end_old();
            drop(ended);
        }
    }

    /// Frames that a participant is lent at the moment.
    pub fn loaned_pages(&self, who: ParticipantId, epoch: Epoch) -> usize {
        let peer = self.peers.lock().get(&(who, epoch)).cloned();
        peer.map_or(0, |peer| peer.loans.lock().pages)
    }

    fn peer(&self, who: ParticipantId, epoch: Epoch) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        if !peers.contains_key(&(who, epoch)) {
            // An incarnation that is over cannot ask any more.
            peers.retain(|(other, _), _| *other != who);
        }
        Arc::clone(peers.entry((who, epoch)).or_default())
    }

    fn serve(&self, message: &Message, replier: Replier) {
        let name = format!("{:?}", message.from);
        let peer = self.peer(message.from, message.epoch);
        let (device, operation) = match self.decode(message, &peer, &name) {
            Ok(Decoded::Operation(device, operation)) => (device, operation),
            Ok(Decoded::Done(body)) => return replier.ok([0; 3], &body),
            Err(error) => return replier.error(error.errno().raw_os_error()),
        };
        if peer.in_flight.fetch_add(1, Ordering::Relaxed) >= limits::MAX_PEER_REQUESTS {
            peer.in_flight.fetch_sub(1, Ordering::Relaxed);
            return replier.error(Errno::AGAIN.raw_os_error());
        }
        device.submit(Request::new(operation, move |result| {
            peer.in_flight.fetch_sub(1, Ordering::Relaxed);
            answer(&peer, result, replier);
        }));
    }

    fn decode(&self, message: &Message, peer: &Peer, name: &str) -> Result<Decoded> {
        let [first, second, third] = message.args;
        let bad = || wire::corrupt(name, format!("request {:#x}", message.kind));
        let flags = |low| wire::flags(low).ok_or_else(bad);
        let (device, operation) = match message.kind {
            wire::INFO => {
                let device = self.device(wire::unpair(second).0)?;
                return Ok(Decoded::Done(wire::encode_info(&device.info())?.to_vec()));
            }
            wire::RELEASE => {
                let loans = wire::decode_loans(&message.body, name)?;
                let ended: Vec<_> = loans.iter().map(|loan| peer.loans.lock().end(*loan)).collect();
                drop(ended);
                return Ok(Decoded::Done(Vec::new()));
            }
            wire::READ => {
                drop(peer.loans.lock().end(third));
                let (device, len) = wire::unpair(second);
                (device, Operation::read(first, len))
            }
            wire::WRITE_ONE => {
                let (device, low) = wire::unpair(third);
                let slice = wire::slice(second, low & !(1 << 31)).ok_or_else(bad)?;
                let data = self.pin(vec![slice], message)?;
                (device, Operation::Write { offset: first, data, fua: low >> 31 != 0 })
            }
            wire::WRITE => {
                drop(peer.loans.lock().end(third));
                let (device, low) = wire::unpair(second);
                let fua = flags(low)? & wire::FUA != 0;
                let data = self.pin(wire::decode_slices(&message.body, name)?, message)?;
                (device, Operation::Write { offset: first, data, fua })
            }
            wire::FLUSH => (wire::unpair(second).0, Operation::Flush),
            wire::DISCARD => {
                let (device, _) = wire::unpair(second);
                (device, Operation::Discard { offset: first, len: third })
            }
            wire::WRITE_ZEROES => {
                let (device, low) = wire::unpair(second);
                let flags = flags(low)?;
                let (may_unmap, fua) = (flags & wire::MAY_UNMAP != 0, flags & wire::FUA != 0);
                let fast = flags & wire::FAST != 0;
                (device, Operation::WriteZeroes { offset: first, len: third, may_unmap, fua, fast })
            }
            _ => return Err(Error::Invalid(format!("request {:#x} of {name}", message.kind))),
        };
        Ok(Decoded::Operation(self.device(device)?, operation))
    }

    fn device(&self, id: DeviceId) -> Result<Arc<dyn BlockDevice>> {
        let device = self.devices.read().get(&id).cloned();
        device.ok_or_else(|| Error::Gone(format!("device {}", id.0)))
    }

    /// Pins the frames that a peer wants written.
    fn pin(&self, slices: Vec<Slice>, message: &Message) -> Result<Data> {
        let mut pins = Pins::new(&self.region, slices.len());
        for slice in &slices {
            if !pins.add_from(slice.page, (message.from, message.epoch))? {
                return Err(Error::Io {
                    device: format!("{:?}", message.from),
                    what: "pin",
                    offset: 0,
                    errno: Errno::STALE,
                });
            }
        }
        Data::pinned(pins, slices)
    }
}

enum Decoded {
    Operation(Arc<dyn BlockDevice>, Operation),
    /// Answered without a device, with this body.
    Done(Vec<u8>),
}

impl Handler for Exports {
    fn handle(&self, message: Message, replier: Replier) {
        self.serve(&message, replier);
    }

    fn broken(&self, peer: ParticipantId, epoch: Epoch, _error: oslet::Error) {
        self.drop_peer(peer, epoch);
    }
}

fn answer(peer: &Peer, result: Result<Data>, replier: Replier) {
    let data = match result {
        Ok(data) if data.is_empty() => return replier.ok([0; 3], &[]),
        Ok(data) => data,
        Err(error) => return replier.error(error.errno().raw_os_error()),
    };
    let (inline, body) = match data.slices() {
        [one] => ([one.page.to_word(), wire::place(one).into()], Ok(Vec::new())),
        many => ([0; 2], wire::encode_slices(many).map(|body| body.to_vec())),
    };
    match body {
        Ok(body) => {
            // Lent before the peer hears of it.
            let (loan, ended) = peer.loans.lock().lend(data);
            replier.ok([loan, inline[0], inline[1]], &body);
            drop(ended);
        }
        Err(error) => replier.error(error.errno().raw_os_error()),
    }
}

impl Loans {
    /// Returns the loan's number, and what had to end for it. Letting data go takes other locks, so
    /// that is left to the caller.
    fn lend(&mut self, data: Data) -> (u64, Vec<Data>) {
        self.last += 1;
        self.pages += data.slices().len();
        self.held.insert(self.last, (Instant::now(), data));
        let last = self.last;
        let mut ended = self.end_old();
        // The newest stays in any case: nobody has had time to pin it.
        ended.extend(
            self.end_while(|loans, loan| loans.pages > limits::MAX_LOANED_PAGES && loan != last),
        );
        (last, ended)
    }

    fn end(&mut self, loan: u64) -> Option<Data> {
        let (_, data) = self.held.remove(&loan)?;
        self.pages -= data.slices().len();
        Some(data)
    }

    fn end_old(&mut self) -> Vec<Data> {
        let now = Instant::now();
        let age = Duration::from_millis(limits::LOAN_MS);
        self.end_while(|loans, loan| {
            loans.held.get(&loan).is_some_and(|(since, _)| now.duration_since(*since) > age)
        })
    }

    fn end_while(&mut self, condition: impl Fn(&Self, u64) -> bool) -> Vec<Data> {
        let mut ended = Vec::new();
        while let Some(&oldest) = self.held.keys().next()
            && condition(self, oldest)
        {
            ended.extend(self.end(oldest));
        }
        ended
    }
}
