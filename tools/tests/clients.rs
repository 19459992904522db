//! Native clients of a running cluster: they read, die, are stopped, and talk nonsense.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use oslet::control_socket::Connection;
use oslet::runtime;
use oslet::wire::{Message, PROTOCOL, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 30;

struct Cluster {
    top: tempfile::TempDir,
    name: String,
}

impl Cluster {
    /// Two OSlets; o0 serves a volume made of this repository's sources.
    fn start(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can be sure to have namespaces and control groups");
            return None;
        }
        let cluster = Self {
            top: tempfile::tempdir().unwrap(),
            name: format!("{test}{}", std::process::id()),
        };
        let image = cluster.path("disk.img");
        let file = fs::File::create(&image).unwrap();
        file.set_len(32 << 20).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        let made = mkfs.args(["-q", "-F", "-d"]).arg(source()).arg(&image).status();
        assert!(made.unwrap().success(), "mkfs.ext4 (e2fsprogs) is needed");
        fs::write(
            cluster.path("oslet.toml"),
            "[region]\nsize = \"64M\"\n\
             [[oslet]]\nname = \"o0\"\nrestart = true\n\
             [[oslet]]\nname = \"o1\"\nrestart = true\n\
             [[device]]\nname = \"hda\"\npath = \"disk.img\"\nowner = \"o0\"\n\
             [[volume]]\nname = \"root\"\ndevice = \"hda\"\nmount = \"/global\"\n",
        )
        .unwrap();
        let up = cluster.oslet(&["up", "-d"]);
        assert!(up.status.success(), "{up:?}");
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    fn oslet(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oslet"));
        command.arg("--dir").arg(self.path("run")).args(["--cluster", &self.name]);
        command.args(arguments).current_dir(self.top.path()).output().unwrap()
    }

    fn command(&self, oslet: &str, what: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oslet"));
        command.arg("__client").arg(self.path("run")).args([oslet, "0", what]);
        command.stdout(Stdio::piped());
        command
    }

    /// A client that has printed its first line, and the line.
    fn client(&self, oslet: &str, what: &str) -> (Running, String) {
        let mut child = self.command(oslet, what).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line:?}\n{}", self.logs());
        (Running(child), line)
    }

    fn read(&self, oslet: &str) -> BTreeMap<String, (u64, u64)> {
        let output = self.command(oslet, "read").output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", self.logs());
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let size = words.next()?.parse().ok()?;
            let hash = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((words.next()?.to_owned(), (size, hash)))
        };
        text.lines().map(|text| line(text).unwrap()).collect()
    }

    fn status(&self, oslet: &str) -> Option<Status> {
        runtime::ask(&self.path("run").join(oslet), false, Duration::from_secs(5)).ok()
    }

    fn until(&self, what: &str, oslet: &str, wanted: impl Fn(&Status) -> bool) {
        let start = Instant::now();
        loop {
            let status = self.status(oslet);
            if status.as_ref().is_some_and(&wanted) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {status:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn logs(&self) -> String {
        let log = |oslet| fs::read_to_string(self.path("run").join(oslet).join("log"));
        ["o0", "o1"].map(|oslet| log(oslet).unwrap_or_default()).concat()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.oslet(&["down"]);
    }
}

struct Running(Child);

impl Running {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../oslet/src")
}

/// Every file below, by its path from there: size, and the hash that the client prints.
fn tree(top: &Path, dir: &Path, found: &mut BTreeMap<String, (u64, u64)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tree(top, &path, found);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let name = format!("/{}", path.strip_prefix(top).unwrap().display());
        found.insert(name, (bytes.len() as u64, hash));
    }
}

#[test]
fn clients_read_the_tree_and_their_deaths_harm_nobody() {
    let Some(cluster) = Cluster::start("clients") else { return };
    let mut expected = BTreeMap::new();
    tree(&source(), &source(), &mut expected);
    assert!(expected.len() > 50);
    for oslet in ["o0", "o1"] {
        assert_eq!(cluster.read(oslet), expected, "{oslet}");
    }
    // One that holds pins is stopped through all of it; another reads on.
    let (stopped, line) = cluster.client("o1", "hold");
    let pinned: usize = line.trim().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pinned > 50, "{line}");
    stopped.signal(rustix::process::Signal::STOP);
    let (mut reader, _) = cluster.client("o1", "loop");
    for round in 0..ROUNDS {
        let oslet = ["o0", "o1"][(round % 2) as usize];
        let (holding, _) = cluster.client(oslet, "hold");
        let (calling, _) = cluster.client(oslet, "loop");
        std::thread::sleep(Duration::from_millis(round % 7));
        for client in [&holding, &calling] {
            client.signal(rustix::process::Signal::KILL);
        }
        drop((holding, calling));
        assert!(reader.0.try_wait().unwrap().is_none(), "round {round}: {}", cluster.logs());
    }
    cluster.until("the dead are gone", "o1", |status| status.clients == 2);
    assert_eq!(cluster.read("o1"), expected);
    drop((stopped, reader));
    for oslet in ["o0", "o1"] {
        cluster.until("all are gone", oslet, |s| s.clients == 0 && s.frames[2] == 0);
    }
    assert_eq!(cluster.status("o0").unwrap().who.epoch, 1, "{}", cluster.logs());
    assert_eq!(cluster.status("o1").unwrap().who.epoch, 1, "{}", cluster.logs());
}

/// The directory of a runtime that gets nonsense from this process.
const DIRECTORY: &str = "OSLET_TEST_NONSENSE";

/// Not a test unless it is run by one: a process that holds slots of an OSlet ends with it.
#[test]
fn nonsense_of_a_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    for message in [
        Message::Segment,
        Message::Mapped,
        Message::Admit,
        Message::LetGo { frames: 1 },
        Message::Enter { protocol: PROTOCOL },
    ] {
        let mut connection = Connection::connect(directory).unwrap();
        connection.send(&Message::Enter { protocol: PROTOCOL }, Vec::new()).unwrap();
        let answer = connection.wait("slot", PATIENCE).unwrap();
        assert!(matches!(answer.message, Message::Slot { .. }), "{answer:?}");
        let null = fs::File::open("/dev/null").unwrap();
        connection.send(&message, vec![null.into()]).unwrap();
        let cut = connection.wait("the end", PATIENCE).unwrap_err();
        assert!(matches!(cut, oslet::Error::Gone(_)), "{message:?}: {cut}");
    }
    // This process lives, so it keeps its slots.
    let status = runtime::ask(directory, false, PATIENCE).unwrap();
    assert_eq!(status.clients, 5);
}

#[test]
fn nonsense_costs_a_client_alone_and_a_killed_oslet_takes_its_clients_along() {
    let Some(cluster) = Cluster::start("nonsense") else { return };
    let (mut reader, _) = cluster.client("o0", "loop");
    let talker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nonsense_of_a_process", "--nocapture"])
        .env(DIRECTORY, cluster.path("run").join("o1"))
        .output()
        .unwrap();
    assert!(talker.status.success(), "{talker:?}\n{}", cluster.logs());
    cluster.until("it has ended", "o1", |status| status.clients == 0);
    assert!(reader.0.try_wait().unwrap().is_none());
    let (mut other, _) = cluster.client("o1", "hold");
    let refused = cluster.oslet(&["kill", "-s", "HUP", "o0"]);
    assert_eq!(refused.status.code(), Some(2), "a signal is for processes: {refused:?}");
    let killed = cluster.oslet(&["kill", "o0"]);
    assert!(killed.status.success(), "{killed:?}");
    cluster.until("it is back", "o0", |status| status.who.epoch == 2 && status.volumes == 1);
    assert!(reader.0.wait().unwrap().code().is_none(), "its client goes with it");
    assert!(other.0.try_wait().unwrap().is_none());
    let mut expected = BTreeMap::new();
    tree(&source(), &source(), &mut expected);
    assert_eq!(cluster.read("o1"), expected);
}
