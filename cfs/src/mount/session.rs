//! One served connection: its threads from INIT to the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use oslet::sys::fusectl;
use oslet::sys::interrupt::Interrupter;
use oslet::sys::uring::{RingStopper, RingThread};
use oslet::{Error, Result};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{self, op};
use super::dispatch::{self, Body};
use super::negotiate::{Agreement, Outcome, negotiate};
use super::notify::Notifier;
use super::ops::Filesystem;
use super::place::{Looking, Place};
use super::reply::{Buffers, Channel};
use super::waits::Waits;
use super::{dev, uring};

/// How long a dropped session waits for methods that are running.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that read /dev/fuse, for each CPU that requests may come from.
const THREADS_PER_CPU: usize = 2;
/// Between signals to threads that are to leave a blocking read.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(1);
/// One read or write is at least and at most so large.
const MAX_IO: std::ops::RangeInclusive<u32> = 64 << 10..=8 << 20;

/// How a connection is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// The CPUs whose requests are expected: over io_uring each has a bound thread, over /dev/fuse
    /// the threads go to those that callers are bound to. Empty: all that this process may use.
    pub cpus: Vec<usize>,
    /// Which transport.
    pub choice: Choice,
    /// Over io_uring: requests of one CPU that are in hand at a time (1 to 64). Each has a buffer
    /// of `max_io` bytes, of which only what is used takes memory.
    pub entries_per_queue: usize,
    /// Bytes of the largest read and write; the kernel's own limit is usually 1 MiB.
    pub max_io: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { cpus: Vec::new(), choice: Choice::Auto, entries_per_queue: 16, max_io: 1 << 20 }
    }
}

/// Which transport is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// io_uring where the kernel has it switched on, else /dev/fuse.
    Auto,
    /// /dev/fuse.
    Device,
}

/// Which transport is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Threads that read /dev/fuse, and why not io_uring.
    Device(String),
    /// FUSE over io_uring.
    Uring,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(why) => write!(f, "/dev/fuse: {why}"),
            Self::Uring => f.write_str("io_uring"),
        }
    }
}

/// A connection that is being served. Dropping it stops the service: if no other process holds a
/// descriptor of the connection, the kernel ends it, and every request then fails with ENOTCONN.
/// For a clean end unmount first.
pub struct Session {
    shared: Arc<Shared>,
    transport: Transport,
    connection: Option<u32>,
    rings: Vec<RingThread>,
    threads: Vec<JoinHandle<()>>,
    looking: Option<Looking>,
    finished: bool,
}

impl Session {
    /// Serves `device`, a descriptor of /dev/fuse that has been mounted already. Returns when the
    /// mount can be used.
    pub fn start(device: OwnedFd, fs: Arc<dyn Filesystem>, mut config: Config) -> Result<Self> {
        if config.cpus.is_empty() {
            config.cpus = usable_cpus()?;
        }
        let max_io = config.max_io.clamp(*MAX_IO.start(), *MAX_IO.end());
        let connection = fusectl::connection_of(&device);
        let device = Arc::new(device);
        let (unique, agreement) = read_init(&device, &*fs, max_io)?;
        let shared = Arc::new(Shared::new(fs, &device, &agreement)?);
        shared.waits.attach(&shared);
        // While this lives the session does not end, however fast its threads do.
        let starting = Guard::idle(&shared);
        let (rings, transport) = choose(&shared, &device, &config, &agreement);
        let mut session = Self {
            shared,
            transport,
            connection,
            rings,
            threads: Vec::new(),
            looking: None,
            finished: false,
        };
        let ready = session.answer_init(&device, unique, &agreement);
        if let Err(error) = ready.and_then(|()| session.register()) {
            uring::discard(std::mem::take(&mut session.rings));
            session.finished = true;
            return Err(error);
        }
        session.shared.set_stoppers(session.rings.iter().map(RingThread::stopper).collect());
        session.shared.started.store(true, Ordering::Release);
        for ring in &session.rings {
            ring.start();
        }
        let result = session.read_device(&device, &config);
        // Before the session may be dropped, which waits for all guards.
        drop(starting);
        result.map(|()| session)
    }

    /// Which transport is used, and why.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The connection's number in fusectl, where the kernel tells it (else see
    /// [`fusectl::connection_at`]).
    pub fn connection(&self) -> Option<u32> {
        self.connection
    }

    /// What was agreed with the kernel.
    pub fn agreed(&self) -> &super::Agreed {
        &self.shared.agreement.agreed
    }

    /// Callers are numbered in the PID namespace that the mount was made in; `proc` is a proc
    /// filesystem of it, by which it is seen where one runs and whether it is being killed. Without
    /// this: /proc, and the namespace of this process.
    pub fn set_proc(&self, proc: PathBuf) {
        self.shared.waits.set_proc(proc);
    }

    /// Sends notifications.
    pub fn notifier(&self) -> Notifier {
        self.shared.notifier()
    }

    /// Becomes readable when the session has ended: the mount is gone from all namespaces, the
    /// connection was aborted, or the service failed.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.shared.ended_event.as_fd()
    }

    /// Waits for the end; `false` when time runs out before.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.shared.wait(timeout)
    }

    /// Stops the service and frees what it used. Methods that run are waited for, requests in hand
    /// elsewhere fail. An error tells what had ended the service before, or who did not end in
    /// time.
    pub fn stop(mut self, timeout: Duration) -> Result<()> {
        self.finish(timeout)
    }

    fn finish(&mut self, timeout: Duration) -> Result<()> {
        self.finished = true;
        self.shared.shut_down(timeout);
        // Behind the end requests have been answered or fail, so whom it looks at goes on.
        let ended = self.shared.wait(timeout);
        self.looking.take().into_iter().for_each(Looking::stop);
        if !ended {
            let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let what = format!("{} threads of the mount", self.shared.state.lock().live);
            // Joining them would wait without bound: they go when their methods return.
            self.threads.clear();
            self.rings.clear();
            return Err(Error::Timeout { what, ms });
        }
        self.shared.set_stoppers(Vec::new());
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                result = Err(Error::Invalid("a thread of the mount panicked".into()));
            }
        }
        for ring in self.rings.drain(..) {
            if let Err(error) = ring.join() {
                result = Err(Error::io("FUSE over io_uring")(error));
            }
        }
        match self.shared.state.lock().error.take() {
            Some(error) => Err(Error::io("/dev/fuse: read")(error)),
            None => result,
        }
    }

    fn answer_init(&self, device: &OwnedFd, unique: u64, agreement: &Agreement) -> Result<()> {
        let answer = agreement.answer(self.transport == Transport::Uring);
        self.shared.fs.init(&agreement.agreed, &self.shared.waits);
        write_init(device, unique, &answer)
    }

    /// Has the kernel take the rings, or does without: it may have been switched off since the
    /// kernel made its offer, and that it has not agreed to the answer is seen here first.
    fn register(&mut self) -> Result<()> {
        for (index, ring) in self.rings.iter().enumerate() {
            match ring.register() {
                Ok(()) => {}
                Err(error) if index == 0 && is_unsupported(&error) => {
                    let why = "FUSE over io_uring was switched off while this was being mounted";
                    self.transport = Transport::Device(why.into());
                    uring::discard(std::mem::take(&mut self.rings));
                    return Ok(());
                }
                Err(error) => return Err(Error::io("FUSE over io_uring: registration")(error)),
            }
        }
        Ok(())
    }

    /// Starts the threads that read /dev/fuse: over io_uring FORGET and INTERRUPT still come there.
    fn read_device(&mut self, device: &OwnedFd, config: &Config) -> Result<()> {
        let (cpus, count): (Arc<[usize]>, usize) = match self.transport {
            Transport::Uring => ([].into(), 1),
            Transport::Device(_) => {
                // One may wait, and the other serves.
                let count = THREADS_PER_CPU * config.cpus.len();
                self.shared.waits.set_takers(count);
                (config.cpus.as_slice().into(), count)
            }
        };
        if cpus.len() > 1 {
            // Without it threads stay where they are.
            self.looking = Looking::start(&self.shared.waits).ok();
        }
        for index in 0..count {
            let cpus = Arc::clone(&cpus);
            let looker = self.looking.as_ref().map(Looking::looker);
            // Also the first: requests read through a clone fail when it is closed, even while
            // another process holds the connection.
            let device = Arc::new(fusectl::clone_device(device)?);
            let guard = Guard::new(&self.shared);
            let thread = thread::Builder::new()
                .name(format!("fuse-dev-{index}"))
                .spawn(move || {
                    let place = Place::new(cpus, index, looker);
                    if let Err(error) = dev::serve(guard.shared(), &device, place) {
                        guard.shared().state.lock().error.get_or_insert(error);
                    }
                    drop(device);
                    drop(guard);
                })
                .map_err(Error::io("/dev/fuse: thread"))?;
            self.threads.push(thread);
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.finished {
            // Whoever wants to know how it went calls `stop`.
            let _ = self.finish(DROP_TIMEOUT);
        }
    }
}

fn choose(
    shared: &Arc<Shared>,
    device: &Arc<OwnedFd>,
    config: &Config,
    agreement: &Agreement,
) -> (Vec<RingThread>, Transport) {
    let refused = |why: String| (Vec::new(), Transport::Device(why));
    if config.choice == Choice::Device {
        return refused("as configured".into());
    }
    match fusectl::uring_enabled() {
        Ok(true) if agreement.offers_uring => {}
        Ok(true) => return refused("the kernel did not offer FUSE over io_uring".into()),
        Ok(false) => {
            return refused(format!(
                "FUSE over io_uring is off; echo Y > {} (as root) switches it on for new mounts",
                fusectl::ENABLE_URING
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refused("this kernel has no FUSE over io_uring (Linux 6.14 and later)".into());
        }
        Err(error) => return refused(format!("{}: {error}", fusectl::ENABLE_URING)),
    }
    let payload_len =
        (agreement.max_write.max(agreement.agreed.max_read) as usize).max(abi::MIN_READ_BUFFER);
    match uring::rings(shared, device, config, payload_len) {
        Ok(rings) => (rings, Transport::Uring),
        Err(error) => refused(format!("io_uring cannot be used: {error}")),
    }
}

fn usable_cpus() -> Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).map_err(Error::io("sched_getaffinity"))?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

fn is_unsupported(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::OPNOTSUPP)
}

/// Reads INIT, the first request of every connection.
fn read_init(device: &OwnedFd, fs: &dyn Filesystem, max_io: u32) -> Result<(u64, Agreement)> {
    let page_size = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    let mut buffer = vec![0; abi::MIN_READ_BUFFER];
    loop {
        let len = match rustix::io::read(device, &mut buffer[..]) {
            Ok(len) => len,
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
            Err(Errno::PERM) => {
                return Err(Error::Invalid("/dev/fuse: mount it before it is served".into()));
            }
            Err(errno) => return Err(Error::io("/dev/fuse: read INIT")(errno)),
        };
        let bytes = &buffer[..len];
        let parsed = abi::InHeader::read_from_prefix(bytes).ok().and_then(|(header, body)| {
            // Before 7.36 the structure was shorter: what is missing is zero.
            let mut init = abi::InitIn::default();
            let known = body.len().min(size_of::<abi::InitIn>());
            init.as_mut_bytes()[..known].copy_from_slice(&body[..known]);
            (header.opcode == op::INIT && known >= 16).then_some((header, init))
        });
        let Some((header, init)) = parsed else {
            return Err(Error::Invalid("/dev/fuse: the first request is not INIT".into()));
        };
        match negotiate(&init, fs.features(), max_io, page_size)? {
            Outcome::AskAgain(answer) => write_init(device, header.unique, &answer)?,
            Outcome::Agreed(agreement) => return Ok((header.unique, agreement)),
        }
    }
}

fn write_init(device: &OwnedFd, unique: u64, answer: &abi::InitOut) -> Result<()> {
    let len = (size_of::<abi::OutHeader>() + size_of::<abi::InitOut>()) as u32;
    let mut bytes = abi::OutHeader { len, error: 0, unique }.as_bytes().to_vec();
    bytes.extend_from_slice(answer.as_bytes());
    rustix::io::write(device, &bytes).map_err(Error::io("/dev/fuse: answer to INIT"))?;
    Ok(())
}

/// Bytes that a request read from /dev/fuse may have.
fn read_buffer_len(agreement: &Agreement) -> usize {
    (agreement.max_write as usize + abi::WRITE_OVERHEAD).max(abi::MIN_READ_BUFFER)
}

/// What all threads of a session use.
pub(super) struct Shared {
    fs: Arc<dyn Filesystem>,
    agreement: Agreement,
    waits: Arc<Waits>,
    buffers: Arc<Buffers>,
    /// Gone when the session has ended, so that notifiers do not keep the connection alive.
    device: Mutex<Option<Arc<OwnedFd>>>,
    interrupter: Interrupter,
    stoppers: Mutex<Vec<RingStopper>>,
    started: AtomicBool,
    stopping: AtomicBool,
    state: Mutex<State>,
    ended: Condvar,
    ended_event: OwnedFd,
}

#[derive(Default)]
struct State {
    /// Threads that serve.
    live: usize,
    ended: bool,
    error: Option<io::Error>,
}

impl Shared {
    fn new(fs: Arc<dyn Filesystem>, device: &Arc<OwnedFd>, agreement: &Agreement) -> Result<Self> {
        Ok(Self {
            fs,
            waits: Waits::new(),
            buffers: Buffers::new(read_buffer_len(agreement)),
            agreement: *agreement,
            device: Mutex::new(Some(device.clone())),
            interrupter: Interrupter::new().map_err(Error::io("sigaction"))?,
            stoppers: Mutex::new(Vec::new()),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            state: Mutex::new(State::default()),
            ended: Condvar::new(),
            ended_event: eventfd(0, EventfdFlags::CLOEXEC).map_err(Error::io("eventfd"))?,
        })
    }

    pub(super) fn notifier(&self) -> Notifier {
        let device = self.device.lock();
        Notifier::new(device.as_ref().map(Arc::downgrade).unwrap_or_default())
    }

    pub(super) fn interrupter(&self) -> &Interrupter {
        &self.interrupter
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Buffers that hold any request read from /dev/fuse.
    pub(super) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Serves one request. A filesystem that panics has its request answered with EIO: the thread
    /// must go on, or everything on its CPU would wait for ever.
    pub(super) fn dispatch(
        &self,
        header: &abi::InHeader,
        body: Body<'_>,
        channel: impl FnOnce() -> Channel,
    ) {
        let max = self.agreement.agreed.max_read as usize;
        let serve = || dispatch::dispatch(&*self.fs, header, body, channel, max);
        // The panic has been reported by the hook.
        let _ = catch_unwind(AssertUnwindSafe(serve));
    }

    fn set_stoppers(&self, stoppers: Vec<RingStopper>) {
        *self.stoppers.lock() = stoppers;
    }

    /// Makes every thread leave; the first to call does it.
    fn shut_down(&self, timeout: Duration) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        self.waits.stop();
        for stopper in &*self.stoppers.lock() {
            stopper.stop();
        }
        let until = Instant::now() + timeout;
        while self.interrupter.interrupt() > 0 && Instant::now() < until {
            thread::sleep(INTERRUPT_INTERVAL);
        }
    }

    fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        let until = Instant::now() + timeout;
        while !state.ended {
            if self.ended.wait_until(&mut state, until).timed_out() {
                return state.ended;
            }
        }
        true
    }

    /// The last thread has left.
    fn end(&self) {
        drop(self.device.lock().take());
        self.fs.destroy();
        self.state.lock().ended = true;
        self.ended.notify_all();
        // A fresh eventfd always takes one more.
        let _ = rustix::io::write(&self.ended_event, &1u64.to_ne_bytes());
    }
}

/// Lives as long as a thread serves. When the first one ends, whatever the reason, all do: a queue
/// without its thread would keep its callers waiting.
pub(super) struct Guard {
    shared: Arc<Shared>,
    serves: bool,
}

impl Guard {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let mut guard = Self::idle(shared);
        guard.serves = true;
        guard
    }

    /// One that only holds up the end.
    pub(super) fn idle(shared: &Arc<Shared>) -> Self {
        shared.state.lock().live += 1;
        Self { shared: shared.clone(), serves: false }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let shared = &*self.shared;
        let live = {
            let mut state = shared.state.lock();
            state.live -= 1;
            state.live
        };
        if !shared.started.load(Ordering::Acquire) {
            return;
        }
        if live == 0 {
            shared.end();
        } else if self.serves {
            shared.shut_down(DROP_TIMEOUT);
        }
    }
}
