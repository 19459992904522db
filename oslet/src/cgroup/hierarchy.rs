//! Where control groups are mounted, and making and removing directories there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Kind, write};
use crate::{Error, Result};

/// Where groups may be made: for each hierarchy that is of use, the directory of this process's
/// own group, the hierarchy's root, and what is between them, the nearest first: an ordinary user
/// may have been given one of these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hierarchies {
    unified: Vec<PathBuf>,
    cpuset_v1: Vec<PathBuf>,
    freezer_v1: Vec<PathBuf>,
}

/// Groups above this process's own that are looked at.
const MAX_DEPTH: usize = 16;

impl Hierarchies {
    /// No hierarchy at all: everything is by affinity and policy.
    pub fn none() -> Self {
        Self::default()
    }

    /// What this process sees.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn detect() -> Result<Self> {
        let read = |path: &str| {
            let text = fs::read(path).map_err(Error::file(Path::new(path), "read"))?;
            Ok::<_, Error>(String::from_utf8_lossy(&text).into_owned())
        };
        Ok(Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
    }

    /// From the texts of /proc/self/mountinfo (proc_pid_mountinfo(5)) and /proc/self/cgroup
    /// (cgroups(7)).
    pub(super) fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (&[_, _, _, root, mount, ..], &[kind, _, options]) = (&left[..], &right[..]) else {
                continue;
            };
            let has = |option: &str| options.split(',').any(|given| given == option);
            let (places, controller) = match kind {
                "cgroup2" => (&mut found.unified, ""),
                "cgroup" if has("cpuset") => (&mut found.cpuset_v1, "cpuset"),
                "cgroup" if has("freezer") => (&mut found.freezer_v1, "freezer"),
                _ => continue,
            };
            // The first mount serves; others are the same hierarchy again.
            if places.is_empty() {
                let mount = unescape(mount);
                let own = own_group(cgroup, controller)
                    .and_then(|own| Some(own.strip_prefix(unescape(root)).ok()?.to_owned()))
                    .map(|own| mount.join(own));
                // Never above the mount: no directories are made on other filesystems.
                let below = |place: &&Path| *place != mount && place.starts_with(&mount);
                let between = own.as_deref().into_iter().flat_map(Path::ancestors);
                let between = between.take_while(below).skip(1).take(MAX_DEPTH);
                let between: Vec<PathBuf> = between.map(Path::to_owned).collect();
                places.extend(own);
                places.push(mount);
                places.dedup();
                places.extend(between);
            }
        }
        found
    }

    /// As on a machine with version 1 only.
    #[cfg(test)]
    pub(super) fn without_unified(self) -> Self {
        Self { unified: Vec::new(), ..self }
    }

    pub(super) fn unified(&self) -> &[PathBuf] {
        &self.unified
    }

    pub(super) fn cpuset_v1(&self) -> &[PathBuf] {
        &self.cpuset_v1
    }

    pub(super) fn freezer_v1(&self) -> &[PathBuf] {
        &self.freezer_v1
    }

    /// Whether version 2 has the cpuset controller here (version 1 may have taken it).
    pub(super) fn unified_has_cpuset(&self) -> bool {
        let has = |place: &PathBuf| {
            fs::read_to_string(place.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_ascii_whitespace().any(|name| name == "cpuset"))
        };
        self.unified.iter().any(has)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Kind, &Path)> {
        [
            (Kind::Unified, &self.unified),
            (Kind::Cpuset, &self.cpuset_v1),
            (Kind::Freezer, &self.freezer_v1),
        ]
        .into_iter()
        .flat_map(|(kind, places)| places.iter().map(move |place| (kind, place.as_path())))
    }
}

/// The path of this process's group in that hierarchy; "" is version 2.
fn own_group(cgroup: &str, controller: &str) -> Option<PathBuf> {
    cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match controller {
            "" => number == "0" && controllers.is_empty(),
            _ => controllers.split(',').any(|name| name == controller),
        };
        // Outside the root of a cgroup namespace paths begin with "/..": not ours to write.
        (ours && !path.starts_with("/..")).then(|| PathBuf::from(path))
    })
}

/// Blanks, tabs, line ends and backslashes are in octal there.
fn unescape(field: &str) -> PathBuf {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    octal.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to)).into()
}

/// What is done to each directory on the way down: given the parent and the new child.
pub(super) type Prepare = fn(&Path, &Path) -> io::Result<()>;

/// Nothing to prepare.
pub(super) fn nothing(_: &Path, _: &Path) -> io::Result<()> {
    Ok(())
}

/// A version 1 cpuset starts with no CPU and no node, and then none of its children can have any:
/// give it what its parent has.
pub(super) fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.mems", "cpuset.cpus"] {
        if fs::read_to_string(child.join(file))?.trim().is_empty() {
            write(&child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// A version 2 group has a controller when its parent passes it on. One with processes of its own
/// (other than the root, which has no type) can do that only for threads: groups below it would
/// take no process.
pub(super) fn enable_cpuset(parent: &Path, _: &Path) -> io::Result<()> {
    let is_root = !parent.join("cgroup.type").exists();
    if !is_root && !fs::read_to_string(parent.join("cgroup.procs"))?.trim().is_empty() {
        let what = "processes are in the group above, which then can bind none below";
        return Err(io::Error::other(what));
    }
    write(&parent.join("cgroup.subtree_control"), "+cpuset")
}

/// Makes the directories of `name` below `place`, which others may be removing at that moment.
pub(super) fn make(place: &Path, name: &Path, prepare: Prepare) -> Result<PathBuf> {
    const ATTEMPTS: usize = 10;
    let mut attempt = 1;
    loop {
        match make_once(place, name, prepare) {
            Err(Error::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(error) => {
                remove_empty(&place.join(name), place);
                return Err(error);
            }
            Ok(path) => return Ok(path),
        }
    }
}

fn make_once(place: &Path, name: &Path, prepare: Prepare) -> Result<PathBuf> {
    let mut path = place.to_owned();
    for part in name {
        let child = path.join(part);
        match fs::create_dir(&child) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::file(&child, "make control group"))?,
        }
        prepare(&path, &child).map_err(Error::file(&child, "prepare control group"))?;
        path = child;
    }
    Ok(path)
}

/// Removes a group and those below it; then its parents, of `levels` with itself, unless others use
/// them.
pub(super) fn remove(path: &Path, levels: usize, end: Instant) -> Result<()> {
    loop {
        match remove_tree(path) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if Instant::now() >= end => {
                return Err(Error::file(path, "remove control group")(error));
            }
            // The last of its processes may be on their way out still.
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    let base = path.ancestors().nth(levels).unwrap_or(path);
    remove_empty(path, base);
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in fs::read_dir(path)? {
        let child = child?;
        if child.file_type()?.is_dir() {
            remove_tree(&child.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Removes directories from `path` up to below `base`, as long as they are empty.
fn remove_empty(path: &Path, base: &Path) {
    for directory in path.ancestors().take_while(|directory| *directory != base) {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => break,
            _ => {}
        }
    }
}
