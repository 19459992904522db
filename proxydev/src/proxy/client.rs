//! A device that another OSlet owns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oslet::region::{Pins, Region};
use oslet::rpc::{Channel, Done, Reply};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::wire::{self, DeviceId};
use crate::data::Data;
use crate::device::{BlockDevice, Completion, DeviceInfo, Operation, Request};
use crate::{Error, Result, limits};

/// How long the pump waits at a time.
const TURN: Duration = Duration::from_millis(100);

/// How a proxy behaves.
#[derive(Clone, Copy, Debug)]
pub struct ProxyOptions {
    /// How long a request may take; then it ends with [`Error::Timeout`].
    pub limit: Duration,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self { limit: Duration::from_millis(limits::PROXY_MS) }
    }
}

/// A device that another OSlet owns, used like one of our own. When the owner is gone every request
/// ends with [`Error::Gone`]; whoever finds the successor opens the device anew there.
pub struct ProxyDevice {
    shared: Arc<Shared>,
    pump: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    id: DeviceId,
    info: DeviceInfo,
    channel: Arc<Channel>,
    region: Arc<Region>,
    limit: Duration,
    state: Mutex<State>,
    /// Tells the pump that there is something to wait for.
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests whose completion is due.
    in_flight: usize,
    /// Those of them that the channel has no room for yet.
    queue: VecDeque<Queued>,
    /// Loans whose frames are pinned, not reported yet.
    pinned: Vec<u64>,
    parked: bool,
    stop: bool,
}

struct Queued {
    message: Encoded,
    done: Done,
    deadline: Instant,
}

struct Encoded {
    kind: u16,
    args: [u64; 3],
    body: Vec<u8>,
}

/// What an answer is for.
struct Asked {
    what: &'static str,
    offset: u64,
    /// Bytes of a read; none of anything else.
    len: Option<u32>,
    /// How often frames of the answer were reused before they could be pinned.
    stale: u8,
    deadline: Instant,
    /// The data of a write, kept while the owner may pin them.
    data: Option<Data>,
    completion: Completion,
}

impl ProxyDevice {
    /// Opens the device of that number at the other end of `channel`, whose requests come from
    /// `region`'s participant.
    ///
    /// # Errors
    /// [`Error::Gone`] when the peer is gone or does not serve this device.
    pub fn open(
        name: &str,
        id: DeviceId,
        channel: &Arc<Channel>,
        region: &Arc<Region>,
        options: ProxyOptions,
    ) -> Result<Self> {
        let args = [0, wire::pair(id, 0), 0];
        let reply = channel.call(wire::INFO, args, &[], options.limit);
        let reply = reply.map_err(|error| transport(name, error))?;
        if let Some(errno) = wire::errno(reply.status) {
            return Err(refused(name, "open", 0, errno));
        }
        let info = wire::decode_info(&reply.body, &format!("{:?}", channel.server().0))?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            id,
            info,
            channel: Arc::clone(channel),
            region: Arc::clone(region),
            limit: options.limit,
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let mine = Arc::clone(&shared);
        let pump = std::thread::Builder::new()
            .name(format!("proxy-{}", id.0))
            .spawn(move || mine.pump())
            .map_err(oslet::Error::io(format!("{name}: start a thread")))?;
        Ok(Self { shared, pump: Some(pump) })
    }

    /// The participant that serves it.
    pub fn channel(&self) -> &Arc<Channel> {
        &self.shared.channel
    }
}

impl BlockDevice for ProxyDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn info(&self) -> DeviceInfo {
        self.shared.info
    }

    fn submit(&self, request: Request) {
        self.shared.submit(request);
        self.stop_polling();
    }

    fn submit_all(&self, requests: Vec<Request>) {
        for request in requests {
            self.shared.submit(request);
        }
        self.stop_polling();
    }

    fn submit_polled(&self, request: Request) {
        self.shared.submit(request);
    }

    fn stop_polling(&self) {
        let state = self.shared.state.lock();
        if state.parked && state.in_flight > 0 {
            self.shared.wake.notify_one();
        }
    }

    fn poll(&self) {
        self.shared.channel.poll();
    }
}

impl Drop for ProxyDevice {
    /// Waits until every request in flight has ended.
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(pump) = self.pump.take()
            && pump.thread().id() != std::thread::current().id()
        {
            // One that panicked has ended as well.
            let _ = pump.join();
        }
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, request: Request) {
        let Request { operation, completion } = request;
        if let Err(error) = operation.check(&self.name, &self.info) {
            return completion.complete(Err(error));
        }
        let (offset, bytes) = operation.extent();
        if bytes == 0 && !matches!(operation, Operation::Flush) {
            return completion.complete(Ok(Data::empty()));
        }
        let message = match self.encode(&operation) {
            Ok(message) => message,
            Err(error) => return completion.complete(Err(error)),
        };
        {
            let mut state = self.state.lock();
            if state.in_flight >= limits::MAX_QUEUED {
                drop(state);
                return completion.complete(Err(Error::Busy(self.name.clone())));
            }
            state.in_flight += 1;
        }
        let what = operation.what();
        let (len, data) = match operation {
            Operation::Read { len, .. } => (Some(len), None),
            Operation::Write { data, .. } => (None, Some(data)),
            _ => (None, None),
        };
        let deadline = Instant::now() + self.limit;
        let asked = Asked { what, offset, len, stale: 0, deadline, data, completion };
        self.ask(message, asked);
    }

    fn encode(&self, operation: &Operation) -> Result<Encoded> {
        let pair = |low| wire::pair(self.id, low);
        let plain = |kind, args| Encoded { kind, args, body: Vec::new() };
        Ok(match operation {
            Operation::Read { offset, len, .. } => {
                plain(wire::READ, [*offset, pair(*len), self.pinned_loan()])
            }
            Operation::Write { offset, data, fua } => match data.slices() {
                [one] => {
                    let low = wire::place(one) | u32::from(*fua) << 31;
                    plain(wire::WRITE_ONE, [*offset, one.page.to_word(), pair(low)])
                }
                many => {
                    let low = if *fua { wire::FUA } else { 0 };
                    let body = wire::encode_slices(many)?.to_vec();
                    let args = [*offset, pair(low), self.pinned_loan()];
                    Encoded { kind: wire::WRITE, args, body }
                }
            },
            Operation::Flush => plain(wire::FLUSH, [0, pair(0), 0]),
            Operation::Discard { offset, len } => plain(wire::DISCARD, [*offset, pair(0), *len]),
            Operation::WriteZeroes { offset, len, may_unmap, fua, fast } => {
                let unmap = if *may_unmap { wire::MAY_UNMAP } else { 0 };
                let unmap = unmap | if *fast { wire::FAST } else { 0 };
                let low = unmap | if *fua { wire::FUA } else { 0 };
                plain(wire::WRITE_ZEROES, [*offset, pair(low), *len])
            }
        })
    }

    /// A loan to end with the next request; 0 for none.
    fn pinned_loan(&self) -> u64 {
        self.state.lock().pinned.pop().unwrap_or(0)
    }

    fn ask(self: &Arc<Self>, message: Encoded, asked: Asked) {
        let (shared, deadline) = (Arc::clone(self), asked.deadline);
        let done: Done = Box::new(move |reply| shared.answered(reply, asked));
        self.send(Queued { message, done, deadline });
    }

    /// Sends a message, behind those that wait already.
    fn send(&self, queued: Queued) {
        let mut state = self.state.lock();
        if state.queue.is_empty() {
            drop(state);
            if let Some(queued) = self.try_send(queued) {
                self.state.lock().queue.push_back(queued);
            }
        } else {
            state.queue.push_back(queued);
        }
    }

    fn try_send(&self, queued: Queued) -> Option<Queued> {
        let Queued { message, done, deadline } = queued;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (what, ms) = (self.name.clone(), self.limit_ms());
            done(Err(oslet::Error::Timeout { what, ms }));
            return None;
        }
        let Encoded { kind, args, body } = &message;
        let done = self.channel.try_start(*kind, *args, body, left, done)?;
        Some(Queued { message, done, deadline })
    }

    /// Sends what waits, as far as there is room.
    fn send_queued(&self) {
        loop {
            // Not in the loop's condition, which would hold the lock while a request ends.
            let queued = self.state.lock().queue.pop_front();
            let Some(queued) = queued else { break };
            if let Some(queued) = self.try_send(queued) {
                self.state.lock().queue.push_front(queued);
                break;
            }
        }
    }

    fn answered(self: &Arc<Self>, reply: oslet::Result<Reply>, asked: Asked) {
        let refused = |errno| refused(&self.name, asked.what, asked.offset, errno);
        let result = match reply.map(|reply| (wire::errno(reply.status), reply)) {
            Err(error) => Err(self.failed(error)),
            Ok((Some(errno), _)) => Err(refused(errno)),
            Ok((None, reply)) => match asked.len {
                None => Ok(Data::empty()),
                Some(len) => match self.pin(&reply, len) {
                    Ok(Some(data)) => Ok(data),
                    Ok(None) if asked.stale < limits::STALE_RETRIES => {
                        match self.encode(&Operation::read(asked.offset, len)) {
                            Ok(read) => {
                                let stale = asked.stale + 1;
                                return self.ask(read, Asked { stale, ..asked });
                            }
                            Err(error) => Err(error),
                        }
                    }
                    Ok(None) => Err(refused(Errno::STALE)),
                    Err(error) => Err(error),
                },
            },
        };
        let Asked { completion, data, .. } = asked;
        drop(data);
        let release = {
            let mut state = self.state.lock();
            state.in_flight -= 1;
            let full = state.pinned.len() >= limits::RELEASE_BATCH;
            if full { std::mem::take(&mut state.pinned) } else { Vec::new() }
        };
        self.release(&release);
        completion.complete(result);
        self.send_queued();
    }

    /// Pins what a read's answer names. `None` when a frame was reused already.
    fn pin(&self, reply: &Reply, len: u32) -> Result<Option<Data>> {
        let peer = format!("{:?}", self.channel.server().0);
        let [loan, page, place] = reply.args;
        let slices = if reply.body.is_empty() {
            let place = u32::try_from(place).ok();
            let one = place.and_then(|place| wire::slice(page, place));
            vec![one.ok_or_else(|| wire::corrupt(&peer, format!("slice {page:#x}")))?]
        } else {
            wire::decode_slices(&reply.body, &peer)?
        };
        let mut pins = Pins::new(&self.region, slices.len());
        let mut valid = true;
        for slice in &slices {
            valid = valid && pins.add_from(slice.page, self.channel.server())?;
        }
        if loan != 0 {
            self.state.lock().pinned.push(loan);
        }
        if !valid {
            return Ok(None);
        }
        let data = Data::pinned(pins, slices)?;
        if data.len() != len as usize {
            return Err(wire::corrupt(&peer, format!("{} bytes for {len}", data.len())));
        }
        Ok(Some(data))
    }

    /// Tells the owner of loans that are pinned. One that it does not hear of ends by its age.
    fn release(&self, loans: &[u64]) {
        if loans.is_empty() {
            return;
        }
        if let Ok(body) = wire::encode_loans(loans) {
            let ignore: Done = Box::new(drop);
            self.channel.try_start(wire::RELEASE, [0; 3], &body, self.limit, ignore);
        }
    }

    fn failed(&self, error: oslet::Error) -> Error {
        match error {
            oslet::Error::Timeout { .. } => {
                Error::Timeout { device: self.name.clone(), ms: self.limit_ms() }
            }
            error => transport(&self.name, error),
        }
    }

    fn limit_ms(&self) -> u64 {
        u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX)
    }

    /// Hands out answers while there are requests that nobody polls for.
    fn pump(&self) {
        let mut state = self.state.lock();
        loop {
            if state.in_flight > 0 {
                drop(state);
                self.channel.attend(TURN);
                self.send_queued();
                state = self.state.lock();
                continue;
            }
            let loans = std::mem::take(&mut state.pinned);
            if !loans.is_empty() {
                drop(state);
                self.release(&loans);
                state = self.state.lock();
                continue;
            }
            if state.stop {
                break;
            }
            state.parked = true;
            self.wake.wait(&mut state);
            state.parked = false;
        }
    }
}

/// The error of a channel.
fn transport(name: &str, error: oslet::Error) -> Error {
    match error {
        oslet::Error::Gone(_) => Error::Gone(name.to_owned()),
        error => Error::Region(error),
    }
}

/// The owner's refusal.
fn refused(name: &str, what: &'static str, offset: u64, errno: Errno) -> Error {
    match errno {
        Errno::SHUTDOWN => Error::Gone(name.to_owned()),
        Errno::AGAIN => Error::Busy(name.to_owned()),
        errno => Error::Io { device: name.to_owned(), what, offset, errno },
    }
}
