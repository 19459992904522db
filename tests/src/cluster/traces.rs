//! What a cluster that is gone must not leave behind.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Cluster;

/// One line for everything that is still there.
pub(super) fn of(cluster: &Cluster, connections: &[u32]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for pid in processes_of(cluster.own_program()) {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        left.push(format!("process {}", status.trim()));
    }
    let source = format!("oslet:{}", cluster.name());
    // A mount's source and the paths it stands on have spaces as octal numbers.
    let top = cluster.top().to_string_lossy().replace(' ', "\\040");
    let mut mounted = Vec::new();
    for pid in processes() {
        let Ok(mounts) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        for mount in mounts.lines() {
            if mount.contains(&source) || mount.contains(&top) {
                left.push(format!("mount of process {pid}: {mount}"));
            }
            mounted.extend(mount.split(' ').nth(2).map(str::to_owned));
        }
    }
    for number in connections {
        // The number may be that of somebody else's mount by now.
        let others = mounted.contains(&format!("0:{number}"));
        if !others && Path::new(&format!("/sys/fs/fuse/connections/{number}")).exists() {
            left.push(format!("FUSE connection {number}"));
        }
    }
    left.extend(loop_devices(cluster.top())?);
    left.extend(groups(cluster.name())?);
    if cluster.directory().exists() {
        left.push(format!("directory {}", cluster.directory().display()));
    }
    Ok(left)
}

/// Loop devices over files below a directory.
fn loop_devices(top: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for device in fs::read_dir("/sys/block")?.flatten() {
        let backing = device.path().join("loop/backing_file");
        if let Ok(file) = fs::read_to_string(backing)
            && Path::new(&file).starts_with(top)
        {
            left.push(format!("{} over {}", device.path().display(), file.trim()));
        }
    }
    Ok(left)
}

/// Control groups below any mount of any hierarchy.
fn groups(cluster: &str) -> Result<Vec<String>> {
    let groups = group_paths(cluster)?;
    Ok(groups.iter().map(|group| format!("control group {}", group.display())).collect())
}

/// A cluster's groups, one in each hierarchy that has one.
pub(super) fn group_paths(cluster: &str) -> Result<Vec<PathBuf>> {
    let top = Path::new("/sys/fs/cgroup");
    let mut tops = vec![top.to_owned()];
    tops.extend(fs::read_dir(top)?.flatten().map(|entry| entry.path()));
    let groups = tops.iter().map(|top| top.join("oslet").join(cluster));
    Ok(groups.filter(|group| group.exists()).collect())
}

pub(super) fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processes that run a program, by its path.
#[must_use]
pub fn processes_of(program: &Path) -> Vec<u32> {
    let runs =
        |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|found| found == program);
    processes().into_iter().filter(runs).collect()
}
