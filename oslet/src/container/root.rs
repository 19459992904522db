//! The private root: a small tmpfs in which the host's top-level entries are bind-mounted, with
//! what is the OSlet's own beside them. Nothing is created on any filesystem of the host's.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::{Global, Spec, Tmp, dev};
use crate::{Error, Result};

/// What the OSlet has of its own, whatever the host has under these names.
const OWN: [&str; 6] = ["proc", "dev", "tmp", "global", "gtmp", "ltmp"];

/// Makes it and moves this process, which is PID 1 of new namespaces, into it. `serve` passes the
/// descriptor of a filesystem out and returns when that is being served.
pub(super) fn assemble(
    spec: &Spec,
    notes: &mut Vec<String>,
    serve: impl FnOnce(OwnedFd) -> Result<()>,
) -> Result<()> {
    let before = rustix::process::umask(Mode::empty());
    let host = pivot(spec)?;
    bind_host(&host, spec.tmp, notes)?;
    mount_proc(&host, notes)?;
    dev::assemble(spec, &host, notes)?;
    mount_global(spec, &host, notes, serve)?;
    mount_temporary(spec, &host, notes)?;
    show_directory(spec, &host, notes)?;
    unmount(&host, UnmountFlags::DETACH).map_err(Error::file(&host, "unmount"))?;
    fs::remove_dir(&host).map_err(Error::file(&host, "remove"))?;
    // What is written to the root of an OSlet would be lost with it: better say so at once.
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount("/", flags, c"").map_err(Error::io("/: make read-only"))?;
    rustix::process::umask(before);
    Ok(())
}

/// Makes a tmpfs the root and returns where the host's root is in it.
fn pivot(spec: &Spec) -> Result<PathBuf> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).map_err(Error::io(
        "/: cannot be made a slave mount (is this a chroot? its root must be a mount point)",
    ))?;
    // Any directory will do to mount on: the tmpfs leaves it again.
    let base = &spec.directory;
    tmpfs(base, MountFlags::NODEV, "mode=755,size=16m")?;
    let name = free_name()?;
    make_directory(&base.join(&name), 0o700)?;
    rustix::process::chdir(base).map_err(Error::file(base, "chdir"))?;
    rustix::process::pivot_root(".", name.as_os_str()).map_err(Error::io(
        "pivot_root (the host's root must be a mounted filesystem, not the initramfs)",
    ))?;
    rustix::process::chdir("/").map_err(Error::io("/: chdir"))?;
    Ok(Path::new("/").join(name))
}

/// A name that no entry of the host's root has.
fn free_name() -> Result<OsString> {
    (0..1000)
        .map(|n| OsString::from(format!(".host{n}")))
        .find(|name| fs::symlink_metadata(Path::new("/").join(name)).is_err())
        .ok_or_else(|| Error::Exhausted("/.host0 to /.host999: all taken".to_owned()))
}

fn bind_host(host: &Path, tmp: Tmp, notes: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(host).map_err(Error::io("/: read"))?;
    for entry in entries {
        let name = entry.map_err(Error::io("/: read"))?.file_name();
        let own = OWN.iter().any(|own| name == *own);
        if own && !(name == "tmp" && tmp == Tmp::Host) {
            continue;
        }
        match mirror(&host.join(&name), &Path::new("/").join(&name)) {
            Ok(()) => {}
            Err(error) if unusable(&error) => {
                notes.push(format!("/{}: not inside: {error}", name.display()));
            }
            Err(error) => return Err(Error::io(format!("/{}: bind", name.display()))(error)),
        }
    }
    Ok(())
}

/// Shows an entry at another place: a symlink by its copy, all else by a bind mount with all that
/// is mounted below.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
    } else {
        File::create_new(to)?;
    }
    let bound = mount_bind_recursive(from, to).map_err(io::Error::from);
    if bound.is_err() {
        // Nothing is better than an empty thing of that name.
        if kind.is_dir() { fs::remove_dir(to)? } else { fs::remove_file(to)? }
    }
    bound
}

/// Whether an entry is useless on the host too: just removed, forbidden, or on a filesystem whose
/// server is gone.
fn unusable(error: &io::Error) -> bool {
    let codes = [
        libc::ENOENT,
        libc::EACCES,
        libc::ENOTCONN,
        libc::ESTALE,
        libc::EIO,
        libc::ENODEV,
        libc::EHOSTDOWN,
        libc::ETIMEDOUT,
    ];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// In a user namespace the kernel refuses a new /proc where the old one has parts covered.
fn mount_proc(host: &Path, notes: &mut Vec<String>) -> Result<()> {
    let proc = Path::new("/proc");
    make_directory(proc, 0o555)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("proc", proc, "proc", flags, None) {
        Err(rustix::io::Errno::PERM) => {
            mount_bind_recursive(host.join("proc"), proc).map_err(Error::file(proc, "bind"))?;
            let note = "/proc: the host's, with the host's process numbers: the kernel refuses a \
                        new one because parts of the host's are covered";
            notes.push(note.to_owned());
            Ok(())
        }
        other => other.map_err(Error::file(proc, "mount")),
    }
}

fn mount_global(
    spec: &Spec,
    host: &Path,
    notes: &mut Vec<String>,
    serve: impl FnOnce(OwnedFd) -> Result<()>,
) -> Result<()> {
    let global = Path::new("/global");
    make_directory(global, 0o755)?;
    match &spec.global {
        Global::Empty => empty(global),
        Global::Directory(path) => {
            let from = within(host, path);
            mount_bind_recursive(&from, global).map_err(Error::file(path, "bind to /global"))
        }
        Global::Fuse { source, subtype, options, read_only } => {
            let path = within(host, Path::new("/dev/fuse"));
            let device = match File::options().read(true).write(true).open(path) {
                // An ordinary user can do nothing about it: the rest of the cluster is of use.
                Err(error) if spec.user_namespace && unusable(&error) => {
                    notes.push(format!(
                        "/global: empty: {source} cannot be mounted by this user: /dev/fuse: \
                         {error} (as root: chmod 666 /dev/fuse)"
                    ));
                    return empty(global);
                }
                device => {
                    device.map_err(Error::io("/dev/fuse: open (is the fuse module loaded?)"))?
                }
            };
            let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            let mut data = format!(
                "fd={},rootmode=40000,user_id={},group_id={}",
                std::os::fd::AsRawFd::as_raw_fd(&device),
                ids.0,
                ids.1
            );
            if !options.is_empty() {
                data = format!("{data},{options}");
            }
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
            if *read_only {
                flags |= MountFlags::RDONLY;
            }
            let data = c_string(data, "options of /global")?;
            mount(source.as_str(), global, format!("fuse.{subtype}"), flags, data.as_c_str())
                .map_err(Error::io(format!("/global: mount {source} as fuse.{subtype}")))?;
            serve(device.into())
        }
    }
}

fn mount_temporary(spec: &Spec, host: &Path, notes: &mut Vec<String>) -> Result<()> {
    let (gtmp, ltmp, tmp) = (Path::new("/gtmp"), Path::new("/ltmp"), Path::new("/tmp"));
    make_directory(gtmp, 0o755)?;
    let shared = Path::new("/global").join(&spec.gtmp);
    if fs::symlink_metadata(&shared).is_ok_and(|found| found.is_dir()) {
        mount_bind_recursive(&shared, gtmp).map_err(Error::file(&shared, "bind to /gtmp"))?;
    } else {
        empty(gtmp)?;
    }
    make_directory(ltmp, 0o1777)?;
    let options = format!("mode=1777,size={}", spec.ltmp_bytes);
    let bound = format!("{options},mpol=bind:{}", spec.ltmp_nodes);
    if tmpfs(ltmp, MountFlags::NODEV, &bound).is_err() {
        tmpfs(ltmp, MountFlags::NODEV, &options)?;
        notes.push(format!(
            "/ltmp: not bound to memory nodes {}: the kernel does not take a policy for it",
            spec.ltmp_nodes
        ));
    }
    let source = match spec.tmp {
        Tmp::Host if fs::symlink_metadata(host.join("tmp")).is_ok() => return Ok(()),
        Tmp::Host | Tmp::Local => ltmp,
        Tmp::Global => gtmp,
    };
    make_directory(tmp, 0o1777)?;
    mount_bind_recursive(source, tmp).map_err(Error::file(tmp, "bind"))
}

/// The runtime files are to be seen inside even where what holds them is replaced (as /tmp may be).
fn show_directory(spec: &Spec, host: &Path, notes: &mut Vec<String>) -> Result<()> {
    let path = &spec.directory;
    let from = within(host, path);
    let same = |there: &fs::Metadata| {
        fs::metadata(path).is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    };
    if fs::metadata(&from).is_ok_and(|there| same(&there)) {
        return Ok(());
    }
    // Only in what is ours: a directory that is missing on a filesystem of the host's stays so.
    let ours = ["/tmp", "/dev", "/ltmp"].iter().any(|own| path.starts_with(own));
    let bound = if ours && spec.tmp != Tmp::Global {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
        made.and_then(|()| Ok(mount_bind_recursive(&from, path)?))
    } else {
        Err(io::Error::from(io::ErrorKind::NotFound))
    };
    if let Err(error) = bound {
        notes.push(format!("{}: not seen inside: {error}", path.display()));
    }
    Ok(())
}

/// A path of the host's as it is to be had now.
pub(super) fn within(host: &Path, path: &Path) -> PathBuf {
    host.join(path.strip_prefix("/").unwrap_or(path))
}

/// An empty filesystem that stays empty.
fn empty(path: &Path) -> Result<()> {
    tmpfs(path, MountFlags::RDONLY | MountFlags::NODEV, "mode=555,size=4k")
}

pub(super) fn tmpfs(path: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let options = c_string(options, "options of a tmpfs")?;
    mount("oslet", path, "tmpfs", flags | MountFlags::NOSUID, options.as_c_str())
        .map_err(Error::file(path, "mount tmpfs"))
}

pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir(path).map_err(Error::file(path, "make directory"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::file(path, "set permissions"))
}

fn c_string(text: impl Into<Vec<u8>>, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Invalid(format!("{what}: holds a zero byte")))
}
