//! A cluster of processes of this test binary.

use std::ffi::OsString;
use std::fs::File;
use std::io::stdin;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oslet::launcher::{self, Cluster, ClusterSpec, Stopped};
use oslet::member::heartbeat::Timing;
use oslet::member::record::Record;
use oslet::region::Backing;
use oslet::runtime::{self, Runtime, Spec};
use oslet::sys::pidfd::PidFd;
use oslet::wire::Status;

pub(crate) const ROLE: &str = "OSLET_TEST_ROLE";
pub(crate) const DIRECTORY: &str = "OSLET_TEST_DIRECTORY";
pub(crate) const COUNT: &str = "OSLET_TEST_COUNT";
pub(crate) const RESTART: &str = "OSLET_TEST_RESTART";
/// A file that OSlet 0 holds locked as its I/O file.
pub(crate) const IO_FILE: &str = "OSLET_TEST_IO_FILE";

pub(crate) const ALIVE: u8 = 2;
pub(crate) const FENCING: u8 = 3;
pub(crate) const DEAD: u8 = 4;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn runtime_process() {
    let start = launcher::accept_start(stdin()).unwrap();
    let first = start.spec.oslet == 0;
    let runtime = match Runtime::join(start.spec, start.control, Some(start.lock)) {
        Ok(runtime) => runtime,
        Err(error) => panic!("{error}"),
    };
    let file = std::env::var_os(IO_FILE).filter(|_| first).map(|path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&file, lock).is_ok() {
            runtime.handle().add_io_file(&file).unwrap();
        }
        file
    });
    crate::parts::start(&runtime);
    if let Err(error) = runtime.ready(start.launcher, vec!["a note".into()]) {
        eprintln!("the launcher is gone: {error}");
    }
    let cluster = runtime.wait();
    drop(file);
    assert_eq!(runtime.leave(cluster).unwrap(), Vec::<String>::new());
    std::process::exit(0);
}

pub(crate) fn launcher_process() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    // The places of those that are started again.
    let restart = std::env::var(RESTART).unwrap_or_default();
    let restart: Vec<usize> = restart.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let mut spec = spec(&directory, count);
    spec.restart = (0..count).map(|oslet| restart.contains(&oslet)).collect();
    let mut cluster = Cluster::create(spec).unwrap();
    cluster.run(|report| println!("{report:?}")).unwrap();
    std::process::exit(0);
}

pub(crate) fn spec(directory: &Path, count: usize) -> ClusterSpec {
    let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
    ClusterSpec {
        name,
        directory: directory.to_owned(),
        runtime: Spec {
            directory: directory.to_owned(),
            oslet: 0,
            names: (0..count).map(|index| format!("o{index}")).collect(),
            backing: Backing::Memfd,
            segment: runtime::least_segment(count, &Backing::Memfd),
            huge: false,
            prefault: false,
            timing: Timing::default(),
            io_limit_ms: 300,
        },
        restart: vec![false; count],
        program: ("/usr/bin/env".into(), arguments("runtime")),
    }
}

pub(crate) fn arguments(role: &str) -> Vec<OsString> {
    let own = std::env::current_exe().unwrap();
    let role = format!("{ROLE}={role}");
    vec![
        role.into(),
        own.into(),
        "--exact".into(),
        "process_of_a_test".into(),
        "--nocapture".into(),
    ]
}

pub(crate) struct Running {
    pub(crate) directory: PathBuf,
    count: usize,
    pub(crate) launcher: Child,
    _top: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start(count: usize, more: &[(&str, &str)]) -> Self {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join(format!("t{}", std::process::id()));
        let launcher = Command::new("/usr/bin/env")
            .args(arguments("launcher"))
            .env(DIRECTORY, &directory)
            .env(COUNT, count.to_string())
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let running = Self { directory, count, launcher, _top: top };
        running.until("all are alive", |states| states.iter().all(|(_, state)| *state == ALIVE));
        running
    }

    pub(crate) fn ask(&self, oslet: usize) -> Option<Status> {
        let directory = self.directory.join(format!("o{oslet}"));
        runtime::ask(&directory, true, Duration::from_secs(2)).ok()
    }

    pub(crate) fn record(&self, oslet: usize) -> Record {
        Record::read(&self.directory.join(format!("o{oslet}"))).unwrap().unwrap()
    }

    pub(crate) fn process(&self, oslet: usize) -> PidFd {
        self.record(oslet).process.open().unwrap().unwrap()
    }

    pub(crate) fn kill(&self, oslet: usize, signal: i32) {
        self.process(oslet).send(signal).unwrap();
    }

    /// Waits until the last OSlet that answers sees the words so; returns how long it took.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&[(u32, u8)]) -> bool) -> Duration {
        let start = Instant::now();
        let mut last = None;
        while start.elapsed() < PATIENCE {
            if let Some(status) = (0..self.count).rev().find_map(|oslet| self.ask(oslet)) {
                if wanted(&status.members) {
                    return start.elapsed();
                }
                last = Some(status.members);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{what}: not within {PATIENCE:?}; last {last:?}\n{}", self.logs());
    }

    /// Waits until that many of OSlet 0's frames are in limbo.
    pub(crate) fn until_limbo(&self, what: &str, frames: u64) {
        let start = Instant::now();
        let limbo = || self.ask(0).map(|status| status.frames);
        while limbo().is_none_or(|now| now[2] != frames) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:?}\n{}", limbo(), self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A file by which processes of the test talk.
    fn told(&self, what: &str) -> PathBuf {
        self.directory.parent().unwrap().join(what)
    }

    pub(crate) fn tell(&self, what: &str) {
        std::fs::write(self.told(what), "").unwrap();
    }

    pub(crate) fn untell(&self, what: &str) {
        std::fs::remove_file(self.told(what)).unwrap();
    }

    pub(crate) fn await_told(&self, what: &str) {
        let start = Instant::now();
        while !self.told(what).exists() {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn logs(&self) -> String {
        let log = |oslet: usize| {
            std::fs::read_to_string(self.directory.join(format!("o{oslet}/log")))
                .unwrap_or_default()
        };
        (0..self.count.min(4)).map(log).collect()
    }

    pub(crate) fn stop(mut self) {
        let name = self.directory.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(launcher::stop(&self.directory, &name).unwrap(), Stopped::Cluster);
        assert!(!self.directory.exists(), "{:?} is left", self.directory);
        self.launcher.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only after a failed test is there something to end.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
        for oslet in 0..self.count {
            if let Ok(Some(record)) = Record::read(&self.directory.join(format!("o{oslet}"))) {
                let process = record.process.open().ok().flatten();
                let _ = process.map(|process| process.send(libc::SIGKILL));
            }
        }
    }
}
