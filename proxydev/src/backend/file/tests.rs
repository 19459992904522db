use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::*;
use crate::backend::engine::EngineOptions;
use crate::conformance::{self, Subject};
use crate::sync;
use crate::testing::arena;

const SIZE: u64 = 8 << 20;

fn engine(arena: &Arc<Arena>, uring: bool) -> Arc<Engine> {
    let options = EngineOptions { uring, depth: 32, register: true };
    let engine = Engine::new(arena.region(), options).unwrap();
    assert_eq!(engine.abilities().0, uring, "{:?}", engine.warnings());
    engine
}

/// A directory on a disk, wherever the build is on one.
fn disk() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn temporary(directory: impl AsRef<Path>, size: u64) -> NamedTempFile {
    let file = NamedTempFile::new_in(directory).unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn subject(device: FileDevice, arena: &Arc<Arena>) -> Subject {
    let (arena, homes) = (Arc::clone(arena), vec![Arc::clone(arena)]);
    Subject { device: Arc::new(device), arena, homes, settle: Box::new(|| ()) }
}

#[test]
fn files_conform_direct_and_cached_with_ring_and_threads() {
    let arena = arena(4096);
    for (directory, size) in [(disk(), SIZE), (PathBuf::from("/dev/shm"), SIZE + 777)] {
        for (uring, direct) in [(true, true), (true, false), (false, true)] {
            let engine = engine(&arena, uring);
            let file = temporary(&directory, size);
            let options = FileOptions { direct, ..FileOptions::default() };
            let device = FileDevice::open(file.path(), options, &engine, &arena).unwrap();
            assert!(!device.is_direct() || direct);
            assert_eq!(device.info().size, size - size % u64::from(device.info().block_size));
            let (shown, direct) = (directory.display(), device.is_direct());
            println!("{shown}: {:?}, direct {direct}", device.info());
            conformance::run(&subject(device, &arena), 11);
            assert_eq!(file.as_file().metadata().unwrap().len(), size, "the file keeps its size");
        }
    }
    assert_eq!(arena.usage().free, 4096);
}

#[test]
fn a_block_device_conforms() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making a loop device needs root");
        return;
    }
    let arena = arena(4096);
    let file = temporary(disk(), SIZE);
    for sector in ["512", "4096"] {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", sector])
            .arg(file.path())
            .output()
            .expect("losetup (util-linux) is needed");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        let path = String::from_utf8(output.stdout).unwrap();
        let path = Detach(path.trim().to_owned());
        let engine = engine(&arena, true);
        let device =
            FileDevice::open(Path::new(&path.0), FileOptions::default(), &engine, &arena).unwrap();
        assert_eq!(device.info().size, SIZE);
        assert_eq!(device.info().block_size.to_string(), sector);
        println!("{}: {:?}, direct {}", path.0, device.info(), device.is_direct());
        conformance::run(&subject(device, &arena), 5);
    }
}

struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_file_to_be_read_refuses_changes() {
    let arena = arena(1024);
    let mut file = temporary("/tmp", 0);
    let bytes: Vec<u8> = (0..1 << 20).map(|i| (i % 249) as u8).collect();
    file.write_all(&bytes).unwrap();
    file.as_file().sync_all().unwrap();
    let options = || FileOptions { read_only: true, name: Some("hda".into()), direct: true };
    let engine = engine(&arena, true);
    let device = FileDevice::open(file.path(), options(), &engine, &arena).unwrap();
    assert_eq!(device.name(), "hda");
    conformance::run_read_only(&subject(device, &arena), &bytes);
    // A descriptor that cannot write is no writable device.
    let claimed = File::open(file.path()).unwrap();
    let writable = FileOptions::default();
    let result = FileDevice::from_file(claimed, file.path(), writable, &engine, &arena);
    assert_eq!(result.err().unwrap().errno(), Errno::BADF);
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let arena = arena(16);
    let engine = engine(&arena, true);
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("a fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let missing = directory.path().join("missing");
    for path in [directory.path(), &fifo, &missing, Path::new("/dev/null")] {
        for read_only in [true, false] {
            let options = FileOptions { read_only, ..FileOptions::default() };
            let error = FileDevice::open(path, options, &engine, &arena).err().unwrap();
            assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        }
    }
}

#[test]
fn a_file_that_shrinks_gives_errors_with_their_place() {
    let arena = arena(1024);
    for uring in [true, false] {
        let engine = engine(&arena, uring);
        let file = temporary(disk(), 1 << 20);
        let device =
            FileDevice::open(file.path(), FileOptions::default(), &engine, &arena).unwrap();
        file.as_file().set_len(64 << 10).unwrap();
        let error = sync::execute(&device, Operation::read(0, 128 << 10)).unwrap_err();
        assert!(
            matches!(error, Error::Io { errno: Errno::IO, offset: 65536, what: "read", .. }),
            "{error}"
        );
        assert_eq!(sync::execute(&device, Operation::read(0, 64 << 10)).unwrap().len(), 64 << 10);
    }
    assert_eq!(arena.usage().free, 1024);
}

#[test]
fn the_last_bytes_of_a_frame_that_were_not_read_are_zero() {
    let arena = arena(2);
    let file = temporary("/tmp", 0);
    file.as_file().write_all_at(&[7; 8192], 0).unwrap();
    for _ in 0..2 {
        let mut frame = arena.alloc().unwrap();
        frame.bytes().unwrap().fill().fill(0xff);
    }
    let engine = engine(&arena, true);
    let device = FileDevice::open(file.path(), FileOptions::default(), &engine, &arena).unwrap();
    let block = device.info().block_size;
    let data = sync::execute(&device, Operation::read(0, block)).unwrap();
    let guard = arena.region().pin(data.slices()[0].page).unwrap().unwrap();
    let mut expected = [0; 4096];
    expected[..block as usize].fill(7);
    assert_eq!(guard.bytes().to_vec(), expected);
}

#[test]
fn requests_end_once_when_device_and_engine_are_dropped() {
    let arena = arena(2048);
    for uring in [true, false] {
        let file = temporary(disk(), SIZE);
        let engine = engine(&arena, uring);
        let device =
            FileDevice::open(file.path(), FileOptions::default(), &engine, &arena).unwrap();
        let (send, receive) = mpsc::channel();
        for index in 0..200u64 {
            let send = send.clone();
            let operation = if index % 2 == 0 {
                Operation::read(index * 4096, 16384)
            } else {
                let data = Data::copy_from(&arena, &[index as u8; 4096]).unwrap();
                Operation::Write { offset: index * 4096, data, fua: false }
            };
            device.submit(Request::new(operation, move |result| {
                send.send(result.map(drop)).unwrap();
            }));
        }
        drop((device, engine, send));
        let ended: Vec<_> = receive.iter().collect();
        assert_eq!(ended.len(), 200);
        assert!(ended.iter().all(Result::is_ok));
    }
    assert_eq!(arena.usage().free, 2048);
}

#[test]
fn the_last_engine_may_be_dropped_by_a_completion() {
    let arena = arena(64);
    let file = temporary("/tmp", SIZE);
    let engine = engine(&arena, true);
    let device = FileDevice::open(file.path(), FileOptions::default(), &engine, &arena).unwrap();
    let device = Arc::new(device);
    let (mine, (send, receive)) = (Arc::clone(&device), mpsc::channel());
    drop(engine);
    device.submit(Request::new(Operation::Flush, move |result| {
        std::thread::sleep(Duration::from_millis(50));
        drop(mine);
        send.send(result.is_ok()).unwrap();
    }));
    drop(device);
    assert!(receive.recv_timeout(Duration::from_secs(10)).unwrap());
}

#[test]
fn what_a_thread_submitted_survives_its_end() {
    let arena = arena(256);
    let file = temporary(disk(), SIZE);
    let engine = engine(&arena, true);
    // Through the page cache, where the kernel hands work to helpers of the submitting thread.
    let options = FileOptions { direct: false, ..FileOptions::default() };
    let device = FileDevice::open(file.path(), options, &engine, &arena).unwrap();
    let device: Arc<dyn BlockDevice> = Arc::new(device);
    let (send, receive) = mpsc::channel();
    for round in 0..40u64 {
        let (device, send) = (Arc::clone(&device), send.clone());
        let data = Data::copy_from(&arena, &[round as u8; 16384]).unwrap();
        let submit = move || {
            let write = Operation::Write { offset: round * 16384, data, fua: true };
            for operation in [write, Operation::Flush] {
                let send = send.clone();
                device.submit(Request::new(operation, move |result| {
                    send.send(result.map(drop)).unwrap();
                }));
            }
        };
        std::thread::spawn(submit).join().unwrap();
    }
    drop(send);
    let ended: Vec<_> = receive.iter().collect();
    assert_eq!(ended.len(), 80);
    ended.into_iter().for_each(|result| result.unwrap());
}

#[test]
fn io_goes_through_the_descriptor_that_is_locked() {
    let arena = arena(64);
    let file = temporary("/tmp", SIZE);
    let engine = engine(&arena, true);
    let claimed = File::options().read(true).write(true).open(file.path()).unwrap();
    rustix::fs::flock(&claimed, FlockOperation::NonBlockingLockExclusive).unwrap();
    let options = FileOptions::default();
    let device = FileDevice::from_file(claimed, file.path(), options, &engine, &arena).unwrap();
    sync::write_at(&device, &arena, 0, b"locked").unwrap();
    sync::flush(&device).unwrap();
    let other = File::open(file.path()).unwrap();
    let lock = || rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(lock(), Err(Errno::AGAIN));
    let flags = rustix::io::fcntl_getfd(device.file()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    drop((device, engine));
    lock().unwrap();
    let mut found = [0; 6];
    other.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"locked");
}

#[test]
fn a_full_arena_is_an_error_and_no_more() {
    let arena = arena(8);
    let file = temporary("/tmp", SIZE);
    let engine = engine(&arena, true);
    let device = FileDevice::open(file.path(), FileOptions::default(), &engine, &arena).unwrap();
    let held = sync::execute(&device, Operation::read(0, 8 * 4096)).unwrap();
    let error = sync::execute(&device, Operation::read(0, 4096)).unwrap_err();
    assert_eq!(error.errno(), Errno::NOMEM, "{error}");
    drop(held);
    sync::execute(&device, Operation::read(0, 4096)).unwrap();
}
