use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use oslet::arena::Arena;
use oslet::id::Epoch;
use oslet::rpc::{Channel, PendingChannel, Server};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::backend::engine::{Engine, EngineOptions};
use crate::backend::file::{FileDevice, FileOptions};
use crate::backend::ram::RamDevice;
use crate::conformance::{self, Subject};
use crate::testing::{arenas, runtime};
use crate::{BlockDevice, Data, DeviceInfo, Error, Operation, Request, limits, sync};

const HDA: DeviceId = DeviceId(7);

/// OSlet 1 owns, OSlet 0 uses.
struct Cluster {
    user: Arc<Arena>,
    owner: Arc<Arena>,
    exports: Arc<Exports>,
    server: Arc<Server>,
}

impl Cluster {
    fn new(frames: usize) -> Self {
        let mut arenas = arenas(2, frames);
        let owner = arenas.remove(1);
        let exports = Exports::new(owner.region());
        let server = Server::new(owner.region(), Arc::clone(&exports) as _);
        Self { user: arenas.remove(0), owner, exports, server }
    }

    fn channel(&self) -> Arc<Channel> {
        let pending = PendingChannel::new(self.user.region(), runtime(1), Epoch(1)).unwrap();
        let answer = self.server.accept(runtime(0), Epoch(1), pending.offer()).unwrap();
        pending.open(answer).unwrap()
    }

    fn open(&self, device: Arc<dyn BlockDevice>, limit: Duration) -> ProxyDevice {
        self.exports.add(HDA, device);
        let options = ProxyOptions { limit };
        ProxyDevice::open("hda", HDA, &self.channel(), self.user.region(), options).unwrap()
    }

    fn ram(&self) -> Arc<dyn BlockDevice> {
        Arc::new(RamDevice::new("ram", 4 << 20, &self.owner).unwrap())
    }

    fn loaned(&self) -> usize {
        self.exports.loaned_pages(runtime(0), Epoch(1))
    }
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_proxied_ram_disk_conforms() {
    let cluster = Cluster::new(4096);
    let device: Arc<dyn BlockDevice> = Arc::new(cluster.open(cluster.ram(), LIMIT));
    let homes = vec![Arc::clone(&cluster.user), Arc::clone(&cluster.owner)];
    let exports = Arc::clone(&cluster.exports);
    let settle = Box::new(move || exports.tick());
    let subject = Subject { device, arena: Arc::clone(&cluster.user), homes, settle };
    conformance::run(&subject, 3);
    drop(subject);
    let start = Instant::now();
    while cluster.loaned() > 0 {
        assert!(start.elapsed() < LIMIT, "loans are reported or end");
        cluster.exports.tick();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_proxied_file_conforms() {
    let cluster = Cluster::new(4096);
    for uring in [true, false] {
        let options = EngineOptions { uring, depth: 16, register: true };
        let engine = Engine::new(cluster.owner.region(), options).unwrap();
        let directory = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
        file.as_file().set_len(6 << 20).unwrap();
        let options = FileOptions::default();
        let device = FileDevice::open(file.path(), options, &engine, &cluster.owner).unwrap();
        let device: Arc<dyn BlockDevice> = Arc::new(cluster.open(Arc::new(device), LIMIT));
        let homes = vec![Arc::clone(&cluster.user), Arc::clone(&cluster.owner)];
        let exports = Arc::clone(&cluster.exports);
        let settle = Box::new(move || exports.tick());
        let subject = Subject { device, arena: Arc::clone(&cluster.user), homes, settle };
        conformance::run(&subject, 9);
    }
}

#[test]
fn data_move_by_reference() {
    let cluster = Cluster::new(2048);
    let device = cluster.open(cluster.ram(), LIMIT);
    let data = sync::execute(&device, Operation::read(0, 8192)).unwrap();
    assert!(data.slices().iter().all(|slice| slice.page.home == runtime(1)));
    assert_eq!(cluster.user.usage().free, 2048, "the user's own frames are not needed");
    // The owner lets go of what has been pinned; the user's hold keeps it.
    drop(sync::execute(&device, Operation::read(0, 4096)).unwrap());
    assert!(cluster.loaned() <= 1, "the first loan was ended by the second request at the latest");
    sync::write_at(&device, &cluster.user, 0, &[9; 8192]).unwrap();
    assert_eq!(data.to_vec().unwrap(), vec![0; 8192]);
    assert!(data.into_pages().is_err(), "frames of others are not taken over");
}

/// Keeps requests until it is told to carry them out.
struct Slow {
    below: Arc<dyn BlockDevice>,
    kept: Mutex<VecDeque<Request>>,
}

impl BlockDevice for Slow {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn info(&self) -> DeviceInfo {
        self.below.info()
    }

    fn submit(&self, request: Request) {
        self.kept.lock().push_back(request);
    }
}

impl Slow {
    fn new(below: Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self { below, kept: Mutex::default() })
    }

    fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.kept.lock().len() < count {
            assert!(start.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn carry_out(&self) {
        for request in std::mem::take(&mut *self.kept.lock()) {
            self.below.submit(request);
        }
    }
}

fn start_reads(device: &dyn BlockDevice, count: usize) -> mpsc::Receiver<Result<(), Error>> {
    let (send, ended) = mpsc::channel();
    for index in 0..count as u64 {
        let send = send.clone();
        let read = Operation::read(index % 512 * 4096, 4096);
        device.submit(Request::new(read, move |result| drop(send.send(result.map(drop)))));
    }
    ended
}

#[test]
fn requests_to_an_owner_that_dies_end_at_once() {
    let cluster = Cluster::new(2048);
    let slow = Slow::new(cluster.ram());
    let device = cluster.open(Arc::clone(&slow) as _, LIMIT);
    // More than the channel has room for: some wait on this side.
    let ended = start_reads(&device, 300);
    slow.wait_for(oslet::limits::RING_CAPACITY);
    let start = Instant::now();
    device.channel().close();
    for _ in 0..300 {
        let error = ended.recv_timeout(LIMIT).unwrap().unwrap_err();
        assert!(matches!(&error, Error::Gone(name) if name == "hda"), "{error}");
        assert!(error.is_retryable() && error.errno() == Errno::SHUTDOWN);
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    let error = sync::execute(&device, Operation::Flush).unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{error}");
    // What comes of it at the owner is nobody's any more, and comes home.
    cluster.server.drop_peer(runtime(0), Epoch(1));
    slow.carry_out();
    cluster.exports.drop_peer(runtime(0), Epoch(1));
    assert_eq!(cluster.loaned(), 0);
}

#[test]
fn requests_to_an_owner_that_does_not_answer_end_in_time() {
    let cluster = Cluster::new(4096);
    let slow = Slow::new(cluster.ram());
    let device = cluster.open(Arc::clone(&slow) as _, Duration::from_millis(150));
    let start = Instant::now();
    let ended = start_reads(&device, 140);
    for _ in 0..140 {
        let error = ended.recv_timeout(LIMIT).unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout { ms: 150, .. }), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    let data = Data::copy_from(&cluster.user, &[1; 4096]).unwrap();
    let write = Operation::Write { offset: 0, data, fua: false };
    assert_eq!(sync::execute(&device, write).unwrap_err().errno(), Errno::TIMEDOUT);
    assert_eq!(cluster.user.usage().free, 4095, "the owner has the frame pinned");
    // Late answers harm nobody, and their loans end by age.
    slow.carry_out();
    cluster.user.tick();
    assert_eq!(cluster.user.usage().free, 4096);
    assert!(cluster.loaned() > 0);
    std::thread::sleep(Duration::from_millis(limits::LOAN_MS + 50));
    cluster.exports.tick();
    assert_eq!(cluster.loaned(), 0);
    drop(device);
    let device = cluster.open(cluster.ram(), LIMIT);
    sync::execute(&device, Operation::read(0, 4096)).unwrap();
}

#[test]
fn errors_of_the_device_come_through() {
    struct Broken(Arc<dyn BlockDevice>, AtomicUsize);
    impl BlockDevice for Broken {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn info(&self) -> DeviceInfo {
            self.0.info()
        }
        fn submit(&self, request: Request) {
            let (offset, _) = request.operation.extent();
            let errors = [Errno::IO, Errno::NOSPC, Errno::AGAIN, Errno::SHUTDOWN];
            let errno = errors[self.1.fetch_add(1, Ordering::Relaxed) % errors.len()];
            let (device, what) = ("below".to_owned(), request.operation.what());
            request.completion.complete(Err(Error::Io { device, what, offset, errno }));
        }
    }
    let cluster = Cluster::new(2048);
    let device = cluster.open(Arc::new(Broken(cluster.ram(), AtomicUsize::new(0))), LIMIT);
    let ask = || sync::execute(&device, Operation::read(8192, 512)).unwrap_err();
    assert_eq!(ask().to_string(), format!("hda: read at 8192: {}", Errno::IO));
    assert_eq!(ask().errno(), Errno::NOSPC);
    assert!(matches!(ask(), Error::Busy(_)));
    assert!(matches!(ask(), Error::Gone(_)));
}

#[test]
fn a_device_that_is_served_no_more_is_gone() {
    let cluster = Cluster::new(2048);
    let device = cluster.open(cluster.ram(), LIMIT);
    let channel = Arc::clone(device.channel());
    cluster.exports.remove(HDA);
    let error = sync::execute(&device, Operation::Flush).unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{error}");
    let region = cluster.user.region();
    let opened = ProxyDevice::open("hda", HDA, &channel, region, ProxyOptions::default());
    assert!(matches!(opened.err().unwrap(), Error::Gone(_)));
}

#[test]
fn many_threads_use_one_proxy() {
    let cluster = Cluster::new(4096);
    let device = cluster.open(cluster.ram(), LIMIT);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (device, arena) = (&device, &cluster.user);
            scope.spawn(move || {
                for round in 0..200u64 {
                    let offset = (thread * 64 + round % 64) * 4096 + 512;
                    let bytes = [(thread * 50 + round) as u8; 3000];
                    sync::write_at(device, arena, offset, &bytes).unwrap();
                    let mut found = [0; 3000];
                    sync::read_at(device, offset, &mut found).unwrap();
                    assert_eq!(found, bytes);
                }
            });
        }
    });
}

#[test]
fn nothing_that_a_peer_sends_does_harm() {
    let cluster = Cluster::new(2048);
    let device = cluster.open(cluster.ram(), LIMIT);
    let channel = cluster.channel();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        seed
    };
    for round in 0..3000 {
        let kind = KINDS.start + (random() % 10) as u16;
        // Near to what is valid, and anything at all.
        let mut args = [random() >> (random() % 64), random() >> (random() % 64), random()];
        if round % 2 == 0 {
            args[1] = wire::pair(HDA, (random() % 9000) as u32);
            args[2] >>= random() % 64;
        }
        let body: Vec<u8> = (0..random() % 100).map(|_| random() as u8).collect();
        let reply = channel.call(kind, args, &body, LIMIT).unwrap();
        assert_ne!(wire::errno(reply.status), Some(Errno::NOMEM), "kind {kind:#x} {args:x?}");
    }
    let info = sync::execute(&device, Operation::read(0, 4096)).unwrap();
    assert_eq!(info.len(), 4096);
    cluster.exports.drop_peer(runtime(0), Epoch(1));
}
