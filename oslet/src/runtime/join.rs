//! Taking a place in the cluster.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Weak;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::control::Control;
use super::division::divide;
use super::*;
use crate::control_socket::Listener;
use crate::member::fence::Kit;
use crate::member::heartbeat::Watch;
use crate::member::word::{Fencer, Join};
use crate::region::{ControlPage, OwnSegment, Paging, SegmentSpec};

/// How long survivors have to fence our last incarnation before we do it ourselves.
const SURVIVORS: Duration = Duration::from_millis(300);

impl Runtime {
    /// Joins the cluster of that control page in the place that the specification names. The
    /// calling process is this runtime from now on: SIGTERM and SIGINT ask it to stop.
    ///
    /// # Errors
    /// When a runtime of that OSlet runs already, its last incarnation cannot be fenced, memory is
    /// short, or a peer does not answer; nothing is left then.
    pub fn join(spec: Spec, control: ControlPage, cluster_lock: Option<OwnedFd>) -> Result<Self> {
        let me = OsletId::new(spec.oslet).filter(|me| me.index() < control.oslets());
        let name = spec.names.get(spec.oslet).cloned();
        let (Some(me), Some(name)) = (me, name) else {
            return Err(Error::Invalid(format!("OSlet number {}: not here", spec.oslet)));
        };
        let directory = spec.directory.join(&name);
        fs::create_dir_all(&directory).map_err(Error::file(&directory, "create"))?;
        let lock = take_lock(&directory, &name)?;
        let listener = Listener::bind(&directory)?;
        let process = ProcessId::own().map_err(Error::io("own process"))?;
        let epoch = take_place(&control, me, &spec, &directory)?;
        // For the way back, should memory be short.
        let again = control.file().try_clone().map_err(Error::io("control page: dup"))?;
        let again = ControlPage::open(again)?;
        let started = make_shared(spec, control, me, epoch, process).and_then(|shared| {
            let threads = start_threads(&shared, listener)?;
            Ok((shared, threads))
        });
        let (shared, threads) = match started {
            Ok(started) => started,
            Err(error) => {
                // The first error is the one to report; who is fenced meanwhile is so anyway.
                let _ = word::leave(&again, me, epoch);
                let _ = remove_files(&directory);
                return Err(error);
            }
        };
        let handle = Handle(shared);
        let runtime = Self { handle, threads, _lock: lock, _cluster_lock: cluster_lock };
        match runtime.await_alive() {
            Ok(()) => Ok(runtime),
            Err(error) => {
                // As above.
                let _ = runtime.leave(false);
                Err(error)
            }
        }
    }

    fn await_alive(&self) -> Result<()> {
        let shared = &self.handle.0;
        let end = Instant::now() + JOIN_LIMIT;
        let mut progress = shared.progress.lock();
        while !progress.alive {
            if let Some(why) = &progress.failed {
                return Err(Error::Invalid(why.clone()));
            }
            if progress.stop.is_some() {
                return Err(Error::Invalid("stopped while it was joining".into()));
            }
            if shared.changed.wait_until(&mut progress, end).timed_out() {
                return Err(Error::Timeout {
                    what: format!("{}: join: a peer", shared.name(shared.me)),
                    ms: JOIN_LIMIT.as_millis() as u64,
                });
            }
        }
        Ok(())
    }
}

/// Takes the lock that says that a process is this OSlet's runtime.
fn take_lock(directory: &Path, name: &str) -> Result<File> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match try_lock(directory)? {
            Some(lock) => return Ok(lock),
            // Whoever wants to know whether we live holds it for a moment.
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            None => {
                return Err(Error::Invalid(format!(
                    "OSlet {name}: a runtime of it runs already ({}): stop it first",
                    directory.display()
                )));
            }
        }
    }
}

/// The lock, unless the OSlet's runtime lives.
pub(super) fn try_lock(directory: &Path) -> Result<Option<File>> {
    let path = directory.join("lock");
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::file(&path, "open"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(Error::file(&path, "lock")(error)),
    }
}

/// Removes what a runtime has in its OSlet's directory, but not its log, nor its lock: somebody may
/// be waiting for that.
pub(super) fn remove_files(directory: &Path) -> Result<()> {
    Record::remove(directory)?;
    let path = directory.join(crate::control_socket::NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file(&path, "remove")(error))
        }
        _ => Ok(()),
    }
}

/// The word becomes `Joining` in the next epoch, once our last incarnation is fenced.
fn take_place(control: &ControlPage, me: OsletId, spec: &Spec, directory: &Path) -> Result<Epoch> {
    for oslet in control.oslet_ids() {
        word::disown_fence(control, me, oslet)?;
    }
    let start = Instant::now();
    loop {
        let last = match word::join(control, me)? {
            Join::Taken(epoch) => return Ok(epoch),
            Join::Unfenced(last) => last,
        };
        if start.elapsed() >= SURVIVORS {
            // We hold its lock, so its process is gone; what it left is in its record.
            let gone = |who: OsletId| {
                who == me || control.member(who).is_ok_and(|m| m.state != MemberState::Alive)
            };
            if word::begin_fence(control, me, me, last.epoch, gone)? == Fencer::Me {
                let kit = fencing::recorded_kit(&spec.directory, &spec.names, me, last.epoch)?;
                kit.fence(Duration::from_millis(spec.io_limit_ms))?;
                word::end_fence(control, me, me, last.epoch)?;
                continue;
            }
        }
        if start.elapsed() >= JOIN_LIMIT {
            return Err(Error::Timeout {
                what: format!("{}: the fence of its last incarnation", directory.display()),
                ms: JOIN_LIMIT.as_millis() as u64,
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn make_shared(
    spec: Spec,
    control: ControlPage,
    me: OsletId,
    epoch: Epoch,
    process: ProcessId,
) -> Result<Arc<Shared>> {
    let paging = Paging { huge: spec.huge, prefault: spec.prefault };
    let (frames, space) = divide(spec.segment, control.oslets(), &spec.backing)?;
    let participant = ParticipantId::runtime(me);
    let segment = SegmentSpec { participant, epoch, frames, space, paging };
    let own = OwnSegment::create(&spec.backing, control.cluster(), &segment)?;
    let region = Region::new(control, own, paging)?;
    let arena = Arena::new(&region);
    let inbox = Inbox::new()?;
    let opening = spec.names.iter().map(|_| Mutex::default()).collect();
    let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
        server: Mutex::new(Some(rpc::Server::new(&region, Arc::new(Dispatch(weak.clone()))))),
        spec,
        me,
        epoch,
        process,
        region,
        arena,
        services: RwLock::default(),
        inbox,
        events: Mutex::default(),
        resources: Mutex::default(),
        progress: Mutex::default(),
        changed: Condvar::new(),
        channels: Mutex::default(),
        opening,
        offers: Mutex::default(),
        next_offer: AtomicU64::new(1),
    });
    shared.record(&Resources::default()).write(&shared.own_directory())?;
    Ok(shared)
}

fn start_threads(shared: &Arc<Shared>, listener: Listener) -> Result<Vec<JoinHandle<()>>> {
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(body).map_err(Error::io(format!("start thread {name}")))
    };
    let control = Control::new(Arc::clone(shared), listener)?;
    let (sender, tasks) = mpsc::channel();
    *shared.events.lock() = Some(sender);
    let telling = Arc::clone(shared);
    let beating = Arc::clone(shared);
    Ok(vec![
        spawn("events", Box::new(move || tell_services(&telling, &tasks)))?,
        spawn("control", Box::new(move || control.run()))?,
        spawn("heartbeat", Box::new(move || beat(&beating)))?,
    ])
}

/// The thread that shows that this runtime is not stopped, and sees who is.
fn beat(shared: &Shared) {
    let mut watch = Watch::new(shared.spec.timing);
    let start = Instant::now();
    let interval = Duration::from_millis(shared.spec.timing.interval_ms);
    let control = shared.region.control();
    let own = |state| matches!(state, MemberState::Alive | MemberState::Joining);
    while control.member(shared.me).is_ok_and(|m| m.epoch == shared.epoch && own(m.state)) {
        shared.region.own().beat();
        watch.tick(start.elapsed());
        for oslet in control.oslet_ids().filter(|oslet| *oslet != shared.me) {
            let mapped = shared.region.segment(ParticipantId::runtime(oslet));
            let (Some(segment), Ok(member)) = (mapped, control.member(oslet)) else { continue };
            if !own(member.state) || segment.epoch() != member.epoch {
                watch.forget(oslet);
                continue;
            }
            let pid = segment.pid();
            if watch.look(oslet, member.epoch, segment.heartbeat(), || is_stopped(pid)) {
                let why = "its heart does not beat";
                shared.inbox.post(Command::Suspect(oslet, member.epoch, why));
                watch.forget(oslet);
            }
        }
        std::thread::sleep(interval);
    }
}

/// Whether the kernel says that this process is stopped, traced or dead. The number comes from a
/// peer's segment: a false one only makes its owner wait longer or be believed less.
fn is_stopped(pid: u32) -> bool {
    match crate::procfs::Stat::read(pid) {
        Ok(stat) => matches!(stat.state, 'T' | 't' | 'Z' | 'X'),
        Err(error) => crate::procfs::gone(&error),
    }
}

impl Kit {
    /// A kit for an incarnation that had nothing yet.
    pub(super) fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}
