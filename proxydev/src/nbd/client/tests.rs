use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;

use super::*;
use crate::backend::ram::RamDevice;
use crate::conformance::{self, Subject};
use crate::layer::delay::Delay;
use crate::nbd::wire::{self, OptionHeader, opt, rep};
use crate::nbd::{Export, ExportTable, Server, ServerOptions};
use crate::sync;
use crate::testing::arena;

const SIZE: u64 = 8 << 20;

struct Setup {
    arena: Arc<Arena>,
    exports: Arc<ExportTable>,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let arena = arena(8000);
        let ram: Arc<dyn BlockDevice> = Arc::new(RamDevice::new("ram", SIZE, &arena).unwrap());
        let (soon, late) = (Duration::from_millis(1), Duration::from_millis(8));
        let late = Arc::new(Delay::new(Arc::clone(&ram), soon, late, 3).unwrap());
        let exports = ExportTable::new();
        exports.add(Export { name: "late".into(), ..Export::new(late) }).unwrap();
        let fixed = Export { name: "fixed".into(), read_only: true, ..Export::new(ram.clone()) };
        exports.add(fixed).unwrap();
        exports.add(Export::new(ram)).unwrap();
        Self { arena, exports, dir: tempfile::tempdir().unwrap() }
    }

    fn serve(&self) -> Server {
        let exports = Arc::clone(&self.exports) as _;
        let server = Server::new(exports, &self.arena, ServerOptions::default()).unwrap();
        server.listen_unix(&self.path()).unwrap();
        server
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("sock")
    }

    fn open(&self, export: &str, limit: Duration) -> Result<NbdDevice> {
        let uri = format!("nbd+unix:///{export}?socket={}", self.path().display());
        NbdDevice::open(&uri, ClientOptions { limit, ..ClientOptions::default() }, &self.arena)
    }
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn an_export_conforms() {
    let setup = Setup::new();
    let _server = setup.serve();
    for (export, seed) in [("ram", 5), ("late", 7)] {
        let device = setup.open(export, LIMIT).unwrap();
        let (arena, homes) = (Arc::clone(&setup.arena), vec![Arc::clone(&setup.arena)]);
        let subject = Subject { device: Arc::new(device), arena, homes, settle: Box::new(|| ()) };
        conformance::run(&subject, seed);
    }
    let device = setup.open("fixed", LIMIT).unwrap();
    let mut expected = vec![0; SIZE as usize];
    sync::read_at(&setup.open("ram", LIMIT).unwrap(), 0, &mut expected).unwrap();
    let (arena, homes) = (Arc::clone(&setup.arena), vec![]);
    let subject = Subject { device: Arc::new(device), arena, homes, settle: Box::new(|| ()) };
    conformance::run_read_only(&subject, &expected);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let setup = Setup::new();
    let error = setup.open("ram", LIMIT).unwrap_err().to_string();
    assert!(error.contains("sock") && error.contains("No such file"), "{error}");
    let _server = setup.serve();
    let error = setup.open("none", LIMIT).unwrap_err().to_string();
    assert!(error.contains("\"none\": no such export"), "{error}");
}

#[test]
fn a_server_that_comes_back_in_time_is_not_missed() {
    let setup = Setup::new();
    let mut server = setup.serve();
    let device = setup.open("late", LIMIT).unwrap();
    let (say, hear) = mpsc::channel();
    for round in 0..6_u64 {
        for page in 0..200_u64 {
            let data = Data::copy_from(&setup.arena, &[(round * 31 + page) as u8; 4096]).unwrap();
            let write = Operation::Write { offset: page * 4096, data, fua: page % 9 == 0 };
            let say = say.clone();
            device.submit(Request::new(write, move |result| say.send(result).unwrap()));
        }
        // Cut in the middle, without a farewell.
        let links: Vec<_> = server.links();
        links.iter().for_each(|link| link.give_up());
        server.shutdown();
        drop(server);
        std::thread::sleep(Duration::from_millis(30));
        server = setup.serve();
        for _ in 0..200 {
            hear.recv_timeout(LIMIT).unwrap().unwrap();
        }
        for page in 0..200_u64 {
            let mut found = [0; 4096];
            sync::read_at(&device, page * 4096, &mut found).unwrap();
            assert!(found == [(round * 31 + page) as u8; 4096], "round {round}, page {page}");
        }
    }
}

#[test]
fn a_server_that_stays_away_costs_an_error_and_no_more() {
    let setup = Setup::new();
    let server = setup.serve();
    let device = setup.open("ram", Duration::from_millis(300)).unwrap();
    sync::flush(&device).unwrap();
    drop(server);
    let start = Instant::now();
    let error = sync::execute(&device, Operation::read(0, 4096)).unwrap_err();
    assert_eq!(error.errno(), Errno::IO, "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let _server = setup.serve();
    let start = Instant::now();
    while sync::execute(&device, Operation::read(0, 4096)).is_err() {
        assert!(start.elapsed() < LIMIT, "it is there again");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that says `after` once the export is taken, and then nothing, until `stop` is gone.
fn hostile(
    path: &Path,
    after: &'static [u8],
    stop: mpsc::Receiver<()>,
) -> std::thread::JoinHandle<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
            match listener.accept() {
                Ok((socket, _)) => held.extend(greet(socket, after)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    })
}

fn greet(mut socket: UnixStream, after: &[u8]) -> Option<UnixStream> {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.write_all(&wire::greeting()).ok()?;
    socket.read_exact(&mut [0; 4]).ok()?;
    loop {
        let mut header = [0; 16];
        socket.read_exact(&mut header).ok()?;
        let header = OptionHeader::decode(&header).unwrap();
        socket.read_exact(&mut vec![0; header.len as usize]).ok()?;
        let mut answer = Vec::new();
        match header.option {
            opt::GO => {
                let flags = ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH;
                answer.extend(wire::Info::Export(SIZE, flags).encode(opt::GO));
                answer.extend(wire::option_reply(opt::GO, rep::ACK, b""));
                answer.extend(after);
            }
            opt::STRUCTURED_REPLY => answer.extend(wire::option_reply(8, rep::ACK, b"")),
            other => answer.extend(wire::option_reply(other, rep::ERR_UNSUP, b"")),
        }
        socket.write_all(&answer).ok()?;
        if header.option == opt::GO {
            return Some(socket);
        }
    }
}

#[test]
fn hostile_servers_cost_an_error_in_time() {
    let setup = Setup::new();
    // The first request has the cookie 1.
    let replies: [&'static [u8]; 8] = [
        // Nothing at all, and nonsense.
        b"",
        b"HTTP/1.0 200 OK\r\n\r\n",
        // An answer to nobody.
        b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x63",
        // Data beyond what was asked for, and far too many.
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\x10\x08\0\0\0\0\0\0\x20\0",
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
        // A chunk cut off, and one that is too short for its kind.
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\x10\x08\0\0\0\0\0\0\0\0abc",
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0\0",
        // Done, without any of the bytes.
        b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x01\0\0\0\0",
    ];
    for reply in replies {
        let (running, stop) = mpsc::channel();
        let server = hostile(&setup.path(), reply, stop);
        let free = setup.arena.usage().free;
        let device = setup.open("x", Duration::from_millis(400)).unwrap();
        let start = Instant::now();
        let error = sync::execute(&device, Operation::read(0, 4096)).unwrap_err();
        assert_eq!(error.errno(), Errno::IO, "{reply:?}: {error}");
        assert!(start.elapsed() < Duration::from_secs(8), "{reply:?}: {:?}", start.elapsed());
        drop((device, running));
        assert_eq!(setup.arena.usage().free, free, "{reply:?}");
        server.join().unwrap();
    }
}
