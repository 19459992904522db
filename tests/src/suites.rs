//! Published suites, run on any directory: pjdfstest for what calls answer, fsx for contents.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;

/// A program of crates.io.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    version: &'static str,
}

/// <https://crates.io/crates/pjdfstest>
pub const PJDFSTEST: Tool = Tool { name: "pjdfstest", version: "0.2.2" };
/// <https://crates.io/crates/fsx>
pub const FSX: Tool = Tool { name: "fsx", version: "0.3.2" };

impl Tool {
    /// The program; it is built below the build directory when it is not there.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn program(self) -> Result<PathBuf> {
        let test = std::env::current_exe()?;
        // TARGET/PROFILE/deps/TEST
        let target = test.ancestors().nth(3).context("not in a build directory")?;
        let tools = target.join("tools");
        let program = tools.join("bin").join(self.name);
        if program.is_file() && self.is_this(&program)? {
            return Ok(program);
        }
        // One program of tests installs it, another that wants it at the same time waits.
        fs::create_dir_all(&tools)?;
        let lock = File::create(tools.join(format!("{}.lock", self.name)))?;
        lock.lock().context("waiting for another installation")?;
        if program.is_file() && self.is_this(&program)? {
            return Ok(program);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            // Optimised a little: what it takes to build more is more than it saves.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .args(["install", "--quiet", "--locked", "--force", "--debug", "--root"])
            .arg(&tools)
            .arg(format!("{}@{}", self.name, self.version))
            .env("CARGO_TARGET_DIR", tools.join("build"))
            .output()
            .context("cargo install")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        ensure!(
            output.status.success(),
            "`cargo install --locked {}@{}`: {last}",
            self.name,
            self.version
        );
        Ok(program)
    }

    fn is_this(self, program: &Path) -> Result<bool> {
        let output = Command::new(program).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains(self.version))
    }
}

/// What pjdfstest found.
#[derive(Clone, Debug, Default)]
pub struct Cases {
    /// How many passed.
    pub passed: usize,
    /// Those that it left out, with its reason.
    pub skipped: Vec<(String, String)>,
    /// Those that failed, with what it says of them.
    pub failed: Vec<(String, String)>,
}

/// Another filesystem for links and renames that must be refused, and whether the one that is
/// tested may be mounted again as read-only.
#[derive(Clone, Copy, Default)]
pub struct Pjdfstest<'a> {
    /// A directory elsewhere.
    pub secondary: Option<&'a Path>,
    /// The OSlet of a cluster that it runs in: its ordinary users get into no other's mounts.
    pub inside: Option<(&'a Cluster, usize)>,
    /// Runs the cases of EROFS alone, and mounts `dir` again for them: it must be a mount of its
    /// own.
    pub remount: bool,
}

/// Runs pjdfstest, as root, in `dir`.
///
/// # Errors
/// It cannot be run; failed cases are no error here.
pub fn pjdfstest(dir: &Path, options: Pjdfstest<'_>) -> Result<Cases> {
    let mut config = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\n\
                      utimensat = {}\nstat_st_birthtime = {}\n[settings]\nnaptime = 0.02\n"
        .to_owned();
    writeln!(config, "allow_remount = {}", options.remount)?;
    let [first, second] = users()?;
    writeln!(config, "[dummy_auth]\nentries = [{first:?}, {second:?}]")?;
    let file = tempfile::Builder::new().prefix("pjdfstest-").suffix(".toml").tempfile()?;
    std::fs::write(file.path(), config)?;
    let program = PJDFSTEST.program()?;
    let mut command = match options.inside {
        Some((cluster, oslet)) => {
            let mut command = cluster.command(&["run", &format!("o{oslet}"), "--"]);
            command.arg(program);
            command
        }
        None => {
            // Its dummy users must get there.
            rustix::fs::chmod(dir, rustix::fs::Mode::from_raw_mode(0o755))?;
            Command::new(program)
        }
    };
    command.arg("-c").arg(file.path()).arg("-p").arg(dir);
    if let Some(secondary) = options.secondary {
        command.arg("-s").arg(secondary);
    }
    if options.remount {
        command.arg("erofs");
    }
    let output = command.output().context("pjdfstest")?;
    cases(&output)
}

/// Two users whose group is their own, as it wants them: [user, group].
fn users() -> Result<[[String; 2]; 2]> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
    let (users, groups) = (read("/etc/passwd")?, read("/etc/group")?);
    let group = |id: &str| {
        let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines.find(|fields| fields.get(2) == Some(&id)).map(|fields| fields[0].to_owned())
    };
    let mut found = users.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let (name, id) = (fields.first()?, fields.get(3)?);
        let root = fields.get(2) == Some(&"0");
        (!root).then_some([(*name).to_owned(), group(id)?])
    });
    match (found.next(), found.next()) {
        (Some(one), Some(other)) => Ok([one, other]),
        _ => bail!("/etc/passwd has no two ordinary users with groups"),
    }
}

fn cases(output: &Output) -> Result<Cases> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut cases = Cases::default();
    let mut last: Option<(String, &str)> = None;
    let mut done = false;
    for line in text.lines() {
        if let Some(reason) = line.strip_prefix('\t') {
            let list = match &last {
                Some((_, "skipped")) => &mut cases.skipped,
                Some(_) => &mut cases.failed,
                None => continue,
            };
            if let Some(entry) = list.last_mut() {
                entry.1 = format!("{} {}", entry.1, reason.trim()).trim().to_owned();
            }
            continue;
        }
        done |= line.starts_with("Summary: ");
        let mut words = line.split_whitespace();
        let (Some(name), Some(verdict)) = (words.next(), words.next_back()) else { continue };
        if !name.contains("::") {
            continue;
        }
        match verdict {
            "ok" => cases.passed += 1,
            "skipped" => cases.skipped.push((name.to_owned(), String::new())),
            _ => cases.failed.push((name.to_owned(), String::new())),
        }
        last = Some((name.to_owned(), if verdict == "skipped" { "skipped" } else { "" }));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(done && cases.passed > 0, "pjdfstest: {}: {text}{said}", output.status);
    Ok(cases)
}

/// What fsx does to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fsx {
    /// All that it can, mappings too.
    Everything,
    /// All but mappings, which cost most.
    Unmapped,
}

/// Runs `operations` of fsx on a file in `dir`.
///
/// # Errors
/// The file did not hold what was written, or fsx cannot be run; its own words.
pub fn fsx(dir: &Path, what: Fsx, seed: u64, operations: u64) -> Result<()> {
    let mapped = if what == Fsx::Everything { 4 } else { 0 };
    let config = format!(
        "flen = 1048576\n[opsize]\nmax = 65536\n[weights]\nclose_open = 1\ninvalidate = {}\n\
         mapread = {mapped}\nmapwrite = {mapped}\nread = 10\nwrite = 10\ntruncate = 3\n\
         fsync = 0.3\nfdatasync = 0.3\nposix_fallocate = 2\npunch_hole = 3\nsendfile = 2\n\
         posix_fadvise = 1\ncopy_file_range = 3\n",
        if mapped > 0 { 1 } else { 0 }
    );
    let scratch = tempfile::Builder::new().prefix("fsx-").tempdir()?;
    let settings = scratch.path().join("fsx.toml");
    std::fs::write(&settings, config)?;
    let output = Command::new(FSX.program()?)
        .arg("-f")
        .arg(&settings)
        .args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"])
        .arg(scratch.path())
        .arg(dir.join(format!("fsx-{seed}")))
        .output()
        .context("fsx")?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(30)..].join("\n");
    bail!("fsx, seed {seed}, {operations} operations, {what:?}: {}\n{tail}", output.status)
}
