//! A mounted filesystem that cleans up after itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs::mount::mountpoint::{MountOptions, Mounted, open_and_mount};
use cfs::mount::{Choice, Config, Session, Transport};
use oslet::sys::fusectl;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::FlockOperation;

use crate::memfs::MemFs;

/// One test at a time: they count descriptors and threads.
static ONE: Mutex<()> = Mutex::new(());

pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    ONE.lock()
}

pub(crate) const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    Device,
    Uring,
}

impl Via {
    /// Needed while mounting.
    pub(crate) fn switch(self) -> Option<Switch> {
        (self == Self::Uring).then(Switch::on)
    }
}

pub(crate) struct Fixture {
    pub(crate) fs: Arc<MemFs>,
    pub(crate) session: Option<Session>,
    pub(crate) mounted: Mounted,
    root: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new(via: Via, ttl: Duration) -> Self {
        Self::with(via, MemFs::new(ttl), |_| {})
    }

    pub(crate) fn with(via: Via, fs: MemFs, change: impl FnOnce(&mut MountOptions)) -> Self {
        Self::configured(via, fs, change, Config::default())
    }

    pub(crate) fn configured(
        via: Via,
        fs: MemFs,
        change: impl FnOnce(&mut MountOptions),
        config: Config,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let fs = Arc::new(fs);
        let mut options = MountOptions::new("memfs, with a comma");
        options.nodev = false;
        change(&mut options);
        // The kernel sends its offer when it mounts.
        let _switch = via.switch();
        let (device, mounted) = open_and_mount(root.path(), &options)
            .unwrap_or_else(|error| panic!("these tests need the right to mount: {error}"));
        let mut fixture = Self { fs: fs.clone(), session: None, mounted, root };
        fixture.session = Some(start(via, device, fs, config));
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn session(&self) -> &Session {
        self.session.as_ref().unwrap()
    }

    /// Unmounts and waits for the clean end.
    pub(crate) fn end(mut self) {
        self.mounted.unmount(self.root.path()).unwrap();
        let session = self.session.take().unwrap();
        assert!(session.wait(SOON), "the session did not end with the mount");
        session.stop(SOON).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Of a test that failed: held requests would block its end.
        self.fs.drop_held();
        let _ = self.mounted.unmount(self.root.path());
    }
}

pub(crate) fn start(
    via: Via,
    device: std::os::fd::OwnedFd,
    fs: Arc<MemFs>,
    config: Config,
) -> Session {
    let choice = if via == Via::Device { Choice::Device } else { Choice::Auto };
    let config = Config { choice, ..config };
    let session = Session::start(device, fs, config).unwrap();
    match via {
        Via::Device => assert!(matches!(session.transport(), Transport::Device(_))),
        Via::Uring => assert_eq!(*session.transport(), Transport::Uring),
    }
    session
}

/// Runs a test over each transport that there is here.
pub(crate) fn over_each(test: impl Fn(Via)) {
    let _one = one_at_a_time();
    for via in transports() {
        eprintln!("over {via:?}");
        test(via);
    }
}

pub(crate) fn transports() -> Vec<Via> {
    let mut all = vec![Via::Device];
    match fusectl::uring_enabled() {
        Ok(enabled) if enabled || rustix::process::geteuid().is_root() => all.push(Via::Uring),
        Ok(_) => {
            eprintln!("skipped io_uring: {} is N, only root changes it", fusectl::ENABLE_URING)
        }
        Err(error) => eprintln!("skipped io_uring: {}: {error}", fusectl::ENABLE_URING),
    }
    all
}

/// FUSE over io_uring is on while this lives; one process at a time.
pub(crate) struct Switch {
    before: String,
    _lock: File,
}

impl Switch {
    pub(crate) fn on() -> Self {
        let lock = File::create(std::env::temp_dir().join("cfs-test-enable-uring.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let before = std::fs::read_to_string(fusectl::ENABLE_URING).unwrap();
        switch_to("Y");
        Self { before, _lock: lock }
    }

    /// Somebody switches it off, under this one's lock.
    pub(crate) fn off_meanwhile() {
        switch_to("N");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        switch_to(self.before.trim());
    }
}

fn switch_to(state: &str) {
    if std::fs::read_to_string(fusectl::ENABLE_URING).unwrap().trim() != state {
        std::fs::write(fusectl::ENABLE_URING, state).unwrap();
    }
}

/// This test binary once more, to play a role in a process of its own.
pub(crate) fn role(name: &str, via: Via) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("trouble::role_{name}"), "--nocapture"]);
    command.env("CFS_TEST_ROLE", name).env("CFS_TEST_VIA", format!("{via:?}"));
    command.stdout(Stdio::null());
    command
}

/// The transport, if this process plays that role.
pub(crate) fn plays(name: &str) -> Option<Via> {
    (std::env::var("CFS_TEST_ROLE").ok()? == name).then(|| {
        let via = std::env::var("CFS_TEST_VIA").unwrap();
        if via == "Uring" { Via::Uring } else { Via::Device }
    })
}

/// A process that does not outlive the test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // One that cannot be killed must not hang the test too.
        let _ = self.ended(Duration::from_secs(2));
    }
}
