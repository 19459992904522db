//! Stopping a cluster from outside, with or without its launcher.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::leftovers;
use crate::control_socket::Connection;
use crate::member::record::Record;
use crate::procfs::ProcessId;
use crate::wire::Message;
use crate::{Error, Result};

/// The file that names the launcher.
pub(super) const LAUNCHER: &str = "launcher.json";

/// What that file says.
#[derive(Serialize, Deserialize)]
pub(super) struct Launcher {
    /// Who it is.
    #[serde(flatten)]
    pub(super) process: ProcessId,
    /// How long runtimes may take to leave before they are killed.
    pub(super) stop_limit_ms: u64,
}

/// What there was to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// Nothing ran; nothing was left either.
    Nothing,
    /// Nothing ran; what a killed cluster had left is gone now.
    Leftovers,
    /// The cluster ran and has stopped.
    Cluster,
}

/// Stops the cluster of that name whose runtime files are there. Nothing of it remains.
///
/// # Errors
/// When something does not end.
pub fn stop(directory: &Path, cluster: &str) -> Result<Stopped> {
    if !directory.exists() {
        return Ok(Stopped::Nothing);
    }
    let lock = super::try_lock(directory)?;
    let running = lock.is_none();
    if running {
        drop(lock);
        let limit = read(directory).map_or(0, |launcher| launcher.stop_limit_ms);
        let limit = super::STOP_LIMIT.max(Duration::from_millis(limit));
        if let Some(launcher) = launcher(directory)? {
            ask_launcher(directory, launcher, limit)?;
        } else {
            ask_runtimes(directory, limit)?;
        }
        if !directory.exists() {
            return Ok(Stopped::Cluster);
        }
    }
    // Runtimes that did not end are killed here; then the lock comes free.
    let had = !leftovers::oslets(directory)?.is_empty();
    leftovers::remove(directory, cluster)?;
    leftovers::remove_directory(directory)?;
    Ok(match (running, had) {
        (true, _) => Stopped::Cluster,
        (false, true) => Stopped::Leftovers,
        (false, false) => Stopped::Nothing,
    })
}

/// The launcher of the cluster whose runtime files are there, if it lives.
///
/// # Errors
/// When that process cannot be looked at.
pub fn launcher(directory: &Path) -> Result<Option<ProcessId>> {
    let Some(Launcher { process: id, .. }) = read(directory) else { return Ok(None) };
    let process = id.open().map_err(Error::io(format!("launcher {}", id.pid)))?;
    Ok(process.filter(|process| !process.is_dead()).map(|_| id))
}

fn read(directory: &Path) -> Option<Launcher> {
    serde_json::from_slice(&fs::read(directory.join(LAUNCHER)).ok()?).ok()
}

/// For a message: which process runs the cluster, or what runs without it.
pub(super) fn running(directory: &Path) -> String {
    if let Ok(Some(id)) = launcher(directory) {
        return format!(" (launched by process {})", id.pid);
    }
    let runs = |oslet: &String| {
        let record = Record::read(&directory.join(oslet)).ok().flatten();
        let process = record.and_then(|record| record.process.open().ok().flatten());
        process.is_some_and(|process| !process.is_dead())
    };
    let oslets = leftovers::oslets(directory).unwrap_or_default();
    let running: Vec<String> = oslets.into_iter().filter(runs).collect();
    match running.is_empty() {
        true => String::new(),
        false => format!(" ({}; their launcher has ended)", running.join(", ")),
    }
}

fn ask_launcher(directory: &Path, id: ProcessId, limit: Duration) -> Result<()> {
    let what = || format!("{}: launcher {}", directory.display(), id.pid);
    let Some(process) = id.open().map_err(Error::io(what()))? else { return Ok(()) };
    match process.send(libc::SIGTERM) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            return Err(Error::io(what())(error));
        }
        _ => {}
    }
    // It kills what does not leave in time, and then cleans up.
    let limit = limit + super::STOP_LIMIT;
    match process.wait(limit) {
        true => Ok(()),
        false => Err(Error::Timeout { what: what(), ms: limit.as_millis() as u64 }),
    }
}

fn ask_runtimes(directory: &Path, limit: Duration) -> Result<()> {
    let mut processes = Vec::new();
    for oslet in leftovers::oslets(directory)? {
        let path = directory.join(&oslet);
        if let Some(record) = Record::read(&path)? {
            let process = record.process.open().map_err(Error::io(format!("OSlet {oslet}")))?;
            processes.extend(process);
        }
        match Connection::connect(&path) {
            Ok(mut connection) => {
                // One that does not listen any more is waited for, and killed, all the same.
                let _ = connection.send(&Message::Stop { cluster: true }, Vec::new());
            }
            Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let end = Instant::now() + limit;
    for process in processes {
        process.wait(end.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
