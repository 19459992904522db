//! Clusters of real processes: this test binary runs itself again as launcher and as runtimes.

#![forbid(unsafe_code)]

mod idle;
mod orphans;
mod parts;
mod pins;
mod running;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use oslet::launcher::{self, Cluster};

use running::{ALIVE, DEAD, FENCING, IO_FILE, PATIENCE, RESTART, ROLE, Running, spec};

/// Not a test unless it is run by one: then it is a launcher, a runtime or a client.
#[test]
fn process_of_a_test() {
    match std::env::var(ROLE).as_deref() {
        Ok("runtime") => running::runtime_process(),
        Ok("launcher") => running::launcher_process(),
        Ok("client") => parts::client_process(),
        _ => {}
    }
}

#[test]
fn members_join_and_leave_and_nothing_remains() {
    let running = Running::start(3, &[]);
    let status = running.ask(1).unwrap();
    assert_eq!(status.members, [(1, ALIVE); 3]);
    assert!(status.frames[0] > 500, "{status:?}");
    // A second cluster of that name is refused.
    let refused = Cluster::create(spec(&running.directory, 2)).unwrap_err().to_string();
    assert!(refused.contains("runs already (launched by process"), "{refused}");
    running.stop();
}

#[test]
fn one_that_is_killed_is_fenced_and_rejoins() {
    let running = Running::start(3, &[(RESTART, "0 1 2")]);
    for (round, victim) in [0, 2, 1].into_iter().enumerate() {
        let epoch = running.ask(victim).unwrap().who.epoch;
        running.kill(victim, libc::SIGKILL);
        running.until(&format!("round {round}: it is back"), |states| {
            states[victim] == (epoch + 1, ALIVE) && states.iter().all(|(_, s)| *s == ALIVE)
        });
    }
    running.stop();
}

#[test]
fn one_that_is_stopped_is_fenced_within_the_time_out() {
    let running = Running::start(3, &[]);
    let victim = running.process(0);
    victim.send(libc::SIGSTOP).unwrap();
    let took = running.until("it is dead", |states| states[0] == (1, DEAD));
    assert!(took > Duration::from_millis(500), "{took:?}: before the time-out");
    assert!(victim.wait(PATIENCE));
    running.stop();
}

#[test]
fn two_that_die_at_once_are_both_fenced() {
    let running = Running::start(4, &[]);
    // The second would have fenced the first.
    running.kill(1, libc::SIGSTOP);
    running.kill(0, libc::SIGKILL);
    running.until("both are dead", |states| states[..2] == [(1, DEAD), (1, DEAD)]);
    running.stop();
}

#[test]
fn the_launcher_s_death_harms_nobody() {
    let mut running = Running::start(2, &[]);
    running.launcher.kill().unwrap();
    running.launcher.wait().unwrap();
    running.until("both go on", |states| states == [(1, ALIVE); 2]);
    let refused = Cluster::create(spec(&running.directory, 2)).unwrap_err().to_string();
    assert!(refused.contains("runs already (o0, o1; their launcher has ended)"), "{refused}");
    running.stop();
}

#[test]
fn what_a_killed_cluster_has_left_is_cleaned_up() {
    let mut running = Running::start(2, &[]);
    let processes = [running.process(0), running.process(1)];
    running.launcher.kill().unwrap();
    running.launcher.wait().unwrap();
    for process in &processes {
        process.send(libc::SIGKILL).unwrap();
    }
    assert!(processes.iter().all(|process| process.wait(PATIENCE)));
    assert!(running.directory.join("o0/control.sock").exists());
    let cluster = Cluster::create(spec(&running.directory, 2)).unwrap();
    assert!(!running.directory.join("o0").exists());
    drop(cluster);
    let name = running.directory.file_name().unwrap().to_str().unwrap().to_owned();
    launcher::stop(&running.directory, &name).unwrap();
    assert!(!running.directory.exists());
}

#[test]
fn noise_on_a_socket_costs_its_sender_alone() {
    let running = Running::start(2, &[]);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            flags,
            None,
        )
        .unwrap();
        let path = running.directory.join(format!("o{}/control.sock", round % 2));
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bytes: Vec<u8> = (0..seed >> 57).map(|i| (seed >> (i % 56)) as u8).collect();
        // The runtime may have cut us off before.
        let _ = rustix::net::send(&socket, &bytes, rustix::net::SendFlags::NOSIGNAL);
        let _ = rustix::net::send(&socket, &bytes, rustix::net::SendFlags::NOSIGNAL);
    }
    running.until("both go on", |states| states == [(1, ALIVE); 2]);
    running.stop();
}

#[test]
fn who_may_still_have_io_in_flight_is_not_declared_dead() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let running = Running::start(3, &[(IO_FILE, &path)]);
    // The lock of a description that outlives its process stands for I/O in flight.
    let pid = running.record(0).process.pid;
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = fds
        .flatten()
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == file.path()))
        .filter_map(|fd| fd.file_name().to_str()?.parse().ok())
        .min();
    let process = running.process(0);
    let kept = rustix::process::pidfd_getfd(
        process.as_fd(),
        number.unwrap(),
        rustix::process::PidfdGetfdFlags::empty(),
    )
    .unwrap();
    running.kill(0, libc::SIGKILL);
    running.until("it is being fenced", |states| states[0] == (1, FENCING));
    std::thread::sleep(Duration::from_millis(800));
    running.until("it is still being fenced", |states| states[0] == (1, FENCING));
    // The fencer dies too: another takes the fence over.
    let word = running.logs();
    let fencer = if word.contains("o1: o0 epoch 1: not fenced") { 1 } else { 2 };
    running.kill(fencer, libc::SIGKILL);
    running.until("the fencer is dead", |states| states[fencer] == (1, DEAD));
    drop(kept);
    running.until("it is dead", |states| states[0] == (1, DEAD));
    running.stop();
}

#[test]
fn sixty_four_members_join_in_reasonable_time() {
    let start = Instant::now();
    let running = Running::start(64, &[]);
    println!("64 members: {} ms", start.elapsed().as_millis());
    running.kill(17, libc::SIGKILL);
    let took = running.until("it is dead", |states| states[17] == (1, DEAD));
    println!("one of 64 fenced, as the last sees it: {} ms", took.as_millis());
    running.stop();
}
