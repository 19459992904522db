//! One OSlet, kept up by the test in the runtime's place.

use std::fs;
use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oslet::cgroup::{Cgroup, Hierarchies};
use oslet::container::{self, Global, Init, Program, Spec, Tmp};
use oslet::procfs::{ProcessId, Stat};
use oslet::state::State;
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct World {
    init: Option<Init>,
    cgroup: Cgroup,
    directory: TempDir,
    cluster: String,
}

impl World {
    /// `None`, with a word about it, for one who is not root.
    pub(crate) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            println!("skipped: this test makes an OSlet with root's means");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cluster = format!("r{}-{number}", std::process::id());
        let directory = tempfile::Builder::new().prefix("oslet-run").tempdir_in("/tmp").unwrap();
        let cpus = oslet::sys::numa::affinity().unwrap().into_iter().collect();
        let nodes = [0].into_iter().collect();
        let hierarchies = Hierarchies::detect().unwrap();
        let created = Cgroup::create(&hierarchies, &cluster, "o0", &cpus, &nodes).unwrap();
        let spec = Spec {
            cluster: cluster.clone(),
            oslet: "o0".to_owned(),
            cpus: cpus.clone(),
            nodes: nodes.clone(),
            ltmp_nodes: nodes.clone(),
            bound: created.bound,
            groups: created.cgroup.groups().to_vec(),
            user_namespace: false,
            tmp: Tmp::Host,
            ltmp_bytes: 1 << 20,
            directory: directory.path().to_owned(),
            devices: Vec::new(),
            global: Global::Empty,
            gtmp: ".gtmp".into(),
        };
        let path = env!("CARGO_BIN_EXE_oslet").into();
        let program = Program { path, ..Program::default() };
        let init = container::start(&program, &spec, |_| Ok(())).unwrap();
        let state = State {
            cluster: cluster.clone(),
            oslet: "o0".to_owned(),
            index: 0,
            epoch: 1,
            runtime: ProcessId::own().unwrap(),
            init: init.id(),
            cpus,
            nodes,
            bound: created.bound,
            cgroups: spec.groups,
            only_user: None,
        };
        let own = directory.path().join("o0");
        fs::create_dir(&own).unwrap();
        state.write(&own).unwrap();
        Some(Self { init: Some(init), cgroup: created.cgroup, directory, cluster })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The command, with nothing on its standard input.
    pub(crate) fn oslet(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oslet"));
        command.arg("--dir").arg(self.directory()).args(words).stdin(Stdio::null());
        command
    }

    /// As when the OSlet is fenced: all is killed at once.
    pub(crate) fn end(&mut self) {
        self.cgroup.kill(LIMIT).unwrap();
        drop(self.init.take());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
        self.cgroup.remove(LIMIT).unwrap();
    }
}

pub(crate) fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

pub(crate) fn state(pid: u32) -> char {
    Stat::read(pid).unwrap().state
}

pub(crate) fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
