//! The segments of the dead go when nothing needs them any more, and not before.

use std::time::{Duration, Instant};

use crate::parts::{LET_GO, PART, TAKE_OVER};
use crate::pins::Client;
use crate::running::{ALIVE, DEAD, PATIENCE, RESTART, Running};

/// The segments that a process maps, `OSLET.SLOT.EPOCH`, each once.
fn segments(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let names = maps.lines().filter_map(|line| line.split_once("/memfd:oslet:"));
    let mut names: Vec<String> =
        names.map(|(_, name)| name.trim_end_matches(" (deleted)").to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// Waits until a process maps exactly these, the control page aside.
fn await_segments(running: &Running, pid: u32, expected: &[&str]) {
    let start = Instant::now();
    let found = || segments(pid).into_iter().filter(|name| name.contains('.')).collect::<Vec<_>>();
    while found() != expected {
        let found = found();
        assert!(start.elapsed() < PATIENCE, "{found:?}, not {expected:?}\n{}", running.logs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn names(pid: u32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut names: Vec<_> = fds
        .filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.display().to_string()))
        .collect();
    names.sort();
    names
}

fn mappings(pid: u32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count()
}

#[test]
fn rounds_of_death_and_return_leave_no_growth() {
    const ROUNDS: u32 = 5;
    let running = Running::start(3, &[(RESTART, "0 1 2"), (PART, "home")]);
    let client = Client::start(&running, "o0", "stubborn");
    let (pid, client) = (running.record(0).process.pid, client.child.id());
    let mut before = None;
    for round in 1..=ROUNDS {
        for victim in [1, 2] {
            running.kill(victim, libc::SIGKILL);
            running.until("it is back", |states| states[victim] == (round + 1, ALIVE));
        }
        let both = [format!("1.0.{}", round + 1), format!("2.0.{}", round + 1)];
        let expected = ["0.0.1", "0.1.65537", &both[0], &both[1]];
        await_segments(&running, pid, &expected);
        await_segments(&running, client, &expected);
        if round == 2 {
            // What is made once is there by now, or soon.
            let now =
                || [(descriptors(pid), mappings(pid)), (descriptors(client), mappings(client))];
            let mut seen = now();
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
                for (seen, now) in seen.iter_mut().zip(now()) {
                    *seen = (seen.0.max(now.0), seen.1.max(now.1));
                }
            }
            before = Some(seen);
        }
    }
    // Connections that were just closed may be seen for a moment, and before, one may not have been
    // there yet. Six deaths lie between: what each left behind would show.
    const LOOSE: usize = 2;
    let start = Instant::now();
    let before = before.unwrap();
    let now = || [(descriptors(pid), mappings(pid)), (descriptors(client), mappings(client))];
    while now().iter().zip(&before).any(|(now, before)| now.0 > before.0 + LOOSE) {
        let open = || names(pid).join("\n");
        assert!(start.elapsed() < Duration::from_secs(5), "{before:?}, {:?}\n{}", now(), open());
        std::thread::sleep(Duration::from_millis(20));
    }
    for (now, before) in now().iter().zip(&before) {
        println!("ran: {ROUNDS} rounds of two deaths: (descriptors, mappings) {before:?} {now:?}");
        assert!(now.1 <= before.1 + 4, "mappings: before {before:?}, now {now:?}");
    }
    running.stop();
}

#[test]
fn a_dead_segment_stays_while_somebody_pins_it_and_then_goes() {
    let running = Running::start(3, &[(PART, "keeper")]);
    running.await_told("pinned");
    let pids = [1, 2].map(|oslet| running.record(oslet).process.pid);
    running.kill(0, libc::SIGKILL);
    running.until("it is dead", |states| states[0] == (1, DEAD));
    await_segments(&running, pids[1], &["1.0.1", "2.0.1"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(segments(pids[0]).iter().filter(|name| *name == "0.0.1").count(), 1, "it is pinned");
    running.tell(LET_GO);
    await_segments(&running, pids[0], &["1.0.1", "2.0.1"]);
    running.stop();
}

#[test]
fn what_the_last_owner_published_stays_for_joiners_too_until_there_is_another() {
    let running = Running::start(3, &[(PART, "owner"), (RESTART, "2")]);
    running.await_told("owned");
    let mut client = Client::join(&running, "o0");
    running.kill(1, libc::SIGKILL);
    running.until("it is dead", |states| states[1] == (1, DEAD));
    running.kill(2, libc::SIGKILL);
    running.until("it is back", |states| states == [(1, ALIVE), (1, DEAD), (2, ALIVE)]);
    let pids = [0, 2].map(|oslet| running.record(oslet).process.pid);
    let all = ["0.0.1", "0.1.65537", "1.0.1", "2.0.2"];
    await_segments(&running, pids[0], &all);
    await_segments(&running, pids[1], &all);
    await_segments(&running, client.child.id(), &all);
    // One that comes now gets it too.
    let mut late = Client::join(&running, "o2");
    let late_sees = ["0.0.1", "1.0.1", "2.0.2", "2.1.131073"];
    await_segments(&running, late.child.id(), &late_sees);
    running.tell(TAKE_OVER);
    await_segments(&running, pids[0], &["0.0.1", "0.1.65537", "2.0.2", "2.1.131073"]);
    await_segments(&running, pids[1], &["0.0.1", "0.1.65537", "2.0.2", "2.1.131073"]);
    await_segments(&running, client.child.id(), &["0.0.1", "0.1.65537", "2.0.2"]);
    await_segments(&running, late.child.id(), &["0.0.1", "2.0.2", "2.1.131073"]);
    assert!(client.child.try_wait().unwrap().is_none() && late.child.try_wait().unwrap().is_none());
    drop((client, late));
    running.stop();
}
