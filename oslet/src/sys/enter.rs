//! Starting a program inside another process's namespaces.
//!
//! A PID namespace is entered only by children, so two processes are needed: the first joins the
//! control groups and the namespaces, and makes the second as its sibling (CLONE_PARENT), which is
//! thereby a direct child of the caller: it can be waited for, stopped and continued as any other.
//! Both make nothing but system calls, so that the caller may have threads.

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{Gid, Uid};

use super::numa::{self, Policy};
use super::process::{self, SignalSet};
use super::{namespace, pidfd::PidFd};

/// What is to be started, and where.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The process whose namespaces are entered.
    pub process: BorrowedFd<'a>,
    /// Whether its user namespace is another than ours.
    pub user_namespace: bool,
    /// Open `cgroup.procs` files of the groups to join; failing to is reported, not fatal.
    pub groups: &'a [OwnedFd],
    /// The CPUs to run on.
    pub cpus: &'a [u32],
    /// Where memory comes from.
    pub policy: (Policy, &'a [u32]),
    /// Working directories, of which the first that can be entered is taken.
    pub directories: &'a [CString],
    /// Who to become.
    pub user: Option<&'a User>,
    /// Where the program may be: the first that can be executed is taken, as execvp(3) does.
    pub programs: &'a [CString],
    /// The arguments, the zeroth included.
    pub arguments: &'a [CString],
    /// The environment.
    pub environment: &'a [CString],
    /// The signal mask of the program.
    pub mask: SignalSet,
    /// Whether the program is killed when the calling thread ends.
    pub die_with_caller: bool,
    /// If given, the program leads a process group of its own, in the foreground of this terminal.
    pub terminal: Option<BorrowedFd<'a>>,
}

/// A user to become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// All groups; `None` keeps those of the caller.
    pub groups: Option<Vec<u32>>,
}

/// A program that was started.
#[derive(Debug)]
pub struct Entered {
    /// The process, a child of the caller's.
    pub process: PidFd,
    /// Its number.
    pub pid: u32,
    /// Which of [`Entry::groups`] it could not join, and why.
    pub not_joined: Vec<(usize, io::Error)>,
}

/// What failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Making a process.
    Fork,
    /// Entering the namespaces.
    Namespaces,
    /// Setting the CPUs.
    Affinity,
    /// Setting the memory policy.
    Policy,
    /// Entering the working directory.
    Directory,
    /// Becoming the user.
    User,
    /// Executing the program.
    Exec,
}

const STEPS: [Step; 7] = [
    Step::Fork,
    Step::Namespaces,
    Step::Affinity,
    Step::Policy,
    Step::Directory,
    Step::User,
    Step::Exec,
];

type Failure = (Step, io::Error);

/// Starts it.
///
/// # Errors
/// The step that failed, with the kernel's answer; nothing is left running then.
pub fn start(entry: &Entry<'_>) -> Result<Entered, Failure> {
    let fork = |error: rustix::io::Errno| (Step::Fork, io::Error::from(error));
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(fork)?;
    let vectors = Vectors::new(entry);
    let cpus = numa::mask(entry.cpus);
    let nodes = numa::mask(entry.policy.1);
    let ready = Ready { entry, vectors, cpus, nodes, reader: reader.as_raw_fd(), writer: &writer };
    // SAFETY: the child calls `first`, which makes only system calls and never returns.
    let helper = match unsafe { libc::fork() } {
        0 => first(&ready),
        pid if pid > 0 => pid,
        _ => return Err((Step::Fork, io::Error::last_os_error())),
    };
    drop(ready);
    drop(writer);
    let result = gather(reader.into());
    reap(helper);
    result
}

/// Reads what the two report, until both ends of the pipe there are closed: by exit or by exec.
fn gather(mut reports: File) -> Result<Entered, Failure> {
    let mut started = None;
    let mut not_joined = Vec::new();
    let mut failure = None;
    let mut bytes = [0; size_of::<Report>()];
    while reports.read_exact(&mut bytes).is_ok() {
        let [kind, index, value] = words(bytes);
        let error = || io::Error::from_raw_os_error(value);
        match (kind, usize::try_from(index).unwrap_or_default()) {
            (STARTED, _) => started = u32::try_from(value).ok(),
            (NOT_JOINED, group) => not_joined.push((group, error())),
            (_, step) => failure = Some((STEPS.get(step).copied().unwrap_or(Step::Fork), error())),
        }
    }
    match (started, failure) {
        (pid, Some(failure)) => {
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                reap(pid);
            }
            Err(failure)
        }
        (Some(pid), None) => {
            let process = PidFd::open(pid).map_err(|error| (Step::Fork, error))?;
            Ok(Entered { process, pid, not_joined })
        }
        (None, None) => Err((Step::Fork, io::Error::from_raw_os_error(libc::ECHILD))),
    }
}

fn reap(pid: i32) {
    let interrupted =
        |pid| matches!(waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR));
    while Pid::from_raw(pid).is_some_and(interrupted) {}
}

/// Kind, index (a group or a step), value (an errno or a process's number).
type Report = [i32; 3];
const STARTED: i32 = 1;
const NOT_JOINED: i32 = 2;
const FAILED: i32 = 3;

fn words(bytes: [u8; size_of::<Report>()]) -> Report {
    let word = |i: usize| i32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    [word(0), word(4), word(8)]
}

/// All that the children need, allocated beforehand.
struct Ready<'a> {
    entry: &'a Entry<'a>,
    vectors: Vectors,
    cpus: Vec<libc::c_ulong>,
    nodes: Vec<libc::c_ulong>,
    reader: RawFd,
    writer: &'a OwnedFd,
}

/// Null-terminated arrays of pointers into the entry's strings.
struct Vectors {
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// For each program, how a shell is to run it if it is a script without an interpreter line.
    scripts: Vec<Vec<*const c_char>>,
}

const SHELL: &CStr = c"/bin/sh";

impl Vectors {
    fn new(entry: &Entry<'_>) -> Self {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
        };
        let arguments = pointers(entry.arguments);
        let script = |program: &CString| -> Vec<*const c_char> {
            let rest = arguments.iter().skip(1).copied();
            [SHELL.as_ptr(), program.as_ptr()].into_iter().chain(rest).collect()
        };
        let scripts = entry.programs.iter().map(script).collect();
        Self { environment: pointers(entry.environment), scripts, arguments }
    }
}

impl Ready<'_> {
    /// One write below PIPE_BUF is atomic; when it fails the caller is gone and nobody cares.
    fn report(&self, report: Report) {
        let fd = self.writer.as_raw_fd();
        // SAFETY: the buffer is ours and of that length.
        unsafe { libc::write(fd, report.as_ptr().cast(), size_of_val(&report)) };
    }

    fn fail(&self, step: Step, error: i32) -> ! {
        self.report([FAILED, step as i32, error]);
        exit()
    }

    fn check(&self, step: Step, result: io::Result<()>) {
        if let Err(error) = result {
            self.fail(step, error.raw_os_error().unwrap_or(libc::EIO));
        }
    }
}

fn exit() -> ! {
    // SAFETY: _exit runs no handler and does not return.
    unsafe { libc::_exit(2) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// The first process: joins, enters, and makes the second.
fn first(ready: &Ready<'_>) -> ! {
    let entry = ready.entry;
    // SAFETY: the caller's end of the pipe: this copy of it is used by nobody here. It must go, or
    // the caller's death would not show.
    unsafe { libc::close(ready.reader) };
    for (index, group) in entry.groups.iter().enumerate() {
        // SAFETY: the buffer is a constant of one byte. "0" is whoever writes it.
        if unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
            ready.report([NOT_JOINED, index as i32, errno()]);
        }
    }
    ready.check(Step::Affinity, set_affinity(&ready.cpus));
    ready.check(Step::Policy, set_policy(entry.policy.0, &ready.nodes));
    ready.check(Step::Namespaces, namespace::enter(entry.process, entry.user_namespace));
    // SAFETY: the child calls `second`, which makes only system calls and never returns.
    match unsafe { process::raw_fork_sibling() } {
        0 => second(ready),
        pid if pid > 0 => ready.report([STARTED, 0, pid as i32]),
        _ => ready.fail(Step::Fork, errno()),
    }
    exit()
}

/// The second process: becomes the program.
fn second(ready: &Ready<'_>) -> ! {
    let entry = ready.entry;
    let entered = |directory: &CString| rustix::process::chdir(directory.as_c_str()).is_ok();
    if !entry.directories.iter().any(entered) {
        ready.fail(Step::Directory, libc::ENOENT);
    }
    if let Some(user) = entry.user {
        ready.check(Step::User, become_user(user));
    }
    if let Some(terminal) = entry.terminal {
        lead_group(terminal);
    }
    if entry.die_with_caller {
        die_with_caller(ready.writer.as_fd());
    }
    reset_signals(&entry.mask);
    let mut denied = false;
    let only = entry.programs.len() == 1;
    for (program, script) in entry.programs.iter().zip(&ready.vectors.scripts) {
        match execute(program, &ready.vectors.arguments, &ready.vectors.environment) {
            libc::ENOEXEC => {
                execute(SHELL, script, &ready.vectors.environment);
                ready.fail(Step::Exec, libc::ENOEXEC);
            }
            // In a directory that may not be searched nothing was found.
            libc::EACCES => denied |= only || is_there(program),
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            error => ready.fail(Step::Exec, error),
        }
    }
    ready.fail(Step::Exec, if denied { libc::EACCES } else { libc::ENOENT })
}

fn is_there(program: &CStr) -> bool {
    rustix::fs::access(program, rustix::fs::Access::EXISTS).is_ok()
}

/// Becomes the program, or returns why not.
fn execute(program: &CStr, arguments: &[*const c_char], environment: &[*const c_char]) -> i32 {
    // SAFETY: both arrays end with null and point to strings that live.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    errno()
}

fn set_affinity(cpus: &[libc::c_ulong]) -> io::Result<()> {
    let (len, mask) = (size_of_val(cpus), cpus.as_ptr());
    // SAFETY: pointer and length describe the mask, only read.
    let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, len, mask) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A kernel without NUMA has nothing to set.
fn set_policy(policy: Policy, nodes: &[libc::c_ulong]) -> io::Result<()> {
    let (mask, bits) = numa::policy_arguments(policy, nodes);
    // SAFETY: pointer and bit count describe the mask, only read.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, policy.mode(), mask, bits) };
    if done == 0 || errno() == libc::ENOSYS { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// By bare system calls: the C library's would try to tell other threads.
fn become_user(user: &User) -> io::Result<()> {
    if let Some(groups) = &user.groups {
        // SAFETY: pointer and count describe the list, only read.
        let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// As a shell does for its jobs. That there is no terminal any more is for the program to find out.
fn lead_group(terminal: BorrowedFd<'_>) {
    let stop = SignalSet::of(&[libc::SIGTTOU]);
    // SAFETY: the set is initialised and only read. Unblocked, the signal would stop us below.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, stop.as_ptr(), ptr::null_mut()) };
    // SAFETY: no memory is passed.
    unsafe { libc::setpgid(0, 0) };
    // SAFETY: getpgrp takes nothing and cannot fail.
    let group = unsafe { libc::getpgrp() };
    // SAFETY: the descriptor is open and no memory is passed.
    unsafe { libc::tcsetpgrp(terminal.as_raw_fd(), group) };
}

/// Asks to be killed when the caller ends. It may have ended already; then the pipe, whose reading
/// end only the caller holds, is broken (the parent's number tells nothing across PID namespaces).
fn die_with_caller(pipe: BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let kill = Some(rustix::process::Signal::KILL);
    if rustix::process::set_parent_process_death_signal(kill).is_err() {
        exit();
    }
    let mut pipe = [PollFd::new(&pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if !matches!(poll(&mut pipe, Some(&now)), Ok(0)) {
        exit();
    }
}

/// Handlers do not survive exec, but what is ignored stays ignored; Rust's runtime ignores SIGPIPE.
fn reset_signals(mask: &SignalSet) {
    // SAFETY: the default action replaces no handler that could be running in this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: the set is initialised and only read.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut()) };
}
