//! Who pins too much, or scribbles over what says what it pins: it alone is ended, and the memory
//! comes back.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::parts::{OSLET, PART, RETIRE, SCRIBBLE};
use crate::running::{ALIVE, DIRECTORY, PATIENCE, RESTART, Running, arguments};

/// How long a hoarder is asked before it is ended, at least.
const ASKED: Duration = Duration::from_millis(1900);

pub(crate) struct Client {
    pub(crate) child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Client {
    pub(crate) fn start(running: &Running, oslet: &str, part: &str) -> Self {
        let mut child = Command::new("/usr/bin/env")
            .args(arguments("client"))
            .env(DIRECTORY, &running.directory)
            .env(OSLET, oslet)
            .env(PART, part)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut client = Self { child, lines };
        client.await_line("pinned");
        client
    }

    /// One that pins nothing.
    pub(crate) fn join(running: &Running, oslet: &str) -> Self {
        Self::start(running, oslet, "none")
    }

    fn await_line(&mut self, start: &str) {
        let found = self.lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(start)));
        assert!(found.is_some(), "the client has ended without saying {start:?}");
    }

    fn await_kill(mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
                return;
            }
            assert!(Instant::now() < end, "not killed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended already, or only a failed test ends here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Half of the home's frames go to limbo; all of them are pinned.
fn retire(running: &Running) {
    let frames = running.ask(0).unwrap().frames;
    running.tell(RETIRE);
    running.until_limbo("all frames wait", frames[0] - frames[1]);
}

#[test]
fn clients_that_keep_frames_in_limbo_are_killed_and_the_frames_come_back() {
    let running = Running::start(2, &[(PART, "home")]);
    let stubborn = Client::start(&running, "o1", "stubborn");
    let stopped = Client::start(&running, "o0", "stubborn");
    let mut polite = Client::start(&running, "o1", "polite");
    let pid = rustix::process::Pid::from_child(&stopped.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    retire(&running);
    let start = Instant::now();
    polite.await_line("let go");
    stubborn.await_kill();
    stopped.await_kill();
    running.until_limbo("the frames come back", 0);
    assert!(start.elapsed() > ASKED, "{:?}: they were not given time", start.elapsed());
    println!("hoarding clients ended after {} ms", start.elapsed().as_millis());
    assert!(polite.child.try_wait().unwrap().is_none(), "who lets go lives");
    assert_eq!(running.ask(1).unwrap().members, [(1, ALIVE); 2]);
    assert_eq!(running.ask(1).unwrap().clients, 1);
    drop(polite);
    running.stop();
}

#[test]
fn a_runtime_that_keeps_frames_in_limbo_is_asked_and_then_fenced() {
    let running = Running::start(3, &[(PART, "stubborn"), (RESTART, "1")]);
    running.await_told("pinned");
    retire(&running);
    let start = Instant::now();
    running.until("it is back", |states| states == [(1, ALIVE), (2, ALIVE), (1, ALIVE)]);
    assert!(start.elapsed() > ASKED, "{:?}: it was not given time", start.elapsed());
    println!("a hoarding runtime was back after {} ms", start.elapsed().as_millis());
    running.until_limbo("the frames come back", 0);
    let logs = running.logs();
    assert!(logs.contains("o1: o0 asks to let go of "), "{logs}");
    assert!(logs.contains("frames of o0 in limbo"), "{logs}");
    running.stop();
}

#[test]
fn a_runtime_that_lets_go_when_it_is_asked_lives() {
    let running = Running::start(2, &[(PART, "polite")]);
    running.await_told("pinned");
    retire(&running);
    running.until_limbo("the frames come back", 0);
    std::thread::sleep(ASKED);
    assert_eq!(running.ask(0).unwrap().members, [(1, ALIVE); 2]);
    running.stop();
}

#[test]
fn a_runtime_that_scribbles_over_its_segment_is_fenced_and_comes_back() {
    for part in ["all", "pins", "entry"] {
        let running = Running::start(3, &[(PART, part), (RESTART, "1")]);
        running.await_told("pinned");
        retire(&running);
        let start = Instant::now();
        running.tell(SCRIBBLE);
        running.until("it is back", |states| states == [(1, ALIVE), (2, ALIVE), (1, ALIVE)]);
        println!("{part}: scribbled, fenced and back in {} ms", start.elapsed().as_millis());
        running.until_limbo("the frames come back", 0);
        let logs = running.logs();
        assert!(!logs.contains("in limbo\n"), "it was fenced for its pins, not for its noise");
        running.stop();
    }
}

#[test]
fn a_client_that_scribbles_over_its_segment_is_killed() {
    let running = Running::start(2, &[(PART, "home")]);
    // The home is its own runtime, and another.
    for (oslet, part) in [("o0", "all"), ("o1", "all"), ("o1", "pins")] {
        let client = Client::start(&running, oslet, part);
        running.tell(SCRIBBLE);
        client.await_kill();
        running.untell(SCRIBBLE);
    }
    let last = Client::start(&running, "o1", "pins");
    retire(&running);
    let start = Instant::now();
    running.tell(SCRIBBLE);
    last.await_kill();
    running.until_limbo("the frames come back", 0);
    println!("scribbling client ended after {} ms", start.elapsed().as_millis());
    assert_eq!(running.ask(1).unwrap().members, [(1, ALIVE); 2]);
    running.stop();
}
