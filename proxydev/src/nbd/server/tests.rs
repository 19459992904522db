use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc;

use rustix::io::Errno;

use super::*;
use crate::backend::ram::RamDevice;
use crate::layer::delay::Delay;
use crate::nbd::wire::{self, Command, CommandFlags, Header, Mode, OptionHeader, chunk, opt};
use crate::nbd::{Export, ExportTable};
use crate::testing::arena;
use crate::{BlockDevice, Data, Operation, sync};

const SIZE: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(20);
const NONE: CommandFlags = CommandFlags::empty();

struct Setup {
    server: Server,
    arena: Arc<Arena>,
    ram: Arc<dyn BlockDevice>,
}

/// A server of "ram", of "late", the same disk with answers in another order, and of "fixed", which
/// is read-only.
fn setup(options: ServerOptions) -> Setup {
    let arena = arena(6000);
    let ram: Arc<dyn BlockDevice> = Arc::new(RamDevice::new("ram", SIZE, &arena).unwrap());
    let (soon, late) = (Duration::from_millis(1), Duration::from_millis(30));
    let delay = Delay::new(Arc::clone(&ram), soon, late, 7).unwrap();
    let exports = ExportTable::new();
    let fixed = Export { name: "fixed".into(), read_only: true, ..Export::new(Arc::clone(&ram)) };
    let late = Export { name: "late".into(), ..Export::new(Arc::new(delay)) };
    for export in [Export::new(Arc::clone(&ram)), late, fixed] {
        exports.add(export).unwrap();
    }
    let server = Server::new(exports, &arena, options).unwrap();
    Setup { server, arena, ram }
}

/// A client that says whatever it is told to.
struct Peer {
    socket: UnixStream,
    mode: Mode,
}

struct Reply {
    cookie: u64,
    error: u32,
    data: Vec<u8>,
}

impl Peer {
    fn raw(server: &Server) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        ours.set_write_timeout(Some(LIMIT)).unwrap();
        server.serve(theirs).unwrap();
        ours
    }

    fn new(server: &Server, export: &str, mode: Mode) -> Self {
        let mut socket = Self::raw(server);
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, wire::greeting());
        socket.write_all(&[0, 0, 0, 3]).unwrap();
        let mut options = Vec::new();
        match mode {
            Mode::Simple => {}
            Mode::Structured => options.push((opt::STRUCTURED_REPLY, Vec::new())),
            Mode::Extended => options.push((opt::EXTENDED_HEADERS, Vec::new())),
        }
        if mode != Mode::Simple {
            let query = wire::encode_meta(export, &[wire::BASE_ALLOCATION]);
            options.push((opt::SET_META_CONTEXT, query));
        }
        options.push((opt::GO, wire::encode_go(export, &[])));
        for (option, data) in options {
            socket.write_all(&OptionHeader::encode(option, &data)).unwrap();
            loop {
                let mut header = [0; wire::OptionReplyHeader::LEN];
                socket.read_exact(&mut header).unwrap();
                let header = wire::OptionReplyHeader::decode(&header).unwrap();
                socket.read_exact(&mut vec![0; header.len as usize]).unwrap();
                assert!(header.kind & wire::rep::ERROR == 0, "{header:?}");
                if header.kind == wire::rep::ACK {
                    break;
                }
            }
        }
        Self { socket, mode }
    }

    fn request(
        &self,
        cookie: u64,
        (command, flags): (Command, CommandFlags),
        place: (u64, u64),
    ) -> Vec<u8> {
        let (offset, len) = place;
        let mut bytes = Vec::new();
        wire::Request { command, flags, cookie, offset, len }.encode(self.mode, &mut bytes);
        bytes
    }

    fn send(&mut self, cookie: u64, command: Command, place: (u64, u64), payload: &[u8]) {
        let head = self.request(cookie, (command, NONE), place);
        self.socket.write_all(&[&head, payload].concat()).unwrap();
    }

    /// The next reply; `reads` says how many bytes a request read.
    fn reply(&mut self, reads: impl Fn(u64) -> usize) -> Reply {
        let mut head = vec![0; 16];
        self.socket.read_exact(&mut head).unwrap();
        let kind = wire::HeaderKind::of(self.mode, &head).unwrap().unwrap();
        head.resize(kind.len(), 0);
        self.socket.read_exact(&mut head[16..]).unwrap();
        match Header::decode(self.mode, &head).unwrap().unwrap().0 {
            Header::Simple { cookie, error } => {
                let mut data = vec![0; if error == 0 { reads(cookie) } else { 0 }];
                self.socket.read_exact(&mut data).unwrap();
                Reply { cookie, error, data }
            }
            Header::Chunk(chunk) => {
                assert_eq!(chunk.flags, wire::ChunkFlags::DONE);
                let mut data = vec![0; chunk.len as usize];
                self.socket.read_exact(&mut data).unwrap();
                let (cookie, mut error) = (chunk.cookie, 0);
                match chunk.kind {
                    chunk::OFFSET_DATA => drop(data.drain(..8)),
                    kind if kind & chunk::IS_ERROR != 0 => {
                        error = u32::from_be_bytes(*data.first_chunk().unwrap());
                        data.clear();
                    }
                    _ => {}
                }
                Reply { cookie, error, data }
            }
        }
    }

    /// One request and its answer: the error.
    fn ask(&mut self, command: (Command, CommandFlags), place: (u64, u64), payload: &[u8]) -> u32 {
        let head = self.request(77, command, place);
        self.socket.write_all(&[&head, payload].concat()).unwrap();
        let reply = self.reply(|_| if command.0 == Command::Read { place.1 as usize } else { 0 });
        assert_eq!(reply.cookie, 77);
        reply.error
    }

    fn is_cut(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(self.socket.read_to_end(&mut rest), Ok(0) | Err(_))
    }
}

fn settled(setup: &Setup) {
    let start = Instant::now();
    while setup.server.connections() > 0 {
        assert!(start.elapsed() < LIMIT, "{} connections are left", setup.server.connections());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(77) + i + i / 251) as u8).collect()
}

#[test]
fn bad_input_is_answered_and_the_connection_goes_on() {
    let setup = setup(ServerOptions::default());
    let free = setup.arena.usage().free;
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut peer = Peer::new(&setup.server, "ram", mode);
        let data = pattern(1, 4096);
        for (command, place, payload, error) in [
            (Command::Write, (SIZE, 4096), &data[..], wire::error_value::NOSPC),
            (Command::Write, (1, 4096), &data, wire::error_value::INVAL),
            (Command::Write, (u64::MAX - 4095, 4096), &data, wire::error_value::NOSPC),
            (Command::Write, (0, 100), &data[..100], wire::error_value::INVAL),
            (Command::Write, (0, 0), b"", 0),
            (Command::Write, (512, 4096), &data, 0),
            (Command::Read, (SIZE, 512), b"", wire::error_value::INVAL),
            (Command::Read, (0, 64 << 20), b"", wire::error_value::OVERFLOW),
            (Command::Read, (7, 512), b"", wire::error_value::INVAL),
            (Command::Read, (0, 0), b"", 0),
            (Command::WriteZeroes, (SIZE - 512, 1024), b"", wire::error_value::NOSPC),
            (Command::WriteZeroes, (0, 512), b"", 0),
            (Command::Trim, (SIZE, 512), b"", wire::error_value::INVAL),
            (Command::Trim, (0, 512), b"", 0),
            (Command::Cache, (0, 512), b"", 0),
            (Command::Flush, (0, 0), b"", 0),
            (Command::Other(8), (0, 0), b"", wire::error_value::INVAL),
            (Command::Other(4242), (0, 512), b"", wire::error_value::INVAL),
        ] {
            let found = peer.ask((command, NONE), place, payload);
            assert_eq!(found, error, "{mode:?} {command:?} {place:?}");
        }
        for (command, flags, error) in [
            (Command::Trim, CommandFlags::FUA, 0),
            (Command::WriteZeroes, CommandFlags::FUA | CommandFlags::NO_HOLE, 0),
            (Command::WriteZeroes, CommandFlags::FAST_ZERO, 0),
            (Command::Read, CommandFlags::NO_HOLE, wire::error_value::INVAL),
            (Command::Flush, CommandFlags::from_bits_retain(1 << 12), wire::error_value::INVAL),
        ] {
            let place = if command == Command::Flush { (0, 0) } else { (0, 512) };
            assert_eq!(peer.ask((command, flags), place, b""), error, "{command:?} {flags:?}");
        }
        peer.send(5, Command::Read, (512, 4096), b"");
        assert!(peer.reply(|_| 4096).data == data, "{mode:?}");
        peer.send(6, Command::Disconnect, (0, 0), b"");
        assert!(peer.is_cut());
        let mut peer = Peer::new(&setup.server, "fixed", mode);
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let payload = if command == Command::Write { &data[..512] } else { b"" };
            assert_eq!(peer.ask((command, NONE), (0, 512), payload), wire::error_value::PERM);
        }
        assert_eq!(peer.ask((Command::Read, NONE), (0, 512), b""), 0);
    }
    settled(&setup);
    while setup.arena.tick() > 0 {}
    // The disk may have taken one back among its spare ones, or given one up.
    assert!(setup.arena.usage().free + 8 >= free, "frames are missing");
}

#[test]
fn nonsense_and_cut_off_requests_end_the_connection_alone() {
    let setup = setup(ServerOptions::default());
    let mut bystander = Peer::new(&setup.server, "ram", Mode::Simple);
    let mut peer = Peer::new(&setup.server, "ram", Mode::Simple);
    peer.socket.write_all(&[0x55; 28]).unwrap();
    assert!(peer.is_cut(), "bad magic");
    let mut peer = Peer::new(&setup.server, "ram", Mode::Simple);
    peer.send(1, Command::Write, (0, (32 << 20) + 512), b"");
    assert!(peer.is_cut(), "too long a payload");
    for sent in [1, 27, 28, 5000] {
        let mut peer = Peer::new(&setup.server, "ram", Mode::Simple);
        let head = peer.request(1, (Command::Write, NONE), (0, 8192));
        let all = [head, vec![1; 8192]].concat();
        peer.socket.write_all(&all[..sent]).unwrap();
        peer.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(peer.is_cut(), "after {sent} bytes");
    }
    let mut nobody = Peer::raw(&setup.server);
    nobody.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    drop(nobody);
    assert_eq!(bystander.ask((Command::Read, NONE), (0, 512), b""), 0);
    drop(bystander);
    settled(&setup);
}

#[test]
fn large_and_slow_writes_arrive_whole() {
    let setup = setup(ServerOptions::default());
    for mode in [Mode::Simple, Mode::Extended] {
        let mut peer = Peer::new(&setup.server, "ram", mode);
        let data = pattern(9, 5 << 20);
        peer.send(1, Command::Write, (4096 + 512, data.len() as u64), &data);
        assert_eq!(peer.reply(|_| 0).error, 0);
        peer.send(2, Command::Read, (4096 + 512, data.len() as u64), b"");
        assert!(peer.reply(|_| data.len()).data == data);
        // Headers and payloads in pieces of odd sizes, several requests behind one another.
        let (mut all, mut expected) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let part = pattern(number, 512 * (number as usize % 7 + 1));
            let place = (number * 4096, part.len() as u64);
            all.extend(peer.request(number, (Command::Write, NONE), place));
            all.extend(&part);
            expected.push((place, part));
        }
        let mut step = 1;
        let mut rest = &all[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(step.min(rest.len()));
            peer.socket.write_all(now).unwrap();
            rest = later;
            step = step * 7 % 1023;
        }
        for _ in 0..20 {
            assert_eq!(peer.reply(|_| 0).error, 0);
        }
        for ((offset, _), part) in expected {
            let mut found = vec![0; part.len()];
            sync::read_at(&*setup.ram, offset, &mut found).unwrap();
            assert!(found == part, "{mode:?} at {offset}");
        }
    }
}

#[test]
fn answers_come_as_requests_end_and_belong_to_them() {
    let setup = setup(ServerOptions::default());
    for page in 0..64_u64 {
        let data = Data::copy_from(&setup.arena, &pattern(page, 4096)).unwrap();
        let write = Operation::Write { offset: page * 4096, data, fua: false };
        sync::execute(&*setup.ram, write).unwrap();
    }
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut peer = Peer::new(&setup.server, "late", mode);
        // More than one connection may have in hand.
        for number in 0..600_u64 {
            peer.send(number, Command::Read, (number % 64 * 4096, 4096), b"");
        }
        let mut order = Vec::new();
        for _ in 0..600 {
            let reply = peer.reply(|_| 4096);
            assert!(reply.data == pattern(reply.cookie % 64, 4096), "{mode:?}");
            order.push(reply.cookie);
        }
        assert!(!order.is_sorted(), "{mode:?}: a slow request held up the next ones");
        order.sort_unstable();
        assert!(order.into_iter().eq(0..600), "{mode:?}: each is answered once");
    }
}

#[test]
fn who_does_not_read_holds_up_nobody_else() {
    let setup = setup(ServerOptions::default());
    let mut deaf = Peer::new(&setup.server, "ram", Mode::Simple);
    deaf.socket.set_nonblocking(true).unwrap();
    let head = deaf.request(1, (Command::Read, NONE), (0, 1 << 20));
    let mut sent = 0;
    while deaf.socket.write(&head).is_ok() {
        sent += 1;
    }
    assert!(sent > 64, "{sent}");
    let mut other = Peer::new(&setup.server, "ram", Mode::Simple);
    assert_eq!(other.ask((Command::Write, NONE), (0, 512), &[1; 512]), 0);
    drop((deaf, other));
    settled(&setup);
}

#[test]
fn what_is_in_hand_is_finished_at_the_end_and_what_comes_later_refused() {
    let Setup { server, ram, arena } = setup(ServerOptions::default());
    let mut peer = Peer::new(&server, "late", Mode::Structured);
    for number in 0..50_u64 {
        peer.send(number, Command::Write, (number * 512, 512), &pattern(number, 512));
    }
    let mut answers: Vec<_> = vec![peer.reply(|_| 0)];
    let (say, hear) = mpsc::channel();
    let ending = std::thread::spawn(move || {
        server.shared.stopping.store(true, Ordering::SeqCst);
        say.send(()).unwrap();
        server.shutdown();
        assert_eq!(server.connections(), 0);
    });
    hear.recv().unwrap();
    peer.send(99, Command::Write, (0, 512), &[1; 512]);
    while answers.len() < 51 {
        answers.push(peer.reply(|_| 0));
    }
    for answer in &answers {
        let done = if answer.error == 0 { 0 } else { wire::error_value::SHUTDOWN };
        assert_eq!(answer.error, done);
        if answer.error == 0 {
            let (mut found, number) = ([0; 512], answer.cookie);
            sync::read_at(&*ram, number * 512, &mut found).unwrap();
            assert!(found[..] == pattern(number, 512), "{number}");
        }
    }
    assert_ne!(answers.iter().find(|answer| answer.cookie == 99).unwrap().error, 0);
    assert!(peer.is_cut());
    ending.join().unwrap();
    drop(arena);
}

#[test]
fn handshakes_and_connections_are_bounded() {
    let handshake = Duration::from_millis(100);
    let setup = setup(ServerOptions { connections: 2, handshake, ..ServerOptions::default() });
    let mut silent = Peer::raw(&setup.server);
    let mut slow = Peer::raw(&setup.server);
    slow.write_all(&[0, 0]).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let error = setup.server.serve(theirs).unwrap_err();
    assert!(error.to_string().contains("2 connections"), "{error}");
    for socket in [&mut silent, &mut slow] {
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 18, "a greeting, and the end");
    }
    settled(&setup);
    let mut peer = Peer::new(&setup.server, "ram", Mode::Simple);
    std::thread::sleep(2 * handshake);
    assert_eq!(peer.ask((Command::Read, NONE), (0, 512), b""), 0, "only the handshake is timed");
}

#[test]
fn sockets_in_the_filesystem_are_private_and_left_ones_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let setup = setup(ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    setup.server.listen_unix(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = setup.server.listen_unix(&path).unwrap_err().to_string();
    assert!(error.contains("somebody listens"), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(setup.server.listen_unix(&file).unwrap_err().to_string().contains("no socket"));
    let address = setup.server.listen_tcp(([127, 0, 0, 1], 0).into()).unwrap();
    let mut greeting = [0; 18];
    UnixStream::connect(&path).unwrap().read_exact(&mut greeting).unwrap();
    std::net::TcpStream::connect(address).unwrap().read_exact(&mut greeting).unwrap();
    setup.server.shutdown();
    assert!(!path.exists() && file.exists());
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn what_a_device_fails_with_is_one_of_the_eight() {
    use crate::layer::fault::{Fault, Rule, Rules};
    let arena = arena(200);
    let ram: Arc<dyn BlockDevice> = Arc::new(RamDevice::new("ram", 64 << 10, &arena).unwrap());
    let rules = Rules::new();
    let exports = ExportTable::new();
    exports.add(Export::new(Arc::new(Fault::new(ram, &rules)))).unwrap();
    let server = Server::new(exports, &arena, ServerOptions::default()).unwrap();
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut peer = Peer::new(&server, "ram", mode);
        for (errno, error) in [
            (Errno::IO, wire::error_value::IO),
            (Errno::NOSPC, wire::error_value::NOSPC),
            (Errno::STALE, wire::error_value::IO),
            (Errno::OPNOTSUPP, wire::error_value::INVAL),
        ] {
            rules.set([Rule { errno, ..Rule::all() }]);
            assert_eq!(peer.ask((Command::Read, NONE), (0, 4096), b""), error);
            assert_eq!(peer.ask((Command::Write, NONE), (0, 512), &[7; 512]), error);
            assert_eq!(peer.ask((Command::Flush, NONE), (0, 0), b""), error);
            rules.set([]);
            assert_eq!(peer.ask((Command::Read, NONE), (0, 4096), b""), 0);
        }
    }
}
