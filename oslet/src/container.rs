//! An OSlet's inside: its namespaces, its private root, and the init that holds them.
//!
//! The runtime calls [`start`], which runs the program again as [`init::main`]. That process joins
//! the control groups, makes the namespaces, and splits off PID 1 as a child of the runtime's.
//! PID 1 assembles the private root, says that it is ready, and from then on only reaps orphans.
//! It ends, and with it all that runs inside, when the runtime does.

mod dev;
pub mod enter;
pub mod init;
mod message;
mod root;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Group};
pub use crate::config::Tmp;
use crate::procfs::ProcessId;
use crate::sys::pidfd::PidFd;
use crate::topology::{CpuSet, NodeSet};
use crate::{Error, Result};
use message::{ToInit, ToRuntime};

/// What an OSlet's inside is to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The cluster's name.
    pub cluster: String,
    /// The OSlet's name; the host name inside.
    pub oslet: String,
    /// The CPUs it runs on.
    pub cpus: CpuSet,
    /// The nodes its memory may come from.
    pub nodes: NodeSet,
    /// Those of them that /ltmp is bound to.
    pub ltmp_nodes: NodeSet,
    /// Whether control groups bind the memory nodes; else a memory policy does.
    pub bound: bool,
    /// The control groups to join.
    pub groups: Vec<Group>,
    /// Whether to make a user namespace, with this user alone in it: what one who is not root
    /// needs.
    pub user_namespace: bool,
    /// What /tmp is.
    pub tmp: Tmp,
    /// The most that /ltmp may hold, in bytes.
    pub ltmp_bytes: u64,
    /// The directory of the cluster's runtime files: absolute; visible inside under the same path.
    pub directory: PathBuf,
    /// The cluster's devices.
    pub devices: Vec<DeviceNode>,
    /// What /global is.
    pub global: Global,
    /// The directory below /global that is /gtmp, if it is there; else /gtmp is empty and
    /// read-only.
    pub gtmp: PathBuf,
}

/// A device node in /dev.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Its path below /dev.
    pub name: PathBuf,
    /// Whether it is a block device (else a character device).
    pub block: bool,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Its permissions, such as 0o660.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What /global is inside an OSlet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Global {
    /// Empty and read-only.
    Empty,
    /// A directory of the host's.
    Directory(PathBuf),
    /// A filesystem in user space. Init opens /dev/fuse (the kernel wants that done in the user
    /// namespace of the mount), mounts, and passes the descriptor out to be served.
    Fuse {
        /// What stands as the source in lists of mounts.
        source: String,
        /// The type in such lists, after `fuse.`.
        subtype: String,
        /// Options for the kernel besides `fd`, `rootmode`, `user_id` and `group_id`, such as
        /// `allow_other,default_permissions`.
        options: String,
        /// Whether the mount is read-only.
        read_only: bool,
    },
}

/// How this very program is run again as an OSlet's init: it is to call [`init::main`] then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// The argument by which the program knows that it is an init.
pub const INIT_COMMAND: &str = "__init";

impl Default for Program {
    /// The program that is running, even if its file has been replaced, with [`INIT_COMMAND`].
    fn default() -> Self {
        Self { path: "/proc/self/exe".into(), arguments: vec![INIT_COMMAND.into()] }
    }
}

/// A running init. Dropping it ends the OSlet: everything inside is killed.
#[derive(Debug)]
pub struct Init {
    process: PidFd,
    id: ProcessId,
    notes: Vec<String>,
    /// Init ends when the other end of this is closed.
    _socket: OwnedFd,
}

/// How long an init may take to be ready, the time in `serve` not counted.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed init may take to end before it is left to itself.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Makes the inside of an OSlet. `serve` is called once, and only for [`Global::Fuse`], with the
/// descriptor of the mounted filesystem; when it returns, requests must be being served.
///
/// Called from the main thread, init also dies if that thread does (PR_SET_PDEATHSIG); from any
/// other it only follows the process.
///
/// # Errors
/// What init could not do, in its words, or `serve`'s error. Nothing is left then.
pub fn start(
    program: &Program,
    spec: &Spec,
    serve: impl FnOnce(OwnedFd) -> Result<()>,
) -> Result<Init> {
    check(spec)?;
    let what = |step: &str| format!("OSlet {}: init: {step}", spec.oslet);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(Error::io(what("socketpair")))?;
    let helper = Command::new(&program.path)
        .args(&program.arguments)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(Error::io(what(&format!("run {}", program.path.display()))))?;
    let helper = Helper(helper);
    let main_thread = rustix::thread::gettid() == rustix::process::getpid();
    let begin = ToInit::Start {
        spec: Box::new(spec.clone()),
        runtime_pid: std::process::id(),
        die_with_thread: main_thread,
    };
    message::send(&ours, &begin, None)?;
    converse(spec, ours, helper, serve)
}

/// The process that becomes PID 1's elder sibling; killed and reaped in any case.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only when it is gone, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn converse(
    spec: &Spec,
    socket: OwnedFd,
    helper: Helper,
    serve: impl FnOnce(OwnedFd) -> Result<()>,
) -> Result<Init> {
    let mut end = Instant::now() + START_LIMIT;
    let mut init: Option<(PidFd, ProcessId)> = None;
    let mut serve = Some(serve);
    let mut helper = Some(helper);
    // PID 1 may be ready to speak before the helper that made it has told of it.
    let mut early = None;
    let result = loop {
        let next = match early.take() {
            Some(message) if init.is_some() => Ok(Some(message)),
            waiting => {
                early = waiting;
                message::receive(&socket, end)
            }
        };
        match (next, &init) {
            (Ok(Some(message @ (ToRuntime::Fuse | ToRuntime::Ready { .. }, _))), None)
                if early.is_none() =>
            {
                early = Some(message);
            }
            (Ok(Some((ToRuntime::Forked { pid }, _))), None) => {
                // A child of ours that nobody has reaped: the number is its own.
                let opened = PidFd::open(pid).and_then(|fd| Ok((fd, ProcessId::of(pid)?)));
                match opened {
                    Ok(opened) => init = Some(opened),
                    Err(error) => break Err(Error::io("init: pidfd_open")(error)),
                }
                helper = None;
            }
            (Ok(Some((ToRuntime::Fuse, Some(device)))), Some(_)) => {
                let Some(serve) = serve.take() else { break Err(unexpected(spec)) };
                let before = Instant::now();
                let go = serve(device).and_then(|()| message::send(&socket, &ToInit::GoOn, None));
                if let Err(error) = go {
                    break Err(error);
                }
                end += before.elapsed();
            }
            (Ok(Some((ToRuntime::Ready { notes }, _))), Some(_)) => break Ok(notes),
            (Ok(Some((ToRuntime::Failed { what }, _))), _) => {
                break Err(Error::Invalid(format!("OSlet {}: {what}", spec.oslet)));
            }
            (Ok(Some(_)), _) => break Err(unexpected(spec)),
            (Ok(None), _) => break Err(Error::Gone(format!("OSlet {}: init", spec.oslet))),
            (Err(error), _) => break Err(error),
        }
    };
    drop(helper);
    match (result, init) {
        (Ok(notes), Some((process, id))) => Ok(Init { process, id, notes, _socket: socket }),
        (Err(error), Some((process, id))) => {
            drop(Init { process, id, notes: Vec::new(), _socket: socket });
            Err(error)
        }
        (Err(error), None) => Err(error),
        (Ok(_), None) => Err(unexpected(spec)),
    }
}

fn unexpected(spec: &Spec) -> Error {
    let peer = format!("OSlet {}: init", spec.oslet);
    Error::Corrupt { peer, what: "message out of turn".to_owned() }
}

fn check(spec: &Spec) -> Result<()> {
    let bad = |what: String| Err(Error::Invalid(format!("OSlet {}: {what}", spec.oslet)));
    if !cgroup::is_name(&spec.oslet) || !cgroup::is_name(&spec.cluster) {
        return bad(format!("name {:?} or cluster {:?}: no name", spec.oslet, spec.cluster));
    }
    if spec.cpus.is_empty() || spec.nodes.is_empty() || spec.ltmp_nodes.is_empty() {
        return bad(format!("CPUs {:?}, memory nodes {:?}: none", spec.cpus, spec.nodes));
    }
    if !spec.directory.is_absolute() {
        return bad(format!("directory {}: not absolute", spec.directory.display()));
    }
    let inner = |path: &PathBuf| {
        use std::path::Component::Normal;
        path.components().all(|part| matches!(part, Normal(_))) && path.file_name().is_some()
    };
    if let Some(node) = spec.devices.iter().find(|node| !inner(&node.name)) {
        return bad(format!("device {}: not a path below /dev", node.name.display()));
    }
    if !inner(&spec.gtmp) {
        return bad(format!("gtmp {}: not a path below /global", spec.gtmp.display()));
    }
    Ok(())
}

impl Init {
    /// The process. It can be polled: readable once it has ended.
    pub fn process(&self) -> &PidFd {
        &self.process
    }

    /// Which process that is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// What is not as asked for inside, and why: a line each, for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Kills everything inside and waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Timeout`] when something inside cannot die, or is a zombie whose parent, outside,
    /// does not reap it.
    pub fn stop(&self, limit: Duration) -> Result<()> {
        match self.process.send(libc::SIGKILL) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Error::io(format!("init {}: kill", self.id.pid))(error));
            }
            _ => {}
        }
        if !self.process.wait(limit) {
            let what = format!("init {}: kill", self.id.pid);
            return Err(Error::Timeout { what, ms: limit.as_millis() as u64 });
        }
        // Reaped before, by whoever waits for any child, is as good.
        let _ = waitid(WaitId::PidFd(self.process_fd()), WaitIdOptions::EXITED);
        Ok(())
    }

    fn process_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.process)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // What outlives the limit is killed already and dies when it can.
        let _ = self.stop(STOP_LIMIT);
    }
}
