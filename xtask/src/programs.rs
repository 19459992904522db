//! Test programs side by side: cargo builds them all and would then run one after the other.
//!
//! Most scenarios wait for processes, disks and time-outs more than they compute, so as many
//! programs run at once as there are CPUs. Each has a log of its own; when it has ended, its output
//! goes to the step's log in one piece.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::run;
use crate::tree;

/// What a program that `cargo test --no-run` has built is, and where it expects to be run.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// `PACKAGE/TARGET`.
    name: String,
    path: PathBuf,
    directory: PathBuf,
}

/// Those that switch something of the kernel's on and off that mounts of the others look at - FUSE
/// over io_uring - run before them, one after the other.
const ALONE: &[&str] = &["cfs/mount", "tests/cluster_reads"];

/// Those that take longest start first, so that none of them is left to run alone at the end.
const LONGEST_FIRST: &[&str] = &[
    "tests/cluster_suites",
    "cfs/cfs",
    "tests/fsdiff",
    "tests/journal",
    "tests/namediff",
    "tests/cluster_kill",
    "tests/crash",
    "tests/suites",
    "tests/cluster_matrix",
    "tests/opfuzz",
];

/// Runs test programs; `shared` is what its threads take from and add to.
struct Runner<'a> {
    arguments: &'a [&'a str],
    environment: Vec<(OsString, Option<OsString>)>,
    log: &'a Path,
    until: Instant,
    /// What comes before a program: it gives it the default for signals, which a shell has
    /// background jobs ignore, and mounts of its own; that for root alone.
    before: Vec<OsString>,
    shared: Mutex<Shared>,
}

struct Shared {
    waiting: VecDeque<Program>,
    log: File,
    wrong: Vec<String>,
}

/// Builds with `build`, a `cargo test` that has no arguments for the programs, and runs what it has
/// built with `arguments`, all of it within `limit`. Returns what went wrong, a line each.
pub(crate) fn run(
    build: &mut Command,
    arguments: &[&str],
    log: &Path,
    limit: Duration,
) -> anyhow::Result<Vec<String>> {
    let started = Instant::now();
    let environment = build.get_envs().map(|(name, value)| (name.into(), value.map(Into::into)));
    let environment = environment.collect();
    build.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let messages = log.with_extension("json");
    let end = run::apart(build, &messages, log, limit)?;
    if let Some(wrong) = end.wrong(&run::describe(build), limit) {
        return Ok(vec![wrong]);
    }
    let mut programs = built(&fs::read_to_string(&messages)?)?;
    programs.sort_by_key(|program| {
        let at = LONGEST_FIRST.iter().position(|name| *name == program.name);
        at.unwrap_or(LONGEST_FIRST.len())
    });
    let (alone, programs): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(|program| ALONE.contains(&program.name.as_str()));
    let mut text = File::options().append(true).open(log)?;
    let count = alone.len() + programs.len();
    writeln!(text, "built {count} programs in {:.1} s", started.elapsed().as_secs_f64())?;

    let shared = Shared { waiting: programs.into(), log: text, wrong: Vec::new() };
    let until = started + limit;
    let (shared, before) = (Mutex::new(shared), before());
    let runner = Runner { arguments, environment, log, until, before, shared };
    alone.iter().try_for_each(|program| runner.one(program))?;
    let at_once = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(|| runner.work())).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("a thread that runs test programs panicked"),
        })
    })?;
    let shared = runner.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(shared.wrong)
}

impl Runner<'_> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> anyhow::Result<()> {
        loop {
            let Some(program) = self.shared().waiting.pop_front() else { return Ok(()) };
            self.one(&program)?;
        }
    }

    fn command(&self, program: &Program) -> Command {
        let words = self.before.iter().map(OsString::as_os_str);
        let mut words = words.chain([program.path.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }

    fn one(&self, program: &Program) -> anyhow::Result<()> {
        let own = self.log.with_extension("").join(program.name.replace('/', "-") + ".log");
        fs::create_dir_all(own.parent().context("a log without a directory")?)?;
        fs::write(&own, "").with_context(|| own.display().to_string())?;
        let mut command = self.command(program);
        command.args(self.arguments).current_dir(&program.directory);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // As cargo sets them for what it runs.
        command.env("CARGO", tree::cargo()).env("CARGO_MANIFEST_DIR", &program.directory);
        let started = Instant::now();
        let limit = self.until.saturating_duration_since(started);
        let end = run::logged(&mut command, &own, limit)?;
        let took = started.elapsed().as_secs_f64();
        let output = fs::read(&own)?;
        let mut shared = self.shared();
        shared.log.write_all(&output)?;
        writeln!(shared.log, "took {took:.1} s: {}", program.name)?;
        shared.wrong.extend(end.wrong(&program.name, limit));
        Ok(())
    }
}

/// What can be had of [`Runner::before`]. A cluster that starts copies all mounts that it sees, and
/// so would keep those of other programs from ending.
fn before() -> Vec<OsString> {
    let mut words = Vec::new();
    // Of coreutils 8.31 and later.
    let signals = || Command::new("env").args(["--default-signal", "true"]).output();
    if signals().is_ok_and(|output| output.status.success()) {
        words.extend(["env", "--default-signal"].map(Into::into));
    }
    let root = rustix::process::geteuid().is_root();
    if let Some(unshare) = root.then(|| tree::find_program("unshare", &[])).flatten() {
        words.push(unshare.into());
        words.extend(["--mount", "--propagation", "private"].map(Into::into));
    }
    words
}

/// The test programs that cargo's messages name.
fn built(messages: &str) -> anyhow::Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("a message of cargo's")?;
        let is_test = message["profile"]["test"].as_bool() == Some(true);
        let (true, Some(path)) = (is_test, message["executable"].as_str()) else { continue };
        let manifest = message["manifest_path"].as_str().context("cargo names no manifest")?;
        let directory = Path::new(manifest).parent().context("a manifest without a directory")?;
        let package = directory.file_name().unwrap_or_default().to_string_lossy();
        let target = message["target"]["name"].as_str().context("cargo names no target")?;
        programs.push(Program {
            name: format!("{package}/{target}"),
            path: path.into(),
            directory: directory.into(),
        });
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_libraries() {
        let line = |test: bool, executable: &str| {
            let fixed = r#""reason":"compiler-artifact","manifest_path":"/a b/cfs/Cargo.toml""#;
            format!(
                "{{{fixed},\"target\":{{\"name\":\"mount\"}},\"profile\":{{\"test\":{test}}},\
                 \"executable\":{executable}}}\n"
            )
        };
        let messages =
            line(false, "null") + &line(false, "\"/t/oslet\"") + &line(true, "\"/t/m-1\"");
        let wanted = Program {
            name: "cfs/mount".into(),
            path: "/t/m-1".into(),
            directory: "/a b/cfs".into(),
        };
        assert_eq!(built(&messages).unwrap(), [wanted]);
        assert!(built("{\"reason\":").is_err());
    }

    #[test]
    fn what_fails_is_named_and_the_others_run() {
        let directory = std::env::temp_dir().join(format!("xtask-programs-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let log = directory.join("test.log");
        let program = |name: &str, path: &str| Program {
            name: name.into(),
            path: path.into(),
            directory: directory.clone(),
        };
        let waiting = [program("a/false", "/bin/false"), program("a/echo", "/bin/echo")];
        let shared =
            Shared { waiting: waiting.into(), log: File::create(&log).unwrap(), wrong: Vec::new() };
        let runner = Runner {
            arguments: &["said"],
            environment: Vec::new(),
            log: &log,
            until: Instant::now() + Duration::from_secs(60),
            before: before(),
            shared: Mutex::new(shared),
        };
        runner.work().unwrap();
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert!(text.contains("\nsaid\n"), "{text}");
        assert_eq!(runner.shared().wrong, ["a/false: exit status: 1"]);
    }
}
