//! What a cluster that was killed has left: processes, control groups, mounts, files.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use crate::cgroup::{self, Hierarchies};
use crate::member::fence::Kit;
use crate::member::record::Record;
use crate::{Error, Result, control_socket, state};

/// How long killed processes may take to end.
const LIMIT: Duration = Duration::from_secs(10);

/// The files of an OSlet's directory.
const OSLET_FILES: [&str; 6] =
    [control_socket::NAME, crate::member::record::NAME, state::FILE, "log", "lock", "nbd.sock"];
/// The files of a cluster's directory; its lock goes last.
const CLUSTER_FILES: [&str; 4] = [super::stop::LAUNCHER, "plan.json", "log", "lock"];

/// Ends every process and removes every group and file of OSlets below that directory. The caller
/// holds the cluster's lock, or has seen all its runtimes end.
///
/// # Errors
/// When something does not end, or cannot be removed.
pub fn remove(directory: &Path, cluster: &str) -> Result<()> {
    for oslet in oslets(directory)? {
        let path = directory.join(&oslet);
        if let Some(record) = Record::read(&path)? {
            let kit = Kit::from_record(&format!("{oslet} epoch {}", record.epoch), &record)?;
            kit.fence(LIMIT)?;
        }
    }
    let hierarchies = Hierarchies::detect()?;
    for (_, group) in cgroup::leftovers(&hierarchies, cluster)? {
        group.kill(LIMIT)?;
        group.remove(LIMIT)?;
    }
    cgroup::remove_cluster(&hierarchies, cluster, LIMIT)?;
    for oslet in oslets(directory)? {
        remove_known(&directory.join(oslet), &OSLET_FILES)?;
    }
    Ok(())
}

/// Removes the cluster's own files, and the directory unless somebody else's files are in it.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove_directory(directory: &Path) -> Result<()> {
    remove_known(directory, &CLUSTER_FILES)
}

/// The OSlets whose directories are below it.
pub(super) fn oslets(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::file(directory, "read"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file(directory, "read"))?;
        let ours = || OSLET_FILES.iter().any(|name| entry.path().join(name).exists());
        if let Ok(name) = entry.file_name().into_string()
            && cgroup::is_name(&name)
            && ours()
        {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn remove_known(directory: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::file(&path, "remove")(error));
            }
            _ => {}
        }
    }
    match fs::remove_dir(directory) {
        Err(error)
            if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) =>
        {
            Err(Error::file(directory, "remove")(error))
        }
        _ => Ok(()),
    }
}
