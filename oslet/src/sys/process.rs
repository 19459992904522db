//! Processes and signals: forking where that is safe, and signals as messages.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of [`fork_sibling`] this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forked {
    /// The process that forked; the number of the new one.
    Parent(u32),
    /// The new process.
    Child,
}

/// Makes a copy of this process that is its *sibling*: a child of its parent, which waits for it
/// and whose death it can ask to be told of.
///
/// # Errors
/// `EDEADLK` when this process has more than one thread: locks that the others hold would stay
/// locked in the copy. Else clone(2)'s.
pub fn fork_sibling() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: this is the only thread, so that the copy is complete and no lock of another
    // thread's is left locked in it.
    match unsafe { raw_fork_sibling() } {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(pid as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// clone(CLONE_PARENT | SIGCHLD), nothing else.
///
/// # Safety
/// When the process has, or before an earlier fork had, other threads, the child may only make
/// system calls until it execs.
pub(super) unsafe fn raw_fork_sibling() -> libc::c_long {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child has its own copy of this stack; the other arguments are
    // unused under these flags. The caller vouches for what the child does.
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) }
}

/// Closes every descriptor but the first three. For a process that has just been executed and has
/// opened none itself: nothing in it can know of the others.
///
/// # Errors
/// None are expected but `ENOSYS`, before Linux 5.9.
pub(crate) fn close_all_but_standard() -> io::Result<()> {
    // SAFETY: no memory is passed; as the caller is the first to run, no value in this process
    // owns a descriptor from 3 on.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// No signal.
    pub fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises what it is given and cannot fail on a valid pointer.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised just above.
        Self(unsafe { set.assume_init() })
    }

    /// These signals; numbers that are no signal's are left out.
    pub fn of(signals: &[i32]) -> Self {
        let mut set = Self::empty();
        for &signal in signals {
            // SAFETY: the set is initialised; a bad number only gives EINVAL.
            unsafe { libc::sigaddset(&raw mut set.0, signal) };
        }
        set
    }

    /// Every signal that can be blocked but those that a fault in the program itself raises.
    pub fn asynchronous() -> Self {
        const FAULTS: [i32; 7] = [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGSYS,
            libc::SIGABRT,
        ];
        let all: Vec<i32> = (1..=libc::SIGRTMAX()).filter(|s| !FAULTS.contains(s)).collect();
        Self::of(&all)
    }

    pub(super) fn as_ptr(&self) -> *const libc::sigset_t {
        &raw const self.0
    }
}

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: the set is initialised; a bad number only gives -1.
        let member = |&signal: &i32| unsafe { libc::sigismember(&raw const self.0, signal) } == 1;
        f.debug_set().entries((1..=libc::SIGRTMAX()).filter(member)).finish()
    }
}

/// Blocks these signals in the calling thread; returns the mask as it was.
///
/// # Errors
/// None are expected.
pub fn block(signals: &SignalSet) -> io::Result<SignalSet> {
    change_mask(libc::SIG_BLOCK, signals)
}

/// Unblocks these signals in the calling thread; those that wait are delivered before it returns.
///
/// # Errors
/// None are expected.
pub fn unblock(signals: &SignalSet) -> io::Result<SignalSet> {
    change_mask(libc::SIG_UNBLOCK, signals)
}

/// Sets the calling thread's mask; returns it as it was.
///
/// # Errors
/// None are expected.
pub fn set_mask(signals: &SignalSet) -> io::Result<SignalSet> {
    change_mask(libc::SIG_SETMASK, signals)
}

fn change_mask(how: libc::c_int, signals: &SignalSet) -> io::Result<SignalSet> {
    let mut before = SignalSet::empty();
    // SAFETY: both sets are initialised and live through the call.
    let error = unsafe { libc::pthread_sigmask(how, signals.as_ptr(), &raw mut before.0) };
    if error == 0 { Ok(before) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Who was at the other end of a Unix socket when it was connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its process; `None` for one that this process's PID namespace does not show.
    pub pid: Option<u32>,
    /// Its effective user.
    pub uid: u32,
}

/// Asks the kernel who that was (`SO_PEERCRED`).
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (fd, option) = (socket.as_fd().as_raw_fd(), libc::SO_PEERCRED);
    let place = (&raw mut peer).cast();
    // SAFETY: place and length describe the structure, in which any number is a valid value.
    let failed = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, place, &mut len) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    let pid = u32::try_from(peer.pid).ok().filter(|pid| *pid != 0);
    Ok(Peer { pid, uid: peer.uid })
}

/// Sends this process a signal.
///
/// # Errors
/// `EINVAL` for a number that is no signal's.
pub fn raise(signal: i32) -> io::Result<()> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: no memory is passed; handlers are the program's own.
    let done = unsafe { libc::kill(pid, signal) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a signal its default action, whatever this process inherited: with SIGCHLD ignored, for
/// one, nobody could wait for a child.
///
/// # Errors
/// `EINVAL` for a number that is no signal's, or one whose action cannot be changed.
pub fn default_action(signal: i32) -> io::Result<()> {
    // SAFETY: the default action runs no code of ours.
    let before = unsafe { libc::signal(signal, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A signal as it was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Whether the kernel sent it (a terminal's keys, a hang-up) and not a process.
    pub by_kernel: bool,
}

/// Blocked signals, read as messages.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Receives these signals, which the caller has blocked in every thread.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn new(signals: &SignalSet) -> io::Result<Self> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised and only read.
        let fd = unsafe { libc::signalfd(-1, signals.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that waits, if one does.
    ///
    /// # Errors
    /// None are expected.
    pub fn read(&self) -> io::Result<Option<Received>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        // SAFETY: the buffer is writable and of the length given.
        let n =
            unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size_of_val(&info)) };
        if n == size_of_val(&info) as isize {
            // SAFETY: zeroed at first and filled whole by the kernel; any bytes are valid in it.
            let info = unsafe { info.assume_init() };
            let by_kernel = info.ssi_code == libc::SI_KERNEL;
            return Ok(Some(Received { signal: info.ssi_signo as i32, by_kernel }));
        }
        match io::Error::last_os_error() {
            error if matches!(error.kind(), io::ErrorKind::WouldBlock) => Ok(None),
            error if matches!(error.kind(), io::ErrorKind::Interrupted) => Ok(None),
            error => Err(error),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        std::thread::spawn(|| {
            assert_eq!(fork_sibling().unwrap_err().raw_os_error(), Some(libc::EDEADLK));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_blocked_signal_is_read() {
        std::thread::spawn(|| {
            let set = SignalSet::of(&[libc::SIGWINCH]);
            block(&set).unwrap();
            let signals = SignalFd::new(&set).unwrap();
            assert_eq!(signals.read().unwrap(), None);
            // SAFETY: it takes nothing and cannot fail.
            let this = unsafe { libc::pthread_self() };
            // SAFETY: the thread is this one, alive, and the signal blocked in it.
            unsafe { libc::pthread_kill(this, libc::SIGWINCH) };
            let received = Received { signal: libc::SIGWINCH, by_kernel: false };
            assert_eq!(signals.read().unwrap(), Some(received));
            assert_eq!(signals.read().unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
