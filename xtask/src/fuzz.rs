//! Fuzzing: `cargo xtask fuzz` makes seeds from real images, builds the targets in `fuzz/` with
//! libFuzzer's coverage counters, and runs each for a while.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::run::{self, End};
use crate::tree;

mod images;
mod seeds;

/// A target and the longest input that is worth a try.
struct Target {
    name: &'static str,
    max_len: usize,
}

const TARGETS: [Target; 18] = [
    target("superblock", 4096),
    target("inode", 1200),
    target("extent", 8192),
    target("directory", 8192),
    target("directory_edit", 8192),
    target("xattr", 4096),
    target("xattr_edit", 8192),
    target("journal", 48 << 10),
    target("recovery", 512),
    target("volume", 512),
    target("ring", 4096),
    target("region", 1024),
    target("cache", 4200),
    target("config", 4096),
    target("topology", TOPOLOGY_BYTES),
    target("fuse", 1024),
    target("wire", 2048),
    target("nbd", 4096),
];

const fn target(name: &'static str, max_len: usize) -> Target {
    Target { name, max_len }
}

/// Bytes of a captured machine's text.
const TOPOLOGY_BYTES: usize = 64 << 10;
/// One input may take so many seconds, and a process so many MiB.
const INPUT_SECONDS: u32 = 10;
const MEMORY_MIB: u32 = 2048;

/// What `cargo fuzz build --sanitizer none` passes, so that the stable toolchain does. The fuzzed
/// code has next to no unsafe code; overflow and debug assertions are on in the crate's profile.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

#[derive(Args)]
pub(crate) struct Options {
    /// Run these targets only.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds for each target [default: 5, or 600 where `cargo xtask test` runs with --full].
    #[arg(long)]
    seconds: Option<u32>,
    /// Make the images and seeds, and run nothing.
    #[arg(long)]
    seeds: bool,
}

/// Runs the targets, as many at once as there are CPUs; the status is 1 when one of them crashed.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let chosen = choose(&options.targets)?;
    let root = tree::root()?;
    let corpus = root.join("fuzz/corpus");
    seeds::make(&root, &corpus).context("making seeds")?;
    if options.seeds {
        println!("seeds are in {}", corpus.display());
        return Ok(ExitCode::SUCCESS);
    }
    let bins = build(&root)?;
    let full = std::env::var_os("OSLET_FULL").is_some();
    let seconds = options.seconds.unwrap_or(if full { 600 } else { 5 });

    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let left = Mutex::new(chosen.into_iter().collect::<VecDeque<_>>());
    let next = || left.lock().ok().and_then(|mut left| left.pop_front());
    let worker = || -> anyhow::Result<usize> {
        let mut failed = 0;
        while let Some(target) = next() {
            failed += usize::from(!one(target, &root, &bins, seconds)?);
        }
        Ok(failed)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("it does not panic")).collect()
    });
    let failed: usize = results.into_iter().sum::<anyhow::Result<_>>()?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Target>> {
    let known = |name: &str| TARGETS.iter().find(|target| target.name == name);
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let all = TARGETS.map(|target| target.name).join(", ");
    names
        .iter()
        .map(|name| known(name).with_context(|| format!("{name}: no such target; there are {all}")))
        .collect()
}

/// Builds all targets and says where they are.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let host = host()?;
    let target = tree::target(root).join("fuzz");
    // With --target the flags do not reach what runs in the compiler.
    let status = Command::new(tree::cargo())
        .args(["build", "--release", "--bins", "--locked", "--manifest-path"])
        .arg(root.join("fuzz/Cargo.toml"))
        .args(["--target", &host])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cargo build")?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(target.join(host).join("release"))
}

/// The platform that the compiler runs on.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc -vV")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// Runs one target; false if an input crashed it, was too slow or took too much memory.
fn one(target: &Target, root: &Path, bins: &Path, seconds: u32) -> anyhow::Result<bool> {
    let name = target.name;
    let corpus = root.join("fuzz/corpus").join(name);
    let artifacts = root.join("fuzz/artifacts").join(name);
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let log = bins.join(format!("{name}.log"));
    fs::write(&log, "").with_context(|| log.display().to_string())?;
    let mut command = Command::new(bins.join(name));
    command
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.max_len))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg("-print_final_stats=1")
        .env("OSLET_FUZZ_IMAGES", root.join("fuzz/corpus/images"));
    // Loading a large corpus and the last input are not in its own time.
    let limit = Duration::from_secs(u64::from(2 * seconds + 60));
    let end = run::logged(&mut command, &log, limit)?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let field = |name: &str| text.lines().rev().find_map(|line| line.strip_prefix(name));
    let inputs = field("stat::number_of_executed_units:").map_or("no", str::trim);
    println!("ran: {inputs} inputs of fuzz target {name}");
    match end {
        End::Status(status) if status.success() => return Ok(true),
        End::Status(status) => println!("fuzz target {name}: {status}"),
        End::TimedOut => println!("fuzz target {name}: no end in {} s", limit.as_secs()),
    }
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for line in &lines[lines.len().saturating_sub(40)..] {
        println!("  | {line}");
    }
    println!("  whole output: {}", log.display());
    Ok(false)
}

/// Runs a program of e2fsprogs and the like; its output, or an error that says what it said.
fn tool(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let path = tree::find_program(program, &[])
        .with_context(|| format!("{program} is not there; `cargo xtask test` installs it"))?;
    let mut command = Command::new(path);
    // Images with the same bytes each time.
    command.args(arguments).env("E2FSPROGS_FAKE_TIME", "1700000000").env("LC_ALL", "C");
    let output = command.output().with_context(|| run::describe(&command))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // e2fsck says 1 for what it has put right.
    let fine = output.status.success() || (program == "e2fsck" && output.status.code() == Some(1));
    if !fine {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{text}{errors}", run::describe(&command), output.status);
    }
    Ok(text)
}
