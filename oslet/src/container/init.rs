//! The program as an OSlet's init.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, WaitOptions, getgid, getuid, wait};

use super::message::{self, ToInit, ToRuntime};
use super::{Spec, root};
use crate::cgroup::Cgroup;
use crate::sys::namespace;
use crate::sys::numa::{self, Policy};
use crate::sys::pidfd::PidFd;
use crate::sys::process::{self, Forked, SignalFd, SignalSet};
use crate::{Error, Result};

/// How long the runtime may take to say what it wants, and to begin to serve a filesystem.
const LIMIT: Duration = Duration::from_secs(60);

/// What the program does when it is run as [`super::INIT_COMMAND`], before anything else, with the
/// socket to the runtime as its standard input. Returns when this process is to exit.
pub fn main() -> ExitCode {
    let socket = match take_socket() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("oslet: init: {error}");
            return ExitCode::from(2);
        }
    };
    match prepare(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failed = ToRuntime::Failed { what: error.to_string() };
            if let Err(error) = message::send(&socket, &failed, None) {
                eprintln!("oslet: init: {error}");
            }
            ExitCode::from(2)
        }
    }
}

/// Moves the socket out of the way of standard input. Descriptors that were left open by accident
/// further up would keep files and pipes busy for as long as the OSlet lives.
fn take_socket() -> Result<OwnedFd> {
    process::close_all_but_standard().map_err(Error::io("close_range"))?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(Error::io("standard input: dup"))?;
    let null = fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(Error::io("/dev/null: open"))?;
    rustix::stdio::dup2_stdin(&null).map_err(Error::io("standard input: dup2"))?;
    Ok(socket)
}

/// Up to the split everything happens in the host's namespaces.
fn prepare(socket: &OwnedFd) -> Result<()> {
    let Some((message, _)) = message::receive(socket, Instant::now() + LIMIT)? else {
        return Err(Error::Gone("runtime".to_owned()));
    };
    let ToInit::Start { spec, runtime_pid, die_with_thread } = message else {
        return Err(Error::Invalid("init: told to go on before the start".to_owned()));
    };
    let runtime = PidFd::open(runtime_pid).map_err(Error::io("runtime: pidfd_open"))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    if parent != Some(runtime_pid) {
        return Err(Error::Gone("runtime".to_owned()));
    }
    let mut notes = Vec::new();
    if let Err(error) = Cgroup::from_groups(spec.groups.clone()).join() {
        notes.push(format!("not in its control group: {error}"));
    }
    bind(&spec, &mut notes)?;
    make_namespaces(&spec)?;
    match process::fork_sibling().map_err(Error::io("clone"))? {
        Forked::Parent(pid) => message::send(socket, &ToRuntime::Forked { pid }, None),
        Forked::Child => {
            if die_with_thread {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                    .map_err(Error::io("PR_SET_PDEATHSIG"))?;
            }
            // It may have died before that call. The parent's number says nothing across PID
            // namespaces, the descriptor does.
            if runtime.is_dead() {
                return Ok(());
            }
            be_init(&spec, socket, &runtime, notes)
        }
    }
}

/// Also where a cpuset binds: one that is changed later from outside leaves these as they are.
fn bind(spec: &Spec, notes: &mut Vec<String>) -> Result<()> {
    let cpus: Vec<u32> = spec.cpus.iter().collect();
    numa::set_affinity(&cpus).map_err(Error::io(format!("CPUs {}: affinity", spec.cpus)))?;
    if !spec.bound {
        let nodes: Vec<u32> = spec.nodes.iter().collect();
        match numa::set_policy(Policy::Bind, &nodes) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                notes.push("memory is not bound: this kernel has no memory policies".to_owned());
            }
            other => other.map_err(Error::io(format!("memory nodes {}: policy", spec.nodes)))?,
        }
    }
    Ok(())
}

fn make_namespaces(spec: &Spec) -> Result<()> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    namespace::unshare(spec.user_namespace).map_err(|error| {
        let what = match (error.raw_os_error(), spec.user_namespace) {
            // ENOSPC; its own text speaks of a device.
            (Some(libc::ENOSPC), _) => {
                let what = "the limit on their number is reached or 0: as root raise \
                            user.max_user_namespaces and the like (sysctl user), or run oslet as \
                            root";
                return Error::Invalid(format!("namespaces: not allowed here: {what}"));
            }
            (_, true) => {
                "user namespaces: not allowed here to this user: as root set \
                 kernel.unprivileged_userns_clone=1 or \
                 kernel.apparmor_restrict_unprivileged_userns=0, whichever there is (sysctl), or \
                 run oslet as root"
            }
            (_, false) => {
                "namespaces: not allowed here: root without the right to make them \
                 (CAP_SYS_ADMIN; a container?)"
            }
        };
        Error::io(what)(error)
    })?;
    if spec.user_namespace {
        // In this order: the kernel wants setgroups(2) off before one who is not root maps groups.
        for (file, text) in [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("{uid} {uid} 1")),
            ("/proc/self/gid_map", format!("{gid} {gid} 1")),
        ] {
            fs::write(file, &text).map_err(Error::file(Path::new(file), "write"))?;
        }
    }
    Ok(())
}

/// PID 1. When this returns, it ends, and the kernel kills whatever else is inside.
fn be_init(spec: &Spec, socket: &OwnedFd, runtime: &PidFd, mut notes: Vec<String>) -> Result<()> {
    // All of them: who is inside cannot stop init, and what comes from outside is not by signal.
    process::block(&SignalSet::asynchronous()).map_err(Error::io("signals"))?;
    let children = SignalFd::new(&SignalSet::of(&[libc::SIGCHLD]));
    let children = children.map_err(Error::io("signalfd"))?;
    rustix::process::setsid().map_err(Error::io("setsid"))?;
    rustix::thread::set_name(c"oslet-init").map_err(Error::io("PR_SET_NAME"))?;
    rustix::system::sethostname(spec.oslet.as_bytes())
        .map_err(Error::io(format!("host name {}", spec.oslet)))?;
    root::assemble(spec, &mut notes, |device| {
        message::send(socket, &ToRuntime::Fuse, Some(device.as_fd()))?;
        match message::receive(socket, Instant::now() + LIMIT)? {
            Some((ToInit::GoOn, _)) => Ok(()),
            _ => Err(Error::Gone("runtime".to_owned())),
        }
    })?;
    message::send(socket, &ToRuntime::Ready { notes }, None)?;
    reap_until_told(socket, runtime, &children)
}

fn reap_until_told(socket: &OwnedFd, runtime: &PidFd, children: &SignalFd) -> Result<()> {
    loop {
        let mut events = [
            PollFd::new(children, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(runtime, PollFlags::IN),
        ];
        match poll(&mut events, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(Error::io("poll"))?,
        };
        // The runtime has nothing more to say; that the socket is readable means it is closed.
        if events[1..].iter().any(|event| !event.revents().is_empty()) {
            return Ok(());
        }
        while children.read().map_err(Error::io("signalfd"))?.is_some() {}
        while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
    }
}
