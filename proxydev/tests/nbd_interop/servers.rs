//! Our client and servers that others wrote.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use oslet::arena::Arena;
use proxydev::conformance::{self, Subject};
use proxydev::nbd::{ClientOptions, NbdDevice};
use proxydev::{BlockDevice, Data, Operation, Request, sync};
use tempfile::TempDir;

use crate::{arena, certificates, encoded, run};

const SIZE: u64 = 8 << 20;
/// How long anything may take that should be there at once.
const SOON: Duration = Duration::from_secs(20);

/// A server, which ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that goes into the background, by the file that its number is in.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        let number = fs::read_to_string(&self.0).unwrap_or_default();
        let number = number.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        if let Some(number) = number {
            // One that has ended already is what is wanted.
            let _ = rustix::process::kill_process(number, rustix::process::Signal::TERM);
        }
    }
}

struct Setup {
    arena: Arc<Arena>,
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        // On a disk, for what servers do there.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        Self { arena: arena(8_000), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A file of zeros.
    fn file(&self, name: &str) -> String {
        fs::File::create(self.path(name)).unwrap().set_len(SIZE).unwrap();
        self.text(name)
    }

    /// Starts a server that listens at "sock". `None`, and a line, where there is none.
    fn serve(&self, program: &str, arguments: &[&str]) -> Option<Process> {
        let socket = self.path("sock");
        // One that was killed has left it.
        let _ = fs::remove_file(&socket);
        let path = format!("/usr/bin:/usr/sbin:{}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null());
        let Ok(child) = command.stderr(Stdio::inherit()).spawn() else {
            println!("skipped: no {program}");
            return None;
        };
        let mut process = Process(child);
        let start = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            let ended = process.0.try_wait().unwrap();
            assert!(ended.is_none(), "{program} {arguments:?}: {ended:?}");
            assert!(start.elapsed() < SOON, "{program} {arguments:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(process)
    }

    fn nbdkit(&self, arguments: &[&str]) -> Option<Process> {
        let socket = self.text("sock");
        let all = [&["--foreground", "--exit-with-parent", "--unix", &socket], arguments].concat();
        self.serve("nbdkit", &all)
    }

    fn qemu(&self, arguments: &[&str]) -> Option<Process> {
        let socket = self.text("sock");
        let fixed = ["--format=raw", "--socket", &socket, "--persistent", "--shared=8"];
        self.serve("qemu-nbd", &[&fixed, arguments].concat())
    }

    /// Of nbd-server's, which has nothing but a file of configuration and goes into the background.
    fn nbd_server(&self) -> Option<Daemon> {
        let disk = self.file("old-disk");
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let socket = self.text("sock");
        let config = format!(
            "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nunixsock = {socket}\n\
             [disk]\nexportname = {disk}\nflush = true\nfua = true\ntrim = true\n"
        );
        fs::write(self.path("config"), config).unwrap();
        let daemon = Daemon(self.path("pid"));
        let (config, pid) = (self.text("config"), self.text("pid"));
        run("nbd-server", &["--config-file", &config, "--pid-file", &pid])?;
        let start = Instant::now();
        while UnixStream::connect(self.path("sock")).is_err() || !daemon.0.exists() {
            assert!(start.elapsed() < SOON, "nbd-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(daemon)
    }

    fn open(&self, export: &str, limit: Duration) -> proxydev::Result<NbdDevice> {
        let uri = format!("nbd+unix:///{export}?socket={}", encoded(&self.path("sock")));
        NbdDevice::open(&uri, ClientOptions { limit, ..ClientOptions::default() }, &self.arena)
    }

    /// Runs the suite of all devices on an export of zeros.
    fn conforms(&self, device: NbdDevice, seed: u64) {
        let (arena, homes) = (Arc::clone(&self.arena), vec![Arc::clone(&self.arena)]);
        let subject = Subject { device: Arc::new(device), arena, homes, settle: Box::new(|| ()) };
        conformance::run(&subject, seed);
    }
}

#[test]
fn exports_of_nbdkit_conform() {
    let setup = Setup::new();
    let memory = ["memory", "8M"];
    let ways: [&[&str]; 5] = [
        &[],
        &["--filter=delay", "delay-read=1ms", "delay-write=1ms"],
        &["--filter=cow"],
        &["--filter=blocksize", "minblock=4096", "maxdata=65536", "maxlen=1M"],
        &[
            "--filter=noextents",
            "--filter=nozero",
            "zeromode=notrim",
            "--filter=fua",
            "fuamode=emulate",
        ],
    ];
    for (seed, way) in (1..).zip(ways) {
        let (filters, parameters): (Vec<&str>, Vec<&str>) =
            way.iter().partition(|word| word.starts_with("--"));
        let arguments = [&filters[..], &memory, &parameters].concat();
        let Some(_server) = setup.nbdkit(&arguments) else { return };
        println!("nbdkit {arguments:?}");
        setup.conforms(setup.open("", SOON).unwrap(), seed);
    }
    // Old servers: no structured replies, no GO.
    for no in ["--no-sr", "--mask-handshake=1"] {
        let Some(_server) = setup.nbdkit(&[&[no], &memory[..]].concat()) else { return };
        println!("nbdkit {no}");
        setup.conforms(setup.open("", SOON).unwrap(), 9);
    }
}

#[test]
fn exports_of_qemu_conform() {
    let setup = Setup::new();
    let disk = setup.file("disk");
    let arguments = ["--export-name=a disk", "--discard=unmap", "--detect-zeroes=off", &disk];
    let Some(_server) = setup.qemu(&arguments) else { return };
    setup.conforms(setup.open("a%20disk", SOON).unwrap(), 3);
    let error = setup.open("another", SOON).unwrap_err().to_string();
    assert!(error.contains("\"another\": no such export"), "{error}");
}

#[test]
fn exports_of_nbd_server_conform() {
    let setup = Setup::new();
    let Some(_server) = setup.nbd_server() else { return };
    setup.conforms(setup.open("disk", SOON).unwrap(), 4);
}

#[test]
fn tls_is_spoken_with_other_servers() {
    let setup = Setup::new();
    if !certificates(setup.dir.path()) {
        println!("skipped: no openssl");
        return;
    }
    let shown = setup.dir.path().display().to_string();
    let secure = |export: &str, directory: &Path| {
        let socket = encoded(&setup.path("sock"));
        let directory = encoded(directory);
        let uri = format!("nbds+unix:///{export}?socket={socket}&tls-certificates={directory}");
        NbdDevice::open(&uri, ClientOptions::default(), &setup.arena)
    };
    let certificates = format!("--tls-certificates={shown}");
    let object = format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={shown}");
    let disk = setup.file("disk");
    for qemu in [false, true] {
        let server = match qemu {
            false => {
                setup.nbdkit(&["--tls=require", &certificates, "--tls-verify-peer", "memory", "8M"])
            }
            true => setup.qemu(&["--object", &object, "--tls-creds=tls0", &disk]),
        };
        let Some(_server) = server else { return };
        setup.conforms(secure("", setup.dir.path()).unwrap(), 6);
        let plain = setup.open("", SOON).unwrap_err().to_string();
        assert!(plain.contains("TLS"), "{plain}");
        // Of another authority's.
        let other = tempfile::tempdir().unwrap();
        assert!(crate::certificates(other.path()));
        let error = secure("", other.path()).unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
    }
}

#[test]
fn errors_of_a_server_arrive_and_harm_nothing_else() {
    let setup = Setup::new();
    let arguments = ["--filter=error", "memory", "8M", "error-pread=EIO", "error-pread-rate=50%"];
    let Some(_server) = setup.nbdkit(&arguments) else { return };
    let device = setup.open("", SOON).unwrap();
    let (mut good, mut bad) = (0, 0);
    for page in 0..200_u64 {
        let data = Data::copy_from(&setup.arena, &[page as u8; 4096]).unwrap();
        let write = Operation::Write { offset: page * 4096, data, fua: false };
        sync::execute(&device, write).unwrap();
        match sync::execute(&device, Operation::read(page * 4096, 4096)) {
            Ok(data) => {
                let bytes = data.to_vec().unwrap();
                assert!(bytes == [page as u8; 4096]);
                good += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("read"), "{error}");
                bad += 1;
            }
        }
    }
    assert!(good > 20 && bad > 20, "{good} read, {bad} failed");
}

#[test]
fn a_server_that_is_killed_and_started_again_is_not_missed() {
    let setup = Setup::new();
    let disk = setup.file("disk");
    let Some(mut server) = setup.nbdkit(&["file", &disk]) else { return };
    let device = setup.open("", SOON).unwrap();
    let (say, hear) = mpsc::channel();
    const PAGES: u64 = SIZE / 4096;
    const ROUNDS: u64 = 5;
    for round in 0..ROUNDS {
        for page in 0..PAGES {
            let byte = (round * 77 + page) as u8;
            let data = Data::copy_from(&setup.arena, &[byte; 4096]).unwrap();
            let write = Operation::Write { offset: page * 4096, data, fua: page % 16 == 0 };
            let say = say.clone();
            device.submit(Request::new(write, move |result| say.send(result).unwrap()));
            if page == PAGES / 2 {
                server.0.kill().unwrap();
                server.0.wait().unwrap();
            }
        }
        server = setup.nbdkit(&["file", &disk]).unwrap();
        for _ in 0..PAGES {
            hear.recv_timeout(SOON).unwrap().unwrap();
        }
        sync::flush(&device).unwrap();
        let found = fs::read(&disk).unwrap();
        for (page, bytes) in (0..).zip(found.chunks(4096)) {
            let byte = (round * 77 + page) as u8;
            assert!(bytes.iter().all(|found| *found == byte), "round {round}, page {page}");
        }
    }
    println!("ran: {ROUNDS} servers killed under {PAGES} writes each");
}
