//! Processes by descriptor: a pidfd names one process for as long as it is held, whatever becomes
//! of its number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// One process, alive or dead.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has that number now. The caller makes sure that it is the one it means
    /// (its own unreaped child, or by start time after the open).
    ///
    /// # Errors
    /// `ESRCH` when there is none; `EINVAL` for a number that can be no process's.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(Errno::INVAL))?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(opened) => Ok(Self(opened)),
            // The number of a thread, or of a process group or session that has outlived its
            // leader: EINVAL says that, and ENOENT since Linux 6.16.
            Err(Errno::INVAL | Errno::NOENT) => Err(Errno::SRCH.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a signal by number (real-time ones too; 0 only asks).
    ///
    /// # Errors
    /// `ESRCH` when the process has been reaped, `EPERM` when it is not ours to signal.
    pub fn send(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the descriptor is open, a null siginfo is allowed, and no memory is passed.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether the process has ended (as a zombie too).
    pub fn is_dead(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until the process has ended, at most that long; says whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let end = std::time::Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(n) if n > 0 => return true,
                Ok(_) if left.is_zero() => return false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// The descriptor itself, to be passed to a peer.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl From<OwnedFd> for PidFd {
    /// A pidfd that was received; anything else in its place only gives errors later.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
