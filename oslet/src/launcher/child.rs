//! One runtime as its launcher sees it.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::control_socket::Connection;
use crate::runtime::Spec;
use crate::sys::pidfd::PidFd;
use crate::wire::Message;
use crate::{Error, Result};

/// The first wait before a runtime is started again; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest: well below the time for which readers wait for an owner.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Having served for so long, it starts with the first wait again.
const STEADY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Starting,
    Serving(Instant),
    /// Until it is started again.
    Resting(Instant),
    Over,
}

#[derive(Debug, Default)]
pub(super) struct Child {
    pub(super) state: State,
    process: Option<(std::process::Child, PidFd)>,
    connection: Option<Connection>,
    failures: u32,
    /// What it said before it ended.
    last_words: Option<String>,
}

/// How one ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) clean: bool,
    pub(super) how: String,
}

impl Child {
    pub(super) fn spawn(
        &mut self,
        program: &(PathBuf, Vec<OsString>),
        spec: &Spec,
        given: Vec<OwnedFd>,
    ) -> Result<()> {
        let name = &spec.names[spec.oslet];
        let directory = spec.directory.join(name);
        std::fs::create_dir_all(&directory).map_err(Error::file(&directory, "create"))?;
        let path = directory.join("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(Error::file(&path, "open"))?;
        let output = log.try_clone().map_err(Error::file(&path, "dup"))?;
        let text = serde_json::to_string(spec)
            .map_err(|error| Error::Invalid(format!("OSlet {name}: specification: {error}")))?;
        let (mut connection, theirs) = Connection::pair()?;
        let mut child = Command::new(&program.0)
            .args(&program.1)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(log))
            // The terminal's keys are for the launcher.
            .process_group(0)
            .spawn()
            .map_err(Error::io(format!("OSlet {name}: run {}", program.0.display())))?;
        let opened = PidFd::open(child.id()).map_err(Error::io("pidfd_open"));
        let said = connection.send(&Message::Start { spec: text }, given);
        match opened.and_then(|pidfd| said.map(|()| pidfd)) {
            Ok(pidfd) => {
                let last_words = None;
                let (process, connection) = (Some((child, pidfd)), Some(connection));
                let failures = self.failures;
                *self = Self { state: State::Starting, process, connection, failures, last_words };
                Ok(())
            }
            Err(error) => {
                // It cannot do anything without its start message.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// When it is to be started again.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Resting(until) => Some(until),
            _ => None,
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let process = self.process.iter().map(|(_, pidfd)| pidfd.as_fd());
        process.chain(self.connection.iter().map(|connection| connection.as_fd()))
    }

    /// What it says: its epoch and notes when it has begun to serve.
    pub(super) fn hear(&mut self) -> Result<Option<(u32, Vec<String>)>> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        match connection.receive() {
            Ok(None) => Ok(None),
            Ok(Some(received)) => match received.message {
                Message::Ready { epoch, notes } => {
                    self.state = State::Serving(Instant::now());
                    Ok(Some((epoch, notes)))
                }
                Message::Refused { why } => {
                    self.last_words = Some(why);
                    Ok(None)
                }
                _ => Ok(None),
            },
            Err(_) => {
                self.connection = None;
                Ok(None)
            }
        }
    }

    /// How it ended, once.
    pub(super) fn ended(&mut self) -> Result<Option<End>> {
        let Some((child, _)) = &mut self.process else { return Ok(None) };
        let status = child.try_wait().map_err(Error::io("wait for a runtime"))?;
        let Some(status) = status else { return Ok(None) };
        // It may have said something right before.
        while self.connection.is_some() && self.last_words.is_none() {
            if self.hear()?.is_none() && self.last_words.is_none() {
                break;
            }
        }
        self.process = None;
        self.connection = None;
        let how = self.last_words.take().unwrap_or_else(|| describe(status));
        Ok(Some(End { clean: status.success(), how }))
    }

    /// After its end: rests before it is started `again`, or is over. Says for how long.
    pub(super) fn rest(&mut self, again: bool) -> Option<Duration> {
        if !again {
            self.state = State::Over;
            return None;
        }
        if matches!(self.state, State::Serving(since) if since.elapsed() >= STEADY) {
            self.failures = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Resting(Instant::now() + wait);
        Some(wait)
    }

    /// Asks it to leave; one that rests is over.
    pub(super) fn stop(&mut self) {
        match (&mut self.process, &mut self.connection) {
            (None, _) => self.state = State::Over,
            (Some((_, pidfd)), connection) => {
                let stop = Message::Stop { cluster: true };
                let serving = matches!(self.state, State::Serving(_));
                let said = connection.as_mut().filter(|_| serving).map(|c| c.send(&stop, vec![]));
                if !matches!(said, Some(Ok(()))) {
                    // It fails only when it has ended: then there is nothing to ask.
                    let _ = pidfd.send(libc::SIGTERM);
                }
            }
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some((_, pidfd)) = &self.process {
            // It fails only when it has ended.
            let _ = pidfd.send(libc::SIGKILL);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(crate::runtime::FENCED), _) => "fenced by the others".into(),
        (code, _) => format!("ended with status {}; see its log", code.unwrap_or(-1)),
    }
}
