//! Our mounts, by the program as a user has it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::program;
use crate::kernel::{arg, detach_copies, run};
use crate::opfuzz::volumes::{Mounted, Mounter};

/// How long mounting, or the end of a server, may take.
const SOON: Duration = Duration::from_secs(30);

/// An image that `oslet mount` has mounted; dropped it is unmounted.
pub struct OurMount {
    dir: PathBuf,
    server: Option<Child>,
}

impl OurMount {
    /// Mounts an image for reading and writing.
    ///
    /// # Errors
    /// What the program says.
    pub fn new(image: &Path, dir: &Path, options: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let before = dir.metadata()?.dev();
        let log = dir.with_extension("log");
        let mut command = Command::new(program()?);
        command.args(["mount", "-f", "-o", options]).arg(image).arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = command.stderr(std::fs::File::create(&log)?).spawn()?;
        let deadline = Instant::now() + SOON;
        while dir.metadata()?.dev() == before {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = server.try_wait()? {
                bail!("oslet mount {}: {status}: {}", image.display(), said());
            }
            if Instant::now() > deadline {
                server.kill().and_then(|()| server.wait()).context("oslet mount")?;
                bail!("oslet mount {}: no mount after {SOON:?}: {}", image.display(), said());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Self { dir: dir.to_owned(), server: Some(server) })
    }

    /// The process that serves it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let deadline = Instant::now() + SOON;
        let mut unmounted = run("umount", &[arg(&self.dir)]);
        while unmounted.as_ref().is_err_and(|error| error.to_string().contains("busy"))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
            unmounted = run("umount", &[arg(&self.dir)]);
        }
        if unmounted.is_err() {
            // Whoever uses the mount hears of the end of its server.
            server.kill().context("oslet mount")?;
        } else {
            detach_copies(&self.dir)?;
        }
        // What is not durable yet becomes so before the server ends.
        loop {
            if let Some(status) = server.try_wait()? {
                unmounted?;
                let said = std::fs::read_to_string(self.dir.with_extension("log"));
                let (dir, said) = (self.dir.display(), said.unwrap_or_default());
                ensure!(status.success(), "the server of {dir}: {status}: {said}");
                return Ok(());
            }
            if Instant::now() > deadline {
                server.kill().and_then(|()| server.wait()).context("oslet mount")?;
                bail!("{}: its server does not end", self.dir.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Mounted for OurMount {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn unmount(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl Drop for OurMount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

/// Ours, with such options.
#[must_use]
pub fn ours(options: &'static str) -> Mounter {
    Rc::new(move |image, dir| Ok(Box::new(OurMount::new(image, dir, options)?)))
}
