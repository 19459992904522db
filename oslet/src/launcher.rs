//! The launcher: makes a cluster, starts its runtimes and starts them again; its own death harms
//! nobody.
//!
//! A cluster's name is taken by a lock on one description of `<directory>/lock`, which the launcher
//! and all runtimes share: it is free when the last of them has ended, however it did.

mod child;
pub mod leftovers;
mod stop;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::control_socket::Connection;
use crate::procfs::ProcessId;
use crate::region::{Backing, ControlPage};
use crate::runtime::Spec;
use crate::sys::process::{SignalFd, SignalSet, block};
use crate::wire::Message;
use crate::{Error, Result};

use child::{Child, State};
pub use stop::{Stopped, launcher, stop};

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Its name.
    pub name: String,
    /// Its runtime files.
    pub directory: PathBuf,
    /// What each runtime is told, `oslet` excepted.
    pub runtime: Spec,
    /// For each OSlet whether it is started again when it dies.
    pub restart: Vec<bool>,
    /// How this program is run again as a runtime: it is to call [`accept_start`] then.
    pub program: (PathBuf, Vec<OsString>),
}

/// Something that the user may want to see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// An OSlet serves.
    Ready {
        /// Its place.
        oslet: usize,
        /// Its incarnation.
        epoch: u32,
        /// What could not be had.
        notes: Vec<String>,
    },
    /// All serve, for the first time.
    AllReady,
    /// A runtime has ended without being asked to.
    Ended {
        /// Its place.
        oslet: usize,
        /// How.
        how: String,
        /// When it is started again, if it is.
        again_ms: Option<u64>,
    },
    /// The cluster is being stopped.
    Stopping,
}

/// A runtime that does not end when it was asked to is killed after this, and the time that what it
/// has to write takes.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The slowest disk for which that is enough, in bytes a second.
const SLOW_DISK: u64 = 16 << 20;

/// How long runtimes with segments of so many bytes may take to leave: half of a cache at most
/// waits for its disk.
fn stop_limit(segment: u64) -> Duration {
    STOP_LIMIT + Duration::from_secs(segment / 2 / SLOW_DISK)
}

/// A cluster that this process launches.
#[derive(Debug)]
pub struct Cluster {
    spec: ClusterSpec,
    control: ControlPage,
    lock: OwnedFd,
    children: Vec<Child>,
    signals: SignalFd,
    stopping: Option<Instant>,
    all_ready: bool,
}

impl Cluster {
    /// Takes the name, cleans up what a killed cluster of that name has left, and makes the
    /// control page. Signals are blocked in the calling thread from now on.
    ///
    /// # Errors
    /// When a cluster of that name runs, leftovers cannot be cleaned up, or the region cannot be
    /// made.
    pub fn create(spec: ClusterSpec) -> Result<Self> {
        let directory = &spec.directory;
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(Error::file(directory, "create"))?;
        let lock = take_lock(directory)?;
        leftovers::remove(directory, &spec.name)?;
        let control = ControlPage::create(&spec.runtime.backing, &spec.name, spec.restart.len());
        let control = control.inspect_err(|_| {
            // The first error is the one to report.
            let _ = leftovers::remove_directory(directory);
        })?;
        let own = ProcessId::own().map_err(Error::io("own process"))?;
        let path = directory.join(stop::LAUNCHER);
        let limit = stop_limit(spec.runtime.segment).as_millis() as u64;
        let text = serde_json::to_vec(&stop::Launcher { process: own, stop_limit_ms: limit })
            .map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))?;
        fs::write(&path, text).map_err(Error::file(&path, "write"))?;
        let signals = SignalSet::of(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
        block(&signals).map_err(Error::io("block signals"))?;
        let signals = SignalFd::new(&signals).map_err(Error::io("signalfd"))?;
        let children = spec.restart.iter().map(|_| Child::default()).collect();
        Ok(Self {
            spec,
            control,
            lock: lock.into(),
            children,
            signals,
            stopping: None,
            all_ready: false,
        })
    }

    /// Starts all OSlets and looks after them until the cluster has stopped: by a signal (a second
    /// one kills), or because all have left. Then nothing of it remains.
    ///
    /// # Errors
    /// When an OSlet cannot be started the first time: its message; all others are stopped.
    pub fn run(&mut self, mut report: impl FnMut(Report)) -> Result<()> {
        let mut failure = None;
        for oslet in 0..self.children.len() {
            if let Err(error) = self.spawn(oslet) {
                failure = Some(error);
                self.give_up();
                break;
            }
        }
        while !self.children.iter().all(Child::is_over) {
            self.wait()?;
            while let Ok(Some(_)) = self.signals.read() {
                report(Report::Stopping);
                match self.stopping {
                    None => self.stop(),
                    Some(_) => self.children.iter_mut().for_each(Child::kill),
                }
            }
            let limit = stop_limit(self.spec.runtime.segment);
            if self.stopping.is_some_and(|since| since.elapsed() > limit) {
                self.children.iter_mut().for_each(Child::kill);
            }
            for oslet in 0..self.children.len() {
                if let Err(error) = self.look_after(oslet, &mut report) {
                    failure.get_or_insert(error);
                    self.give_up();
                }
            }
            let ready = self.children.iter().all(|child| matches!(child.state, State::Serving(_)));
            if ready && !self.all_ready {
                self.all_ready = true;
                report(Report::AllReady);
            }
        }
        let cleaned = leftovers::remove(&self.spec.directory, &self.spec.name);
        let removed = leftovers::remove_directory(&self.spec.directory);
        match (failure, cleaned.and(removed)) {
            (Some(failure), Err(left)) => Err(Error::Invalid(format!(
                "{failure}; then its remains could not be removed (oslet down tries again): {left}"
            ))),
            (failure, cleaned) => failure.map_or(Ok(()), Err).and(cleaned),
        }
    }

    fn wait(&self) -> Result<()> {
        let soon = self.children.iter().filter_map(Child::due).min();
        let most = Duration::from_secs(if self.stopping.is_some() { 1 } else { 3600 });
        let wait = soon.map_or(most, |at| at.saturating_duration_since(Instant::now()).min(most));
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        for child in &self.children {
            fds.extend(child.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let timeout = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::io("launcher: poll")(error)),
        }
    }

    fn spawn(&mut self, oslet: usize) -> Result<()> {
        let spec = Spec { oslet, ..self.spec.runtime.clone() };
        let control = self.control.file().try_clone().map_err(Error::io("control page: dup"))?;
        let lock = self.lock.try_clone().map_err(Error::io("cluster lock: dup"))?;
        let given = vec![control.into(), lock];
        self.children[oslet].spawn(&self.spec.program, &spec, given)
    }

    /// Hears what one child says, sees it end, starts it again when its time has come.
    fn look_after(&mut self, oslet: usize, report: &mut impl FnMut(Report)) -> Result<()> {
        let first = !self.all_ready && self.stopping.is_none();
        if let Some((epoch, notes)) = self.children[oslet].hear()? {
            report(Report::Ready { oslet, epoch, notes });
        }
        if let Some(end) = self.children[oslet].ended()? {
            let name = &self.spec.runtime.names[oslet];
            let again = self.spec.restart[oslet] && self.stopping.is_none() && !end.clean;
            if first && !end.clean {
                self.children[oslet].state = State::Over;
                // What its init says names the OSlet already.
                let prefix = format!("OSlet {name}: ");
                let how = end.how.strip_prefix(&prefix).unwrap_or(&end.how);
                return Err(Error::Invalid(format!("{prefix}{how}")));
            }
            let again = self.children[oslet].rest(again);
            if !end.clean && self.stopping.is_none() {
                let again_ms = again.map(|wait| wait.as_millis() as u64);
                report(Report::Ended { oslet, how: end.how, again_ms });
            }
        }
        if self.children[oslet].due().is_some_and(|at| at <= Instant::now()) {
            if self.stopping.is_some() {
                self.children[oslet].state = State::Over;
            } else if let Err(error) = self.spawn(oslet) {
                let again = self.children[oslet].rest(true);
                let again_ms = again.map(|wait| wait.as_millis() as u64);
                report(Report::Ended { oslet, how: error.to_string(), again_ms });
            }
        }
        Ok(())
    }

    /// Stops, without waiting for those that start: they may wait for the one that failed.
    fn give_up(&mut self) {
        self.stop();
        let starting = |child: &&mut Child| matches!(child.state, State::Starting);
        self.children.iter_mut().filter(starting).for_each(Child::kill);
    }

    fn stop(&mut self) {
        self.stopping.get_or_insert_with(Instant::now);
        self.children.iter_mut().for_each(Child::stop);
    }
}

/// Takes the cluster's lock.
fn take_lock(directory: &Path) -> Result<File> {
    let end = Instant::now() + Duration::from_millis(300);
    loop {
        if let Some(lock) = try_lock(directory)? {
            return Ok(lock);
        }
        // Whoever looks whether the cluster runs holds it for a moment.
        if Instant::now() >= end {
            return Err(Error::Invalid(format!(
                "{}: a cluster of this name runs already{}: stop it with oslet down, or choose \
                 another name",
                directory.display(),
                stop::running(directory)
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The cluster's lock, unless a process of the cluster lives.
///
/// # Errors
/// When the file cannot be opened or locked.
pub fn try_lock(directory: &Path) -> Result<Option<File>> {
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

/// What a runtime got from its launcher.
#[derive(Debug)]
pub struct Start {
    /// What it is to be.
    pub spec: Spec,
    /// The cluster's control page.
    pub control: ControlPage,
    /// The cluster's lock, to be held.
    pub lock: OwnedFd,
    /// To the launcher.
    pub launcher: Connection,
}

/// In a runtime: what the launcher wants, from standard input.
///
/// # Errors
/// When standard input is no launcher.
pub fn accept_start(standard_input: impl AsFd) -> Result<Start> {
    let socket = rustix::io::fcntl_dupfd_cloexec(standard_input, 0)
        .map_err(Error::io("standard input: dup"))?;
    let mut launcher = Connection::new(socket)?;
    let received = launcher.wait("launcher", Duration::from_secs(10))?;
    let corrupt = |what: &str| Error::Corrupt { peer: "launcher".into(), what: what.into() };
    let Message::Start { spec } = received.message else {
        return Err(corrupt("it does not say what to start"));
    };
    let [control, lock] = <[OwnedFd; 2]>::try_from(received.descriptors)
        .map_err(|_| corrupt("descriptors are missing"))?;
    let spec = serde_json::from_str(&spec).map_err(|error| corrupt(&error.to_string()))?;
    Ok(Start { spec, control: ControlPage::open(File::from(control))?, lock, launcher })
}

/// The bytes of one runtime's segment that a backing is asked for; whole pages of it.
pub fn whole_pages(bytes: u64, backing: &Backing) -> u64 {
    bytes / backing.page_size() as u64 * backing.page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_much_to_write_gets_the_time_for_it() {
        assert_eq!(stop_limit(64 << 20), STOP_LIMIT + Duration::from_secs(2));
        let seconds = stop_limit(256 << 30).as_secs();
        assert!(seconds * SLOW_DISK >= 128 << 30, "{seconds} s");
    }
}
