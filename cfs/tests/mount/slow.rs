//! A volume whose device does not answer: what is cached is served meanwhile, and callers can be
//! killed.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cfs::engine::{Options, Volume};
use cfs::local::LocalVolume;
use cfs::mount::mountpoint::{MountOptions, Mounted, open_and_mount};
use cfs::mount::{Choice, Config, Session, Sharing, VolumeFs};
use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::CpuSet;

use crate::fixture::{Process, SOON, Via, over_each};
use crate::gate::Gate;

const FILES: usize = 100;
const LEN: usize = 64 << 10;

struct Fixture {
    gate: Arc<Gate>,
    session: Option<Session>,
    mounted: Mounted,
    root: tempfile::TempDir,
    _volume: LocalVolume,
}

fn content(file: usize) -> Vec<u8> {
    (0..LEN).map(|at| (at / 7 + file * 31) as u8).collect()
}

impl Fixture {
    fn new(via: Via) -> Self {
        let root = tempfile::tempdir().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for file in 0..FILES {
            std::fs::write(tree.join(file.to_string()), content(file)).unwrap();
        }
        let image = scratch.path().join("image");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let mut mke2fs = Command::new("mke2fs");
        let made = mke2fs.args(["-q", "-t", "ext4", "-d"]).args([&tree, &image]).status();
        assert!(made.unwrap().success(), "mke2fs fails");
        let gate = Arc::new(Gate::new(std::fs::read(&image).unwrap()));
        let volume = Volume::open(gate.clone(), &Options::default()).unwrap();
        let volume = LocalVolume::serve(volume, 16 << 20).unwrap();
        let switch = via.switch();
        let (device, mounted) = open_and_mount(root.path(), &MountOptions::new("slow")).unwrap();
        let choice = if via == Via::Device { Choice::Device } else { Choice::Auto };
        let fs = VolumeFs::new(volume.client().clone(), Sharing::ReadOnly);
        let config = Config { choice, ..Config::default() };
        let session = Some(Session::start(device, fs, config).unwrap());
        drop(switch);
        Self { gate, session, mounted, root, _volume: volume }
    }

    /// Opens a file past the page cache.
    fn file(&self, file: usize) -> File {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let path = self.root.path().join(file.to_string());
        File::options().read(true).custom_flags(direct).open(path).unwrap()
    }

    fn end(mut self) {
        self.mounted.unmount(self.root.path()).unwrap();
        let session = self.session.take().unwrap();
        // A mount namespace that others made meanwhile has a copy of the mount.
        assert!(session.wait(3 * SOON), "the session did not end with the mount");
        session.stop(SOON).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Of a test that failed.
        self.gate.open();
        let _ = self.mounted.unmount(self.root.path());
    }
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Attributes as the server gives them, whatever the kernel has cached.
fn asked_size(path: &Path) -> u64 {
    let flags = AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS).unwrap().stx_size
}

#[test]
fn what_is_cached_is_served_while_a_hundred_wait() {
    over_each(|via| {
        let fixture = Fixture::new(via);
        let files: Vec<File> = (0..FILES).map(|file| fixture.file(file)).collect();
        assert_eq!(read(&files[0]), content(0));
        fixture.gate.close();
        std::thread::scope(|scope| {
            // A queue of io_uring takes so many; of /dev/fuse, more wait than there are threads.
            let (count, waiting) = if via == Via::Device { (FILES - 1, 60) } else { (12, 12) };
            let readers: Vec<_> =
                files[1..=count].iter().map(|file| scope.spawn(move || read(file))).collect();
            fixture.gate.wait_for(waiting);
            let (done, answered) = mpsc::channel();
            let (path, file) = (fixture.root.path().join("0"), &files[0]);
            scope.spawn(move || {
                let all = rustix::thread::sched_getaffinity(None).unwrap();
                for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
                    let mut one = CpuSet::new();
                    one.set(cpu);
                    rustix::thread::sched_setaffinity(None, &one).unwrap();
                    for _ in 0..20 {
                        assert_eq!(read(file), content(0));
                        assert_eq!(asked_size(&path), LEN as u64);
                    }
                }
                done.send(()).unwrap();
            });
            let answered = answered.recv_timeout(SOON);
            fixture.gate.open();
            answered.expect("cached reads wait for the device");
            for (number, reader) in (1..).zip(readers) {
                assert_eq!(reader.join().unwrap(), content(number));
            }
        });
        drop(files);
        fixture.end();
    });
}

#[test]
fn readers_of_a_device_that_does_not_answer_can_be_killed() {
    over_each(|via| {
        let fixture = Fixture::new(via);
        for file in 0..8 {
            asked_size(&fixture.root.path().join(file.to_string()));
        }
        fixture.gate.close();
        let dd = |file: usize| {
            let mut from = std::ffi::OsString::from("if=");
            from.push(fixture.root.path().join(file.to_string()));
            let mut command = Command::new("dd");
            command.args(["of=/dev/null", "iflag=direct", "bs=4096", "count=1"]).arg(from);
            Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))
        };
        let mut readers: Vec<_> = (0..8).map(dd).collect();
        fixture.gate.wait_for(8);
        for (reader, signal) in readers.iter_mut().zip([Signal::KILL, Signal::TERM].repeat(3)) {
            kill_process(Pid::from_child(&reader.0), signal).unwrap();
            let status = reader.ended(SOON).expect("a killed reader hangs");
            assert_eq!(status.signal(), Some(signal.as_raw()));
        }
        // A signal that ends nobody is none of the filesystem's business.
        for reader in &mut readers[6..] {
            kill_process(Pid::from_child(&reader.0), Signal::STOP).unwrap();
            kill_process(Pid::from_child(&reader.0), Signal::CONT).unwrap();
            assert!(reader.ended(Duration::from_millis(200)).is_none(), "it was let go");
        }
        fixture.gate.open();
        for reader in &mut readers[6..] {
            assert!(reader.ended(SOON).expect("a reader hangs").success());
        }
        fixture.end();
    });
}
