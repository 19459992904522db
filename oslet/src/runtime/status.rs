//! Answers to commands, and asking them.

use std::path::Path;

use super::*;
use crate::control_socket::Connection;
use crate::wire::{PROTOCOL, Status};

/// Asks the runtime whose directory that is.
///
/// # Errors
/// [`Error::Gone`] when none listens there, [`Error::Timeout`] when it does not answer.
pub fn ask(directory: &Path, details: bool, limit: Duration) -> Result<Status> {
    let mut connection = Connection::connect(directory)?;
    connection.send(&Message::Ask { protocol: PROTOCOL, details }, Vec::new())?;
    let what = format!("status of {}", directory.display());
    match connection.wait(&what, limit)?.message {
        Message::Status(status) => Ok(status),
        Message::Refused { why } => Err(Error::Invalid(format!("{what}: {why}"))),
        _ => Err(Error::Corrupt { peer: directory.display().to_string(), what }),
    }
}

/// Collects the answer on a thread of its own: services may take their time.
pub(super) fn answer(shared: &Arc<Shared>, token: u64, details: bool) {
    let worker = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("status".into());
    let spawned = thread.spawn(move || {
        let message = match status(&worker, details) {
            Ok(status) => Message::Status(status),
            Err(error) => Message::Refused { why: error.to_string() },
        };
        worker.inbox.post(Command::Send(token, message));
    });
    if let Err(error) = spawned {
        let why = format!("start a thread: {error}");
        shared.inbox.post(Command::Send(token, Message::Refused { why }));
    }
}

fn status(shared: &Shared, details: bool) -> Result<Status> {
    let control = shared.region.control();
    let usage = shared.arena.usage();
    let services = shared.services.read().clone();
    let (mut volumes, mut devices, mut lines) = (0, 0, Vec::new());
    for service in &services {
        let (v, d) = service.serves();
        volumes += v;
        devices += d;
        if details {
            lines.extend(service.describe());
        }
    }
    if details {
        lines.extend(own_details(shared));
    }
    let mut members = Vec::new();
    for oslet in control.oslet_ids() {
        let member = control.member(oslet)?;
        members.push((member.epoch.0, member.state as u8));
    }
    Ok(Status {
        who: shared.who(),
        process: shared.process.into(),
        frames: [usage.total as u64, usage.free as u64, usage.limbo as u64],
        clients: shared.resources.lock().clients.len() as u32,
        volumes,
        devices,
        members,
        details: lines,
    })
}

fn own_details(shared: &Shared) -> Vec<Detail> {
    let resources = shared.resources.lock().clone();
    let line = |name: &str, value: String| Detail { name: name.to_owned(), value };
    let own = shared.region.own();
    let mut lines = vec![
        line("segment", format!("{} bytes, {} frames", own.len(), own.frames())),
        line("huge pages", own.huge().to_string()),
    ];
    for number in &resources.fuse {
        lines.push(line("FUSE connection", number.to_string()));
    }
    for (file, _) in &resources.files {
        lines.push(line("I/O file", file.path.display().to_string()));
    }
    for group in &resources.groups {
        lines.push(line("control group", group.path.display().to_string()));
    }
    lines
}
