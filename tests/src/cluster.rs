//! Clusters as a user has them: the real program, in a directory of their own.

mod census;
mod mounter;
mod traces;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use oslet::member::record::Record;
use oslet::state::State;

pub use census::Census;
pub use mounter::{InOslet, oslet};
pub use traces::processes_of;

/// No command of these tests takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The program: `OSLET_BIN`, or that of this build directory, or built now.
///
/// # Errors
/// When it is not there and cannot be built.
pub fn program() -> Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = PROGRAM.get() {
        return Ok(path.clone());
    }
    let path = match std::env::var_os("OSLET_BIN") {
        Some(path) => PathBuf::from(path),
        None => build()?,
    };
    ensure!(path.is_file(), "{}: no program (OSLET_BIN)", path.display());
    Ok(PROGRAM.get_or_init(|| path).clone())
}

/// Cargo knows best whether the program is as new as its source.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let test = std::env::current_exe()?;
    // TARGET/PROFILE/deps/TEST
    let profile = test.parent().and_then(Path::parent).context("not in a build directory")?;
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "tools"]);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("cargo build --package tools")?;
    ensure!(status.success(), "cargo build --package tools: {status}");
    Ok(profile.join("oslet"))
}

/// A cluster's directory, name and program. What runs is ended when it is dropped.
pub struct Cluster {
    top: tempfile::TempDir,
    name: String,
    program: PathBuf,
}

impl Cluster {
    /// A place for a cluster; nothing runs yet. The program has a path of its own, by which all
    /// processes of this cluster are known.
    ///
    /// # Errors
    /// When the program is not there, or the directory cannot be made.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{number}", std::process::id());
        let top = tempfile::Builder::new().prefix("oslet test ").tempdir()?;
        let program = top.path().join("oslet");
        let original = self::program()?;
        std::fs::hard_link(&original, &program)
            .or_else(|_| std::fs::copy(&original, &program).map(drop))?;
        Ok(Self { top, name, program })
    }

    /// The directory that goes with the test; its name has spaces.
    #[must_use]
    pub fn top(&self) -> &Path {
        self.top.path()
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program under this cluster's own path.
    #[must_use]
    pub fn own_program(&self) -> &Path {
        &self.program
    }

    /// The cluster's runtime files.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.path("run")
    }

    /// `oslet ARGUMENTS` for this cluster.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--dir").arg(self.directory()).args(["--cluster", &self.name]);
        command.args(arguments).current_dir(self.top.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than [`LIMIT`].
    pub fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        finish(&mut self.command(arguments))
    }

    /// Runs a command that must succeed; what it wrote to its standard output.
    ///
    /// # Errors
    /// With all that it wrote when it fails.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let output = self.output(arguments)?;
        let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        ensure!(output.status.success(), "oslet {}: {}", words.join(" "), said(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes `oslet.toml` for so many OSlets, started again when they die, over one image.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, oslets: usize, image: &str) -> Result<()> {
        self.configure_with(oslets, image, 192)
    }

    /// As [`Self::configure`], with so much shared memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure_with(&self, oslets: usize, image: &str, mib: usize) -> Result<()> {
        let mut text = format!("[region]\nsize = \"{mib}M\"\n");
        for oslet in 0..oslets {
            text += &format!("[[oslet]]\nname = \"o{oslet}\"\nrestart = true\n");
        }
        text += &format!("[[device]]\nname = \"hda\"\npath = \"{image}\"\nowner = \"o0\"\n");
        text += "[[volume]]\nname = \"root\"\ndevice = \"hda\"\nmount = \"/global\"\n";
        Ok(std::fs::write(self.path("oslet.toml"), text)?)
    }

    /// What an OSlet's runtime has published; `None` while there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn state(&self, oslet: usize) -> Result<Option<State>> {
        Ok(State::read(&self.directory().join(format!("o{oslet}")))?)
    }

    /// A path inside an OSlet, as it is to be had from outside.
    ///
    /// # Errors
    /// When the OSlet is not up.
    pub fn inside(&self, oslet: usize, path: &str) -> Result<PathBuf> {
        let state = self.state(oslet)?.with_context(|| format!("o{oslet} is not up"))?;
        Ok(PathBuf::from(format!("/proc/{}/root{path}", state.init.pid)))
    }

    /// The numbers of the FUSE connections that the OSlets have now.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn connections(&self, oslets: usize) -> Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for oslet in 0..oslets {
            let record = Record::read(&self.directory().join(format!("o{oslet}")))?;
            numbers.extend(record.into_iter().flat_map(|record| record.fuse));
        }
        Ok(numbers)
    }

    /// The launcher's process; `None` where there is none (any more).
    #[must_use]
    pub fn launcher(&self) -> Option<u32> {
        let text = std::fs::read(self.directory().join("launcher.json")).ok()?;
        let id: serde_json::Value = serde_json::from_slice(&text).ok()?;
        u32::try_from(id["pid"].as_u64()?).ok()
    }

    /// The incarnation of each OSlet that serves, as `oslet ls` says; 0 for others.
    ///
    /// # Errors
    /// When `oslet ls` fails.
    pub fn epochs(&self) -> Result<Vec<u64>> {
        let text = self.ok(&["ls", "--json"])?;
        let rows: serde_json::Value = serde_json::from_str(&text)?;
        let epoch = |row: &serde_json::Value| match row["state"] == "alive" {
            true => row["epoch"].as_u64().unwrap_or(0),
            false => 0,
        };
        Ok(rows.as_array().context("oslet ls: no list")?.iter().map(epoch).collect())
    }

    /// Fails unless everything of the cluster is gone: processes, mounts, control groups, shared
    /// memory, files, and the FUSE connections with these numbers.
    ///
    /// # Errors
    /// With all that is left.
    pub fn assert_gone(&self, connections: &[u32]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = traces::of(self, connections)?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "left behind:\n{}", left.join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test that failed leaves what it had; what cannot be ended here is not to hide that.
        let _ = self.output(&["down"]);
        for pid in processes_of(&self.program) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Runs a command to its end; it is killed after [`LIMIT`].
///
/// # Errors
/// When it cannot be started or takes too long.
pub fn finish(command: &mut Command) -> Result<Output> {
    finish_within(command, LIMIT)
}

/// Runs a command to its end; it is killed after that time.
///
/// # Errors
/// When it cannot be started or takes too long.
pub fn finish_within(command: &mut Command, limit: Duration) -> Result<Output> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    finish_child(child, &format!("{command:?}"), limit)
}

fn finish_child(child: Child, what: &str, limit: Duration) -> Result<Output> {
    let pid = rustix::process::Pid::from_child(&child);
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let late = std::thread::scope(|scope| {
        let watch = scope.spawn(move || match wait.recv_timeout(limit) {
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                // Not reaped before the thread below has its output.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                true
            }
            _ => false,
        });
        let output = child.wait_with_output();
        drop(done);
        (output, watch.join().unwrap_or(true))
    });
    match late {
        (_, true) => bail!("{what}: not done after {} s", limit.as_secs()),
        (output, false) => Ok(output?),
    }
}

/// How a command ended, and all that it wrote.
#[must_use]
pub fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
