//! `cargo xtask test`: every step of the table, then what was run how often.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::report::{self, Counts};
use crate::steps::{STEPS, Step};
use crate::{packages, programs, run, tree};

/// Lines of a failed step's output that are shown; the rest is in its log.
const SHOWN_LINES: usize = 150;

#[derive(Args)]
pub(crate) struct Options {
    /// Run the long counts too (hours).
    #[arg(long)]
    full: bool,
    /// Go on after a step has failed.
    #[arg(long, short = 'k')]
    keep_going: bool,
    /// Run these steps only.
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// List the steps and run none.
    #[arg(long)]
    list: bool,
}

/// What became of a step.
struct Outcome {
    step: &'static Step,
    verdict: Verdict,
    counts: Counts,
    rounds: u32,
    took: Duration,
}

enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

struct Session {
    root: PathBuf,
    target: PathBuf,
    full: bool,
}

/// Runs the steps and prints the summary; the status is 1 when one failed.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let steps = select(options)?;
    if options.list {
        for step in steps {
            println!("{:<11} {}", step.name, step.why);
        }
        return Ok(ExitCode::SUCCESS);
    }
    packages::ensure()?;
    let root = tree::root()?;
    let target = tree::target(&root);
    let session = Session { root, target, full: options.full };
    fs::create_dir_all(session.logs()).context("making the directory for logs")?;

    let mut outcomes = Vec::new();
    for step in steps {
        let outcome = session.step(step)?;
        outcome.print(&session.log(step))?;
        let failed = matches!(outcome.verdict, Verdict::Failed(_));
        outcomes.push(outcome);
        if failed && !options.keep_going {
            break;
        }
    }
    Ok(summary(outcomes, options.full))
}

fn select(options: &Options) -> anyhow::Result<Vec<&'static Step>> {
    for name in &options.only {
        if !STEPS.iter().any(|step| step.name == name) {
            let known: Vec<_> = STEPS.iter().map(|step| step.name).collect();
            bail!("--only {name}: no such step; there are {}", known.join(", "));
        }
    }
    let wanted = |step: &&Step| {
        let named = options.only.iter().any(|name| name == step.name);
        named || (options.only.is_empty() && step.rounds(options.full) > 0)
    };
    Ok(STEPS.iter().filter(wanted).collect())
}

impl Session {
    fn logs(&self) -> PathBuf {
        self.target.join("xtask")
    }

    fn log(&self, step: &Step) -> PathBuf {
        self.logs().join(format!("{}.log", step.name))
    }

    fn step(&self, step: &'static Step) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        let log = self.log(step);
        fs::write(&log, "").with_context(|| log.display().to_string())?;
        let rounds = step.rounds(self.full).max(1);

        let mut verdict = match step.tool.map(|tool| packages::ensure_tool(tool, &self.target)) {
            Some(Err(error)) => Verdict::Skipped(format!("{error:#}")),
            _ => self.rounds(step, rounds, &log)?,
        };
        let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let counts = report::count(&output);
        if let (Verdict::Failed(_), Some((mark, why))) = (&verdict, step.skipped_if)
            && output.contains(mark)
        {
            verdict = Verdict::Skipped(why.to_owned());
        }
        if matches!(verdict, Verdict::Passed) && counts.tests() < step.tests_at_least {
            let (ran, wanted) = (counts.tests(), step.tests_at_least);
            verdict = Verdict::Failed(format!("{ran} tests ran, at least {wanted} should"));
        }
        Ok(Outcome { step, verdict, counts, rounds, took: started.elapsed() })
    }

    fn rounds(&self, step: &Step, rounds: u32, log: &Path) -> anyhow::Result<Verdict> {
        for _ in 0..rounds {
            for line in step.commands {
                let mut command = self.command(step, line)?;
                let limit = step.limit(self.full);
                let wrong = if let Some(arguments) = step.side_by_side {
                    programs::run(&mut command, arguments, log, limit)?
                } else {
                    let end = run::logged(&mut command, log, limit)?;
                    end.wrong(&run::describe(&command), limit).into_iter().collect()
                };
                if !wrong.is_empty() {
                    return Ok(Verdict::Failed(wrong.join("; ")));
                }
            }
        }
        Ok(Verdict::Passed)
    }

    fn command(&self, step: &Step, line: &str) -> anyhow::Result<Command> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command in the table of steps")?;
        let mut command = match program {
            "cargo" => Command::new(tree::cargo()),
            other => Command::new(other),
        };
        let host = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        command.args(words.map(|word| if word == "HOST" { &host } else { word }));
        command.current_dir(&self.root).env("PATH", self.path()?);
        command.env("CARGO_TERM_COLOR", "never");
        // Build scripts look at what cargo has told this program of itself: whoever builds without
        // it would build their crates once more, and what depends on them.
        for (name, _) in env::vars_os().filter(|(name, _)| is_about_us(name)) {
            command.env_remove(name);
        }
        // The optimised binary, for the scenarios that run it.
        command.env("OSLET_BIN", self.target.join("release/oslet"));
        if self.full {
            command.env("OSLET_FULL", "1");
        } else {
            command.env_remove("OSLET_FULL");
        }
        if let Some(own) = step.own_target {
            command.env("CARGO_TARGET_DIR", self.target.join(own));
        }
        command.envs(step.environment.iter().copied());
        Ok(command)
    }

    /// The PATH with cargo's tools and the system's programs, which a user's may lack.
    fn path(&self) -> anyhow::Result<std::ffi::OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let all = env::split_paths(&path)
            .chain([packages::tools(&self.target).join("bin")])
            .chain(system);
        // A directory with a colon in its name cannot be on a PATH.
        env::join_paths(all).context("the build directory's name contains a colon")
    }
}

impl Outcome {
    fn print(&self, log: &Path) -> anyhow::Result<()> {
        let Self { step, verdict, counts, took, .. } = self;
        let tests = match counts.tests() {
            0 => String::new(),
            tests => format!("{tests} tests, "),
        };
        let seconds = took.as_secs_f64();
        match verdict {
            Verdict::Passed => println!("{:<11} ok ({tests}{seconds:.1} s)", step.name),
            Verdict::Skipped(why) => println!("{:<11} SKIPPED: {why}", step.name),
            Verdict::Failed(why) => {
                println!("{:<11} FAILED ({tests}{seconds:.1} s): {why}", step.name);
                let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
                let lines: Vec<_> = text.lines().collect();
                for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                    println!("  | {line}");
                }
                println!("  whole output: {}", log.display());
            }
        }
        Ok(())
    }
}

/// Whether a variable is one that cargo sets for a program that it runs.
fn is_about_us(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Prints what was run how often, what was not and why, and last of all the counts alone.
fn summary(outcomes: Vec<Outcome>, full: bool) -> ExitCode {
    println!();
    println!("run{}:", if full { " with --full" } else { "" });
    let mut steps_failed = 0;
    let mut steps_skipped = 0;
    for outcome in &outcomes {
        let Outcome { step, verdict, counts, rounds, took } = outcome;
        let verdict = match verdict {
            Verdict::Passed => "ok",
            Verdict::Failed(_) => "FAILED",
            Verdict::Skipped(_) => "skipped",
        };
        // A failed step whose tests all passed, or that has none, is one failure by itself.
        steps_failed += usize::from(verdict == "FAILED" && counts.failed == 0);
        steps_skipped += usize::from(verdict == "skipped");
        let (name, seconds, tests) = (step.name, took.as_secs_f64(), counts.tests());
        println!("  {name:<11} {rounds:>3} x {tests:>5} tests {seconds:>7.1} s  {verdict}");
    }
    let total: Counts = outcomes.into_iter().map(|outcome| outcome.counts).sum();
    for what in &total.ran {
        println!("  ran {what}");
    }
    for why in &total.reasons {
        println!("  not done: {why}");
    }
    let (passed, failed) = (total.passed, total.failed + steps_failed);
    let skipped = total.skipped + steps_skipped;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
