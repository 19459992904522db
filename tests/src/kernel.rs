//! The kernel's filesystems and e2fsprogs, which tests compare with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Why tests that mount cannot run here, if they cannot. Such tests print it and say that they
/// checked nothing.
#[must_use]
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to mount".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("needs loop devices".into());
    }
    ["mke2fs", "e2fsck", "debugfs", "mount", "umount"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("-V").output().is_err())
        .map(|tool| format!("needs {tool} (package e2fsprogs or mount)"))
}

/// Runs a command; an error unless it exits with 0.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = output(program, args)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} {}: {}\n{text}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

fn output(program: &str, args: &[&str]) -> Result<Output> {
    Command::new(program).args(args).output().with_context(|| format!("{program} does not start"))
}

/// What a path is in arguments.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("test directories have plain names")
}

/// Makes an image of `megabytes` with mke2fs.
pub fn mke2fs(image: &Path, megabytes: u64, args: &[&str]) -> Result<()> {
    let file = std::fs::File::create(image)?;
    file.set_len(megabytes << 20)?;
    let mut all = vec!["-q", "-F"];
    all.extend_from_slice(args);
    all.push(arg(image));
    run("mke2fs", &all).map(drop)
}

/// `e2fsck -fn` must find nothing at all.
pub fn assert_clean(image: &Path) -> Result<()> {
    let text = run("e2fsck", &["-f", "-n", arg(image)])?;
    // Wrong counts in the superblock leave the exit status 0.
    ensure!(!text.contains("Fix? no"), "e2fsck is not content:\n{text}");
    Ok(())
}

/// An image mounted through a loop device; unmounted when dropped.
#[derive(Debug)]
pub struct LoopMount {
    dir: PathBuf,
    device: String,
}

impl LoopMount {
    /// Mounts `image` on `dir`, which is made if need be.
    pub fn new(image: &Path, dir: &Path, options: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let device = run("losetup", &["--find", "--show", arg(image)])?.trim().to_owned();
        let options = if options.is_empty() { "noatime" } else { options };
        if let Err(error) = run("mount", &["-t", "ext4", "-o", options, &device, arg(dir)]) {
            run("losetup", &["-d", &device])?;
            return Err(error);
        }
        Ok(Self { dir: dir.to_owned(), device })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its device's name, as in /sys/block.
    #[must_use]
    pub fn device(&self) -> &str {
        self.device.trim_start_matches("/dev/")
    }

    /// Unmounts it.
    pub fn unmount(self) -> Result<()> {
        // Drop does it; a failure there would go unseen.
        let (dir, device) = (self.dir.clone(), self.device.clone());
        std::mem::forget(self);
        detach(&dir, &device)
    }

    /// Requests completed and sectors written by the device, and requests under way.
    fn counters(&self) -> Result<(String, bool)> {
        let stat = std::fs::read_to_string(format!("/sys/block/{}/stat", self.device()))?;
        let fields: Vec<&str> = stat.split_whitespace().collect();
        ensure!(fields.len() > 8, "{stat}");
        Ok((fields[4..7].join(" "), fields[8] != "0"))
    }

    /// Copies the image as it is at one instant: again, until the kernel wrote nothing meanwhile.
    pub fn snapshot(&self, image: &Path, copy: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            let before = self.counters()?;
            if before.1 {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            std::fs::copy(image, copy)?;
            if self.counters()? == before {
                return Ok(());
            }
        }
        bail!("{}: no quiet moment in 20 s", self.device)
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.dir, &self.device) {
            eprintln!("{error:#}");
        }
    }
}

fn detach(dir: &Path, device: &str) -> Result<()> {
    let mut unmounted = run("umount", &[arg(dir)]);
    // A process that another test starts holds a copy of every open file between its fork and its
    // exec.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline
        && unmounted.as_ref().is_err_and(|error| error.to_string().contains("busy"))
    {
        std::thread::sleep(Duration::from_millis(20));
        unmounted = run("umount", &[arg(dir)]);
    }
    run("losetup", &["-d", device])?;
    unmounted?;
    detach_copies(dir)?;
    let name = device.trim_start_matches("/dev/");
    let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
    let deadline = Instant::now() + Duration::from_secs(10);
    // Another user may have taken the device since: it then has another file.
    let mine = |shown: &str| dir.parent().is_some_and(|parent| shown.starts_with(arg(parent)));
    while std::fs::read_to_string(&backing).is_ok_and(|shown| mine(&shown)) {
        ensure!(Instant::now() < deadline, "{device} is still in use 10 s after its umount");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ends the copies of a mount that mount namespaces made meanwhile have: those of OSlets, of a
/// cluster beside this test. Where the host's root is a private mount no umount reaches them, and
/// what was mounted lives on with its server and its device; the removal of a directory takes every
/// mount on it along, in all namespaces.
///
/// # Errors
/// When the directory is still mounted on here, or not empty.
pub fn detach_copies(dir: &Path) -> Result<()> {
    std::fs::remove_dir(dir).with_context(|| dir.display().to_string())?;
    std::fs::create_dir(dir).with_context(|| dir.display().to_string())
}

/// One object of a tree, with everything that a copy of the image must have too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the root.
    pub path: PathBuf,
    /// Type, permissions, links, owner, size, blocks, device, times: one word each.
    pub attributes: String,
    /// A file's contents, or a link's target.
    pub contents: Vec<u8>,
    /// Extended attributes in order of names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// All objects below `root`, in order of paths.
pub fn tree(root: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let entry = entry(root, &path).with_context(|| path.display().to_string())?;
        if path.symlink_metadata()?.is_dir() {
            for child in std::fs::read_dir(&path)? {
                pending.push(child?.path());
            }
        }
        entries.push(entry);
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn entry(root: &Path, path: &Path) -> Result<Entry> {
    use std::os::unix::fs::MetadataExt;
    let meta = path.symlink_metadata()?;
    let contents = if meta.is_file() {
        std::fs::read(path)?
    } else if meta.is_symlink() {
        std::fs::read_link(path)?.into_os_string().into_encoded_bytes()
    } else {
        Vec::new()
    };
    let attributes = format!(
        "ino {} mode {:o} links {} uid {} gid {} size {} blocks {} rdev {} mtime {}.{} ctime {}.{}",
        meta.ino(),
        meta.mode(),
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        meta.size(),
        meta.blocks(),
        meta.rdev(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    let path = path.strip_prefix(root)?.to_owned();
    Ok(Entry { xattrs: xattrs(&root.join(&path))?, path, attributes, contents })
}

fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Says where two trees differ, if they do.
pub fn assert_same_tree(ours: &[Entry], theirs: &[Entry]) -> Result<()> {
    for (a, b) in ours.iter().zip(theirs) {
        ensure!(
            a.path == b.path && a.attributes == b.attributes && a.xattrs == b.xattrs,
            "ours: {} {} {:?}\ntheirs: {} {} {:?}",
            a.path.display(),
            a.attributes,
            a.xattrs,
            b.path.display(),
            b.attributes,
            b.xattrs
        );
        ensure!(a.contents == b.contents, "contents of {} differ", a.path.display());
    }
    ensure!(ours.len() == theirs.len(), "{} objects, not {}", ours.len(), theirs.len());
    Ok(())
}
