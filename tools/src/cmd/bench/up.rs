//! A whole cluster in the background, as `oslet up -d` starts it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bench::{Environment, Scratch};

/// A cluster, which is stopped with this.
pub(super) struct Up {
    directory: PathBuf,
    name: String,
    /// Its directory is there until it has stopped.
    _scratch: Scratch,
}

impl Up {
    /// Starts one by a configuration, or says why that cannot be done here.
    pub(super) fn start(
        environment: &Environment,
        configuration: &str,
    ) -> Result<std::result::Result<Self, String>> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let directory = environment.scratch.dir("cluster")?;
        std::fs::write(directory.join("oslet.toml"), configuration).context("oslet.toml")?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench{}-{number}", std::process::id());
        let up = Self { directory, name, _scratch: environment.scratch.clone() };
        let output = up.oslet(&["up", "-d"])?;
        if output.status.success() {
            return Ok(Ok(up));
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Ok(Err(format!("no cluster can be made here: {why}")))
    }

    /// A command of this program for this cluster.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("own program")?);
        command.arg("--dir").arg(self.directory.join("run")).args(["--cluster", &self.name]);
        command.args(arguments).current_dir(&self.directory);
        Ok(command)
    }

    /// Runs one.
    pub(super) fn oslet(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)?.output().context("oslet")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        match self.oslet(&["down"]) {
            // 1: it was not up.
            Ok(output) if matches!(output.status.code(), Some(0 | 1)) => {}
            Ok(output) => eprintln!("oslet down: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}
