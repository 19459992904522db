//! What the tests need beside Rust: Debian packages, and cargo's own tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::tree;

struct Package {
    name: &'static str,
    /// A program of the package, by which its presence is seen on any distribution.
    program: &'static str,
    purpose: &'static str,
}

const PACKAGES: [Package; 18] = [
    package("acl", "setfacl", "images with POSIX ACLs"),
    package("attr", "setfattr", "images with extended attributes"),
    package("bzip2", "bzip2", "the captured machines that partitioning is tested on"),
    package("e2fsprogs", "mke2fs", "making and checking ext4 images"),
    package("fio", "fio", "load on mounts while processes are killed"),
    package("fuse2fs", "fuse2fs", "the peer of our mounts in benchmarks"),
    package("fuse3", "fusermount3", "mounting as an ordinary user"),
    package("g++", "g++", "libFuzzer's runtime"),
    package("git", "git", "a program that keeps many files, for mounts"),
    package("libnbd-bin", "nbdinfo", "clients of our NBD server"),
    package("nbd-server", "nbd-server", "a server for our NBD client"),
    package("nbdkit", "nbdkit", "a server for our NBD client, the peer of our server"),
    package("openssl", "openssl", "certificates for NBD over TLS"),
    package("procps", "ps", "looking for processes left behind"),
    package("python3-libnbd", "nbdsh", "a client of our NBD server"),
    package("qemu-utils", "qemu-io", "clients of our NBD server, a server for our client"),
    package("sqlite3", "sqlite3", "a program that relies on locks and fsync, for mounts"),
    package("valgrind", "valgrind", "memory errors in shared memory access"),
];

/// More for the step `kernel`, which is one of the long ones.
const GUEST_PACKAGES: [Package; 2] = [
    package("busybox-static", "busybox", "a system around the program under another kernel"),
    package("qemu-system-x86", "qemu-system-x86_64", "booting another kernel"),
];

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package { name, program, purpose }
}

/// Makes the packages present: root on Debian installs them, anybody else is told the command.
///
/// Nothing is asked of the network when nothing is missing.
pub(crate) fn ensure() -> anyhow::Result<()> {
    ensure_all(&PACKAGES)
}

/// The same for what boots another kernel.
pub(crate) fn ensure_guest() -> anyhow::Result<()> {
    ensure_all(&GUEST_PACKAGES)
}

fn ensure_all(packages: &'static [Package]) -> anyhow::Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing packages:");
    for package in &missing {
        println!("  {:<12} {} (has `{}`)", package.name, package.purpose, package.program);
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get update && apt-get install {}", names.join(" "));
    let Some(apt) = tree::find_program("apt-get", &[]) else {
        bail!("this is no Debian; install what has these programs (Debian: `{by_hand}`)");
    };
    if !rustix::process::geteuid().is_root() {
        bail!("install them as root: `{by_hand}`");
    }
    apt_get(&apt, &["update", "-q"], &by_hand)?;
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    apt_get(&apt, &[&install[..], &names[..]].concat(), &by_hand)?;
    match self::missing(packages).first() {
        None => Ok(()),
        Some(left) => bail!("`{}` is still not there after `{by_hand}`", left.program),
    }
}

fn missing(packages: &'static [Package]) -> Vec<&'static Package> {
    packages.iter().filter(|p| tree::find_program(p.program, &[]).is_none()).collect()
}

fn apt_get(apt: &Path, arguments: &[&str], by_hand: &str) -> anyhow::Result<()> {
    println!("+ apt-get {}", arguments.join(" "));
    let output = Command::new(apt)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("apt-get")?;
    if !output.status.success() {
        print!("{}", String::from_utf8_lossy(&output.stdout));
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("apt-get {} failed; try `{by_hand}`", arguments[0]);
    }
    Ok(())
}

/// Where cargo's tools are installed when they are not on the PATH.
pub(crate) fn tools(target: &Path) -> PathBuf {
    target.join("tools")
}

/// Finds a tool like `cargo-deny`, installing it below the build directory when it is missing.
///
/// # Errors
/// Why the tool cannot be had: the end of cargo's own message.
pub(crate) fn ensure_tool(tool: &str, target: &Path) -> anyhow::Result<()> {
    let tools = tools(target);
    if tree::find_program(tool, &[tools.join("bin")]).is_some() {
        return Ok(());
    }
    println!("{tool}: not there, installing it in {} (takes minutes)", tools.display());
    // Unoptimised: the build would take longer than all the runs together.
    let output = Command::new(tree::cargo())
        .args(["install", "--quiet", "--locked", "--debug", "--root"])
        .arg(&tools)
        .arg(tool)
        .env("CARGO_TARGET_DIR", tools.join("build"))
        .output()
        .context("cargo install")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let last =
            errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        bail!("`cargo install --locked {tool}` failed: {}", last.trim());
    }
    Ok(())
}
