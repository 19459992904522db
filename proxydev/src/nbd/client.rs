//! A disk that is somebody else's NBD export. See docs/devices.md.

mod connection;
mod negotiate;
mod work;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oslet::arena::Arena;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustls::ClientConfig;

use self::negotiate::{Effort, Terms};
use self::work::Work;
use super::link::{Link, Message};
use super::stream::Stream;
use super::uri::Uri;
use super::wire::{Command, ExportFlags};
use super::{link, tls};
use crate::device::{BlockDevice, DeviceInfo, Operation, Request};
use crate::{Data, Error, Result, limits};

/// How an export is used.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The device's name, for messages; by default the URI.
    pub name: Option<String>,
    /// Refuse every change.
    pub read_only: bool,
    /// Connections, where the server has several share what they flush.
    pub connections: usize,
    /// How long requests wait for a server that is gone or silent.
    pub limit: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: None,
            read_only: false,
            connections: limits::NBD_CLIENT_CONNECTIONS,
            limit: Duration::from_millis(limits::NBD_RECONNECT_MS),
        }
    }
}

/// An export as a device.
pub struct NbdDevice {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    turn: AtomicUsize,
}

struct Shared {
    name: String,
    uri: Uri,
    tls: Option<Arc<ClientConfig>>,
    effort: Effort,
    terms: Terms,
    info: DeviceInfo,
    limit: Duration,
    arena: Arc<Arena>,
    lanes: Vec<Lane>,
    queued: AtomicUsize,
    stopping: AtomicBool,
}

/// A connection, as long as there is one, and what is asked over it.
#[derive(Default)]
struct Lane {
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    link: Option<Arc<Link>>,
    /// It has been gone for too long: nobody waits for it any more.
    given_up: bool,
    work: HashMap<u64, Work>,
    cookie: u64,
}

impl NbdDevice {
    /// Connects to the export that a URI names, with frames from `arena` for what is read.
    ///
    /// # Errors
    /// When the server cannot be reached, has no such export, or asks for something else.
    pub fn open(uri: &str, options: ClientOptions, arena: &Arc<Arena>) -> Result<Self> {
        let name = options.name.unwrap_or_else(|| uri.to_owned());
        let uri = Uri::parse(uri)?;
        let tls = match (&uri.certificates, uri.secure) {
            (Some(directory), true) => Some(tls::client(directory)?),
            (None, true) => {
                return Err(Error::Invalid(format!(
                    "{name}: TLS needs ?tls-certificates=DIR with a ca-cert.pem"
                )));
            }
            (_, false) => None,
        };
        let deadline = || Instant::now() + Duration::from_millis(limits::NBD_HANDSHAKE_MS);
        let mut effort = Effort::Full;
        let first = negotiate::connect(&uri, tls.as_ref(), effort, deadline());
        let (stream, terms) = match first {
            Err(error @ Error::Protocol(_)) => {
                effort = Effort::NameOnly;
                let second = negotiate::connect(&uri, tls.as_ref(), effort, deadline());
                // What went wrong first says more.
                second.map_err(|_| error)?
            }
            first => first?,
        };
        let info = geometry(&name, &terms, options.read_only)?;
        let several = terms.flags.contains(ExportFlags::CAN_MULTI_CONN);
        let count =
            if several { options.connections.clamp(1, limits::NBD_CLIENT_CONNECTIONS) } else { 1 };
        let shared = Arc::new(Shared {
            name,
            uri,
            tls,
            effort,
            terms,
            info,
            limit: options.limit,
            arena: Arc::clone(arena),
            lanes: (0..count).map(|_| Lane::default()).collect(),
            queued: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let mut device = Self { shared, threads: Vec::new(), turn: AtomicUsize::new(0) };
        let mut first = Some(stream);
        for index in 0..count {
            device.start(index, first.take())?;
        }
        Ok(device)
    }

    fn start(&mut self, index: usize, stream: Option<Stream>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let link = match stream.map(Link::new).transpose() {
            Ok(link) => link.map(Arc::new),
            Err(error) => return Err(Error::Protocol(format!("eventfd: {error}"))),
        };
        shared.lanes[index].state.lock().link.clone_from(&link);
        let thread = std::thread::Builder::new().name("nbd-client".into());
        let thread = thread.spawn(move || connection::run(&shared, index, link));
        let thread = thread.map_err(|error| Error::Invalid(format!("nbd: no thread: {error}")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Connections that there are now.
    pub fn connections(&self) -> usize {
        self.shared.lanes.iter().filter(|lane| lane.state.lock().link.is_some()).count()
    }

    /// The lane whose turn it is, of those that are connected if any is.
    fn lane(&self) -> &Lane {
        let lanes = &self.shared.lanes;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = |step: usize| &lanes[turn.wrapping_add(step) % lanes.len()];
        let live = (0..lanes.len()).find(|step| at(*step).state.lock().link.is_some());
        at(live.unwrap_or(0))
    }
}

/// What the device looks like from here.
fn geometry(name: &str, terms: &Terms, read_only: bool) -> Result<DeviceInfo> {
    let (min, best, max) = terms.blocks;
    let block = min.max(limits::MIN_BLOCK_SIZE);
    if !block.is_power_of_two() || block > limits::MAX_TRANSFER || max < block {
        return Err(Error::Invalid(format!(
            "{name}: requests of {min} to {max} bytes: not supported"
        )));
    }
    let most = max.min(limits::MAX_TRANSFER);
    Ok(DeviceInfo {
        size: terms.size - terms.size % u64::from(block),
        block_size: block,
        optimal_size: best.clamp(block, limits::MAX_TRANSFER),
        memory_alignment: 1,
        max_transfer: most - most % block,
        read_only: read_only || terms.flags.contains(ExportFlags::READ_ONLY),
        discard: terms.flags.contains(ExportFlags::SEND_TRIM),
    })
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The error of work whose server is gone.
    fn lost(&self, work: Work) {
        let (what, offset) = work
            .steps
            .front()
            .map_or(("request", 0), |step| (name_of(step.request.command), step.request.offset));
        self.complete(work, Err((Errno::IO, what, offset)));
    }

    fn complete(&self, work: Work, result: std::result::Result<Data, (Errno, &'static str, u64)>) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        let Work { completion, steps, target, .. } = work;
        // Data and frames come home before its submitter hears of it.
        drop((steps, target));
        completion.complete(result.map_err(|(errno, what, offset)| {
            let device = self.name.clone();
            Error::Io { device, what, offset, errno }
        }));
    }
}

fn name_of(command: Command) -> &'static str {
    match command {
        Command::Read => "read",
        Command::Write => "write",
        Command::Flush => "flush",
        Command::Trim => "discard",
        Command::WriteZeroes => "write zeroes",
        _ => "request",
    }
}

/// What is sent for the present step of some work.
fn message(terms: &Terms, work: &Work, cookie: u64) -> Message {
    let mut head = Vec::with_capacity(32);
    let mut data = Vec::new();
    if let Some(step) = work.steps.front() {
        super::wire::Request { cookie, ..step.request }.encode(terms.mode, &mut head);
        data.extend(step.data.iter().map(|data| link::Bytes::Shared(Arc::clone(data))));
    }
    Message { head, data, _held: None }
}

impl LaneState {
    /// Takes work in and returns what is to be sent for it, if there is a connection.
    fn add(&mut self, terms: &Terms, work: Work) -> Option<(Arc<Link>, Message)> {
        self.cookie += 1;
        let message = message(terms, &work, self.cookie);
        self.work.insert(self.cookie, work);
        Some((self.link.clone()?, message))
    }
}

impl BlockDevice for NbdDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn info(&self) -> DeviceInfo {
        self.shared.info
    }

    fn submit(&self, request: Request) {
        let Request { operation, completion } = request;
        let shared = &self.shared;
        if let Err(error) = operation.check(&shared.name, &shared.info) {
            return completion.complete(Err(error));
        }
        if operation.extent().1 == 0 && !matches!(operation, Operation::Flush) {
            return completion.complete(Ok(Data::empty()));
        }
        if shared.queued.load(Ordering::Relaxed) >= limits::MAX_QUEUED {
            return completion.complete(Err(Error::Busy(shared.name.clone())));
        }
        let Some(work) = Work::new(operation, completion, &shared.terms, &shared.arena) else {
            return;
        };
        shared.queued.fetch_add(1, Ordering::Relaxed);
        let lane = self.lane();
        let mut state = lane.state.lock();
        if state.given_up {
            drop(state);
            return shared.lost(work);
        }
        let sent = state.add(&shared.terms, work);
        drop(state);
        if let Some((link, message)) = sent {
            link.push(message);
        }
    }
}

impl Drop for NbdDevice {
    /// What is in hand is waited for, as long as it may take.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for lane in &self.shared.lanes {
            if let Some(link) = &lane.state.lock().link {
                link.ring();
            }
        }
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // The last owner may be a completion, on the thread itself: that one ends alone.
            if thread.thread().id() != std::thread::current().id() {
                // One that panicked has ended as well.
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for NbdDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nbd client of {}", self.shared.uri.address)
    }
}

#[cfg(test)]
mod tests;
