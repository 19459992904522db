//! Where the text of /sys and /proc comes from: this machine, a captured tree, or memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The longest file that is read; the longest true ones are mount tables.
const MAX_FILE: u64 = 4 << 20;
/// The most entries of one directory that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// Text files by their path from the root of a machine, without the leading slash.
pub trait Tree {
    /// The text of a file; `None` if there is none, or none that can be read.
    fn read(&self, path: &str) -> Option<String>;
    /// The names in a directory, in no order; empty if there is no such directory.
    fn list(&self, path: &str) -> Vec<String>;
    /// The name of the tree in messages: a directory.
    fn name(&self) -> String;
}

/// The files of a running machine or of an unpacked capture.
#[derive(Debug, Clone)]
pub struct Dir {
    sys: PathBuf,
    /// What lies beside sys: proc and mount points. `None`: there is nothing beside it.
    root: Option<PathBuf>,
    name: PathBuf,
}

impl Dir {
    /// The machine that this runs on.
    pub fn host() -> Self {
        Self { sys: "/sys".into(), root: Some("/".into()), name: "/".into() }
    }

    /// A captured machine: the directory that contains `sys` (and `proc`), or `sys` itself.
    ///
    /// # Errors
    /// If there are no CPUs in it.
    pub fn captured(dir: &Path) -> Result<Self> {
        let cpus = "devices/system/cpu";
        let beside = dir.join("sys");
        if beside.join(cpus).is_dir() {
            return Ok(Self { sys: beside, root: Some(dir.into()), name: dir.into() });
        }
        if dir.join(cpus).is_dir() {
            let dir = fs::canonicalize(dir).map_err(Error::file(dir, "find"))?;
            let root = (dir.file_name().is_some_and(|name| name == "sys"))
                .then(|| dir.parent().map(Path::to_owned))
                .flatten();
            return Ok(Self { sys: dir.clone(), root, name: dir });
        }
        Err(Error::Invalid(format!(
            "{dir}: there is neither sys/{cpus} nor {cpus} in it; give the root of an unpacked \
             capture, the directory that contains sys and proc",
            dir = dir.display()
        )))
    }

    /// `None` for a path that would leave the tree.
    fn place(&self, path: &str) -> Option<PathBuf> {
        let inner = Path::new(path);
        if !inner.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        match inner.strip_prefix("sys") {
            Ok(inner) => Some(self.sys.join(inner)),
            Err(_) => Some(self.root.as_ref()?.join(inner)),
        }
    }
}

impl Tree for Dir {
    fn read(&self, path: &str) -> Option<String> {
        let place = self.place(path)?;
        // A FIFO or a device in a capture could block for ever.
        if !fs::metadata(&place).ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(&place).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let Some(entries) = self.place(path).and_then(|place| fs::read_dir(place).ok()) else {
            return Vec::new();
        };
        let names = entries
            .take(MAX_ENTRIES)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.collect()
    }

    fn name(&self) -> String {
        self.name.display().to_string()
    }
}

/// Files in memory: generated machines, and captures without unpacking them.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Text by path, without a leading slash.
    pub files: BTreeMap<String, String>,
}

impl Memory {
    /// Adds or replaces a file.
    pub fn set(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.files.insert(path.into(), text.into());
    }
}

impl Tree for Memory {
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let mut names = Vec::new();
        let mut from = prefix.clone();
        // Jumps from one entry to the next rather than over every file below it.
        while let Some((file, _)) = self.files.range(from.clone()..).next() {
            let Some(rest) = file.strip_prefix(&prefix) else { break };
            let name = rest.split('/').next().unwrap_or(rest);
            names.push(name.to_owned());
            // '0' follows '/': the first key that is not below this entry.
            from = format!("{prefix}{name}0");
            if !rest.contains('/') {
                from = format!("{prefix}{name}\0");
            }
        }
        names.sort();
        names.dedup();
        names
    }

    fn name(&self) -> String {
        "/".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sys/devices/system/cpu")).unwrap();
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("sys/devices/system/cpu/online"), "0-3\n").unwrap();
        fs::write(dir.path().join("proc/meminfo"), "MemTotal: 1 kB\n").unwrap();
        dir
    }

    #[test]
    fn the_root_and_its_sys_are_both_accepted() {
        let dir = capture();
        for given in [dir.path().to_owned(), dir.path().join("sys")] {
            let tree = Dir::captured(&given).unwrap();
            assert_eq!(tree.read("sys/devices/system/cpu/online").as_deref(), Some("0-3\n"));
            assert!(tree.read("proc/meminfo").is_some(), "{given:?}");
            assert_eq!(tree.list("sys/devices/system"), ["cpu"]);
        }
        let message = Dir::captured(&dir.path().join("proc")).unwrap_err().to_string();
        assert!(message.contains("give the root of an unpacked capture"), "{message}");
    }

    #[test]
    fn no_path_leaves_the_tree() {
        let dir = capture();
        let tree = Dir::captured(dir.path()).unwrap();
        assert_eq!(tree.read("sys/../../../etc/passwd"), None);
        assert_eq!(tree.read("/etc/passwd"), None);
        assert!(tree.list("proc/..").is_empty());
    }

    #[test]
    fn a_tree_in_memory_lists_like_a_directory() {
        let mut tree = Memory::default();
        for path in ["a/b/c", "a/b/d/e", "a/b0", "a/b-x/y", "ab/c", "a/z"] {
            tree.set(path, "");
        }
        assert_eq!(tree.list("a"), ["b", "b-x", "b0", "z"]);
        assert_eq!(tree.list("a/b"), ["c", "d"]);
        assert!(tree.list("none").is_empty());
    }
}
