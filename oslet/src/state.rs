//! What a runtime publishes about its OSlet for commands that look for it: one file,
//! `DIR/OSLET/state.json`, replaced whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Group};
use crate::procfs::ProcessId;
use crate::topology::{CpuSet, NodeSet};
use crate::{Error, Result};

/// An OSlet that is up, or was when its runtime last wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// The cluster's name.
    pub cluster: String,
    /// The OSlet's name.
    pub oslet: String,
    /// Its place in the control page.
    pub index: u32,
    /// Its incarnation.
    pub epoch: u32,
    /// Its runtime.
    pub runtime: ProcessId,
    /// Its init, PID 1 inside.
    pub init: ProcessId,
    /// The CPUs it runs on.
    pub cpus: CpuSet,
    /// The nodes its memory may come from.
    pub nodes: NodeSet,
    /// Whether control groups bind the memory nodes; else a memory policy does.
    pub bound: bool,
    /// Its control groups.
    pub cgroups: Vec<Group>,
    /// The one user and group that exist inside, where it has a user namespace.
    pub only_user: Option<(u32, u32)>,
}

/// The file's name.
pub const FILE: &str = "state.json";
/// Bytes of such a file.
const MAX_BYTES: u64 = 64 << 10;

impl State {
    /// Replaces the file in that OSlet's directory: a reader sees the old or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let new = directory.join(format!(".{FILE}.{}", std::process::id()));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))?;
        let written = File::create(&new).and_then(|mut file| file.write_all(&text));
        let written = written.and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| {
            // The error reported is the one that matters.
            let _ = fs::remove_file(&new);
            Error::file(&path, "write")(error)
        })
    }

    /// Reads the file in that OSlet's directory; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, is nonsense, or belongs to another user than this one and root (who
    /// could make us do anything with it).
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::file(&path, "open"))?,
        };
        let owner = file.metadata().map_err(Error::file(&path, "stat"))?.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(Error::Invalid(format!(
                "{}: of user {owner}: only that user can use this cluster",
                path.display()
            )));
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(Error::file(&path, "read"))?;
        let corrupt = |what: String| Error::Corrupt { peer: path.display().to_string(), what };
        let state: Self =
            serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        for name in [&state.cluster, &state.oslet] {
            if !cgroup::is_name(name) {
                return Err(corrupt(format!("name {name:?}: no name")));
            }
        }
        Ok(Some(state))
    }

    /// Takes the file away.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file(&path, "remove")(error))
            }
            _ => Ok(()),
        }
    }
}

/// The OSlets of the cluster whose runtime files are in that directory, by index; those whose file
/// is gone in this moment are left out.
///
/// # Errors
/// As [`State::read`]; none for a directory that is not there.
pub fn list(directory: &Path) -> Result<Vec<State>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.map_err(Error::file(directory, "read"))?,
    };
    for entry in entries {
        let path = entry.map_err(Error::file(directory, "read"))?.path();
        if path.is_dir() {
            found.extend(State::read(&path)?);
        }
    }
    found.sort_by(|a, b| (a.index, &a.oslet).cmp(&(b.index, &b.oslet)));
    Ok(found)
}

/// The OSlet of that name.
///
/// # Errors
/// When there is none, naming those that are there; and as [`State::read`].
pub fn find(directory: &Path, name: &str) -> Result<State> {
    if cgroup::is_name(name)
        && let Some(state) = State::read(&directory.join(name))?
    {
        return Ok(state);
    }
    let known: Vec<String> = list(directory)?.into_iter().map(|state| state.oslet).collect();
    Err(Error::Invalid(match known.is_empty() {
        true => format!(
            "OSlet {name:?}: no cluster is up in {} (see oslet up, and the option --dir)",
            directory.display()
        ),
        false => format!("OSlet {name:?}: not here ({})", known.join(", ")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(oslet: &str, index: u32) -> State {
        let own = ProcessId::own().unwrap();
        State {
            cluster: "c".to_owned(),
            oslet: oslet.to_owned(),
            index,
            epoch: 1,
            runtime: own,
            init: own,
            cpus: [0, 1, 2, 8].into_iter().collect(),
            nodes: [0].into_iter().collect(),
            bound: true,
            cgroups: vec![Group { kind: cgroup::Kind::Unified, path: "/x y".into() }],
            only_user: Some((7, 8)),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(State::read(directory.path()).unwrap(), None);
        for epoch in 1..4 {
            let state = State { epoch, ..state("o0", 0) };
            state.write(directory.path()).unwrap();
            assert_eq!(State::read(directory.path()).unwrap(), Some(state));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        State::remove(directory.path()).unwrap();
        State::remove(directory.path()).unwrap();
        assert_eq!(State::read(directory.path()).unwrap(), None);
    }

    #[test]
    fn an_oslet_is_found_or_the_others_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = find(directory.path(), "o0").unwrap_err().to_string();
        assert!(missing.contains("no cluster is up"), "{missing}");
        for (index, name) in ["o1", "o0"].into_iter().enumerate() {
            fs::create_dir(directory.path().join(name)).unwrap();
            state(name, 1 - index as u32).write(&directory.path().join(name)).unwrap();
        }
        fs::create_dir(directory.path().join("other")).unwrap();
        assert_eq!(find(directory.path(), "o1").unwrap().index, 1);
        for name in ["o7", "../o1", "", "other"] {
            let error = find(directory.path(), name).unwrap_err().to_string();
            assert_eq!(error, format!("OSlet {name:?}: not here (o0, o1)"));
        }
    }

    #[test]
    fn nonsense_and_strangers_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut bad = state("o0", 0);
        bad.oslet = "../x".to_owned();
        bad.write(directory.path()).unwrap();
        assert!(State::read(directory.path()).is_err());
        for text in ["", "{}", "[1", &"[".repeat(100_000)] {
            fs::write(&path, text).unwrap();
            assert!(matches!(State::read(directory.path()), Err(Error::Corrupt { .. })));
        }
        if rustix::process::geteuid().is_root() {
            state("o0", 0).write(directory.path()).unwrap();
            std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
            let error = State::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains("of user 1234"), "{error}");
        } else {
            println!("skipped: only root can make another user's file");
        }
    }
}
