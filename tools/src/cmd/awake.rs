//! What continues an `oslet run` that is stopped as its command is, when the command ends
//! meanwhile: only `oslet run` can reap it, and until then the OSlet that it was in cannot end.

use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use oslet::sys::pidfd::PidFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;

/// The argument by which the program knows that it is to do this.
pub(crate) const COMMAND: &str = "__awake";

/// Between two signals to one that may not have stopped yet.
const AGAIN: Duration = Duration::from_millis(50);

/// The process that watches; dropping it ends it.
pub(super) struct Awake(Child);

impl Awake {
    /// Watches that command, a child of this process, on behalf of this process.
    pub(super) fn watch(command: u32) -> Result<Self> {
        let mut watcher = Command::new("/proc/self/exe");
        watcher.args([COMMAND, &std::process::id().to_string(), &command.to_string()]);
        watcher.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not of the job, or it would be stopped with it.
        watcher.process_group(0);
        Ok(Self(watcher.spawn().context("watch a command that is stopped")?))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        // It only fails for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `oslet __awake RUN COMMAND`: continues the process RUN when COMMAND has ended.
pub(crate) fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(2).collect();
    match watch(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn watch(words: &[String]) -> Result<()> {
    let [run, command] = words else { bail!("{COMMAND} is for oslet run alone") };
    let open = |pid: &String| -> Result<PidFd> { Ok(PidFd::open(pid.parse()?)?) };
    let (run, command) = (open(run)?, open(command)?);
    loop {
        let (of_run, of_command) = (run.as_fd(), command.as_fd());
        let mut ends =
            [PollFd::new(&of_run, PollFlags::IN), PollFd::new(&of_command, PollFlags::IN)];
        match poll(&mut ends, None) {
            Err(Errno::INTR) => continue,
            other => other.context("poll")?,
        };
        if !ends[0].revents().is_empty() {
            return Ok(());
        }
        // It ends this process as soon as it goes on.
        run.send(Signal::CONT.as_raw())?;
        std::thread::sleep(AGAIN);
    }
}
