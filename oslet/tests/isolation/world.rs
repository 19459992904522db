//! One OSlet for a test, and what the tests look at.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};

use oslet::cgroup::{Cgroup, Created, Hierarchies};
use oslet::container::enter::{self, Directory, Entered, StartError, Target, User};
use oslet::container::{self, Global, Init, Program, Spec, Tmp};
use oslet::procfs::ProcessId;
use oslet::state::State;
use oslet::sys::numa;
use oslet::sys::process::SignalSet;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// An OSlet that is up until this is dropped.
pub(crate) struct World {
    pub(crate) created: Created,
    pub(crate) cpu: u32,
    init: Option<Init>,
    target: Target,
    directory: PathBuf,
    made: RefCell<Option<TempDir>>,
}

impl World {
    pub(crate) fn new(test: &str) -> Self {
        Self::with(test, |_, _| {})
    }

    pub(crate) fn with(test: &str, change: impl FnOnce(&mut Spec, &mut Hierarchies)) -> Self {
        let made = short_directory();
        let world = Self::below(made.path(), test, change);
        *world.made.borrow_mut() = Some(made);
        world
    }

    pub(crate) fn below(
        directory: &Path,
        test: &str,
        change: impl FnOnce(&mut Spec, &mut Hierarchies),
    ) -> Self {
        let serve = |_: OwnedFd| Err(oslet::Error::Invalid("served for nothing".to_owned()));
        Self::make(directory, test, change, serve)
    }

    pub(crate) fn serving(test: &str, serve: fn(OwnedFd) -> oslet::Result<()>) -> Self {
        let made = short_directory();
        let fuse = |spec: &mut Spec, _: &mut Hierarchies| {
            spec.global = Global::Fuse {
                source: "root".to_owned(),
                subtype: "cfs".to_owned(),
                options: "allow_other".to_owned(),
                read_only: true,
            };
        };
        let world = Self::make(made.path(), test, fuse, serve);
        *world.made.borrow_mut() = Some(made);
        world
    }

    fn make(
        directory: &Path,
        test: &str,
        change: impl FnOnce(&mut Spec, &mut Hierarchies),
        serve: impl FnOnce(OwnedFd) -> oslet::Result<()>,
    ) -> Self {
        let mut spec = spec(directory, &format!("t{}-{test}", std::process::id()));
        let mut hierarchies = Hierarchies::detect().unwrap();
        change(&mut spec, &mut hierarchies);
        let created =
            Cgroup::create(&hierarchies, &spec.cluster, &spec.oslet, &spec.cpus, &spec.nodes)
                .unwrap();
        spec.bound = created.bound;
        spec.groups = created.cgroup.groups().to_vec();
        let init = container::start(&program(), &spec, serve).unwrap();
        let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let state = State {
            cluster: spec.cluster.clone(),
            oslet: spec.oslet.clone(),
            index: 0,
            epoch: 1,
            runtime: ProcessId::own().unwrap(),
            init: init.id(),
            cpus: spec.cpus.clone(),
            nodes: spec.nodes.clone(),
            bound: spec.bound,
            cgroups: spec.groups.clone(),
            only_user: spec.user_namespace.then_some(ids),
        };
        let own = directory.join(&spec.oslet);
        fs::create_dir_all(&own).unwrap();
        state.write(&own).unwrap();
        Self {
            created,
            cpu: spec.cpus.first().unwrap(),
            init: Some(init),
            target: Target::open(state).unwrap(),
            directory: directory.to_owned(),
            made: RefCell::new(None),
        }
    }

    pub(crate) fn init(&self) -> &Init {
        self.init.as_ref().unwrap()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What a shell inside says.
    pub(crate) fn sh(&self, script: &str) -> String {
        let out = self.directory.join("out");
        // Whatever is left running in the background must not hold the test up.
        let script = format!("exec > \"$DIRECTORY/out\"; {script}");
        let status = self.run(&["sh", "-c", &script]);
        assert!(status.code().is_some(), "{script}: {status}");
        let said = fs::read(&out).unwrap();
        fs::remove_file(&out).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    }

    pub(crate) fn run(&self, words: &[&str]) -> ExitStatus {
        let mut command = command(words);
        let directory = self.directory.clone().into_os_string();
        command.environment.push(("DIRECTORY".into(), directory));
        let entered = self.target.start(&command).unwrap();
        wait(&entered)
    }

    pub(crate) fn start_as(&self, uid: u32) -> Result<Entered, StartError> {
        let user = Some(User { uid, gid: 0, groups: None });
        self.target.start(&enter::Command { user, ..command(&["true"]) })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.init.take());
        self.created.cgroup.kill(LIMIT).unwrap();
        self.created.cgroup.remove(LIMIT).unwrap();
        fs::remove_dir_all(self.directory.join(&self.target.state().oslet)).unwrap();
    }
}

pub(crate) fn program() -> Program {
    Program::default()
}

pub(crate) fn spec(directory: &Path, cluster: &str) -> Spec {
    let cpu = *numa::affinity().unwrap().last().unwrap();
    Spec {
        cluster: cluster.to_owned(),
        oslet: "o0".to_owned(),
        cpus: [cpu].into_iter().collect(),
        nodes: [0].into_iter().collect(),
        ltmp_nodes: [0].into_iter().collect(),
        bound: false,
        groups: Vec::new(),
        user_namespace: !rustix::process::geteuid().is_root(),
        tmp: Tmp::Host,
        ltmp_bytes: 16 << 20,
        directory: directory.to_owned(),
        devices: Vec::new(),
        global: Global::Empty,
        gtmp: ".gtmp".into(),
    }
}

pub(crate) fn missing_global(spec: &mut Spec) {
    spec.global = Global::Directory("/no/such/directory".into());
}

pub(crate) fn bad_device(spec: &mut Spec) {
    let name = "../x".into();
    let node =
        container::DeviceNode { name, block: true, major: 1, minor: 1, mode: 0, uid: 0, gid: 0 };
    spec.devices.push(node);
}

pub(crate) fn missing_cpu(spec: &mut Spec) {
    spec.cpus = [8000].into_iter().collect();
}

pub(crate) fn missing_directory(spec: &mut Spec) {
    spec.directory = "/no/such/place".into();
}

fn command(words: &[&str]) -> enter::Command {
    enter::Command {
        program: words[0].into(),
        zeroth: None,
        arguments: words[1..].iter().map(OsString::from).collect(),
        environment: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        directory: Directory::Preferred("/".into()),
        user: None,
        mask: SignalSet::empty(),
        die_with_caller: true,
        terminal: None,
    }
}

pub(crate) fn start(target: &Target, words: &[&str]) -> Entered {
    target.start(&command(words)).unwrap()
}

pub(crate) fn wait(entered: &Entered) -> ExitStatus {
    let id = WaitId::PidFd(entered.process.as_fd());
    let status = waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
    let code = status.exit_status().map(|code| code << 8);
    ExitStatus::from_raw(code.or(status.terminating_signal()).unwrap())
}

/// A runtime that is up until it is killed.
pub(crate) fn be_runtime(directory: &Path) {
    let _world = World::below(directory, "runtime", |_, _| {});
    println!("up");
    std::thread::sleep(Duration::from_secs(3600));
}

pub(crate) fn wait_for_line(from: ChildStdout) {
    assert_eq!(BufReader::new(from).lines().next().unwrap().unwrap(), "up");
}

/// Runs this program as user 65534, in mounts of its own after that script.
pub(crate) fn as_nobody(directory: &Path, part: &str, script: &str) -> ExitStatus {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    // The build directory may be out of that user's reach.
    let program = directory.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let place = directory.join("place");
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(65534), Some(65534)).unwrap();
    let script = format!(
        "{script}\nexec setpriv --reuid=65534 --regid=65534 --clear-groups \"$1\" {part} \"$2\""
    );
    let arguments = ["-m", "--propagation", "unchanged", "sh", "-c", &script, "sh"];
    Command::new("unshare").args(arguments).args([&program, &place]).status().unwrap()
}

/// Short, because the paths of sockets are; and where every user can get at it.
pub(crate) fn short_directory() -> TempDir {
    tempfile::Builder::new().prefix("oslet-test").tempdir_in("/tmp").unwrap()
}

pub(crate) fn file_lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

pub(crate) fn root_names() -> BTreeSet<OsString> {
    fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// As `stat -c %D:%i` has it.
pub(crate) fn device_and_inode(path: &str) -> String {
    let found = fs::metadata(path).unwrap();
    format!("{:x}:{}", found.dev(), found.ino())
}

pub(crate) fn mount_tmpfs(path: &Path) {
    assert!(
        Command::new("mount").args(["-t", "tmpfs", "none"]).arg(path).status().unwrap().success()
    );
}

pub(crate) fn unmount(path: &Path) {
    assert!(Command::new("umount").arg(path).status().unwrap().success());
}

/// The least of a FUSE server: it agrees to a version and finds no file.
pub(crate) fn serve_nothing(device: OwnedFd) -> oslet::Result<()> {
    std::thread::spawn(move || {
        let mut device = File::from(device);
        let mut request = vec![0; 1 << 20];
        while let Ok(length) = device.read(&mut request) {
            assert!(length >= 40);
            let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
            let (opcode, unique) = (word(4), request[8..16].to_vec());
            let mut body = Vec::new();
            let error: i32 = match opcode {
                // FORGET and BATCH_FORGET have no reply.
                2 | 42 => continue,
                // INIT: version 7.31, no flags, writes of a page.
                26 => {
                    for number in [7_u32, 31, 4096, 0, 0, 4096] {
                        body.extend(number.to_ne_bytes());
                    }
                    body.resize(64, 0);
                    0
                }
                _ => -libc::ENOENT,
            };
            let mut reply = (16 + body.len() as u32).to_ne_bytes().to_vec();
            reply.extend(error.to_ne_bytes());
            reply.extend(unique);
            reply.extend(body);
            // Fails when the request was interrupted, which is its own end.
            let _ = device.write_all(&reply);
        }
    });
    Ok(())
}

/// What must not grow.
#[derive(PartialEq, Eq, Debug)]
struct Counts {
    mounts: usize,
    descriptors: usize,
    children: String,
    cgroups: BTreeSet<PathBuf>,
    namespaces: BTreeSet<PathBuf>,
}

pub(crate) struct Leaks(Counts);

impl Leaks {
    pub(crate) fn now() -> Self {
        Self(Counts::now())
    }

    /// The last of what is killed may take a moment to go.
    pub(crate) fn none_since(&self) {
        let end = Instant::now() + LIMIT;
        loop {
            let now = Counts::now();
            if now == self.0 {
                return;
            }
            assert!(Instant::now() < end, "left: {now:?}\nbefore: {:?}", self.0);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Counts {
    fn now() -> Self {
        let pid = std::process::id();
        let mine = format!("t{pid}-");
        let mut cgroups = BTreeSet::new();
        for base in ["cpuset", "unified", "freezer", ""] {
            let base = Path::new("/sys/fs/cgroup").join(base).join("oslet");
            for entry in fs::read_dir(base).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&mine) {
                    cgroups.insert(entry.path());
                }
            }
        }
        // Namespaces that only processes under another's rule keep are not ours to count: those of
        // our own descendants are.
        let tasks = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(tasks).unwrap_or_default();
        let namespaces = children
            .split_whitespace()
            .filter_map(|child| fs::read_link(format!("/proc/{child}/ns/mnt")).ok())
            .collect();
        Self {
            mounts: file_lines("/proc/self/mountinfo").len(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            children,
            cgroups,
            namespaces,
        }
    }
}
