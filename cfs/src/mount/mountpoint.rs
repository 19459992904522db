//! Making and ending the mounts themselves.
//!
//! [`mount`] can be called in another process than the one that serves: a process in the mount
//! namespace gets the descriptor, mounts, and closes its copy. In a user namespace /dev/fuse must
//! also have been opened by a process in that namespace.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use oslet::sys::fusectl;
use oslet::{Error, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The filesystem type, as `mount` and /proc/mounts show it.
pub const FSTYPE: &str = "fuse.cfs";
const SUBTYPE: &str = "cfs";
const HELPER: &str = "fusermount3";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What is mounted, for the first column of /proc/mounts.
    pub source: String,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// The kernel checks permissions (always so with POSIX ACLs).
    pub default_permissions: bool,
    /// Bytes of the largest read, if less than what INIT agrees on.
    pub max_read: Option<u32>,
    /// Owner of the mount, as the mounting process's user namespace names it.
    pub owner: (u32, u32),
    /// Set-user-ID programs and file capabilities do nothing.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Programs cannot be run from it.
    pub noexec: bool,
    /// No write reaches the filesystem.
    pub read_only: bool,
    /// Times of reading are not kept, as /proc/mounts then shows.
    pub noatime: bool,
}

impl MountOptions {
    /// A read-only mount owned by the caller, with the kernel checking permissions.
    pub fn new(source: impl Into<String>) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self {
            source: source.into(),
            allow_other: owner.0 == 0,
            default_permissions: true,
            max_read: None,
            owner,
            nosuid: true,
            nodev: true,
            noexec: false,
            read_only: true,
            noatime: false,
        }
    }

    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NOSUID, self.nosuid);
        flags.set(MountFlags::NODEV, self.nodev);
        flags.set(MountFlags::NOEXEC, self.noexec);
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOATIME, self.noatime);
        flags
    }

    fn kernel_data(&self, device: i32) -> String {
        let (user, group) = self.owner;
        let mut data = format!("fd={device},rootmode=40000,user_id={user},group_id={group}");
        self.push_common(&mut data);
        data
    }

    fn helper_data(&self) -> String {
        // In the helper's list a comma ends an option and a backslash protects one.
        let source = self.source.replace('\\', "\\\\").replace(',', "\\,");
        let mut data = format!("fsname={source},subtype={SUBTYPE}");
        for (set, name) in [
            (self.read_only, "ro"),
            // The helper refuses `suid` and `dev` to ordinary users; their absence is its default.
            (self.nosuid, "nosuid"),
            (self.nodev, "nodev"),
            (self.noexec, "noexec"),
            (self.noatime, "noatime"),
        ] {
            if set {
                data.push(',');
                data.push_str(name);
            }
        }
        self.push_common(&mut data);
        data
    }

    fn push_common(&self, data: &mut String) {
        if self.allow_other {
            data.push_str(",allow_other");
        }
        if self.default_permissions {
            data.push_str(",default_permissions");
        }
        if let Some(max_read) = self.max_read {
            data.push_str(&format!(",max_read={max_read}"));
        }
    }
}

/// Mounts the connection of `device` on the directory `target`. Needs CAP_SYS_ADMIN in the user
/// namespace of the mount namespace.
pub fn mount(device: impl AsFd, target: &Path, options: &MountOptions) -> Result<()> {
    let data = options.kernel_data(device.as_fd().as_raw_fd());
    let data = CString::new(data).map_err(|_| bad_source(options))?;
    let source = CString::new(options.source.as_str()).map_err(|_| bad_source(options))?;
    rustix::mount::mount(&*source, target, FSTYPE, options.flags(), &*data).map_err(|errno| {
        let why = match errno {
            Errno::PERM => "mount: not permitted (needs CAP_SYS_ADMIN)",
            Errno::NODEV => "mount: this kernel has no FUSE",
            Errno::INVAL => "mount: refused (was /dev/fuse opened in this user namespace?)",
            _ => "mount",
        };
        Error::file(target, why)(errno)
    })
}

fn bad_source(options: &MountOptions) -> Error {
    Error::Invalid(format!("mount source {:?}: contains a zero byte", options.source))
}

/// Opens /dev/fuse and mounts it on `target`: by itself where it may, else through the setuid
/// program `fusermount3`. The descriptor is to be served.
pub fn open_and_mount(target: &Path, options: &MountOptions) -> Result<(OwnedFd, Mounted)> {
    let direct = fusectl::open_device().and_then(|device| {
        mount(&device, target, options)?;
        Ok(device)
    });
    let by_helper = |error: &Error| {
        !rustix::process::geteuid().is_root()
            && matches!(error, Error::Io { source, .. } | Error::File { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied)
    };
    match direct {
        Ok(device) => Ok((device, Mounted { by_helper: false })),
        Err(error) if by_helper(&error) => {
            let device = mount_by_helper(target, options)?;
            Ok((device, Mounted { by_helper: true }))
        }
        Err(error) => Err(error),
    }
}

/// Mounts through `fusermount3`, which passes the descriptor back over its standard input.
fn mount_by_helper(target: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::io("socketpair"))?;
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(options.helper_data())
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_helper)?;
    let received = receive(&ours);
    let output = child.wait_with_output().map_err(Error::io(format!("{HELPER}: wait")))?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) => Err(Error::io(format!("{HELPER}: descriptor"))(error)),
        Ok(_) => Err(helper_failed(target, &output)),
    }
}

fn no_helper(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::Invalid(format!(
            "{HELPER}: not found: an ordinary user needs it to mount (package fuse3)"
        ));
    }
    Error::io(HELPER)(error)
}

fn helper_failed(target: &Path, output: &std::process::Output) -> Error {
    let said = String::from_utf8_lossy(&output.stderr);
    Error::Invalid(format!("{}: {} ({})", target.display(), said.trim(), output.status))
}

/// A descriptor, or `None` when the other end is closed without sending one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let mut data = [io::IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// How a mount was made, which decides how it is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mounted {
    by_helper: bool,
}

/// How a mount ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// It is gone, and its session has ended or is about to.
    Gone,
    /// It was in use: no longer reachable by name, it goes with its last user.
    Detached,
    /// There was none.
    NotMounted,
}

impl Mounted {
    /// A mount made with [`mount`].
    pub const DIRECT: Self = Self { by_helper: false };

    /// Ends it; one that is in use is detached.
    pub fn unmount(self, target: &Path) -> Result<Unmounted> {
        if self.by_helper {
            return unmount_by_helper(target);
        }
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(Unmounted::Gone),
            Err(Errno::INVAL) => Ok(Unmounted::NotMounted),
            Err(Errno::BUSY) => {
                rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                    .map_err(Error::file(target, "unmount (detach)"))?;
                Ok(Unmounted::Detached)
            }
            Err(errno) => Err(Error::file(target, "unmount")(errno)),
        }
    }
}

fn unmount_by_helper(target: &Path) -> Result<Unmounted> {
    let run = |lazy: bool| {
        let mut command = Command::new(HELPER);
        command.arg("-u");
        if lazy {
            command.arg("-z");
        }
        command.arg("--").arg(target).stdin(Stdio::null()).output().map_err(no_helper)
    };
    if run(false)?.status.success() {
        return Ok(Unmounted::Gone);
    }
    if !is_mounted(target)? {
        return Ok(Unmounted::NotMounted);
    }
    let output = run(true)?;
    if output.status.success() {
        Ok(Unmounted::Detached)
    } else {
        Err(helper_failed(target, &output))
    }
}

/// Whether a FUSE filesystem is mounted on that path, which must be absolute and without links.
pub fn is_mounted(target: &Path) -> Result<bool> {
    debug_assert!(target.as_os_str().as_bytes().starts_with(b"/"));
    Ok(fusectl::connection_at("/proc/self/mountinfo".as_ref(), target)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_the_source_ends_no_option() {
        let mut options = MountOptions::new("a,b\\c");
        options.allow_other = false;
        assert_eq!(
            options.helper_data(),
            "fsname=a\\,b\\\\c,subtype=cfs,ro,nosuid,nodev,default_permissions"
        );
        options.max_read = Some(65536);
        options.owner = (7, 8);
        assert_eq!(
            options.kernel_data(3),
            "fd=3,rootmode=40000,user_id=7,group_id=8,default_permissions,max_read=65536"
        );
    }
}
