//! Making new namespaces and entering those of another process.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// Moves this process into new mount, UTS and IPC namespaces and its *next* children into a new
/// PID namespace; with `user`, all under a new user namespace.
///
/// # Errors
/// `EPERM` where the kernel or its configuration does not allow it, `EINVAL` for `user` in a
/// process with several threads, `ENOSPC` when a limit on namespaces is reached.
pub fn unshare(user: bool) -> io::Result<()> {
    let mut flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWPID;
    if user {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: CLONE_FILES is not among the flags, so that no descriptor another thread relies on
    // changes its meaning.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Enters the mount, UTS, IPC and PID (for children) namespaces of that process at once; with
/// `user`, its user namespace too.
///
/// # Errors
/// `ESRCH` when it has ended, `EPERM` when its namespaces are not ours to enter.
pub fn enter(process: BorrowedFd<'_>, user: bool) -> io::Result<()> {
    let mut flags = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID;
    if user {
        flags |= ThreadNameSpaceType::USER;
    }
    Ok(rustix::thread::move_into_thread_name_spaces(process, flags)?)
}
