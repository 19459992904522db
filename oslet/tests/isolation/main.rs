//! OSlets' insides for real: namespaces, private roots, control groups, and that nothing is left.
//!
//! Run as root. The program runs again as init, as a runtime that is killed, as an ordinary user
//! and in made-up hosts; which is why it has its own main.

#![forbid(unsafe_code)]

mod world;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use oslet::cgroup::{self, Hierarchies};
use oslet::container::{self, Global, Tmp};
use oslet::procfs;
use oslet::state::State;
use world::{LIMIT, Leaks, World, file_lines};

const TESTS: &[(&str, fn())] = &[
    ("namespaces_are_private", namespaces_are_private),
    ("cpus_and_memory_are_bound", cpus_and_memory_are_bound),
    ("the_root_is_private_and_complete", the_root_is_private_and_complete),
    ("shared_mounts_stay_the_hosts", shared_mounts_stay_the_hosts),
    ("dev_is_private", dev_is_private),
    ("temporary_directories_are_as_chosen", temporary_directories_are_as_chosen),
    ("a_filesystem_in_user_space_is_passed_out", a_filesystem_in_user_space_is_passed_out),
    ("names_of_the_host_may_be_anything", names_of_the_host_may_be_anything),
    ("orphans_are_reaped", orphans_are_reaped),
    ("processes_are_listed", processes_are_listed),
    ("what_fails_is_said_and_nothing_is_left", what_fails_is_said_and_nothing_is_left),
    ("the_runtimes_death_is_the_end", the_runtimes_death_is_the_end),
    ("rounds_leave_nothing", rounds_leave_nothing),
    ("an_oslet_may_hold_another", an_oslet_may_hold_another),
    ("an_ordinary_user_has_a_user_namespace", an_ordinary_user_has_a_user_namespace),
    ("a_covered_proc_is_shown_as_it_is", a_covered_proc_is_shown_as_it_is),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(container::INIT_COMMAND) => return container::init::main(),
        Some("__runtime") => world::be_runtime(Path::new(&arguments[1])),
        Some("__user") => user(Path::new(&arguments[1])),
        Some("__covered") => covered(Path::new(&arguments[1])),
        Some("__shared") => shared(),
        Some("__odd") => odd(Path::new(&arguments[1])),
        Some("__nested") => nested(Path::new(&arguments[1])),
        Some("--list") => {}
        _ => return run(arguments.iter().find(|word| !word.starts_with('-'))),
    }
    ExitCode::SUCCESS
}

fn run(filter: Option<&String>) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("isolation: not run: these tests are root's (try sudo -E cargo test)");
        return ExitCode::from(2);
    }
    let mut failed = Vec::new();
    let chosen = TESTS.iter().filter(|(name, _)| filter.is_none_or(|part| name.contains(part)));
    for (name, test) in chosen {
        let begin = Instant::now();
        let good = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:?})", if good { "ok" } else { "FAILED" }, begin.elapsed());
        if !good {
            failed.push(name);
        }
    }
    println!("isolation: {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn namespaces_are_private() {
    let world = World::new("private");
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let queues = file_lines("/proc/sysvipc/msg");
    let mounts = file_lines("/proc/self/mountinfo");
    assert_eq!(world.sh("cat /proc/sys/kernel/hostname; cat /proc/1/comm"), "o0\noslet-init\n");
    // A shell of `run` is a process among few, and cannot see those of the host.
    let host_pid = std::process::id();
    assert_eq!(world.sh(&format!("test -e /proc/{host_pid} || echo none")), "none\n");
    assert_eq!(world.sh("mount -t tmpfs none /mnt && ls /mnt | wc -l"), "0\n");
    assert_eq!(world.sh("ipcmk -Q >&2 && wc -l < /proc/sysvipc/msg").trim(), "2");
    assert_eq!(world.sh("hostname other; hostname"), "other\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), name);
    assert_eq!(file_lines("/proc/sysvipc/msg"), queues);
    assert_eq!(file_lines("/proc/self/mountinfo"), mounts);
    for space in ["mnt", "pid", "uts", "ipc"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(of("self"), of(&world.init().id().pid.to_string()), "{space}");
    }
    // Its children's PID namespace is ours still.
    assert!(Command::new("true").status().unwrap().success());
}

fn cpus_and_memory_are_bound() {
    let world = World::new("bound");
    let status = world.sh("grep _allowed_list /proc/self/status");
    let lists: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(lists, ["Cpus_allowed_list:", &world.cpu.to_string(), "Mems_allowed_list:", "0"]);
    if world.created.bound {
        // Even on purpose it cannot leave.
        let other = u32::from(world.cpu == 0);
        let tried = world.sh(&format!("taskset -pc {other} $$ >/dev/null 2>&1; echo $?"));
        assert_eq!(tried, "1\n");
    } else {
        println!("not tried: a cpuset: {:?}", world.created.warnings);
    }
    drop(world);
    // Without control groups it is affinity and policy.
    let world = World::with("unbound", |spec, hierarchies| {
        *hierarchies = Hierarchies::none();
        spec.bound = false;
    });
    let status = world.sh("grep Cpus_allowed_list /proc/self/status; cat /proc/self/numa_maps");
    assert!(status.contains(&format!("Cpus_allowed_list:\t{}\n", world.cpu)), "{status}");
    assert!(status.contains(" bind:0 "), "{status}");
    assert!(world.created.warnings[0].contains("affinity and memory policy only"));
}

fn the_root_is_private_and_complete() {
    let before = world::root_names();
    let world = World::new("root");
    let names = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let inside = names(&world.sh("ls -A /"));
    for name in before.iter().filter_map(|name| name.to_str()) {
        assert!(inside.iter().any(|here| here == name), "{name} is missing in {inside:?}");
    }
    for name in ["global", "gtmp", "ltmp", "tmp", "proc", "sys", "dev"] {
        assert!(inside.iter().any(|here| here == name), "{name} is missing in {inside:?}");
    }
    assert!(!inside.iter().any(|name| name.starts_with(".host")), "{inside:?}");
    assert_eq!(world.sh("mkdir /new 2>/dev/null || echo refused"), "refused\n");
    assert_eq!(world.sh("touch /gtmp/x /global/x 2>/dev/null || echo refused"), "refused\n");
    assert_eq!(world.sh("grep -c host0 /proc/self/mountinfo"), "0\n");
    // A mount made on the host afterwards shows inside; one made inside does not show outside.
    let late = world.directory().join("late");
    fs::create_dir(&late).unwrap();
    let shared = file_lines("/proc/self/mountinfo").iter().any(|line| line.contains(" shared:"));
    if shared {
        world::mount_tmpfs(&late);
        assert_eq!(world.sh(&format!("stat -fc %T '{}'", late.display())), "tmpfs\n");
        world::unmount(&late);
        assert_ne!(world.sh(&format!("stat -fc %T '{}'", late.display())), "tmpfs\n");
    }
    drop(world);
    assert_eq!(world::root_names(), before);
}

/// As systemd sets hosts up: what is mounted anywhere shows everywhere.
fn shared_mounts_stay_the_hosts() {
    let status = Command::new("unshare")
        .args(["-m", "--propagation", "shared"])
        .arg(std::env::current_exe().unwrap())
        .arg("__shared")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn shared() {
    assert!(file_lines("/proc/self/mountinfo").iter().all(|line| line.contains(" shared:")));
    namespaces_are_private();
    the_root_is_private_and_complete();
}

fn dev_is_private() {
    let world = World::with("dev", |spec, _| {
        let node = |name: &str, block, minor| container::DeviceNode {
            name: name.into(),
            block,
            major: if block { 43 } else { 1 },
            minor,
            mode: 0o640,
            uid: 0,
            gid: 6,
        };
        spec.devices = vec![node("hda", true, 32), node("cluster/null", false, 3)];
    });
    let nodes = "null zero full random urandom tty";
    assert_eq!(world.sh(&format!("cd /dev; stat -c %a {nodes} | sort -u")), "666\n");
    assert_eq!(world.sh("stat -c '%F %a %t:%T %g' /dev/hda"), "block special file 640 2b:20 6\n");
    assert_eq!(world.sh("echo x > /dev/cluster/null && stat -c %T /dev/cluster/null"), "3\n");
    assert_eq!(world.sh("head -c 3 /dev/zero | od -An -tx1"), " 00 00 00\n");
    assert_eq!(world.sh("echo a > /dev/shm/x; ls /dev/shm; ls /dev/mqueue | wc -l"), "x\n0\n");
    assert!(!Path::new("/dev/shm/x").exists() && !Path::new("/dev/hda").exists());
    assert_eq!(world.sh("readlink /dev/fd /dev/ptmx"), "/proc/self/fd\npts/ptmx\n");
    // A pseudo-terminal of its own.
    let script = "script -qec 'tty; stty size' /dev/null < /dev/null | tr -d '\\r' | head -1";
    assert_eq!(world.sh(script), "/dev/pts/0\n");
}

fn temporary_directories_are_as_chosen() {
    let shared = tempfile::tempdir().unwrap();
    fs::create_dir(shared.path().join(".gtmp")).unwrap();
    let with = |test: &str, tmp| {
        let shared = shared.path().to_owned();
        World::with(test, move |spec, _| {
            spec.global = Global::Directory(shared);
            spec.tmp = tmp;
            spec.ltmp_bytes = 1 << 20;
        })
    };
    let host = with("tmp-host", Tmp::Host);
    assert_eq!(host.sh("stat -c %D:%i /tmp").trim(), world::device_and_inode("/tmp"));
    assert_eq!(host.sh("echo g > /gtmp/x; cat /global/.gtmp/x"), "g\n");
    assert_eq!(fs::read_to_string(shared.path().join(".gtmp/x")).unwrap(), "g\n");
    assert_eq!(host.sh("stat -c %a /ltmp; stat -fc %T /ltmp"), "1777\ntmpfs\n");
    assert_eq!(host.sh("head -c 2M /dev/zero > /ltmp/x 2>/dev/null || echo full"), "full\n");
    assert_eq!(host.sh("grep -c ' /ltmp .*mpol=bind:0' /proc/self/mountinfo"), "1\n");
    let elsewhere = tempfile::tempdir_in("/var/tmp").unwrap();
    let global = World::below(elsewhere.path(), "tmp-global", |spec, _| {
        spec.global = Global::Directory(shared.path().to_owned());
        spec.tmp = Tmp::Global;
    });
    assert_eq!(global.sh("cat /tmp/x"), "g\n");
    let local = with("tmp-local", Tmp::Local);
    assert_eq!(local.sh("echo l > /ltmp/y; cat /tmp/y; ls /tmp/x 2>&1 | wc -l"), "l\n1\n");
    // The runtime files are under /tmp here, which is replaced; they are seen all the same.
    assert_eq!(local.sh("ls \"$DIRECTORY/o0\" | grep state"), "state.json\n");
    assert!(!Path::new("/tmp/y").exists());
}

fn a_filesystem_in_user_space_is_passed_out() {
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        println!("not tried: this kernel has no /dev/fuse");
        return;
    }
    let world = World::serving("fuse", world::serve_nothing);
    let line = world.sh("grep ' /global ' /proc/self/mountinfo");
    assert!(line.contains(" ro,") && line.contains(" - fuse.cfs root "), "{line}");
    // The server answers "no such file" to all.
    assert_eq!(world.sh("cat /global/x 2>&1 | grep -c 'No such file'"), "1\n");
    assert_eq!(world.sh("stat -fc %T /gtmp"), "tmpfs\n");
}

fn names_of_the_host_may_be_anything() {
    let world = tempfile::tempdir().unwrap();
    let script = r#"
        set -e; cd "$1"; mkdir R; mount -t tmpfs none R; cd R
        for f in /*; do
            if [ -L "$f" ]; then cp -d "$f" .; continue; fi
            if [ -d "$f" ]; then mkdir ".$f"; else touch ".$f"; fi; mount --rbind "$f" ".$f"
        done
        mkdir 'two words' "$(printf 'odd\377\nname')" .host0 -- '-dash'; echo in > 'a file'
        ln -s 'two words' link; ln -s nowhere dangling; mkfifo fifo; mkdir old
        pivot_root . old; umount -l /old; rmdir /old; exec "$2" __odd "$3""#;
    let directory = world::short_directory();
    let status = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([world.path(), &std::env::current_exe().unwrap(), directory.path()])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// In a host whose root has such names.
fn odd(directory: &Path) {
    let world = World::below(directory, "odd", |_, _| {});
    assert_eq!(world.init().notes(), [""; 0]);
    assert_eq!(world.sh("cat '/a file'; readlink /link /dangling"), "in\ntwo words\nnowhere\n");
    assert_eq!(world.sh("ls -d '/two words' /-dash /.host0 | wc -l"), "3\n");
    assert_eq!(world.sh("stat -c %F /fifo"), "fifo\n");
    assert_eq!(world.sh("ls -A / | od -c | grep -c 'o   d   d 377'"), "1\n");
}

fn orphans_are_reaped() {
    let world = World::new("orphans");
    world.sh("for i in 1 2 3 4 5 6 7 8; do (sleep 0.05 & ) ; done");
    let end = Instant::now() + LIMIT;
    while procfs::processes(world.init().id()).unwrap().len() > 1 {
        assert!(Instant::now() < end, "{:?}", procfs::processes(world.init().id()));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes_are_listed() {
    let world = World::new("listed");
    world.sh("sleep 987 & unshare -pf sleep 986 & while ! pgrep -fx 'sleep 986'; do :; done");
    let listed = procfs::processes(world.init().id()).unwrap();
    assert_eq!((listed[0].inner_pid, listed[0].uid), (1, 0));
    let commands = |of: &str| listed.iter().filter(|p| p.command == of).count();
    // The nested namespace's process too.
    assert_eq!((commands("sleep 987"), commands("sleep 986")), (1, 1), "{listed:?}");
    let sleeper = listed.iter().find(|process| process.command == "sleep 987").unwrap();
    assert_eq!(world.sh("pgrep -fx 'sleep 987'").trim(), sleeper.inner_pid.to_string());
    let handle = sleeper.id().open().unwrap().unwrap();
    handle.send(libc::SIGTERM).unwrap();
    assert!(handle.wait(LIMIT));
    assert_eq!(world.sh("pgrep -fx 'sleep 987' | wc -l"), "0\n");
}

fn what_fails_is_said_and_nothing_is_left() {
    let leaks = Leaks::now();
    let directory = world::short_directory();
    for (change, expected) in [
        (world::missing_global as fn(&mut container::Spec), "/no/such/directory"),
        (world::bad_device, "device ../x: not a path below /dev"),
        (world::missing_cpu, "CPUs 8000"),
        (world::missing_directory, "/no/such/place"),
    ] {
        let mut spec = world::spec(directory.path(), "c");
        change(&mut spec);
        let error = container::start(&world::program(), &spec, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let spec = world::spec(directory.path(), "c");
    let silent = container::Program { path: "/bin/true".into(), arguments: vec![] };
    let error = container::start(&silent, &spec, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("is gone") || error.contains("init"), "{error}");
    drop(directory);
    leaks.none_since();
}

fn the_runtimes_death_is_the_end() {
    let leaks = Leaks::now();
    let directory = world::short_directory();
    let mut runtime = Command::new(std::env::current_exe().unwrap())
        .arg("__runtime")
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world::wait_for_line(runtime.stdout.take().unwrap());
    let state = State::read(&directory.path().join("o0")).unwrap().unwrap();
    let target = container::enter::Target::open(state.clone()).unwrap();
    let inside = world::start(&target, &["sh", "-c", "trap '' TERM HUP; sleep 1000 & wait"]);
    let listed = procfs::processes(state.init).unwrap();
    let handles: Vec<_> = listed.iter().filter_map(|p| p.id().open().unwrap()).collect();
    assert!(handles.len() >= 2, "{listed:?}");
    runtime.kill().unwrap();
    runtime.wait().unwrap();
    assert_eq!(world::wait(&inside).signal(), Some(libc::SIGKILL));
    for handle in handles {
        assert!(handle.wait(LIMIT));
    }
    assert!(container::enter::Target::open(state.clone()).is_err());
    drop((target, inside));
    // What is left of a crashed cluster can be found and removed.
    let hierarchies = Hierarchies::detect().unwrap();
    let left = cgroup::leftovers(&hierarchies, &state.cluster).unwrap();
    assert_eq!(left.len(), usize::from(!state.cgroups.is_empty()));
    for (_, cgroup) in left {
        cgroup.kill(LIMIT).unwrap();
        cgroup.remove(LIMIT).unwrap();
    }
    drop(directory);
    leaks.none_since();
}

fn rounds_leave_nothing() {
    // Once beforehand: what is made once and kept is no leak.
    drop(World::new("round"));
    let leaks = Leaks::now();
    for round in 0..50 {
        let world = World::new("round");
        if round % 5 == 0 {
            assert_eq!(world.sh("mount -t tmpfs none /mnt; sleep 1000 & echo in"), "in\n");
        }
        match round % 3 {
            0 => world.init().stop(LIMIT).unwrap(),
            1 => world.created.cgroup.kill(LIMIT).unwrap(),
            _ => {}
        }
    }
    leaks.none_since();
}

fn an_oslet_may_hold_another() {
    let world = World::new("outer");
    let program = std::env::current_exe().unwrap();
    let status = world.run(&[&program.display().to_string(), "__nested", "/ltmp"]);
    assert!(status.success(), "{status:?}");
}

/// Inside an OSlet.
fn nested(directory: &Path) {
    let world = World::below(directory, "inner", |spec, _| spec.oslet = "inner".to_owned());
    assert_eq!(world.sh("cat /proc/sys/kernel/hostname; ls /proc | grep -c '^1$'"), "inner\n1\n");
    drop(world);
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
}

fn an_ordinary_user_has_a_user_namespace() {
    let directory = world::short_directory();
    let status = world::as_nobody(directory.path(), "__user", "");
    assert!(status.success(), "{status:?}");
}

/// As user 65534.
fn user(directory: &Path) {
    assert_eq!(rustix::process::getuid().as_raw(), 65534);
    let leaks = Leaks::now();
    let world = World::below(directory, "user", |_, _| {});
    assert!(world.created.warnings[0].contains("affinity and memory policy only"));
    assert_eq!(world.sh("id -u; cat /proc/sys/kernel/hostname"), "65534\no0\n");
    assert_eq!(world.sh("cat /proc/1/comm; ls / | grep -c usr"), "oslet-init\n1\n");
    assert_eq!(world.sh("echo x > /ltmp/x; cat /ltmp/x; echo y > /dev/null"), "x\n");
    let status =
        world.sh("grep Cpus_allowed_list /proc/self/status; grep CapEff /proc/self/status");
    assert!(status.contains(&format!("list:\t{}\n", world.cpu)), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert_eq!(world.sh("head -1 /proc/self/numa_maps | cut -d' ' -f2"), "bind:0\n");
    let error = world.start_as(0).unwrap_err().to_string();
    assert!(error.contains("has that user alone"), "{error}");
    println!("notes as user 65534: {:?}", world.init().notes());
    drop(world);
    leaks.none_since();
}

fn a_covered_proc_is_shown_as_it_is() {
    let directory = world::short_directory();
    let cover = "mount -t tmpfs none /proc/scsi 2>/dev/null || mount -t tmpfs none /proc/fs";
    let status = world::as_nobody(directory.path(), "__covered", cover);
    assert!(status.success(), "{status:?}");
}

/// As user 65534, where a part of /proc is covered.
fn covered(directory: &Path) {
    let world = World::below(directory, "covered", |_, _| {});
    let notes = world.init().notes();
    assert!(notes.iter().any(|note| note.starts_with("/proc: the host's")), "{notes:?}");
    assert_eq!(world.sh("test -e /proc/self/status && echo there"), "there\n");
}
