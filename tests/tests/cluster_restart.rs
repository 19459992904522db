//! The owner of a volume is killed and started again, while another OSlet's programs and native
//! clients have files open: what they have open stays what it was, or is no more. It never becomes
//! another file.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::Signal;
use tests::cluster::Cluster;
use tests::kernel;
use tests::load::signal;

const OSLETS: usize = 2;
/// How long it may take until the owner serves again.
const BACK: Duration = Duration::from_secs(30);
/// Files that are made to have a number used again.
const FILES: usize = 200;
/// What they hold.
const OTHER: &[u8] = b"another file";

/// A cluster over a fresh image, o0 and o1's mounts of it.
fn up() -> Result<(Cluster, PathBuf, PathBuf)> {
    let cluster = Cluster::new()?;
    kernel::mke2fs(&cluster.path("disk.img"), 64, &["-t", "ext4"])?;
    cluster.configure(OSLETS, "disk.img")?;
    cluster.ok(&["up", "-d"])?;
    let (owner, other) = (cluster.inside(0, "/global")?, cluster.inside(1, "/global")?);
    Ok((cluster, owner, other))
}

fn down(cluster: &Cluster) -> Result<()> {
    let connections = cluster.connections(OSLETS)?;
    cluster.ok(&["down"])?;
    cluster.assert_gone(&connections)?;
    kernel::assert_clean(&cluster.path("disk.img"))
}

/// Kills the owner at once and waits until it serves again; its new mount.
fn restart(cluster: &Cluster) -> Result<PathBuf> {
    let before = cluster.epochs()?[0];
    signal(cluster.state(0)?.context("no o0")?.runtime.pid, Signal::KILL)?;
    let end = Instant::now() + BACK;
    loop {
        let epoch = cluster.epochs()?[0];
        let state = cluster.state(0)?.filter(|state| u64::from(state.epoch) == epoch);
        if epoch > before && state.is_some() {
            return cluster.inside(0, "/global");
        }
        ensure!(Instant::now() < end, "o0 is not back");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn make(path: &Path, bytes: &[u8]) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

/// Makes files; the first that has one of these numbers.
fn use_again(root: &Path, inos: &[u64]) -> Result<Option<PathBuf>> {
    let mut found = None;
    for number in 0..FILES {
        let path = root.join(format!("again {number}"));
        fs::write(&path, OTHER)?;
        if inos.contains(&fs::metadata(&path)?.ino()) {
            found.get_or_insert(path);
        }
    }
    Ok(found)
}

/// Removes them.
fn remove_again(root: &Path) -> Result<()> {
    let paths = (0..FILES).map(|number| root.join(format!("again {number}")));
    Ok(paths.into_iter().try_for_each(fs::remove_file)?)
}

/// A native client inside o1 that has a file open, and held.
struct Native {
    run: Child,
    out: BufReader<ChildStdout>,
}

impl Native {
    fn start(cluster: &Cluster, path: &str) -> Result<Self> {
        let (load, directory) = (env!("CARGO_BIN_EXE_oslet-load"), cluster.directory());
        let directory = directory.to_str().context("directory")?;
        let words = ["run", "o1", "--", load, "open", directory, "o1", "0", path];
        let mut command = cluster.command(&words);
        let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(run.stdout.take().context("standard output")?);
        let mut native = Self { run, out };
        ensure!(native.line()? == "ready", "oslet-load does not begin");
        Ok(native)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// What comes of an operation: of the file that is open, and of the one that is held.
    fn ask(&mut self, what: &str) -> Result<String> {
        writeln!(self.run.stdin.as_mut().context("standard input")?, "{what}")?;
        self.line()
    }

    fn end(mut self) -> Result<()> {
        drop(self.run.stdin.take());
        let status = self.run.wait()?;
        ensure!(status.success(), "oslet-load: {status}");
        Ok(())
    }
}

fn read(file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 100];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn is_stale<T: std::fmt::Debug>(result: std::io::Result<T>, what: &str) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) => Ok(()),
        other => bail!("{what}: {other:?}"),
    }
}

/// A file that was not on disk when its owner died is no more, whoever has its number then.
#[test]
fn what_is_lost_with_its_owner_is_no_other_file() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let (cluster, _, other) = up()?;
    let lost = make(&other.join("lost"), b"lost")?;
    let ino = lost.metadata()?.ino();
    let owner = restart(&cluster)?;
    ensure!(!owner.join("lost").exists(), "it was committed: the owner was killed too late");
    let again = use_again(&owner, &[ino])?.context("the number is not used again")?;
    is_stale(read(&lost), "read")?;
    is_stale(lost.write_all_at(b"lost again", 0), "write")?;
    is_stale(lost.metadata(), "fstat")?;
    is_stale(lost.set_len(0), "ftruncate")?;
    is_stale(lost.sync_all(), "fsync")?;
    ensure!(fs::read(&again)? == OTHER, "the other file has changed");
    // The one that is lost is still open where the other one is looked up.
    let name = again.strip_prefix(&owner)?;
    let there = OpenOptions::new().read(true).write(true).open(other.join(name))?;
    drop(lost);
    ensure!(there.metadata()?.ino() == ino && read(&there)? == OTHER);
    there.write_all_at(b"written", 0)?;
    ensure!(fs::read(&again)?.starts_with(b"written"));
    drop(there);
    down(&cluster)
}

/// The same for native clients: those who only read, and those who hold what they have open.
#[test]
fn what_is_lost_is_no_other_file_to_native_clients() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let (cluster, _, other) = up()?;
    let ino = make(&other.join("lost"), b"lost")?.metadata()?.ino();
    let mut native = Native::start(&cluster, "/lost")?;
    ensure!(native.ask("read")? == "lost, lost");
    let owner = restart(&cluster)?;
    ensure!(!owner.join("lost").exists(), "it was committed: the owner was killed too late");
    let again = use_again(&owner, &[ino])?.context("the number is not used again")?;
    let stale = Errno::STALE.raw_os_error();
    for what in ["read", "page", "write", "cut", "stat", "sync"] {
        let answer = native.ask(what)?;
        ensure!(answer == format!("errno {stale}, errno {stale}"), "{what}: {answer}");
    }
    ensure!(fs::read(&again)? == OTHER, "the other file has changed");
    native.end()?;
    down(&cluster)
}

/// What has a name when its owner is killed, and loses it as soon as that is back, stays with those
/// who have it open.
#[test]
fn open_files_stay_what_they_were() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let (cluster, _, other) = up()?;
    let mut files = Vec::new();
    for number in 0..20 {
        let name = format!("kept {number}");
        let file = make(&other.join(&name), name.as_bytes())?;
        file.sync_all()?;
        files.push((name, file.metadata()?.ino(), file));
    }
    let inos: Vec<u64> = files.iter().map(|(_, ino, _)| *ino).collect();
    let mut native = Native::start(&cluster, "/kept 0")?;
    // The second time they have no names any more.
    for round in 0..2 {
        let owner = restart(&cluster)?;
        if round == 0 {
            for (name, ..) in &files {
                fs::remove_file(owner.join(name))?;
            }
        }
        let found = use_again(&owner, &inos)?;
        ensure!(found.is_none(), "round {round}: a number is used again: {found:?}");
        remove_again(&owner)?;
        for (name, ino, file) in &files {
            ensure!(read(file)? == name.as_bytes(), "round {round}: {name}: other bytes");
            file.write_all_at(name.as_bytes(), 0)?;
            file.sync_all()?;
            let found = file.metadata()?;
            ensure!((found.nlink(), found.ino()) == (0, *ino), "round {round}: {name}: {found:?}");
        }
        let answers = ["read", "page", "write", "sync"].map(|what| native.ask(what));
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        let expected = ["kept 0, kept 0", "kept 0, kept 0", "6, 6", "durable, durable"];
        ensure!(answers == expected, "round {round}: {answers:?}");
        files[0].2.write_all_at(b"kept 0", 0)?;
        files[0].2.sync_all()?;
    }
    // When they are closed, and their names forgotten, they go: their numbers are free again.
    native.end()?;
    for (name, ..) in files {
        ensure!(!other.join(&name).exists(), "{name} is still there");
    }
    let owner = cluster.inside(0, "/global")?;
    let end = Instant::now() + BACK;
    while use_again(&owner, &inos)?.is_none() {
        ensure!(Instant::now() < end, "no number is free again");
        remove_again(&owner)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    down(&cluster)
}
