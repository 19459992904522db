//! Running one command with its output in a file and an end to every wait.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(50);

/// How a command ended.
pub(crate) enum End {
    Status(ExitStatus),
    /// It was still running when its time was up, and was killed with its descendants.
    TimedOut,
}

impl End {
    /// What went wrong with `what`, which had the time `limit`.
    pub(crate) fn wrong(&self, what: &str, limit: Duration) -> Option<String> {
        match self {
            Self::Status(status) if status.success() => None,
            Self::Status(status) => Some(format!("{what}: {status}")),
            Self::TimedOut => Some(format!("{what}: no end in {} s", limit.as_secs())),
        }
    }
}

/// Runs `command` with stdout and stderr appended to `log`, for at most `limit`.
pub(crate) fn logged(command: &mut Command, log: &Path, limit: Duration) -> anyhow::Result<End> {
    let file = opened(log, command)?;
    ended(command, file.try_clone()?, file, limit)
}

/// The same, with stdout alone in the file `out`.
pub(crate) fn apart(
    command: &mut Command,
    out: &Path,
    log: &Path,
    limit: Duration,
) -> anyhow::Result<End> {
    let out = File::create(out).with_context(|| out.display().to_string())?;
    let log = opened(log, command)?;
    ended(command, out, log, limit)
}

fn opened(log: &Path, command: &Command) -> anyhow::Result<File> {
    let options = File::options().create(true).append(true).open(log);
    let mut file = options.with_context(|| log.display().to_string())?;
    writeln!(file, "+ {}", describe(command))?;
    Ok(file)
}

fn ended(command: &mut Command, out: File, err: File, limit: Duration) -> anyhow::Result<End> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| describe(command))?;

    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(End::Status(status));
        }
        if started.elapsed() >= limit {
            kill_tree(&mut child)?;
            return Ok(End::TimedOut);
        }
        thread::sleep(POLL);
    }
}

/// The command as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        (name != "PATH").then(|| format!("{}='{value}'", name.to_string_lossy()))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned());
    set.chain(words).collect::<Vec<_>>().join(" ")
}

fn kill_tree(child: &mut Child) -> anyhow::Result<()> {
    let top = i32::try_from(child.id())?;
    for pid in descendants(top) {
        if let Some(pid) = Pid::from_raw(pid) {
            // One that has ended meanwhile is what was wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = child.kill();
    child.wait()?;
    Ok(())
}

/// Every process below `top`, by the parents that /proc names.
fn descendants(top: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(i32, i32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![top];
    let mut at = 0;
    while at < found.len() {
        let above = found[at];
        let below = parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid);
        found.extend(below);
        at += 1;
    }
    found.split_off(1)
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows its last one is plain.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (End, String) {
        let name = format!("xtask-run-{}-{}", std::process::id(), script.len());
        let log = std::env::temp_dir().join(name);
        let end = logged(Command::new("sh").args(["-c", script]), &log, limit).unwrap();
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        (end, text)
    }

    #[test]
    fn both_streams_and_the_status_are_kept() {
        let (end, log) = shell("echo one; echo two >&2; exit 3", Duration::from_secs(60));
        assert!(matches!(end, End::Status(status) if status.code() == Some(3)));
        assert_eq!(log, "+ sh -c echo one; echo two >&2; exit 3\none\ntwo\n");
    }

    #[test]
    fn a_hang_ends_with_all_its_descendants() {
        let script = "sh -c 'echo $$; exec sleep 600' & echo $$; wait";
        let (end, log) = shell(script, Duration::from_millis(500));
        assert!(matches!(end, End::TimedOut));
        let pids: Vec<i32> = log.lines().skip(1).map(|line| line.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2);
        // The grandchild is init's to reap; until then it is a zombie, which runs no more.
        let running = |pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        thread::sleep(POLL);
        assert!(!pids.into_iter().any(running));
    }
}
