//! The processes of a load, one of each kind in every OSlet.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;

/// How long a worker may take to begin.
const BEGIN: Duration = Duration::from_secs(30);

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A shell that lists and reads everything, errors or not.
    Shell,
    /// Touches the pages of one file that it has mapped for ever.
    Keep,
    /// Maps files whose pages the kernel has not cached.
    Map,
    /// Reads by page reference.
    Client,
}

/// All kinds.
pub const KINDS: [Kind; 4] = [Kind::Shell, Kind::Keep, Kind::Map, Kind::Client];

/// A running one: `oslet run`, and the program that it started.
pub struct Worker {
    /// What it does.
    pub kind: Kind,
    run: Child,
    program: u32,
    errors: PathBuf,
}

impl Worker {
    /// Starts one in that OSlet and returns when it works. `load` is the program `oslet-load`.
    ///
    /// # Errors
    /// With what it wrote when it does not begin.
    pub fn start(
        cluster: &Cluster,
        load: &str,
        oslet: usize,
        kind: Kind,
        seed: usize,
    ) -> Result<Self> {
        let (name, seed) = (format!("o{oslet}"), seed.to_string());
        let directory = cluster.directory();
        let directory = directory.to_str().context("directory")?;
        let words: &[&str] = match kind {
            Kind::Shell => &[
                "sh",
                "-c",
                "echo ready; while :; do ls -lR /global >/dev/null 2>&1; \
                 cat /global/dir-*/* 2>/dev/null | cksum >/dev/null; \
                 cksum /global/cached >/dev/null 2>&1; sleep 0.02; done",
            ],
            Kind::Keep => &[load, "keep", "/global"],
            Kind::Map => &[load, "map", "/global", &seed],
            Kind::Client => &[load, "client", directory, &name, "0", &seed],
        };
        let errors = cluster.path(&format!("{kind:?} of {name}"));
        let mut command = cluster.command(&[&["run", &name, "--"], words].concat());
        command.stdout(Stdio::piped()).stderr(File::create(&errors)?).process_group(0);
        let mut run = command.spawn()?;
        let stdout = run.stdout.take().context("no standard output")?;
        let (told, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // Without a line it has ended, and says why elsewhere.
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = told.send(line);
        });
        let line = ready.recv_timeout(BEGIN);
        let mut worker = Self { kind, run, program: 0, errors };
        if !matches!(&line, Ok(line) if line == "ready\n") {
            bail!("{kind:?} of {name} does not begin: {line:?} {}", worker.said());
        }
        let mut children = children(worker.run.id());
        // What made it is about to end.
        children.retain(|pid| {
            let runs = fs::read_link(format!("/proc/{pid}/exe"));
            runs.is_ok_and(|program| program != cluster.own_program())
        });
        let [program] = children[..] else {
            bail!("{kind:?} of {name}: children {children:?} {}", worker.said())
        };
        worker.program = program;
        Ok(worker)
    }

    /// The process of `oslet run`.
    #[must_use]
    pub fn run(&self) -> u32 {
        self.run.id()
    }

    /// The process that it started.
    #[must_use]
    pub fn program(&self) -> u32 {
        self.program
    }

    /// Stops the program, and with it `oslet run`, which waits to be continued.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&self) -> Result<()> {
        signal(self.program, Signal::STOP)?;
        let end = Instant::now() + BEGIN;
        while state(self.run.id()) != Some('T') {
            ensure!(Instant::now() < end, "{:?}: oslet run does not stop with it", self.kind);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Continues `oslet run`, and with it the program if that is still there.
    ///
    /// # Errors
    /// When it may not be continued.
    pub fn go_on(&self) -> Result<()> {
        signal(self.run.id(), Signal::CONT)
    }

    /// Whether the program has ended; `oslet run` may be stopped, and not know.
    #[must_use]
    pub fn program_ended(&self) -> bool {
        matches!(state(self.program), None | Some('Z' | 'X'))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.run.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it is still there at the time limit.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.run.try_wait()? {
                return Ok(status);
            }
            let (kind, seconds) = (self.kind, limit.as_secs());
            ensure!(
                Instant::now() < end,
                "{kind:?}: still there after {seconds} s: {}{}",
                whereabouts(self.run.id()),
                whereabouts(self.program)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it wrote about its troubles.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Where the test ends before it; what it started ends with it.
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

/// Whether `oslet run` tells of a program that was killed by that signal.
#[must_use]
pub fn died_of(status: ExitStatus, signal: Signal) -> bool {
    status.code() == Some(128 + signal.as_raw()) || status.signal() == Some(signal.as_raw())
}

/// Sends a signal; a process that has ended needs none.
///
/// # Errors
/// When it may not be sent.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// What the threads of a process wait for, as the kernel says.
#[must_use]
pub fn whereabouts(pid: u32) -> String {
    let mut words = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stat: Vec<_> = read("stat").split(' ').take(4).map(str::to_owned).collect();
        let stack: Vec<_> = read("stack").lines().take(5).map(str::to_owned).collect();
        words += &format!("{pid}: {} {}\n", stat.join(" "), stack.join(" "));
    }
    words
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let words = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        words.split(' ').nth(1).and_then(|word| word.parse().ok()) == Some(parent)
    };
    pids.filter(child).collect()
}
