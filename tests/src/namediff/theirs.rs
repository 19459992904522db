//! Operations by the kernel, below a mounted directory.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Result;
use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, OFlags, RenameFlags, Uid, XattrFlags, makedev,
};
use rustix::io::Errno;

use super::Op;

/// A mounted directory.
pub(super) struct Theirs {
    root: OwnedFd,
}

fn open(dir: &Path, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(dir.join(path), flags | OFlags::CLOEXEC, Mode::empty())
}

impl Theirs {
    /// Below this directory.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        Ok(Self { root: open(dir, "", OFlags::PATH)? })
    }

    /// Does an operation; the answer is 0 or an errno.
    pub(super) fn apply(&mut self, op: &Op) -> i32 {
        match self.done(op) {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error(),
        }
    }

    fn done(&self, op: &Op) -> rustix::io::Result<()> {
        let root = &self.root;
        match op {
            Op::Make { path, mode, umask, device } => {
                let before = rustix::process::umask(Mode::from_raw_mode((*umask).into()));
                let raw = u32::from(*mode);
                let mode = Mode::from_raw_mode(raw & 0o7777);
                let made = match FileType::from_raw_mode(raw) {
                    FileType::Directory => rustix::fs::mkdirat(root, path.as_str(), mode),
                    kind => {
                        let device = makedev(device.0, device.1);
                        rustix::fs::mknodat(root, path.as_str(), kind, mode, device)
                    }
                };
                rustix::process::umask(before);
                made
            }
            Op::Symlink { path, target } => {
                rustix::fs::symlinkat(target.as_str(), root, path.as_str())
            }
            Op::Link { from, to } => {
                rustix::fs::linkat(root, from.as_str(), root, to.as_str(), AtFlags::empty())
            }
            Op::Unlink { path } => rustix::fs::unlinkat(root, path.as_str(), AtFlags::empty()),
            Op::Rmdir { path } => rustix::fs::unlinkat(root, path.as_str(), AtFlags::REMOVEDIR),
            Op::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                rustix::fs::renameat_with(root, from.as_str(), root, to.as_str(), flags)
            }
            _ => self.change(op),
        }
    }

    /// Paths of calls that know no directory go through /proc.
    fn full(&self, path: &str) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}/{path}", self.root.as_raw_fd())
    }

    fn change(&self, op: &Op) -> rustix::io::Result<()> {
        match op {
            Op::Chmod { path, mode } => {
                if self.kind(path)? == FileType::Symlink {
                    return Ok(());
                }
                let mode = Mode::from_raw_mode((*mode).into());
                rustix::fs::chmodat(&self.root, path.as_str(), mode, AtFlags::empty())
            }
            Op::Chown { path, uid, gid } => rustix::fs::chownat(
                &self.root,
                path.as_str(),
                Some(Uid::from_raw(*uid)),
                Some(Gid::from_raw(*gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
            Op::Truncate { path, size } => {
                if self.kind(path)? != FileType::RegularFile {
                    return Ok(());
                }
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.root, path.as_str(), flags, Mode::empty())?;
                rustix::fs::ftruncate(file, *size)
            }
            Op::Set { path, name, value, flags } => rustix::fs::lsetxattr(
                self.full(path).as_str(),
                name.as_str(),
                value,
                XattrFlags::from_bits_retain(*flags),
            ),
            Op::Remove { path, name } => {
                rustix::fs::lremovexattr(self.full(path).as_str(), name.as_str())
            }
            Op::Flags { path, flags } => {
                if !matches!(self.kind(path)?, FileType::RegularFile | FileType::Directory) {
                    return Ok(());
                }
                let how = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.root, path.as_str(), how, Mode::empty())?;
                set_flags(&file, *flags)
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// What a path leads to, a link itself.
    fn kind(&self, path: &str) -> rustix::io::Result<FileType> {
        let stat = rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }
}

fn set_flags(file: &OwnedFd, flags: u32) -> rustix::io::Result<()> {
    let known = IFlags::from_bits_retain(0x10_0f8);
    let old = rustix::fs::ioctl_getflags(file)?;
    let flags = IFlags::from_bits_retain(flags);
    rustix::fs::ioctl_setflags(file, (old - known) | (flags & known))
}
