//! The private /dev.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount, mount_bind};

use super::root::{make_directory, tmpfs, within};
use super::{DeviceNode, Spec};
use crate::{Error, Result};

/// Character devices that every program expects: name, major, minor.
const STANDARD: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// The same, there if the host has it.
const FUSE: (&str, u32, u32) = ("fuse", 10, 229);

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

pub(super) fn assemble(spec: &Spec, host: &Path, notes: &mut Vec<String>) -> Result<()> {
    let dev = Path::new("/dev");
    make_directory(dev, 0o755)?;
    // Not NODEV: the nodes are to work.
    tmpfs(dev, MountFlags::empty(), "mode=755,size=4m")?;
    let character = |(name, major, minor): (&str, u32, u32), mode| DeviceNode {
        name: name.into(),
        block: false,
        major,
        minor,
        mode,
        uid: 0,
        gid: 0,
    };
    for standard in STANDARD {
        let node = character(standard, 0o666);
        make(&node, host).map_err(Error::io(format!("/dev/{}", standard.0)))?;
    }
    let fuse = fs::metadata(within(host, Path::new("/dev/fuse")));
    let fuse = fuse.map(|found| character(FUSE, found.mode() & 0o777));
    for node in fuse.iter().chain(&spec.devices) {
        if let Err(error) = make(node, host) {
            notes.push(format!("/dev/{}: no such node inside: {error}", node.name.display()));
        }
    }
    for (name, target) in LINKS {
        let link = dev.join(name);
        symlink(target, &link).map_err(Error::file(&link, "link"))?;
    }
    // The system log's socket is a link to where its daemon listens.
    if let Ok(target) = fs::read_link(within(host, Path::new("/dev/log"))) {
        let link = dev.join("log");
        symlink(target, &link).map_err(Error::file(&link, "link"))?;
    }
    mount_own(dev, notes)
}

fn mount_own(dev: &Path, notes: &mut Vec<String>) -> Result<()> {
    let (pts, shm, mqueue) = (dev.join("pts"), dev.join("shm"), dev.join("mqueue"));
    make_directory(&pts, 0o755)?;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    // Terminals belong to group 5 ("tty") by convention; a user namespace has no such group.
    let options = c"newinstance,ptmxmode=666,mode=620,gid=5";
    mount("devpts", &pts, "devpts", quiet, options)
        .or_else(|_| mount("devpts", &pts, "devpts", quiet, c"newinstance,ptmxmode=666,mode=620"))
        .map_err(Error::file(&pts, "mount"))?;
    make_directory(&shm, 0o1777)?;
    tmpfs(&shm, MountFlags::NODEV, "mode=1777")?;
    make_directory(&mqueue, 0o1777)?;
    if let Err(error) = mount("mqueue", &mqueue, "mqueue", quiet | MountFlags::NODEV, None) {
        notes.push(format!("/dev/mqueue: not mounted: {}", io::Error::from(error)));
    }
    Ok(())
}

/// Makes a node; where that is not allowed, shows the host's of the same name and number.
fn make(node: &DeviceNode, host: &Path) -> io::Result<()> {
    let path = Path::new("/dev").join(&node.name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
        for made in parent.ancestors().take_while(|made| *made != Path::new("/dev")) {
            fs::set_permissions(made, fs::Permissions::from_mode(0o755))?;
        }
    }
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let device = makedev(node.major, node.minor);
    match mknodat(CWD, &path, kind, Mode::from_raw_mode(node.mode & 0o7777), device) {
        Err(rustix::io::Errno::PERM) => bind(node, &within(host, &path), &path, device),
        made => {
            made?;
            chown(&path, Some(node.uid), Some(node.gid))
        }
    }
}

fn bind(node: &DeviceNode, from: &Path, to: &Path, device: u64) -> io::Result<()> {
    let found = fs::metadata(from)?;
    let kind = found.file_type();
    let same = if node.block { kind.is_block_device() } else { kind.is_char_device() };
    if !same || found.rdev() != device {
        return Err(io::Error::other(
            "nodes may not be made here, and the host's of that name is another device",
        ));
    }
    File::create_new(to)?;
    Ok(mount_bind(from, to)?)
}
