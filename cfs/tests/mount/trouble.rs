//! Ends that were not planned: killed callers and servers, aborted connections, busy mounts.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfs::mount::mountpoint::{self, MountOptions, Mounted, Unmounted};
use cfs::mount::{Choice, Config, Session, Transport};
use oslet::sys::fusectl;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{
    Fixture, Process, SOON, Switch, Via, one_at_a_time, over_each, plays, role, start, transports,
};
use crate::memfs::{Content, MemFs};

const SHORT: Duration = Duration::from_millis(300);

/// Reads a block past the page cache: the caller waits for the answer whatever happens to it, where
/// one who waits for a page can be killed.
fn dd(path: std::path::PathBuf) -> Process {
    let mut from = std::ffi::OsString::from("if=");
    from.push(path);
    let mut command = Command::new("dd");
    command.args(["of=/dev/null", "iflag=direct", "bs=4096", "count=1"]).arg(from);
    Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[test]
fn a_caller_that_is_killed_is_let_go() {
    over_each(|via| {
        let mut fs = MemFs::new(Duration::ZERO);
        fs.add(1, b"neverlink", 0o120_777, Content::Never);
        let fixture = Fixture::with(via, fs, |_| {});
        for signal in [Signal::TERM, Signal::KILL] {
            let mut reader = Process::spawn(
                Command::new("readlink").arg(fixture.path("neverlink")).stdout(Stdio::null()),
            );
            fixture.fs.wait_for_held(1);
            kill_process(Pid::from_child(&reader.0), signal).unwrap();
            let status = reader.ended(SOON).expect("the reader hangs");
            assert_eq!(status.signal(), Some(signal.as_raw()));
        }
        fixture.end();
    });
}

/// execve(2) closes files of this mount, and waits for the answer to each FLUSH while it holds
/// locks of the process: whoever serves that must not wait for these.
#[test]
fn programs_are_executed_with_files_open() {
    over_each(|via| {
        for looks in [false, true] {
            let mut fs = MemFs::new(Duration::ZERO);
            fs.wants_flush = true;
            let fixture = Fixture::with(via, fs, |_| {});
            if looks {
                fixture.session().set_proc("/proc".into());
            }
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| execute(&fixture.path("cat"), &fixture.path("small")));
                }
            });
            let flushes = fixture.fs.flushes.load(Ordering::Relaxed);
            assert!(flushes >= 2 * 4 * 40 * 8, "{flushes} FLUSHes: none where execve closes files");
            fixture.end();
        }
    });
}

fn execute(program: &Path, path: &Path) {
    for _ in 0..40 {
        let open: Vec<_> = (0..8).map(|_| File::open(path).unwrap()).collect();
        let mut command = Command::new(program);
        let mut cat = Process::spawn(command.arg(path).stdout(Stdio::null()));
        drop(open);
        let status = cat.ended(SOON).expect("it hangs");
        assert!(status.success(), "{status}");
    }
}

#[test]
fn no_answer_is_an_error_and_the_service_goes_on() {
    over_each(|via| {
        let fixture = Fixture::new(via, Duration::ZERO);
        for name in ["panics", "panics"] {
            let error = std::fs::read(fixture.path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        }
        let mut reader = dd(fixture.path("never"));
        fixture.fs.wait_for_held(1);
        fixture.fs.drop_held();
        let status = reader.ended(SOON).expect("the reader hangs");
        assert!(!status.success());
        assert_eq!(std::fs::read(fixture.path("small")).unwrap(), b"hello\n");
        fixture.end();
    });
}

#[test]
fn a_busy_mount_is_detached_and_its_users_go_on() {
    over_each(|via| {
        let mut fixture = Fixture::new(via, Duration::ZERO);
        let session = fixture.session.take().unwrap();
        let stop = AtomicBool::new(false);
        let reads = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // Opened before the mount is detached, however late the thread begins.
                let large = File::open(fixture.path("large")).unwrap();
                let dir = File::open(fixture.root()).unwrap();
                let (stop, reads) = (&stop, &reads);
                scope.spawn(move || {
                    let flags = rustix::fs::OFlags::RDONLY;
                    while !stop.load(Ordering::Relaxed) {
                        let len = large.metadata().unwrap().len();
                        assert_eq!(len, (8 << 20) + 123);
                        let mode = rustix::fs::Mode::empty();
                        rustix::fs::openat(&dir, "small", flags, mode).unwrap();
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let wait_for_more = || {
                let (before, until) = (reads.load(Ordering::Relaxed), Instant::now() + SOON);
                while reads.load(Ordering::Relaxed) < before + 100 && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(1));
                }
                reads.load(Ordering::Relaxed) >= before + 100
            };
            let before = wait_for_more();
            let unmounted = fixture.mounted.unmount(fixture.root());
            let after = wait_for_more();
            let gone = !fixture.path("small").exists();
            let ended = session.wait(Duration::ZERO);
            stop.store(true, Ordering::Relaxed);
            assert_eq!(unmounted.unwrap(), Unmounted::Detached);
            assert!(before && after && gone && !ended);
        });
        assert!(session.wait(SOON), "the last user is gone and the session is not");
        session.stop(SOON).unwrap();
        assert_eq!(fixture.mounted.unmount(fixture.root()).unwrap(), Unmounted::NotMounted);
    });
}

#[test]
fn stopping_without_unmounting_ends_every_request() {
    over_each(|via| {
        let mut fixture = Fixture::new(via, Duration::ZERO);
        let mut reader = dd(fixture.path("never"));
        fixture.fs.wait_for_held(1);
        let session = fixture.session.take().unwrap();
        let ended = |session: &Session| {
            let mut polled = [PollFd::from_borrowed_fd(session.ended(), PollFlags::IN)];
            poll(&mut polled, Some(&rustix::time::Timespec::default())).unwrap() == 1
        };
        assert!(!ended(&session));
        session.stop(SOON).unwrap();
        // The held replies are the last to hold the connection.
        fixture.fs.drop_held();
        let status = reader.ended(SOON).expect("the reader hangs");
        assert!(!status.success());
        let error = std::fs::metadata(fixture.path("small")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    });
}

/// Serves until killed: the descriptor is standard input.
#[test]
fn role_server() {
    let Some(via) = plays("server") else { return };
    let device: OwnedFd = rustix::io::dup(std::io::stdin()).unwrap();
    let null = File::open("/dev/null").unwrap();
    rustix::stdio::dup2_stdin(&null).unwrap();
    let switch = via.switch();
    let session = start(via, device, Arc::new(MemFs::new(Duration::ZERO)), Config::default());
    drop(switch);
    session.wait(Duration::from_secs(120));
}

/// Aborts one connection through a fusectl of its own mount namespace.
#[test]
fn role_abort() {
    if plays("abort").is_none() {
        return;
    }
    let number = std::env::var("CFS_TEST_CONNECTION").unwrap().parse().unwrap();
    fusectl::abort(number).unwrap();
    // It is gone already, which is what was wanted.
    fusectl::abort(4_000_000).unwrap();
}

#[test]
fn a_killed_server_frees_its_callers_at_the_abort() {
    let _one = one_at_a_time();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root aborts connections");
        return;
    }
    for via in transports() {
        let root = tempfile::tempdir().unwrap();
        let device = fusectl::open_device().unwrap();
        {
            let _switch = via.switch();
            mountpoint::mount(&device, root.path(), &MountOptions::new("memfs")).unwrap();
        }
        let unmount = Unmount(root.path());
        let mut server = Process::spawn(role("server", via).stdin(device.try_clone().unwrap()));
        let read = |name: &str| dd(root.path().join(name));
        assert!(read("small").ended(SOON).is_some_and(|status| status.success()));
        let connection =
            fusectl::connection_at("/proc/self/mountinfo".as_ref(), root.path()).unwrap().unwrap();
        if let Some(told) = fusectl::connection_of(&device) {
            assert_eq!(told, connection);
        }
        let mut readers: Vec<_> = (0..4).map(|_| read("never")).collect();
        std::thread::sleep(SHORT);
        server.0.kill().unwrap();
        server.ended(SOON).expect("the server hangs");
        // This process still holds the connection. Requests read through a clone, which is closed
        // by now, have failed: their callers can be killed. Those in a ring's buffers have not.
        readers[0].0.kill().unwrap();
        if via == Via::Uring {
            assert!(readers[0].ended(SHORT).is_none(), "nothing was in hand");
        } else {
            readers[0].ended(SOON).expect("a caller of a closed clone cannot be killed");
        }
        abort(connection);
        for reader in &mut readers {
            reader.ended(SOON).expect("a reader hangs after the abort");
        }
        drop((unmount, device));
    }
}

struct Unmount<'a>(&'a std::path::Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Mounted::DIRECT.unmount(self.0);
    }
}

/// fusectl is mounted where nobody else sees it.
fn abort(connection: u32) {
    let mut abort = role("abort", Via::Device);
    let script = "mount -t fusectl fusectl /sys/fs/fuse/connections && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-ec", script, "sh"]);
    command.arg(abort.get_program()).args(abort.get_args());
    for (key, value) in abort.get_envs() {
        command.env(key, value.unwrap());
    }
    command.env("CFS_TEST_CONNECTION", connection.to_string()).stdout(Stdio::null());
    assert!(command.status().unwrap().success());
    abort.env_clear();
}

#[test]
fn an_abort_is_the_end() {
    let _one = one_at_a_time();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root aborts connections");
        return;
    }
    for via in transports() {
        let mut fixture = Fixture::new(via, Duration::ZERO);
        let connection =
            fusectl::connection_at("/proc/self/mountinfo".as_ref(), fixture.root()).unwrap();
        abort(connection.unwrap());
        let session = fixture.session.take().unwrap();
        assert!(session.wait(SOON));
        session.stop(SOON).unwrap();
    }
}

#[test]
fn a_hundred_mounts_leave_nothing() {
    over_each(|via| {
        let cycle = || {
            let fixture = Fixture::new(via, Duration::ZERO);
            assert_eq!(std::fs::read(fixture.path("small")).unwrap(), b"hello\n");
            fixture.end();
        };
        cycle();
        let before = leavings();
        for _ in 0..100 {
            cycle();
        }
        // Rings and threads end a moment later.
        let until = Instant::now() + SOON;
        while leavings() != before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(leavings(), before);
    });
}

/// Descriptors, threads that serve, mounts, and mappings of a queue's size.
fn leavings() -> (usize, usize, usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let threads = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            std::fs::read_to_string(comm).is_ok_and(|name| name.starts_with("fuse-"))
        })
        .count();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let large = maps
        .lines()
        .filter_map(|line| line.split(' ').next()?.split_once('-'))
        .filter(|(start, end)| {
            let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
            number(end) - number(start) >= 4 << 20
        })
        .count();
    (count("/proc/self/fd"), threads, mounts.matches("memfs").count(), large)
}

/// The kernel offers io_uring and takes it back before it is answered.
#[test]
fn what_is_switched_off_meanwhile_is_done_without() {
    let _one = one_at_a_time();
    if !transports().contains(&Via::Uring) {
        return;
    }
    let switch = Switch::on();
    let root = tempfile::tempdir().unwrap();
    let fs = Arc::new(MemFs::new(Duration::ZERO));
    *fs.at_init.lock() = Some(Box::new(Switch::off_meanwhile));
    let (device, mounted) =
        mountpoint::open_and_mount(root.path(), &MountOptions::new("memfs")).unwrap();
    let session = Session::start(device, fs.clone(), Config::default()).unwrap();
    drop(switch);
    let Transport::Device(why) = session.transport() else { panic!("the kernel has agreed") };
    assert!(why.contains("switched off"), "{why}");
    for _ in 0..100 {
        assert_eq!(std::fs::read(root.path().join("small")).unwrap(), b"hello\n");
    }
    mounted.unmount(root.path()).unwrap();
    assert!(session.wait(SOON), "the session did not end with the mount");
    session.stop(SOON).unwrap();
    assert_eq!(fs.destroyed.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_not_mounted_is_refused() {
    let _one = one_at_a_time();
    let Ok(device) = fusectl::open_device() else { return eprintln!("skipped: no /dev/fuse") };
    let config = Config { choice: Choice::Device, ..Config::default() };
    let error = Session::start(device, Arc::new(MemFs::new(SHORT)), config).err().unwrap();
    assert_eq!(error.to_string(), "/dev/fuse: mount it before it is served");
    let missing = std::path::Path::new("/no/such/directory");
    let error = mountpoint::open_and_mount(missing, &MountOptions::new("x")).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/directory: "), "{error}");
}

/// Mounts as whoever runs it.
#[test]
fn role_user() {
    let Some(via) = plays("user") else { return };
    let fixture = Fixture::new(via, Duration::ZERO);
    assert_ne!(fixture.mounted, Mounted::DIRECT);
    assert_eq!(std::fs::read(fixture.path("small")).unwrap(), b"hello\n");
    assert!(mountpoint::is_mounted(fixture.root()).unwrap());
    let root = fixture.root().to_owned();
    fixture.end();
    assert!(!mountpoint::is_mounted(&root).unwrap());
}

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    let _one = one_at_a_time();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: the other tests do it");
        return;
    }
    let there = Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no fusermount3 (package fuse3)");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let program = base.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [base.path(), &program] {
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    }
    // The helper wants a user with a name: nobody. A /dev/fuse that everyone may open, where nobody
    // else sees it.
    let script = "mknod -m 666 \"$TMPDIR/fuse\" c 10 229
        mount --bind \"$TMPDIR/fuse\" /dev/fuse
        exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let user = role("user", Via::Device);
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-ec", script, "sh"])
        .arg(&program)
        .args(user.get_args())
        .env("CFS_TEST_ROLE", "user")
        .env("CFS_TEST_VIA", "Device")
        .env("TMPDIR", base.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
}
