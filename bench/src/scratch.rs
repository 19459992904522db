//! Files, images and mounts of a run, which vanish with it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{Advice, fadvise, statfs};
use tempfile::TempDir;

use crate::corpus;

/// Magic numbers of statfs(2); ext2, ext3 and ext4 share theirs.
const EXT4_MAGIC: u64 = 0xef53;
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// How long an unmount may find the mount busy.
const BUSY: Duration = Duration::from_secs(5);

/// How long a server in the background may take to mount.
const MOUNTING: Duration = Duration::from_secs(2);

/// A directory of the run's own, gone when the last clone of this is dropped.
#[derive(Debug, Clone)]
pub struct Scratch {
    top: Rc<TempDir>,
}

/// A mounted filesystem; dropping it unmounts.
pub struct Mount {
    dir: PathBuf,
    unmount: Option<Box<dyn FnOnce()>>,
}

/// Something open in a mount, with the mount: dropped in this order, so that it is not busy.
pub(crate) struct In<T, M> {
    pub(crate) open: T,
    pub(crate) _mount: M,
}

/// Where something can be measured, or why not.
pub type Place = Result<Rc<Mount>, String>;

impl Scratch {
    /// Makes a directory below `parent`, or where temporary files go.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(parent: Option<&Path>) -> anyhow::Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let top = tempfile::Builder::new().prefix("oslet-bench-").tempdir_in(&parent);
        Ok(Self { top: Rc::new(top.with_context(|| parent.display().to_string())?) })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.top.path()
    }

    /// A new, empty directory: `name` and a number.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = tempfile::Builder::new().prefix(name).tempdir_in(self.top.path());
        Ok(dir.with_context(|| self.top.path().display().to_string())?.keep())
    }

    /// Makes an ext4 image of `bytes` bytes, filled from a tree where one is given.
    ///
    /// # Errors
    /// What mke2fs says.
    pub fn image(&self, bytes: u64, from: Option<&Path>) -> anyhow::Result<PathBuf> {
        let image = self.dir("image")?.join("disk.img");
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
        if let Some(from) = from {
            command.arg("-d").arg(from);
        }
        finish(command, image, bytes)
    }

    /// Makes an empty ext4 image to be written: its tables are made now and by nobody while it is
    /// measured. If it is `stored`, all of its blocks have their place on the disk beneath.
    ///
    /// # Errors
    /// What mke2fs says, or the disk is full.
    pub fn image_to_write(&self, bytes: u64, stored: bool) -> anyhow::Result<PathBuf> {
        let image = self.dir("image")?.join("disk.img");
        if stored {
            corpus::write_pages(&image, bytes)?;
        }
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
        command.args(["-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]);
        finish(command, image, bytes)
    }

    /// A writable directory of kernel ext4: a fresh image where mounts are allowed, else the
    /// scratch directory itself where it lies on ext4.
    pub fn ext4(&self, bytes: u64) -> Place {
        let image = self.image(bytes, None).map_err(|error| format!("{error:#}"))?;
        match self.mount_ext4(&image, &["rw", "noatime"]) {
            Ok(mount) => Ok(Rc::new(mount)),
            Err(why) => self.on_disk(EXT4_MAGIC).map_err(|()| why),
        }
    }

    /// A writable directory of tmpfs.
    pub fn tmpfs(&self) -> Place {
        if let Ok(place) = self.on_disk(TMPFS_MAGIC) {
            return Ok(place);
        }
        let shared = Path::new("/dev/shm");
        if !is_on(shared, TMPFS_MAGIC) {
            return Err("/dev/shm is no tmpfs".to_owned());
        }
        let dir = tempfile::Builder::new().prefix("oslet-bench-").tempdir_in(shared);
        let dir = dir.map_err(|error| format!("/dev/shm: {error}"))?;
        let path = dir.path().to_owned();
        Ok(Rc::new(Mount::new(path, move || drop(dir))))
    }

    fn on_disk(&self, magic: u64) -> Result<Rc<Mount>, ()> {
        let dir = self.dir("files").ok().filter(|dir| is_on(dir, magic)).ok_or(())?;
        Ok(Rc::new(Mount::new(dir, || {})))
    }

    /// Mounts an image by the kernel's ext4, with mount(8)'s options.
    ///
    /// # Errors
    /// Why it cannot be mounted here.
    pub fn mount_ext4(&self, image: &Path, options: &[&str]) -> Result<Mount, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root to mount kernel ext4".to_owned());
        }
        let dir = self.dir("ext4-").map_err(|error| format!("{error:#}"))?;
        let options = [&["loop"], options].concat().join(",");
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", &options]).arg(image).arg(&dir).env("PATH", path());
        run(&mut command).map_err(|error| format!("{error:#}"))?;
        let mounted = dir.clone();
        Ok(Mount::new(dir, move || unmount(&mounted, &["umount"])))
    }

    /// Mounts an image read-only by fuse2fs.
    ///
    /// # Errors
    /// Why it cannot be mounted here.
    pub fn mount_fuse2fs(&self, image: &Path) -> Result<Mount, String> {
        self.mount_fuse2fs_with(image, "ro")
    }

    /// Mounts an image by fuse2fs for reading and writing.
    ///
    /// # Errors
    /// Why it cannot be mounted here.
    pub fn mount_fuse2fs_writable(&self, image: &Path) -> Result<Mount, String> {
        self.mount_fuse2fs_with(image, "rw")
    }

    fn mount_fuse2fs_with(&self, image: &Path, options: &str) -> Result<Mount, String> {
        let dir = self.dir("fuse2fs-").map_err(|error| format!("{error:#}"))?;
        let mut command = Command::new("fuse2fs");
        command.arg(image).arg(&dir).args(["-o", options]).env("PATH", path());
        let said = run(&mut command).map_err(|error| format!("{error:#}"))?;
        // It goes to the background before it mounts, and then has nobody to report a failure to.
        let started = Instant::now();
        while !is_mount_point(&dir) {
            if started.elapsed() > MOUNTING {
                return Err(format!("fuse2fs did not mount the image here {said}")
                    .trim()
                    .to_owned());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mounted = dir.clone();
        let tool: &[&str] = match rustix::process::geteuid().is_root() {
            true => &["umount"],
            false => &["fusermount3", "-u"],
        };
        Ok(Mount::new(dir, move || unmount(&mounted, tool)))
    }
}

impl Mount {
    /// A mount at `dir` that `unmount` ends.
    pub fn new(dir: PathBuf, unmount: impl FnOnce() + 'static) -> Self {
        Self { dir, unmount: Some(Box::new(unmount)) }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(unmount) = self.unmount.take() {
            unmount();
        }
    }
}

/// Lets the kernel forget the cached pages of a file.
///
/// # Errors
/// The file cannot be opened.
pub fn forget_pages(path: &Path) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let file = fs::File::open(path).with_context(name)?;
    fadvise(&file, 0, None, Advice::DontNeed).with_context(name)
}

/// Unmounts a directory by a command, which is tried again while the mount is busy.
pub fn unmount(dir: &Path, tool: &[&str]) {
    let started = Instant::now();
    loop {
        let mut command = Command::new(tool[0]);
        command.args(&tool[1..]).arg(dir).env("PATH", path());
        match run(&mut command) {
            Ok(_) => return,
            Err(_) if started.elapsed() < BUSY => thread::sleep(Duration::from_millis(50)),
            Err(error) => {
                eprintln!("{}: still mounted: {error:#}", dir.display());
                return;
            }
        }
    }
}

fn is_mount_point(dir: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    dir.parent().is_some_and(|parent| device(dir) != device(parent))
}

/// Has mke2fs make an image, and waits until it is stored.
fn finish(mut command: Command, image: PathBuf, bytes: u64) -> anyhow::Result<PathBuf> {
    command.arg(&image).arg(format!("{}k", bytes / 1024)).env("PATH", path());
    run(&mut command)?;
    // Cold reads drop the image's pages; those that are not yet stored would stay.
    let file = fs::File::open(&image).with_context(|| image.display().to_string())?;
    file.sync_all().with_context(|| image.display().to_string())?;
    Ok(image)
}

/// Runs a command and returns what it said.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| program.clone())?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
    if !output.status.success() {
        bail!("{program}: {}: {said}", output.status);
    }
    Ok(said)
}

/// The PATH with the directories of system programs, which a user's may lack.
fn path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

fn is_on(path: &Path, magic: u64) -> bool {
    statfs(path).is_ok_and(|found| found.f_type as u64 == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(dir: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&format!(" {} ", dir.display()))
    }

    #[test]
    fn mounts_and_files_vanish() {
        let scratch = Scratch::new(None).unwrap();
        let top = scratch.path().to_owned();
        let tree = scratch.dir("tree").unwrap();
        fs::write(tree.join("greeting"), "hello").unwrap();
        let image = scratch.image(16 << 20, Some(&tree)).unwrap();
        let mounts = [scratch.mount_ext4(&image, &["ro", "noload"]), scratch.mount_fuse2fs(&image)];
        for mount in mounts {
            match mount {
                Ok(mount) => {
                    let dir = mount.dir().to_owned();
                    assert_eq!(fs::read_to_string(dir.join("greeting")).unwrap(), "hello");
                    assert!(mounted(&dir));
                    drop(mount);
                    assert!(!mounted(&dir));
                }
                Err(why) => println!("skipped: {why}"),
            }
        }
        drop(scratch);
        assert!(!top.exists());
    }

    #[test]
    fn images_to_write_are_stored_if_they_shall_be() {
        let scratch = Scratch::new(None).unwrap();
        let stored = |stored| {
            let image = scratch.image_to_write(32 << 20, stored).unwrap();
            let metadata = image.metadata().unwrap();
            assert_eq!(metadata.len(), 32 << 20);
            metadata.blocks() * 512 >= metadata.len()
        };
        assert!(stored(true) && !stored(false));
    }

    #[test]
    fn tmpfs_is_tmpfs() {
        let scratch = Scratch::new(None).unwrap();
        let place = scratch.tmpfs().unwrap();
        assert!(is_on(place.dir(), TMPFS_MAGIC));
        let dir = place.dir().to_owned();
        drop((place, scratch));
        assert!(!dir.exists());
    }
}
