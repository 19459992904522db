//! Killing all of a group in bounded time.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Group, Kind, kill_by, list, write};
use crate::sys::pidfd::PidFd;
use crate::{Error, Result};

/// How long to wait between two looks, at first; doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// See [`super::Cgroup::kill`].
pub(super) fn kill(groups: &[Group], kill: Option<&File>, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let mut pause = PAUSE;
    loop {
        let living: Vec<&Group> = groups.iter().filter(|group| populated(group)).collect();
        if living.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let pids: Vec<u32> = living.iter().flat_map(|group| processes(&group.path)).collect();
            let what = format!("{}: kill ({} still there)", living[0].path.display(), list(&pids));
            return Err(Error::Timeout { what, ms: limit.as_millis() as u64 });
        }
        if let Some(kill) = kill {
            kill_by(kill.as_fd()).map_err(Error::io("cgroup.kill"))?;
        }
        // Also after cgroup.kill: a process may be in one group and, for want of a permission when
        // it joined, not in the other.
        for group in living {
            let rest = kill.is_none() || group.kind != Kind::Unified;
            if rest {
                kill_each(group);
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Signals each by itself, held still meanwhile where that is possible, so that none can fork away.
/// What escapes all the same is found at the next look.
fn kill_each(group: &Group) {
    let (file, hold, release) = match group.kind {
        Kind::Freezer => ("freezer.state", "FROZEN", "THAWED"),
        Kind::Unified => ("cgroup.freeze", "1", "0"),
        Kind::Cpuset => ("", "", ""),
    };
    let file = group.path.join(file);
    // That a group cannot be held, or is gone, only costs another look.
    let _ = write(&file, hold);
    for pid in processes(&group.path) {
        if let Ok(process) = PidFd::open(pid) {
            // The number may have passed to another process between the list and the open.
            if processes(&group.path).contains(&pid) {
                let _ = process.send(libc::SIGKILL);
            }
        }
    }
    let _ = write(&file, release);
}

/// Whether a process that has not ended is in the group or below.
fn populated(group: &Group) -> bool {
    if group.kind == Kind::Unified
        && let Ok(events) = fs::read_to_string(group.path.join("cgroup.events"))
    {
        return events.lines().any(|line| line.trim() == "populated 1");
    }
    !processes(&group.path).is_empty()
}

/// The processes of a group and of those below, 0 for those that this PID namespace has no number
/// for; none when the group is gone.
pub(super) fn processes(path: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    found
}
