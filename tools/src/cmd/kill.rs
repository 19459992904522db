//! `oslet kill`: signals to processes inside an OSlet, by their numbers there; or its end.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use oslet::procfs;
use oslet::state;
use rustix::process::Signal;

use crate::args::Global;

/// Send a signal to processes inside an OSlet, or end it whole.
///
/// Without processes, the OSlet's runtime is killed: the others fence it, all that ran inside ends,
/// and with `restart = true` it comes back.
///
/// Exit status: 0 when all got it, 1 when one is not there, 2 on an error.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  oslet kill o0 17
  oslet kill -s USR1 o0 17 18
  oslet kill o1")]
pub(crate) struct KillArgs {
    /// The signal, by name or number [default: TERM]
    #[arg(short, long, value_name = "SIGNAL", value_parser = signal, requires = "pids")]
    pub(crate) signal: Option<i32>,
    /// The OSlet
    pub(crate) name: String,
    /// Processes, by their numbers inside (see oslet ps)
    #[arg(value_name = "PID")]
    pub(crate) pids: Vec<u32>,
}

/// `oslet kill`.
///
/// # Errors
/// When the OSlet is not known or not up, or a process is not ours to signal.
pub(crate) fn run(args: KillArgs, global: &Global) -> Result<ExitCode> {
    let state = state::find(&global.running(), &args.name)?;
    if args.pids.is_empty() {
        let what = || format!("OSlet {}: its runtime, process {}", args.name, state.runtime.pid);
        return match state.runtime.open().with_context(what)? {
            Some(runtime) => {
                runtime.send(Signal::KILL.as_raw()).with_context(what)?;
                Ok(ExitCode::SUCCESS)
            }
            None => {
                eprintln!("oslet: {}: not there", what());
                Ok(ExitCode::from(1))
            }
        };
    }
    let processes = match procfs::processes(state.init) {
        Err(error) if procfs::gone(&error) => bail!("OSlet {} is gone", args.name),
        other => other.with_context(|| format!("OSlet {}: processes", args.name))?,
    };
    let mut code = ExitCode::SUCCESS;
    for &pid in &args.pids {
        let what = || format!("OSlet {}: process {pid}", args.name);
        // Nested namespaces may have the number too: theirs are the numbers at our depth.
        let found = processes.iter().find(|process| process.inner_pid == pid);
        let opened = found.map(|process| process.id().open()).transpose().with_context(what)?;
        match opened.flatten() {
            Some(process) => {
                process.send(args.signal.unwrap_or(Signal::TERM.as_raw())).with_context(what)?
            }
            None => {
                eprintln!("oslet: {}: not there (see oslet ps {})", what(), args.name);
                code = ExitCode::from(1);
            }
        }
    }
    Ok(code)
}

/// `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+1`; 0 only asks whether the process is there.
fn signal(given: &str) -> Result<i32, String> {
    const NAMES: [(&str, Signal); 30] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("ILL", Signal::ILL),
        ("TRAP", Signal::TRAP),
        ("ABRT", Signal::ABORT),
        ("BUS", Signal::BUS),
        ("FPE", Signal::FPE),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("SEGV", Signal::SEGV),
        ("USR2", Signal::USR2),
        ("PIPE", Signal::PIPE),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CHLD", Signal::CHILD),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("TSTP", Signal::TSTP),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("URG", Signal::URG),
        ("XCPU", Signal::XCPU),
        ("XFSZ", Signal::XFSZ),
        ("VTALRM", Signal::VTALARM),
        ("PROF", Signal::PROF),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
        ("SYS", Signal::SYS),
    ];
    // The C library keeps 32 and 33 for itself.
    const RTMIN: i32 = 34;
    const LAST: i32 = 64;
    let upper = given.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| signal.as_raw());
    let real_time = || match name.strip_prefix("RTMIN")? {
        "" => Some(RTMIN),
        rest => rest.strip_prefix('+')?.parse::<i32>().ok()?.checked_add(RTMIN),
    };
    known
        .or_else(|| name.parse().ok())
        .or_else(real_time)
        .filter(|number| (0..=LAST).contains(number))
        .ok_or_else(|| format!("no signal (a number up to {LAST}, or a name such as TERM)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (given, number) in
            [("TERM", 15), ("sigkill", 9), ("1", 1), ("0", 0), ("RTMIN", 34), ("SIGRTMIN+2", 36)]
        {
            assert_eq!(signal(given), Ok(number), "{given}");
        }
        for bad in ["", "SIG", "TERMS", "-1", "65", "RTMIN+31", "RTMIN-1", "RTMIN+99999999999"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
