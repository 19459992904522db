//! An ordinary user: clusters in user namespaces, with and without /dev/fuse, and what is said
//! where something cannot be had. Root gives its privileges up to play one.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, finish, said};

/// The user that is played: nobody's number on most systems, but any will do.
const USER: &str = "65534";
const DROP: [&str; 9] =
    ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all", "--", "env"];

/// A world in which /dev/fuse has the permissions `$1`: a mount namespace of its own. The host's
/// node stays as it is.
const WITH_FUSE: &str = "set -e; mode=$1; dir=$2; shift 2; \
    mount -t tmpfs -o mode=755 fuse \"$dir\"; mknod \"$dir/fuse\" c 10 229; \
    chmod $mode \"$dir/fuse\"; mount --bind \"$dir/fuse\" /dev/fuse; exec \"$@\"";

/// A world in which nobody may make user namespaces: the sysctl is that of a user namespace of its
/// own, and without effect outside.
const NO_NAMESPACES: &str = "set -e; echo 0 > /proc/sys/user/max_user_namespaces; \
    exec setpriv --ambient-caps=-all --inh-caps=-all -- \"$@\"";

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to become an ordinary user".into());
    }
    for (tool, argument) in [("setpriv", "--version"), ("unshare", "--version"), ("mke2fs", "-V")] {
        if Command::new(tool).arg(argument).output().is_err() {
            return Some(format!("needs {tool}"));
        }
    }
    let words = ["setpriv", "--reuid", USER, "--clear-groups", "--", "unshare", "-U", "true"];
    match Command::new(words[0]).args(&words[1..]).output() {
        Ok(output) if output.status.success() => None,
        _ => Some("needs user namespaces for ordinary users".into()),
    }
}

/// A user with a directory, where clusters are made without further arguments.
struct User {
    cluster: Cluster,
    /// What the commands run under: words before the program.
    world: Vec<String>,
    /// Whether there is an XDG_RUNTIME_DIR.
    runtime_directory: bool,
}

impl User {
    fn new() -> Result<Self> {
        let cluster = Cluster::new()?;
        for name in ["", "home", "xdg", "tmp"] {
            let path = cluster.path(name);
            fs::create_dir_all(&path)?;
            std::os::unix::fs::chown(&path, Some(65534), Some(65534))?;
        }
        fs::create_dir(cluster.path("dev"))?;
        Ok(Self { cluster, world: Vec::new(), runtime_directory: true })
    }

    /// With a /dev/fuse of those permissions.
    fn with_fuse(mode: &str) -> Result<Self> {
        let mut user = Self::new()?;
        let dir = user.cluster.path("dev").to_string_lossy().into_owned();
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", WITH_FUSE];
        user.world = words.map(str::to_owned).to_vec();
        user.world.extend(["sh".into(), mode.into(), dir]);
        Ok(user)
    }

    fn shell(&self, script: &str) -> Command {
        let path = |name: &str| self.cluster.path(name).to_string_lossy().into_owned();
        let mut words = self.world.clone();
        words.extend(DROP.map(str::to_owned));
        words.extend([format!("HOME={}", path("home")), format!("TMPDIR={}", path("tmp"))]);
        words.extend(match self.runtime_directory {
            true => [format!("XDG_RUNTIME_DIR={}", path("xdg")), "OSLET_TEST=1".into()],
            false => ["-u".into(), "XDG_RUNTIME_DIR".into()],
        });
        // Options of env come before variables.
        if !self.runtime_directory {
            let at = words.len() - 4;
            words[at..].rotate_left(2);
        }
        let script = format!("program=$1; oslet() {{ \"$program\" \"$@\"; }}; {script}");
        words.extend(["sh".into(), "-c".into(), script]);
        words.extend(["sh".into(), path("oslet")]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.cluster.path("home")).stdin(Stdio::null());
        command
    }

    /// Runs a script, in which `oslet` is the program, and so is `"$1"`.
    fn run(&self, script: &str) -> Result<Output> {
        finish(&mut self.shell(script))
    }

    /// The same, which must succeed; what it wrote.
    fn ok(&self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        ensure!(output.status.success(), "{script}\n{}", said(&output));
        Ok(said(&output))
    }
}

fn has(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "no {word:?} in: {text}");
    }
    Ok(())
}

#[test]
fn without_dev_fuse_all_else_works_and_is_said() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let user = User::with_fuse("600")?;
    // One world for all: what a command mounts is seen by the next.
    let text = user.ok("set -e; oslet up -d; oslet ls; oslet show o0
        oslet run o0 -- sh -c 'echo I am $(id -u) on $(hostname), PID 1 is $(cat /proc/1/comm)'
        oslet run o1 -- sh -c 'grep Cpus_allowed_list /proc/self/status; touch /ltmp/mine; ls /ltmp'
        oslet run o0 -- sh -c 'echo left: $(ls /ltmp /global)'
        oslet run o0 -- sh -c 'exit 7' || echo status $?
        oslet run o0 -- sh -c 'kill -TERM $$' || echo status $?
        echo 'echo shell in $(hostname)' | oslet shell o1
        mkdir m; oslet mount oslet.img m 2>&1 || echo mount: status $?
        oslet down; oslet down || echo again: status $?
        oslet mount oslet.img m 2>&1 || echo mount: status $?")?;
    has(
        &text,
        &[
            "are bound by affinity and memory policy only",
            "/global: empty: ",
            "/dev/fuse: Permission denied",
            "Cluster is up: main, 2 OSlets, files in ",
            &format!("I am {USER} on o0, PID 1 is oslet-init"),
            "mine",
            "status 7",
            "status 143",
            "shell in o1",
            "in use by process",
            "mount: status 2",
            "Cluster main: stopped",
            "again: status 1",
            "failed to open /dev/fuse: Permission denied",
        ],
    )?;
    ensure!(text.contains("left: /global: /ltmp:"), "another's /ltmp, or more: {text}");
    user.cluster.assert_gone(&[])
}

#[test]
fn with_dev_fuse_all_see_the_image() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let user = User::with_fuse("666")?;
    let text = user.ok("set -e; oslet up -d
        oslet run o0 -- cat /global/README > 0; oslet run o1 -- cat /global/README > 1; cmp 0 1
        oslet run o1 -- cat /gtmp/README /global/docs/where-am-i
        oslet run o1 -- sh -c 'echo new > /global/new; echo all > /gtmp/all'
        oslet run o0 -- cat /global/new /gtmp/all
        oslet down; oslet up -d --read-only
        oslet run o1 -- touch /global/new 2>&1 || echo touch: status $?
        oslet run o0 -- cat /gtmp/all
        oslet down")?;
    has(&text, &["/global is served over", "Temporary files of all", "new\nall\n", "stopped"])?;
    has(&text, &["Read-only file system", "touch: status 1", "read-only: the configuration"])?;
    if Command::new("fusermount3").arg("-V").output().is_ok() {
        let text = user
            .ok("set -e; mkdir m; oslet mount oslet.img m; cat m/README; fusermount3 -u m; ls m")?;
        has(&text, &["This is the global filesystem"])?;
    } else {
        println!("skipped: needs fusermount3 (package fuse3) to mount as an ordinary user");
    }
    user.cluster.assert_gone(&[])
}

#[test]
fn without_fusermount_a_mount_says_what_is_missing() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let user = User::with_fuse("666")?;
    let script = "truncate -s 8M x.img; PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 x.img; mkdir m
        PATH=/nowhere \"$1\" mount x.img m";
    let output = user.run(script)?;
    ensure!(output.status.code() == Some(2), "{}", said(&output));
    has(&said(&output), &["fusermount3", "fuse3"])?;
    user.cluster.assert_gone(&[])
}

#[test]
fn without_user_namespaces_one_line_says_so() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let user = User::new()?;
    let script = format!(
        "unshare --user --map-user={USER} --keep-caps -- sh -c '{NO_NAMESPACES}' sh \"$1\" up -d"
    );
    let output = user.run(&script)?;
    let text = said(&output);
    ensure!(output.status.code() == Some(2), "{text}");
    has(&text, &["namespaces: not allowed here", "user.max_user_namespaces"])?;
    let errors = text.lines().filter(|line| line.contains("not allowed here")).count();
    ensure!(errors == 1, "{errors} lines: {text}");
    ensure!(!text.contains("space left"), "a misleading word: {text}");
    user.cluster.assert_gone(&[])?;
    ensure!(!user.cluster.path("xdg/oslet/main").exists(), "{text}");
    Ok(())
}

#[test]
fn without_a_runtime_directory_files_are_in_tmp_and_an_interrupt_stops_all() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let mut user = User::new()?;
    user.runtime_directory = false;
    let files = user.cluster.path(&format!("tmp/oslet-{USER}/main"));
    let mut up = user.shell("exec \"$1\" up");
    let child = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !user.run("oslet run o1 -- true")?.status.success() {
        ensure!(Instant::now() < deadline, "{}: not up", files.display());
    }
    let mode = fs::metadata(files.parent().context("no parent")?)?.permissions().mode();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", said(&output));
    ensure!(mode & 0o777 == 0o700, "{mode:o}: others may enter");
    ensure!(!files.exists(), "{} is left", files.display());
    user.cluster.assert_gone(&[])
}
