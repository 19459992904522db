//! Starting programs inside an OSlet that is up, from outside.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::procfs::Stat;
use crate::state::State;
use crate::sys::enter::{self, Entry, Step};
pub use crate::sys::enter::{Entered, User};
use crate::sys::numa::Policy;
use crate::sys::pidfd::PidFd;
use crate::sys::process::SignalSet;
use crate::{Error, Result};

/// An OSlet to start programs in.
#[derive(Debug)]
pub struct Target {
    state: State,
    init: PidFd,
    other_user_namespace: bool,
}

/// What to start.
#[derive(Debug)]
pub struct Command {
    /// The program: a path if it has a slash, else to be found through the environment's `PATH`.
    pub program: OsString,
    /// The zeroth argument; the program's name if not given.
    pub zeroth: Option<OsString>,
    /// The arguments after the zeroth.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Where it begins.
    pub directory: Directory,
    /// Who it runs as; this user if not given.
    pub user: Option<User>,
    /// Its signal mask.
    pub mask: SignalSet,
    /// Whether it is killed when the calling thread ends.
    pub die_with_caller: bool,
    /// If given, it leads a process group of its own, in the foreground of this terminal. A shell
    /// with job control wants that: the group of a process outside has no number inside.
    pub terminal: Option<OwnedFd>,
}

/// A working directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Directory {
    /// This one if it can be entered, else `/`.
    Preferred(PathBuf),
    /// This one or none.
    Required(PathBuf),
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such program inside: a shell's status 127.
    #[error("{0}: command not found in OSlet {1}")]
    NotFound(String, String),
    /// It cannot be executed: a shell's status 126.
    #[error("{0}: {1}")]
    NotExecutable(String, io::Error),
    /// All else.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Target {
    /// The OSlet of that state, if its init lives.
    ///
    /// # Errors
    /// [`Error::Gone`] when it does not; when it is another user's.
    pub fn open(state: State) -> Result<Self> {
        let name = format!("OSlet {}", state.oslet);
        let init = state.init.open().map_err(Error::io(format!("{name}: init")))?;
        let Some(init) = init.filter(|init| !dying(init, state.init.pid)) else {
            return Err(Error::Gone(match std::env::var("OSLET") {
                Ok(here) => format!("{name} (seen from inside OSlet {here}: ask the host)"),
                Err(_) => name,
            }));
        };
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/user"));
        let theirs = namespace(&state.init.pid.to_string())
            .map_err(Error::io(format!("{name}: of another user; its namespaces")))?;
        let ours = namespace("self").map_err(Error::io("/proc/self/ns/user"))?;
        Ok(Self { state, init, other_user_namespace: ours != theirs })
    }

    /// What its runtime says about it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the OSlet has died, or is dying: its init has ended or is waiting for what was
    /// killed with it to be reaped.
    pub fn is_dying(&self) -> bool {
        dying(&self.init, self.state.init.pid)
    }

    /// Whether that process, by its number out here, is in the OSlet's PID namespace.
    pub fn holds(&self, pid: i32) -> bool {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let theirs = namespace(&self.state.init.pid.to_string());
        theirs.is_some() && namespace(&pid.to_string()) == theirs
    }

    /// Its init.
    pub fn init(&self) -> &PidFd {
        &self.init
    }

    /// Starts a program there, with this process's standard input, output and error. It is a child
    /// of this process, in its session and (unless it leads its own) its process group, but not in
    /// its namespaces.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(&self, command: &Command) -> std::result::Result<Entered, StartError> {
        let strings = Strings::new(command)?;
        let (places, groups, mut missed) = self.groups();
        let cpus: Vec<u32> = self.state.cpus.iter().collect();
        let nodes: Vec<u32> = self.state.nodes.iter().collect();
        let policy = if self.state.bound { Policy::Local } else { Policy::Bind };
        let user = self.user(command.user.as_ref())?;
        let entry = Entry {
            process: self.init.as_fd(),
            user_namespace: self.other_user_namespace,
            groups: &groups,
            cpus: &cpus,
            policy: (policy, &nodes),
            directories: &strings.directories,
            user: user.as_ref(),
            programs: &strings.programs,
            arguments: &strings.arguments,
            environment: &strings.environment,
            mask: command.mask,
            die_with_caller: command.die_with_caller,
            terminal: command.terminal.as_ref().map(AsFd::as_fd),
        };
        let mut entered = enter::start(&entry).map_err(|e| self.explain(command, e))?;
        for (index, _) in &mut entered.not_joined {
            *index = places.get(*index).copied().unwrap_or(*index);
        }
        entered.not_joined.append(&mut missed);
        Ok(entered)
    }

    /// Those that can be opened, with their place in the state, and those that cannot.
    fn groups(&self) -> (Vec<usize>, Vec<OwnedFd>, Vec<(usize, io::Error)>) {
        let (mut places, mut opened, mut missed) = (Vec::new(), Vec::new(), Vec::new());
        for (index, group) in self.state.cgroups.iter().enumerate() {
            match File::options().write(true).open(group.path.join("cgroup.procs")) {
                Ok(file) => {
                    places.push(index);
                    opened.push(file.into());
                }
                Err(error) => missed.push((index, error)),
            }
        }
        (places, opened, missed)
    }

    /// In a user namespace there is one user, and whoever enters becomes it.
    fn user(&self, asked: Option<&User>) -> Result<Option<User>> {
        let Some((uid, gid)) = self.state.only_user.filter(|_| self.other_user_namespace) else {
            return Ok(asked.cloned());
        };
        match asked {
            Some(asked) if (asked.uid, asked.gid) != (uid, gid) => Err(Error::Invalid(format!(
                "OSlet {}: user {}: it was started by user {uid} and has that user alone",
                self.state.oslet, asked.uid
            ))),
            _ => Ok(Some(User { uid, gid, groups: None })),
        }
    }

    fn explain(&self, command: &Command, (step, error): (Step, io::Error)) -> StartError {
        let name = &self.state.oslet;
        let program = command.program.display().to_string();
        if self.is_dying() {
            return Error::Gone(format!("OSlet {name}")).into();
        }
        let what = match step {
            Step::Exec => {
                return match error.raw_os_error() {
                    Some(libc::ENOENT) => StartError::NotFound(program, name.clone()),
                    _ => StartError::NotExecutable(program, error),
                };
            }
            Step::Fork => "make a process".to_owned(),
            Step::Namespaces => "enter its namespaces (as its user, or as root)".to_owned(),
            Step::Affinity => format!("CPUs {}", self.state.cpus),
            Step::Policy => format!("memory nodes {}", self.state.nodes),
            Step::User => "become that user".to_owned(),
            Step::Directory => match &command.directory {
                Directory::Required(path) | Directory::Preferred(path) => {
                    format!("working directory {}", path.display())
                }
            },
        };
        Error::io(format!("OSlet {name}: {what}"))(error).into()
    }
}

/// The number is the process's as long as that is not reaped, which the last look is for.
fn dying(init: &PidFd, pid: u32) -> bool {
    init.is_dead() || Stat::read(pid).is_ok_and(|stat| stat.exiting) || init.is_dead()
}

/// The command as the kernel takes it.
struct Strings {
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directories: Vec<CString>,
}

impl Strings {
    fn new(command: &Command) -> Result<Self> {
        let zeroth = command.zeroth.as_ref().unwrap_or(&command.program);
        let arguments = std::iter::once(zeroth).chain(&command.arguments);
        let variable = |(name, value): &(OsString, OsString)| {
            c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let directories = match &command.directory {
            Directory::Preferred(path) => vec![path.as_path(), Path::new("/")],
            Directory::Required(path) => vec![path.as_path()],
        };
        let path = command.environment.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or(OsStr::new(DEFAULT_PATH), |(_, path)| path.as_os_str());
        Ok(Self {
            programs: candidates(&command.program, path)?,
            arguments: arguments.map(|a| c_string(a.as_bytes())).collect::<Result<_>>()?,
            environment: command.environment.iter().map(variable).collect::<Result<_>>()?,
            directories: directories
                .into_iter()
                .map(|path| c_string(path.as_os_str().as_bytes()))
                .collect::<Result<_>>()?,
        })
    }
}

/// Where a program may be, as execvp(3) looks for it.
fn candidates(program: &OsStr, path: &OsStr) -> Result<Vec<CString>> {
    let name = program.as_bytes();
    if name.is_empty() {
        return Ok(Vec::new());
    }
    if name.contains(&b'/') {
        return Ok(vec![c_string(name)?]);
    }
    // An empty part is the working directory.
    let join = |part: &[u8]| match part {
        b"" => c_string(name),
        _ => c_string(&[part, b"/", name].concat()),
    };
    path.as_bytes().split(|&byte| byte == b':').map(join).collect()
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| {
        let text = OsString::from_vec(bytes.to_owned());
        Error::Invalid(format!("{:?}: holds a zero byte", text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_execvp_does() {
        let of = |program: &str, path: &str| -> Vec<String> {
            let found = candidates(program.as_ref(), path.as_ref()).unwrap();
            found.into_iter().map(|path| path.into_string().unwrap()).collect()
        };
        assert_eq!(of("ls", "/bin::/usr/bin"), ["/bin/ls", "ls", "/usr/bin/ls"]);
        assert_eq!(of("./ls", "/bin"), ["./ls"]);
        assert_eq!(of("", "/bin"), [""; 0]);
        assert!(candidates("a\0b".as_ref(), "/bin".as_ref()).is_err());
    }
}
