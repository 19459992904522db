//! `oslet shell`: an interactive shell inside an OSlet.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::run::{command, set, supervise, target, value_of};
use crate::args::Global;

/// Start an interactive shell inside an OSlet.
///
/// The shell is $SHELL if the OSlet has it, else /bin/sh, started as a login shell.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  oslet shell o0")]
pub(crate) struct ShellArgs {
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
}

/// `oslet shell`.
///
/// # Errors
/// When nothing could be started; the caller's exit status is then 2.
pub(crate) fn run(args: ShellArgs, global: &Global) -> Result<ExitCode> {
    const FALLBACK: &str = "/bin/sh";
    let target = target(global, &args.name)?;
    let mut command = command(&target, &args.env, args.cwd.as_deref(), args.user.as_deref())?;
    // Shells that set no prompt of their own take this; others show the host name, which is the
    // OSlet's, or (Debian's bash) this variable.
    for (name, value) in
        [("PS1", format!("{}:$PWD\\$ ", args.name)), ("debian_chroot", args.name.clone())]
    {
        if value_of(&command, name).is_none() {
            set(&mut command.environment, name.into(), value.into());
        }
    }
    command.program = value_of(&command, "SHELL").unwrap_or_else(|| FALLBACK.into());
    supervise(&target, command, &[FALLBACK])
}
