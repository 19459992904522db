//! `oslet run`, and what `oslet shell` shares with it: a program inside an OSlet, as if it were a
//! child of the shell's.
//!
//! The program inherits the descriptors and the session, so that the terminal treats it as it
//! treats us: its keys reach the program from the kernel, not by way of us. Where the terminal is
//! ours alone the program leads a process group of its own there, else it is in ours. What other
//! processes send us is passed on. When the program stops, so do we; what the shell does to
//! continue us continues it. When it ends while we are stopped, we go on and end too.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use oslet::container::enter::{Command, Directory, Entered, StartError, Target};
use oslet::state;
use oslet::sys::process::{self, Received, SignalFd, SignalSet};
use oslet::sys::tty::Terminal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::args::Global;
use crate::user;

use super::awake::Awake;

/// Run a command inside an OSlet.
///
/// Standard input, output and error, the terminal, signals and the exit status are the command's
/// own. Exit status: that of the command; 128+N when signal N killed it; 126 when it cannot be
/// executed, 127 when it is not found; 137 when the OSlet died; 2 when the OSlet could not be
/// entered.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  oslet run o0 uname -n
  oslet run -e MODE=fast -w /global o1 -- make -j8
  tar c . | oslet run o1 tar x -C /ltmp")]
pub(crate) struct RunArgs {
    /// Set a variable, or pass NAME's value on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Start there, and fail if it is not there inside (default: here, else /)
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Run as that user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// The OSlet
    pub(crate) name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// `oslet run`.
///
/// # Errors
/// When nothing could be started; the caller's exit status is then 2.
pub(crate) fn run(args: RunArgs, global: &Global) -> Result<ExitCode> {
    let target = target(global, &args.name)?;
    let Some((program, arguments)) = args.command.split_first() else { bail!("no command") };
    let mut command = command(&target, &args.env, args.cwd.as_deref(), args.user.as_deref())?;
    command.program = program.clone();
    command.arguments = arguments.to_vec();
    supervise(&target, command, &[])
}

/// The OSlet of that name, to be entered.
pub(crate) fn target(global: &Global, name: &str) -> Result<Target> {
    let directory = global.running();
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match state::find(&directory, name).and_then(Target::open) {
            Ok(target) => return Ok(target),
            // Its files are there and it is not: it may be on its way back.
            Err(_) if Instant::now() < deadline && directory.join(name).is_dir() => {
                std::thread::sleep(START_POLL);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// How long an OSlet that has ended is waited for, in case it is being started again.
const START_LIMIT: Duration = Duration::from_secs(3);
/// How often it is looked for.
const START_POLL: Duration = Duration::from_millis(20);

/// All but the program.
pub(crate) fn command(
    target: &Target,
    env: &[OsString],
    cwd: Option<&Path>,
    user: Option<&str>,
) -> Result<Command> {
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let state = target.state();
    set(&mut environment, "OSLET".into(), (&state.oslet).into());
    set(&mut environment, "OSLET_CLUSTER".into(), (&state.cluster).into());
    let user = user.map(user::find).transpose()?;
    if let Some(user) = &user {
        let names = [("USER", &user.name), ("LOGNAME", &user.name), ("HOME", &user.home)];
        for (name, value) in names {
            set(&mut environment, name.into(), value.into());
        }
    }
    for given in env {
        let bytes = given.as_bytes();
        match bytes.iter().position(|&byte| byte == b'=') {
            Some(0) => bail!("--env {given:?}: no name before the ="),
            Some(at) => {
                let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
                set(&mut environment, part(&bytes[..at]), part(&bytes[at + 1..]));
            }
            // A variable that is not set here is not set there.
            None => environment.extend(
                std::env::var_os(given)
                    .filter(|_| !environment.iter().any(|(name, _)| name == given))
                    .map(|value| (given.clone(), value)),
            ),
        }
    }
    let directory = match cwd {
        Some(path) => Directory::Required(std::path::absolute(path)?),
        // A directory that has been removed has no name; then it is as if it were not there inside.
        None => Directory::Preferred(std::env::current_dir().unwrap_or_else(|_| "/".into())),
    };
    Ok(Command {
        program: OsString::new(),
        zeroth: None,
        arguments: Vec::new(),
        environment,
        directory,
        user: user.map(|user| user.ids),
        mask: SignalSet::empty(),
        die_with_caller: true,
        terminal: None,
    })
}

/// What the command's environment says, if that is not empty.
pub(crate) fn value_of(command: &Command, name: &str) -> Option<OsString> {
    let found = command.environment.iter().find(|(variable, _)| variable == name);
    found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
}

/// Sets a variable, whatever it was.
pub(crate) fn set(environment: &mut Vec<(OsString, OsString)>, name: OsString, value: OsString) {
    environment.retain(|(other, _)| *other != name);
    environment.push((name, value));
}

/// Starts the command - with the fallbacks in its place while it is not found; all as login shells
/// if there are any - and stays until it has ended.
pub(crate) fn supervise(
    target: &Target,
    mut command: Command,
    fallbacks: &[&str],
) -> Result<ExitCode> {
    process::default_action(Signal::CHILD.as_raw()).context("SIGCHLD")?;
    // From here on signals wait until the command is there to get them.
    command.mask = process::block(&SignalSet::asynchronous()).context("signals")?;
    let signals = SignalFd::new(&SignalSet::asynchronous()).context("signals")?;
    let terminal = Terminal::ours();
    command.terminal = terminal.as_ref().and_then(Terminal::to_lead);
    let mut fallbacks = fallbacks.iter();
    if fallbacks.len() > 0 {
        command.zeroth = Some(login_name(&command.program));
    }
    let entered = loop {
        match target.start(&command) {
            Err(StartError::NotFound(..)) if fallbacks.len() > 0 => {
                command.program = fallbacks.next().map(OsString::from).unwrap_or_default();
                command.zeroth = Some(login_name(&command.program));
            }
            Err(StartError::Other(error)) => return Err(error.into()),
            Err(error) => {
                eprintln!("oslet: {error}");
                let code = if matches!(error, StartError::NotFound(..)) { 127 } else { 126 };
                return Ok(ExitCode::from(code));
            }
            Ok(entered) => break entered,
        }
    };
    for (group, error) in &entered.not_joined {
        let path = target.state().cgroups.get(*group).map(|group| group.path.display());
        let path = path.map_or_else(String::new, |path| path.to_string());
        eprintln!("oslet: warning: not in control group {path}: {error}: not bound by it");
    }
    let group = command.terminal.as_ref().and(i32::try_from(entered.pid).ok());
    let status = Supervisor { target, entered, group, signals, terminal }.follow()?;
    Ok(ExitCode::from(match status {
        Status::Exited(code) => code as u8,
        Status::Killed(signal) => {
            // Its processes are killed just before init has ended; otherwise it was only them.
            if signal == Signal::KILL.as_raw() && died(target) {
                eprintln!("oslet: OSlet {} died; the command was killed", target.state().oslet);
            }
            128 + signal as u8
        }
    }))
}

/// A moment later, as the command may have been killed first.
fn died(target: &Target) -> bool {
    (0..20).any(|_| target.is_dying() || target.init().wait(Duration::from_millis(5)))
}

/// As login(1) names a shell, so that it reads its profile.
fn login_name(program: &OsStr) -> OsString {
    let mut name = OsString::from("-");
    name.push(Path::new(program).file_name().unwrap_or(program));
    name
}

enum Status {
    Exited(i32),
    Killed(i32),
}

struct Supervisor<'a> {
    target: &'a Target,
    entered: Entered,
    /// The process group that the command leads, if it does.
    group: Option<i32>,
    signals: SignalFd,
    terminal: Option<Terminal>,
}

impl Supervisor<'_> {
    fn follow(&self) -> Result<Status> {
        let status = loop {
            if let Some(status) = self.look()? {
                break status;
            }
            let mut events = [
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.entered.process, PollFlags::IN),
            ];
            match poll(&mut events, None) {
                Err(Errno::INTR) => continue,
                other => other.context("poll")?,
            };
            while let Some(received) = self.signals.read().context("signals")? {
                self.pass_on(received)?;
            }
        };
        if let Some(terminal) = &self.terminal {
            // A command that was killed could not put the modes back itself. That the terminal is
            // gone is no failure of ours.
            let _ = terminal.take_back(self.group, matches!(status, Status::Killed(_)));
        }
        Ok(status)
    }

    /// What has become of the command, if it has ended.
    fn look(&self) -> Result<Option<Status>> {
        loop {
            let id = WaitId::PidFd(self.entered.process.as_fd());
            let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
            let Some(status) = waitid(id, options).context("wait for the command")? else {
                return Ok(None);
            };
            if let Some(code) = status.exit_status() {
                return Ok(Some(Status::Exited(code)));
            }
            if let Some(signal) = status.terminating_signal() {
                return Ok(Some(Status::Killed(signal)));
            }
            if let Some(signal) = status.stopping_signal() {
                self.stop_too(signal)?;
            }
        }
    }

    /// Stops this process as the command was stopped, so that the shell sees its job stop; goes on,
    /// and lets the command go on, when the shell says so.
    fn stop_too(&self, signal: i32) -> Result<()> {
        let wants_terminal = [Signal::TTIN, Signal::TTOU].iter().any(|s| s.as_raw() == signal);
        let has = self.terminal.as_ref().is_some_and(|t| t.other_foreground().is_none());
        if self.group.is_some() && wants_terminal && has {
            return self.go_on(self.group);
        }
        // Another's may be there by now: that of the shell that saw others of the job stop first.
        let foreground = self.terminal.as_ref().and_then(Terminal::other_foreground);
        let foreground = foreground.filter(|&leader| self.target.holds(leader));
        // What waits would stop us a second time.
        while let Some(received) = self.signals.read().context("signals")? {
            self.pass_on(received)?;
        }
        let awake = Awake::watch(self.entered.pid)?;
        process::raise(signal).context("stop")?;
        let set = SignalSet::of(&[signal]);
        process::unblock(&set).context("stop")?;
        process::block(&set).context("stop")?;
        drop(awake);
        // The terminal is the shell's then, not the command's.
        if self.entered.process.is_dead() { Ok(()) } else { self.go_on(foreground) }
    }

    /// Continues the command after the shell has continued us. The shell could only give the
    /// terminal to our group; the other gets it from us, if we have it.
    fn go_on(&self, foreground: Option<i32>) -> Result<()> {
        if let (Some(terminal), Some(group)) = (&self.terminal, foreground) {
            // Without it the group stops again at its next read, and we with it.
            let _ = terminal.yield_to(group);
        }
        match self.group.and_then(Pid::from_raw) {
            Some(group) => to_group(group, Signal::CONT),
            None => self.send(Signal::CONT.as_raw()),
        }
    }

    fn pass_on(&self, received: Received) -> Result<()> {
        // The terminal sends these to the whole group, of which the command is or chose not to be.
        let keys =
            [Signal::INT, Signal::QUIT, Signal::TSTP, Signal::TTIN, Signal::TTOU, Signal::WINCH];
        let is = |signal: Signal| received.signal == signal.as_raw();
        if is(Signal::CHILD) {
            return Ok(());
        }
        if let Some(key) = keys.into_iter().find(|&key| received.by_kernel && is(key)) {
            // Where it has its own group this is for us only if the shell has put us in the
            // foreground without a word (as for a job that was running in the background).
            let Some(group) = self.group.and_then(Pid::from_raw) else { return Ok(()) };
            to_group(group, key)?;
            return self.go_on(self.group);
        }
        if is(Signal::CONT) {
            return self.go_on(self.group);
        }
        self.send(received.signal)
    }

    fn send(&self, signal: i32) -> Result<()> {
        let gone = [Errno::SRCH, Errno::PERM].map(|errno| Some(errno.raw_os_error()));
        match self.entered.process.send(signal) {
            // It has ended, or become another user: a direct child would not hear us either.
            Err(error) if gone.contains(&error.raw_os_error()) => Ok(()),
            other => other.with_context(|| format!("signal {signal}: pass on")),
        }
    }
}

/// Signals the whole group that the command leads. Its leader is not reaped yet, so that the number
/// is its own.
fn to_group(group: Pid, signal: Signal) -> Result<()> {
    match kill_process_group(group, signal) {
        Err(Errno::SRCH | Errno::PERM) => Ok(()),
        other => other.with_context(|| format!("signal {}: pass on", signal.as_raw())),
    }
}
