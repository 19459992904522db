//! Making sure that a runtime can no longer write: kill, cut its mounts, reap, wait for its I/O.
//!
//! A killed process is reaped while its direct I/O is still in flight. So an owner holds
//! `flock(LOCK_EX)` on the very description that it does I/O through; the kernel releases it when
//! the last of that I/O has ended, and getting the lock through another description is the proof.
//! What a survivor holds of such a file is therefore never the owner's description: that would
//! keep the lock. It is an O_PATH of the same file.

use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::record::Record;
use crate::cgroup::{self, Cgroup};
use crate::sys::pidfd::PidFd;
use crate::{Error, Result};

/// How often a lock that is still held is tried again.
const POLL: Duration = Duration::from_millis(1);

/// All that is needed to fence one runtime.
#[derive(Debug, Default)]
pub struct Kit {
    /// The runtime in errors: its name and epoch.
    pub name: String,
    /// Its process; `None` when it is known to have ended.
    pub process: Option<Arc<PidFd>>,
    /// Its native clients: their pins cannot be revoked otherwise.
    pub clients: Vec<Arc<PidFd>>,
    /// Its `cgroup.kill`.
    pub kill: Option<Arc<OwnedFd>>,
    /// Its control groups, where they are known.
    pub groups: Cgroup,
    /// Its FUSE connections.
    pub fuse: Vec<u32>,
    /// O_PATH descriptors of the files that it does I/O on.
    pub files: Vec<Arc<OwnedFd>>,
    /// Files of which it cannot be known whether its I/O has ended, and why.
    pub unknown: Vec<String>,
}

impl Kit {
    /// From what a runtime has left on disk.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn from_record(name: &str, record: &Record) -> Result<Self> {
        let what = || format!("{name}: process {}", record.process.pid);
        let open = |process: crate::procfs::ProcessId| {
            process.open().map(|fd| fd.map(Arc::new)).map_err(Error::io(what()))
        };
        let mut kit = Self {
            name: name.to_owned(),
            process: open(record.process)?,
            groups: Cgroup::from_groups(record.groups.clone()),
            fuse: record.fuse.clone(),
            ..Self::default()
        };
        for client in &record.clients {
            kit.clients.extend(open(*client)?);
        }
        for file in &record.files {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let opened = rustix::fs::open(&file.path, flags, Mode::empty());
            let same = opened.as_ref().ok().and_then(|fd| rustix::fs::fstat(fd).ok());
            let same = same.is_some_and(|s| (s.st_dev, s.st_ino) == (file.device, file.inode));
            match opened {
                Ok(fd) if same => kit.files.push(Arc::new(fd)),
                Ok(_) => kit.unknown.push(format!("{}: another file now", file.path.display())),
                Err(error) => kit.unknown.push(format!("{}: {error}", file.path.display())),
            }
        }
        Ok(kit)
    }

    /// The whole fence, for at most `limit`. It may be repeated, also by several at once. Returns
    /// what went wrong without harm: a line each.
    ///
    /// # Errors
    /// [`Error::Timeout`] or the reason why the end of its I/O cannot be proved: it is not fenced.
    pub fn fence(&self, limit: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + limit;
        let mut notes = self.kill();
        let left = || end.saturating_duration_since(Instant::now());
        if let Err(error) = self.groups.kill(left()) {
            // Processes of the OSlet that do not die (in the kernel, on a disk) do not reach the
            // region; the runtime's own end is what counts, and is waited for.
            notes.push(error.to_string());
        }
        for process in self.process.iter().chain(&self.clients) {
            if !process.wait(left()) {
                return Err(self.timeout("its process, killed, to end", limit));
            }
        }
        if let Some(file) = self.unknown.first() {
            return Err(Error::Invalid(format!(
                "{}: whether its I/O has ended cannot be known: {file}",
                self.name
            )));
        }
        for file in &self.files {
            self.await_lock(file, end, limit)?;
        }
        Ok(notes)
    }

    /// The first step: nothing of it runs on purpose any more.
    fn kill(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |what: &str, error: &dyn Display| {
            notes.push(format!("{}: {what}: {error}", self.name));
        };
        for process in self.process.iter().chain(&self.clients) {
            match process.send(libc::SIGKILL) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => note("kill", &error),
                _ => {}
            }
        }
        if let Some(kill) = &self.kill
            && let Err(error) = cgroup::kill_by(kill.as_fd())
        {
            note("cgroup.kill", &error);
        }
        // A process that waits for an answer of the dead runtime's mount cannot be killed before.
        for connection in &self.fuse {
            if let Err(error) = abort(*connection) {
                note("abort its mount", &error);
            }
        }
        notes
    }

    fn await_lock(&self, file: &OwnedFd, end: Instant, limit: Duration) -> Result<()> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let what = || {
            let name = std::fs::read_link(&path).unwrap_or_default();
            format!("{}: I/O on {}", self.name, name.display())
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let own = rustix::fs::open(&path, flags, Mode::empty()).map_err(Error::io(what()))?;
        loop {
            match rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive) {
                // Given back with the description, before anybody who takes over asks for it.
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(POLL),
                Err(Errno::AGAIN) => return Err(self.timeout(&what(), limit)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io(what())(error)),
            }
        }
    }

    fn timeout(&self, what: &str, limit: Duration) -> Error {
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Error::Timeout { what: format!("fence of {}: {what}", self.name), ms }
    }
}

/// Ends a FUSE connection: every request on it fails. One that is gone already is no error.
fn abort(connection: u32) -> std::io::Result<()> {
    let path = format!("/sys/fs/fuse/connections/{connection}/abort");
    match std::fs::write(path, "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A descriptor of the same file that can be given to others: it keeps no lock and reads nothing.
///
/// # Errors
/// When no descriptor is free.
pub fn shareable(file: impl AsFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("I/O file: open O_PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::record::IoFile;
    use crate::procfs::ProcessId;
    use std::process::{Command, Stdio};

    const LIMIT: Duration = Duration::from_millis(300);

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_lock_that_stays_held_is_no_fence_and_one_that_goes_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let owner = file.reopen().unwrap();
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive).unwrap();
        let shared = Arc::new(shareable(&owner).unwrap());
        let kit = Kit { name: "o1".into(), files: vec![shared], ..Kit::default() };
        let error = kit.fence(LIMIT).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
        // What others hold does not keep the lock when the owner's description is gone.
        let waiter = std::thread::spawn(move || kit.fence(Duration::from_secs(10)));
        std::thread::sleep(Duration::from_millis(20));
        drop(owner);
        waiter.join().unwrap().unwrap();
        rustix::fs::flock(file.as_file(), FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[test]
    fn a_stopped_process_is_killed_through_its_record() {
        let mut child = sleeper();
        let process = ProcessId::of(child.id()).unwrap();
        let fd = process.open().unwrap().unwrap();
        fd.send(libc::SIGSTOP).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let record = Record {
            cluster: [1, 2],
            oslet: 0,
            epoch: 1,
            process,
            clients: vec![],
            fuse: vec![],
            files: vec![IoFile::of(&file).unwrap()],
            groups: vec![],
        };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        record.write(dir.path()).unwrap();
        let read = Record::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, record);
        let notes = Kit::from_record("o0", &read).unwrap().fence(Duration::from_secs(10)).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        assert!(fd.is_dead());
        child.wait().unwrap();
        // Again: it is gone, and so is the file.
        Kit::from_record("o0", &read).unwrap().fence(LIMIT).unwrap();
        drop(file);
        let error = Kit::from_record("o0", &read).unwrap().fence(LIMIT).unwrap_err().to_string();
        assert!(error.contains("cannot be known"), "{error}");
        std::fs::write(dir.path().join(super::super::record::NAME), "{").unwrap();
        assert!(Record::read(dir.path()).is_err());
    }
}
