//! The controlling terminal and its foreground process group.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::process::{self, SignalSet};

/// The terminal of this session, its modes and who had it when this was opened.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    modes: rustix::termios::Termios,
}

impl Terminal {
    /// This process's controlling terminal, if it has one and its group is in the foreground there
    /// (otherwise it is not ours to restore).
    pub fn ours() -> Option<Self> {
        let file = File::options().read(true).write(true).open("/dev/tty").ok()?;
        if foreground(&file).ok()? != own_group() {
            return None;
        }
        let modes = rustix::termios::tcgetattr(&file).ok()?;
        Some(Self { file, modes })
    }

    /// The terminal's descriptor, for a program that is to have a group of its own there; `None`
    /// when the terminal may be in use by others of our group too: when it is not ours alone (as
    /// that of a script is not), or a standard stream leads elsewhere (as in a pipeline).
    pub fn to_lead(&self) -> Option<OwnedFd> {
        use rustix::stdio::{stderr, stdin, stdout};
        let alone = own_group() == rustix::process::getpid().as_raw_nonzero().get();
        let streams = [stdin(), stdout(), stderr()].into_iter().all(rustix::termios::isatty);
        if alone && streams { self.file.try_clone().ok().map(Into::into) } else { None }
    }

    /// The group in the foreground, when it is not ours.
    pub fn other_foreground(&self) -> Option<i32> {
        foreground(&self.file).ok().filter(|&group| group != own_group())
    }

    /// Puts that group in the foreground if ours is there now.
    pub fn yield_to(&self, group: i32) -> io::Result<()> {
        if foreground(&self.file)? == own_group() { self.put(group) } else { Ok(()) }
    }

    /// Puts our own group back in the foreground if no process is left in the group there, or it is
    /// `lent`: a job that is in the background by now must not take the terminal from whoever has
    /// it. If ours is there then, and `modes`, also restores the modes as they were at first.
    pub fn take_back(&self, lent: Option<i32>, modes: bool) -> io::Result<()> {
        let group = foreground(&self.file)?;
        if group != own_group() {
            let deserted = rustix::process::Pid::from_raw(group).is_some_and(|group| {
                rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH)
            });
            if !deserted && lent != Some(group) {
                return Ok(());
            }
            self.put(own_group())?;
        }
        if modes {
            let now = rustix::termios::OptionalActions::Now;
            rustix::termios::tcsetattr(&self.file, now, &self.modes)?;
        }
        Ok(())
    }

    /// With SIGTTOU blocked, or a background process would be stopped by its own call.
    fn put(&self, group: i32) -> io::Result<()> {
        let before = process::block(&SignalSet::of(&[libc::SIGTTOU]))?;
        // SAFETY: the descriptor is an open file and no memory is passed.
        let done = unsafe { libc::tcsetpgrp(self.file.as_raw_fd(), group) };
        let result = if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        process::set_mask(&before)?;
        result
    }
}

/// The process group in the foreground of that terminal; 0 when it is not of this PID namespace.
fn foreground(terminal: impl AsFd) -> io::Result<i32> {
    // SAFETY: the descriptor is open for the length of the call and no memory is passed.
    let group = unsafe { libc::tcgetpgrp(terminal.as_fd().as_raw_fd()) };
    if group < 0 { Err(io::Error::last_os_error()) } else { Ok(group) }
}

/// This process's group; 0 when its leader is not of this PID namespace (which `rustix` does not
/// expect).
fn own_group() -> i32 {
    // SAFETY: getpgrp takes nothing and cannot fail.
    unsafe { libc::getpgrp() }
}
