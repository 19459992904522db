//! Processes as /proc shows them.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::sys::pidfd::PidFd;

/// One process for certain: numbers are reused, a number with a start time is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number in the host's PID namespace.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has that number now.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: Stat::read(pid)?.start_time })
    }

    /// This process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// A descriptor of the process; `None` when it has ended and been reaped.
    ///
    /// # Errors
    /// pidfd_open(2)'s, or when /proc cannot be read.
    pub fn open(self) -> io::Result<Option<PidFd>> {
        let pidfd = match PidFd::open(self.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        // The start time is looked at after the open: if it is right now, the descriptor cannot be
        // of an earlier or later holder of the number.
        match Stat::read(self.pid) {
            Ok(stat) if stat.start_time == self.start_time => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a read below /proc/PID failed because the process is no more.
pub fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The parts of /proc/PID/stat (proc_pid_stat(5)) that are of use here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// The command's name, at most 15 bytes (or more for kernel threads).
    pub name: String,
    /// R, S, D, Z, T and so on.
    pub state: char,
    /// Whether it is on its way out: it may stay so for long, until whoever is to has reaped its
    /// children.
    pub exiting: bool,
    /// The parent's number; 0 when it is in another PID namespace or there is none.
    pub parent: u32,
    /// User and system time, in clock ticks.
    pub ticks: u64,
    /// In clock ticks since the machine started.
    pub start_time: u64,
    /// The CPU it ran on last.
    pub cpu: u32,
}

impl Stat {
    /// That process's.
    ///
    /// # Errors
    /// `NotFound` (or `ESRCH`, see [`gone`]) when there is none.
    pub fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        let text = String::from_utf8_lossy(&text);
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: not understood"))
        })
    }

    /// The name may hold anything, parentheses and spaces too: it ends at the *last* parenthesis.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        // What follows the name begins with field 3.
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        let number = |field: usize| -> Option<u64> { fields.get(field - 3)?.parse().ok() };
        const PF_EXITING: u64 = 4;
        Some(Self {
            exiting: number(9)? & PF_EXITING != 0,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(4)?).ok()?,
            ticks: number(14)?.checked_add(number(15)?)?,
            start_time: number(22)?,
            cpu: u32::try_from(number(39)?).ok()?,
        })
    }
}

/// A process that runs in an OSlet.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Process {
    /// Its number in the host's PID namespace.
    pub pid: u32,
    /// Its number inside the OSlet.
    pub inner_pid: u32,
    /// The user's number on the host.
    pub uid: u32,
    /// R, S, D, Z, T and so on.
    pub state: char,
    /// The CPU it ran on last.
    pub cpu: u32,
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// In clock ticks since the machine started.
    pub start_time: u64,
    /// The command line, or the name in brackets where there is none.
    pub command: String,
}

/// The processes in the PID namespace of that init (itself first) and in those below it, by their
/// number on the host.
///
/// # Errors
/// When /proc cannot be read, or init is gone. Processes that come or go meanwhile may be missing.
pub fn processes(init: ProcessId) -> io::Result<Vec<Process>> {
    let depth = namespace_pids(init.pid)?.len();
    let own = ProcessId::of(init.pid)? == init;
    if depth < 1 || !own {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", init.pid))?;
    let mut found = Vec::new();
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    pids.sort_unstable();
    // A process of a namespace below ours descends from one of ours; a child has not always a
    // higher number than its parent, so look until nothing is added.
    let mut members = std::collections::BTreeSet::new();
    let mut others = Vec::new();
    for pid in pids {
        match fs::read_link(format!("/proc/{pid}/ns/pid")) {
            Ok(of) if of == namespace => drop(members.insert(pid)),
            _ => others.extend(Stat::read(pid).map(|stat| (pid, stat.parent))),
        }
    }
    while let Some(at) = others.iter().position(|(_, parent)| members.contains(parent)) {
        members.insert(others.swap_remove(at).0);
    }
    for pid in members {
        match Process::read(pid, depth) {
            Ok(process) => found.extend(process),
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

impl Process {
    /// `None` when it is not at that depth of PID namespaces after all.
    fn read(pid: u32, depth: usize) -> io::Result<Option<Self>> {
        let stat = Stat::read(pid)?;
        let Some(&inner_pid) = namespace_pids(pid)?.get(depth - 1) else { return Ok(None) };
        let command = fs::read(format!("/proc/{pid}/cmdline"))?;
        let words: Vec<_> = command.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
        let command = words.join(" ").trim_end().to_owned();
        let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Some(Self {
            pid,
            inner_pid,
            uid: status_field(pid, "Uid:")?.first().copied().unwrap_or(0),
            state: stat.state,
            cpu: stat.cpu,
            cpu_seconds: stat.ticks as f64 / ticks_per_second as f64,
            start_time: stat.start_time,
            command: if command.is_empty() { format!("[{}]", stat.name) } else { command },
        }))
    }

    /// Which process this is.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_time: self.start_time }
    }
}

/// The process's number in each PID namespace that it is in, ours first.
fn namespace_pids(pid: u32) -> io::Result<Vec<u32>> {
    status_field(pid, "NSpid:")
}

/// The numbers of one line of /proc/PID/status.
fn status_field(pid: u32, name: &str) -> io::Result<Vec<u32>> {
    let text = fs::read(format!("/proc/{pid}/status"))?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    Ok(line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses() {
        let tail = "S 7 1 1 0 -1 4194560 1 2 3 4 10 5 0 0 20 0 1 0 777 1 1 \
                    0 0 0 0 0 0 0 0 0 0 0 0 0 17 3 0 0 0 0 0";
        let stat = Stat::parse(&format!("12 (a) b (c) {tail}")).unwrap();
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a) b (c", 'S', 7));
        assert!(!stat.exiting);
        assert!(
            Stat::parse(&format!("12 (a) {}", tail.replace("4194560", "4194564"))).unwrap().exiting
        );
        assert_eq!((stat.ticks, stat.start_time, stat.cpu), (15, 777, 3));
        assert_eq!(Stat::parse("12 (a S 7"), None);
        assert_eq!(Stat::parse("12 (a) S 7 1"), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = ProcessId::own().unwrap();
        assert!(own.open().unwrap().is_some_and(|process| !process.is_dead()));
        let earlier = ProcessId { start_time: own.start_time - 1, ..own };
        assert!(earlier.open().unwrap().is_none());
        let none = ProcessId { pid: 1 << 30, start_time: 1 };
        assert!(none.open().unwrap().is_none());
    }

    #[test]
    fn the_number_of_a_process_group_that_outlived_its_leader_is_no_process() {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("sh");
        // The shell is the leader; what it leaves behind reads until the test is done with it.
        command.args(["-c", "exec 3<&0; cat <&3 >/dev/null & exit 0"]).process_group(0);
        let mut leader = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let member = leader.stdin.take().unwrap();
        let id =
            ProcessId { pid: leader.id(), start_time: Stat::read(leader.id()).unwrap().start_time };
        leader.wait().unwrap();
        assert!(id.open().unwrap().is_none());
        drop(member);
    }
}
